"""What a finished run on a table leaves: a model that takes raw rows, and how well it predicts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from onward.checkpoint.content import Content
from onward.tracking import markdown
from onward.tracking.models import ServedModel
from train.tabular import figures
from train.tabular.data.columns import numbers
from train.tabular.data.dataset import Dataset
from train.tabular.data.prepare import Preprocessing
from train.tabular.options import Config
from train.tabular.predictor import Predictor

LOADER = "train.tabular.pyfunc"


def predictor_of(content: Content, preprocessing: Preprocessing) -> Predictor:
    """Return the model of a checkpoint.

    Args:
        content: The checkpoint.
        preprocessing: What was fitted for the run.

    Raises:
        CheckpointDamaged: The weights do not fit the options.
    """
    return Predictor(preprocessing, Config.from_dict(content.config), content.parts["model"])


class TableModel(NamedTuple):
    """What makes the model of a checkpoint.

    Args:
        preprocessing: What was fitted for the run.
        sample: Some raw rows, as an example of what the model takes.
    """

    preprocessing: Preprocessing
    sample: pa.Table

    def model(self, content: Content, folder: Path) -> ServedModel:
        """Write the model of a checkpoint to a folder, for `LOADER`."""
        predictor_of(content, self.preprocessing).save(folder)
        target = markdown.code(self.preprocessing.target)
        return ServedModel(
            f"takes raw rows, predicts {target}.",
            LOADER,
            tuple(self.sample.column_names),
            _example(self.sample) if self.sample.num_columns else None,
            "regressor",
            reads_tables=True,
        )


def predictions(content: Content, dataset: Dataset) -> Mapping[str, bytes]:
    """Return pictures of a checkpoint's predictions of the validation rows: name to PNG."""
    predictor = predictor_of(content, dataset.preprocessing)
    predicted, target = predictor.predict_features(dataset.val.features), dataset.val.target
    title = figures.title_of(dataset.preprocessing.target, len(target), content.epoch)
    return {
        "predicted": figures.predicted_against_true(predicted, target, title),
        "residuals": figures.residuals(predicted, target, title),
    }


def _example(sample: pa.Table) -> Any:
    """Return the rows as JSON can hold them: times of day, durations and decimals as numbers."""
    for i, field in enumerate(sample.schema):
        is_time = pa.types.is_time(field.type) or pa.types.is_duration(field.type)
        if is_time or pa.types.is_decimal(field.type):
            values = pa.array(numbers(sample[field.name]), from_pandas=True)
            sample = sample.set_column(i, field.name, values)
    return _without_index(sample)


def _without_index(sample: pa.Table) -> Any:
    """Return a DataFrame of all the columns: pandas' notes would make an index of some.

    Its other notes are kept, such as on whole numbers with gaps, if they are sound.
    """
    try:
        notes = sample.schema.pandas_metadata
        columns = [
            {**column, "name": column["name"] or column["field_name"]}  # an index may have no name
            for column in notes["columns"]
            if not column["numpy_type"].startswith("period")
        ]
        notes = {**notes, "index_columns": [], "columns": columns}
        return sample.replace_schema_metadata({"pandas": json.dumps(notes)}).to_pandas()
    except (ValueError, TypeError, KeyError, AttributeError):  # none, or not pandas' own
        return sample.replace_schema_metadata(None).to_pandas()
