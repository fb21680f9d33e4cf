"""Columns of a raw table as numbers or as text, whatever type they are stored in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from onward.errors import DataError
from onward.words.language import _

Kind = Literal["numeric", "calendar", "text"]

# What stands for a missing value in a text: the words that pyarrow takes for one in a CSV, here so
# that a Parquet file, a DataFrame and JSON mean the same by them.
MISSING_WORDS: Final = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "N/A", "NA", "NULL", "NaN", "n/a", "nan", "null",
)  # fmt: skip

# The parts of a date or time that become numbers; time zones are brought to UTC.
_CALENDAR: Final[dict[str, Callable[[pa.ChunkedArray], pa.ChunkedArray]]] = {
    "year": pc.year,
    "month": pc.month,
    "day": pc.day,
    "weekday": pc.day_of_week,
    "hour": pc.hour,
    "minute": pc.minute,
}
CALENDAR_PARTS: Final = tuple(_CALENDAR)
_DAY: Final = 24 * 60 * 60 * 10**6  # in microseconds
_OF_DAY: Final = {"hour": (_DAY // 24, 24), "minute": (_DAY // 24 // 60, 60)}  # unit; so many
_MAX_DAYS: Final = 10**7  # on both sides of 1970: some 27,000 years

_TIMES: Final = (
    (pa.types.is_date, pa.timestamp("us")),
    (pa.types.is_timestamp, pa.timestamp("us")),
    (pa.types.is_time, pa.time64("us")),
    (pa.types.is_duration, pa.duration("us")),
)


def kind_of(column: pa.ChunkedArray | pa.Field) -> Kind | None:
    """Return how a column is used; None where its type (bytes, lists, …) cannot be."""
    kind = _value_type(column)
    is_type = pa.types
    if is_type.is_date(kind) or is_type.is_timestamp(kind):
        return "calendar"
    if is_type.is_string(kind) or is_type.is_large_string(kind) or is_type.is_string_view(kind):
        return "text"
    if (
        is_type.is_integer(kind)
        or is_type.is_floating(kind)
        or is_type.is_decimal(kind)
        or is_type.is_boolean(kind)
        or is_type.is_time(kind)
        or is_type.is_duration(kind)
        or is_type.is_null(kind)
    ):
        return "numeric"
    return None


def numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Return a column as float64, with NaN for whatever is missing or not finite.

    Dates, times and durations are counted in microseconds.

    Shape:
        [N]

    Raises:
        DataError: There are values that are not numbers.
    """
    try:
        plain = column.cast(_value_type(column))
        if kind_of(column) == "text":  # as JSON may have it
            plain = without_missing_words(pc.utf8_trim_whitespace(plain))
        for is_of_kind, in_microseconds in _TIMES:
            if is_of_kind(plain.type):
                plain = plain.cast(in_microseconds, safe=False).cast(pa.int64())
        values = plain.cast(pa.float64(), safe=False).to_numpy()
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise DataError(_("not a number: {reason}").format(reason=reason)) from error
    is_finite = np.isfinite(values)
    return values if is_finite.all() else np.where(is_finite, values, np.nan)


def without_missing_words(
    column: pa.ChunkedArray, kept: Collection[str | None] = ()
) -> pa.ChunkedArray:
    """Return a column of strings with null for each of `MISSING_WORDS`, but for those in `kept`."""
    words = [word for word in MISSING_WORDS if word not in kept]
    is_missing = pc.is_in(column, value_set=pa.array(words, type=column.type))
    if not pc.any(is_missing).as_py():
        return column
    return pc.if_else(is_missing, pa.scalar(None, column.type), column)


def texts(column: pa.ChunkedArray, kept: Collection[str | None] = ()) -> pa.ChunkedArray:
    """Return a column as strings, with null for whatever is missing.

    Args:
        column: The column.
        kept: Those of `MISSING_WORDS` that are words here.

    Raises:
        DataError: The values have no text form.
    """
    try:
        plain = column.cast(_value_type(column)).cast(pa.large_string())
        return without_missing_words(plain, kept)
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise DataError(_("not text: {reason}").format(reason=reason)) from error


def read_parts(column: pa.ChunkedArray, parts: Sequence[str]) -> list[NDArray[np.float64]]:
    """Return numeric views of a column, with NaN for missing values.

    Args:
        column: Numeric, or dates and times.
        parts: Of "value", "missing" (1 where there is no value, else 0), and `CALENDAR_PARTS`.

    Shape:
        [N] each; not to be written to

    Raises:
        DataError: The column does not hold what a part needs.
    """
    found: dict[str, NDArray[np.float64]] = {}
    calendar = [part for part in parts if part in _CALENDAR]
    if calendar:
        found = _calendar(column, calendar)
    if "value" in parts:
        if kind_of(column) == "calendar" and column.null_count < len(column):
            raise DataError(_("not a number: {reason}").format(reason=column.type))
        found["value"] = numbers(column)
    if "missing" in parts:
        known = next(iter(found.values())) if found else numbers(column)
        found["missing"] = np.isnan(known).astype(np.float64)
    return [found[part] for part in parts]


def encoded(
    column: pa.ChunkedArray, kept: Collection[str | None] = ()
) -> Iterator[tuple[pa.Array, NDArray[np.int64]]]:
    """Yield a column as text piece by piece: some values, and for each row the number of its own.

    Args:
        column: The column.
        kept: As for `texts`.

    Shape:
        values: [V], with null for what is missing; one may come twice
        numbers: int64 [N], with V for a row without a value

    Raises:
        DataError: The values have no text form.
    """
    if kind_of(column) != "text":
        column = texts(column, kept)
    for chunk in column.chunks:
        if not isinstance(chunk, pa.DictionaryArray):
            chunk = chunk.dictionary_encode()
        values = texts(pa.chunked_array([chunk.dictionary]), kept).combine_chunks()
        if isinstance(values, pa.ChunkedArray):
            values = pa.concat_arrays(values.chunks)
        indices = chunk.indices.cast(pa.int64())
        yield values, pc.fill_null(indices, len(values)).to_numpy(zero_copy_only=False)


def _calendar(column: pa.ChunkedArray, parts: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Return parts of dates and times, those of a day looked up in a table of the days."""
    try:
        moments = column.cast(_value_type(column)).cast(pa.timestamp("us"), safe=False)
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise DataError(_("not a date: {reason}").format(reason=reason)) from error
    if not len(moments):
        return {part: np.empty(0) for part in parts}
    counted = pc.fill_null(moments.cast(pa.int64()), 0).to_numpy()
    days = counted // _DAY
    first, last = int(days.min()), int(days.max())
    if last - first > len(days) or max(-first, last) > _MAX_DAYS:
        return {part: numbers(_CALENDAR[part](moments)) for part in parts}
    table = pa.chunked_array([pa.array(np.arange(first, last + 1) * _DAY, pa.timestamp("us"))])
    in_table, of_day = days - first, counted - days * _DAY
    is_missing = moments.is_null().to_numpy() if moments.null_count else None
    found = {}
    for part in parts:
        if part in _OF_DAY:
            unit, number = _OF_DAY[part]
            values = (of_day // unit % number).astype(np.float64)
        else:
            values = numbers(_CALENDAR[part](table))[in_table]
        if is_missing is not None:
            values[is_missing] = np.nan
        found[part] = values
    return found


def _value_type(column: pa.ChunkedArray | pa.Field) -> pa.DataType:
    return column.type.value_type if pa.types.is_dictionary(column.type) else column.type
