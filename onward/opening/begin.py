"""What every way to open a run ends with: a task, a claimed attempt, a pipeline, and the run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onward.attempts.attempt import END_SECONDS, Attempt
from onward.attempts.heartbeat import Beat
from onward.checkpoint.pipeline import Pipeline
from onward.checkpoint.policy import Retention
from onward.checkpoint.spool import RunFolder
from onward.errors import Superseded, TrainError
from onward.opening.identity import data_info, machine_tags, upload_diff
from onward.opening.source import Source, data_of_run, local_folder, open_store
from onward.options.run_options import Config, Launch
from onward.publish.publisher import Publisher
from onward.publish.results import publish_results
from onward.run.run import Run, Start
from onward.system import environment, git
from onward.system.threads import bounded
from onward.terminal.report import Reporter
from onward.tracking.artifact_folder import warn_of_percent
from onward.tracking.client import Tracking
from onward.tracking.record import HOST_TAG, RunRecord
from onward.words.language import _
from train.tabular.data.dataset import Dataset
from train.tabular.data.prepare import listed
from train.tabular.data.sentences import told
from train.tabular.task import TabularTask, choose_threads

log = logging.getLogger(__name__)

Opened = tuple[Run, TabularTask]


@dataclasses.dataclass
class Launcher:
    """What every way to open a run needs."""

    tracking: Tracking
    launched: RunRecord | None  # the run that `mlflow run` made for this process
    given: Mapping[str, Any]  # the options of Config that were given, and only those
    reporter: Reporter
    home: Path
    attempt: Attempt | None = None  # once it is claimed
    folders: dict[str, RunFolder] = dataclasses.field(default_factory=dict)
    launch: Launch = Launch()  # noqa: RUF009 - it is frozen

    def new_run(self, experiment_id: str) -> RunRecord:
        """Return the run for a fresh start or a fork: the launch's own, or a new one.

        The launch's own is not used where its files cannot be reached from here.
        """
        if self.launched is not None:
            own_id = self.launched.experiment_id
            experiment_id = self.tracking.usable_experiment(own_id)
            if experiment_id == own_id:
                self.tracking.artifacts(self.launched)  # that they can be stored is known early
                return self.launched
        self.tracking.require_artifacts(experiment_id)
        name = self.launch.run_name or environment.run_name()
        return self.tracking.create_run(experiment_id, name, git.source_tags())

    def first_attempt(self, record: RunRecord, first_epoch: int = 1) -> Attempt:
        """Claim attempt 1 of a run that `new_run` has returned."""
        return Attempt.first(self.tracking, record, first_epoch, self.launched)

    def folder(self, record: RunRecord) -> RunFolder:
        """Return this disk's folder for the run, one object for each run."""
        return self.folders.setdefault(record.run_id, local_folder(self.tracking, record))

    def close(self, status: str) -> None:
        """Close what was opened, after an error."""
        try:
            if self.attempt is not None:
                last_epoch = self.attempt.first_epoch - 1
                self.attempt.try_to_end(status, last_epoch)
                spool = self.folders[self.attempt.run_id].spool(self.attempt.number)
                spool.write_journal(self.attempt.journal(status, last_epoch))
            elif self.launched is not None:
                set_status = functools.partial(self.tracking.set_status, self.launched.run_id)
                bounded(lambda: set_status(status), END_SECONDS)
        except (TrainError, OSError) as error:  # the first error is the one to tell
            log.warning(_("The run could not be closed as %s: %s"), status, error)
        finally:  # last: whoever takes the folder now finds all that was recorded
            for folder in self.folders.values():
                folder.release()


def begin(
    launcher: Launcher,
    task: TabularTask,
    record: RunRecord,
    attempt: Attempt,
    tags: Mapping[str, str],
    source: Source | None = None,
) -> Pipeline:
    """Set the run RUNNING, and make the pipeline for its checkpoints."""
    tracking, config = launcher.tracking, task.config
    launcher.attempt = attempt
    name = launcher.launch.run_name
    if name is not None and name != record.name:
        tracking.rename(record.run_id, name)
        record = dataclasses.replace(record, name=name)
    if record.name:
        log.info(_("Run name: %s"), record.name)
    folder = launcher.folder(record)
    folder.acquire()
    spool = folder.spool(attempt.number)
    launcher.reporter.log_to(spool.log_file)
    is_off = config.upload == "off"
    tags = {**launcher.launch.run_tags(), **tags}
    tags = {**tags, **({HOST_TAG: environment.hostname()} if is_off else {})}
    attempt.begin({**tags, **Beat.of_this_process(attempt.number, 0, {}).to_tag()}, machine_tags())
    upload_diff(tracking, attempt.child_id, spool.folder, config.upload_diff)
    spool.write_journal(attempt.journal("RUNNING", attempt.first_epoch - 1))
    if source is not None:
        store, manifests = source.store, source.manifests
    else:
        record = dataclasses.replace(record, tags={**record.tags, **tags})
        store, manifests = open_store(tracking, record, folder), []
    if store.folder is not None:
        log.info(_("Checkpoints go to %s: on this machine only"), store.folder)
        warn_of_percent(record)
    retention = Retention.of(config)
    publisher = Publisher(
        tracking, store, spool, retention, manifests, not is_off, attempt.check_lease
    )
    return Pipeline(publisher, spool, config.max_spool_bytes, config.upload == "sync")


def make_run(
    launcher: Launcher, task: TabularTask, attempt: Attempt, pipeline: Pipeline, start: Start
) -> Opened:
    """Return the run, to be entered, and the task to train."""
    reporter, folder = launcher.reporter, launcher.folders[attempt.run_id]
    for sentence in task.dataset.report:
        log.info("%s", told(sentence))
    log.info(_("It learns from %s"), listed(task.dataset.preprocessing.column_names))
    log.info("%s", task.in_words())
    finish = functools.partial(_finish, launcher.tracking, attempt, pipeline.publisher, task)
    data = data_info(task.dataset)
    return Run(task.config, attempt, pipeline, folder, start, data, reporter, finish), task


def _finish(tracking: Tracking, attempt: Attempt, publisher: Publisher, task: TabularTask) -> None:
    with contextlib.suppress(Superseded):
        publish_results(
            tracking, attempt.run_id, publisher.store, task.config, lambda: task.dataset,
            attempt.check_lease,
        )  # fmt: skip


def make_task(config: Config, dataset: Dataset) -> TabularTask:
    """Return the task, with every option that was left to choose now chosen."""
    device = environment.choose_device(config.device)
    config = config.replace(
        target=dataset.preprocessing.target,
        schedule_epochs=config.schedule_epochs or config.epochs,
    )
    task = TabularTask(dataset, config, device)
    if config.threads:
        return task
    threads = choose_threads(task.build_model(), config.batch_size, environment.num_cpus())
    return TabularTask(dataset, config.replace(threads=threads), device)


def recover_data(launcher: Launcher, source: Source, config: Config) -> Dataset:
    """Return the data of the run that is gone on from."""
    return data_of_run(launcher.tracking, source.record, config, source.data_fingerprint)
