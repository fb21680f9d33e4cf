"""Trains by one of the ways in, and kills itself; a resume has other random numbers at first.

    way.py NAME STEP SIGNAL [option=value …]

kills itself by SIGNAL after STEP optimizer steps, 0: never; PAUSE waits there for a file `go`. The
way in is a function here; options go to the run. `resume_run` is by ONWARD_RESUME_RUN, as people
give it, or an option of `train run`.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

sys.path.insert(0, str(Path(__file__).parents[1]))  # for own_loops.py

ROOT = Path(__file__).parents[2]


def _train_run(*words: str, **options: str) -> None:
    from train import cli

    resume_run = os.environ.pop("ONWARD_RESUME_RUN", None)
    if resume_run:
        options["resume_run"] = resume_run
    words = (*words, *(word for k, v in options.items() for word in (f"--{k}", v)))
    cli.main(["run", "--log_model", "false", *words])


def table(**options):
    """The built-in loop on the shipped kind of table."""
    small = ("--batch_size", "64", "--hidden_size", "16", "--num_layers", "1", "--epochs", "4")
    _train_run("--data", os.environ["TABLE"], "--target", "price", *small, **options)


def own_task(**options):
    """The built-in loop on a task of one's own."""
    small = ("--batch_size", "256", "--epochs", "4")
    _train_run("--task", str(ROOT / "examples" / "digits.py"), *small, **options)


def epochs(**options):
    """A loop of one's own, by epochs."""
    import own_loops

    own_loops.classifier(**_parsed(options))


def steps(**options):
    """A loop of one's own, by steps."""
    import own_loops

    own_loops.language_model(**_parsed(options))


def lightning(**options):
    """Lightning's Trainer."""
    import lightning as L
    from lightning_net import Net, loaders, trainer_of

    from onward.lightning import Resumable

    L.seed_everything(7, verbose=False)
    resumable = Resumable(minimize="val_loss", **_parsed(options))
    trainer = trainer_of(4, [resumable], logger=resumable.logger)
    path = resumable.ckpt_path
    trainer.fit(Net("onecycle"), *loaders(), ckpt_path=path, weights_only=True)


def transformers(**options):
    """Hugging Face's Trainer, with a collator that draws."""
    import trainers

    seed = random.randrange(10**6)
    trainers.train(seed, None, _parsed(options), collator=trainers.masking, num_train_epochs=3)


def _parsed(options):
    return {k: int(v) if v.isdecimal() else v for k, v in options.items()}


if __name__ == "__main__":
    from onward.system import processes

    processes.machine = lambda: os.environ["MACHINE"]  # another one for each folder
    name, step, number, *words = sys.argv[1:]
    # A run begins with the numbers that it begins with; whoever goes on with it has any.
    seed = int.from_bytes(os.urandom(4), "little") if os.environ.get("ONWARD_RESUME_RUN") else 7
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    made = 0

    def count(*_):
        global made
        made += 1
        if made == int(step) and number == "PAUSE":
            Path("paused").touch()
            while not Path("go").exists():
                time.sleep(0.02)
        elif made == int(step):
            os.kill(os.getpid(), getattr(signal, number))

    register_optimizer_step_post_hook(count)
    globals()[name](**dict(word.split("=", 1) for word in words))
