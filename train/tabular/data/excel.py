"""Sheets of Excel, as the text that a CSV of them would be."""

from __future__ import annotations

import csv
import datetime
import io
import itertools
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onward.errors import DataError
from onward.words.language import _


def read_sheet(path: Path, max_rows: int | None = None) -> tuple[bytes, list[str]]:
    """Return the first sheet of a workbook as CSV, and in a sentence which it is if there are more.

    Values are those that Excel computed last; empty rows, and columns without a name and a value,
    are left out.

    Args:
        path: The workbook.
        max_rows: So many rows at most, that of the names included; default: all.

    Raises:
        DataError: It is no workbook, or has no sheet.
    """
    if not zipfile.is_zipfile(path):
        raise DataError(_("data '{path}' is no Excel workbook (.xlsx)").format(path=path))
    try:
        with warnings.catch_warnings():  # of what openpyxl passes over, such as drop-down lists
            warnings.simplefilter("ignore")
            names, rows = _first_sheet(path, max_rows)
    except Exception as error:  # of openpyxl, of its XML parser, or for a part that is missing
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            _("data '{path}' is no Excel workbook (.xlsx): {reason}").format(
                path=path, reason=reason.strip("'\"")
            )
        ) from error
    if not names:
        raise DataError(_("data '{path}' has no sheet with cells").format(path=path))
    width = max((len(row) for row in rows), default=0)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([*map(_cell, row), *[""] * (width - len(row))] for row in rows)
    told = f"The table is sheet '{names[0]}', the first of {len(names)}."
    return text.getvalue().encode(), [told] if len(names) > 1 else []


def _first_sheet(path: Path, max_rows: int | None) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return the names of all sheets, and the rows of the first."""
    import openpyxl  # late: few tables are workbooks

    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    try:
        sheets = book.worksheets
        if not sheets:
            return [], []
        sheets[0].reset_dimensions()  # some programs write wrong ones
        rows = _filled(sheets[0].iter_rows(values_only=True))
        return [sheet.title for sheet in sheets], list(itertools.islice(rows, max_rows))
    finally:
        book.close()


def _filled(rows: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows that hold something, without the empty cells at their ends."""
    for row in rows:
        width = max((i + 1 for i, cell in enumerate(row) if cell is not None), default=0)
        if width:
            yield row[:width]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        value = value.date()
    return str(value)
