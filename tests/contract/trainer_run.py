"""A Trainer in a process of its own: `trainer_run.py [SIGNAL STEP]`; it is sent itself there."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for trainers.py

import torch
import trainers

if __name__ == "__main__":
    torch.set_num_threads(1)
    dies = None
    if len(sys.argv) > 1:
        number = signal.Signals[sys.argv[1]]
        dies = trainers.Dies("on_step_end", int(sys.argv[2]), lambda: os.kill(os.getpid(), number))
    trainers.train(
        os.getpid(),
        dies,
        {"resume_run": "auto", "checkpoint_steps": 2, "upload": "sync"},
        collator=trainers.masking,
        gradient_accumulation_steps=2,
        eval_strategy="steps",
        eval_steps=3,
        logging_strategy="steps",
        logging_steps=5,
        num_train_epochs=4,
    )
