"""Preprocessing: fitted on training rows, kept as plain JSON, applied to any raw rows.

Shapes: N rows, D numeric features, C categorical features.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from onward.errors import DataError
from onward.words.language import _, later, retold
from train.tabular.data.columns import CALENDAR_PARTS, kind_of, numbers, read_part, texts
from train.tabular.data.features import CategoricalFeature, NumericFeature
from train.tabular.data.recognise import first_known, first_odd
from train.tabular.data.scale import TargetScale

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
        categorical: int64 [N, C]
    """

    numeric: NDArray[np.float32]
    categorical: NDArray[np.int64]


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
        table: pa.Table,
        *,
        target: str,
        drop: Iterable[str] = (),
        index: Collection[str] = (),
        target_scale: str = "auto",
    ) -> Preprocessing:
        """Fit to the training rows.

        Args:
            table: The training rows and only them; each has a target.
            target: Column to predict.
            drop: Columns to leave out.
            index: Columns to leave out since they are row numbers.
            target_scale: "auto", "linear" or "log"; see `TargetScale.fit`.

        Raises:
            DataError: `target` or a column of `drop` does not exist, the target is not a number,
                or no column is left to learn from.
        """
        scale = TargetScale.fit(target_values(table, target), target_scale)
        dropped = set(drop)
        for name in sorted(dropped):
            require_column(table.column_names, name, "drop")
        numeric: list[NumericFeature] = []
        categorical: list[CategoricalFeature] = []
        left_out: dict[str, str] = {}
        for name in table.column_names:
            if name == target:
                continue
            fitted: list[NumericFeature] | CategoricalFeature | str
            if name in dropped:
                fitted = _DROPPED
            else:
                fitted = _INDEX if name in index else _fit_column(name, table[name])
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

    def transform(self, table: pa.Table) -> Features:
        """Turn raw rows into the arrays the model takes.

        Args:
            table: Any rows with the columns that were fitted; others are not looked at.

        Raises:
            DataError: Columns are missing, or hold something else than when they were fitted.
        """
        if "" in self.columns and _NAMELESS in table.column_names:
            names = ["" if name == _NAMELESS else name for name in table.column_names]
            table = table.rename_columns(names)
        missing = sorted(self.columns - set(table.column_names))
        if missing:
            raise DataError(
                _(
                    "the table lacks {missing}, which the preprocessing was fitted on; "
                    "it has {columns}"
                ).format(missing=listed(missing), columns=listed(table.column_names))
            )
        numeric = np.empty((table.num_rows, len(self.numeric)), dtype=np.float32)
        categorical = np.empty((table.num_rows, len(self.categorical)), dtype=np.int64)
        for i, feature in enumerate(self.numeric):
            numeric[:, i] = _transform(feature, table)
        for i, category in enumerate(self.categorical):
            categorical[:, i] = _transform(category, table)
        return Features(numeric, categorical)

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


def target_values(table: pa.Table, target: str) -> NDArray[np.float64]:
    """Return the target on its own scale, NaN where there is none. Shape [N].

    Raises:
        DataError: There is no such column, or it does not hold numbers.
    """
    require_column(table.column_names, target, "target")
    column = table[target]
    if kind_of(column) != "numeric":
        row, example = first_odd(column) if kind_of(column) == "text" else first_known(column)
        others = [n for n in table.column_names if kind_of(table[n]) == "numeric"]
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
    return numbers(column)


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


def _transform(feature: NumericFeature | CategoricalFeature, table: pa.Table) -> NDArray[Any]:
    column = table[feature.column]
    try:
        return feature.transform(column)
    except DataError as error:
        reason = str(error)
        if isinstance(feature, NumericFeature) and kind_of(column) == "text":
            row, value = first_odd(column)
            reason = _("{reason}; row {row:,} holds {value!r}").format(
                reason=reason, row=row, value=value
            )
        raise DataError(
            _("column '{name}' is not what it was when fitted: {reason}").format(
                name=feature.column, reason=reason
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


def _fit_column(
    name: str, column: pa.ChunkedArray
) -> list[NumericFeature] | CategoricalFeature | str:
    """Return the features of a column, or the reason why it has none."""
    kind = kind_of(column)
    if kind is None:
        return f"of type {column.type}"
    if kind == "text":
        return _fit_text(name, column)
    parts = ["value"] if kind == "numeric" else list(CALENDAR_PARTS)
    fitted = [NumericFeature.fit(name, p, read_part(column, p)) for p in [*parts, "missing"]]
    features = [feature for feature in fitted if feature is not None]
    return features or _CONSTANT


def _fit_text(name: str, column: pa.ChunkedArray) -> CategoricalFeature | str:
    column = texts(column)
    num_known = len(column) - column.null_count
    num_distinct = pc.count_distinct(column).as_py()
    if num_distinct + (column.null_count > 0) <= 1:
        return _CONSTANT
    if num_distinct > _IDENTIFIER * num_known:
        return _DISTINCT
    return CategoricalFeature.fit(name, column)
