"""The scale a target is trained on: linear or logarithmic, always standardised."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onward.errors import DataError
from onward.words.language import _

_SKEWED = 1.0  # skewness from which the logarithm is tried; a normal target has 0
_BLOCK: Final = 1 << 15  # so many values at a time: they stay in the processor's cache
_MARGIN = 1.0  # how far, in units of log, a prediction may leave the range of the training rows


@dataclasses.dataclass(frozen=True)
class TargetScale:
    """Map a target to the scale it is trained on, and predictions back.

    Args:
        kind: "linear" or "log".
        mean: Mean over the training rows, of the logarithm where `kind` is "log".
        std: Standard deviation over the same, never 0.
        low: Least value over the same.
        high: Greatest value over the same.
    """

    kind: Literal["linear", "log"]
    mean: float
    std: float
    low: float
    high: float

    @classmethod
    def fit(cls, values: ArrayLike, kind: str = "auto") -> TargetScale:
        """Choose and fit the scale.

        Args:
            values: Targets of the training rows, finite. Shape [N], N >= 1.
            kind: "linear", "log", or "auto": log where the targets are positive, skewed to the
                right, and less skewed after it.

        Raises:
            DataError: "log" was asked for and there are targets that are not positive.
        """
        targets = np.asarray(values, dtype=np.float64)
        if kind == "auto":
            kind = "log" if _log_fits(targets) else "linear"
        if kind == "log":
            if targets.min() <= 0:
                raise DataError(
                    _(
                        "target_scale=log needs positive targets, the least is {least:g}: "
                        "pass target_scale=linear"
                    ).format(least=targets.min())
                )
            targets = np.log(targets)
        mean, std = mean_and_std(targets)
        return cls(
            kind="log" if kind == "log" else "linear",
            mean=mean,
            std=std or 1.0,
            low=float(targets.min()),
            high=float(targets.max()),
        )

    def encode(self, values: ArrayLike) -> NDArray[np.float64]:
        """Return targets on the scale trained on: mean 0 and variance 1 over the training rows.

        On the log scale a target below all training rows' by a factor of e or more, 0 and
        negative ones included, counts as the least of them divided by e.

        Shape:
            any, kept
        """
        targets = np.asarray(values, dtype=np.float64)
        if self.kind == "log":
            targets = np.log(np.maximum(targets, math.exp(self.low - _MARGIN)))
        return (targets - self.mean) / self.std

    def decode(self, values: ArrayLike) -> NDArray[np.float64]:
        """Return predictions on the target's own scale.

        On the log scale they are kept within a factor of e of the training rows' range: one wild
        prediction would otherwise overflow, and decide every metric alone.

        Shape:
            any, kept
        """
        targets = np.asarray(values, dtype=np.float64) * self.std + self.mean
        if self.kind == "linear":
            return targets
        return np.exp(np.clip(targets, self.low - _MARGIN, self.high + _MARGIN))


def mean_and_std(values: NDArray[np.float64], fill: float = math.nan) -> tuple[float, float]:
    """Return mean and standard deviation, without overflow; 0 where only rounding differs.

    They are those of NumPy, bit for bit, and no second array of that length is made.

    Args:
        values: Shape [N], N >= 1
        fill: What stands for NaN.
    """

    def filled(start: int, stop: int) -> NDArray[np.float64]:
        part = values[start:stop]
        return part if math.isnan(fill) else np.where(np.isnan(part), fill, part)

    starts = range(0, len(values), _BLOCK)
    largest = max(float(np.abs(filled(i, i + _BLOCK)).max()) for i in starts)
    if not largest:
        return 0.0, 0.0
    mean = pairwise(0, len(values), lambda a, b: filled(a, b) / largest) / len(values)
    squares = pairwise(0, len(values), lambda a, b: (filled(a, b) / largest - mean) ** 2)
    std = math.sqrt(squares / len(values))
    return mean * largest, std * largest if std > 1e-12 else 0.0


def pairwise(start: int, stop: int, read: Callable[[int, int], NDArray[np.float64]]) -> float:
    """Return the sum of what `read` gives of a range, as `np.sum` adds it up were it one array.

    Source:
        `pairwise_sum` of NumPy (loops_utils.h.src): an array is halved at a multiple of 8.
    """
    length = stop - start
    if length <= _BLOCK:
        return float(np.sum(read(start, stop)))
    middle = start + length // 2 - length // 2 % 8
    return pairwise(start, middle, read) + pairwise(middle, stop, read)


def skewness(values: NDArray[np.float64]) -> float:
    """Return the third standardised moment; 0 where all values are equal."""
    mean, std = mean_and_std(values)
    if not std:
        return 0.0
    cubes = pairwise(0, len(values), lambda a, b: ((values[a:b] - mean) / std) ** 3)
    return cubes / len(values)


def _log_fits(targets: NDArray[np.float64]) -> bool:
    if targets.min() <= 0:
        return False
    skew = skewness(targets)
    return skew > _SKEWED and abs(skewness(np.log(targets))) < skew
