"""An attempt: one process working on a run, and how MLflow shows it.

The first attempt is the run itself. Each later one is a child of it: the run that `mlflow run`
made for the launch, or a new one where there is none in the same experiment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from train import environment
from train.commands import train_command
from train.errors import RunNotUsable, Superseded
from train.tracking import PARENT_TAG, RunRecord, Tracking


@dataclass(frozen=True)
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
    """

    tracking: Tracking
    run_id: str
    number: int
    first_epoch: int
    child_id: str
    link: str
    stray_id: str | None = None

    @classmethod
    def first(cls, tracking: Tracking, record: RunRecord, first_epoch: int = 1) -> Attempt:
        """Claim attempt 1 of a run that is new."""
        run_id = record.run_id
        tracking.claim_attempt(run_id, 1, run_id)
        return cls(tracking, run_id, 1, first_epoch, run_id, run_link(tracking, record))

    @classmethod
    def another(
        cls,
        tracking: Tracking,
        record: RunRecord,
        launched: RunRecord | None,
        first_epoch: int,
        params: Mapping[str, str],
    ) -> Attempt:
        """Claim the next attempt of a run, and make the child that stands for it.

        Args:
            tracking: The server.
            record: The run, just read.
            launched: The run that `mlflow run` made for this process, if any.
            first_epoch: The epoch the attempt starts with.
            params: The options in force, for the child.

        Raises:
            RunNotUsable: Another process has claimed the same attempt.
        """
        number = record.attempts + 1
        name = f"attempt {number}: epochs {first_epoch}-… on {environment.hostname()}"
        tags = {PARENT_TAG: record.run_id}
        link, stray_id = run_link(tracking, record), None
        if launched is not None and launched.experiment_id == record.experiment_id:
            child = launched
        else:
            stray_id = launched.run_id if launched else None
            child = tracking.create_run(record.experiment_id, name, tags)
        try:
            tracking.claim_attempt(record.run_id, number, child.run_id)
        except RunNotUsable:
            tracking.set_status(child.run_id, "FAILED")
            raise
        tracking.set_tags(child.run_id, tags)
        tracking.rename(child.run_id, name)
        tracking.log_params(child.run_id, params, known=child.params)
        if stray_id is not None:
            note = f"This launch continued run [{record.name}]({link})."
            tags = {"train.launched": record.run_id, "mlflow.note.content": note}
            tracking.set_tags(stray_id, tags)
        return cls(tracking, record.run_id, number, first_epoch, child.run_id, link, stray_id)

    def begin(self, tags: Mapping[str, str]) -> None:
        """Set the run RUNNING, with what this attempt changes of its tags."""
        self.tracking.set_status(self.run_id, "RUNNING")
        self.tracking.set_tags(
            self.run_id,
            {**tags, "train.attempt": str(self.number), "mlflow.note.content": self._note()},
        )

    def check_lease(self) -> None:
        """Make sure that no later attempt was claimed.

        Raises:
            Superseded: One was.
        """
        newest = self.tracking.get_run(self.run_id).attempts
        if newest > self.number:
            raise Superseded(self.run_id, self.number, newest)

    def journal(self, status: str, last_epoch: int) -> dict[str, object]:
        """Return what `from_journal` needs to end the attempt in another process."""
        return {
            "run_id": self.run_id,
            "number": self.number,
            "first_epoch": self.first_epoch,
            "child_id": self.child_id,
            "link": self.link,
            "stray_id": self.stray_id,
            "status": status,
            "last_epoch": last_epoch,
        }

    @classmethod
    def from_journal(cls, tracking: Tracking, entry: Mapping[str, Any]) -> Attempt:
        """Make the attempt that was recorded, for `end`."""
        names = [f.name for f in dataclasses.fields(cls) if f.name != "tracking"]
        return cls(tracking, **{name: entry[name] for name in names})

    def end(self, status: str, last_epoch: int) -> None:
        """Set the status of the attempt's runs: FINISHED, FAILED or KILLED.

        The run itself is left alone once a later attempt has it.

        Args:
            status: How it ended.
            last_epoch: Epochs completed.
        """
        ended = {self.stray_id, self.child_id, self.run_id} - {None}
        try:
            self.check_lease()
        except Superseded:
            ended.discard(self.run_id)
        # The run itself first: its status must not wait for a child that somebody deleted.
        for run_id in sorted(filter(None, ended), key=lambda run_id: run_id != self.run_id):
            self.tracking.set_status(run_id, status)
        if self.child_id != self.run_id:
            epochs = f"epochs {self.first_epoch}-{last_epoch}"
            if last_epoch < self.first_epoch:
                epochs = "no epoch"
            name = f"attempt {self.number}: {epochs} on {environment.hostname()}"
            self.tracking.rename(self.child_id, name)

    def _note(self) -> str:
        resume = train_command({"resume_run": self.run_id}, ".")
        fork = train_command({"resume_run": self.run_id, "resume_epoch": "best", "fork": True}, ".")
        return f"Resume:\n```\n{resume}\n```\nFork from the best epoch:\n```\n{fork}\n```\n"


def run_link(tracking: Tracking, record: RunRecord) -> str:
    """Return where MLflow's UI shows the run; for a database, where `mlflow ui` would."""
    server = environment.redact(tracking.uri.rstrip("/"))
    page = f"#/experiments/{record.experiment_id}/runs/{record.run_id}"
    if server.startswith("http"):
        return f"{server}/{page}"
    return f"http://127.0.0.1:5000/{page} (once `mlflow ui` runs)"
