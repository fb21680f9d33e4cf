"""Connecting to the tracking server: MLflow's client, as this project needs it."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from typing import TYPE_CHECKING, Any

from onward.errors import StoreUnavailable
from onward.system.garbage import seldom_searched
from onward.tracking.artifacts import Artifacts
from onward.tracking.database import open_store
from onward.tracking.draws import draw_apart
from onward.tracking.translate import translated
from onward.words.language import _
from onward.words.redact import redact

if TYPE_CHECKING:
    from onward.tracking.bounded import BoundedCalls

log = logging.getLogger(__name__)


def open_client() -> tuple[str, Any, BoundedCalls | None]:
    """Return the tracking server that MLflow's variables choose: address, client, how it is called.

    Raises:
        StoreUnavailable: It is of a kind that MLflow does not open.
    """
    uri, calls = prepare()
    with translated(_("connecting")):
        client = open_store(uri)
    draw_apart()
    return uri, client, calls


def prepare() -> tuple[str, BoundedCalls | None]:
    """Return that server's address, and how it is called; nothing is asked of it."""
    with seldom_searched():
        import mlflow
        import mlflow.tracking
        from urllib3.exceptions import HTTPWarning

    _leave_out_unreadable()
    # What they would say is told by our own errors; theirs come with tracebacks.
    for noisy in ("mlflow", "alembic", "urllib3", "sqlalchemy"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    # Such as one of a certificate that is not checked: once says it, not at each request.
    warnings.filterwarnings("once", category=HTTPWarning)
    uri = mlflow.get_tracking_uri()
    with translated(_("connecting")):
        return uri, _bound_calls(uri) if uri.startswith(("http:", "https:")) else None


def open_files(artifact_uri: str) -> Artifacts:
    """Return the files of a run, for one who asks nothing else of the server.

    Args:
        artifact_uri: As the server tells it to others.

    Raises:
        StoreUnavailable: They cannot be reached from here; or are in a folder of another machine:
            one of that name here would be another.
    """
    files = Artifacts(artifact_uri, prepare()[0])
    if files.folder is not None and not files.folder.is_dir():
        raise StoreUnavailable(
            _("the run's files are kept in the folder '{folder}', which this machine does not "
              "have: several machines need a disk in common there, or "
              "`mlflow server --serve-artifacts`, which keeps the files itself")
            .format(folder=files.folder)
        )  # fmt: skip
    return files


def _bound_calls(uri: str) -> BoundedCalls:
    """Let MLflow's calls to the server end in time; what it does besides, as for TLS, stays."""
    from mlflow import environment_variables as variables
    from mlflow.utils.request_utils import _TRANSIENT_FAILURE_RESPONSE_CODES, _get_request_session

    from onward.tracking.bounded import BoundedCalls

    _look_for_no_notebook()
    session = _get_request_session(  # as `http_request` asks for it
        variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(),
        variables.MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.get(),
        variables.MLFLOW_HTTP_REQUEST_BACKOFF_JITTER.get(),
        _TRANSIENT_FAILURE_RESPONSE_CODES,
        True,
        variables.MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER.get(),
    )
    return BoundedCalls.mount(session, uri)


def _look_for_no_notebook() -> None:
    """Let no request look for Databricks' packages: eleven imports that fail, half of its CPU."""
    from mlflow.tracking.request_header import registry

    listed = registry._request_header_provider_registry._registry
    if importlib.util.find_spec("dbruntime") is None:  # is there on Databricks alone
        listed[:] = [p for p in listed if type(p).__name__ != "DatabricksRequestHeaderProvider"]


def _leave_out_unreadable() -> None:
    """Let no variable that MLflow cannot read, such as a number in words, end a call to it."""
    from mlflow import environment_variables

    for variable in vars(environment_variables).values():
        if isinstance(variable, environment_variables._EnvironmentVariable):
            try:
                variable.get()
            except ValueError as error:
                log.debug("left out: %s", redact(str(error)))
                variable.unset()
