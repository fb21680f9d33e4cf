"""What MLflow raises, as one of `onward.errors`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from onward.errors import (
    NotOffered,
    RequestTooLarge,
    RunNotUsable,
    StoreRefused,
    StoreUnavailable,
    TrainError,
)
from onward.tracking.causes import chain, missing_package, proxy_in_between, status_of, without_html
from onward.words.language import _
from onward.words.redact import redact
from onward.words.shell import command, quoted

MAX_PAUSE_SECONDS = 30.0  # before a call is tried again, whatever the server asks for


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
def translated(doing: str, run_id: str = "", store: str = "") -> Iterator[None]:
    """Turn what MLflow raises while `doing` something into one of our errors.

    Args:
        doing: What is done, in words.
        run_id: The run that is asked for, if it is one.
        store: The address of the files that are reached; default: the tracking server is.
    """
    try:
        yield
    except TrainError:  # one of ours already
        raise
    except Exception as error:  # each kind of store and database driver raises its own
        unknown = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
        if run_id and getattr(error, "error_code", None) in unknown:
            raise RunNotUsable(run_id, _not_found(error)) from error
        doing = redact(doing)  # it may name an address
        raise _with_answer(_unavailable(doing, error, store), error) from error


def _with_answer(told: StoreUnavailable, error: Exception) -> StoreUnavailable:
    """Note the answer, and how long it asks to wait (429, 503), where it says so in seconds."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    seconds = str(headers.get("Retry-After", ""))
    asked = float(seconds) if re.fullmatch(r"[0-9]{1,6}", seconds) else 0.0
    told.retry_after = min(asked, MAX_PAUSE_SECONDS)
    told.status = status_of(error)
    return told


def _unavailable(doing: str, error: Exception, store: str) -> StoreUnavailable:
    import mlflow

    tracking_uri = mlflow.get_tracking_uri()
    uri = redact(tracking_uri)
    if uri.startswith(("file:", "/", ".")):
        to = ("--target", "sqlite:///mlflow.db")
        migrate = quoted("mlflow", "migrate-filestore", "--source", local_path(uri), *to)
        return StoreRefused(
            _(
                "'{uri}' is an MLflow file store, which MLflow no longer opens: `{command}` "
                "migrates it; in any case name a store from now on: export "
                "MLFLOW_TRACKING_URI=sqlite:///mlflow.db"
            ).format(uri=uri, command=migrate)
        )
    if getattr(error, "error_code", None) == "ENDPOINT_NOT_FOUND":
        return NotOffered(
            _("{doing} failed: the server at {uri} is of an older version of MLflow, which has "
              "nothing of the kind").format(doing=doing, uri=uri)
        )  # fmt: skip
    # Files that go through the tracking server are its own affair.
    is_own_store = store != "" and not store.startswith("mlflow-artifacts:")
    asked = store if is_own_store else tracking_uri
    told = (
        _not_installed(doing, error)
        or _unreachable_files(error, store, uri)
        or _refused(doing, redact(asked), is_own_store, error)
        or _no_experiment(doing, uri, error)
        or _wrong_name(uri, error)
        or _not_trusted(redact(asked), error)
    )
    if told:
        return (RequestTooLarge if status_of(error) == 413 else StoreRefused)(told)
    return StoreUnavailable(
        _locked(doing, uri, error)
        or _proxy_fails(asked, error)
        or _silent(doing, redact(asked), is_own_store, error)
        or _("{doing} failed: {reason}").format(doing=doing, reason=one_line(error))
    )


def _not_installed(doing: str, error: Exception) -> str | None:
    """Return what to install where the client of a store or a database is missing."""
    package = missing_package(error)
    if package is None:
        return None
    return _("{doing} needs a package that is not installed: pip install {package}").format(
        doing=doing, package=package
    )


def _unreachable_files(error: Exception, store: str, uri: str) -> str | None:
    """Return what to do where no client of ours can reach the files of a run."""
    told = str(error)
    if "mlflow-artifacts URI was supplied" in told:
        return _(
            "the files at '{store}' are reached through the MLflow server that made their "
            "experiment, and {uri} is a database: start that server and set "
            "MLFLOW_TRACKING_URI to its address, or choose another experiment by "
            "MLFLOW_EXPERIMENT_NAME=<new name>"
        ).format(store=store, uri=uri)
    if "Could not find a registered artifact repository" in told:
        return _(
            "MLflow knows no artifact store of the kind '{scheme}:' ('{store}'): install its "
            "plugin, or choose an experiment with another artifact location by "
            "MLFLOW_EXPERIMENT_NAME"
        ).format(scheme=urlparse(store).scheme, store=redact(store))
    return None


def _wrong_name(uri: str, error: Exception) -> str | None:
    if "Invalid Host header" not in str(error):
        return None
    return _(
        "the tracking server at {uri} refuses to be called by that name: start it with {option}"
    ).format(uri=uri, option=quoted("--allowed-hosts", urlparse(uri).netloc))


def _not_trusted(asked: str, error: Exception) -> str | None:
    """Return what to do where a server is not the one that its certificate is for, or unknown."""
    told = " ".join(str(cause) for cause in chain(error))
    if not re.search("SSLCertVerificationError|CERTIFICATE_VERIFY_FAILED", told):
        return None
    return _(
        "the certificate of {uri} is not trusted here: MLFLOW_TRACKING_SERVER_CERT_PATH names a "
        "file of those that are"
    ).format(uri=asked)


def _locked(doing: str, uri: str, error: Exception) -> str | None:
    if "database is locked" not in str(error):
        return None
    return _(
        "{doing} failed: another program has locked the database {uri}. Wait until it is done, or "
        "end it; `mlflow server` lets many work at once"
    ).format(doing=doing, uri=uri)


def _proxy_fails(asked: str, error: Exception) -> str | None:
    """Return what to do where the way to the server goes through a proxy that fails."""
    found = proxy_in_between(error, asked)
    if found is None:
        return None
    variable, proxy = found
    return _(
        "the proxy {proxy} of {variable} lets nobody through to {uri}: correct or unset "
        "{variable}, or name the server in NO_PROXY"
    ).format(proxy=redact(proxy), variable=variable, uri=redact(asked))


def _silent(doing: str, asked: str, is_store: bool, error: Exception) -> str | None:
    """Return what to do where nobody answers, or not in time."""
    told = " ".join(str(cause) for cause in chain(error))
    if not re.search("Max retries exceeded|timed out|timeout exception", told):
        return None
    if is_store:
        return _("the artifact store at {uri} does not answer ({doing})").format(
            uri=asked, doing=doing
        )
    return _(
        "the tracking server at {uri} does not answer ({doing}): start it, or check "
        "MLFLOW_TRACKING_URI"
    ).format(uri=asked, doing=doing)


def _refused(doing: str, asked: str, is_store: bool, error: Exception) -> str | None:
    """Return what to do where the answer is no, and stays so; None if it is something else."""
    code = status_of(error)
    why = {
        401: _(
            "it does not know who asks. Set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        ),
        403: _("this user may not do that. Ask whoever runs it, or use a run of your own"),
        407: _("a proxy on the way wants to know who asks: name and password belong into its URL"),
        413: _(
            "that is more than it takes at once. Ask whoever runs it for a higher limit (of nginx "
            "it is client_max_body_size)"
        ),
    }
    if is_store:
        keys = _(
            "the artifact store does not accept this machine's keys. Check its credentials, such "
            "as AWS_ACCESS_KEY_ID, and what they allow"
        )
        why |= {401: keys, 403: keys}
    if code not in why:
        return None
    return _("{doing} was refused by {uri} with {code}: {why}").format(
        doing=doing, uri=asked, code=code, why=why[code]
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
        restore = ("mlflow", "experiments", "restore", "--experiment-id")
        return _(
            "{doing} failed: it was deleted. `{command}` brings it back; "
            "MLFLOW_EXPERIMENT_NAME=<new name> makes another"
        ).format(doing=doing, command=quoted(*restore, deleted[1]))
    return None


def one_line(error: BaseException) -> str:
    """Return the beginning of an error's message, without secrets."""
    return redact(" ".join(without_html(str(error)).split()))[:400]


def _not_found(error: Exception) -> str:
    import mlflow

    uri = redact(mlflow.get_tracking_uri())
    if "not found" not in str(error).lower():
        return _("cannot be used: {reason}").format(reason=one_line(error))
    hint = _("check the ID (`{command}`), and MLFLOW_TRACKING_URI").format(command=command("list"))
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        hint = _(
            "a relative sqlite URI starts in the folder of each process, and `mlflow run` works "
            "in the project's folder. Use the full path: sqlite:////full/path/mlflow.db"
        )
    return _("is not on the tracking server {uri}: {hint}").format(uri=uri, hint=hint)
