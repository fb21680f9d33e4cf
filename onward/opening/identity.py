"""What a run says of itself in MLflow: options, identity, dataset, and the prepared data."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from onward.errors import StoreUnavailable
from onward.monitor import UNDECLARED, Monitor
from onward.run.subject import UNNAMED, Subject, data_files
from onward.system import environment, git, hardware
from onward.system.files import atomic_write, size_in_words
from onward.tracking.client import Tracking
from onward.tracking.names import (
    CODE_TAG,
    DATA_TAG,
    FINGERPRINT_TAG,
    HARDWARE_TAG,
    MACHINE_TAG,
    MONITOR_TAG,
    OPTIONS_TAG,
    TASK_TAG,
    VERSION_TAG,
)
from onward.tracking.record import RunRecord
from onward.tracking.ui import mark_experiment
from onward.words.language import _
from onward.words.redact import redact

log = logging.getLogger(__name__)


def describe(tracking: Tracking, subject: Subject, record: RunRecord) -> None:
    """Log what a new run is: options, dataset, and the prepared data itself."""
    mark_experiment(tracking, record.experiment_id, subject.monitor)
    tracking.log_params(record.run_id, subject.params(), known=record.params)
    info = subject.dataset_info()
    if info is not None:
        tracking.log_dataset(
            record.run_id, info.name, subject.data_fingerprint, info.source, info.columns,
            info.profile,
        )  # fmt: skip
    keep_data(tracking, subject, record)


def keep_data(tracking: Tracking, subject: Subject, record: RunRecord) -> None:
    """Store the prepared data with the run, as far as what it trains wants it to be."""
    subject.keep(data_files(tracking.artifacts(record)))


def machine_tags() -> dict[str, str]:
    """Return what is said of the machine and the code of an attempt."""
    versions = {f"{VERSION_TAG}{k}": v for k, v in environment.versions().items()}
    return {
        **versions,
        MACHINE_TAG: environment.hostname(),
        HARDWARE_TAG: hardware.in_words(environment.num_cpus()),
        CODE_TAG: git.code_version() or "unknown",
    }


def upload_code(tracking: Tracking, run_id: str, folder: Path, subject: Subject) -> None:
    """Store what was changed in the code since its commit, by way of files in `folder`.

    Args:
        tracking: The server.
        run_id: The run that stands for the attempt.
        folder: Where there is room for them.
        subject: What is trained; its code is stored too. Its option `upload_diff` may say no.
    """
    if subject.options.upload_diff != "yes":
        return
    diff = git.code_diff()
    files = {**({"diff.patch": diff} if diff else {}), **subject.code()}
    for name, content in files.items():
        if not _upload_code(tracking, run_id, folder / name, content):
            return
    if diff:
        log.info(
            _("The code is not as it was committed: what was changed is stored as code/diff.patch "
              "(files: %d, %s; upload_diff=no stores nothing)"),
            diff.count(b"diff --git "), size_in_words(len(diff)),
        )  # fmt: skip


def _upload_code(tracking: Tracking, run_id: str, file: Path, content: bytes) -> bool:
    atomic_write(file, lambda out: out.write(content))
    try:
        tracking.artifacts(tracking.get_run(run_id)).upload(file, "code")
        return True
    except StoreUnavailable as error:  # where the store is away, what follows is told of it
        log.warning(_("What was changed in the code is not stored with the run: %s"), error)
        return False
    finally:
        file.unlink()


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


def identity(subject: Subject, monitor: Monitor | None = None) -> dict[str, str]:
    """Return the tags by which a run is known as one of ours, and found again.

    Args:
        subject: What it trains.
        monitor: The metric that it is judged by; default: the subject's.
    """
    monitor = monitor or subject.monitor
    fingerprint, options = subject.data_fingerprint, subject.options
    tags = {
        FINGERPRINT_TAG: options.fingerprint(subject.name, fingerprint),
        OPTIONS_TAG: json.dumps(options.to_dict()),
        DATA_TAG: fingerprint,
    }
    if monitor != UNDECLARED:
        tags[MONITOR_TAG] = str(monitor)
    if subject.name != UNNAMED:
        tags[TASK_TAG] = subject.name
    return tags
