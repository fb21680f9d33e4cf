"""Trainers as people make them, small: a model by its config, random data, whatever can be set."""

import random

import numpy as np
import torch
import transformers
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from onward.transformers import Resumable

transformers.logging.set_verbosity_error()
WORDS, LENGTH, ROWS, BATCH = 40, 8, 64, 8
STEPS = ROWS // BATCH  # of an epoch
_TOKENS = torch.randint(1, WORDS, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": row, "labels": row} for row in _TOKENS]


class Died(Exception):
    """Stands for whatever ends a process."""


class Dies(TrainerCallback):
    """Raises, or does something else, where an event comes at a step."""

    def __init__(self, event, step, act=None):
        self._step, self._act = step, act
        setattr(self, event, self._at)

    def _at(self, args, state, control, **kwargs):
        if state.global_step == self._step:
            self._step = None
            if self._act is None:
                raise Died
            self._act()


class Noisy(Dataset):
    """Draws which token it hides, in three ways, as augmentation does."""

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        ids = _TOKENS[index].clone()
        ids[random.randrange(LENGTH)] = 0
        ids[np.random.randint(LENGTH)] = 0
        ids[torch.randint(LENGTH, ())] = 0
        return {"input_ids": ids, "labels": _TOKENS[index]}


class Lengths(Dataset):
    """Rows of several lengths."""

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        row = _TOKENS[index][: 2 + index % 7]
        return {"input_ids": row, "labels": row}


class Stream(torch.utils.data.IterableDataset):
    """Has neither length nor indices."""

    def __iter__(self):
        return iter(DATA)


def masking(rows):
    """Hide tokens at random, as a collator for masked language models."""
    ids = torch.stack([row["input_ids"] for row in rows])
    hidden = torch.rand(ids.shape) < 0.15
    return {"input_ids": torch.where(hidden, 0, ids), "labels": ids}


def padded(rows):
    """Fill rows up to the longest."""
    ids = torch.nn.utils.rnn.pad_sequence([row["input_ids"] for row in rows], batch_first=True)
    return {"input_ids": ids, "labels": ids}


def scramble(seed):
    """Leave the global generators as another process has them."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def model():
    """Return a small model with dropout and tied weights."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=WORDS, n_positions=LENGTH, n_embd=16, n_layer=1, n_head=2, bos_token_id=0,
            eos_token_id=0, loss_type="ForCausalLM",
        )
    )  # fmt: skip


def trainer(data=DATA, collator=None, callbacks=(), optimizer=None, **args):
    """Return a Trainer; `args` are those of TrainingArguments."""
    args = {
        "eval_strategy": "epoch", "logging_strategy": "epoch", "save_strategy": "no",
        "num_train_epochs": 3, "learning_rate": 3e-3, "seed": 7, "report_to": "none", **args,
    }  # fmt: skip
    transformers.set_seed(7)
    made = Trainer(
        model=model(),
        args=TrainingArguments(
            "out", per_device_train_batch_size=BATCH, per_device_eval_batch_size=16,
            use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, **args,
        ),
        train_dataset=data,
        eval_dataset=DATA[:16],
        data_collator=collator,
        callbacks=list(callbacks),
    )  # fmt: skip
    made.remove_callback(PrinterCallback)
    return made


def train(seed, dies=None, resumable=None, more=(), **options):
    """Train in what stands for a process of its own; return the Trainer."""
    scramble(seed)
    if resumable is None:
        resumable = {}
    others = [callback() for callback in more]
    made = trainer(callbacks=[*others, *([dies] if dies else [])], **options)
    scramble(seed)  # whatever comes between
    transformers.set_seed(7)
    run = Resumable(**{"minimize": "eval_loss", "log_model": False, **resumable})
    made = run.attach(made)
    made.resumable = run
    folder = run.folder
    if folder is not None:
        scramble(seed)  # whatever else a script does before it trains
    made.train(resume_from_checkpoint=folder)
    return made
