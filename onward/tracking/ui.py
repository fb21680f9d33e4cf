"""MLflow's pages: where they show a run, or all runs, and with which columns."""

from __future__ import annotations

import json

from onward.metrics import MONITOR
from onward.tracking.client import Tracking, now_ms
from onward.tracking.record import RunRecord
from onward.tracking.translate import translated
from onward.words.language import _
from onward.words.redact import without_login

KIND_TAG = "mlflow.experimentKind"
AS_TRAINING = "workflowType=machine_learning"  # of an address: a fresh browser is on "GenAI"
VIEW_KEY = "resumable-train"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"  # how MLflow's pages save a view (decision 0015)
VIEW_NAME = "Training"  # in the menu "Views"
_COLUMNS = {  # in the order in which they are shown
    "metrics": (f"best_{MONITOR}", "best_epoch"),
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


def mark_experiment(tracking: Tracking, experiment_id: str) -> None:
    """Make MLflow's pages open the experiment as one of model training, with a view of its runs.

    What somebody has set already stays.

    Raises:
        StoreUnavailable: The server does not answer.
    """
    client = tracking.client
    with translated(_("tagging experiment '{experiment_id}'").format(experiment_id=experiment_id)):
        known = client.get_experiment(experiment_id).tags
        for tag, value in ((KIND_TAG, "custom_model_development"), (VIEW_TAG, _view())):
            if tag not in known:
                client.set_experiment_tag(experiment_id, tag, value)


def _view() -> str:
    columns = [f"{kind}.`{name}`" for kind, names in _COLUMNS.items() for name in names]
    now = now_ms()
    widths = {columns[0]: 160}  # so that its name can be read
    state = json.dumps({"selectedColumns": columns, "columnOrder": columns, "columnWidths": widths})
    return json.dumps({"name": VIEW_NAME, "createdAt": now, "updatedAt": now, "state": state})
