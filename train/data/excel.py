"""Sheets of Excel, as the text that a CSV of them would be."""

from __future__ import annotations

import csv
import datetime
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.errors import DataError
from train.language import _


def read_sheet(path: Path, max_rows: int | None = None) -> tuple[bytes, list[str]]:
    """Return the first sheet of a workbook as CSV, and in a sentence which it is if there are more.

    Values are those that Excel computed last; empty rows, and columns without a name and a value,
    are left out.

    Args:
        path: The workbook.
        max_rows: So many rows at most, that of the names included.

    Raises:
        DataError: It is no workbook, or has no sheet.
    """
    import openpyxl  # late: few tables are workbooks

    if not zipfile.is_zipfile(path):
        raise DataError(_("data '{path}' is no Excel workbook (.xlsx)").format(path=path))
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # of openpyxl, of its XML parser, or for a part that is missing
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            _("data '{path}' is no Excel workbook (.xlsx): {reason}").format(
                path=path, reason=reason.strip("'\"")
            )
        ) from error
    try:
        if not book.worksheets:
            raise DataError(_("data '{path}' has no sheet with cells").format(path=path))
        sheet = book.worksheets[0]
        sheet.reset_dimensions()  # some programs write wrong ones
        rows = list(_filled(sheet.iter_rows(values_only=True, max_row=max_rows)))
        names = [s.title for s in book.worksheets]
    finally:
        book.close()
    width = max((len(row) for row in rows), default=0)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([*map(_cell, row), *[""] * (width - len(row))] for row in rows)
    told = f"The table is sheet '{names[0]}', the first of {len(names)}."
    return text.getvalue().encode(), [told] if len(names) > 1 else []


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
