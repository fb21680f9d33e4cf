"""MLflow, as far as this project uses it. The only package that imports mlflow, and late.

`Tracking` is a connection to a tracking server; `RunRecord` is one run on it, `Artifacts` the
files of a run. MLflow's exceptions end here: what leaves is one of `onward.errors`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from onward.errors import RunNotUsable, StoreUnavailable, UnsafeValue
from onward.metrics import History, Point
from onward.system import environment
from onward.system.untrusted import path_part, shown
from onward.tracking.artifacts import Artifacts
from onward.tracking.connect import open_client
from onward.tracking.names import (
    ATTEMPT_PARAM,
    ATTEMPT_TAG,
    DATA_TAG,
    ENDED_TAG,
    EPOCH_TAG,
    FINGERPRINT_TAG,
    HEARTBEAT_TAG,
    HOST_TAG,
    LATEST_CHECKPOINT_TAG,
    MANIFEST_TAG,
    MONITOR_TAG,
    OPTIONS_TAG,
    PARENT_TAG,
    TASK_TAG,
    USER_TAG,
)
from onward.tracking.record import RunRecord, records_of
from onward.tracking.translate import translated
from onward.words.language import _
from onward.words.redact import redact
from onward.words.shell import quoted

log = logging.getLogger(__name__)

__all__ = [
    "ATTEMPT_PARAM",
    "ATTEMPT_TAG",
    "DATA_TAG",
    "ENDED_TAG",
    "EPOCH_TAG",
    "FINGERPRINT_TAG",
    "HEARTBEAT_TAG",
    "HOST_TAG",
    "LATEST_CHECKPOINT_TAG",
    "MANIFEST_TAG",
    "MAX_TAG_CHARS",
    "MONITOR_TAG",
    "OPTIONS_TAG",
    "PARENT_TAG",
    "TASK_TAG",
    "USER_TAG",
    "Artifacts",
    "RunRecord",
    "Tracking",
    "now_ms",
]  # fmt: skip

MAX_BATCH_METRICS = 900  # MLflow takes 1,000 items a request
MAX_BATCH_PARAMS = 100
MAX_TAG_CHARS = 7_500  # MLflow cuts a tag at 8,000 without a word
MAX_SCHEMA_CHARS = 1 << 20  # MLflow refuses more


class Tracking:
    """A connection to the tracking server that MLflow's variables choose.

    Raises:
        StoreUnavailable: It is of a kind that MLflow no longer opens.
    """

    def __init__(self) -> None:
        self.uri, self.client, self._calls = open_client()
        self._has_told = False  # that the server's files are in folders of this machine
        self._told: set[str] = set()

    def probe(self) -> None:
        """Ask the server for anything, before work is done that would be lost without it.

        Raises:
            StoreUnavailable: It does not answer.
        """
        with translated(_("connecting")):
            self.client.search_experiments(max_results=1)

    def silent_seconds(self) -> float:
        """Return for how long a call under way, in any thread, has been waiting for its answer."""
        return self._calls.silent_seconds() if self._calls is not None else 0.0

    def get_run(self, run_id: str) -> RunRecord:
        """Return the run.

        Raises:
            RunNotUsable: It is unknown or deleted.
            StoreUnavailable: The answer is none. Call again later.
            UnsafeValue: The server tells of another one.
        """
        with translated(_("reading run '{run_id}'").format(run_id=run_id), run_id):
            run = self.client.get_run(run_id)
        if not run.info.run_id:  # of another call, or of something between here and the server
            told = _("the answer for run '{run_id}' tells of no run")
            raise StoreUnavailable(told.format(run_id=run_id))
        if run.info.run_id != run_id:
            asked = _("the answer for run '{run_id}',").format(run_id=shown(run_id))
            raise UnsafeValue(asked, shown(str(run.info.run_id)))
        if run.info.lifecycle_stage == "deleted":
            raise RunNotUsable(
                run_id,
                _("was deleted; `{command}` brings it back").format(
                    command=quoted("mlflow", "runs", "restore", "--run-id", run_id)
                ),
            )
        return RunRecord.of(run)

    def search_runs(
        self, experiment_id: str, fingerprint: str | None = None, is_unfinished: bool = False
    ) -> list[RunRecord]:
        """Return this program's runs, newest first: the one that was worked on last.

        Args:
            experiment_id: Where to look.
            fingerprint: Only those of this fingerprint; default: only those that ever committed
                a checkpoint.
            is_unfinished: Only those that are not FINISHED. A server takes milliseconds for each
                run that it tells of.
        """
        query = f"tags.`{FINGERPRINT_TAG}` LIKE '%' AND tags.`{EPOCH_TAG}` LIKE '%'"
        if fingerprint is not None:
            query = f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}'"
        if is_unfinished:
            query += " AND attributes.status != 'FINISHED'"
        found: list[Any] = []
        token = None
        with translated(
            _("searching experiment '{experiment_id}'").format(experiment_id=experiment_id)
        ):
            while True:
                page = self.client.search_runs(
                    [experiment_id],
                    query,
                    order_by=["attributes.start_time DESC"],
                    page_token=token,
                )
                found += page
                token = page.token
                if not token:
                    break
        return sorted(records_of(found), key=lambda record: record.last_active, reverse=True)

    def open_children(self, record: RunRecord) -> list[RunRecord]:
        """Return the RUNNING children of a run."""
        query = f"tags.`{PARENT_TAG}` = '{record.run_id}' AND attributes.status = 'RUNNING'"
        doing = _("searching the attempts of run '{run_id}'").format(run_id=record.run_id)
        with translated(doing, record.run_id):
            found = self.client.search_runs([record.experiment_id], query)
        return records_of(found)

    def experiment_id(self) -> str:
        """Return the experiment that MLflow's variables choose, made if it is only named."""
        chosen_id, name = environment.experiment()
        if chosen_id is not None or name is None:
            return self.usable_experiment(chosen_id or "0")
        return self.usable_experiment(self._experiment_named(name))

    def usable_experiment(self, experiment_id: str) -> str:
        """Return an experiment whose files can be reached from here: that one, or a twin of it.

        `mlflow ui` in an empty folder makes an experiment whose files go through it, in a database
        that we use directly. Its runs then go to an experiment beside it, with files in a folder.
        """
        if not self.uri.startswith("sqlite"):
            return experiment_id
        try:
            with translated(_("opening experiment '{name}'").format(name=experiment_id)):
                found = self.client.get_experiment(experiment_id)
        except StoreUnavailable:  # that there is none is told when a run is made in it
            return experiment_id
        if not found.artifact_location.startswith("mlflow-artifacts:"):
            return experiment_id
        twin = f"{found.name}-files"
        if twin not in self._told:
            self._told.add(twin)
            log.warning(
                _("Experiment '%s' was made by an MLflow server, through which its files go, and "
                  "none is used here: its runs go to experiment '%s'. MLFLOW_TRACKING_URI chooses "
                  "a server"),
                shown(found.name), shown(twin),
            )  # fmt: skip
        return self._experiment_named(twin)

    def _experiment_named(self, name: str) -> str:
        with translated(_("opening experiment '{name}'").format(name=name)):
            found = self.client.get_experiment_by_name(name)
            if found is None:
                try:
                    return path_part(self.client.create_experiment(name), _("experiment ID"))
                except Exception:  # another process may have made it in between
                    found = self.client.get_experiment_by_name(name)
                    if found is None:
                        raise
            return path_part(found.experiment_id, _("experiment ID"))

    def require_artifacts(self, experiment_id: str) -> None:
        """Make sure, before anything is made, that files of the experiment's runs can be stored.

        Raises:
            StoreUnavailable: A package is missing, or MLflow knows no store of that kind.
        """
        with translated(_("opening experiment '{name}'").format(name=experiment_id)):
            found = self.client.get_experiment(experiment_id)
        Artifacts(found.artifact_location, self.uri)

    def create_run(
        self, experiment_id: str, name: str | None, tags: Mapping[str, str]
    ) -> RunRecord:
        """Make a run, RUNNING from now."""
        with translated(
            _("creating a run in experiment '{experiment_id}'").format(experiment_id=experiment_id)
        ):
            run = self.client.create_run(experiment_id, run_name=name, tags=dict(tags))
        return RunRecord.of(run)

    def set_status(self, run_id: str, status: str) -> None:
        """Set RUNNING, or end the run as FINISHED, FAILED or KILLED."""
        with translated(
            _("setting run '{run_id}' {status}").format(run_id=run_id, status=status), run_id
        ):
            if status == "RUNNING":
                self.client.update_run(run_id, status=status)
            else:
                self.client.set_terminated(run_id, status=status)

    def rename(self, run_id: str, name: str) -> None:
        """Give the run another name."""
        with translated(_("naming run '{run_id}'").format(run_id=run_id), run_id):
            self.client.update_run(run_id, name=name)

    def log_params(self, run_id: str, params: Mapping[str, str], known: Iterable[str]) -> None:
        """Log `params` but those in `known`: MLflow's params are written once."""
        from mlflow.entities import Param

        rows = [Param(k, v) for k, v in params.items() if k not in set(known)]
        with translated(_("logging params of run '{run_id}'").format(run_id=run_id)):
            for start in range(0, len(rows), MAX_BATCH_PARAMS):
                self.client.log_batch(run_id, params=rows[start : start + MAX_BATCH_PARAMS])

    def log_points(
        self, run_id: str, points: list[Point], tags: Mapping[str, str] | None = None
    ) -> None:
        """Log metric values in order; one that is there already changes nothing.

        Args:
            run_id: The run.
            points: The values.
            tags: Tags to set besides, as `set_tags` does, when all values are there: in one request
                with the last of them, of which a server stores metrics first.
        """
        from mlflow.entities import Metric

        rows = [Metric(p.key, p.value, p.timestamp_ms, p.step) for p in points]
        told = _tag_rows(tags or {})
        with translated(_("logging metrics of run '{run_id}'").format(run_id=run_id), run_id):
            while len(rows) > MAX_BATCH_METRICS:
                self.client.log_batch(run_id, metrics=rows[:MAX_BATCH_METRICS])
                del rows[:MAX_BATCH_METRICS]
            if rows or told:
                self.client.log_batch(run_id, metrics=rows, tags=told)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags; one that MLflow would cut is left out (a document belongs elsewhere)."""
        with translated(_("tagging run '{run_id}'").format(run_id=run_id)):
            self.client.log_batch(run_id, tags=_tag_rows(tags))

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
        with translated(_("logging the dataset of run '{run_id}'").format(run_id=run_id)):
            self.client.log_inputs(run_id, datasets=[entry])

    def published(self, run_id: str, keys: Iterable[str]) -> History:
        """Return every published value of the metrics `keys`."""
        history = History()
        with translated(_("reading the metrics of run '{run_id}'").format(run_id=run_id), run_id):
            for key in keys:
                for m in self.client.get_metric_history(run_id, key):
                    history.add(Point(key, m.step, m.timestamp, m.value))
        return history

    def claim_attempt(self, run_id: str, number: int, child_id: str) -> None:
        """Take attempt `number` of the run for `child_id`.

        Raises:
            RunNotUsable: Another process has taken it.
        """
        key = f"{ATTEMPT_PARAM}{number}"
        refused = None
        try:
            self.log_params(run_id, {key: child_id}, known=())
        except StoreUnavailable as error:  # as it is when the param holds another value
            refused = error
        holder = self.get_run(run_id).params.get(key)
        if holder is None:
            told = _("attempt {number} of '{run_id}' is not claimed")
            raise refused or StoreUnavailable(told.format(number=number, run_id=run_id))
        if holder != child_id:
            raise RunNotUsable(
                run_id,
                _("is being continued by another process (attempt {number}, run {holder})").format(
                    number=number, holder=holder
                ),
            )

    def artifacts(self, record: RunRecord) -> Artifacts:
        """Return the run's files.

        Raises:
            StoreUnavailable: A server names a folder of this machine that holds other files.
        """
        artifacts = Artifacts(record.artifact_uri, self.uri)
        if artifacts.folder is not None and self.uri.startswith("http"):
            self._look_into(artifacts, record.run_id)
        return artifacts

    def _look_into(self, artifacts: Artifacts, run_id: str) -> None:
        """Make sure that a folder that a server chose on this machine is the run's own."""
        server, folder = redact(self.uri), artifacts.folder
        foreign = artifacts.find_foreign(run_id)
        if foreign is not None:
            raise StoreUnavailable(
                _(
                    "the server {server} names the folder '{folder}' of this machine for the files "
                    "of run '{run_id}', and '{file}' in it is none of that run: nothing is read or "
                    "written there. `mlflow server --serve-artifacts` keeps the files itself"
                ).format(server=server, folder=folder, run_id=run_id, file=shown(foreign))
            )
        if not self._has_told:
            self._has_told = True
            log.warning(
                _("The server %s keeps files of its runs in folders of this machine, such as '%s': "
                  "another machine has them only if it shares that disk"),
                server, folder,
            )  # fmt: skip


def _tag_rows(tags: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(k, v) for k, v in tags.items() if len(v) <= MAX_TAG_CHARS]


def now_ms() -> int:
    """Return the wall clock in milliseconds, as MLflow counts."""
    return time.time_ns() // 1_000_000
