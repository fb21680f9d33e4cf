"""Raw tables: from a file's name to a `pyarrow.Table`, and the hash of a file's bytes.

The table shipped with the package, 'diamonds' (53,940 rows, 10 columns), is the data set
``diamonds`` of plotnine 0.15.9 (MIT licence); see the README beside this file.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from onward.errors import DataError, DataNotFound
from onward.system import hardware
from onward.words.language import _
from train.tabular.data.excel import read_sheet
from train.tabular.data.npz import check_declared
from train.tabular.data.parquet import Parquet, read_schema
from train.tabular.data.scratch import NotWritten, Scratch
from train.tabular.data.source import Source
from train.tabular.data.text import column_names, read_text

SHIPPED: Final = {"diamonds": Path(__file__).with_name("diamonds.csv.gz")}


def locate(data: str) -> Path:
    """Return the absolute path of a table: of the shipped one by its name, else of the file.

    Raises:
        DataNotFound: There is nothing at that path.
    """
    path = SHIPPED.get(data) or Path(data).expanduser().absolute()
    if not path.exists():
        raise DataNotFound(data, str(path))
    return path


@dataclasses.dataclass(frozen=True)
class Raw:
    """A table as its file has it.

    Args:
        table: The rows, at least one; the columns have distinct names.
        told: Sentences on how the file was read, where that is not plain.
        has_types: Whether the file says of which types its columns are; of text, they were inferred
            from the values.
    """

    table: pa.Table
    told: tuple[str, ...]
    has_types: bool


@dataclasses.dataclass(frozen=True)
class Opened:
    """A Parquet file or folder of which no rows have been read.

    Args:
        rows: Its rows, at least one; the columns have distinct names. What is wrong with a file is
            told in a line that names it, whenever it is found.
        told: As for `Raw`.
    """

    rows: Source
    told: tuple[str, ...]


def read_table(data: str, text_columns: Sequence[str] = ()) -> pa.Table:
    """Read a table whole; see `read_raw`."""
    return read_raw(data, text_columns).table


def read_raw(data: str, text_columns: Sequence[str] = (), scratch: Scratch | None = None) -> Raw:
    """Read a table whole.

    Args:
        data: Path to a text (CSV, TSV, also .gz; separator and encoding are found out, types
            inferred from all rows; ISO dates become dates), to an Excel workbook, to a Parquet
            file or folder, to ``.npz`` (each 1-D array is a column, each 2-D array ``x`` gives the
            columns ``x_0``, ``x_1``, …), or the name of a shipped table.
        text_columns: Columns of a text or workbook that are text, whatever they look like.
        scratch: Where the rows of a large text are to lie; default: in memory.

    Raises:
        DataNotFound: There is nothing at that path.
        DataError: The file cannot be read, is empty, is of another kind, or has two columns of
            one name.
    """
    path = locate(data)
    kind = _kind_of(path)
    with _told_of(path, kind):
        if kind == "CSV":
            table, told = read_text(path, path, text_columns, scratch)
        elif kind == "Excel":
            sheet, told = read_sheet(path)
            table = read_text(sheet, path, text_columns)[0]
        else:
            table, told = (_read_npz if kind == ".npz" else _read_parquet)(path)
    _check(table.column_names, table.num_rows, path)
    return Raw(table, tuple(told), has_types=kind in ("Parquet", ".npz"))


def open_parquet(data: str) -> Opened | None:
    """Open a table to be read some rows at a time; None where it is not Parquet.

    Raises:
        DataNotFound: There is nothing at that path.
        DataError: As for `read_raw`.
    """
    path = locate(data)
    if _kind_of(path) != "Parquet":
        return None
    with _told_of(path, "Parquet"):
        parquet = Parquet(path)
        _check(parquet.schema.names, parquet.num_rows, path)
    return Opened(_Named(parquet, path), tuple(parquet.told))


@dataclasses.dataclass(frozen=True)
class _Named:
    """Parquet of which each error names the path."""

    parquet: Parquet
    path: Path

    @property
    def schema(self) -> pa.Schema:
        return self.parquet.schema

    @property
    def num_rows(self) -> int:
        return self.parquet.num_rows

    def blocks(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        with _told_of(self.path, "Parquet"):
            yield from self.parquet.blocks(columns)

    def head(self, columns: Sequence[str], num_rows: int) -> pa.Table:
        with _told_of(self.path, "Parquet"):
            return self.parquet.head(columns, num_rows)


def index_columns(data: str) -> list[str]:
    """Return the columns of a file that are a saved index of pandas: row numbers, no measurements.

    These are columns without a name, or called Unnamed: 0, in front; those called
    __index_level_0__; and those that pandas' own notes in a Parquet file call its index. A file
    that cannot be read has none: whoever reads it learns what is wrong.

    Raises:
        DataNotFound: There is nothing at that path.
    """
    path = locate(data)
    names, noted = [], []
    with contextlib.suppress(DataError), _told_of(path, kind := _kind_of(path)):
        if kind == "Parquet":
            schema = read_schema(path)
            names = schema.names
            with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError):
                noted = [n for n in schema.pandas_metadata["index_columns"] if isinstance(n, str)]
        elif kind != ".npz":
            names = column_names(read_sheet(path, max_rows=1)[0] if kind == "Excel" else path)
    nameless = itertools.takewhile(re.compile(r"|Unnamed: \d+(\.\d+)*").fullmatch, names)
    levels = [name for name in names if re.fullmatch(r"__index_level_\d+__", name)]
    known = {*nameless, *levels, *noted}
    return [name for name in names if name in known]


@contextlib.contextmanager
def _told_of(path: Path, kind: str) -> Iterator[None]:
    """Tell what goes wrong while a file is read in one line that names it."""
    try:
        yield
    except DataError:
        raise
    except NotWritten as error:  # the disk where its rows are to lie: the file is complete
        raise error.reason from error
    except (OSError, EOFError, ValueError, pa.ArrowException, zipfile.BadZipFile, zlib.error) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0].rstrip(".")
        raise DataError(
            _(
                "data '{path}' cannot be read as {kind}: {reason}. "
                "Check that the file is complete and of the kind its name says"
            ).format(path=path, kind=kind, reason=reason)
        ) from e


def _check(names: Sequence[str], num_rows: int, path: Path) -> None:
    twice = [name for name, n in collections.Counter(names).items() if n > 1]
    if twice:
        raise DataError(
            _("data '{path}' has more than one column named {names}: rename them").format(
                path=path, names=", ".join(map(repr, twice[:5]))
            )
        )
    if not num_rows:
        raise DataError(
            _("data '{path}' is empty: {num_columns} columns and no rows").format(
                path=path, num_columns=len(names)
            )
        )


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
    return _(
        "CSV (.csv, .tsv, also .gz), Excel (.xlsx), Parquet (.parquet, or a folder of such files), "
        "or .npz"
    )


def _kind_of(path: Path) -> str:
    name = path.name.lower()
    if path.is_dir() or name.endswith(".parquet"):
        return "Parquet"
    if name.endswith((".csv", ".csv.gz", ".tsv", ".tsv.gz")):
        return "CSV"
    if name.endswith(".xlsx"):
        return "Excel"
    if name.endswith(".npz"):
        return ".npz"
    raise DataError(
        _("data '{path}' is of an unknown kind, '{suffix}': give {kinds}").format(
            path=path, suffix=path.suffix, kinds=_kinds()
        )
    )


def _read_parquet(path: Path) -> tuple[pa.Table, list[str]]:
    parquet = Parquet(path)
    return parquet.read(), parquet.told


def _read_npz(path: Path) -> tuple[pa.Table, list[str]]:
    if not zipfile.is_zipfile(path):
        raise DataError(_("data '{path}' is not an .npz: np.savez writes one").format(path=path))
    names: list[str] = []
    columns: list[pa.Array] = []
    others: list[str] = []  # such as README.txt, or what a Mac adds to an archive
    check_declared(path, hardware.free_memory_bytes())
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            array = arrays[name]
            if not isinstance(array, np.ndarray):
                others.append(name)
                continue
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
    told = [f"No arrays, not read: {', '.join(map(repr, others))}."] if others else []
    return pa.Table.from_arrays(columns, names=names), told
