"""A table made ready: read, split, preprocessed.

Shapes: N rows, D numeric features, C categorical features.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onward.errors import DataError, UsageError
from onward.words.language import _
from train.tabular.data import prepare as preparation
from train.tabular.data.fitting import Columns, Work, fit, target_values, transform
from train.tabular.data.parquet import BLOCK_ROWS
from train.tabular.data.prepare import Features, Preprocessing, listed
from train.tabular.data.recognise import recognised
from train.tabular.data.scratch import Arranged, Scratch
from train.tabular.data.source import InMemory, Kept, Source
from train.tabular.data.table import Raw, index_columns, locate, open_parquet, raw_sha256, read_raw
from train.tabular.options import Config

_SAMPLE_ROWS = 5
_DEFAULT_TARGETS = {"diamonds": "price"}


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some rows, ready to train on or to be judged by.

    Shape:
        features.numeric: float32 [N, D]
        features.categorical: integers [N, C], of the smallest type
        target: float64 [N], on its own scale
    """

    features: Features
    target: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.target)

    @property
    def num_bytes(self) -> int:
        """What their arrays take."""
        arrays = (self.features.numeric, self.features.categorical, self.target)
        return sum(array.nbytes for array in arrays)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Everything about the data that a run needs; it can be saved and loaded whole.

    Args:
        name: The table's short name.
        source: Where the raw table was read, absolute.
        fingerprint: Hash of all that decides the arrays; see `source_fingerprint`.
        preprocessing: What was fitted on the training rows, or taken from a run that was forked.
        train: The training rows.
        val: The validation rows.
        report: Plain sentences for the log: rows, columns left out and why, target scale.
        sample: The first raw rows, of the columns that are used: what a prediction is asked with.
            Without columns where an older version prepared the data.
        folder: Where its two files lie on this disk, if they do.
    """

    name: str
    source: str
    fingerprint: str
    preprocessing: Preprocessing
    train: Rows
    val: Rows
    report: tuple[str, ...]
    sample: pa.Table = dataclasses.field(default_factory=lambda: pa.table({}))
    folder: Path | None = dataclasses.field(default=None, compare=False)


def source_fingerprint(config: Config, preprocessing: Preprocessing | None = None) -> str:
    """Return the hash of all that decides the arrays: bytes, options, and code.

    The table's name and place are no part of it.

    Args:
        config: The options; those of the group Data count.
        preprocessing: A fitted one that is to be used in place of a new one.

    Raises:
        DataNotFound: The table is not there.
        DataError: It cannot be read.
    """
    # A column that is left out counts as one that was dropped, and an option only where it is no
    # default: data that older versions prepared keeps its fingerprint, if it would be the same.
    left_out = {*config.drop, *_index_of(config, preprocessing)}
    parts = {
        "version": preparation.VERSION,
        "raw": raw_sha256(config.data),
        "target": _target_of(config),
        "drop": sorted(left_out),
        "val_fraction": config.val_fraction,
        "split_seed": config.split_seed,
        "target_scale": config.target_scale,
        "preprocessing": preprocessing and preprocessing.to_dict(),
    }
    if config.odd_values != "refuse":
        parts["odd_values"] = config.odd_values
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def is_source_of(config: Config, fingerprint: str) -> bool:
    """Tell whether data of that fingerprint is made of the table; older versions kept an index."""
    kept = (config, config.replace(keep_index=True))
    return any(source_fingerprint(one) == fingerprint for one in kept)


def prepare(
    config: Config,
    preprocessing: Preprocessing | None = None,
    *,
    fingerprint: str | None = None,
    folder: Path | None = None,
) -> Dataset:
    """Read the table, split it, and preprocess it.

    Of Parquet, and of a large CSV, some rows are in memory at a time, and of what is made of it
    some parts; tables of other kinds are read whole.

    Args:
        config: The options; those of the group Data count.
        preprocessing: Use this fitted one, such as a forked run's; default: fit a new one to the
            training rows.
        fingerprint: That of `source_fingerprint`, where it is known already.
        folder: Where on the disk there is room for what is made; default: the system's for
            temporary files.

    Raises:
        DataNotFound: The table is not there.
        DataError: It cannot be read, or cannot be trained on.
        UsageError: The options contradict `preprocessing`.
        OSError: The disk is full.
    """
    scratch = Scratch(folder)
    source, target, index, told = _open(config, preprocessing, scratch)
    targets = target_values(source, target, scratch)
    has_target = np.isfinite(targets)
    num_dropped = int(len(targets) - has_target.sum())
    if num_dropped:
        source, targets = Kept(source, has_target), targets[has_target]
    if len(targets) < 2:
        raise DataError(
            _(
                "data '{data}' has {num_rows} rows with a value in target '{target}': "
                "at least 2 are needed, to train on and to validate"
            ).format(data=config.data, num_rows=len(targets), target=target)
        )
    order, num_val = _split_order(len(targets), config.val_fraction, config.split_seed, scratch)
    work = Work(source, targets, order[num_val:], scratch)
    if preprocessing is None:
        fitted, columns = fit(
            work, target=target, drop=config.drop, index=index, target_scale=config.target_scale
        )
    else:
        fitted = preprocessing
        _check_agrees(config, target, fitted)
        columns = transform(work, fitted)
    scratch.clear()
    pa.default_memory_pool().release_unused()  # what it keeps of the blocks that were decoded
    val, train = _arranged(columns, targets, order, num_val, scratch)
    path = locate(config.data)
    return Dataset(
        name=path.name.split(".")[0] or path.name,
        source=str(path),
        fingerprint=fingerprint or source_fingerprint(config, preprocessing),
        preprocessing=fitted,
        train=train,
        val=val,
        report=(
            f"{len(targets):,} rows: {len(train):,} to train on, {len(val):,} to validate on.",
            *([f"{num_dropped:,} rows without a value in '{target}' dropped."] * (num_dropped > 0)),
            *told,
            *fitted.report(),
        ),
        sample=_sample(source, fitted),
    )


def _open(
    config: Config, preprocessing: Preprocessing | None, scratch: Scratch
) -> tuple[Source, str, list[str], tuple[str, ...]]:
    """Return the rows, the target, the index to leave out, and sentences on how they are read."""
    parquet = None if config.odd_values == "missing" else open_parquet(config.data)
    if parquet is not None:
        target = _require_target(config, parquet.rows.schema.names)
        return parquet.rows, target, _index_of(config, preprocessing), parquet.told
    raw = read_raw(config.data, _text_columns(preprocessing), scratch)
    target = _require_target(config, raw.table.column_names)
    index = _index_of(config, preprocessing)
    as_text = {*config.drop, *index, *_text_columns(preprocessing)}
    table, notes = _recognised(config, raw, target, as_text)
    return InMemory(table), target, index, (*raw.told, *notes)


def _arranged(
    columns: Columns,
    targets: NDArray[np.float64],
    order: NDArray[np.int64],
    num_first: int,
    scratch: Scratch,
) -> tuple[Rows, Rows]:
    """Return the rows in an order: so many of the first ones, and the others."""
    codes = np.result_type(np.uint8, *columns.categorical)
    shapes: tuple[tuple[list[NDArray[Any]], Any], ...]
    shapes = ((columns.numeric, np.float32), (columns.categorical, codes), ([targets], np.float64))
    arranged = Arranged(order, [(len(some), kind) for some, kind in shapes], scratch)
    for start in range(0, len(order), BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, len(order))
        block = [np.empty((stop - start, len(some)), kind) for some, kind in shapes]
        for rows, (some, _kind) in zip(block, shapes, strict=True):
            for i, column in enumerate(some):
                rows[:, i] = column[start:stop]
        arranged.add(*block)
    numeric, categorical, target = arranged.finish()
    first, others = (
        Rows(Features(numeric[part], categorical[part]), target[part, 0])
        for part in (slice(None, num_first), slice(num_first, None))
    )
    return first, others


def _split_order(
    num_rows: int, val_fraction: float, seed: int, scratch: Scratch
) -> tuple[NDArray[np.int64], int]:
    """Return the row numbers as they are drawn, and how many of the first ones validate."""
    order: NDArray[np.int64] = scratch.array(num_rows, np.int64)
    order[:] = np.argsort(np.random.PCG64(seed).random_raw(num_rows), kind="stable")
    return order, min(max(round(num_rows * val_fraction), 1), num_rows - 1)


def split(
    num_rows: int, val_fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the row numbers to train on and those to validate on, at least one of each.

    Args:
        num_rows: Number of rows, at least 2.
        val_fraction: Part of the rows to validate on, in (0, 1).
        seed: Seed of the permutation; the same seed gives the same rows, whatever the version
            of NumPy (the raw stream of a bit generator is fixed, `permutation` is not).

    Shape:
        int64 [N_train], int64 [N_val]
    """
    order, num_val = _split_order(num_rows, val_fraction, seed, Scratch())
    return order[num_val:], order[:num_val]


def _text_columns(preprocessing: Preprocessing | None) -> list[str]:
    """Return the columns that are text, or that no-one looks at, where that is decided already."""
    return preprocessing.text_columns if preprocessing else []


def _index_of(config: Config, preprocessing: Preprocessing | None) -> list[str]:
    """Return the columns to leave out as row numbers; what is fitted already has decided it."""
    if config.keep_index or preprocessing is not None:
        return []
    return [name for name in index_columns(config.data) if name != _target_of(config)]


def _recognised(
    config: Config, raw: Raw, target: str, as_text: set[str]
) -> tuple[pa.Table, list[str]]:
    if raw.has_types and config.odd_values != "missing":
        return raw.table, []
    return recognised(raw.table, config.data, target, config.odd_values, as_text)


def _sample(source: Source, preprocessing: Preprocessing) -> pa.Table:
    used = [name for name in source.schema.names if name in preprocessing.columns]
    return source.head(used, _SAMPLE_ROWS).combine_chunks()


def _target_of(config: Config) -> str | None:
    return config.target or _DEFAULT_TARGETS.get(config.data)


def _require_target(config: Config, names: list[str]) -> str:
    target = _target_of(config)
    if target is None:
        raise DataError(
            _("data '{data}' needs a target: pass target=<column>, one of {columns}").format(
                data=config.data, columns=listed(names)
            )
        )
    if target in config.drop:
        raise UsageError(
            _("target '{target}' is also in drop={drop}").format(
                target=target, drop=",".join(config.drop)
            )
        )
    return target


def _check_agrees(config: Config, target: str, preprocessing: Preprocessing) -> None:
    scale = preprocessing.scale.kind
    dropped = preprocessing.columns & set(config.drop)
    if target != preprocessing.target:
        wrong = _("target={target} was given, it predicts '{own}'").format(
            target=target, own=preprocessing.target
        )
    elif config.target_scale not in ("auto", scale):
        wrong = _("target_scale={scale} was given, its scale is {own}").format(
            scale=config.target_scale, own=scale
        )
    elif dropped:
        wrong = _("drop={drop} was given, it uses {columns}").format(
            drop=",".join(config.drop), columns=listed(sorted(dropped))
        )
    else:
        return
    raise UsageError(
        _("the model's preprocessing is fixed: {wrong}. Leave the option out").format(wrong=wrong)
    )
