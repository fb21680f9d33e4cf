"""All state that a resume needs, in one place: `TrainState`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from onward.checkpoint.content import Content
from onward.metrics import History
from onward.monitor import UNDECLARED, Best, Monitor
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


_COUNT = "/count"  # behind the name of a running sum: of how many values it is


class Mean:
    """A running mean over the epoch under way.

    Args:
        sums: The running sums of the epoch, by name, of which it is made.
        name: That of the mean.
    """

    def __init__(self, sums: dict[str, torch.Tensor], name: str) -> None:
        self._sums, self._name = sums, name

    def add(self, value: torch.Tensor | float, num: int = 1) -> None:
        """Add the mean of `num` values: a number, or a scalar tensor on any device."""
        total = self._sums.get(self._name, torch.zeros((), dtype=torch.float64))
        if isinstance(value, torch.Tensor):
            total = total.to(value.device)
        total += value * num  # in float64, without a wait for the device
        self._sums[self._name] = total
        count = self._sums.setdefault(f"{self._name}{_COUNT}", torch.zeros((), dtype=torch.int64))
        count += num

    @property
    def value(self) -> float:
        """The mean; NaN if there are no values."""
        total = self._sums.get(self._name)
        if total is None:
            return math.nan
        return (total / int(self._sums[f"{self._name}{_COUNT}"])).item()


@dataclass
class TrainState:
    """What training changes as it goes: with the options and the data, all that a resume needs.

    `epoch` and `step` count what is completed; the fields that begin with `epoch_` are of the
    epoch under way, and empty between two epochs. The order of batches is a function of the seed
    and the epoch, early stopping one of `epoch` and `best`, and `best` one of `history`: none of
    them has a state of its own.

    Args:
        parts: What the training is made of, by name.
        monitor: The metric that decides which epoch is best.
    """

    parts: Mapping[str, Stateful]
    monitor: Monitor = UNDECLARED
    epoch: int = 0
    step: int = 0
    epoch_step: int = 0
    epoch_sums: dict[str, torch.Tensor] = field(default_factory=dict)  # running sums, by name
    epoch_seconds: float = 0.0  # spent on it by attempts before this one
    best: Best | None = None
    history: History = field(default_factory=History)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Those of the parts that change weights by their steps."""
        return [part for part in self.parts.values() if isinstance(part, torch.optim.Optimizer)]

    @property
    def best_epoch(self) -> int | None:
        """The best epoch so far, None if there is none."""
        return self.best.epoch if self.best else None

    def note_best(self, value: float, epoch: int) -> None:
        """Take the epoch's value of the monitored metric if it is the best so far."""
        if self.monitor.is_better(value, self.best.value if self.best else None):
            self.best = Best(value, epoch)

    def mean(self, name: str) -> Mean:
        """Return the running mean of that name over the epoch under way."""
        return Mean(self.epoch_sums, name)

    def know_counts(self, num_samples: int, num_batches: int) -> None:
        """Count the values of running sums that an earlier version saved without their number.

        Args:
            num_samples: Those of the epoch, each of which was one value.
            num_batches: In which they come; see `order.batches`.
        """
        size, num_larger = divmod(num_samples, num_batches)
        done = self.epoch_step * size + min(self.epoch_step, num_larger)
        for name in [name for name in self.epoch_sums if not name.endswith(_COUNT)]:
            self.epoch_sums.setdefault(f"{name}{_COUNT}", torch.tensor(done))

    def end_epoch(self) -> None:
        """Count the epoch under way as completed."""
        self.epoch += 1
        self.epoch_step, self.epoch_sums, self.epoch_seconds = 0, {}, 0.0

    def capture(self) -> Content:
        """Return everything; tensors are not copied."""
        # IMPORTANT: random state comes first and is put back: collecting the rest may draw from it.
        random_state = rng.capture()
        content = Content(
            epoch=self.epoch,
            step=self.step,
            epoch_step=self.epoch_step,
            epoch_sums=dict(self.epoch_sums),
            epoch_seconds=self.epoch_seconds,
            parts={name: part.state_dict() for name, part in self.parts.items()},
            history=self.history,
            best_epoch=self.best_epoch,
            monitor=self.monitor,
            rng=random_state,
        )
        rng.restore(random_state)
        return content

    def restore(self, content: Content) -> None:
        """Go back to what `capture` returned.

        Raises:
            MISFITS: A part is missing or does not fit.
        """
        for name, part in self.parts.items():
            part.load_state_dict(content.parts[name])
        self.history = History(content.history)
        self.epoch, self.step = content.epoch, content.step
        self.epoch_step = content.epoch_step
        self.epoch_sums = {k: v.clone() for k, v in content.epoch_sums.items()}
        self.epoch_seconds = content.epoch_seconds
        self.best = self.monitor.best(self.history.series(self.monitor.name))
        # IMPORTANT: random state comes last, since loading the rest may draw from it.
        rng.restore(dict(content.rng))
