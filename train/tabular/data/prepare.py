"""Preprocessing: fitted on training rows, kept as plain JSON, applied to any raw rows.

Shapes: N rows, D numeric features, C categorical features.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onward.errors import DataError
from onward.words.language import _
from train.tabular.data.columns import kind_of, read_parts
from train.tabular.data.features import CategoricalFeature, NumericFeature
from train.tabular.data.recognise import first_odd
from train.tabular.data.scale import TargetScale

VERSION: Final = 1  # raised whenever the same table would give other arrays

_NAMELESS: Final = "Unnamed: 0"  # as a first column without a name is called; once it was ""


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

    def transform(self, table: pa.Table) -> Features:
        """Turn raw rows into the arrays the model takes.

        Args:
            table: Any rows with the columns that were fitted; others are not looked at.

        Raises:
            DataError: Columns are missing, or hold something else than when they were fitted.
        """
        names = self.names_in(table.column_names)
        numeric = np.empty((table.num_rows, len(self.numeric)), dtype=np.float32)
        categorical = np.empty((table.num_rows, len(self.categorical)), dtype=self.code_type)
        for name, places in self.numeric_of_columns.items():
            column = table[names[name]]
            with told_of(name, column):
                parts = read_parts(column, [self.numeric[i].part for i in places])
            for i, values in zip(places, parts, strict=True):
                numeric[:, i] = self.numeric[i].of(values)
        for i, category in enumerate(self.categorical):
            column = table[names[category.column]]
            with told_of(category.column, column):
                categorical[:, i] = category.transform(column)
        return Features(numeric, categorical)

    def names_in(self, names: Sequence[str]) -> dict[str, str]:
        """Return what each of the columns that were fitted is called in a table.

        Args:
            names: The table's columns.

        Raises:
            DataError: Some are missing.
        """
        known = {name: name for name in names}
        if _NAMELESS in known:
            known = {"": _NAMELESS} | known
        missing = sorted(self.columns - set(known))
        if missing:
            raise DataError(
                _(
                    "the table lacks {missing}, which the preprocessing was fitted on; "
                    "it has {columns}"
                ).format(missing=listed(missing), columns=listed(names))
            )
        return {name: known[name] for name in self.columns}

    @property
    def numeric_of_columns(self) -> dict[str, list[int]]:
        """The raw columns of numbers and dates, to the numbers of the features made of each."""
        found: dict[str, list[int]] = {}
        for i, feature in enumerate(self.numeric):
            found.setdefault(feature.column, []).append(i)
        return found

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
            for reason, names in grouped(self.left_out).items()
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
def told_of(name: str, column: pa.ChunkedArray, first_row: int = 0) -> Iterator[None]:
    """Tell of which column it is that it cannot be transformed, and which row does not fit.

    Args:
        name: The column's name.
        column: Some of its rows.
        first_row: The number of the first of them, from 0.
    """
    try:
        yield
    except DataError as error:
        reason = str(error)
        if kind_of(column) == "text":
            row, value = first_odd(column)
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


def grouped(left_out: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the reasons why columns are left out, to their names."""
    groups: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        groups.setdefault(reason, []).append(name)
    return groups
