"""Predicting the rows of a file by a run's model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from onward.errors import DataError
from onward.system import environment
from onward.system.files import PUBLIC, atomic_write
from onward.tracking.client import Tracking
from onward.words.language import _
from train.kind import TaskKind
from train.served import open_checkpoint
from train.tabular.data.prepare import listed
from train.tabular.data.table import read_raw
from train.tabular.results import TableModel, predictor_of

log = logging.getLogger(f"onward.{__name__}")


def predict_table(
    tracking: Tracking, kind: TaskKind, run_id: str, epoch: str | None, data: str
) -> pa.Table:
    """Return a table with one more column: what a checkpoint of the run predicts for each row.

    The column is named `predicted_<target>`.

    Args:
        tracking: The server.
        kind: The table.
        run_id: The run.
        epoch: Which checkpoint; see `source.pick`. Default: the best, or the newest where
            none is.
        data: The table, of any kind that can be trained on.

    Raises:
        DataError: The table is missing, cannot be read, or lacks columns.
        CheckpointError: There is no such checkpoint, or it is damaged.
    """
    opened = open_checkpoint(tracking, kind, run_id, epoch)
    model: TableModel = kind.open_model(opened.stored.options, opened.stored)
    preprocessing = model.preprocessing
    predictor = predictor_of(opened.content, preprocessing)
    # What was text in training stays text, though a column of digits looks like a number; what is
    # not used is shown as it is in the file.
    raw = read_raw(data, preprocessing.text_columns)
    table = raw.table
    for sentence in raw.told:
        log.info("%s", sentence)
    environment.set_threads(predictor.config.threads)
    name = f"predicted_{preprocessing.target}"
    if name in table.column_names:
        raise DataError(
            _("data '{data}' has a column '{name}' already").format(data=data, name=name)
        )
    return table.append_column(name, pa.array(predictor.predict(table)))


def write(table: pa.Table, to: Path | BinaryIO) -> None:
    """Write a table to an open file, or as a file that is there whole or not at all.

    A file whose name ends in .parquet is Parquet, all else CSV. Columns, such as of lists, that CSV
    cannot hold are left out, with a warning that names them.

    Raises:
        DataError: It has a column that the file cannot hold.
    """
    try:
        if isinstance(to, Path) and to.suffix.lower() == ".parquet":
            atomic_write(to, lambda file: pyarrow.parquet.write_table(table, file))
            return
        unfit = [name for name in table.column_names if not _fits_csv(table[name])]
        if unfit:
            table = table.drop_columns(unfit)
            told = _("CSV cannot hold %s: left out. `--to <name>.parquet` keeps them")
            log.warning(told, listed(unfit))
        if isinstance(to, Path):
            atomic_write(to, lambda file: pyarrow.csv.write_csv(table, file), PUBLIC)
        else:
            pyarrow.csv.write_csv(table, pa.PythonFile(to, mode="w"))
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise DataError(_("the table cannot be written: {reason}").format(reason=reason)) from error


def _fits_csv(column: pa.ChunkedArray) -> bool:
    """Tell whether CSV can hold a column: by its type, and of bytes by their values."""
    is_type = pa.types
    is_bytes = (is_type.is_binary, is_type.is_large_binary, is_type.is_fixed_size_binary)
    tried = column if any(test(column.type) for test in is_bytes) else column.slice(0, 1)
    try:
        pyarrow.csv.write_csv(pa.table({"a": tried}), pa.MockOutputStream())
    except pa.ArrowException:
        return False
    return True
