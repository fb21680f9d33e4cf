"""`train list`: the runs that can be resumed, and the checkpoints of one run."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from train import environment
from train.checkpoint.manifest import CHECKPOINT_FILE
from train.checkpoint.policy import find_best
from train.checkpoint.spool import RunFolder
from train.checkpoint.store import ROOT
from train.commands import train_command
from train.heartbeat import vanished_at
from train.metrics import MONITOR
from train.source import find_run, open_store
from train.tracking import EPOCH_TAG, OPTIONS_TAG, RunRecord, Tracking

Row = dict[str, Any]

MIN_WIDTH = 130


def run_rows(tracking: Tracking) -> list[Row]:
    """Return one row for each run of the experiment that has a checkpoint, newest first."""
    return [_run_row(record) for record in tracking.search_runs(tracking.experiment_id())]


def _run_row(record: RunRecord) -> Row:
    try:
        epochs = json.loads(record.tags[OPTIONS_TAG])["epochs"]
    except (KeyError, ValueError, TypeError):
        epochs = None
    epoch = record.tags.get(EPOCH_TAG, "")
    return {
        "run_id": record.run_id,
        "name": record.name,
        "status": record.status,
        "epoch": int(epoch) if epoch.isdecimal() else None,
        "epochs": epochs,
        f"best_{MONITOR}": record.metrics.get(f"best_{MONITOR}"),
        "attempts": record.attempts,
        "started": record.start_time_ms / 1000,
        "vanished": vanished_at(record),
    }


def checkpoint_rows(tracking: Tracking, run_id: str) -> list[Row]:
    """Return one row for each checkpoint of the run, oldest first.

    Costs three calls to the server, and one for each checkpoint not yet in the index.
    """
    record = find_run(tracking, run_id)
    folder = RunFolder(environment.run_folder(tracking.uri, record.run_id))
    manifests = open_store(tracking, record, folder).list()
    best = find_best(manifests)
    return [
        {
            "epoch": manifest.epoch,
            "step": manifest.step,
            "epoch_step": manifest.epoch_step,
            "val_loss": manifest.metrics.get("val_loss"),
            MONITOR: manifest.score,
            "best": manifest == best,
            "latest": manifest == manifests[-1],
            "kept": manifest.kept,
            "attempt": manifest.attempt,
            "bytes": manifest.bytes,
            "created": datetime.fromisoformat(manifest.created).timestamp(),
            "path": f"{ROOT}/{manifest.name}/{CHECKPOINT_FILE}",
        }
        for manifest in manifests
    ]


def show(rows: list[Row], run_id: str | None, as_json: bool) -> None:
    """Print the rows as a table, or as JSON with times in seconds since 1970."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    console = make_console()
    if not rows:
        what = f"run '{run_id}' has no checkpoint" if run_id else "no run here has a checkpoint"
        console.print(what, markup=False, highlight=False)
        return
    console.print(_checkpoint_table(rows) if run_id else _run_table(rows))
    options: dict[str, Any] = {"resume_run": run_id or rows[0]["run_id"]}
    if rows[0].get("status") == "FINISHED":
        options["epochs"] = 2 * (rows[0]["epoch"] or 1)
    hint = f"resume: {train_command(options)}"
    console.print(hint, markup=False, highlight=False, soft_wrap=True)


def make_console() -> Console:
    """Return a console for tables: no cell is cut, a narrow terminal breaks the lines itself."""
    console = Console()
    console.width = max(console.width, MIN_WIDTH)
    return console


def _run_table(rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("run", "status", "epoch", "best corr", "started", "name"):
        table.add_column(heading, no_wrap=True, overflow="fold" if heading == "run" else "ellipsis")
    for row in rows:
        table.add_row(
            row["run_id"],
            f"vanished {_age(row['vanished'])}" if row["vanished"] else row["status"],
            "/".join("?" if n is None else str(n) for n in (row["epoch"], row["epochs"])),
            _number(row[f"best_{MONITOR}"]),
            _age(row["started"]),
            row["name"],
        )
    return table


def _checkpoint_table(rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("epoch", "step", "val loss", "corr", "", "size", "age", "path"):
        table.add_column(heading, no_wrap=heading != "path", overflow="fold")
    for row in rows:
        marks = [mark for mark in ("best", "latest", "kept") if row[mark]]
        table.add_row(
            f"{row['epoch']} + {row['epoch_step']} steps"
            if row["epoch_step"]
            else str(row["epoch"]),
            str(row["step"]),
            _number(row["val_loss"]),
            _number(row[MONITOR]),
            " ".join(marks),
            f"{row['bytes'] / 1e6:.1f} MB",
            _age(row["created"]),
            row["path"],
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5f}"


def _age(timestamp: float) -> str:
    """Return how long ago that was, in the largest unit that makes sense."""
    seconds = max(0.0, time.time() - timestamp)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
