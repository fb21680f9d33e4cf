"""What a run says of itself in MLflow: options, identity, dataset, and the prepared data."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from onward.checkpoint.parts import PartSize
from onward.errors import StoreUnavailable
from onward.options.declare import options_of, to_text
from onward.options.run_options import Config
from onward.system import environment, git
from onward.system.files import atomic_write, size_in_words
from onward.tracking.artifacts import Artifacts
from onward.tracking.client import Tracking
from onward.tracking.record import DATA_TAG, FINGERPRINT_TAG, OPTIONS_TAG, RunRecord
from onward.tracking.ui import mark_experiment
from onward.words.language import _
from onward.words.redact import redact
from train.tabular.data.dataset import Dataset
from train.tabular.data.provide import cache_folder
from train.tabular.data.stored import RunFiles, upload
from train.tabular.task import TabularTask

log = logging.getLogger(__name__)


def describe(tracking: Tracking, task: TabularTask, record: RunRecord, home: Path) -> None:
    """Log what a new run is: options, dataset, and the prepared data itself."""
    dataset = task.dataset
    mark_experiment(tracking, record.experiment_id)
    tracking.log_params(record.run_id, params(task.config), known=record.params)
    preprocessing = dataset.preprocessing
    columns = {f.column: "double" for f in preprocessing.numeric}
    columns |= {f.column: "string" for f in preprocessing.categorical}
    columns[preprocessing.target] = "double"
    rows = {"train_rows": len(dataset.train), "val_rows": len(dataset.val)}
    tracking.log_dataset(
        record.run_id, dataset.name, dataset.fingerprint, redact(dataset.source), columns, rows
    )
    upload_data(tracking, task, record, home)


def upload_data(tracking: Tracking, task: TabularTask, record: RunRecord, home: Path) -> None:
    """Store the prepared data with the run, as the option `upload_data` says."""
    artifacts = tracking.artifacts(record)
    folder = task.dataset.folder or cache_folder(home, task.dataset.fingerprint)
    upload(folder, task.config.upload_data, data_files(artifacts))


def data_files(artifacts: Artifacts) -> RunFiles:
    """Return what can be done to the files of a run's `data/`."""
    part_size = PartSize()
    return RunFiles(
        put=lambda path, inside: artifacts.upload(path, f"data/{inside}".rstrip("/")),
        names=lambda inside: artifacts.list(f"data/{inside}".rstrip("/")),
        download=lambda name, to, max_bytes: artifacts.download(f"data/{name}", to, max_bytes),
        smaller=lambda refused: part_size.bytes if part_size.refused(refused) else 0,
    )


def machine_tags() -> dict[str, str]:
    """Return what is said of the machine and the code of an attempt."""
    versions = {f"train.version.{k}": v for k, v in environment.versions().items()}
    return {
        **versions,
        "train.host": environment.hostname(),
        "train.hardware": environment.hardware(),
        "train.code": git.code_version() or "unknown",
    }


def upload_diff(tracking: Tracking, run_id: str, folder: Path, wanted: str) -> None:
    """Store what was changed in the code since its commit, by way of a file in `folder`.

    Args:
        tracking: The server.
        run_id: The run that stands for the attempt.
        folder: Where there is room for the file.
        wanted: The option `upload_diff`.
    """
    diff = git.code_diff() if wanted == "yes" else b""
    if not diff:
        return
    file = folder / "diff.patch"
    atomic_write(file, lambda out: out.write(diff))
    try:
        tracking.artifacts(tracking.get_run(run_id)).upload(file, "code")
    except StoreUnavailable as error:  # where the store is away, what follows is told of it
        log.warning(_("What was changed in the code is not stored with the run: %s"), error)
        return
    finally:
        file.unlink()
    log.info(
        _("The code is not as it was committed: what was changed is stored as code/diff.patch "
          "(files: %d, %s; upload_diff=no stores nothing)"),
        diff.count(b"diff --git "), size_in_words(len(diff)),
    )  # fmt: skip


def hide_secrets(tracking: Tracking, launched: RunRecord) -> None:
    """Take the secrets out of what `mlflow run` itself has written on the run of a launch.

    Its tags tell where the project came from, with the password of that address. Its params stay,
    since MLflow writes them once: of those it is warned.
    """
    told = {k: redact(v) for k, v in launched.tags.items() if k.startswith("mlflow.")}
    changed = {k: v for k, v in told.items() if v != launched.tags[k]}
    if changed:
        tracking.set_tags(launched.run_id, changed)
    open_ = [k for k, v in launched.params.items() if redact(v) != v]
    if open_:
        log.warning(
            _("What was given as -P %s looks like a password or a token, and MLflow shows it to "
              "everybody from now on: change that password"),
            ", ".join(open_),
        )  # fmt: skip


def identity(task: TabularTask) -> dict[str, str]:
    """Return the tags by which a run is known as one of ours, and found again."""
    fingerprint = task.dataset.fingerprint
    return {
        FINGERPRINT_TAG: task.config.fingerprint(task.name, fingerprint),
        OPTIONS_TAG: json.dumps(task.config.to_dict()),
        DATA_TAG: fingerprint,
    }


def data_info(dataset: Dataset) -> dict[str, Any]:
    """Return what a checkpoint says of the data."""
    return {
        "fingerprint": dataset.fingerprint,
        "name": dataset.name,
        "train_rows": len(dataset.train),
        "val_rows": len(dataset.val),
    }


def params(config: Config) -> dict[str, str]:
    """Return every option as MLflow shows it."""
    return {name: redact(to_text(getattr(config, name))) for name in options_of(Config)}
