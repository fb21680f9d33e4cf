"""Opening a run: a fresh one, one that is resumed in place, or a fork.

What every launch ends with is the same: options that are complete, data that is at hand, a
claimed attempt, and the checkpoint to go on from, if there is one. Until the attempt is claimed
nothing that existed is changed.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onward.attempts.heartbeat import wait_until_free
from onward.attempts.last_word import status_after
from onward.checkpoint.content import Content
from onward.checkpoint.host_files import HostFiles
from onward.checkpoint.manifest import Manifest
from onward.checkpoint.store import CheckpointStore
from onward.errors import RunNotUsable
from onward.opening import drift
from onward.opening.begin import Opening, fresh_start, start_from
from onward.opening.changes import (
    changes_data,
    fork_command,
    forked_options,
    require_epochs_left,
    resumed_options,
)
from onward.opening.copies import announce, forked_from, from_contents
from onward.opening.fetching import get_apart, host_files
from onward.opening.finishing import finish_drafts
from onward.opening.identity import describe, hide_secrets, identity, keep_data
from onward.opening.restored import report_doubted
from onward.opening.source import (
    Source,
    find_run,
    find_source,
    is_trained,
    open_store,
    whose,
)
from onward.opening.waiting import publish_waiting, tell_overtaken
from onward.options.command import train_command
from onward.options.declare import DATA, covered_by
from onward.options.request import Launch
from onward.options.run_options import RunOptions
from onward.publish.results import with_all_history
from onward.run import rng
from onward.run.run import Run
from onward.run.subject import Kind, Subject, stored_of
from onward.system import environment
from onward.terminal.report import Reporter
from onward.tracking.artifact_folder import require_local_artifacts
from onward.tracking.client import Tracking
from onward.tracking.names import FILE_TAG, FINGERPRINT_TAG
from onward.tracking.record import RunRecord
from onward.words.language import _
from onward.world import ALONE, World

log = logging.getLogger(__name__)


def open_run(
    kind: Kind,
    given: Mapping[str, Any],
    launch: Launch,
    reporter: Reporter,
    world: World = ALONE,
) -> Run:
    """Open the run that a command asks for.

    Args:
        kind: What is to be trained.
        given: The options of the run that were given, and only those.
        launch: What to go on from.
        reporter: What the terminal shows.
        world: The ranks, of which this is the first.

    Returns:
        The run, to be entered.

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
    opening = Opening(tracking, launch, launched, reporter, world)
    try:
        return _Way(opening, kind, given).run()
    except BaseException as error:  # a stop by Ctrl-C must close the run too
        opening.abandon(status_after(error))
        raise


@dataclasses.dataclass(frozen=True)
class _Way:
    """The ways to an open run.

    Args:
        opening: What is opened on the way.
        kind: What is to be trained.
        given: The options that were given.
    """

    opening: Opening
    kind: Kind
    given: Mapping[str, Any]

    def run(self) -> Run:
        """Return the run that the launch asks for."""
        launch, tracking = self.opening.launch, self.opening.tracking
        if launch.resume_from is not None:
            return self._from_file(Path(launch.resume_from), launch.resume_from_weights_only)
        if launch.resume_run is None:
            return self._fresh(self._fresh_subject())
        if launch.resume_run == "auto":
            return self._auto()
        return self._resume(find_run(tracking, launch.resume_run))

    def _fresh_subject(self) -> Subject:
        return self.kind.open(self.kind.declared(**self.given), None)

    def _auto(self) -> Run:
        """Go on with the newest unfinished run of the same options and data, or start afresh."""
        subject, tracking = self._fresh_subject(), self.opening.tracking
        experiment_id = tracking.experiment_id()
        fingerprint = identity(subject)[FINGERPRINT_TAG]
        threads = self.given.get("threads")  # not in the fingerprint: a machine may choose them
        for record in tracking.search_runs(experiment_id, fingerprint, is_unfinished=True):
            options = record.run_options()
            is_other = bool(threads and options and options.threads != threads)
            if not is_other:
                told = _("Going on with run '%s' (%s): it has these options and this data")
                log.info(told, record.run_id, whose(record))
                return self._resume(record)
        log.info(_("No unfinished run has these options and this data: starting a fresh one"))
        return self._fresh(subject)

    def _fresh(self, subject: Subject) -> Run:
        opening = self.opening
        record = opening.new_run(opening.tracking.experiment_id())
        require_local_artifacts(record)
        attempt, start = opening.first_attempt(record), fresh_start(subject)
        pipeline = opening.begin(subject, record, attempt, identity(subject), start)
        describe(opening.tracking, subject, record)
        return opening.run(subject, attempt, pipeline, start)

    def _resume(self, record: RunRecord) -> Run:
        """Go on with a run, or fork it where an older checkpoint is asked for."""
        asked, launch = record, self.opening.launch
        tracking, folder = self.opening.tracking, self.opening.folder(record)
        store = open_store(tracking, record, folder)
        if folder.acquire():
            # What this disk has and the store has not yet comes first: it is newer.
            for spool in publish_waiting(tracking, record, store, folder, self.kind):
                tell_overtaken(record, spool)
            record = tracking.get_run(record.run_id)
        get = functools.partial(self._get, store)
        source = find_source(record, store, launch.resume_epoch, self.kind, get)
        if source.is_newest and not launch.fork:
            if not folder.acquire():
                raise RunNotUsable(
                    record.run_id,
                    _("is being trained by another process on this machine: wait for it, or fork "
                      "with fork=true"),
                )  # fmt: skip
            now = wait_until_free(tracking, record, launch.take_over)
            is_free = not launch.take_over
            has_finished = finish_drafts(
                tracking, now, store, folder, self.kind, is_free, self.opening.ask_to_bring
            )
            if has_finished:
                now = tracking.get_run(record.run_id)
            if now is not record:  # in the meantime it may have committed more
                source = find_source(now, store, launch.resume_epoch, self.kind, get)
        if source.is_newest and not launch.fork:
            # One that was unfinished when it was asked for is not refused since it has ended now.
            now = dataclasses.replace(source.record, status=asked.status)
            return self._in_place(dataclasses.replace(source, record=now))
        folder.release()
        return self._fork(source)

    def _get(self, store: CheckpointStore, manifest: Manifest) -> Content:
        """Return a checkpoint: of several ranks what rank 0 needs, since each reads its own."""
        world = self.opening.world
        if world.is_alone or self.opening.launch.fork or not manifest.shard_files:
            return store.get(manifest)
        return get_apart(manifest, store.gathering.artifacts, world, self.opening.questions)

    def _in_place(self, source: Source) -> Run:
        opening, record, tracking = self.opening, source.record, self.opening.tracking
        options = resumed_options(source, self.given, self.kind)
        report_doubted(record, source.doubted, self.given)
        self._report_gone(source, options.strict, {})
        stored = stored_of(tracking, record, source.options, source.data_fingerprint)
        if source.content is not None:
            artifacts = tracking.artifacts(record)
            self.kind.compare(record.run_id, source.content, options, artifacts)
        subject = self.kind.open(options, stored)
        self._report_drift(source, subject)
        # IMPORTANT: all that is read comes before the claim; the claim is the first change.
        published = tracking.published(record.run_id, record.metrics)
        attempt = opening.next_attempt(record, source.epoch + 1, subject.params())
        _announce(source, options, self.kind)
        start = fresh_start(subject)
        if source.content is not None:
            start = start_from(source.content, published)
            if _is_apart(source):
                start = dataclasses.replace(start, files=_host_files(source))
        tags = identity(subject, start.monitor)
        pipeline = opening.begin(subject, record, attempt, tags, start, source)
        if source.content is None:
            describe(tracking, subject, record)
        elif covered_by(self.kind.declared, DATA) & set(self.given):
            keep_data(tracking, subject, record)
        return opening.run(subject, attempt, pipeline, start)

    def _report_drift(self, source: Source, subject: Subject) -> None:
        if source.content is None:
            return
        options = subject.options
        device = environment.choose_device(options.device)
        now = environment.describe(device, options.threads, self.opening.world.size)
        found = drift.differences(source.content.environment, now)
        fork = fork_command(source, self.given, self.kind)
        drift.report(source.record.run_id, found, options.strict, fork)

    def _report_gone(self, source: Source, strict: bool, asked: Mapping[str, Any]) -> None:
        if source.gone is None or is_trained(self.opening.tracking, source.record):
            return
        run_id = source.record.run_id
        if strict:
            go_on = train_command({"resume_run": run_id, **asked, **self.given, "strict": False})
            raise RunNotUsable(
                run_id,
                _("is not continued with strict=true: {gone}. To go on with what is left: "
                  "{command}").format(gone=source.gone, command=go_on),
            )  # fmt: skip
        log.warning(
            _("Run '%s' is not as it was left: %s. Going on all the same"), run_id, source.gone
        )

    def _fork(self, source: Source) -> Run:
        if source.content is None:
            why = _("has no checkpoint yet, so there is no fork of it")
            raise RunNotUsable(source.record.run_id, why)
        if source.manifest is not None and _is_apart(source):  # what is written anew is whole
            source = dataclasses.replace(source, content=source.store.get(source.manifest))
        options = forked_options(source, self.given, self.kind)
        asked = {"resume_epoch": source.manifest.key if source.manifest else None, "fork": True}
        report_doubted(source.record, source.doubted, self.given)
        self._report_gone(source, options.strict, asked)
        is_other_data = changes_data(source, self.given, self.kind)
        if is_other_data:
            log.warning(
                _("The rows are split anew: some that the run was trained on may now validate it, "
                  "so that its metrics look better than they are")
            )  # fmt: skip
        stored = stored_of(
            self.opening.tracking, source.record, source.options, source.data_fingerprint,
            is_other_data,
        )  # fmt: skip
        subject = self.kind.open(options, stored)
        log.info(_("Forking run '%s' at epoch %d"), source.record.run_id, source.epoch)
        assert source.content is not None
        content = with_all_history(self.opening.tracking, source.record.run_id, source.content)
        if options.seed != source.options.seed:
            content = dataclasses.replace(
                content, rng=rng.fresh("fork", options.seed, source.epoch)
            )
        tags = forked_from(source.record.run_id, source.epoch)
        return from_contents(self.opening, subject, [content], tags, source.record.experiment_id)

    def _from_file(self, path: Path, weights_only: bool) -> Run:
        subject, content = self.kind.from_file(path, self.given, weights_only)
        of = _("file '{path}'").format(path=path)
        require_epochs_left(subject.options, content.epoch, of)
        tags = {FILE_TAG: path.name}
        experiment_id = self.opening.tracking.experiment_id()
        return from_contents(self.opening, subject, [content], tags, experiment_id)


def _is_apart(source: Source) -> bool:
    """Tell whether a content has markers, and each rank is to read its own pieces."""
    return bool(source.content and source.content.layout and source.manifest)


def _host_files(source: Source) -> HostFiles:
    assert source.manifest is not None
    return host_files(source.manifest, lambda: source.store.gathering.artifacts)


def _announce(source: Source, options: RunOptions, kind: Kind) -> None:
    if kind.knows_length and source.epoch >= options.epochs:
        log.info(_("Nothing is left to train: the run has its %d epochs"), source.epoch)
        return
    if source.content is None:
        log.info(_("Run '%s' died before its first checkpoint"), source.record.run_id)
        log.info("Starting again from epoch 1 (从 epoch 1 重新开始)")
        return
    announce(source.content)
