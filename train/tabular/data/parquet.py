"""Parquet, a file or a folder of files, with such column types as can be worked with."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from onward.errors import DataError
from onward.words.language import _

_PERIOD = "pandas.period"
_MAGIC = b"PAR1"


def read_parquet(path: Path) -> tuple[pa.Table, list[str]]:
    """Read Parquet; return the table, and in a sentence which files of a folder are none.

    Raises:
        DataError: It is a folder without Parquet.
        pa.ArrowException: A file is damaged.
    """
    source, others = _files(path)
    table = _plain(pyarrow.parquet.read_table(source))
    shown = ", ".join(f"'{name}'" for name in others[:5])
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    return table, [f"No Parquet, not read: {shown}{more}."] if others else []


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
