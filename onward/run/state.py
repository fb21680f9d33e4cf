"""All state that a resume needs, in one place: `TrainState`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from onward.checkpoint.content import Content
from onward.checkpoint.host_files import HostFiles
from onward.checkpoint.shards import Shards
from onward.errors import CheckpointError
from onward.metrics import EPOCH, STEP, History
from onward.monitor import UNDECLARED, Best, Monitor
from onward.run import rng
from onward.run.differences import first_difference
from onward.run.feeds import Feed
from onward.run.parts import (
    capture,
    optimizers_of,
    put_back,
    ties_of,
)
from onward.run.sharded import join_parts
from onward.run.updates import Updates
from onward.system.untrusted import shown
from onward.words.language import _
from onward.world import ALONE, World

# What `TrainState.restore` raises where a part is missing, of another kind, or does not fit.
MISFITS = (
    RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError,
)  # fmt: skip

_COUNT = "/count"  # behind the name of a running sum: of how many values it is


class Mean:
    """A running mean over the epoch under way.

    Args:
        sums: The running sums of the epoch, by name, of which it is made.
        name: That of the mean.
        world: The ranks, over all of which it is.
    """

    def __init__(
        self, sums: dict[str, torch.Tensor | float], name: str, world: World = ALONE
    ) -> None:
        self._sums, self._name, self._world = sums, name, world

    def add(self, value: torch.Tensor | float, num: int = 1) -> None:
        """Add the mean of `num` values: a number, or a scalar tensor on any device."""
        count, num = f"{self._name}{_COUNT}", int(num)
        added = value * num
        if isinstance(added, torch.Tensor) and added.device.type != "cpu":
            # The device is not waited for: there the sum is a tensor, in float64 as well.
            added = added.detach().double()
        else:
            added = float(added.detach() if isinstance(added, torch.Tensor) else added)
        total = self._sums.get(self._name, 0.0)
        if isinstance(total, torch.Tensor) and isinstance(added, torch.Tensor):
            total = total.to(added.device)
        self._sums[self._name] = total + added
        self._sums[count] = self._sums.get(count, 0) + num

    @property
    def value(self) -> float:
        """The mean, of the values of all ranks; NaN if there are none. Each rank has to ask."""
        names = (self._name, f"{self._name}{_COUNT}")
        own = [float(self._sums[name]) if name in self._sums else 0.0 for name in names]
        total, count = self._world.sum(own)
        return total / count if count else math.nan


@dataclass(frozen=True)
class Start:
    """Where an attempt begins.

    Args:
        content: The checkpoint to go on from; None: from the beginning.
        published: The metric values that MLflow has of the run already.
        monitor: The metric that decides which epoch is best.
        files: Where pieces of it are read as they are needed; None: the content is whole.
    """

    content: Content | None
    published: History
    monitor: Monitor = UNDECLARED
    files: HostFiles | None = None


@dataclass
class TrainState:
    """What training changes as it goes: with the options and the data, all that a resume needs.

    `epoch` and `step` count what is completed; the fields that begin with `epoch_` are of the
    epoch under way, and empty between two epochs. Where a loop has no epochs, `unit` is "step", and
    `epoch` counts steps. The order of batches is a function of the seed
    and the epoch, early stopping one of `epoch` and `best`, and `best` one of `history`: none of
    them has a state of its own.

    Args:
        parts: What the training is made of, by name; see `onward.run.parts`.
        monitor: The metric that decides which epoch is best.
    """

    parts: Mapping[str, Any]
    monitor: Monitor = UNDECLARED
    epoch: int = 0
    step: int = 0
    epoch_step: int = 0
    epoch_sums: dict[str, torch.Tensor | float] = field(default_factory=dict)  # by name
    epoch_seconds: float = 0.0  # spent on it by attempts before this one
    best: Best | None = None
    history: History = field(default_factory=History)
    unit: str = EPOCH
    axes: dict[str, str] = field(default_factory=dict)  # of metrics that are not logged by unit
    feeds: dict[str, Feed] = field(default_factory=dict)  # loaders that are iterated, by name
    saved_feeds: dict[str, Any] = field(default_factory=dict)  # those that are not yet
    updates: Updates = field(default_factory=Updates)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Those of the parts that change weights by their steps."""
        return optimizers_of(self.parts)

    @property
    def best_epoch(self) -> int | None:
        """The best epoch so far, None if there is none."""
        return self.best.epoch if self.best else None

    def note_best(self, value: float, epoch: int) -> None:
        """Take the epoch's value of the monitored metric if it is the best so far."""
        if self.monitor.is_better(value, self.best.value if self.best else None):
            self.best = Best(value, epoch)

    def waits_for(self, patience: int, number: int) -> bool:
        """Tell whether the last `patience` units before `number` were no better; 0: never."""
        is_judged = bool(patience) and bool(self.monitor.name)
        return is_judged and number - (self.best_epoch or 0) >= patience

    def feed(self, name: str, loader: Any, world: World = ALONE) -> Feed:
        """Return the feed of that name, where the checkpoint left it.

        Raises:
            CheckpointError: The loader is not the one that it was.
        """
        feed = self.feeds.get(name)
        if feed is not None:
            feed.loader = loader
            return feed
        feed = Feed(loader, world)
        if name in self.saved_feeds:
            try:
                feed.load_state_dict(self.saved_feeds[name])
            except MISFITS as error:
                raise CheckpointError(
                    _("where the checkpoint's loader was cannot be read: {reason}").format(
                        reason=repr(error)[:200]
                    )
                ) from error
        self.saved_feeds.pop(name, None)
        self.feeds[name] = feed
        return feed

    def count(self, unit: str) -> None:
        """Count in that unit from here on.

        Raises:
            CheckpointError: The run counts in another one already.
        """
        if self.epoch and self.unit != unit:
            used, asked = ("steps", "epochs") if self.unit == STEP else ("epochs", "steps")
            raise CheckpointError(
                _("the run goes by {used} (run.{used}), and the program by {asked}: use run.{used} "
                  "again, or start afresh").format(used=used, asked=asked)
            )  # fmt: skip
        self.unit = unit

    def mean(self, name: str, world: World = ALONE) -> Mean:
        """Return the running mean of that name over the epoch under way."""
        return Mean(self.epoch_sums, name, world)

    def know_counts(self, num_samples: int, num_batches: int) -> None:
        """Count the values of running sums that an earlier version saved without their number.

        Args:
            num_samples: Those of the epoch, each of which was one value.
            num_batches: In which they come; see `order.batches`.
        """
        size, num_larger = divmod(num_samples, num_batches)
        done = self.epoch_step * size + min(self.epoch_step, num_larger)
        for name in [name for name in self.epoch_sums if not name.endswith(_COUNT)]:
            self.epoch_sums.setdefault(f"{name}{_COUNT}", done)

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
            epoch_sums={name: _tensor_of(total) for name, total in self.epoch_sums.items()},
            epoch_seconds=self.epoch_seconds,
            parts={name: capture(part) for name, part in self.parts.items()},
            history=self.history,
            best_epoch=self.best_epoch,
            monitor=self.monitor,
            rng=random_state,
            unit=self.unit,
            axes=dict(self.axes),
            feeds=self.saved_feeds | {name: f.state_dict() for name, f in self.feeds.items()},
        )
        rng.restore(random_state)
        return content

    def restore(self, content: Content, shards: Shards | None = None) -> None:
        """Go back to what `capture` returned.

        Args:
            content: Of whatever layout; that of the parts may be another one.
            shards: Where the pieces are, if it has markers in place of tensors.

        Raises:
            CheckpointError: Parts are missing, do not fit, or are not what they were once they are
                put back.
        """
        # What the run has come to is known, and told, where its parts do not fit.
        self.unit, self.epoch, self.step = content.unit, content.epoch, content.step
        self.history = History(content.history)
        self.best = self.monitor.best(self.history.series(self.monitor.name))
        require_same_names(self.parts, content.parts)
        try:
            saved = join_parts(content, self.parts, shards)
            for name, part in self.parts.items():
                put_back(part, saved[name], name)
            sums = {name: total.item() for name, total in content.epoch_sums.items()}
        except MISFITS as error:
            raise CheckpointError(
                _("the checkpoint of epoch {epoch} does not fit this program's model: {reason}")
                .format(epoch=content.epoch, reason=" ".join(str(error).split())[:300])
            ) from error  # fmt: skip
        _require_restored(self.parts, saved)
        self.axes = dict(content.axes)
        self.feeds, self.saved_feeds = {}, dict(content.feeds)
        self.epoch_step = content.epoch_step
        self.epoch_sums = sums
        self.epoch_seconds = content.epoch_seconds
        # IMPORTANT: random state comes last, since loading the rest may draw from it.
        rng.restore(dict(content.rng))


def _tensor_of(total: torch.Tensor | float) -> torch.Tensor:
    if isinstance(total, torch.Tensor):
        return total
    return torch.tensor(total, dtype=torch.float64 if isinstance(total, float) else torch.int64)


def require_same_names(
    parts: Collection[str], saved: Collection[str], then: str = "", now: str = ""
) -> None:
    """Refuse parts that are not called what those of a checkpoint are.

    Args:
        parts: The names of the parts.
        saved: Those in the checkpoint.
        then: What the script was called that saved it.
        now: What it is called; it is told where it is another one.

    Raises:
        CheckpointError: They are not.
    """
    missing, new = sorted(set(saved) - set(parts)), sorted(set(parts) - set(saved))
    if not (missing or new):
        return
    told = _(
        "the parts of the state are not those of the checkpoint: missing are {missing}, new are "
        "{new}. Add what is missing to the state, give each the name that it had, or start afresh"
    ).format(missing=", ".join(missing) or "-", new=", ".join(new) or "-")
    if then != now:
        told = _("{told}. The run is of {then}, and this is {now}").format(
            told=told, then=shown(then, 60), now=now
        )
    raise CheckpointError(told)


def _require_restored(parts: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Make sure that what was put back is what comes out again: nobody else would tell.

    Raises:
        CheckpointError: A part keeps less than it was given, or makes something else of it.
    """
    for name, part in parts.items():
        if not getattr(part, "is_checked", True):
            continue
        now = capture(part)
        found = first_difference(saved[name], now, name)
        is_model = isinstance(part, nn.Module)
        if found is None and is_model and not ties_of(saved[name]) <= ties_of(now):
            found = _("{where} has tensors that shared their memory, and do not any more").format(
                where=name
            )
        if found is not None:
            raise CheckpointError(
                _("state['{name}'] was restored, and is not what was saved: {found}. A resume "
                  "would not go on as if nothing had happened").format(name=name, found=found)
            )  # fmt: skip
