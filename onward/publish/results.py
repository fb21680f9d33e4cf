"""What a finished run leaves: its best model, to be used, and figures, to be looked at."""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa

from onward.attempts.attempt import first_epochs
from onward.checkpoint.manifest import Manifest
from onward.checkpoint.policy import find_best
from onward.checkpoint.store import CheckpointStore
from onward.checkpoint.transfers import retried
from onward.errors import StoreUnavailable, Superseded
from onward.metrics import MONITOR, History
from onward.options.run_options import Config
from onward.publish import curves as figures
from onward.tracking import markdown
from onward.tracking.client import Tracking
from onward.tracking.models import MODEL_TAG, is_ready, is_registered, log_model, register_model
from onward.tracking.record import RunRecord
from onward.tracking.translate import one_line
from onward.tracking.ui import run_page
from onward.words.language import _
from onward.words.redact import redact
from onward.words.shell import command, quoted
from train.tabular.data.dataset import Dataset
from train.tabular.data.prepare import Preprocessing
from train.tabular.predictor import Predictor

log = logging.getLogger(__name__)

MODEL_OF_TAG = "train.model_of"  # of the run: the checkpoint that its logged model was made of
FIGURES = "figures"
_LOADER = "train.tracking.pyfunc"


def publish_results(
    tracking: Tracking,
    run_id: str,
    store: CheckpointStore,
    config: Config,
    find_dataset: Callable[[], Dataset],
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
        config: Its options.
        find_dataset: Returns its data.
        check_lease: Raises `Superseded` once the attempt may not publish any more.

    Raises:
        StoreUnavailable: The server is away. Call again later.
        Superseded: A later attempt was claimed.
    """
    if not config.log_model or config.upload == "off":
        return
    register = config.register
    log.info(_("Logging the best model, and figures …"))
    try:
        _publish(tracking, run_id, store, find_dataset(), register, check_lease)
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
    dataset: Dataset,
    register: str | None,
    check_lease: Callable[[], object],
) -> None:
    record, manifests = tracking.get_run(run_id), store.list()
    best, last = find_best(manifests), manifests[-1]
    chosen = best or last
    model_id = ""
    # One at a time, since each may be large.
    for manifest in (last,) if chosen == last else (last, chosen):
        predictor, history = load_predictor(store, manifest, dataset.preprocessing)
        if manifest == chosen:
            check_lease()
            opened = (predictor, history)
            model_id = retried(
                functools.partial(
                    log_checkpoint, tracking, record, manifest, opened, dataset.sample, register
                )
            )
        drawn: dict[str, bytes] = {}
        if manifest == last:
            drawn |= _curves(record, history, best.epoch if best else None)
            drawn |= _predictions("last", manifest, predictor, dataset)
        if manifest == best:
            drawn |= _predictions("best", manifest, predictor, dataset)
        check_lease()
        _upload(store, drawn)
    if register:
        check_lease()
        register_checkpoint(tracking, record, model_id, chosen, register)


def _upload(store: CheckpointStore, drawn: Mapping[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, picture in drawn.items():
            file = Path(folder) / f"{name}.png"
            file.write_bytes(picture)
            retried(functools.partial(store.upload, file, FIGURES))


def load_predictor(
    store: CheckpointStore, manifest: Manifest, preprocessing: Preprocessing
) -> tuple[Predictor, History]:
    """Return the model of a checkpoint, verified, and the history up to it.

    Args:
        store: The run's checkpoints.
        manifest: The checkpoint.
        preprocessing: What was fitted for the run.
    """
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = store.get(manifest, Path(folder))
    config = Config.from_dict(checkpoint["config"])
    history = History()
    history.load_state_dict(checkpoint["history"])
    return Predictor(preprocessing, config, checkpoint["model_state_dict"]), history


def log_checkpoint(
    tracking: Tracking,
    record: RunRecord,
    manifest: Manifest,
    opened: tuple[Predictor, History],
    sample: pa.Table,
    register: str | None,
) -> str:
    """Log a checkpoint as the run's model, unless it is that already; return the model's ID.

    Which model that is, a tag says, and anybody may have written it. What is to be registered is
    therefore logged anew, unless it is registered by that name already.

    Args:
        tracking: The server.
        record: The run, just read.
        manifest: The checkpoint.
        opened: What `load_predictor` returned.
        sample: Some raw rows.
        register: The name by which the model is to be registered, if it is.
    """
    predictor, history = opened
    made_of = f"{manifest.name} {manifest.files[0].sha256}"
    model_id = record.tags.get(MODEL_TAG, "")
    is_known = register is None or is_registered(tracking, model_id, register)
    if record.tags.get(MODEL_OF_TAG) == made_of and is_known and is_ready(tracking, model_id):
        return model_id
    points = [p for p in history if p.step == manifest.epoch and p.key.startswith("val_")]
    made_by = {
        k: redact(v)
        for k, v in record.tags.items()
        if k.startswith(("mlflow.source.", "mlflow.user"))
    }
    note = _describe(record, manifest, predictor.preprocessing.target)
    tags = {**made_by, "train.checkpoint": manifest.name, "mlflow.note.content": note}
    with tempfile.TemporaryDirectory() as folder:
        content = Path(folder) / "predictor"
        predictor.save(content)
        model_id = log_model(tracking, record, content, _LOADER, sample, points, tags)
    tracking.set_tags(record.run_id, {MODEL_TAG: model_id, MODEL_OF_TAG: made_of})
    log.info(_("The model of %s is runs:/%s/model"), manifest.name, record.run_id)
    return model_id


def _describe(record: RunRecord, manifest: Manifest, target: str) -> str:
    """Return what MLflow's page of the model says of it, in Markdown."""
    where = f"run {markdown.link(record.name, run_page(record))}"
    serve = ("mlflow", "models", "serve", "-m", f"runs:/{record.run_id}/model")
    return "\n".join(
        [
            f"Checkpoint {markdown.code(manifest.name)} of {where}: takes raw rows, predicts "
            f"{markdown.code(target)}.",
            *("", "Predict the rows of a file, or serve it:"),
            *markdown.block(
                command("predict", record.run_id, "table.csv", "--epoch", manifest.key),
                quoted(*serve, "--env-manager", "local", "--port", 5001),
            ),
        ]
    )


def register_checkpoint(
    tracking: Tracking, record: RunRecord, model_id: str, manifest: Manifest, name: str
) -> None:
    """Make the logged model the newest version of the registered model `name`."""
    tags = {"epoch": str(manifest.epoch), MONITOR: str(manifest.score)}
    number = register_model(tracking, record, model_id, name, tags)
    log.info(_("It is version %d of the registered model '%s'"), number, name)


def _curves(record: RunRecord, history: History, best_epoch: int | None) -> dict[str, bytes]:
    last = max((point.step for point in history), default=0)
    begun = {
        number: first
        for number, first in first_epochs(record.tags).items()
        if number <= record.attempts and first <= last + 1  # others wrote the rest
    }
    return {
        "loss": figures.loss_curves(history, begun, best_epoch),
        "correlation": figures.correlation_curve(history, begun, best_epoch),
    }


def _predictions(
    which: str, manifest: Manifest, predictor: Predictor, dataset: Dataset
) -> dict[str, bytes]:
    predicted, target = predictor.predict_features(dataset.val.features), dataset.val.target
    name, is_best = dataset.preprocessing.target, which == "best"
    title = figures.title_of(name, len(target), manifest.epoch, is_best)
    return {
        f"{which}_predicted": figures.predicted_against_true(predicted, target, title),
        f"{which}_residuals": figures.residuals(predicted, target, title),
    }
