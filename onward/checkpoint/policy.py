"""When a checkpoint is kept for good, and which of those that exist are to stay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from onward.checkpoint.manifest import Manifest
from onward.options.run_options import RunOptions


@dataclass(frozen=True)
class SavePolicy:
    """When to save inside an epoch, and which epochs to keep for good.

    Args:
        every_epochs: Every so-many-th epoch is kept, and the last one.
        every_steps: Inside an epoch, a checkpoint after so many steps of the run; 0: none.
        every_seconds: The same by the time since the last one; 0: none.
    """

    every_epochs: int
    every_steps: int = 0
    every_seconds: float = 0.0

    def is_due(self, step: int, seconds: float) -> bool:
        """Tell whether to save inside an epoch.

        Args:
            step: Optimizer steps completed, at least 1.
            seconds: Since the last save, or the start.
        """
        by_steps = bool(self.every_steps) and step % self.every_steps == 0
        return by_steps or 0 < self.every_seconds <= seconds

    def keeps(self, number: int, is_last: bool, is_step: bool = False) -> bool:
        """Tell whether the checkpoint of an epoch is kept, not only the newest for a while.

        Args:
            number: The epoch, or the step of a loop that has no epochs: there every so-many-th of
                those that `every_steps` saves.
            is_last: Whether it is the last one.
            is_step: Whether it is a step.
        """
        every = self.every_epochs * self.every_steps if is_step else self.every_epochs
        return is_last or (every > 0 and number % every == 0)


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: any of these is enough.

    Args:
        last: The newest so many, at least 1.
        best: The so many with the best scores, at least 1.
        every: Those at the end of every so-many-th epoch; None: those that were marked as kept
            when they were saved.
    """

    last: int = 1
    best: int = 1
    every: int | None = None

    @classmethod
    def of(cls, options: RunOptions | None, every: int | None = None) -> Retention:
        """Return what a run's options ask for; the least there is where they are not known."""
        if options is None:
            return cls(every=every)
        return cls(options.keep_last, options.keep_best, every)

    def to_prune(self, manifests: Iterable[Manifest]) -> list[Manifest]:
        """Return those that may go, oldest first."""
        ordered = sorted(manifests, key=lambda m: m.order)
        stay = [*ordered[-max(self.last, 1) :], *ranked(ordered)[: max(self.best, 1)]]
        return [m for m in ordered if not self._is_marked(m) and m not in stay]

    def _is_marked(self, manifest: Manifest) -> bool:
        if self.every is None:
            return manifest.kept
        return not manifest.epoch_step and manifest.epoch % self.every == 0


def ranked(manifests: Iterable[Manifest]) -> list[Manifest]:
    """Return those with a finite score, the best first, the oldest of equals first."""
    scored = [(m.score, m) for m in manifests if m.score is not None]
    by_rank = sorted(scored, key=lambda pair: (pair[1].monitor.rank(pair[0]), pair[1].order))
    return [m for _score, m in by_rank]


def find_best(manifests: Iterable[Manifest]) -> Manifest | None:
    """Return the one with the best finite score, the oldest of equals; None if none has."""
    return next(iter(ranked(manifests)), None)
