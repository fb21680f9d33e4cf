"""Preprocessing: fitted on training rows, kept as plain JSON, applied to any raw rows.

Shapes: N rows, D numeric features, C categorical features.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from onward.errors import DataError
from onward.words.language import _, later, retold
from train.tabular.data.columns import CALENDAR_PARTS, kind_of, read_parts
from train.tabular.data.features import CategoricalFeature, Counts, NumericFeature
from train.tabular.data.recognise import first_known, first_odd
from train.tabular.data.scale import TargetScale
from train.tabular.data.scratch import Scratch
from train.tabular.data.source import Source

VERSION: Final = 1  # raised whenever the same table would give other arrays

_IDENTIFIER: Final = 0.9  # share of distinct values from which a text is taken for an identifier

_NAMELESS: Final = "Unnamed: 0"  # as a first column without a name is called; once it was ""

# Why a column is left out, as it is stored.
_DROPPED: Final = later("dropped as asked")
_INDEX: Final = later("a saved pandas index: keep_index=true takes it")
_CONSTANT: Final = later("the same in all training rows")
_DISTINCT: Final = later("nearly every value different, like an identifier")
_REASONS: Final = (_DROPPED, _INDEX, _CONSTANT, _DISTINCT, later("of type {type}"))


@dataclasses.dataclass(frozen=True)
class Features:
    """What the model sees of some rows.

    Shape:
        numeric: float32 [N, D]
        categorical: integers [N, C]
    """

    numeric: NDArray[np.float32]
    categorical: NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Training:
    """The rows that are fitted to.

    Args:
        source: All rows, N.
        targets: The target of each, on its own scale. Shape [N]
        numbers: Which of them are trained on, in their order. Shape [N_train]
        scratch: Where columns are held meanwhile.
    """

    source: Source
    targets: NDArray[np.float64]
    numbers: NDArray[np.int64]
    scratch: Scratch = dataclasses.field(default_factory=Scratch)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From raw tables to arrays, with everything that was learned from the training rows.

    Args:
        target: Name of the column to predict.
        scale: The scale the target is trained on.
        numeric: The numeric features, in the order of the arrays' columns.
        categorical: The categorical features, likewise.
        left_out: Name of each column that is not used, to the reason.
    """

    target: str
    scale: TargetScale
    numeric: tuple[NumericFeature, ...]
    categorical: tuple[CategoricalFeature, ...]
    left_out: Mapping[str, str]

    @classmethod
    def fit(
        cls,
        rows: Training,
        *,
        target: str,
        drop: Iterable[str] = (),
        index: Collection[str] = (),
        target_scale: str = "auto",
    ) -> Preprocessing:
        """Fit to the training rows, column by column.

        Args:
            rows: The training rows, each of which has a target.
            target: Column to predict.
            drop: Columns to leave out.
            index: Columns to leave out since they are row numbers.
            target_scale: "auto", "linear" or "log"; see `TargetScale.fit`.

        Raises:
            DataError: `target` or a column of `drop` does not exist, the target is not a number,
                or no column is left to learn from.
        """
        names = rows.source.schema.names
        scale = TargetScale.fit(rows.targets[rows.numbers], target_scale)
        dropped = set(drop)
        for name in sorted(dropped):
            require_column(names, name, "drop")
        numeric: list[NumericFeature] = []
        categorical: list[CategoricalFeature] = []
        left_out: dict[str, str] = {}
        for name in names:
            if name == target:
                continue
            fitted: list[NumericFeature] | CategoricalFeature | str
            if name in dropped:
                fitted = _DROPPED
            else:
                fitted = _INDEX if name in index else _fit_column(name, rows)
            if isinstance(fitted, str):
                left_out[name] = fitted
            elif isinstance(fitted, CategoricalFeature):
                categorical.append(fitted)
            else:
                numeric += fitted
        if not numeric and not categorical:
            groups = _grouped(left_out).items()
            listing = [
                f"{listed(names, most=5)} ({retold(reason, _REASONS, {})})"
                for reason, names in groups
            ]
            reasons = "; ".join(listing) or _("it is the only column")
            raise DataError(
                _("nothing is left to predict '{target}' from: {reasons}").format(
                    target=target, reasons=reasons
                )
            )
        return cls(target, scale, tuple(numeric), tuple(categorical), left_out)

    def transform(self, table: pa.Table, first_row: int = 0) -> Features:
        """Turn raw rows into the arrays the model takes.

        Args:
            table: Any rows with the columns that were fitted; others are not looked at.
            first_row: The number of the first one, for messages; from 0.

        Raises:
            DataError: Columns are missing, or hold something else than when they were fitted.
        """
        if "" in self.columns and _NAMELESS in table.column_names:
            names = ["" if name == _NAMELESS else name for name in table.column_names]
            table = table.rename_columns(names)
        self.require_columns(table.column_names)
        numeric = np.empty((table.num_rows, len(self.numeric)), dtype=np.float32)
        categorical = np.empty((table.num_rows, len(self.categorical)), dtype=self.code_type)
        by_column: dict[str, list[int]] = {}
        for i, feature in enumerate(self.numeric):
            by_column.setdefault(feature.column, []).append(i)
        for name, places in by_column.items():
            with _told_of(name, table, first_row):
                parts = read_parts(table[name], [self.numeric[i].part for i in places])
            for i, values in zip(places, parts, strict=True):
                numeric[:, i] = self.numeric[i].of(values)
        for i, category in enumerate(self.categorical):
            with _told_of(category.column, table, first_row):
                categorical[:, i] = category.transform(table[category.column])
        return Features(numeric, categorical)

    def require_columns(self, names: Sequence[str]) -> None:
        """Refuse a table that lacks columns that were fitted.

        Raises:
            DataError: Names them.
        """
        missing = sorted(self.columns - set(names))
        if missing:
            raise DataError(
                _(
                    "the table lacks {missing}, which the preprocessing was fitted on; "
                    "it has {columns}"
                ).format(missing=listed(missing), columns=listed(names))
            )

    @property
    def code_type(self) -> np.dtype[Any]:
        """The type of the codes of all categorical features."""
        return np.result_type(np.uint8, *(feature.code_type for feature in self.categorical))

    @property
    def columns(self) -> set[str]:
        """Names of the raw columns that are used, without the target."""
        return set(self.column_names)

    @property
    def text_columns(self) -> list[str]:
        """Names of the columns to read as text: categories, and what is only shown."""
        return [*(feature.column for feature in self.categorical), *self.left_out]

    @property
    def column_names(self) -> list[str]:
        """Names of the raw columns that are used: those of numbers, then those of categories."""
        names = [f.column for f in self.numeric] + [f.column for f in self.categorical]
        return list(dict.fromkeys(names))

    def report(self) -> list[str]:
        """Return, in plain English, as it is stored, what is used of a table and what is not."""
        num_columns = len({f.column for f in self.numeric})
        sentences = [
            f"Features: {len(self.numeric)} numeric (from {num_columns} columns), "
            f"{len(self.categorical)} categorical."
        ]
        sentences += [
            f"Of column '{f.column}' the {len(f.vocabulary)} most frequent values have a code of "
            f"their own, {f.num_rare} rare ones share one."
            for f in self.categorical
            if f.num_rare
        ]
        sentences += [
            f"Left out: {_listed_in_english(names, most=5)} ({reason})."
            for reason, names in _grouped(self.left_out).items()
        ]
        if self.scale.low == self.scale.high:
            sentences.append(f"Target '{self.target}' is the same in all training rows.")
        kind = "logarithmic" if self.scale.kind == "log" else "linear"
        return [*sentences, f"Target '{self.target}' is trained on a {kind} scale, standardised."]

    def to_dict(self) -> dict[str, Any]:
        """Return plain builtins, fit for JSON, from which `from_dict` makes an equal one."""
        return {**dataclasses.asdict(self), "left_out": dict(self.left_out)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Make it from what `to_dict` returned."""
        return cls(
            target=values["target"],
            scale=TargetScale(**values["scale"]),
            numeric=tuple(NumericFeature(**f) for f in values["numeric"]),
            categorical=tuple(
                CategoricalFeature(f["column"], tuple(f["vocabulary"]), f["num_rare"])
                for f in values["categorical"]
            ),
            left_out=dict(values["left_out"]),
        )


def target_values(source: Source, target: str, scratch: Scratch) -> NDArray[np.float64]:
    """Return the target on its own scale, NaN where there is none. Shape [N].

    Raises:
        DataError: There is no such column, or it does not hold numbers.
    """
    schema = source.schema
    require_column(schema.names, target, "target")
    kind = kind_of(schema.field(target))
    if kind == "numeric":
        return read_column(source, target, ["value"], scratch)[0]
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


def require_column(columns: Sequence[str], name: str, option: str) -> None:
    """Refuse the name of a column that is not there.

    Raises:
        DataError: It is not; the message names the closest one and those that exist.
    """
    if name in columns:
        return
    close = difflib.get_close_matches(name, columns, n=1)
    message = _("{option}: there is no column '{name}'; There are {columns}")
    if close:
        message = _(
            "{option}: there is no column '{name}'; did you mean '{close}'? There are {columns}"
        )
    raise DataError(
        message.format(option=option, name=name, close="".join(close), columns=listed(columns))
    )


def listed(names: Sequence[str], most: int = 20) -> str:
    """Return names in quotes, cut after `most`: "'a', 'b' and 7 more"."""
    shown = ", ".join(f"'{name}'" for name in names[:most])
    if len(names) > most:
        return _("{names} and {number} more").format(names=shown, number=len(names) - most)
    return shown or _("none")


@contextlib.contextmanager
def _told_of(name: str, table: pa.Table, first_row: int) -> Iterator[None]:
    """Tell of which column it is that it cannot be transformed, and where."""
    try:
        yield
    except DataError as error:
        reason = str(error)
        if kind_of(table[name]) == "text":
            row, value = first_odd(table[name])
            reason = _("{reason}; row {row:,} holds {value!r}").format(
                reason=reason, row=first_row + row, value=value
            )
        raise DataError(
            _("column '{name}' is not what it was when fitted: {reason}").format(
                name=name, reason=reason
            )
        ) from error


def _listed_in_english(names: Sequence[str], most: int) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _grouped(left_out: Mapping[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        groups.setdefault(reason, []).append(name)
    return groups


def _fit_column(name: str, rows: Training) -> list[NumericFeature] | CategoricalFeature | str:
    """Return the features of a column, or the reason why it has none."""
    field = rows.source.schema.field(name)
    kind = kind_of(field)
    if kind is None:
        return f"of type {field.type}"
    if kind == "text":
        return _fit_text(name, rows)
    parts = ["value"] if kind == "numeric" else list(CALENDAR_PARTS)
    features, num_rows = [], len(rows.numbers)
    values = rows.scratch.array(num_rows, np.float64)
    for part, column in zip(
        parts, read_column(rows.source, name, parts, rows.scratch), strict=True
    ):
        np.take(column, rows.numbers, out=values, mode="clip")
        features.append(NumericFeature.fit(name, part, values))
    num_missing = int(np.isnan(values).sum())
    features.append(NumericFeature.fit_missing(name, num_missing, num_rows))
    return [feature for feature in features if feature is not None] or _CONSTANT


def _fit_text(name: str, rows: Training) -> CategoricalFeature | str:
    is_training = np.zeros(len(rows.targets), np.bool_)
    is_training[rows.numbers] = True
    counts, start = Counts(), 0
    for block in rows.source.blocks([name]):
        counts.add(block[name], is_training[start : start + len(block)])
        start += len(block)
    counted = counts.table
    known = counted.filter(pc.field("value").is_valid())
    if len(counted) <= 1:
        return _CONSTANT
    if len(known) > _IDENTIFIER * (pc.sum(known["count"]).as_py() or 0):
        return _DISTINCT
    return CategoricalFeature.fit(name, counted)


def read_column(
    source: Source, name: str, parts: Sequence[str], scratch: Scratch
) -> NDArray[np.float64]:
    """Return numeric views of all of a column; see `read_parts`. Shape [P, N]."""
    found: NDArray[np.float64] = scratch.array((len(parts), source.num_rows), np.float64)
    start = 0
    for block in source.blocks([name]):
        for values, part in zip(found, read_parts(block[name], parts), strict=True):
            values[start : start + len(block)] = part
        start += len(block)
    return found
