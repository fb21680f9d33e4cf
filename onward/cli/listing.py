"""`train list`: the runs that can be resumed, and the checkpoints of one run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onward.attempts.heartbeat import vanished_at
from onward.checkpoint.manifest import CHECKPOINT_FILE, ROOT
from onward.checkpoint.policy import find_best
from onward.metrics import STEP, UNITS, History, Point, in_words, logged_keys
from onward.monitor import Monitor
from onward.opening.source import find_store, require_committed
from onward.options.command import train_command
from onward.options.declare import to_text
from onward.system.files import size_in_words
from onward.system.untrusted import told
from onward.tracking.client import Tracking
from onward.tracking.record import UNKNOWN, RunRecord
from onward.words.language import _
from onward.words.shell import command
from onward.words.units import in_unit

Row = dict[str, Any]

MIN_WIDTH = 130
MAX_METRICS = 3  # in the table of a run's checkpoints, beside the monitored one


def run_rows(tracking: Tracking) -> list[Row]:
    """Return one row for each run of the experiment that has a checkpoint.

    The newest, which is the one that was worked on last, comes first.
    """
    return [_run_row(record) for record in tracking.search_runs(tracking.experiment_id())]


def _run_row(record: RunRecord) -> Row:
    return {
        "run_id": record.run_id,
        "name": record.name,
        "status": record.status,
        "epoch": record.epoch,
        "epochs": record.epochs,
        "monitor": str(record.monitor),
        "unit": record.unit,
        f"best_{record.monitor.name}": record.best,
        "attempts": record.attempts,
        "started": record.started,
        "last_active": record.last_active,
        "vanished": vanished_at(record),
        "go_on": train_command(record.standing.go_on()),
    }


def checkpoint_rows(tracking: Tracking, run_id: str) -> list[Row]:
    """Return one row for each checkpoint of the run, oldest first.

    Costs three calls to the server, and one for each checkpoint not yet in the index.

    Raises:
        CheckpointNotFound: It has committed some, and none is there.
    """
    record, _folder, store = find_store(tracking, run_id)
    manifests = store.indexed()
    require_committed(record, store, manifests)
    best = find_best(manifests)
    return [
        {
            # First: whatever it is called, it hides nothing.
            **({manifest.monitor.name: manifest.score} if manifest.monitor.name else {}),
            "unit": manifest.unit,
            "metrics": dict(manifest.metrics),
            "score": manifest.score,
            "epoch": manifest.epoch,
            "step": manifest.step,
            "epoch_step": manifest.epoch_step,
            "val_loss": manifest.metrics.get("val_loss"),
            "monitor": str(manifest.monitor),
            "best": manifest == best,
            "latest": manifest == manifests[-1],
            "kept": manifest.kept,
            "attempt": manifest.attempt,
            "bytes": manifest.bytes,
            "created": datetime.fromisoformat(manifest.created).timestamp(),
            "path": f"{ROOT}/{manifest.name}/{CHECKPOINT_FILE}",
            "status": record.status,
            "go_on": train_command(record.standing.go_on()),
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
        what = (
            _("run '{run_id}' has no checkpoint")
            if run_id
            else _("no run here has a checkpoint: `{command}` trains one")
        )
        console.print(_cell(what.format(run_id=run_id, command=command("run"))))
        return
    console.print(_checkpoint_table(rows) if run_id else _run_table(rows))
    newest = rows[-1] if run_id else rows[0]
    hint = _("resume: {command}").format(command=newest["go_on"])
    console.print(told(hint), markup=False, highlight=False, soft_wrap=True)


def make_console() -> Console:
    """Return a console for tables: no cell is cut, a narrow terminal breaks the lines itself."""
    console = Console()
    console.width = max(console.width, MIN_WIDTH)
    return console


def _run_table(rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(_("run"), no_wrap=True, overflow="fold")
    names = {_monitor(row).name for row in rows}
    [one] = names if len(names) == 1 else [""]
    best = _("best {metric}").format(metric=one).rstrip()
    units = {row["unit"] for row in rows}
    counted = "/".join(in_unit(unit) for unit in UNITS if unit in units)
    for heading in (_("status"), counted, best, _("last active"), _("name")):
        table.add_column(_cell(heading), no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(
            _cell(row["run_id"]),
            _("vanished {age}").format(age=_age(row["vanished"]))
            if row["vanished"]
            else _cell(row["status"]),
            "/".join(UNKNOWN if n is None else str(n) for n in (row["epoch"], row["epochs"])),
            _cell(_best_of(row, one)),
            _age(row["last_active"]) if row["last_active"] else UNKNOWN,
            _cell(row["name"]),
        )
    return table


def _checkpoint_table(rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    monitored = _monitor(rows[-1]).name
    is_by_step = rows[-1]["unit"] == STEP
    shown = _shown_metrics(rows, monitored)
    numbers = [*([] if is_by_step else [_("epoch")]), _("step"), *shown]
    numbers = [_("val loss") if name == "val_loss" else name for name in numbers]
    for heading in (*numbers, *([monitored] if monitored else []), "", _("size"), _("age")):
        table.add_column(_cell(heading), no_wrap=True, overflow="fold")
    table.add_column(_("path"), overflow="fold")
    marks = {"best": _("best"), "latest": _("latest"), "kept": _("kept")}
    for row in rows:
        inside = _("{epoch} + {epoch_step} steps") if row["epoch_step"] else "{epoch}"
        epoch = inside.format(epoch=row["epoch"], epoch_step=row["epoch_step"])
        table.add_row(
            *([] if is_by_step else [epoch]),
            str(row["step"]),
            *(in_words(row["metrics"].get(name)) for name in shown),
            *([in_words(row["score"])] if monitored else []),
            " ".join(word for mark, word in marks.items() if row[mark]),
            size_in_words(row["bytes"]),
            _age(row["created"]),
            _cell(row["path"]),
        )
    return table


def _shown_metrics(rows: list[Row], monitored: str) -> list[str]:
    """Return the metrics that the table shows beside the monitored one."""
    logged = dict.fromkeys(key for row in rows for key in row["metrics"])
    if "val_loss" in logged or not logged:
        return [] if monitored == "val_loss" else ["val_loss"]
    keys = logged_keys(History(Point(key, 0, 0, 0.0) for key in logged))
    return [key for key in keys if key != monitored][:MAX_METRICS]


def _monitor(row: Row) -> Monitor:
    return Monitor.parse(row["monitor"])


def _best_of(row: Row, named: str) -> str:
    """Return a run's best value, with the metric's name where the heading does not tell it."""
    name = _monitor(row).name
    value = in_words(row[f"best_{name}"])
    return value if name in (named, "") else f"{value} {name}"


def show_verified(rows: list[Row], run_id: str) -> None:
    """Print what `maintenance.verify_rows` found, as a table."""
    if not rows:
        told = _("run '{run_id}' has no checkpoint").format(run_id=run_id)
        make_console().print(_cell(told))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in (_("checkpoint"), _("status"), _("size"), _("found")):
        table.add_column(heading, overflow="fold")
    for row in rows:
        style = {"ok": "green", "damaged": "bold red"}.get(row["status"], "yellow")
        size = "" if row["bytes"] is None else size_in_words(row["bytes"])
        table.add_row(_cell(row["name"]), _cell(row["status"], style), size, _cell(row["found"]))
    make_console().print(table)


def show_checkpoint(found: Row) -> None:
    """Print what `maintenance.describe` found of a checkpoint, as tables."""
    console = make_console()
    manifest = dict(found["manifest"])
    files, metrics = manifest.pop("files"), manifest.pop("metrics")
    tables = {
        _("manifest"): list(manifest.items()),
        _("files"): [
            (f["path"], f"{size_in_words(f['bytes'])}, sha256 {f['sha256']}") for f in files
        ],
        _("metrics"): [(k, "-" if v is None else f"{v:.6g}") for k, v in metrics.items()],
        _("options"): [(k, to_text(v)) for k, v in found["options"].items()],
        _("environment"): list(_flat(found["environment"])),
        _("state"): list(found["state"].items()),
    }
    for title, rows in tables.items():
        table = Table(title=title, title_justify="left", box=None, show_header=False)
        table.add_column()
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(_cell(name), _cell(value))
        console.print(table)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _cell(value: object, style: str = "") -> Text:
    """Return what a table shows of a value that others may have written: its characters."""
    return Text(told(value), style)


def _age(timestamp: float) -> str:
    """Return how long ago that was, in the largest unit that makes sense."""
    seconds = max(0.0, time.time() - timestamp)
    if seconds >= 86_400:
        return _("{number:.0f} d ago").format(number=seconds / 86_400)
    if seconds >= 3_600:
        return _("{number:.0f} h ago").format(number=seconds / 3_600)
    if seconds >= 60:
        return _("{number:.0f} min ago").format(number=seconds / 60)
    return _("{number:.0f} s ago").format(number=seconds)
