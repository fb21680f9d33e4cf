"""The rows of a raw table, some at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from train.tabular.data.parquet import BLOCK_ROWS


class Source(Protocol):
    """The rows of a table, which can be gone through more than once."""

    @property
    def schema(self) -> pa.Schema:
        """The columns."""

    @property
    def num_rows(self) -> int:
        """How many rows there are."""

    def blocks(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the rows in their order, of the named columns, some thousand at a time.

        Text may come as a dictionary.
        """

    def head(self, columns: Sequence[str], num_rows: int) -> pa.Table:
        """Return the first rows, as they are stored."""


@dataclasses.dataclass(frozen=True)
class InMemory:
    """The rows of a table that is in memory."""

    table: pa.Table

    @property
    def schema(self) -> pa.Schema:
        """The columns."""
        return self.table.schema

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self.table)

    def blocks(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the rows; see `Source`."""
        chosen = self.table.select(list(columns))
        for start in range(0, len(chosen), BLOCK_ROWS):
            yield chosen.slice(start, BLOCK_ROWS)

    def head(self, columns: Sequence[str], num_rows: int) -> pa.Table:
        """Return the first rows."""
        return self.table.select(list(columns)).slice(0, num_rows)


@dataclasses.dataclass(frozen=True)
class Kept:
    """Those rows of another source that a mask says."""

    source: Source
    is_kept: NDArray[np.bool_]

    @property
    def schema(self) -> pa.Schema:
        """The columns."""
        return self.source.schema

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return int(self.is_kept.sum())

    def blocks(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the rows; see `Source`."""
        start = 0
        for block in self.source.blocks(columns):
            kept = block.filter(pa.array(self.is_kept[start : start + len(block)]))
            start += len(block)
            if len(kept):
                yield kept

    def head(self, columns: Sequence[str], num_rows: int) -> pa.Table:
        """Return the first rows, as they are stored."""
        kept = np.flatnonzero(self.is_kept)[:num_rows]
        return self.source.head(columns, int(kept[-1]) + 1).take(pa.array(kept))
