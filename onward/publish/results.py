"""What a finished run leaves: its best model, to be used, and figures, to be looked at."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from onward.attempts.spans import first_epochs
from onward.checkpoint.content import Content
from onward.checkpoint.manifest import Manifest
from onward.checkpoint.policy import find_best
from onward.checkpoint.store import CheckpointStore
from onward.checkpoint.transfers import retried
from onward.errors import NotOffered, StoreUnavailable, Superseded
from onward.metrics import STEP, History, logged_keys
from onward.monitor import UNDECLARED
from onward.options.run_options import RunOptions
from onward.publish import curves
from onward.publish.drawing import import_ahead
from onward.system import invocation
from onward.tracking import markdown
from onward.tracking.client import Tracking
from onward.tracking.models import (
    ServedModel,
    is_ready,
    is_registered,
    log_model,
    register_model,
)
from onward.tracking.names import CHECKPOINT_TAG, MODEL_OF_TAG, MODEL_TAG, NOTE_TAG
from onward.tracking.record import RunRecord
from onward.tracking.translate import one_line
from onward.tracking.ui import run_page
from onward.words.language import _
from onward.words.redact import redact
from onward.words.shell import command, quoted

log = logging.getLogger(__name__)

FIGURES = "figures"
MAX_CURVES = 20  # of a loop that logs what it likes


class Results(Protocol):
    """Makes of a checkpoint what a finished run leaves."""

    def figures(self, content: Content, is_best: bool) -> Mapping[str, bytes]:
        """Return pictures of how good it is: name to PNG. There may be none.

        Args:
            content: The checkpoint.
            is_best: Whether it is the run's best; else it is the last one.
        """
        ...

    def model(self, content: Content, folder: Path) -> ServedModel | None:
        """Write the model that is to be served to `folder`; None: there is none to serve."""
        ...


def publish_results(
    tracking: Tracking,
    run_id: str,
    store: CheckpointStore,
    options: RunOptions,
    find: Callable[[], Results],
    check_lease: Callable[[], object],
) -> None:
    """Log the best checkpoint of a finished run as a model, with figures; again is harmless.

    With `log_model=false` or `upload=off` nothing is.

    Nothing that goes wrong here makes a run less trained: it is told, with the command that tries
    again.

    Args:
        tracking: The server.
        run_id: The run.
        store: Its checkpoints.
        options: Its options.
        find: Returns what makes the results.
        check_lease: Raises `Superseded` once the attempt may not publish any more.

    Raises:
        StoreUnavailable: The server is away. Call again later.
        Superseded: A later attempt was claimed.
    """
    if not options.log_model or options.upload == "off":
        return
    register = options.register
    is_own_loop = invocation.script() is not None  # of whose parts nobody here can make a model
    log.info(
        _("Drawing the curves …") if is_own_loop else _("Logging the best model, and figures …")
    )
    import_ahead()
    try:
        _publish(tracking, run_id, store, find(), register, check_lease)
        return
    except Superseded:
        raise
    except StoreUnavailable as refused:
        tracking.probe()  # raises where all is to wait until the server is back
        error: Exception = refused
    except Exception as fault:  # of MLflow, or of a library that draws: see above
        error = fault
    again = command("publish", run_id, *(("--register", register) if register else ()))
    log.warning(
        _("Of the model and the figures something is missing: %s. `%s` logs the model"),
        one_line(error).rstrip("."), again,
    )  # fmt: skip


def _publish(
    tracking: Tracking,
    run_id: str,
    store: CheckpointStore,
    results: Results,
    register: str | None,
    check_lease: Callable[[], object],
) -> None:
    record = tracking.get_run(run_id)
    manifests = store.list(index=record.index_sha256)
    best, last = find_best(manifests), manifests[-1]
    chosen = best or last
    model_id = None
    # One at a time, since each may be large.
    for manifest in (last,) if chosen == last else (last, chosen):
        content = store.get(manifest)
        if manifest == chosen:
            check_lease()
            make = functools.partial(results.model, content)
            log_it = functools.partial(log_checkpoint, tracking, record, manifest, content, make)
            try:
                model_id = retried(functools.partial(log_it, register))
            except NotOffered as error:
                log.warning(_("%s. All else of the run is there"), error)
            del make, log_it
        drawn: dict[str, bytes] = {}
        if manifest == last:
            drawn |= _curves(record, with_all_history(tracking, run_id, content))
            drawn |= results.figures(content, is_best=False)
        if manifest == best:
            drawn |= results.figures(content, is_best=True)
        del content  # before the next is there
        check_lease()
        _upload(store, drawn)
    if register and model_id:
        check_lease()
        register_checkpoint(tracking, record, model_id, chosen, register)


def _upload(store: CheckpointStore, drawn: Mapping[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, picture in drawn.items():
            file = Path(folder) / f"{name}.png"
            file.write_bytes(picture)
            retried(functools.partial(store.upload, file, FIGURES))


def log_checkpoint(
    tracking: Tracking,
    record: RunRecord,
    manifest: Manifest,
    content: Content,
    make: Callable[[Path], ServedModel | None],
    register: str | None,
) -> str | None:
    """Log a checkpoint as the run's model, unless it is that already; return the model's ID.

    Which model that is, a tag says, and anybody may have written it. What is to be registered is
    therefore logged anew, unless it is registered by that name already.

    Args:
        tracking: The server.
        record: The run, just read.
        manifest: The checkpoint.
        content: What it holds.
        make: Writes the model to a folder; see `Results.model`.
        register: The name by which the model is to be registered, if it is.

    Returns:
        None if what the run trains makes no model.
    """
    made_of = f"{manifest.name} {manifest.files[0].sha256}"
    model_id = record.tags.get(MODEL_TAG, "")
    is_known = register is None or is_registered(tracking, model_id, register)
    if record.tags.get(MODEL_OF_TAG) == made_of and is_known and is_ready(tracking, model_id):
        return model_id
    points = [p for p in content.history if p.step == manifest.epoch and p.key.startswith("val_")]
    made_by = {
        k: redact(v)
        for k, v in record.tags.items()
        if k.startswith(("mlflow.source.", "mlflow.user"))
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        path.mkdir()
        served = make(path)
        if served is None:
            return None
        note = _describe(record, manifest, served)
        tags = {**made_by, CHECKPOINT_TAG: manifest.name, NOTE_TAG: note}
        model_id = log_model(tracking, record, path, served, points, tags)
    tracking.set_tags(record.run_id, {MODEL_TAG: model_id, MODEL_OF_TAG: made_of})
    log.info(_("The model of %s is runs:/%s/model"), manifest.name, record.run_id)
    return model_id


def _describe(record: RunRecord, manifest: Manifest, served: ServedModel) -> str:
    """Return what MLflow's page of the model says of it, in Markdown."""
    where = f"run {markdown.link(record.name, run_page(record))}"
    serve = ("mlflow", "models", "serve", "-m", f"runs:/{record.run_id}/model")
    commands = [quoted(*serve, "--env-manager", "local", "--port", 5001)]
    if served.reads_tables:
        predict = command("predict", record.run_id, "table.csv", "--epoch", manifest.key)
        commands.insert(0, predict)
    verb = "Predict the rows of a file, or serve it:" if served.reads_tables else "Serve it:"
    return "\n".join(
        [
            f"Checkpoint {markdown.code(manifest.name)} of {where}: {served.summary}",
            *("", verb),
            *markdown.block(*commands),
        ]
    )


def register_checkpoint(
    tracking: Tracking, record: RunRecord, model_id: str, manifest: Manifest, name: str
) -> None:
    """Make the logged model the newest version of the registered model `name`."""
    tags = {"epoch": str(manifest.epoch), manifest.monitor.name: str(manifest.score)}
    number = register_model(tracking, record, model_id, name, tags)
    log.info(_("It is version %d of the registered model '%s'"), number, name)


def with_all_history(tracking: Tracking, run_id: str, content: Content) -> Content:
    """Return a checkpoint with what it has left out of its run's history, since it is published."""
    history, monitor = content.history, content.monitor
    if not history.may_be_cut:
        return content
    best = monitor.best(history.series(monitor.name))
    # IMPORTANT: what is best is known by the checkpoint; anybody can publish a better value.
    limits = {} if best is None else {monitor.name: best.value}
    older = [
        point
        for point in history.before(tracking.published(run_id, history.keys()))
        if point.key not in limits or not monitor.is_better(point.value, limits[point.key])
    ]
    points = sorted([*older, *history], key=lambda point: (point.timestamp_ms, point.step))
    return dataclasses.replace(content, history=History(points))


def _curves(record: RunRecord, content: Content) -> dict[str, bytes]:
    history, monitor = content.history, content.monitor
    last = max((point.step for point in history if point.key not in content.axes), default=0)
    begun = {
        number: first
        for number, first in first_epochs(record.tags).items()
        if number <= record.attempts and first <= last + 1  # others wrote the rest
    }
    best = monitor.best(history.series(monitor.name))
    if record.standing.script is None:
        return {
            "loss": curves.loss_curves(history, begun, best.epoch if best else None),
            _file_name(monitor.name): curves.metric_curve(history, begun, monitor.name, best),
        }
    drawn = {}
    for key in logged_keys(history)[:MAX_CURVES]:
        is_own = key in content.axes
        drawn[_file_name(key)] = curves.metric_curve(
            history, {} if is_own else begun, key, best if key == monitor.name else None,
            STEP if is_own else content.unit,
        )  # fmt: skip
    return drawn


def _file_name(key: str) -> str:
    """Return what the picture of a metric is called; a name of a metric may be a path.

    >>> _file_name(UNDECLARED.name), _file_name("val/acc: top 1")
    ('correlation', 'val_acc__top_1')
    """
    return "correlation" if key == UNDECLARED.name else re.sub(r"[^\w.-]", "_", key)
