"""Raw tables: from a file's name to a `pyarrow.Table`, and the hash of a file's bytes.

The table shipped with the package, 'diamonds' (53,940 rows, 10 columns), is the data set
``diamonds`` of plotnine 0.15.9 (MIT licence); see the README beside this file.
"""

from __future__ import annotations

import collections
import hashlib
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from train.data.columns import MISSING_WORDS
from train.errors import DataError, DataNotFound
from train.language import _

SHIPPED: Final = {"diamonds": Path(__file__).with_name("diamonds.csv.gz")}
_MAX_CSV_ROW_BYTES: Final = 2**24  # a megabyte, pyarrow's default, is little for wide tables


def locate(data: str) -> Path:
    """Return the absolute path of a table: of the shipped one by its name, else of the file.

    Raises:
        DataNotFound: There is nothing at that path.
    """
    path = SHIPPED.get(data) or Path(data).expanduser().absolute()
    if not path.exists():
        raise DataNotFound(data, str(path))
    return path


def read_table(data: str, text_columns: Sequence[str] = ()) -> pa.Table:
    """Read a table whole.

    Args:
        data: Path to CSV or CSV.gz (types are inferred from all rows; ISO dates become dates),
            to a Parquet file or folder, to ``.npz`` (each 1-D array is a column, each 2-D array
            ``x`` gives the columns ``x_0``, ``x_1``, …), or the name of a shipped table.
        text_columns: Columns of a CSV that are text, whatever they look like.

    Returns:
        A table with at least one row and with distinct column names.

    Raises:
        DataNotFound: There is nothing at that path.
        DataError: The file cannot be read, is empty, is of another kind, or has two columns of
            one name.
    """
    path = locate(data)
    kind, read = _reader_of(path)
    try:
        table = _read_csv(path, text_columns) if kind == "CSV" else read(path)
    except DataError:
        raise
    except (OSError, EOFError, ValueError, pa.ArrowException, zipfile.BadZipFile, zlib.error) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0].rstrip(".")
        raise DataError(
            _(
                "data '{path}' cannot be read as {kind}: {reason}. "
                "Check that the file is complete and of the kind its name says"
            ).format(path=path, kind=kind, reason=reason)
        ) from e
    views = [i for i, field in enumerate(table.schema) if pa.types.is_string_view(field.type)]
    for i in views:  # pyarrow cannot take rows of them
        table = table.set_column(i, table.schema.names[i], table.column(i).cast(pa.large_string()))
    twice = [name for name, n in collections.Counter(table.column_names).items() if n > 1]
    if twice:
        raise DataError(
            _("data '{path}' has more than one column named {names}: rename them").format(
                path=path, names=", ".join(map(repr, twice[:5]))
            )
        )
    if not table.num_rows:
        raise DataError(
            _("data '{path}' is empty: {num_columns} columns and no rows").format(
                path=path, num_columns=table.num_columns
            )
        )
    return table


def raw_sha256(data: str) -> str:
    """Return the SHA-256 of a table's bytes, in hex.

    For a folder: of the relative names and the bytes of its files, sorted by name.

    Raises:
        DataNotFound: There is nothing at that path.
        DataError: A file cannot be read.
    """
    path = locate(data)
    try:
        if not path.is_dir():
            return _file_sha256(path)
        listing = [(f.relative_to(path).as_posix(), f) for f in path.rglob("*") if f.is_file()]
        lines = [f"{name}\0{_file_sha256(file)}\n" for name, file in sorted(listing)]
    except OSError as error:
        raise DataError(
            _("data '{path}' cannot be read: {reason}").format(path=path, reason=error.strerror)
        ) from error
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kinds() -> str:
    return _("CSV (.csv, .csv.gz), Parquet (.parquet, or a folder of such files), or .npz")


def _reader_of(path: Path) -> tuple[str, Callable[[Path], pa.Table]]:
    name = path.name.lower()
    if path.is_dir() or name.endswith(".parquet"):
        return "Parquet", _read_parquet
    if name.endswith((".csv", ".csv.gz")):
        return "CSV", _read_csv
    if name.endswith(".npz"):
        return ".npz", _read_npz
    raise DataError(
        _("data '{path}' is of an unknown kind, '{suffix}': give {kinds}").format(
            path=path, suffix=path.suffix, kinds=_kinds()
        )
    )


def _read_parquet(path: Path) -> pa.Table:
    if path.is_dir() and not any(path.rglob("*.parquet")):
        raise DataError(
            _("data '{path}' is a folder without a .parquet file in it: give {kinds}").format(
                path=path, kinds=_kinds()
            )
        )
    return pyarrow.parquet.read_table(path)


def _read_csv(path: Path, text_columns: Sequence[str] = ()) -> pa.Table:
    table = pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(block_size=_MAX_CSV_ROW_BYTES),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            null_values=list(MISSING_WORDS),
            strings_can_be_null=True,
            column_types=dict.fromkeys(text_columns, pa.string()),
        ),
    )
    for field in table.schema:
        if pa.types.is_binary(field.type):
            raise DataError(
                _(
                    "data '{path}': column '{name}' is not UTF-8 text: "
                    "convert the file, as with iconv -f latin1 -t utf-8"
                ).format(path=path, name=field.name)
            )
    return table


def _read_npz(path: Path) -> pa.Table:
    if not zipfile.is_zipfile(path):
        raise DataError(_("data '{path}' is not an .npz: np.savez writes one").format(path=path))
    names: list[str] = []
    columns: list[pa.Array] = []
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            array = arrays[name]
            if array.ndim not in (1, 2):
                raise DataError(
                    _(
                        "data '{path}': array '{name}' has shape {shape}; "
                        "columns are arrays of 1 or 2 dimensions"
                    ).format(path=path, name=name, shape=list(array.shape))
                )
            array = array.astype(array.dtype.newbyteorder("="), copy=False)
            is_single = array.ndim == 1
            names += [name] if is_single else [f"{name}_{i}" for i in range(array.shape[1])]
            columns += [pa.array(column) for column in ([array] if is_single else array.T)]
    by_length = {len(column): name for name, column in zip(names, columns, strict=True)}
    if len(by_length) > 1:
        lengths = ", ".join(
            _("'{name}' has {length}").format(name=name, length=length)
            for length, name in by_length.items()
        )
        raise DataError(
            _("data '{path}': the arrays differ in their number of rows: {lengths}").format(
                path=path, lengths=lengths
            )
        )
    return pa.Table.from_arrays(columns, names=names)
