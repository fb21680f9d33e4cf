"""What MLflow raises, as one of `train.errors`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from train import environment
from train.errors import RunNotUsable, StoreUnavailable, TrainError
from train.language import _


def local_path(artifact_uri: str) -> Path | None:
    """Return the folder that an artifact URI names on this machine, None for a server's.

    IMPORTANT: as MLflow reads it, which takes %20 for a space in a plain path too, so that its own
    tools find the files. To be read as it is, a path is given as `local_uri`.
    """
    try:
        parsed = urlparse(artifact_uri)
    except ValueError:  # it is no URI at all
        return None
    if parsed.scheme == "file":
        return Path(url2pathname(parsed.path))
    return Path(url2pathname(artifact_uri)) if not parsed.scheme else None


def local_uri(path: Path) -> str:
    """Return the artifact URI that names a folder of this machine, whatever is in its name."""
    return path.absolute().as_uri()


@contextlib.contextmanager
def translated(doing: str, run_id: str = "") -> Iterator[None]:
    """Turn what MLflow raises while `doing` something into one of our errors."""
    from mlflow.exceptions import MlflowException

    doing = environment.redact(doing)  # it may name an address
    try:
        yield
    except TrainError:  # one of ours already
        raise
    except MlflowException as error:
        if run_id and error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise RunNotUsable(run_id, _not_found(error)) from error
        raise _unavailable(doing, error) from error
    except Exception as error:  # each kind of store and database driver raises its own
        raise _unavailable(doing, error) from error


def _unavailable(doing: str, error: Exception) -> StoreUnavailable:
    import mlflow

    uri = environment.redact(mlflow.get_tracking_uri())
    if uri.startswith(("file:", "/", ".")):
        folder = local_path(uri)
        return StoreUnavailable(
            _(
                "'{uri}' is an MLflow file store, which MLflow no longer opens: `mlflow "
                "migrate-filestore --source {folder} --target sqlite:///mlflow.db` migrates it; in "
                "any case name a store from now on: export MLFLOW_TRACKING_URI=sqlite:///mlflow.db"
            ).format(uri=uri, folder=folder)
        )
    if "Max retries exceeded" in str(error):
        return StoreUnavailable(
            _(
                "the tracking server at {uri} does not answer ({doing}): start it, or check "
                "MLFLOW_TRACKING_URI"
            ).format(uri=uri, doing=doing)
        )
    told = _refused(doing, uri, error) or _no_experiment(doing, uri, error)
    if told:
        return StoreUnavailable(told)
    if "Invalid Host header" in str(error):
        return StoreUnavailable(
            _(
                "the tracking server at {uri} refuses to be called by that name: start it with "
                "--allowed-hosts {host}"
            ).format(uri=uri, host=urlparse(uri).netloc)
        )
    return StoreUnavailable(
        _("{doing} failed: {reason}").format(doing=doing, reason=one_line(error))
    )


def _refused(doing: str, uri: str, error: Exception) -> str | None:
    """Return what to do where a server says who may do what, None if it is something else."""
    found = re.search(r"\b(401|403) Client Error", str(error))  # of a file
    by_name = {"UNAUTHENTICATED": "401", "PERMISSION_DENIED": "403"}
    code = found[1] if found else by_name.get(str(getattr(error, "error_code", None)))
    if code is None:
        return None
    why = {
        "401": _(
            "it does not know who asks. Set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        ),
        "403": _("this user may not do that. Ask whoever runs it, or use a run of your own"),
    }[code]
    return _("{doing} was refused by {uri} with {code}: {why}").format(
        doing=doing, uri=uri, code=code, why=why
    )


def _no_experiment(doing: str, uri: str, error: Exception) -> str | None:
    """Return what to do where the experiment is unknown or deleted, None if that is not it."""
    if re.search(r"No Experiment with id=|Invalid experiment ID", str(error)):
        return _(
            "{doing} failed: {uri} has none of that ID. `mlflow experiments search` shows "
            "those there are: correct or unset MLFLOW_EXPERIMENT_ID"
        ).format(doing=doing, uri=uri)
    deleted = re.search(r"experiment (\d+) must be in the 'active' state", str(error))
    if deleted:
        return _(
            "{doing} failed: it was deleted. `mlflow experiments restore --experiment-id "
            "{deleted}` brings it back; MLFLOW_EXPERIMENT_NAME=<new name> makes another"
        ).format(doing=doing, deleted=deleted[1])
    return None


def one_line(error: BaseException) -> str:
    """Return the beginning of an error's message, without secrets."""
    return environment.redact(" ".join(str(error).split()))[:400]


def _not_found(error: Exception) -> str:
    import mlflow

    uri = environment.redact(mlflow.get_tracking_uri())
    if "not found" not in str(error).lower():
        return _("cannot be used: {reason}").format(reason=one_line(error))
    hint = _("check the ID (`train list`), and MLFLOW_TRACKING_URI")
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        hint = _(
            "a relative sqlite URI starts in the folder of each process, and `mlflow run` works "
            "in the project's folder. Use the full path: sqlite:////full/path/mlflow.db"
        )
    return _("is not on the tracking server {uri}: {hint}").format(uri=uri, hint=hint)
