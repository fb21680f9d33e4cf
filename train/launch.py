"""Opening a run: a fresh one, one that is resumed in place, or a fork.

What every launch ends with is the same: options that are complete, data that is at hand, a
claimed attempt, and the checkpoint to go on from, if there is one. Until the attempt is claimed
nothing that existed is changed.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train import environment, rng
from train.attempt import Attempt
from train.checkpoint.format import load_checkpoint, write_checkpoint
from train.checkpoint.pipeline import Pipeline
from train.checkpoint.policy import Retention
from train.checkpoint.publisher import Publisher
from train.checkpoint.spool import RunFolder, Spool
from train.config import Config, Launch
from train.data.dataset import Dataset
from train.data.provide import prepare_cached, recover
from train.describe import data_info, describe, identity, params, upload_data
from train.errors import (
    Interrupted,
    RunNotUsable,
    TrainError,
)
from train.metrics import History
from train.options import changes_data, forked_config, require_epochs_left, resumed_config
from train.report import Reporter
from train.run import Run, Start
from train.script import check_fits, read_checkpoint_file
from train.source import Source, find_run, find_source, open_store, require_local_artifacts
from train.sync import good_checkpoints, publish_waiting
from train.tasks.tabular import TabularTask, choose_threads
from train.tracking import HOST_TAG, RunRecord, Tracking

log = logging.getLogger(__name__)

Opened = tuple[Run, TabularTask]


@dataclasses.dataclass
class _Launcher:
    """What every way to open a run needs."""

    tracking: Tracking
    launched: RunRecord | None  # the run that `mlflow run` made for this process
    given: Mapping[str, Any]  # the options of Config that were given, and only those
    reporter: Reporter
    home: Path
    attempt: Attempt | None = None  # once it is claimed
    folders: dict[str, RunFolder] = dataclasses.field(default_factory=dict)

    def new_run(self, experiment_id: str) -> RunRecord:
        """Return the run for a fresh start or a fork: the launch's own, or a new one."""
        if self.launched is not None:
            return self.launched
        tags = environment.source_tags()
        return self.tracking.create_run(experiment_id, None, tags)

    def folder(self, record: RunRecord) -> RunFolder:
        """Return this disk's folder for the run, one object for each run."""
        path = environment.run_folder(self.tracking.uri, record.run_id)
        return self.folders.setdefault(record.run_id, RunFolder(path))

    def close(self, status: str) -> None:
        """Close what was opened, after an error."""
        for folder in self.folders.values():
            folder.release()
        try:
            if self.attempt is not None:
                last_epoch = self.attempt.first_epoch - 1
                self.attempt.end(status, last_epoch)
                spool = self.folders[self.attempt.run_id].spool(self.attempt.number)
                spool.write_journal(self.attempt.journal(status, last_epoch))
            elif self.launched is not None:
                self.tracking.set_status(self.launched.run_id, status)
        except (TrainError, OSError) as error:  # the first error is the one to tell
            log.warning("The run could not be closed as %s: %s", status, error)


def open_run(given: Mapping[str, Any], launch: Launch, reporter: Reporter) -> Opened:
    """Open the run that a command asks for.

    Args:
        given: The options of `Config` that were given, and only those.
        launch: What to go on from.
        reporter: What the terminal shows.

    Returns:
        The run, not yet entered, and the task to train.

    Raises:
        TrainError: One of its kinds, when the run cannot be opened. The run that `mlflow run`
            made for the launch is closed as FAILED.
    """
    tracking = Tracking()
    tracking.probe()
    launched_id = environment.launched_run_id()
    launched = tracking.get_run(launched_id) if launched_id else None
    if launched is not None and launched.attempts:
        raise RunNotUsable(
            launched.run_id,
            "was named by MLFLOW_RUN_ID or --run-id, and has been trained already: to go on with "
            f"it pass resume_run={launched.run_id} in place of that",
        )
    launcher = _Launcher(tracking, launched, given, reporter, environment.home())
    try:
        if launch.resume_from is not None:
            return _from_file(launcher, Path(launch.resume_from))
        if launch.resume_run is None:
            return _fresh(launcher)
        return _resume(launcher, find_run(tracking, launch.resume_run), launch)
    except BaseException as error:  # a stop by Ctrl-C must close the run too
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        launcher.close("KILLED" if stopped else "FAILED")
        raise


def _fresh(launcher: _Launcher) -> Opened:
    config = Config(**launcher.given)
    dataset = prepare_cached(config, launcher.home, None)
    task = _task(config, dataset)
    record = launcher.new_run(launcher.tracking.experiment_id())
    require_local_artifacts(record)
    attempt = Attempt.first(launcher.tracking, record)
    pipeline = _begin(launcher, task, record, attempt, identity(task))
    describe(launcher.tracking, task, record, launcher.home)
    return _run(launcher, task, attempt, pipeline, Start(None, History()))


def _resume(launcher: _Launcher, record: RunRecord, launch: Launch) -> Opened:
    """Go on with a run, or fork it where an older checkpoint is asked for."""
    tracking, folder = launcher.tracking, launcher.folder(record)
    store = open_store(tracking, record, folder)
    if folder.acquire():
        # What this disk has and the store has not yet comes first: it is newer.
        for spool in publish_waiting(tracking, record, store, folder):
            _tell_overtaken(record, spool)
        record = tracking.get_run(record.run_id)
    source = find_source(record, store, launch.resume_epoch)
    if launch.fork or not source.is_newest:
        folder.release()
        return _fork(launcher, source)
    if not folder.acquire():
        raise RunNotUsable(
            record.run_id,
            "is being trained by another process on this machine: wait for it, or fork with "
            "fork=true",
        )
    return _in_place(launcher, source)


def _in_place(launcher: _Launcher, source: Source) -> Opened:
    record, tracking = source.record, launcher.tracking
    config = resumed_config(source, launcher.given)
    task = _task(config, _recover(launcher, source, config))
    # IMPORTANT: all that is read comes before the claim; the claim is the first change.
    published = tracking.published(record.run_id, record.metrics)
    attempt = Attempt.another(
        tracking, record, launcher.launched, source.epoch + 1, params(task.config)
    )
    _announce(source, config)
    pipeline = _begin(launcher, task, record, attempt, identity(task), source)
    if source.checkpoint is None:
        describe(launcher.tracking, task, record, launcher.home)
    elif launcher.given.get("upload_data") == "yes":
        upload_data(launcher.tracking, task, record, launcher.home)
    return _run(launcher, task, attempt, pipeline, Start(source.checkpoint, published))


def _fork(launcher: _Launcher, source: Source) -> Opened:
    if source.checkpoint is None:
        raise RunNotUsable(source.record.run_id, "has no checkpoint yet, so there is no fork of it")
    config = forked_config(source, launcher.given)
    dataset = _recover(launcher, source, source.config)
    if changes_data(source, launcher.given):
        # Other rows, but the model's inputs stay what they were.
        log.warning(
            "The rows are split anew: some that the run was trained on may now validate it, so "
            "that its metrics look better than they are"
        )
        dataset = prepare_cached(config, launcher.home, dataset.preprocessing)
    tags = {
        "train.forked_from_run": source.record.run_id,
        "train.forked_from_epoch": str(source.epoch),
    }
    log.info("Forking run '%s' at epoch %d", source.record.run_id, source.epoch)
    checkpoint = dict(source.checkpoint)
    if config.seed != source.config.seed:
        checkpoint["rng"] = rng.fresh("fork", config.seed, source.epoch)
    return _from_checkpoint(
        launcher, _task(config, dataset), [checkpoint], tags, source.record.experiment_id
    )


def _from_file(launcher: _Launcher, path: Path) -> Opened:
    config, checkpoint = read_checkpoint_file(path, launcher.given)
    require_epochs_left(config, checkpoint["epoch"], f"file '{path}'")
    task = _task(config, prepare_cached(config, launcher.home, None))
    check_fits(checkpoint, task, path)
    tags = {"train.resumed_from_file": path.name}
    experiment_id = launcher.tracking.experiment_id()
    return _from_checkpoint(launcher, task, [checkpoint], tags, experiment_id)


def _from_checkpoint(
    launcher: _Launcher,
    task: TabularTask,
    checkpoints: list[dict[str, Any]],
    tags: Mapping[str, str],
    experiment_id: str,
) -> Opened:
    """Start a new run whose first act is to commit checkpoints of its own, with their history.

    It goes on from the last of `checkpoints`.
    """
    record = launcher.new_run(experiment_id)
    require_local_artifacts(record)
    checkpoint = checkpoints[-1]
    epoch = checkpoint["epoch"]
    attempt = Attempt.first(launcher.tracking, record, first_epoch=epoch + 1)
    pipeline = _begin(launcher, task, record, attempt, tags)
    describe(launcher.tracking, task, record, launcher.home)
    history = History()
    history.load_state_dict(checkpoint["history"])
    pipeline.publisher.add(history)
    for one in checkpoints:
        one |= {"config": task.config.to_dict(), "data": data_info(task.dataset)}
        path, metrics = pipeline.spool.path(f"epoch_{one['epoch']}"), history.at(one["epoch"])
        manifest = write_checkpoint(path, one, attempt=1, kept=True, metrics=metrics)
        pipeline.publisher.commit(manifest)
        pipeline.spool.remove(manifest.name)
    # IMPORTANT: the run counts as one of ours only now: without its checkpoint it would start
    # again from epoch 1, and that is not what was asked for.
    launcher.tracking.set_tags(record.run_id, identity(task))
    _announce_epoch(epoch, checkpoint["best_corr"], checkpoint["best_epoch"])
    return _run(launcher, task, attempt, pipeline, Start(checkpoint, history))


def sync_run(tracking: Tracking, run_id: str, as_fork: bool, reporter: Reporter) -> None:
    """Publish what waits of a run on this disk.

    Args:
        tracking: The server.
        run_id: The run.
        as_fork: Make a new run of what a later attempt has overtaken.
        reporter: Where the log goes.

    Raises:
        RunNotUsable: A process on this machine is working on the run, and publishes it itself.
    """
    record = find_run(tracking, run_id)
    run_id = record.run_id
    folder = RunFolder(environment.run_folder(tracking.uri, run_id))
    if not folder.acquire():
        raise RunNotUsable(run_id, "is being trained by a process here, which publishes it itself")
    try:
        if not folder.waiting():
            log.info("Nothing of run '%s' waits on this disk", run_id)
        store = open_store(tracking, record, folder)
        for spool in publish_waiting(tracking, record, store, folder):
            if as_fork:
                new_id = fork_spool(tracking, record, spool, reporter)
                log.info("Attempt %d is now run %s: resume it by that", spool.attempt, new_id)
            else:
                _tell_overtaken(record, spool)
    finally:
        folder.release()


def _tell_overtaken(record: RunRecord, spool: Spool) -> None:
    log.warning(
        "Attempt %d of run '%s' was overtaken by attempt %d, so what it left in '%s' is kept and "
        "not published: `python -m train sync %s --as_fork true` makes a run of it",
        spool.attempt, record.run_id, record.attempts, spool.folder, record.run_id,
    )  # fmt: skip


def fork_spool(tracking: Tracking, record: RunRecord, spool: Spool, reporter: Reporter) -> str:
    """Make a run of the checkpoints that an overtaken attempt left on this disk.

    Returns:
        The ID of the new run, which is KILLED: it can be resumed.
    """
    manifests = good_checkpoints(spool)
    paths = [spool.path(manifest.name) for manifest in manifests]
    checkpoints = [
        load_checkpoint(path, manifest, str(path))
        for path, manifest in zip(paths, manifests, strict=True)
    ]
    config = Config.from_dict(checkpoints[-1]["config"])
    folder = RunFolder(environment.run_folder(tracking.uri, record.run_id))
    store = open_store(tracking, record, folder)
    source = Source(record, store, manifests, manifests[-1], checkpoints[-1], config)
    launcher = _Launcher(tracking, None, {}, reporter, environment.home())
    tags = {
        "train.forked_from_run": record.run_id,
        "train.forked_from_epoch": str(source.epoch),
    }
    task = _task(config, _recover(launcher, source, config))
    run, _ = _from_checkpoint(launcher, task, checkpoints, tags, record.experiment_id)
    launcher.close("KILLED")
    launcher.folders[run.run_id].spool(1).discard()
    spool.discard()
    return run.run_id


def _begin(
    launcher: _Launcher,
    task: TabularTask,
    record: RunRecord,
    attempt: Attempt,
    tags: Mapping[str, str],
    source: Source | None = None,
) -> Pipeline:
    """Set the run RUNNING, and make the pipeline for its checkpoints."""
    tracking, config = launcher.tracking, task.config
    launcher.attempt = attempt
    folder = launcher.folder(record)
    folder.acquire()
    spool = folder.spool(attempt.number)
    launcher.reporter.log_to(spool.log_file)
    is_off = config.upload == "off"
    tags = {**tags, **({HOST_TAG: environment.hostname()} if is_off else {})}
    versions = {f"train.version.{k}": v for k, v in environment.versions().items()}
    attempt.begin({**tags, **versions, "train.code": environment.code_version() or "unknown"})
    spool.write_journal(attempt.journal("RUNNING", attempt.first_epoch - 1))
    if source is not None:
        store, manifests = source.store, source.manifests
    else:
        record = dataclasses.replace(record, tags={**record.tags, **tags})
        store, manifests = open_store(tracking, record, folder), []
    if store.folder is not None:
        log.info("Checkpoints go to %s: on this machine only", store.folder)
    retention = Retention.of(config)
    publisher = Publisher(
        tracking, store, spool, retention, manifests, not is_off, attempt.check_lease
    )
    return Pipeline(publisher, spool, config.max_spool_bytes, config.upload == "sync")


def _run(
    launcher: _Launcher, task: TabularTask, attempt: Attempt, pipeline: Pipeline, start: Start
) -> Opened:
    reporter, folder = launcher.reporter, launcher.folders[attempt.run_id]
    for sentence in task.dataset.report:
        log.info("%s", sentence)
    run = Run(task.config, attempt, pipeline, folder, start, data_info(task.dataset), reporter)
    return run, task


def _task(config: Config, dataset: Dataset) -> TabularTask:
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


def _recover(launcher: _Launcher, source: Source, config: Config) -> Dataset:
    """Return the data of the run that is gone on from."""
    artifacts = launcher.tracking.artifacts(source.record)
    return recover(
        config,
        launcher.home,
        source.data_fingerprint,
        lambda name, to: artifacts.download(f"data/{name}", to),
    )


def _announce(source: Source, config: Config) -> None:
    if source.epoch >= config.epochs:
        log.info("Nothing is left to train: the run has its %d epochs", source.epoch)
        return
    if source.checkpoint is None:
        log.info("Run '%s' died before its first checkpoint", source.record.run_id)
        log.info("Starting again from epoch 1 (从 epoch 1 重新开始)")
        return
    checkpoint = source.checkpoint
    _announce_epoch(source.epoch, checkpoint["best_corr"], checkpoint["best_epoch"])


def _announce_epoch(epoch: int, best_corr: float | None, best_epoch: int | None) -> None:
    log.info("Resuming training from epoch %d (恢复训练，从 epoch %d 开始)", epoch + 1, epoch + 1)
    if best_corr is not None:
        log.info("Best correlation so far: %.5f (epoch %s)", best_corr, best_epoch)
