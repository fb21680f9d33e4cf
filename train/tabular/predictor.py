"""Raw rows in, predictions out: a trained model with the preprocessing it was trained behind.

Nothing here imports MLflow, and nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from onward.errors import CheckpointDamaged, DataError
from onward.system.files import read_json
from onward.system.streams import private_copy
from onward.system.tensors import load_tensors
from onward.words.language import _
from train.tabular.data.columns import CALENDAR_PARTS, kind_of, texts, without_missing_words
from train.tabular.data.prepare import Features, Preprocessing
from train.tabular.data.recognise import as_dates, as_numbers
from train.tabular.model import TabularMLP, predict
from train.tabular.options import Config

if TYPE_CHECKING:
    import pandas

WEIGHTS_FILE = "weights.pth"
RECIPE_FILE = "recipe.json"
MAX_RECIPE_BYTES = 64 << 20  # as of the prepared data's record, from which it is made
_FORMAT_VERSION = 1


class Predictor:
    """A model that takes raw rows.

    Args:
        preprocessing: What was fitted when the model was trained.
        config: The options of the run: the model's shape and its arithmetic.
        weights: The model's `state_dict`.
        device: Where to compute.

    Raises:
        CheckpointDamaged: The weights are not of that shape.

    Guarantees:
        The numbers do not depend on what else is predicted with a row, but for the last digits of
        float32. With the rows that validated the training, in their order, and as many threads,
        they are those of the training, bit for bit.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        config: Config,
        weights: Mapping[str, torch.Tensor],
        device: str = "cpu",
    ) -> None:
        self.preprocessing, self.config = preprocessing, config
        self._device = torch.device(device)
        try:
            with torch.device("meta"):  # without memory: the weights are not there twice
                self._model = TabularMLP.of(preprocessing, config)
            kinds = {name: tensor.dtype for name, tensor in self._model.state_dict().items()}
            typed = {name: t.to(kinds.get(name, t.dtype)) for name, t in weights.items()}
            self._model.load_state_dict(typed, assign=True)
        except (RuntimeError, TypeError, AttributeError, ValueError, AssertionError) as error:
            raise CheckpointDamaged(
                "of the model", f"it does not fit its options: {' '.join(str(error).split())[:300]}"
            ) from error
        self._model.to(self._device).eval()

    def predict(self, rows: pa.Table | pandas.DataFrame) -> NDArray[np.float64]:
        """Return the prediction for each row, on the target's own scale.

        Args:
            rows: The columns that the model was trained on; others are not looked at. Values may
                be missing, and categories may be new.

        Shape:
            float64 [N]

        Raises:
            DataError: Columns are missing, or hold something else than in training.
        """
        table = rows if isinstance(rows, pa.Table) else self._table(rows)
        return self.predict_features(self.preprocessing.transform(self._readable(table)))

    def predict_features(self, features: Features) -> NDArray[np.float64]:
        """Return the prediction for each row of arrays that are prepared already. Shape [N]."""
        numeric, categorical = (
            torch.from_numpy(a).to(self._device) for a in (features.numeric, features.categorical)
        )
        with torch.no_grad():
            encoded = predict(self._model, numeric, categorical, self.config.precision)
        return self.preprocessing.scale.decode(encoded.cpu().numpy())

    def _readable(self, table: pa.Table) -> pa.Table:
        """Return the table with dates as dates where they came as text, as JSON has them.

        Where odd values counted as missing in training, they do here.
        """
        dates = {f.column for f in self.preprocessing.numeric if f.part in CALENDAR_PARTS}
        numeric = self._numeric_columns - dates
        odd_are_missing = self.config.odd_values == "missing"
        for i, name in enumerate(table.column_names):
            column = table[name]
            if name in dates:
                table = table.set_column(i, name, _dates(name, column, odd_are_missing))
            elif name in numeric and odd_are_missing and kind_of(column) == "text":
                table = table.set_column(i, name, as_numbers(column))
        return table

    @property
    def _numeric_columns(self) -> set[str]:
        return {feature.column for feature in self.preprocessing.numeric}

    def _table(self, rows: pandas.DataFrame) -> pa.Table:
        columns = self.preprocessing.columns
        used = [name for name in rows.columns if name in columns]
        arrays = []
        for name in used:
            values = rows[name]
            if str(values.dtype).startswith("period["):
                values = values.dt.to_timestamp()
            elif name in self._numeric_columns:
                values = _of_one_kind(values)
            try:
                arrays.append(pa.array(values, from_pandas=True))
            except pa.ArrowException as error:
                reason = str(error).splitlines()[0]
                raise DataError(
                    _("column '{name}' holds values of several kinds: {reason}").format(
                        name=name, reason=reason
                    )
                ) from error
        # A table without columns could not say how many rows it has; `transform` refuses it.
        return pa.table(dict(zip(used, arrays, strict=True)))

    def save(self, folder: Path) -> None:
        """Write it to `folder`, for `load`: the weights, and the rest as JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self._model.state_dict(), folder / WEIGHTS_FILE)
        recipe = {
            "format_version": _FORMAT_VERSION,
            "config": self.config.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
        }
        (folder / RECIPE_FILE).write_text(json.dumps(recipe, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Predictor:
        """Read what `save` wrote; of the weights' file nothing but tensors.

        Raises:
            CheckpointDamaged: The weights cannot be read, or do not fit.
        """
        title = f"'{folder}'"
        try:
            recipe = read_json(folder / RECIPE_FILE, MAX_RECIPE_BYTES)
            if recipe["format_version"] != _FORMAT_VERSION:
                raise CheckpointDamaged(
                    title,
                    f"it has format version {recipe['format_version']}, not {_FORMAT_VERSION}",
                )
            preprocessing = Preprocessing.from_dict(recipe["preprocessing"])
            config = Config.from_dict(recipe["config"])
        except CheckpointDamaged:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            found = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            told = _("its {file} cannot be read ({found})")
            raise CheckpointDamaged(title, told.format(file=RECIPE_FILE, found=found)) from error
        # A copy: in a local store others may change, or cut off, what is being read.
        with private_copy(folder / WEIGHTS_FILE) as copy:
            weights = load_tensors([copy], f"'{folder / WEIGHTS_FILE}'")
        return cls(preprocessing, config, weights)


def _of_one_kind(values: pandas.Series) -> pandas.Series:
    """Return numbers among words, as JSON has them for 1.5 and NA, as words; else the same."""
    if values.dtype != object:
        return values
    kinds = set(map(type, values)) - {type(None)}
    is_mixed = str in kinds and all(
        issubclass(k, str | int | float) and k is not bool for k in kinds
    )
    return values.map(str, na_action="ignore") if is_mixed else values


def _dates(name: str, column: pa.ChunkedArray, odd_are_missing: bool) -> pa.ChunkedArray:
    """Return a column as dates; as it is where that is not possible: `transform` says why."""
    kind = kind_of(column)
    if kind == "text":
        column = without_missing_words(pc.utf8_trim_whitespace(texts(column)))
    if column.null_count == len(column):  # pandas has a type for it: that of numbers
        return pa.chunked_array([pa.nulls(len(column))])
    if kind == "numeric":  # since when, and in what, nobody can tell
        reason = _("not a date: {reason}").format(reason=column.type)
        raise DataError(
            _("column '{name}' is not what it was when fitted: {reason}").format(
                name=name, reason=reason
            )
        )
    if kind != "text":
        return column
    for zone in (None, "UTC"):  # without an offset from UTC, or with one
        with contextlib.suppress(pa.ArrowException):
            return column.cast(pa.timestamp("us", zone))
    dates = as_dates(column)
    return dates if odd_are_missing or dates.null_count == column.null_count else column
