"""Room for what is made of a table: in memory while it is small, else in files without a name.

The pages of such a file are the system's to write out and drop, so that memory stays bounded.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from train.tabular.data.parquet import BLOCK_ROWS

_IN_MEMORY_BYTES: Final = 1 << 27  # of all arrays together; what is more lies in files
_JOINED_ROWS: Final = BLOCK_ROWS // 4  # of a table's blocks, which may be of a few rows each
_JOINED_BLOCKS: Final = 4
_PART_BYTES: Final = 1 << 26  # of the parts of arrays that are put in order at a time


class NotWritten(Exception):
    """A file of the scratch cannot be written.

    Args:
        reason: What the system says.
    """

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Scratch:
    """Arrays to work with.

    Args:
        folder: Where the files of large ones lie; default: the system's for temporary files. It
            is not to be a disk in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._num_bytes = 0  # in memory
        self._reused: dict[str, NDArray[Any]] = {}

    def array(self, shape: int | Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """Return a new array, of any content; its memory is given back as soon as it is gone.

        Raises:
            OSError: The disk is full.
        """
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        length = math.prod(shape)
        num_bytes = length * np.dtype(dtype).itemsize
        if not num_bytes:
            return np.empty(shape, dtype)
        if self._num_bytes + num_bytes <= _IN_MEMORY_BYTES:
            memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._num_bytes += num_bytes
            weakref.finalize(memory, self._give_back, num_bytes)
        else:
            with tempfile.TemporaryFile(dir=self._folder, buffering=0) as file:
                # IMPORTANT: all of it has its place on the disk: where a page of a mapped file
                # finds none, the process is killed.
                os.posix_fallocate(file.fileno(), 0, num_bytes)
                memory = mmap.mmap(file.fileno(), num_bytes)
        return np.frombuffer(memory, dtype, length).reshape(shape)

    def reused(self, name: str, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """Return the array of that name, of any content: the one before is used no more."""
        length = math.prod(shape)
        if name not in self._reused or len(self._reused[name]) < length:
            self._reused.pop(name, None)
            self._reused[name] = self.array(length, dtype)
        return self._reused[name][:length].reshape(shape)

    def table(self, schema: pa.Schema, blocks: Iterable[pa.RecordBatch]) -> pa.Table:
        """Return blocks of whatever sizes as a table that lies in a file.

        Raises:
            NotWritten: The file cannot be written.
            Exception: What is wrong with the blocks, as it is.
        """
        unread: list[OSError] = []

        def read() -> Iterator[pa.RecordBatch]:
            try:
                yield from blocks
            except OSError as error:
                unread.append(error)
                raise

        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                # Arrow's format is that of its memory: what is mapped is neither read nor decoded.
                with pa.ipc.new_stream(file, schema) as stream:
                    for block in _joined(read()):
                        stream.write_table(block)
                file.flush()
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            if unread:
                raise
            raise NotWritten(error) from error
        return pa.ipc.open_stream(pa.py_buffer(memory)).read_all()

    def clear(self) -> None:
        """Give back what `reused` returned."""
        self._reused.clear()

    def _give_back(self, num_bytes: int) -> None:
        self._num_bytes -= num_bytes


def _joined(blocks: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield some thousand rows at a time, or those of a few blocks, each column in one piece."""
    waiting: list[pa.RecordBatch] = []
    for block in blocks:
        waiting.append(block)
        if len(waiting) == _JOINED_BLOCKS or sum(map(len, waiting)) >= _JOINED_ROWS:
            yield pa.Table.from_batches(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting).combine_chunks()


class Arranged:
    """Rows that come in the order of a table, and are put into another one.

    Large ones in two passes, so that the disk is not asked for each row alone: to the part of the
    arrays in which they end, in the order in which they come; and in that part to their place.

    Args:
        order: Which row is to be the first one, and so on: a permutation. Shape [N]
        arrays: Number of columns, and type, of each of the arrays of which a row has a part.
        scratch: Where they are to lie.
    """

    def __init__(
        self,
        order: NDArray[np.int64],
        arrays: Sequence[tuple[int, DTypeLike]],
        scratch: Scratch,
    ) -> None:
        num_rows = len(order)
        self._order = order
        self._arrays = [scratch.array((num_rows, width), kind) for width, kind in arrays]
        row_bytes = max(1, sum(width * np.dtype(kind).itemsize for width, kind in arrays))
        total = row_bytes * num_rows
        self._part_rows = (
            num_rows if total <= _IN_MEMORY_BYTES else max(1, _PART_BYTES // row_bytes)
        )
        kind = np.int32 if num_rows < 2**31 else np.int64
        self._places = np.empty(num_rows, kind)
        self._places[order] = np.arange(num_rows, dtype=kind)
        self._next = np.arange(0, num_rows, self._part_rows)  # in each part, where a row comes next
        self._num_rows = 0

    def add(self, *rows: NDArray[Any]) -> None:
        """Take the next rows of the table: of each array their part, shape [B, width]."""
        places = self._places[self._num_rows :][: len(rows[0])]
        self._num_rows += len(places)
        if len(self._next) == 1:
            for array, values in zip(self._arrays, rows, strict=True):
                array[places] = values
            return
        parts = places // self._part_rows
        by_part = np.argsort(parts, kind="stable")
        ends = np.cumsum(np.bincount(parts, minlength=len(self._next)))
        for part, (start, stop) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            if start == stop:
                continue
            at, chosen = self._next[part], by_part[start:stop]
            for array, values in zip(self._arrays, rows, strict=True):
                array[at : at + len(chosen)] = values[chosen]
            self._next[part] += len(chosen)

    def finish(self) -> list[NDArray[Any]]:
        """Return the arrays, with the rows in their order."""
        if len(self._next) > 1:
            for start in range(0, len(self._order), self._part_rows):
                part = slice(start, start + self._part_rows)
                came = np.argsort(self._order[part])  # they came in the order of the table
                places = np.empty_like(came)
                places[came] = np.arange(len(came))
                for array in self._arrays:
                    array[part] = array[part][places]
        return self._arrays
