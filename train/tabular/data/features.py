"""What a model sees of one column: a number or a category, fitted to the training rows.

Shapes: N rows.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from train.tabular.data.columns import encoded, read_parts
from train.tabular.data.parquet import BLOCK_ROWS
from train.tabular.data.scale import mean_and_std

_LIMIT: Final = 3.0  # standardised values approach ±3: an outlier must not rule the prediction
_MAX_VOCABULARY: Final = 1000  # the most frequent values of a column; the rest share code 0
_MERGED_ROWS: Final = 1 << 18  # so many counts may wait to be added up
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
        part: What of it is taken; see `train.tabular.data.columns.read_parts`.
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
    def fit(
        cls, name: str, part: str, values: NDArray[np.float64], room: NDArray[np.float64]
    ) -> NumericFeature | None:
        """Fit to the training rows; None where they do not vary.

        Args:
            name: The raw column's name.
            part: What of it is taken.
            values: Those of the rows, NaN for missing. Shape [N]
            room: To work in. Shape [N]
        """
        num_known = 0
        for start in range(0, len(values), BLOCK_ROWS):
            block = values[start : start + BLOCK_ROWS]
            known = block[~np.isnan(block)]
            room[num_known : num_known + len(known)] = known
            num_known += len(known)
        if not num_known:
            return None
        fill = float(np.median(room[:num_known], overwrite_input=True))
        mean, std = mean_and_std(values, fill)
        return cls(name, part, fill, mean, std) if std else None

    @classmethod
    def fit_missing(cls, name: str, num_missing: int, num_rows: int) -> NumericFeature | None:
        """Return what tells missing values from others; None where all rows are alike."""
        if num_missing in (0, num_rows):
            return None
        fill = 0.5 if 2 * num_missing == num_rows else float(2 * num_missing > num_rows)
        # It stays 0 or 1: standardised, a rare one would be far out.
        return cls(name, "missing", fill, mean=0.0, std=1.0)

    def transform(self, column: pa.ChunkedArray) -> NDArray[np.float32]:
        """Return the feature's values. Shape [N]."""
        return self.of(*read_parts(column, [self.part]))

    def of(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the feature's values, of those of its part of the column. Shape [N]."""
        is_missing = np.isnan(values)
        if is_missing.any():
            values = np.where(is_missing, self.fill, values)
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

    @property
    def code_type(self) -> np.dtype[Any]:
        """The smallest type of the codes that torch computes with."""
        return np.dtype(np.uint8) if self.num_codes <= 256 else np.min_scalar_type(-self.num_codes)

    @classmethod
    def fit(cls, name: str, counted: pa.Table) -> CategoricalFeature:
        """Take the most frequent values of the training rows, ties in the order of the text.

        Args:
            name: The raw column's name.
            counted: See `Counts.table`.
        """
        common = counted.filter(pc.field("count") >= _MIN_COUNT)
        common = common.sort_by([("count", "descending"), ("value", "ascending")])
        vocabulary = common["value"].slice(0, _MAX_VOCABULARY).to_pylist()
        return cls(name, tuple(vocabulary), num_rare=len(counted) - len(vocabulary))

    def transform(self, column: pa.ChunkedArray) -> NDArray[Any]:
        """Return the codes, of `code_type`. Shape [N], each in [0, num_codes)."""
        # Some that older versions fitted have a word such as NA in them: there it stays a word.
        pieces = encoded(column, kept=self.vocabulary)
        codes = [self.codes_of(values)[numbers] for values, numbers in pieces]
        return np.concatenate(codes) if codes else np.empty(0, self.code_type)

    def codes_of(self, values: pa.Array) -> NDArray[Any]:
        """Return the code of each text, then that of a missing one. Shape [V + 1]."""
        known = pa.array(self.vocabulary, type=pa.large_string())
        missing = self.vocabulary.index(None) + 1 if None in self.vocabulary else 0
        found = pc.fill_null(pc.index_in(values, value_set=known), -1).to_numpy() + 1
        return np.append(found, missing).astype(self.code_type)


class Counts:
    """How often each text is there, of a column that comes piece by piece."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []
        self._num_rows, self._next_merge = 0, _MERGED_ROWS

    def add(self, values: pa.Array, numbers: NDArray[np.integer[Any]]) -> None:
        """Count some rows, each by the number of its text; see `encoded`."""
        counts = np.bincount(numbers, minlength=len(values) + 1)
        values = pa.concat_arrays([values, pa.nulls(1, values.type)])
        table = pa.table({"value": values, "count": counts})
        self._tables.append(table.filter(pa.array(counts > 0)))
        self._num_rows += len(self._tables[-1])
        if self._num_rows > self._next_merge:
            self._tables = [self.table]
            self._num_rows = len(self._tables[0])
            self._next_merge = 2 * self._num_rows + _MERGED_ROWS

    @property
    def table(self) -> pa.Table:
        """The distinct texts, null for what is missing, as `value`, and the `count` of each."""
        if not self._tables:
            return pa.table(
                {"value": pa.array([], pa.large_string()), "count": pa.array([], pa.int64())}
            )
        merged = pa.concat_tables(self._tables).group_by("value").aggregate([("count", "sum")])
        return merged.select(["value", "count_sum"]).rename_columns(["value", "count"])
