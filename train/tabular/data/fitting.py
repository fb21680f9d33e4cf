"""A whole table, fitted to its training rows and transformed, column by column.

A column is held at a time, so that a table may be larger than the memory.

Shapes: N rows, P parts of a column.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from onward.errors import DataError
from onward.words.language import _, later, retold
from train.tabular.data.columns import CALENDAR_PARTS, encoded, kind_of, read_parts
from train.tabular.data.features import CategoricalFeature, Counts, NumericFeature
from train.tabular.data.parquet import BLOCK_ROWS
from train.tabular.data.prepare import Preprocessing, grouped, listed, require_column, told_of
from train.tabular.data.recognise import first_known, first_odd
from train.tabular.data.scale import TargetScale
from train.tabular.data.scratch import Scratch
from train.tabular.data.source import Source

_MAX_TEXTS: Final = 1 << 18  # of all pieces of a column, held so that it is read once
_IDENTIFIER: Final = 0.9  # share of distinct values from which a text is taken for an identifier

# Why a column is left out, as it is stored.
_DROPPED: Final = later("dropped as asked")
_INDEX: Final = later("a saved pandas index: keep_index=true takes it")
_CONSTANT: Final = later("the same in all training rows")
_DISTINCT: Final = later("nearly every value different, like an identifier")
_REASONS: Final = (_DROPPED, _INDEX, _CONSTANT, _DISTINCT, later("of type {type}"))


@dataclasses.dataclass(frozen=True)
class Work:
    """The rows of a table, and those of them that are fitted to.

    Args:
        source: The rows, each of which has a target.
        targets: The target of each, on its own scale. Shape [N]
        training: Which of them are trained on, in their order. Shape [N_train]
        scratch: Where columns are held.
    """

    source: Source
    targets: NDArray[np.float64]
    training: NDArray[np.int64]
    scratch: Scratch = dataclasses.field(default_factory=Scratch)


@dataclasses.dataclass(frozen=True)
class Columns:
    """What the model sees of all rows, feature by feature, as the preprocessing has them.

    Shape:
        numeric: float32 [N] each
        categorical: integers [N] each
    """

    numeric: list[NDArray[np.float32]] = dataclasses.field(default_factory=list)
    categorical: list[NDArray[Any]] = dataclasses.field(default_factory=list)


def fit(
    work: Work,
    *,
    target: str,
    drop: Iterable[str] = (),
    index: Collection[str] = (),
    target_scale: str = "auto",
) -> tuple[Preprocessing, Columns]:
    """Fit to the training rows, and transform all rows.

    Args:
        work: The rows.
        target: Column to predict.
        drop: Columns to leave out.
        index: Columns to leave out since they are row numbers.
        target_scale: "auto", "linear" or "log"; see `TargetScale.fit`.

    Raises:
        DataError: A column of `drop` does not exist, or no column is left to learn from.
    """
    names = work.source.schema.names
    in_training = np.empty(len(work.training))
    _take(work.targets, work.training, in_training)
    scale = TargetScale.fit(in_training, target_scale)
    dropped = set(drop)
    for name in sorted(dropped):
        require_column(names, name, "drop")
    numeric: list[NumericFeature] = []
    categorical: list[CategoricalFeature] = []
    left_out: dict[str, str] = {}
    columns = Columns()
    for name in names:
        if name == target:
            continue
        fitted: list[NumericFeature] | CategoricalFeature | str
        if name in dropped:
            fitted = _DROPPED
        else:
            fitted = _INDEX if name in index else _fit_column(name, work, columns)
        if isinstance(fitted, str):
            left_out[name] = fitted
        elif isinstance(fitted, CategoricalFeature):
            categorical.append(fitted)
        else:
            numeric += fitted
    if not numeric and not categorical:
        groups = grouped(left_out).items()
        listing = [
            f"{listed(names, most=5)} ({retold(reason, _REASONS, {})})" for reason, names in groups
        ]
        reasons = "; ".join(listing) or _("it is the only column")
        raise DataError(
            _("nothing is left to predict '{target}' from: {reasons}").format(
                target=target, reasons=reasons
            )
        )
    made = Preprocessing(target, scale, tuple(numeric), tuple(categorical), left_out)
    return made, columns


def transform(work: Work, preprocessing: Preprocessing) -> Columns:
    """Transform all rows by what was fitted before.

    Raises:
        DataError: Columns are missing, or hold something else than when they were fitted.
    """
    columns, names = Columns(), preprocessing.names_in(work.source.schema.names)
    for name, places in preprocessing.numeric_of_columns.items():
        features = [preprocessing.numeric[i] for i in places]
        values = read_column(
            work.source, names[name], [f.part for f in features], work.scratch, fitted=name
        )
        for feature, part in zip(features, values, strict=True):
            columns.numeric.append(_transformed(feature, part.__getitem__, work))
    for category in preprocessing.categorical:
        columns.categorical.append(_codes(category, names[category.column], work))
    return columns


def target_values(source: Source, target: str, scratch: Scratch) -> NDArray[np.float64]:
    """Return the target on its own scale, NaN where there is none. Shape [N].

    Raises:
        DataError: There is no such column, or it does not hold numbers.
    """
    schema = source.schema
    require_column(schema.names, target, "target")
    kind = kind_of(schema.field(target))
    if kind == "numeric":
        found: NDArray[np.float64] = scratch.array(source.num_rows, np.float64)
        found[:] = read_column(source, target, ["value"], scratch)[0]
        return found
    column = pa.concat_tables(source.blocks([target]))[target]
    row, example = first_odd(column) if kind == "text" else first_known(column)
    others = [field.name for field in schema if kind_of(field) == "numeric"]
    raise DataError(
        _(
            "target '{target}' is not a number: it holds {kind}, such as {example!r} in row "
            "{row:,}. Numeric columns are {columns}"
        ).format(
            target=target,
            kind=column.type,
            example=example,
            row=row,
            columns=listed(others),
        )
    )


def read_column(
    source: Source, name: str, parts: Sequence[str], scratch: Scratch, *, fitted: str | None = None
) -> NDArray[np.float64]:
    """Return numeric views of all of a column; see `read_parts`.

    Args:
        source: The rows.
        name: The column.
        parts: Those to read.
        scratch: Where they are held.
        fitted: What the column was called when it was fitted, if it was.

    Shape:
        [P, N]

    Guarantees:
        They are held until the next column is read with the same `scratch`.

    Raises:
        DataError: The column does not hold what a part needs.
    """
    found: NDArray[np.float64] = scratch.reused("column", (len(parts), source.num_rows), np.float64)
    start = 0
    for block in source.blocks([name]):
        column = block[name]
        telling = contextlib.nullcontext() if fitted is None else told_of(fitted, column, start)
        with telling:
            read = read_parts(column, parts)
        for values, part in zip(found, read, strict=True):
            values[start : start + len(block)] = part
        start += len(block)
    return found


def _fit_column(
    name: str, work: Work, columns: Columns
) -> list[NumericFeature] | CategoricalFeature | str:
    """Return the features of a column, and add what they make of it; or why it has none."""
    field = work.source.schema.field(name)
    kind = kind_of(field)
    if kind is None:
        return f"of type {field.type}"
    if kind == "text":
        return _fit_text(name, work, columns)
    parts = ["value"] if kind == "numeric" else list(CALENDAR_PARTS)
    features = []
    values = read_column(work.source, name, parts, work.scratch)
    in_training = np.empty(len(work.training))
    room = np.empty(len(in_training))  # in memory: a median goes through it several times
    for part, of_all in zip(parts, values, strict=True):
        _take(of_all, work.training, in_training)
        feature = NumericFeature.fit(name, part, in_training, room)
        if feature is not None:
            features.append(feature)
            columns.numeric.append(_transformed(feature, of_all.__getitem__, work))
    num_missing = sum(int(np.isnan(in_training[rows]).sum()) for rows in _ranges(len(in_training)))
    missing = NumericFeature.fit_missing(name, num_missing, len(in_training))
    if missing is not None:
        features.append(missing)
        columns.numeric.append(
            _transformed(missing, lambda rows: np.isnan(values[0, rows]).astype(np.float64), work)
        )
    return features or _CONSTANT


def _take(values: NDArray[np.float64], rows: NDArray[np.int64], out: NDArray[np.float64]) -> None:
    """Copy the values of some rows, in any order."""
    # IMPORTANT: from memory: where they lie in a file, each could be a read from the disk.
    np.take(np.array(values), rows, out=out, mode="clip")


def _fit_text(name: str, work: Work, columns: Columns) -> CategoricalFeature | str:
    is_training = np.zeros(len(work.targets), np.bool_)
    is_training[work.training] = True
    numbers = work.scratch.reused("numbers", [len(work.targets)], np.int32)
    counts, pieces, num_texts, start = Counts(), [], 0, 0
    for block in work.source.blocks([name]):
        for values, of_rows in encoded(block[name]):
            rows = slice(start, start + len(of_rows))
            counts.add(values, of_rows[is_training[rows]])
            numbers[rows], start = of_rows, rows.stop
            num_texts += len(values)
            if num_texts <= _MAX_TEXTS:
                pieces.append((values, rows))
    counted = counts.table
    known = counted.filter(pc.field("value").is_valid())
    if len(counted) <= 1:
        return _CONSTANT
    if len(known) > _IDENTIFIER * (pc.sum(known["count"]).as_py() or 0):
        return _DISTINCT
    made = CategoricalFeature.fit(name, counted)
    if num_texts > _MAX_TEXTS:
        codes = _codes(made, name, work)
    else:
        codes = work.scratch.array(len(numbers), made.code_type)
        for values, rows in pieces:
            codes[rows] = made.codes_of(values)[numbers[rows]]
    columns.categorical.append(codes)
    return made


def _transformed(
    feature: NumericFeature, read: Callable[[slice], NDArray[np.float64]], work: Work
) -> NDArray[np.float32]:
    made: NDArray[np.float32] = work.scratch.array(len(work.targets), np.float32)
    for rows in _ranges(len(made)):
        made[rows] = feature.of(read(rows))
    return made


def _codes(category: CategoricalFeature, name: str, work: Work) -> NDArray[Any]:
    made, start = work.scratch.array(len(work.targets), category.code_type), 0
    for block in work.source.blocks([name]):
        with told_of(category.column, block[name], start):
            made[start : start + len(block)] = category.transform(block[name])
        start += len(block)
    return made


def _ranges(length: int) -> Iterable[slice]:
    return (slice(start, start + BLOCK_ROWS) for start in range(0, length, BLOCK_ROWS))
