"""MLflow, as far as this project uses it. The only module that imports mlflow, and late.

`Tracking` is a connection to a tracking server; `RunRecord` is one run on it, `Artifacts` the
files of a run. MLflow's exceptions end here: what leaves is one of `train.errors`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import posixpath
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from train import environment
from train.errors import RunNotUsable, StoreUnavailable
from train.files import link_or_copy
from train.metrics import History, Point

MAX_BATCH_METRICS = 900  # MLflow takes 1,000 items a request
MAX_BATCH_PARAMS = 100
MAX_TAG_CHARS = 7_500  # MLflow cuts a tag at 8,000 without a word
MAX_SCHEMA_CHARS = 1 << 20  # MLflow refuses more
LATEST_CHECKPOINT_TAG = "mlflow.latest_checkpoint_artifact"
PARENT_TAG = "mlflow.parentRunId"
FINGERPRINT_TAG = "train.fingerprint"  # marks a run as one of ours
OPTIONS_TAG = "train.options"  # the options of the newest attempt, as JSON
EPOCH_TAG = "train.epoch"  # of the newest checkpoint
HOST_TAG = "train.checkpoints_on"  # the machine whose disk has them, with upload=off
DATA_TAG = "train.data"  # fingerprint of the data
ATTEMPT_PARAM = "train.attempt."  # + N: claims attempt N, since params are write-once


@contextlib.contextmanager
def _translated(doing: str, run_id: str = "") -> Iterator[None]:
    """Turn what MLflow raises while `doing` something into one of our errors."""
    from mlflow.exceptions import MlflowException

    try:
        yield
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
            f"'{uri}' is an MLflow file store, which MLflow no longer opens: `mlflow "
            f"migrate-filestore --source {folder} --target sqlite:///mlflow.db` migrates it; in "
            "any case name a store from now on: export MLFLOW_TRACKING_URI=sqlite:///mlflow.db"
        )
    if "Max retries exceeded" in str(error):
        return StoreUnavailable(
            f"the tracking server at {uri} does not answer ({doing}): start it, or check "
            "MLFLOW_TRACKING_URI"
        )
    if "Invalid Host header" in str(error):
        return StoreUnavailable(
            f"the tracking server at {uri} refuses to be called by that name: start it with "
            f"--allowed-hosts {urlparse(uri).netloc}"
        )
    return StoreUnavailable(f"{doing} failed: {_one_line(error)}")


def _one_line(error: BaseException) -> str:
    return environment.redact(" ".join(str(error).split()))[:400]


def _not_found(error: Exception) -> str:
    import mlflow

    uri = environment.redact(mlflow.get_tracking_uri())
    if "not found" not in str(error).lower():
        return f"cannot be used: {_one_line(error)}"
    hint = "check the ID, and MLFLOW_TRACKING_URI"
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        hint = (
            "a relative sqlite URI starts in the folder of each process, and `mlflow run` works "
            "in the project's folder. Use the full path: sqlite:////full/path/mlflow.db"
        )
    return f"is not on the tracking server {uri}: {hint}"


def local_path(artifact_uri: str) -> Path | None:
    """Return the folder that an artifact URI names on this machine, None for a server's."""
    parsed = urlparse(artifact_uri)
    if parsed.scheme == "file":
        return Path(unquote(parsed.path))
    return Path(artifact_uri) if not parsed.scheme else None


class Artifacts:
    """The files of one run, at paths relative to its artifact root.

    Args:
        uri: The run's artifact URI.
        tracking_uri: The server through which `mlflow-artifacts:` URIs go.
    """

    def __init__(self, uri: str, tracking_uri: str | None = None) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        self.uri = uri
        self.folder = local_path(uri)
        self._repository = get_artifact_repository(uri, tracking_uri=tracking_uri)

    def list(self, path: str = "") -> list[str]:
        """Return the names directly below `path`; [] if there is no such folder."""
        with _translated(f"listing '{path}' at {self.uri}"):
            found = self._repository.list_artifacts(path or None)
        return [posixpath.basename(info.path) for info in found]

    def upload(self, local_file: Path, folder: str, give_away: bool = False) -> None:
        """Store `local_file` under its own name in `folder`, replacing what is there.

        Args:
            local_file: The file; it stays where it is.
            folder: Where to put it.
            give_away: The file is not changed any more: a store in a local folder may then give
                it a second name in place of writing its bytes a second time.
        """
        with _translated(f"uploading '{folder}/{local_file.name}' to {self.uri}"):
            if give_away and self.folder is not None:
                link_or_copy(local_file, self.folder / folder / local_file.name)
                return
            self._repository.log_artifact(str(local_file), folder)

    def download(self, path: str, local_file: Path) -> None:
        """Fetch the file at `path`; nothing about its content is checked.

        What comes from a local folder may be the same file under a second name: it is to be read,
        not written.

        Raises:
            FileNotFoundError: There is no such file.
            StoreUnavailable: The store does not answer.
        """
        local_file.parent.mkdir(parents=True, exist_ok=True)
        if self.folder is not None:
            if {"..", "/"} & {*Path(path).parts} or not (self.folder / path).exists():
                raise FileNotFoundError(path)
            with _translated(f"downloading '{path}' from {self.uri}"):
                link_or_copy(self.folder / path, local_file)
            return
        try:
            self._repository._download_file(path, str(local_file))
        except Exception as error:  # each store raises its own kind for "no such file"
            if posixpath.basename(path) not in self.list(posixpath.dirname(path)):
                raise FileNotFoundError(path) from error
            raise StoreUnavailable(
                f"downloading '{path}' from {self.uri} failed: {_one_line(error)}"
            ) from error

    def delete(self, path: str) -> None:
        """Remove the file or folder at `path`; it may be gone already."""
        with _translated(f"deleting '{path}' at {self.uri}"):
            self._repository.delete_artifacts(path)


@dataclass(frozen=True)
class RunRecord:
    """What the server knows of a run, at one moment."""

    run_id: str
    name: str
    experiment_id: str
    status: str  # RUNNING, FINISHED, FAILED, KILLED
    artifact_uri: str
    start_time_ms: int
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]

    @property
    def is_ours(self) -> bool:
        """Whether this program made the run (and it is not the child of an attempt)."""
        return FINGERPRINT_TAG in self.tags

    @property
    def attempts(self) -> int:
        """Number of the newest attempt that was claimed; 0 if none was."""
        claimed = (k.removeprefix(ATTEMPT_PARAM) for k in self.params if ATTEMPT_PARAM in k)
        return max((int(number) for number in claimed if number.isdecimal()), default=0)


class Tracking:
    """A connection to the tracking server that MLflow's variables choose.

    Raises:
        StoreUnavailable: It is of a kind that MLflow no longer opens.
    """

    def __init__(self) -> None:
        import mlflow
        from mlflow import MlflowClient

        for noisy in ("mlflow", "alembic", "urllib3"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        self.uri = mlflow.get_tracking_uri()
        with _translated("connecting"):
            self._client = MlflowClient(self.uri)

    def probe(self) -> None:
        """Ask the server for anything, before work is done that would be lost without it.

        Raises:
            StoreUnavailable: It does not answer.
        """
        with _translated("connecting"):
            self._client.search_experiments(max_results=1)

    def _record(self, run: Any) -> RunRecord:
        info, data = run.info, run.data
        return RunRecord(
            run_id=info.run_id,
            name=info.run_name or "",
            experiment_id=info.experiment_id,
            status=info.status,
            artifact_uri=info.artifact_uri,
            start_time_ms=info.start_time or 0,
            params=data.params,
            tags=data.tags,
            metrics=data.metrics,
        )

    def get_run(self, run_id: str) -> RunRecord:
        """Return the run.

        Raises:
            RunNotUsable: It is unknown or deleted.
        """
        with _translated(f"reading run '{run_id}'", run_id):
            run = self._client.get_run(run_id)
        if run.info.lifecycle_stage == "deleted":
            raise RunNotUsable(
                run_id, f"was deleted; `mlflow runs restore --run-id {run_id}` brings it back"
            )
        return self._record(run)

    def search_runs(self, experiment_id: str) -> list[RunRecord]:
        """Return this program's runs that ever committed a checkpoint, newest first."""
        found: list[Any] = []
        token = None
        with _translated(f"searching experiment '{experiment_id}'"):
            while True:
                page = self._client.search_runs(
                    [experiment_id],
                    f"tags.`{FINGERPRINT_TAG}` LIKE '%' AND tags.`{EPOCH_TAG}` LIKE '%'",
                    order_by=["attributes.start_time DESC"],
                    page_token=token,
                )
                found += page
                token = page.token
                if not token:
                    return [self._record(run) for run in found]

    def experiment_id(self) -> str:
        """Return the experiment that MLflow's variables choose, made if it is only named."""
        chosen_id, name = environment.experiment()
        if chosen_id is not None or name is None:
            return chosen_id or "0"
        with _translated(f"opening experiment '{name}'"):
            found = self._client.get_experiment_by_name(name)
            return found.experiment_id if found else self._client.create_experiment(name)

    def mark_experiment(self, experiment_id: str) -> None:
        """Make the UI open the experiment as one of model training."""
        with _translated(f"tagging experiment '{experiment_id}'"):
            self._client.set_experiment_tag(
                experiment_id, "mlflow.experimentKind", "custom_model_development"
            )

    def create_run(
        self, experiment_id: str, name: str | None, tags: Mapping[str, str]
    ) -> RunRecord:
        """Make a run, RUNNING from now."""
        with _translated("creating a run"):
            run = self._client.create_run(experiment_id, run_name=name, tags=dict(tags))
        return self._record(run)

    def set_status(self, run_id: str, status: str) -> None:
        """Set RUNNING, or end the run as FINISHED, FAILED or KILLED."""
        with _translated(f"setting run '{run_id}' {status}", run_id):
            if status == "RUNNING":
                self._client.update_run(run_id, status=status)
            else:
                self._client.set_terminated(run_id, status=status)

    def rename(self, run_id: str, name: str) -> None:
        """Give the run another name."""
        with _translated(f"naming run '{run_id}'", run_id):
            self._client.update_run(run_id, name=name)

    def log_params(self, run_id: str, params: Mapping[str, str], known: Iterable[str]) -> None:
        """Log `params` but those in `known`: MLflow's params are written once."""
        from mlflow.entities import Param

        rows = [Param(k, v) for k, v in params.items() if k not in set(known)]
        with _translated(f"logging params of run '{run_id}'"):
            for start in range(0, len(rows), MAX_BATCH_PARAMS):
                self._client.log_batch(run_id, params=rows[start : start + MAX_BATCH_PARAMS])

    def log_points(self, run_id: str, points: list[Point]) -> None:
        """Log metric values in order; one that is there already changes nothing."""
        from mlflow.entities import Metric

        rows = [Metric(p.key, p.value, p.timestamp_ms, p.step) for p in points]
        with _translated(f"logging metrics of run '{run_id}'"):
            for start in range(0, len(rows), MAX_BATCH_METRICS):
                self._client.log_batch(run_id, metrics=rows[start : start + MAX_BATCH_METRICS])

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags; one that MLflow would cut is left out (a document belongs elsewhere)."""
        from mlflow.entities import RunTag

        rows = [RunTag(k, v) for k, v in tags.items() if len(v) <= MAX_TAG_CHARS]
        with _translated(f"tagging run '{run_id}'"):
            self._client.log_batch(run_id, tags=rows)

    def log_dataset(
        self,
        run_id: str,
        name: str,
        fingerprint: str,
        source: str,
        columns: Mapping[str, str],
        profile: Mapping[str, int],
    ) -> None:
        """Show the dataset in the UI.

        Args:
            run_id: The run.
            name: The dataset's name.
            fingerprint: Its hash, of which the UI shows the beginning.
            source: Where it was read.
            columns: Name to kind: "double" or "string".
            profile: What else is worth showing, such as numbers of rows.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        schema = [{"name": k, "type": v, "required": False} for k, v in columns.items()]
        entry = DatasetInput(
            dataset=Dataset(
                name=name,
                digest=fingerprint[:8],
                source_type="local",
                source=json.dumps({"uri": source}),
                schema=json.dumps({"mlflow_colspec": schema})[:MAX_SCHEMA_CHARS],
                profile=json.dumps(dict(profile)),
            ),
            tags=[InputTag("mlflow.data.context", "training")],
        )
        with _translated(f"logging the dataset of run '{run_id}'"):
            self._client.log_inputs(run_id, datasets=[entry])

    def published(self, run_id: str, keys: Iterable[str]) -> History:
        """Return every published value of the metrics `keys`."""
        history = History()
        with _translated(f"reading the metrics of run '{run_id}'", run_id):
            for key in keys:
                for m in self._client.get_metric_history(run_id, key):
                    history.add(Point(key, m.step, m.timestamp, m.value))
        return history

    def claim_attempt(self, run_id: str, number: int, child_id: str) -> None:
        """Take attempt `number` of the run for `child_id`.

        Raises:
            RunNotUsable: Another process has taken it.
        """
        key = f"{ATTEMPT_PARAM}{number}"
        with contextlib.suppress(StoreUnavailable):  # refused when it holds another value
            self.log_params(run_id, {key: child_id}, known=())
        holder = self.get_run(run_id).params.get(key)
        if holder != child_id:
            raise RunNotUsable(
                run_id, f"is being continued by another process (attempt {number}, run {holder})"
            )

    def artifacts(self, record: RunRecord) -> Artifacts:
        """Return the run's files."""
        return Artifacts(record.artifact_uri, self.uri)


def now_ms() -> int:
    """Return the wall clock in milliseconds, as MLflow counts."""
    return time.time_ns() // 1_000_000
