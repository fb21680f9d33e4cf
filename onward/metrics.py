"""What is measured: points, their history, and which of them may differ between equal runs."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

EPOCH, STEP = UNITS = ("epoch", "step")  # what a run counts
# What MLflow's pages show as "System metrics". A section of another name would come first, above
# the losses.
SYSTEM = "system/"
# Of runs that began when these were among the losses.
_OLD_KEYS = frozenset({"epoch_seconds", "samples_per_second"})
_OLD_PREFIX = "checkpoint_"
MAX_ROWS = 1000  # of each metric in a checkpoint, beside those that are nowhere else


def is_wall_clock(key: str) -> bool:
    """Tell whether two equal runs may differ in the metric `key`."""
    return key in _OLD_KEYS or key.startswith((SYSTEM, _OLD_PREFIX))


def timing_prefix(known: Iterable[str]) -> str:
    """Return what the keys of what an epoch and its checkpoint took begin with.

    A run that began with other keys goes on with them: each metric stays one curve.

    Args:
        known: The keys that the run has so far.

    >>> timing_prefix([]), timing_prefix(["val_loss", "epoch_seconds"])
    ('system/', '')
    """
    return SYSTEM if _OLD_KEYS.isdisjoint(known) else ""


def same_value(a: float, b: float) -> bool:
    """Tell whether two values are equal, as MLflow stores them: NaN is itself, ∞ is ±1.8e308.

    >>> same_value(math.nan, math.nan), same_value(math.inf, 1.7976931348623157e308)
    (True, True)
    """
    largest = 1.7976931348623157e308
    clamped = (max(min(value, largest), -largest) for value in (a, b))  # NaN stays NaN
    return a == b or (math.isnan(a) and math.isnan(b)) or len(set(clamped)) == 1


_MIN_PLAIN, _MAX_PLAIN = 1e-3, 1e9  # what is beyond is written with an exponent


def in_words(value: float | None) -> str:
    """Return a value of a metric as people read it; a dash where there is none.

    >>> in_words(0.5), in_words(2e9), in_words(3e-7), in_words(math.nan), in_words(None)
    ('0.50000', '2e+09', '3e-07', '-', '-')
    """
    if value is None or not math.isfinite(value):
        return "-"
    is_plain = value == 0 or _MIN_PLAIN <= abs(value) < _MAX_PLAIN
    return f"{value:.5f}" if is_plain else f"{value:.5g}"


def logged_keys(history: History) -> list[str]:
    """Return the metrics that a training has logged itself, in the order of their first value."""
    keys = history.keys()
    return [k for k in keys if not (is_wall_clock(k) or k.startswith("best_"))]


class Point(NamedTuple):
    """One value of one metric, as MLflow stores it."""

    key: str
    step: int
    timestamp_ms: int
    value: float


class History:
    """Every value of every metric of a run, each with the time when it was measured.

    A (key, step) is recorded once: the first value stays. Thousands of epochs stay small and
    quick, since each key is one flat array of doubles: step, timestamp, value, step, …
    """

    def __init__(self, points: Iterable[Point] = ()) -> None:
        self._rows: dict[str, array[float]] = {}
        self._row_of: dict[tuple[str, int], int] = {}
        self._num_old: dict[str, int] = {}  # of the oldest rows, those that may be left out
        self._newest_ms = 0
        for point in points:
            self.add(point)

    def add(self, point: Point) -> bool:
        """Record `point` and return True, or return False if its (key, step) is there."""
        where = (point.key, point.step)
        if where in self._row_of:
            return False
        rows = self._rows.setdefault(point.key, array("d"))
        self._row_of[where] = len(rows) // 3
        rows.extend(point[1:])
        self._newest_ms = max(self._newest_ms, point.timestamp_ms)
        return True

    def get(self, key: str, step: int) -> Point | None:
        """Return the point of (key, step), or None."""
        row = self._row_of.get((key, step))
        if row is None:
            return None
        step_, timestamp_ms, value = self._rows[key][3 * row : 3 * row + 3]
        return Point(key, int(step_), int(timestamp_ms), value)

    def __iter__(self) -> Iterator[Point]:
        """Yield every point, oldest step first."""
        for key, step in sorted(self._row_of, key=lambda where: where[1]):
            point = self.get(key, step)
            assert point is not None
            yield point

    def keys(self) -> list[str]:
        """Return the metrics' names, in the order of their first value."""
        return list(self._rows)

    def values(self, key: str) -> list[float]:
        """Return the values of `key`, oldest first; [] if there is none."""
        return self._rows.get(key, array("d"))[2::3].tolist()

    def newest(self, key: str) -> list[float]:
        """Return the newest values of `key`, oldest first: no more than each checkpoint has."""
        return self.values(key)[-MAX_ROWS:]

    def series(self, key: str) -> Iterator[tuple[int, float]]:
        """Yield step and value of every point of `key`, in the order of their recording."""
        rows = self._rows.get(key, array("d"))
        for step, value in zip(rows[0::3], rows[2::3], strict=True):
            yield int(step), value

    def at(self, step: int) -> dict[str, float]:
        """Return key to value of every metric that has one at `step`."""
        return {
            key: point.value for key in self._rows if (point := self.get(key, step)) is not None
        }

    def last_timestamp_ms(self) -> int:
        """Return the newest timestamp, 0 if there is none."""
        return self._newest_ms

    def missing_from(self, other: History) -> list[Point]:
        """Return the points whose (key, step) is not in `other`, oldest step first."""
        return [point for point in self if (point.key, point.step) not in other._row_of]

    @property
    def may_be_cut(self) -> bool:
        """Whether older values may have been left out of what it was loaded from."""
        return any(len(rows) >= 3 * MAX_ROWS for rows in self._rows.values())

    def before(self, published: Iterable[Point]) -> list[Point]:
        """Return those of `published` that it lacks, of its metrics and older than its newest.

        That is what `state_dict` has left out, where `published` is what it was told was known.
        """
        newest = {key: max(rows[0::3]) for key, rows in self._rows.items()}
        return [
            point
            for point in published
            if (point.key, point.step) not in self._row_of
            and point.step < newest.get(point.key, -1)
            and point.timestamp_ms < self._newest_ms
        ]

    def state_dict(
        self, known: History | None = None, always: tuple[str, int] = ("", 0)
    ) -> dict[str, torch.Tensor]:
        """Return one float64 tensor [N, 3] per key: step, timestamp (ms), value.

        Args:
            known: What is published, the same at each call. Of each metric the newest `MAX_ROWS`
                values are returned, and those from the first on that is not. Default: all are.
            always: Metric and step of a value that is returned however old it is.
        """
        import torch

        found = {}
        for key, rows in self._rows.items():
            of_key = torch.frombuffer(rows, dtype=torch.float64).view(-1, 3)
            first = 0 if known is None else self._first_row(key, known)
            kept = self._row_of.get(always, first) if key == always[0] else first
            parts = [of_key[kept : kept + 1]] if kept < first else []
            found[key] = torch.cat([*parts, of_key[first:]])
        return found

    def _first_row(self, key: str, known: History) -> int:
        """Return the first row of `key` that may not be left out; each is looked at once."""
        rows, number = self._rows[key], self._num_old.get(key, 0)
        while number < len(rows) // 3 - MAX_ROWS and (key, int(rows[3 * number])) in known._row_of:
            number += 1
        self._num_old[key] = number
        return number

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Replace the contents by what `state_dict` returned."""
        self.__init__(  # type: ignore[misc]
            Point(key, int(step), int(timestamp_ms), value)
            for key, rows in state_dict.items()
            for step, timestamp_ms, value in rows.tolist()
        )
