"""What every way to open a run ends with: a claimed attempt, a pipeline, and the run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onward.attempts.attempt import Attempt
from onward.attempts.heartbeat import Beat
from onward.attempts.last_word import try_to_set
from onward.checkpoint.content import Content
from onward.checkpoint.others import Others
from onward.checkpoint.pipeline import Pipeline
from onward.checkpoint.policy import Retention
from onward.checkpoint.rank_files import RankFiles
from onward.checkpoint.spool import RunFolder
from onward.errors import Superseded
from onward.metrics import History
from onward.opening.finishing import require_newest
from onward.opening.identity import machine_tags, upload_code
from onward.opening.source import Source, local_folder, open_store
from onward.options.request import Launch
from onward.options.run_options import RunOptions
from onward.publish.publisher import Publisher
from onward.publish.results import publish_results
from onward.run import signals
from onward.run.closing import abandon
from onward.run.lifecycle import Lifecycle
from onward.run.run import Run
from onward.run.state import Start
from onward.run.subject import Subject
from onward.system import environment, git, invocation
from onward.terminal.report import Reporter
from onward.tracking.artifact_folder import warn_of_percent
from onward.tracking.client import Tracking
from onward.tracking.names import COMMAND_TAG, HOST_TAG
from onward.tracking.record import RunRecord
from onward.words.language import _
from onward.words.redact import redact
from onward.world import ALONE, World
from onward.world.questions import Questions

log = logging.getLogger(__name__)


class Opening:
    """One process on its way to an open run: what it holds is given back if it does not get there.

    Args:
        tracking: The server.
        launch: What the command asks for.
        launched: The run that `mlflow run` made for this process, if any.
        reporter: What the terminal shows.
        world: The ranks, of which this is the first.
    """

    def __init__(
        self,
        tracking: Tracking,
        launch: Launch,
        launched: RunRecord | None,
        reporter: Reporter,
        world: World = ALONE,
    ) -> None:
        self.tracking, self.launch, self.launched = tracking, launch, launched
        self._reporter, self.world, self.questions = reporter, world, Questions(world)
        self._made: RunRecord | None = None  # the run that was made on the way
        self._attempt: Attempt | None = None  # once it is claimed
        self._folders: dict[str, RunFolder] = {}

    def ask_to_bring(self, question: Mapping[str, Any]) -> None:
        """Let other machines bring what they have of a run, as long as nobody else takes it.

        Args:
            question: As `finish_drafts` asks it.
        """
        if self.world.is_alone:
            return
        run_id, attempt = question["run_id"], question["attempt"]
        check_lease = functools.partial(require_newest, self.tracking, run_id, attempt)
        with Others(self.world).answering(check_lease):
            self.questions.ask(question)

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
        tags = git.source_tags(invocation.name())
        with signals.held():  # what the server has made is known here
            self._made = self.tracking.create_run(experiment_id, name, tags)
        return self._made

    def first_attempt(self, record: RunRecord, first_epoch: int = 1) -> Attempt:
        """Claim attempt 1 of a run that `new_run` has returned."""
        self.folder(record)  # before the claim: whatever comes now is recorded there
        with signals.held():
            self._attempt = Attempt.first(self.tracking, record, first_epoch, self.launched)
        return self._attempt

    def next_attempt(
        self, record: RunRecord, first_epoch: int, params: Mapping[str, str]
    ) -> Attempt:
        """Claim the next attempt of a run that is gone on with; see `Attempt.another`."""
        beat = Beat.of_this_process(record.attempts_to_claim[-1], 0, {}).to_tag()
        with signals.held():
            self._attempt = Attempt.another(
                self.tracking, record, self.launched, first_epoch, params, beat
            )
        return self._attempt

    def folder(self, record: RunRecord) -> RunFolder:
        """Return this disk's folder for the run, one object for each run."""
        return self._folders.setdefault(record.run_id, local_folder(self.tracking, record))

    def begin(
        self,
        subject: Subject,
        record: RunRecord,
        attempt: Attempt,
        tags: Mapping[str, str],
        start: Start,
        source: Source | None = None,
    ) -> Pipeline:
        """Set the run RUNNING, and make the pipeline for its checkpoints."""
        tracking, options = self.tracking, subject.options
        record = self._named(record)
        folder = self.folder(record)
        folder.acquire()
        folder.clear_before(attempt.number)
        spool = folder.spool(attempt.number)
        self._reporter.log_to(spool.log_file)
        is_off = options.upload == "off"
        tags = {**self.launch.run_tags(), **tags}
        tags = {**tags, **({HOST_TAG: environment.hostname()} if is_off else {})}
        command = _command_tag()
        if attempt.number == 1:
            tags = tags | command
        beat = Beat.of_this_process(attempt.number, 0, {}).to_tag()
        attempt.begin({**tags, **beat}, machine_tags())
        upload_code(tracking, attempt.child_id, spool.folder, subject)
        spool.write_journal(attempt.journal("RUNNING", attempt.first_epoch - 1))
        if source is not None:
            store, manifests = source.store, source.manifests
        else:
            record = dataclasses.replace(record, tags={**record.tags, **tags})
            store, manifests = open_store(tracking, record, folder), []
        if store.folder is not None:
            if not self.world.is_alone:  # by it other machines know that they have that disk too
                with contextlib.suppress(OSError):
                    store.folder.mkdir(parents=True, exist_ok=True)
            log.info(_("Checkpoints go to %s: on this machine only"), store.folder)
            warn_of_percent(record)
        publisher = Publisher(
            attempt, store, spool, Retention.of(options), manifests, not is_off, start.published
        )
        publisher.tags |= command  # of a later one once it has come so far as to commit
        is_sync = options.upload == "sync"
        return Pipeline(publisher, spool, options.max_spool_bytes, is_sync, start.monitor)

    def _named(self, record: RunRecord) -> RunRecord:
        """Give the run the name that the command has for it."""
        name = self.launch.run_name
        if name is not None and name != record.name:
            self.tracking.rename(record.run_id, name)
            record = dataclasses.replace(record, name=name)
        if record.name:
            log.info(_("Run name: %s"), record.name)
        return record

    def run(self, subject: Subject, attempt: Attempt, pipeline: Pipeline, start: Start) -> Run:
        """Return the run, to be entered."""
        for line in subject.in_words():
            log.info("%s", line)
        folder = self._folders[attempt.run_id]
        finish = functools.partial(_finish, self.tracking, attempt, pipeline, subject)
        place = pipeline.spool.folder
        if not self.world.is_alone:
            others = Others(self.world)
            files = rank_files(place, attempt.number, subject.options, self.world, others)
            pipeline.uploader.rank_files, pipeline.spool.removed = files, files.forget
            pipeline.publisher.store.gathering.others = others
        life = Lifecycle(attempt, pipeline, folder, subject.options, finish, self.world)
        return Run(subject, attempt, pipeline, life, start, self._reporter, self.world)

    def abandon(self, status: str) -> None:
        """Close what was opened, after an error."""
        try:
            if self._attempt is not None:
                folder = self._folders[self._attempt.run_id]
                abandon(self._attempt, folder.spool(self._attempt.number), status)
            else:
                for record in filter(None, (self._made, self.launched)):
                    try_to_set(self.tracking, record.run_id, status)
        finally:  # last: whoever takes the folder now finds all that was recorded
            for folder in self._folders.values():
                folder.release()


def rank_files(
    folder: Path, attempt: int, options: RunOptions, world: World, others: Others | None = None
) -> RankFiles:
    """Return where ranks meet that have pieces of a checkpoint."""
    seconds = 60 * options.rank_minutes
    return RankFiles(folder, world.rank, world.size, attempt, seconds, others)


def _command_tag() -> dict[str, str]:
    """Return how this process was started, where it is a script of somebody's own, as a tag."""
    words = invocation.script()
    return {} if words is None else {COMMAND_TAG: json.dumps([redact(word) for word in words])}


def _finish(tracking: Tracking, attempt: Attempt, pipeline: Pipeline, subject: Subject) -> None:
    with contextlib.suppress(Superseded):
        publish_results(
            tracking, attempt.run_id, pipeline.publisher.store, subject.options, lambda: subject,
            attempt.check_lease,
        )  # fmt: skip


def fresh_start(subject: Subject) -> Start:
    """Return the beginning of a run that has nothing behind it."""
    return Start(None, History(), subject.monitor)


def start_from(content: Content, published: History) -> Start:
    """Return the beginning of an attempt that goes on from a checkpoint.

    The metric that the run was judged by stays, whatever the task says now.
    """
    return Start(content, published, content.monitor)
