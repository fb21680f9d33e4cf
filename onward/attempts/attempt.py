"""An attempt: one process working on a run, and how MLflow shows it.

The first attempt is the run itself. Each later one is a child of it: the run that `mlflow run`
made for the launch, or a new one where there is none in the same experiment. The run's tags
`train.attempt.N` tell in words what became of attempt N; its description lists them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onward.attempts.last_word import at_last, status_after, try_to_set
from onward.attempts.spans import epochs_in_words, first_epoch
from onward.errors import RunNotUsable, Superseded
from onward.metrics import EPOCH, in_words
from onward.options.command import train_command
from onward.options.request import DESCRIPTION_TAG, MAX_TEXT_CHARS
from onward.system import environment
from onward.system.processes import seconds_awake_or_asleep
from onward.tracking import markdown
from onward.tracking.client import Tracking
from onward.tracking.names import (
    ATTEMPT_TAG,
    ENDED_TAG,
    EPOCH_TAG,
    HEARTBEAT_TAG,
    LAUNCHED_TAG,
    NOTE_TAG,
    NUMBER_TAG,
    PARENT_TAG,
)
from onward.tracking.record import UNKNOWN, RunRecord
from onward.tracking.ui import run_link, runs_page

log = logging.getLogger(__name__)

LEASE_SECONDS = 0.5  # for which an answer that the attempt has its run is believed
MAX_LISTED = 10  # attempts in a run's description
RUNNING_WORD = "running"
ENDED_WORDS = {"FINISHED": "finished", "KILLED": "preempted", "FAILED": "failed"}
STATUS_OF_WORD = {word: status for status, word in ENDED_WORDS.items()}
VANISHED = "vanished"  # died without a word


@dataclass
class Attempt:
    """One attempt at a run.

    Args:
        tracking: The server.
        run_id: The run that is worked on.
        number: Counts from 1.
        first_epoch: The epoch it starts with.
        child_id: The child run that stands for it; for the first attempt the run itself.
        link: Where MLflow's UI shows the run.
        stray_id: A launch's run in another experiment, closed together with the attempt.
        unit: What `first_epoch` counts.
        was_finished: Whether the run was FINISHED before.
        has_trained: Whether an epoch, or a step, was begun.
        before: Tags of the run as they were, of those that `begin` has changed.
    """

    tracking: Tracking
    run_id: str
    number: int
    first_epoch: int
    child_id: str
    link: str
    stray_id: str | None = None
    unit: str = EPOCH
    was_finished: bool = False
    has_trained: bool = False
    before: dict[str, str] = dataclasses.field(default_factory=dict)
    _asked_at: float = dataclasses.field(default=-math.inf, init=False)

    @classmethod
    def first(
        cls,
        tracking: Tracking,
        record: RunRecord,
        first_epoch: int = 1,
        launched: RunRecord | None = None,
    ) -> Attempt:
        """Claim attempt 1 of a run that is new.

        Args:
            tracking: The server.
            record: The run.
            first_epoch: The epoch the attempt starts with.
            launched: The run that `mlflow run` made for this process, if any: `record`, or a stray.
        """
        run_id, link, stray_id = record.run_id, run_link(tracking, record), None
        tracking.claim_attempt(run_id, 1, run_id)
        if launched is not None and launched.run_id != run_id:
            stray_id = launched.run_id
            _tell_stray(tracking, stray_id, record, "is")
        return cls(tracking, run_id, 1, first_epoch, run_id, link, stray_id)

    @classmethod
    def another(
        cls,
        tracking: Tracking,
        record: RunRecord,
        launched: RunRecord | None,
        first_epoch: int,
        params: Mapping[str, str],
        tags: Mapping[str, str] | None = None,
    ) -> Attempt:
        """Claim the next attempt of a run, and make the child that stands for it.

        Args:
            tracking: The server.
            record: The run, just read.
            launched: The run that `mlflow run` made for this process, if any.
            first_epoch: The epoch the attempt starts with.
            params: The options in force, for the child.
            tags: What the child says of this process, before it claims.

        Raises:
            RunNotUsable: Another process has claimed the same attempt.
        """
        numbers = record.attempts_to_claim
        number = numbers[-1]
        words = epochs_in_words(first_epoch, None, record.unit)
        name = f"attempt {number}: {words} on {environment.hostname()}"
        tags = {**(tags or {}), PARENT_TAG: record.run_id}
        link, stray_id = run_link(tracking, record), None
        if launched is not None and launched.experiment_id == record.experiment_id:
            child = launched
            tracking.set_tags(child.run_id, tags)
        else:
            stray_id = launched.run_id if launched else None
            child = tracking.create_run(record.experiment_id, name, tags)
        try:
            for each in numbers:
                tracking.claim_attempt(record.run_id, each, child.run_id)
            _close_vanished(tracking, record, first_epoch - 1, child.run_id)
            tracking.rename(child.run_id, name)
            tracking.log_params(child.run_id, params, known=child.params)
            if stray_id is not None:
                _tell_stray(tracking, stray_id, record, "continued")
        except BaseException as error:  # a stop by Ctrl-C must close the child too
            try_to_set(tracking, child.run_id, status_after(error))
            raise
        return cls(
            tracking, record.run_id, number, first_epoch, child.run_id, link, stray_id, record.unit,
            was_finished=record.status == "FINISHED",
        )  # fmt: skip

    def begin(self, tags: Mapping[str, str], own_tags: Mapping[str, str] | None = None) -> None:
        """Set the run RUNNING.

        Args:
            tags: What this attempt changes of the run's tags.
            own_tags: What is to be said of the attempt itself: host, hardware, versions.
        """
        own_tags = own_tags or {}
        record = self.tracking.get_run(self.run_id)
        self.was_finished = record.status == "FINISHED"
        self.before = {key: record.tags[key] for key in record.tags.keys() & tags.keys()}
        self.before.pop(HEARTBEAT_TAG, None)  # it stays true who was here last
        self.tracking.set_status(self.run_id, "RUNNING")
        if self.child_id != self.run_id:
            self.tracking.set_tags(self.child_id, own_tags)
        self._tell(None, RUNNING_WORD, {**own_tags, **tags, NUMBER_TAG: str(self.number)})

    def check_lease(self) -> RunRecord:
        """Make sure that no later attempt was claimed; return the run as it is now.

        Raises:
            Superseded: One was.
        """
        asked_at = seconds_awake_or_asleep()
        record = self.tracking.get_run(self.run_id)
        if record.attempts > self.number:
            raise Superseded(self.run_id, self.number, record.attempts)
        self._asked_at = asked_at
        return record

    def require_lease(self, max_seconds: float = math.inf) -> None:
        """Do the same, unless that was done a moment ago: before what is done many times a commit.

        IMPORTANT: the moment goes by for a process that is stopped, and a machine that sleeps, too.

        Args:
            max_seconds: How long the moment may be at most.

        Raises:
            Superseded: A later attempt was claimed.
        """
        if seconds_awake_or_asleep() - self._asked_at >= min(LEASE_SECONDS, max_seconds):
            self.check_lease()

    def _tell(
        self, last_epoch: int | None, ended: str, tags: Mapping[str, str], state: str | None = None
    ) -> None:
        """Say on the run what the attempt does, or how it ended, and what state the run is in."""
        record = self.tracking.get_run(self.run_id)
        words = epochs_in_words(self.first_epoch, last_epoch, self.unit)
        words = f"{words} on {environment.hostname()}"
        own = {f"{ATTEMPT_TAG}{self.number}": f"{words}, {ended}"}
        now = dataclasses.replace(record, tags={**record.tags, **tags, **own})
        note = self._note(now, state or ended)
        self.tracking.set_tags(self.run_id, {**tags, **own, NOTE_TAG: note})

    def journal(self, status: str, last_epoch: int) -> dict[str, object]:
        """Return what `from_journal` needs to end the attempt in another process."""
        return {
            "run_id": self.run_id,
            "number": self.number,
            "first_epoch": self.first_epoch,
            "child_id": self.child_id,
            "link": self.link,
            "stray_id": self.stray_id,
            "unit": self.unit,
            "was_finished": self.was_finished,
            "has_trained": self.has_trained or status == "RUNNING",  # it may, from here on
            "status": status,
            "last_epoch": last_epoch,
        }

    @classmethod
    def from_journal(cls, tracking: Tracking, entry: Mapping[str, Any]) -> Attempt:
        """Make the attempt that was recorded, for `end`."""
        names = [f.name for f in dataclasses.fields(cls) if f.init and f.name != "tracking"]
        return cls(tracking, **{name: entry[name] for name in names if name in entry})

    def leaves_finished(self, status: str) -> bool:
        """Tell whether the run is FINISHED as it was, though the attempt ends with that status."""
        return self.was_finished and not self.has_trained and status != "FINISHED"

    def end(self, status: str, last_epoch: int, ended: str | None = None) -> None:
        """Set the status of the attempt's runs: FINISHED, FAILED or KILLED.

        The run itself is left alone once a later attempt has it. That somebody deleted one of the
        others changes nothing about it.

        Args:
            status: How it ended.
            last_epoch: Epochs completed.
            ended: The same in a word; default: by the status.
        """
        ended = ended or ENDED_WORDS[status]
        epochs = epochs_in_words(self.first_epoch, last_epoch, self.unit)
        name = f"attempt {self.number}: {epochs} on {environment.hostname()}"
        # IMPORTANT: the run comes last. Killed before, it is unfinished, and gone on with.
        if self.stray_id is not None:
            _close_child(self.tracking, self.stray_id, status, ended)
        if self.child_id != self.run_id:
            _close_child(self.tracking, self.child_id, status, ended, name)
        state, before = ended, {}
        if self.leaves_finished(status):
            status, state, before = "FINISHED", ENDED_WORDS["FINISHED"], self.before
        with contextlib.suppress(Superseded):
            self.check_lease()
            self._tell(last_epoch, ended, before, state)
            self.tracking.set_status(self.run_id, status)

    def try_to_end(self, status: str, last_epoch: int) -> bool:
        """Set the status where another error, or the end of time, is what is told.

        Returns:
            Whether it is set, as far as the server has answered.
        """
        return at_last(functools.partial(self.end, status, last_epoch), status)

    def describe(self, record: RunRecord) -> None:
        """Bring the description of the run, just read, up to date while it is RUNNING."""
        note = self._note(record, RUNNING_WORD)
        self.tracking.set_tags(self.run_id, {NOTE_TAG: note})

    def _note(self, record: RunRecord, state: str) -> str:
        """Return the description of the run, in Markdown."""
        tags, is_finished = record.tags, state == ENDED_WORDS["FINISHED"]
        standing = dataclasses.replace(record.standing, is_finished=is_finished)
        commands = {"Train longer" if is_finished else "Resume": standing.go_on()}
        if record.best is not None:
            commands["Fork from the best epoch"] = standing.fork_from("best")
        attempts = [
            f"| {number} | {markdown.plain(tags[f'{ATTEMPT_TAG}{number}'])} |"
            for number in range(max(1, self.number - MAX_LISTED + 1), self.number + 1)
            if f"{ATTEMPT_TAG}{number}" in tags
        ]
        return "\n".join(
            [
                *_own_words(tags.get(DESCRIPTION_TAG, "")),
                f"**{state}**{_progress_in_words(record)}",
                "",
                # No block: MLflow's pages do not break its lines, and push away what is beside it.
                *(
                    line
                    for title, wanted in commands.items()
                    for line in (f"{title}:", "", markdown.code(train_command(wanted, ".")), "")
                ),
                *("| attempt | what it did |", "| --- | --- |", *attempts, ""),
                markdown.link("All runs", runs_page(record.experiment_id)),
            ]
        )


def _tell_stray(tracking: Tracking, stray_id: str, record: RunRecord, verb: str) -> None:
    """Say on a launch's run, which is in another experiment, what the launch worked on."""
    page = run_link(tracking, record).split()[0]  # without what is said of a server to start
    note = f"This launch {verb} run {markdown.link(record.name, page)}."
    tags = {LAUNCHED_TAG: record.run_id, NOTE_TAG: note}
    tracking.set_tags(stray_id, tags)


def _own_words(description: str) -> list[str]:
    """Return the lines that the run's user has for its description."""
    return [description[:MAX_TEXT_CHARS], "", "---", ""] if description else []


def _progress_in_words(record: RunRecord) -> str:
    """Return how far a run is, by what is committed."""
    if EPOCH_TAG not in record.tags:
        return ""
    epochs = "" if record.epochs is None else f" of {record.epochs}"
    words = f": {record.unit} {_or_unknown(record.epoch)}{epochs}"
    if record.best is None:
        return words
    epoch = _or_unknown(record.best_epoch)
    best = f"{record.monitor.name} {in_words(record.best)}"
    return f"{words}, best {best} ({record.unit} {epoch})"


def _or_unknown(value: int | None) -> str:
    return UNKNOWN if value is None else str(value)


def _close_vanished(tracking: Tracking, record: RunRecord, last_epoch: int, own_id: str) -> None:
    """Say of the attempts before what they could not say themselves, if they died without a word.

    Of all of them, since whoever was about to say it may have died as well. What was made for an
    attempt that died before it claimed one is closed too; another process may be about to claim:
    it will not get the attempt, and closes its own.
    """
    still_open: dict[str | None, RunRecord]
    still_open = {child.run_id: child for child in tracking.open_children(record)}
    still_open.pop(own_id, None)
    for number in range(record.attempts, 0, -1):
        told = record.tags.get(f"{ATTEMPT_TAG}{number}", "")
        words, _, ended = told.rpartition(", ")
        first = first_epoch(words)
        if ended == RUNNING_WORD and first is not None:
            epochs = epochs_in_words(first, last_epoch, record.unit)
            words = f"{epochs} on {words.partition(' on ')[2]}"
        elif not told:  # it was claimed, and never begun
            words = "no epoch"
        has_ended = ended not in ("", RUNNING_WORD)
        ended = ended if has_ended else VANISHED
        last_epoch = last_epoch if first is None else first - 1
        child_id = record.child_of(number)
        if child_id is not None and child_id in still_open:
            del still_open[child_id]
            status = STATUS_OF_WORD.get(ended, "KILLED")
            _close_child(tracking, child_id, status, ended, f"attempt {number}: {words}")
        if not has_ended:  # IMPORTANT: last, so that the next one sees what was not done
            tracking.set_tags(record.run_id, {f"{ATTEMPT_TAG}{number}": f"{words}, {ended}"})
    for unclaimed in still_open.values():
        if HEARTBEAT_TAG in unclaimed.tags:  # else somebody else made it below the run
            _close_child(tracking, unclaimed.run_id, "KILLED", VANISHED)


def _close_child(
    tracking: Tracking, run_id: str, status: str, ended: str, name: str | None = None
) -> None:
    """Close a run that belongs to an attempt; one that somebody deleted is only told of."""
    try:
        if name is not None:
            tracking.rename(run_id, name)
            tracking.set_tags(run_id, {ENDED_TAG: ended})
        tracking.set_status(run_id, status)  # last: what is RUNNING is closed again
    except RunNotUsable as error:
        log.warning("%s", error)
