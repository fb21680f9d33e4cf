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

from onward.attempts.attempt import Attempt
from onward.attempts.heartbeat import Beat, wait_until_free
from onward.checkpoint.format import load_content, write_checkpoint
from onward.checkpoint.manifest import checkpoint_name
from onward.checkpoint.spool import Spool
from onward.checkpoint.transfers import show_upload
from onward.errors import Interrupted, RunNotUsable
from onward.metrics import History
from onward.opening import drift
from onward.opening.begin import Launcher, Opened, begin, make_run, make_task, recover_data
from onward.opening.changes import (
    changes_data,
    fork_command,
    forked_config,
    require_epochs_left,
    resumed_config,
)
from onward.opening.identity import data_info, describe, hide_secrets, identity, params, upload_data
from onward.opening.restored import report_doubted
from onward.opening.source import (
    Source,
    find_run,
    find_source,
    is_trained,
    local_folder,
    open_store,
    whose,
)
from onward.opening.waiting import good_checkpoints, publish_waiting
from onward.options.command import train_command
from onward.options.run_options import Config, Launch
from onward.run import rng
from onward.run.run import Start
from onward.system import environment
from onward.terminal.report import Reporter
from onward.tracking.artifact_folder import require_local_artifacts
from onward.tracking.client import Tracking
from onward.tracking.record import FINGERPRINT_TAG, RunRecord
from onward.words.language import _
from onward.words.shell import command
from train.fits import fitted
from train.script import check_order, read_checkpoint_file
from train.tabular.data.provide import prepare_cached
from train.tabular.task import TabularTask

log = logging.getLogger(__name__)


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
    if launch.checkpoint_key is not None:
        environment.set_checkpoint_key(launch.checkpoint_key)
    environment.checkpoint_key()  # refused before anything is opened
    tracking = Tracking()
    tracking.probe()
    launched_id = environment.launched_run_id()
    launched = tracking.get_run(launched_id) if launched_id else None
    if launched is not None and launched.attempts:
        raise RunNotUsable(
            launched.run_id,
            _("was named by MLFLOW_RUN_ID or --run-id, and has been trained already: to go on "
              "with it pass resume_run={run_id} in place of that").format(run_id=launched.run_id),
        )  # fmt: skip
    if launched is not None:
        hide_secrets(tracking, launched)
    launcher = Launcher(tracking, launched, given, reporter, environment.home(), launch=launch)
    try:
        if launch.resume_from is not None:
            return _from_file(launcher, Path(launch.resume_from), launch.resume_from_weights_only)
        if launch.resume_run is None:
            return _fresh(launcher)
        if launch.resume_run == "auto":
            return _auto(launcher, launch)
        return _resume(launcher, find_run(tracking, launch.resume_run), launch)
    except BaseException as error:  # a stop by Ctrl-C must close the run too
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        launcher.close("KILLED" if stopped else "FAILED")
        raise


def _auto(launcher: Launcher, launch: Launch) -> Opened:
    """Go on with the newest unfinished run of the same options and data, else start afresh."""
    task = _fresh_task(launcher)
    experiment_id = launcher.tracking.experiment_id()
    fingerprint = identity(task)[FINGERPRINT_TAG]
    threads = launcher.given.get("threads")  # not in the fingerprint: a machine may choose them
    for record in launcher.tracking.search_runs(experiment_id, fingerprint):
        options = record.options()
        is_other = bool(threads and options and options.threads != threads)
        if record.status != "FINISHED" and not is_other:
            told = _("Going on with run '%s' (%s): it has these options and this data")
            log.info(told, record.run_id, whose(record))
            return _resume(launcher, record, launch)
    log.info(_("No unfinished run has these options and this data: starting a fresh one"))
    return _fresh(launcher, task)


def _fresh_task(launcher: Launcher) -> TabularTask:
    config = Config(**launcher.given)
    return make_task(config, prepare_cached(config, launcher.home, None))


def _fresh(launcher: Launcher, task: TabularTask | None = None) -> Opened:
    task = task or _fresh_task(launcher)
    record = launcher.new_run(launcher.tracking.experiment_id())
    require_local_artifacts(record)
    attempt = launcher.first_attempt(record)
    pipeline = begin(launcher, task, record, attempt, identity(task))
    describe(launcher.tracking, task, record, launcher.home)
    return make_run(launcher, task, attempt, pipeline, Start(None, History()))


def _resume(launcher: Launcher, record: RunRecord, launch: Launch) -> Opened:
    """Go on with a run, or fork it where an older checkpoint is asked for."""
    asked = record
    tracking, folder = launcher.tracking, launcher.folder(record)
    store = open_store(tracking, record, folder)
    if folder.acquire():
        # What this disk has and the store has not yet comes first: it is newer.
        for spool in publish_waiting(tracking, record, store, folder):
            _tell_overtaken(record, spool)
        record = tracking.get_run(record.run_id)
    source = find_source(record, store, launch.resume_epoch)
    if source.is_newest and not launch.fork:
        if not folder.acquire():
            raise RunNotUsable(
                record.run_id,
                _("is being trained by another process on this machine: wait for it, or fork "
                  "with fork=true"),
            )  # fmt: skip
        now = wait_until_free(tracking, record, launch.take_over)
        if now is not record:  # in the meantime it may have committed more
            source = find_source(now, store, launch.resume_epoch)
    if source.is_newest and not launch.fork:
        # One that was unfinished when it was asked for is not refused since it has ended now.
        now = dataclasses.replace(source.record, status=asked.status)
        return _in_place(launcher, dataclasses.replace(source, record=now))
    folder.release()
    return _fork(launcher, source)


def _in_place(launcher: Launcher, source: Source) -> Opened:
    record, tracking = source.record, launcher.tracking
    config = resumed_config(source, launcher.given)
    report_doubted(record, source.doubted, launcher.given)
    _report_gone(launcher, source, config.strict, {})
    task = make_task(config, recover_data(launcher, source, config))
    _report_drift(launcher, source, task)
    # IMPORTANT: all that is read comes before the claim; the claim is the first change.
    published = tracking.published(record.run_id, record.metrics)
    attempt = Attempt.another(
        tracking, record, launcher.launched, source.epoch + 1, params(task.config),
        Beat.of_this_process(record.attempts_to_claim[-1], 0, {}).to_tag(),
    )  # fmt: skip
    _announce(source, config)
    pipeline = begin(launcher, task, record, attempt, identity(task), source)
    if source.checkpoint is None:
        describe(launcher.tracking, task, record, launcher.home)
    elif launcher.given.get("upload_data") == "yes":
        upload_data(launcher.tracking, task, record, launcher.home)
    return make_run(launcher, task, attempt, pipeline, Start(source.checkpoint, published))


def _report_drift(launcher: Launcher, source: Source, task: TabularTask) -> None:
    if source.checkpoint is None:
        return
    now = environment.describe(str(task.device), task.config.threads)
    found = drift.differences(source.checkpoint.get("environment", {}), now)
    fork = fork_command(source, launcher.given)
    drift.report(source.record.run_id, found, task.config.strict, fork)


def _report_gone(
    launcher: Launcher, source: Source, strict: bool, asked: Mapping[str, Any]
) -> None:
    if source.gone is None or is_trained(launcher.tracking, source.record):
        return
    run_id = source.record.run_id
    if strict:
        go_on = train_command({"resume_run": run_id, **asked, **launcher.given, "strict": False})
        raise RunNotUsable(
            run_id,
            _("is not continued with strict=true: {gone}. To go on with what is left: {command}")
            .format(gone=source.gone, command=go_on),
        )  # fmt: skip
    log.warning(_("Run '%s' is not as it was left: %s. Going on all the same"), run_id, source.gone)


def _fork(launcher: Launcher, source: Source) -> Opened:
    if source.checkpoint is None:
        why = _("has no checkpoint yet, so there is no fork of it")
        raise RunNotUsable(source.record.run_id, why)
    config = forked_config(source, launcher.given)
    asked = {"resume_epoch": source.manifest.key if source.manifest else None, "fork": True}
    report_doubted(source.record, source.doubted, launcher.given)
    _report_gone(launcher, source, config.strict, asked)
    dataset = recover_data(launcher, source, source.config)
    if changes_data(source, launcher.given):
        # Other rows, but the model's inputs stay what they were.
        log.warning(
            _("The rows are split anew: some that the run was trained on may now validate it, so "
              "that its metrics look better than they are")
        )  # fmt: skip
        dataset = prepare_cached(config, launcher.home, dataset.preprocessing)
    tags = {
        "train.forked_from_run": source.record.run_id,
        "train.forked_from_epoch": str(source.epoch),
    }
    log.info(_("Forking run '%s' at epoch %d"), source.record.run_id, source.epoch)
    checkpoint = dict(source.checkpoint)
    if config.seed != source.config.seed:
        checkpoint["rng"] = rng.fresh("fork", config.seed, source.epoch)
    return _from_checkpoint(
        launcher, make_task(config, dataset), [checkpoint], tags, source.record.experiment_id
    )


def _from_file(launcher: Launcher, path: Path, weights_only: bool) -> Opened:
    config, checkpoint = read_checkpoint_file(path, launcher.given, weights_only)
    require_epochs_left(config, checkpoint["epoch"], _("file '{path}'").format(path=path))
    task = make_task(config, prepare_cached(config, launcher.home, None))
    checkpoint = fitted(checkpoint, task, task.config, path)
    check_order(checkpoint, config, task.dataset.fingerprint, path)
    tags = {"train.resumed_from_file": path.name}
    experiment_id = launcher.tracking.experiment_id()
    return _from_checkpoint(launcher, task, [checkpoint], tags, experiment_id)


def _from_checkpoint(
    launcher: Launcher,
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
    attempt = launcher.first_attempt(record, epoch + 1)
    pipeline = begin(launcher, task, record, attempt, tags)
    describe(launcher.tracking, task, record, launcher.home)
    history = History()
    history.load_state_dict(checkpoint["history"])
    pipeline.publisher.add(history)
    for one in checkpoints:
        one |= {"config": task.config.to_dict(), "data": data_info(task.dataset)}
        name = checkpoint_name(one)
        metrics = {} if one["epoch_step"] else history.at(one["epoch"])
        path = pipeline.spool.path(name)
        kept = one is checkpoint or not one["epoch_step"]
        manifest = write_checkpoint(path, one, attempt=1, kept=kept, metrics=metrics)
        with show_upload(pipeline.spool, [manifest]):
            pipeline.publisher.commit(manifest)
        pipeline.spool.remove(manifest.name)
    # IMPORTANT: the run counts as one of ours only now: without its checkpoint it would start
    # again from epoch 1, and that is not what was asked for.
    launcher.tracking.set_tags(record.run_id, identity(task))
    _announce_checkpoint(checkpoint)
    return make_run(launcher, task, attempt, pipeline, Start(checkpoint, history))


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
    folder = local_folder(tracking, record)
    if not folder.acquire():
        why = _("is being trained by a process here, which publishes it itself")
        raise RunNotUsable(run_id, why)
    try:
        if not folder.waiting():
            log.info(_("Nothing of run '%s' waits on this disk"), run_id)
        store = open_store(tracking, record, folder)
        for spool in publish_waiting(tracking, record, store, folder):
            if as_fork:
                new_id = fork_spool(tracking, record, spool, reporter)
                log.info(
                    _("Attempt %d is now run %s: go on with `%s`"),
                    spool.attempt, new_id, train_command({"resume_run": new_id}),
                )  # fmt: skip
            else:
                _tell_overtaken(record, spool)
    finally:
        folder.release()


def _tell_overtaken(record: RunRecord, spool: Spool) -> None:
    log.warning(
        _("Attempt %d of run '%s' was overtaken by attempt %d, so what it left in '%s' is kept and "
          "not published: `%s` makes a run of it"),
        spool.attempt, record.run_id, record.attempts, spool.folder,
        command("sync", record.run_id, "--as_fork", "true"),
    )  # fmt: skip


def fork_spool(tracking: Tracking, record: RunRecord, spool: Spool, reporter: Reporter) -> str:
    """Make a run of the checkpoints that an overtaken attempt left on this disk.

    Returns:
        The ID of the new run, which is KILLED: it can be resumed.
    """
    manifests = good_checkpoints(spool)
    paths = [spool.path(manifest.name) for manifest in manifests]
    checkpoints = [
        load_content(path, manifest, str(path))
        for path, manifest in zip(paths, manifests, strict=True)
    ]
    config = Config.from_dict(checkpoints[-1]["config"])
    store = open_store(tracking, record, local_folder(tracking, record))
    source = Source(record, store, manifests, manifests[-1], checkpoints[-1], config)
    launcher = Launcher(tracking, None, {}, reporter, environment.home())
    tags = {
        "train.forked_from_run": record.run_id,
        "train.forked_from_epoch": str(source.epoch),
    }
    task = make_task(config, recover_data(launcher, source, config))
    run, _task = _from_checkpoint(launcher, task, checkpoints, tags, record.experiment_id)
    launcher.close("KILLED")
    launcher.folders[run.run_id].spool(1).discard()
    spool.discard()
    return run.run_id


def _announce(source: Source, config: Config) -> None:
    if source.epoch >= config.epochs:
        log.info(_("Nothing is left to train: the run has its %d epochs"), source.epoch)
        return
    if source.checkpoint is None:
        log.info(_("Run '%s' died before its first checkpoint"), source.record.run_id)
        log.info("Starting again from epoch 1 (从 epoch 1 重新开始)")
        return
    _announce_checkpoint(source.checkpoint)


def _announce_checkpoint(checkpoint: Mapping[str, Any]) -> None:
    epoch, done = checkpoint["epoch"] + 1, checkpoint["epoch_step"]
    inside, inside_zh = (f", step {done + 1} of it", f" 的第 {done + 1} 步") if done else ("", " ")
    log.info(
        "Resuming training from epoch %d%s (恢复训练，从 epoch %d%s开始)",
        epoch, inside, epoch, inside_zh,
    )  # fmt: skip
    if checkpoint["best_corr"] is not None:
        log.info(
            _("Best correlation so far: %.5f (epoch %s)"),
            checkpoint["best_corr"], checkpoint["best_epoch"],
        )  # fmt: skip
