"""All state that a resume needs, in one place: `TrainState`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from onward.metrics import MONITOR, History
from onward.run import rng

# What `TrainState.restore` raises where a part is missing, of another kind, or does not fit.
MISFITS = (
    RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError,
)  # fmt: skip


class Stateful(Protocol):
    """Whatever a checkpoint can hold: a model, an optimizer, a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as tensors and builtins."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Go back to a state that `state_dict` returned; raise if it does not fit."""


@dataclass
class TrainState:
    """What training changes as it goes: with the options and the data, all that a resume needs.

    `epoch` and `step` count what is completed; the fields that begin with `epoch_` are of the
    epoch under way, and empty between two epochs. The order of batches is a function of the seed
    and the epoch, and early stopping a function of `epoch` and `best_epoch`: neither has a
    state of its own.
    """

    model: Stateful
    optimizer: Stateful
    scheduler: Stateful
    epoch: int = 0
    step: int = 0
    epoch_step: int = 0
    epoch_sums: dict[str, torch.Tensor] = field(default_factory=dict)  # running sums, by name
    epoch_seconds: float = 0.0  # spent on it by attempts before this one
    best_corr: float | None = None  # highest finite value of MONITOR so far
    best_epoch: int | None = None
    history: History = field(default_factory=History)

    def note_best(self, value: float, epoch: int) -> None:
        """Take `value` of MONITOR if it is the best so far: never NaN; a tie keeps the older."""
        finite = abs(value) < 1e308  # MLflow gives an infinite value back as ±1.8e308
        if finite and (self.best_corr is None or value > self.best_corr):
            self.best_corr, self.best_epoch = value, epoch

    def running_sum(self, name: str, device: torch.device) -> torch.Tensor:
        """Return the sum of that name over the epoch under way: a float64 scalar to add to."""
        self.epoch_sums[name] = self.epoch_sums.get(name, torch.zeros((), dtype=torch.float64)).to(
            device
        )
        return self.epoch_sums[name]

    def end_epoch(self) -> None:
        """Count the epoch under way as completed."""
        self.epoch += 1
        self.epoch_step, self.epoch_sums, self.epoch_seconds = 0, {}, 0.0

    def capture(self) -> dict[str, Any]:
        """Return everything, under the keys of `checkpoint.pth`; tensors are not copied."""
        # IMPORTANT: random state comes first and is put back: collecting the rest may draw from it.
        random_state = rng.capture()
        content = {
            "epoch": self.epoch,
            "step": self.step,
            "epoch_step": self.epoch_step,
            "epoch_sums": dict(self.epoch_sums),
            "epoch_seconds": self.epoch_seconds,
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "scheduler_state_dict": self.scheduler.state_dict(),
            "train_losses": self.history.values("train_loss"),
            "val_losses": self.history.values("val_loss"),
            "aucs": self.history.values(MONITOR),  # a historical name
            "best_corr": self.best_corr,
            "best_epoch": self.best_epoch,
            "history": self.history.state_dict(),
            "rng": random_state,
        }
        rng.restore(random_state)
        return content

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Go back to what `capture` returned.

        Raises:
            MISFITS: A part is missing or does not fit.
        """
        self.model.load_state_dict(checkpoint["model_state_dict"])
        self.optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
        self.scheduler.load_state_dict(checkpoint["scheduler_state_dict"])
        self.history.load_state_dict(checkpoint["history"])
        self.epoch, self.step = checkpoint["epoch"], checkpoint["step"]
        self.epoch_step = checkpoint["epoch_step"]
        self.epoch_sums = {k: v.clone() for k, v in checkpoint["epoch_sums"].items()}
        self.epoch_seconds = checkpoint["epoch_seconds"]
        self.best_corr, self.best_epoch = checkpoint["best_corr"], checkpoint["best_epoch"]
        # IMPORTANT: random state comes last, since loading the rest may draw from it.
        rng.restore(checkpoint["rng"])
