"""Parquet, a file or a folder of files, with such column types as can be worked with."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet

from onward.errors import DataError
from onward.words.language import _

_PERIOD = "pandas.period"
_MAGIC = b"PAR1"
_BUFFER_BYTES: Final = 1 << 16  # of each column; without one all of it is read at once

BLOCK_ROWS: Final = 1 << 15  # what is made of so many stays in the processor's cache


class Parquet:
    """Parquet, a file or a folder of files, of which some rows are in memory at a time.

    Args:
        path: The file or folder.

    Attributes:
        told: In a sentence, which files of a folder are no Parquet.

    Raises:
        DataError: It is a folder without Parquet.
        pa.ArrowException: A file is damaged; also while rows are read.
    """

    def __init__(self, path: Path) -> None:
        self._source, others = _files(path)
        self._dataset = self._opened()
        shown = ", ".join(f"'{name}'" for name in others[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        self.told = [f"No Parquet, not read: {shown}{more}."] if others else []

    @functools.cached_property
    def schema(self) -> pa.Schema:
        """The columns."""
        return _plain(self._dataset.schema.empty_table()).schema

    @functools.cached_property
    def num_rows(self) -> int:
        """How many rows the files say that they have."""
        return sum(fragment.count_rows() for fragment in self._dataset.fragments)

    def read(self) -> pa.Table:
        """Return all rows."""
        return _plain(self._dataset.read())

    def blocks(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the rows in their order, text as a dictionary; see `source.Source`."""
        texts = [
            name for name in columns if pa.types.is_string(self._dataset.schema.field(name).type)
        ]
        dataset = self._opened(read_dictionary=texts)
        yield from _scan(dataset, columns)

    def head(self, columns: Sequence[str], num_rows: int) -> pa.Table:
        """Return the first rows, as they are stored."""
        found = []
        for block in self._head(columns, num_rows):
            found.append(block.slice(0, num_rows))
            num_rows -= len(found[-1])
            if not num_rows:
                break
        return pa.concat_tables(found)

    def _head(self, columns: Sequence[str], num_rows: int) -> Iterator[pa.Table]:
        """Yield the first rows; where one group of rows has them, nothing else is decoded."""
        first, whole = self._dataset.fragments[0], self._dataset.schema
        own = first.physical_schema
        names = [name for name in columns if name in own.names]
        is_whole = first.metadata.row_group(0).num_rows >= num_rows and names == [*columns]
        if not is_whole or any(own.field(n).type != whole.field(n).type for n in names):
            yield from _scan(self._dataset, columns)
            return
        with pyarrow.parquet.ParquetFile(first.path, buffer_size=_BUFFER_BYTES) as file:
            # One column after the other: a page of each, a megabyte, is decoded for it.
            batches = [next(file.iter_batches(num_rows, columns=[name])) for name in names]
        schema = pa.schema([whole.field(name) for name in names], whole.metadata)
        yield _plain(pa.Table.from_arrays([batch.column(0) for batch in batches], schema=schema))

    def _opened(self, **options: Any) -> pyarrow.parquet.ParquetDataset:
        return pyarrow.parquet.ParquetDataset(
            self._source, pre_buffer=False, buffer_size=_BUFFER_BYTES, **options
        )


def _scan(dataset: pyarrow.parquet.ParquetDataset, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield the rows, one file after the other."""
    whole = dataset.schema
    schema = pa.schema([whole.field(name) for name in columns], whole.metadata)
    chosen = {name: pyarrow.dataset.field(name) for name in columns}
    for fragment in dataset.fragments:
        batches = fragment.to_batches(
            schema=whole, columns=chosen, batch_size=BLOCK_ROWS, batch_readahead=0
        )
        for batch in batches:
            if len(batch):
                yield _plain(pa.Table.from_arrays(batch.columns, schema=schema))


def read_schema(path: Path) -> pa.Schema:
    """Read of Parquet only what says which columns there are."""
    if not path.is_dir():
        return pyarrow.parquet.read_schema(path)
    return pyarrow.parquet.ParquetDataset(_files(path)[0]).schema


def _files(path: Path) -> tuple[Path | list[str], list[str]]:
    """Return what pyarrow is to read, and the names of a folder's other files.

    A folder that holds nothing else is read as pyarrow does: without what begins with `_` or `.`.
    """
    if not path.is_dir():
        return path, []
    found = [
        (file.relative_to(path), file)
        for file in sorted(path.rglob("*"))
        if file.is_file() and not any(p[0] in "_." for p in file.relative_to(path).parts)
    ]
    named = [str(file) for name, file in found if file.suffix.lower() == ".parquet"]
    if not named:
        raise DataError(
            _(
                "data '{path}' is a folder without a .parquet file in it: "
                "give one that has such files, or a single file"
            ).format(path=path)
        )
    others = [
        (name.as_posix(), str(file))
        for name, file in found
        if file.suffix.lower() != ".parquet" and not _is_parquet(file)
    ]
    if not others:
        return path, []
    aside = {file for _name, file in others}
    return [str(f) for _n, f in found if str(f) not in aside], [name for name, _f in others]


def _is_parquet(file: Path) -> bool:
    with open(file, "rb") as content:
        return content.read(len(_MAGIC)) == _MAGIC


def _plain(table: pa.Table) -> pa.Table:
    """Return the table with the columns that pyarrow cannot take rows of, or only pandas knows."""
    for i, field in enumerate(table.schema):
        if pa.types.is_string_view(field.type):
            table = table.set_column(i, field.name, table.column(i).cast(pa.large_string()))
        elif _is_period(field):
            table = table.set_column(i, field.name, _dates(table.column(i), field))
    return table


def _is_period(field: pa.Field) -> bool:
    """Tell whether pandas' periods are in a column: numbers, until pandas has told pyarrow."""
    noted = (field.metadata or {}).get(b"ARROW:extension:name", b"").decode()
    return _PERIOD in (getattr(field.type, "extension_name", None), noted)


def _dates(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    """Return the beginning of each period."""
    import pandas  # late: few tables have periods

    freq = getattr(field.type, "freq", None)
    if freq is None:
        freq = json.loads(field.metadata[b"ARROW:extension:metadata"])["freq"]
    numbers = column.cast(pa.int64())
    is_known = numbers.is_valid().to_numpy()
    ordinals = numbers.fill_null(0).to_numpy()
    begun = pandas.PeriodIndex.from_ordinals(ordinals, freq=freq).to_timestamp()
    moments = begun.to_numpy().astype("datetime64[us]")
    return pa.chunked_array([pa.array(moments, pa.timestamp("us"), mask=~is_known)])
