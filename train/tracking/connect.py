"""Connecting to the tracking server: MLflow's client, as this project needs it."""

from __future__ import annotations

import logging
from typing import Any

from train import environment
from train.language import _
from train.tracking.database import open_store
from train.tracking.translate import translated

log = logging.getLogger(__name__)


def open_client() -> tuple[str, Any]:
    """Return the address of the tracking server that MLflow's variables choose, and a client.

    Raises:
        StoreUnavailable: It is of a kind that MLflow does not open.
    """
    import mlflow

    _leave_out_unreadable()
    # What they would say is told by our own errors; theirs come with tracebacks.
    for noisy in ("mlflow", "alembic", "urllib3", "sqlalchemy"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    uri = mlflow.get_tracking_uri()
    with translated(_("connecting")):
        return uri, open_store(uri)


def _leave_out_unreadable() -> None:
    """Let no variable that MLflow cannot read, such as a number in words, end a call to it."""
    from mlflow import environment_variables

    for variable in vars(environment_variables).values():
        if isinstance(variable, environment_variables._EnvironmentVariable):
            try:
                variable.get()
            except ValueError as error:
                log.debug("left out: %s", environment.redact(str(error)))
                variable.unset()
