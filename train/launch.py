"""Opening a run: a fresh one, one that is resumed in place, or a fork.

What every launch ends with is the same: options that are complete, data that is at hand, a
claimed attempt, and the checkpoint to go on from, if there is one. Until the attempt is claimed
nothing that existed is changed.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train import environment, rng
from train.attempt import Attempt
from train.checkpoint.pipeline import Pipeline
from train.checkpoint.store import CheckpointStore
from train.commands import train_command
from train.config import Config, Launch, OnResume, options_of, to_text
from train.data.dataset import Dataset, source_fingerprint
from train.data.provide import cache_folder, prepare_cached, recover, upload
from train.errors import ForkNeeded, Interrupted, RunNotUsable, TrainError, UsageError
from train.metrics import History
from train.report import Reporter
from train.run import Run, Start
from train.script import check_fits, read_script_checkpoint
from train.source import Source, find_source, local_path, require_local_artifacts
from train.tasks.tabular import TabularTask, choose_threads
from train.tracking import DATA_TAG, FINGERPRINT_TAG, OPTIONS_TAG, RunRecord, Tracking

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

    def new_run(self, experiment_id: str) -> RunRecord:
        """Return the run for a fresh start or a fork: the launch's own, or a new one."""
        if self.launched is not None:
            return self.launched
        tags = environment.source_tags()
        return self.tracking.create_run(experiment_id, None, tags)

    def close(self, status: str) -> None:
        """Close what was opened, after an error."""
        try:
            if self.attempt is not None:
                self.attempt.end(status, self.attempt.first_epoch - 1)
            elif self.launched is not None:
                self.tracking.set_status(self.launched.run_id, status)
        except TrainError as error:  # the first error is the one to tell
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
    launcher = _Launcher(tracking, launched, given, reporter, environment.home())
    try:
        if launch.resume_from is not None:
            return _from_file(launcher, Path(launch.resume_from))
        if launch.resume_run is None:
            return _fresh(launcher)
        source = find_source(tracking, launch.resume_run, launch.resume_epoch)
        if launch.fork or not source.is_newest:
            return _fork(launcher, source)
        return _in_place(launcher, source)
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
    start = Start(None, History())
    pipeline = _begin(launcher, task, record, attempt, _identity(task))
    _describe(launcher, task, record)
    return _run(launcher, task, attempt, pipeline, start)


def _in_place(launcher: _Launcher, source: Source) -> Opened:
    record, tracking = source.record, launcher.tracking
    config = _resumed_config(launcher, source)
    task = _task(config, _recover(launcher, source, config))
    # IMPORTANT: all that is read comes before the claim; the claim is the first change.
    published = tracking.published(record.run_id, record.metrics)
    attempt = Attempt.another(
        tracking, record, launcher.launched, source.epoch + 1, _params(task.config)
    )
    _announce(source)
    pipeline = _begin(launcher, task, record, attempt, _identity(task), source)
    if source.checkpoint is None:
        _describe(launcher, task, record)
    return _run(launcher, task, attempt, pipeline, Start(source.checkpoint, published))


def _fork(launcher: _Launcher, source: Source) -> Opened:
    if source.checkpoint is None:
        raise RunNotUsable(source.record.run_id, "has no checkpoint yet, so there is no fork of it")
    config = _forked_config(launcher, source)
    dataset = _recover(launcher, source, source.config)
    if any(options_of(Config)[name][1].group == "Data" for name in _changes(launcher, source)):
        # Other rows, but the model's inputs stay what they were.
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
        launcher, _task(config, dataset), checkpoint, tags, source.record.experiment_id
    )


def _from_file(launcher: _Launcher, path: Path) -> Opened:
    config = Config(**launcher.given)
    checkpoint = read_script_checkpoint(path, config)
    _require_epochs_left(config, checkpoint["epoch"], f"file '{path}'")
    task = _task(config, prepare_cached(config, launcher.home, None))
    check_fits(checkpoint, task, path)
    tags = {"train.resumed_from_file": path.name}
    experiment_id = launcher.tracking.experiment_id()
    return _from_checkpoint(launcher, task, checkpoint, tags, experiment_id)


def _from_checkpoint(
    launcher: _Launcher,
    task: TabularTask,
    checkpoint: dict[str, Any],
    tags: Mapping[str, str],
    experiment_id: str,
) -> Opened:
    """Start a new run whose first act is to commit a checkpoint of its own, then its history."""
    record = launcher.new_run(experiment_id)
    require_local_artifacts(record)
    epoch = checkpoint["epoch"]
    attempt = Attempt.first(launcher.tracking, record, first_epoch=epoch + 1)
    pipeline = _begin(launcher, task, record, attempt, tags)
    _describe(launcher, task, record)
    checkpoint |= {"config": task.config.to_dict(), "data": _data_info(task.dataset)}
    history = History()
    history.load_state_dict(checkpoint["history"])
    pipeline.unpublished = list(history)
    pipeline.commit(checkpoint, history.at(epoch), kept=True)
    # IMPORTANT: the run counts as one of ours only now: without its checkpoint it would start
    # again from epoch 1, and that is not what was asked for.
    launcher.tracking.set_tags(record.run_id, _identity(task))
    _announce_epoch(epoch, checkpoint["best_corr"], checkpoint["best_epoch"])
    return _run(launcher, task, attempt, pipeline, Start(checkpoint, history))


def _begin(
    launcher: _Launcher,
    task: TabularTask,
    record: RunRecord,
    attempt: Attempt,
    tags: Mapping[str, str],
    source: Source | None = None,
) -> Pipeline:
    """Set the run RUNNING, and make the pipeline for its checkpoints."""
    launcher.attempt = attempt
    tracking = launcher.tracking
    spool = environment.spool(tracking.uri, record.run_id)
    if source is not None:
        store, manifests = source.store, source.manifests
    else:
        store, manifests = CheckpointStore(tracking.artifacts(record), record.run_id), []
    pipeline = Pipeline(tracking, store, attempt.number, spool, manifests)
    launcher.reporter.log_to(pipeline.log_file)
    folder = local_path(record.artifact_uri)
    if folder is not None:
        log.info("Checkpoints go to %s: on this machine only", folder)
    versions = {f"train.version.{k}": v for k, v in environment.versions().items()}
    attempt.begin({**tags, **versions, "train.code": environment.code_version() or "unknown"})
    return pipeline


def _describe(launcher: _Launcher, task: TabularTask, record: RunRecord) -> None:
    """Log what a new run is: options, dataset, and the prepared data itself."""
    tracking, dataset = launcher.tracking, task.dataset
    tracking.mark_experiment(record.experiment_id)
    tracking.log_params(record.run_id, _params(task.config), known=record.params)
    preprocessing = dataset.preprocessing
    columns = {f.column: "double" for f in preprocessing.numeric}
    columns |= {f.column: "string" for f in preprocessing.categorical}
    rows = {"train_rows": len(dataset.train), "val_rows": len(dataset.val)}
    tracking.log_dataset(
        record.run_id, dataset.name, dataset.fingerprint, dataset.source, columns, rows
    )
    artifacts = tracking.artifacts(record)
    folder = cache_folder(launcher.home, dataset.fingerprint)
    upload(folder, task.config.upload_data, lambda path: artifacts.upload(path, "data"))


def _run(
    launcher: _Launcher, task: TabularTask, attempt: Attempt, pipeline: Pipeline, start: Start
) -> Opened:
    reporter = launcher.reporter
    for sentence in task.dataset.report:
        log.info("%s", sentence)
    run = Run(task.config, attempt, pipeline, start, _data_info(task.dataset), reporter)
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


def _identity(task: TabularTask) -> dict[str, str]:
    """Return the tags by which a run is known as one of ours, and found again."""
    fingerprint = task.dataset.fingerprint
    return {
        FINGERPRINT_TAG: task.config.fingerprint(task.name, fingerprint),
        OPTIONS_TAG: json.dumps(task.config.to_dict()),
        DATA_TAG: fingerprint,
    }


def _data_info(dataset: Dataset) -> dict[str, Any]:
    return {
        "fingerprint": dataset.fingerprint,
        "name": dataset.name,
        "train_rows": len(dataset.train),
        "val_rows": len(dataset.val),
    }


def _params(config: Config) -> dict[str, str]:
    return {name: to_text(getattr(config, name)) for name in options_of(Config)}


def _recover(launcher: _Launcher, source: Source, config: Config) -> Dataset:
    """Return the data of the run that is gone on from."""
    artifacts = launcher.tracking.artifacts(source.record)
    fingerprint = _fingerprint(source)
    return recover(
        config, launcher.home, fingerprint, lambda name, to: artifacts.download(f"data/{name}", to)
    )


def _fingerprint(source: Source) -> str:
    """Return what the run's data must be."""
    if source.checkpoint is not None:
        return str(source.checkpoint["data"]["fingerprint"])
    return source.record.tags[DATA_TAG]


def _changes(launcher: _Launcher, source: Source) -> dict[str, tuple[str, str]]:
    """Return the given options that would make it another training: name to (old, new)."""
    return {
        name: (to_text(getattr(source.config, name)), to_text(value))
        for name, value in launcher.given.items()
        if options_of(Config)[name][1].on_resume is not OnResume.CHANGE
        and value != getattr(source.config, name)
    }


def _resumed_config(launcher: _Launcher, source: Source) -> Config:
    """Return the run's options, with those that were given where that is sound."""
    run_id, given = source.record.run_id, launcher.given
    config = source.config.replace(**given)
    changes = _changes(launcher, source)
    if "data" in changes and source_fingerprint(config) == _fingerprint(source):
        del changes["data"]  # the same table in another place
    if changes:
        fork = {"resume_run": run_id, "fork": True, **given}
        raise ForkNeeded(run_id, changes, train_command(fork))
    if source.record.status == "FINISHED" and "epochs" not in given:
        more = train_command({"resume_run": run_id, "epochs": 2 * source.epoch})
        raise RunNotUsable(
            run_id, f"is finished after {source.epoch} epochs: pass a larger epochs, as in {more}"
        )
    if config.epochs < source.epoch:
        raise UsageError(
            f"epochs={config.epochs} is fewer than the {source.epoch} that run '{run_id}' has "
            "completed: epochs counts from the run's beginning"
        )
    return config


def _forked_config(launcher: _Launcher, source: Source) -> Config:
    for name, (old, new) in _changes(launcher, source).items():
        if options_of(Config)[name][1].on_resume is OnResume.NEVER:
            raise UsageError(
                f"{name} is {old} in run '{source.record.run_id}' and {new} was given: a fork "
                "goes on with the same model. Start a fresh run for another one"
            )
    config = source.config.replace(**launcher.given)
    _require_epochs_left(config, source.epoch, f"run '{source.record.run_id}'")
    return config


def _require_epochs_left(config: Config, done: int, of: str) -> None:
    if config.epochs <= done:
        raise UsageError(
            f"the checkpoint of {of} has {done} epochs behind it and epochs={config.epochs}: "
            "nothing is left to train. Pass a larger epochs"
        )


def _announce(source: Source) -> None:
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
