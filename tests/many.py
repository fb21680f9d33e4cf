"""Fills the store of a test's server: a run of a loop with thousands of checkpoints, many runs."""

from __future__ import annotations

import dataclasses
import datetime
import sqlite3
from pathlib import Path

import torch

import onward
from onward.checkpoint import listed
from onward.checkpoint.manifest import Manifest, parse_manifest
from onward.tracking.client import Tracking
from onward.tracking.names import INDEX_TAG

STEPS = 5000  # before the first real checkpoint, so that others can be made up before it


def train(more: int, **options) -> str:
    """Train a loop by 5,000 steps, and so many more, in this process; return the ID of its run."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    options = {"checkpoint_steps": STEPS, "checkpoint_minutes": 0, "log_model": False, **options}
    state = {"model": model, "optimizer": optimizer}
    with onward.open_run(state, **options) as run:
        for _step in run.steps(range(STEPS + more)):
            optimizer.step()
        return run.run_id


def add_checkpoints(folder: Path, run_id: str, number: int) -> None:
    """Put so many before those of a run, with their manifests but without their files.

    Args:
        folder: The server's.
        run_id: A run that `train` trained.
        number: How many, below 5,000.
    """
    root = folder / "artifacts" / "0" / run_id / "artifacts" / "checkpoints"
    real = [
        parse_manifest((p / "manifest.json").read_bytes(), p.name) for p in root.glob("global_*")
    ]
    began = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    made: list[Manifest] = []
    for step in range(1, number + 1):
        created = (began + datetime.timedelta(minutes=step)).isoformat()
        changed = {"epoch": step, "step": step, "created": created, "kept": True, "metrics": {}}
        made.append(dataclasses.replace(real[0], **changed))
        (root / made[-1].name).mkdir()
        (root / made[-1].name / "manifest.json").write_bytes(made[-1].to_json())
    text = listed.to_text(sorted([*made, *real], key=lambda manifest: manifest.order))
    (root / "index.json").write_bytes(text)
    Tracking().set_tags(run_id, {INDEX_TAG: listed.digest(text)})


def add_runs(folder: Path, run_id: str, number: int) -> None:
    """Copy a run so many times in the server's database, each FINISHED and begun before it."""
    database = sqlite3.connect(folder / "mlflow.db", timeout=60)
    with database:
        for table in ("runs", "tags", "params", "latest_metrics"):
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            cells = {name: name for name in columns} | {"run_uuid": "printf('%032x', n)"}
            if table == "runs":
                cells |= {"status": "'FINISHED'", "start_time": "start_time - 1000 * n"}
            database.execute(
                f"WITH RECURSIVE many(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM many WHERE n < ?)"
                f" INSERT INTO {table} ({', '.join(columns)})"
                f" SELECT {', '.join(cells[c] for c in columns)} FROM {table}, many"
                f" WHERE run_uuid = ?",
                [number, run_id],
            )
    database.close()
