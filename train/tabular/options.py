"""The options of the table: what is read, and the shape of the model."""

from __future__ import annotations

import dataclasses

from onward.options.declare import DATA, OnResume, option
from onward.options.run_options import RunOptions
from train.loop_options import LoopOptions

FORK, NEVER = OnResume.FORK, OnResume.NEVER


@dataclasses.dataclass(frozen=True, kw_only=True)
class TabularOptions:
    """The table, its split, and the model for it."""

    hidden_size: int = option(
        192, "Width of the hidden layers.", "Model", minimum=1, on_resume=NEVER
    )
    num_layers: int | None = option(
        None,
        "Number of hidden layers, beside a linear path; default: 3, or 0 where the table has at "
        "least as many columns as rows to train on.",
        "Model",
        minimum=0,
        maximum=64,
        on_resume=NEVER,
    )
    dropout: float | None = option(
        None,
        "Part of the hidden units dropped in training; default: by the number of rows, from 0.5 "
        "for hundreds to 0 for many thousands.",
        "Model",
        minimum=0,
        maximum=0.95,
        on_resume=FORK,
    )
    data: str = option(
        "diamonds",
        "The table: a path to CSV or TSV (also .gz), Excel (.xlsx), Parquet (file or folder) or "
        ".npz, or 'diamonds', which is shipped.",
        "Data",
        on_resume=FORK,
        by_tag=False,
        covers=DATA,
    )
    target: str | None = option(
        None,
        "Column to predict; required for a table of your own.",
        "Data",
        on_resume=NEVER,
        covers=DATA,
    )
    drop: tuple[str, ...] = option(
        (),
        "Columns to leave out, separated by commas (leaks, keys).",
        "Data",
        on_resume=NEVER,
        covers=DATA,
    )
    keep_index: bool = option(
        False,
        "Take a saved pandas index for a feature too; default: it is left out, as a row number.",
        "Data",
        on_resume=NEVER,
        covers=DATA,
    )
    odd_values: str = option(
        "refuse",
        "Where a column of a CSV or Excel file is numbers or dates but for a few values: refuse "
        "the table, or let such values count as missing, or leave the column text.",
        "Data",
        choices=("refuse", "missing", "text"),
        on_resume=NEVER,
        covers=DATA,
    )
    val_fraction: float = option(
        0.2,
        "Part of the rows kept for validation.",
        "Data",
        minimum=0.01,
        maximum=0.9,
        on_resume=FORK,
        covers=DATA,
    )
    split_seed: int = option(
        0,
        "Seed of the split into training and validation rows.",
        "Data",
        minimum=0,
        maximum=2**63 - 1,
        on_resume=FORK,
        covers=DATA,
    )
    target_scale: str = option(
        "auto",
        "Scale the target is trained on: linear, log, or auto (log for a skewed positive "
        "target); metrics are always on the original scale.",
        "Data",
        choices=("auto", "linear", "log"),
        on_resume=NEVER,
        covers=DATA,
    )
    upload_data: str = option(
        "auto",
        "Whether the preprocessed data goes to the run's artifacts, so that a resume elsewhere "
        "needs nothing else: yes, no, auto (up to 1 GiB).",
        "Data",
        choices=("auto", "yes", "no"),
        by_tag=False,
        covers=DATA,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TabularOptions, LoopOptions, RunOptions):
    """All options of a run that is trained on a table."""
