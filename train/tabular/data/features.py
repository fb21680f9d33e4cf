"""What a model sees of one column: a number or a category, fitted to the training rows.

Shapes: N rows.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from train.tabular.data.columns import read_part, texts
from train.tabular.data.scale import mean_and_std

_LIMIT: Final = 3.0  # standardised values approach ±3: an outlier must not rule the prediction
_MAX_VOCABULARY: Final = 1000  # the most frequent values of a column; the rest share code 0
_MIN_COUNT: Final = 2  # a value seen once cannot be learned, and trains code 0 in its place


@dataclasses.dataclass(frozen=True)
class NumericFeature:
    """One column of numbers, standardised, with a smooth limit for outliers.

    A value z standard deviations from the mean becomes z / sqrt(1 + (z / 3)²): nearly z for most,
    never beyond ±3, and still in order.

    Source:
        The smooth clipping of Holzmüller et al., "Better by Default" (RealMLP), 2024,
        https://arxiv.org/abs/2407.04491

    Args:
        column: The raw column's name.
        part: What of it is taken; see `train.data.columns.read_part`.
        fill: Value in place of missing ones: the training rows' median.
        mean: Mean over the training rows.
        std: Standard deviation over them, above 0.
    """

    column: str
    part: str
    fill: float
    mean: float
    std: float

    @classmethod
    def fit(cls, name: str, part: str, values: NDArray[np.float64]) -> NumericFeature | None:
        """Fit to the training rows' values, NaN for missing; None where they do not vary."""
        known = values[~np.isnan(values)]
        if not known.size:
            return None
        fill = float(np.median(known))
        mean, std = mean_and_std(np.where(np.isnan(values), fill, values))
        if not std:
            return None
        if part == "missing":  # stays 0 or 1: standardised, a rare one would be far out
            mean, std = 0.0, 1.0
        return cls(name, part, fill, mean, std)

    def transform(self, column: pa.ChunkedArray) -> NDArray[np.float32]:
        """Return the feature's values. Shape [N]."""
        values = read_part(column, self.part)
        values = np.where(np.isnan(values), self.fill, values)
        with np.errstate(over="ignore"):  # ±1e308 becomes infinite, and is limited
            standard = np.clip((values - self.mean) / self.std, -1e9, 1e9)
        return (standard / np.hypot(1.0, standard / _LIMIT)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class CategoricalFeature:
    """One column of categories, as integer codes.

    Args:
        column: The raw column's name.
        vocabulary: The values that have a code of their own, value i the code i + 1; None among
            them stands for a missing value. Everything else has code 0.
        num_rare: Number of other values that the training rows have; they share code 0.
    """

    column: str
    vocabulary: tuple[str | None, ...]
    num_rare: int

    @property
    def num_codes(self) -> int:
        """Number of codes, code 0 included."""
        return len(self.vocabulary) + 1

    @classmethod
    def fit(cls, name: str, column: pa.ChunkedArray) -> CategoricalFeature:
        """Take the most frequent values of the training rows, ties in the order of the text."""
        counted = pc.value_counts(texts(column))
        table = pa.table({"value": counted.field("values"), "count": counted.field("counts")})
        common = table.filter(pc.field("count") >= _MIN_COUNT)
        common = common.sort_by([("count", "descending"), ("value", "ascending")])
        vocabulary = common["value"].slice(0, _MAX_VOCABULARY).to_pylist()
        return cls(name, tuple(vocabulary), num_rare=len(table) - len(vocabulary))

    def transform(self, column: pa.ChunkedArray) -> NDArray[np.int64]:
        """Return the codes. Shape [N], each in [0, num_codes)."""
        known = pa.array(self.vocabulary, type=pa.large_string())
        # Some that older versions fitted have a word such as NA in them: there it stays a word.
        values = texts(column, kept=self.vocabulary)
        found = pc.fill_null(pc.index_in(values, value_set=known), -1)
        return found.to_numpy().astype(np.int64) + 1
