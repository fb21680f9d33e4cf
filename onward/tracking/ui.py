"""MLflow's pages: where they show a run, or all runs, and with which columns."""

from __future__ import annotations

import json

from onward.monitor import Monitor
from onward.system.untrusted import parse_json
from onward.tracking.client import Tracking, now_ms
from onward.tracking.record import RunRecord
from onward.tracking.translate import translated
from onward.words.language import _
from onward.words.redact import without_login

KIND_TAG = "mlflow.experimentKind"
AS_TRAINING = "workflowType=machine_learning"  # of an address: a fresh browser is on "GenAI"
VIEW_KEY = "resumable-train"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"  # how MLflow's pages save a view (decision 0015)
MAX_VIEW_CHARS = 2_000  # MLflow takes 5,000 for a tag of an experiment
VIEW_NAME = "Training"  # in the menu "Views"
_COLUMNS = {  # in the order in which they are shown
    "metrics": ("best_epoch",),  # after the best value of the monitored metric
    "params": ("epochs", "lr", "batch_size"),
    "attributes": ("Dataset", "Models", "Version"),
}


def run_page(record: RunRecord) -> str:
    """Return where on MLflow's server the page of the run is."""
    return f"#/experiments/{record.experiment_id}/runs/{record.run_id}"


def runs_page(experiment_id: str) -> str:
    """Return where on MLflow's server the runs are listed, in the view of `mark_experiment`."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW_KEY}&{AS_TRAINING}"


def run_link(tracking: Tracking, record: RunRecord) -> str:
    """Return the whole address of the page of the run."""
    return whole_link(tracking, run_page(record))


def whole_link(tracking: Tracking, page: str) -> str:
    """Return the whole address of a page; for a database, where `mlflow ui` would show it."""
    server = without_login(tracking.uri.rstrip("/"))
    if server.startswith("http"):
        return f"{server}/{page}"
    address = f"http://127.0.0.1:5000/{page}"
    return _("{address} (once `mlflow ui` runs)").format(address=address)


def mark_experiment(tracking: Tracking, experiment_id: str, monitor: Monitor) -> None:
    """Make MLflow's pages open the experiment as one of model training, with a view of its runs.

    What somebody has set already stays; a view of ours gets a column for another monitor.

    Raises:
        StoreUnavailable: The server does not answer.
    """
    client = tracking.client
    with translated(_("tagging experiment '{experiment_id}'").format(experiment_id=experiment_id)):
        known = client.get_experiment(experiment_id).tags
        best = f"metrics.`best_{monitor.name}`" if monitor.name else None
        view = _view(known.get(VIEW_TAG), best)
        for tag, value in ((KIND_TAG, "custom_model_development"), (VIEW_TAG, view)):
            if value != known.get(tag) and (tag not in known or tag == VIEW_TAG):
                client.set_experiment_tag(experiment_id, tag, value)


def _view(known: str | None, best: str | None) -> str:
    """Return the view, `best` among its columns; one that is none of ours as it is.

    Args:
        known: The view that is there.
        best: The column of the best value of a run; None: there is none.
    """
    columns = [f"{kind}.`{name}`" for kind, names in _COLUMNS.items() for name in names]
    if known is not None:
        try:
            found = parse_json(parse_json(known)["state"])["selectedColumns"]
            others = [name for name in found if name not in columns]
            is_ours = all(name.startswith("metrics.`best_") for name in others)
        except (ValueError, KeyError, TypeError, AttributeError):
            return known
        if not is_ours or best in (None, *others) or len(known) > MAX_VIEW_CHARS:
            return known
        columns = [*others, *columns]
    columns = [*([best] if best else []), *columns]
    now = now_ms()
    widths = {columns[0]: 160}  # so that its name can be read
    state = json.dumps({"selectedColumns": columns, "columnOrder": columns, "columnWidths": widths})
    return json.dumps({"name": VIEW_NAME, "createdAt": now, "updatedAt": now, "state": state})
