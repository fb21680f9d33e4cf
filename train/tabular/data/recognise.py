"""Columns of text that are numbers or dates, but for a few values or the way they are written."""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Collection
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from onward.errors import DataError
from onward.words.language import _
from train.tabular.data.columns import texts

_NEARLY: Final = 0.95  # share of the values from which a column is of a kind, but for a few
_MANY: Final = 10  # so many values are of a kind even if one of them is not
_HEAD: Final = 0.1  # share of the rows by which words are told, more than the few odd ones
_MAX_SHOWN: Final = 3

_PLACEHOLDER: Final = (
    r"^\s*([^\p{L}\p{N}\s]+|缺失|缺|无|未知|空|none|missing|unknown|n\.?\s?d\.?)\s*$"
)

_NUMBER: Final = r"^\s*([+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity))\s*$"
_DATE_LIKE: Final = r"^\s*\d{1,4}\s*[-/.年]\s*\d{1,2}\s*[-/.月]\s*\d{1,4}"
_TIME: Final = r"(?:[T\s]\s*(\d{1,2}):(\d{2})(?::(\d{2})(?:\.(\d{1,6}))?)?)?\s*"
_YEAR_FIRST: Final = re.compile(
    r"\s*(\d{4})(?:-(\d{1,2})-|/(\d{1,2})/|\.(\d{1,2})\.|\s*年\s*(\d{1,2})\s*月\s*)(\d{1,2})"
    r"(?:\s*日)?" + _TIME
)
_DAY_FIRST: Final = re.compile(r"\s*(\d{1,2})\.(\d{1,2})\.(\d{4})" + _TIME)
_EITHER_FIRST: Final = r"^\s*\d{1,2}[-/]\d{1,2}[-/](\d{4}|\d{2})\b"


@dataclasses.dataclass(frozen=True)
class Odd:
    """What a column of text nearly is, and the values that are not.

    Args:
        kind: "numbers" or "dates".
        values: Number of the row, counted from 1, and value, of the first few odd ones.
        count: How many there are.
    """

    kind: str
    values: tuple[tuple[int, str], ...]
    count: int


def recognised(
    table: pa.Table, data: str, target: str, odd_values: str, as_text: Collection[str]
) -> tuple[pa.Table, list[str]]:
    """Return the table with columns of text as what they are, and sentences on what was done.

    Dates become dates in the forms 2024/01/05, 2024-1-5, 05.01.2024 and 2024年1月5日. Of a column
    that is numbers or dates but for a few values, these are treated as `odd_values` says.

    Args:
        table: The rows, of a file that does not say which types its columns have.
        data: The table's name, for messages.
        target: The column to predict.
        odd_values: "refuse", "missing" or "text".
        as_text: Names of columns that stay text.

    Raises:
        DataError: There are odd values, and `odd_values` is "refuse".
    """
    notes: list[str] = []
    for i, field in enumerate(table.schema):
        if field.name in as_text or not _is_text(field.type):
            continue
        column, odd = recognise(table.column(i))
        if odd is None:
            table = table.set_column(i, field.name, column)
            notes += _unclear_dates(field.name, column)
        elif odd_values == "missing":
            table = table.set_column(i, field.name, column)
            notes.append(
                f"Column '{field.name}' is {odd.kind}; what is none counts as missing "
                f"({odd.count:,}): {_shown(odd)}."
            )
        elif odd_values == "refuse":
            raise _refusal(field.name, data, odd, field.name == target)
    return table, notes


def recognise(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Odd | None]:
    """Return a column of text as what it is; where it is that but for a few values, null for these.

    Returns:
        The column, the same if it is text; and what is odd in it, if anything is.
    """
    if not _may_be(column, _NUMBER) and not _may_be(column, _DATE_LIKE):
        return column, None
    plain = texts(column)
    num_known = len(plain) - plain.null_count
    is_number = _matches(plain, _NUMBER)
    if _are_nearly_all(is_number, plain):
        if pc.sum(is_number).as_py() == num_known:  # whoever wrote it as text means text
            return column, None
        return as_numbers(plain), _odd("numbers", plain, is_number)
    if not _are_nearly_all(_matches(plain, _DATE_LIKE), plain):
        return column, None
    dates = as_dates(plain)
    if not _are_nearly_all(dates.is_valid(), plain):
        return column, None
    if dates.null_count == plain.null_count:
        return dates, None
    return dates, _odd("dates", plain, dates.is_valid())


def as_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of text as numbers, null for what is none."""
    plain = pc.utf8_trim_whitespace(texts(column))
    known = pc.if_else(_matches(plain, _NUMBER), plain, pa.scalar(None, plain.type))
    return known.cast(pa.float64())


def as_dates(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of text as dates, or as times if one has any; null for what is none."""
    encoded = texts(column).combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    moments = [None if text is None else _date(text) for text in encoded.dictionary.to_pylist()]
    midnight = datetime.time()
    whole_days = all(moment is None or moment.time() == midnight for moment in moments)
    values = pa.array(moments, pa.timestamp("us"))
    values = values.cast(pa.date32()) if whole_days else values
    return pa.chunked_array([values.take(encoded.indices)])


def first_odd(column: pa.ChunkedArray) -> tuple[int, Any]:
    """Return the first value of a column of text that is no number, if any, with its row from 1."""
    plain = texts(column)
    odd = _odd("numbers", plain, _matches(plain, _NUMBER))
    return odd.values[0] if odd.count else first_known(column)


def first_known(column: pa.ChunkedArray) -> tuple[int, Any]:
    """Return the first value of a column that is not missing, if any, with its row from 1."""
    rows = pc.indices_nonzero(column.is_valid())
    row = rows[0].as_py() if len(rows) else 0
    return row + 1, column[row].as_py() if len(column) else None


def is_nearly_all(count: int, total: int) -> bool:
    """Tell whether `count` of `total` values is all, or all but a few."""
    return total > 0 and (count >= _NEARLY * total or (total >= _MANY and count == total - 1))


def _are_nearly_all(fits: pa.ChunkedArray, column: pa.ChunkedArray) -> bool:
    """Tell whether all values of a text are of a kind but for a few, or for what stands for none.

    Of values such as '-', which nobody takes for a word, there may be up to as many.
    """
    num_known, count = len(column) - column.null_count, pc.sum(fits).as_py() or 0
    if is_nearly_all(count, num_known) or not count:
        return bool(count)
    num_nothing = pc.sum(_matches(column, _PLACEHOLDER)).as_py() or 0
    return bool(count >= num_nothing and count + num_nothing == num_known)


def _may_be(column: pa.ChunkedArray, pattern: str) -> bool:
    """Tell by the first rows whether `_are_nearly_all` may hold for a pattern.

    It cannot where they have more words than the few that all rows might, and thus more than one.
    """
    head = texts(column.slice(0, int(_HEAD * len(column)) + _MANY))
    counted = head.drop_null().value_counts()
    values = pa.chunked_array([counted.field("values")])
    fits = pc.or_(_matches(values, pattern), _matches(values, _PLACEHOLDER))
    num_words = pc.sum(counted.field("counts").filter(pc.invert(fits).combine_chunks())).as_py()
    return bool((num_words or 0) <= max(1, (1 - _NEARLY) * len(column)))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _matches(column: pa.ChunkedArray, pattern: str) -> pa.ChunkedArray:
    return pc.fill_null(pc.match_substring_regex(column, pattern, ignore_case=True), False)


def _odd(kind: str, column: pa.ChunkedArray, fits: pa.ChunkedArray) -> Odd:
    is_odd = pc.and_not(column.is_valid(), fits)
    rows = pc.indices_nonzero(is_odd)
    first = rows.slice(0, _MAX_SHOWN)
    values = zip(first.to_pylist(), column.take(first).to_pylist(), strict=True)
    return Odd(kind, tuple((row + 1, value) for row, value in values), len(rows))


def _shown(odd: Odd) -> str:
    shown = ", ".join(f"{value!r} in row {row}" for row, value in odd.values)
    return f"{shown}, …" if odd.count > len(odd.values) else shown


def _refusal(name: str, data: str, odd: Odd, is_target: bool) -> DataError:
    kind = {"numbers": _("numbers"), "dates": _("dates")}[odd.kind]
    row, value = odd.values[0]
    if is_target:
        return DataError(
            _(
                "data '{data}': target '{name}' is {kind} but for {count:,} of its values, first "
                "{value!r} in row {row:,}. Mend the table, or pass odd_values=missing (such rows "
                "are left out)"
            ).format(data=data, name=name, kind=kind, count=odd.count, value=value, row=row)
        )
    return DataError(
        _(
            "data '{data}': column '{name}' is {kind} but for {count:,} of its values, first "
            "{value!r} in row {row:,}. Mend the table, or pass odd_values=missing (such values "
            "count as missing), odd_values=text (the column stays text) or drop={name}"
        ).format(data=data, name=name, kind=kind, count=odd.count, value=value, row=row)
    )


def _unclear_dates(name: str, column: pa.ChunkedArray) -> list[str]:
    if not _is_text(column.type) or not _may_be(column, _EITHER_FIRST):
        return []
    unclear = _matches(texts(column), _EITHER_FIRST)
    if not is_nearly_all(pc.sum(unclear).as_py() or 0, len(column) - column.null_count):
        return []
    example = column.filter(unclear)[0].as_py()
    return [
        f"Column '{name}' stays text: in dates such as {example!r} day and month are not told "
        "apart; write 2024-01-31."
    ]


def _date(text: str) -> datetime.datetime | None:
    if found := _YEAR_FIRST.fullmatch(text):
        year, *months, day, hour, minute, second, fraction = found.groups()
        month = next(m for m in months if m)
    elif found := _DAY_FIRST.fullmatch(text):
        day, month, year, hour, minute, second, fraction = found.groups()
    else:
        return None
    try:
        day_of = datetime.date(int(year), int(month), int(day))
        microsecond = int((fraction or "").ljust(6, "0"))
        time_of = datetime.time(int(hour or 0), int(minute or 0), int(second or 0), microsecond)
    except ValueError:  # such as 31 February
        return None
    return datetime.datetime.combine(day_of, time_of)
