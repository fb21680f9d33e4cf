"""Which metric decides, and which way: the only definition of "best"."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

DIRECTIONS = ("max", "min")
MAX_NAME_CHARS = 245  # MLflow takes 250, and `best_` comes before it
# MLflow gives an infinite value back as ±1.8e308; nothing that is measured is so large.
_LARGEST = 1e308


class Best(NamedTuple):
    """The best value so far, and its epoch."""

    value: float
    epoch: int


@dataclass(frozen=True)
class Monitor:
    """The metric by which epochs are compared; a tie keeps the older one.

    Args:
        name: Of the metric.
        direction: "max" where higher is better, "min" where lower is.
        limit: No value of the metric is larger, whatever its sign: what somebody wrote that is
            counts as none.

    Raises:
        ValueError: On construction, there is no such direction, or the name is empty or too long.
    """

    name: str
    direction: str = "max"
    limit: float = field(default=_LARGEST, compare=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be one."""
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction {self.direction!r} is not one of {', '.join(DIRECTIONS)}")
        if not self.limit:
            return  # see NO_MONITOR
        if not 0 < len(self.name.strip()) == len(self.name) <= MAX_NAME_CHARS:
            raise ValueError(f"{self.name!r} is no name of a metric")

    @classmethod
    def parse(cls, text: str) -> Monitor:
        """Return the monitor that `str` turns into `text`.

        Raises:
            ValueError: The text is none.

        >>> Monitor.parse("val_rmse:min"), str(Monitor("val/acc"))
        (Monitor(name='val_rmse', direction='min', limit=1e+308), 'val/acc:max')
        """
        if text == str(NO_MONITOR):
            return NO_MONITOR
        name, _colon, direction = text.rpartition(":")
        found = cls(name, direction)
        return UNDECLARED if found == UNDECLARED else found

    def __str__(self) -> str:
        """Return `name:direction`."""
        if not self.name:
            return "none"
        return f"{self.name}:{self.direction}"

    def score(self, value: float | None) -> float | None:
        """Return `value` if it can be compared: NaN, infinity and nonsense are never best.

        >>> Monitor("loss", "min").score(float("-inf"))
        """
        if not self.name:
            return None
        return value if value is not None and -self.limit <= value <= self.limit else None

    def is_better(self, value: float | None, than: float | None) -> bool:
        """Tell whether `value` is better than the best so far; None is no value at all.

        >>> Monitor("loss", "min").is_better(0.1, than=0.2), Monitor("acc").is_better(0.5, than=0.5)
        (True, False)
        """
        value, than = self.score(value), self.score(than)
        if value is None or than is None:
            return value is not None
        return self.rank(value) < self.rank(than)

    def rank(self, score: float) -> float:
        """Return a number to sort scores by: the best comes first."""
        return -score if self.direction == "max" else score

    def best(self, values: Iterable[tuple[int, float]]) -> Best | None:
        """Return the best of some epochs' values, the oldest of equals.

        Args:
            values: Epoch and value, oldest first.

        >>> Monitor("loss", "min").best([(1, 0.5), (2, float("nan")), (3, 0.25), (4, 0.25)])
        Best(value=0.25, epoch=3)
        """
        best: Best | None = None
        for epoch, value in values:
            if self.is_better(value, best.value if best else None):
                best = Best(value, epoch)
        return best


# That of runs which declare none, as those of the first versions: a correlation.
UNDECLARED = Monitor("val_pearson", "max", limit=1.001)  # rounding included
# That of runs by which nothing is compared: none of their epochs is the best.
NO_MONITOR = Monitor("", limit=0.0)
