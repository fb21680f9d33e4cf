"""When a checkpoint is kept for good, and which of those that exist are to stay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from train.checkpoint.format import Manifest


@dataclass(frozen=True)
class SavePolicy:
    """Keep every `every_epochs`-th epoch, and the last one, for good."""

    every_epochs: int

    def keeps(self, epoch: int, is_last: bool) -> bool:
        """Tell whether the checkpoint of `epoch` is kept, not only the newest for a while."""
        return is_last or epoch % self.every_epochs == 0


def find_best(manifests: Iterable[Manifest]) -> Manifest | None:
    """Return the one with the highest finite score, the oldest of equals; None if none has."""
    scored = [m for m in manifests if m.score is not None]
    return max(scored, key=lambda m: (m.score, -m.epoch, -m.step), default=None)


def to_prune(manifests: Iterable[Manifest]) -> list[Manifest]:
    """Return those that may go: neither kept, nor the newest, nor the best."""
    ordered = sorted(manifests, key=lambda m: m.step)
    best = find_best(ordered)
    return [m for m in ordered[:-1] if not m.kept and m != best]
