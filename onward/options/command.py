"""The commands that messages tell the user to run, in the form the user came by."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onward.options.declare import to_text
from onward.options.run_options import RunOptions
from onward.system import environment, invocation
from onward.words.shell import quoted

Options = dict[str, Any]
SCRIPT = "script"  # among options: what starts a loop of one's own
_STARTS = [(r"python[0-9.]{0,6}",), ("onward", "launch", "--nproc", "[0-9]{1,4}")]
_TOLD_BY_LOOP = {SCRIPT, "epochs", "schedule_epochs", "task"}


@dataclass(frozen=True)
class Standing:
    """How a run stands: what decides by which options it can be gone on from, to some use.

    Args:
        run_id: The run.
        is_finished: Whether it has come to its end, by its epochs or by early stopping.
        epoch: Epochs completed.
        epochs: How many it trains to; None if that is not known.
        early_stopping: The option.
        best_epoch: Its best epoch so far, None if there is none.
        horizon: The epochs over which its learning rate falls to near zero; None: it does not.
        task: What the command is to name as what is trained; None: nothing.
        script: The words that start the loop of one's own that the run is of; None: it is none.
    """

    run_id: str
    is_finished: bool
    epoch: int
    epochs: int | None = None
    early_stopping: int = 0
    best_epoch: int | None = None
    horizon: int | None = None
    task: str | None = None
    script: tuple[str, ...] | None = None

    @classmethod
    def by_options(
        cls, run_id: str, is_finished: bool, epoch: int, options: RunOptions, best_epoch: int | None
    ) -> Standing:
        """Return how a run with these options stands."""
        told = options.to_dict()
        return cls(
            run_id, is_finished, epoch, options.epochs, options.early_stopping, best_epoch,
            horizon_of(told), task_of(told), invocation.script(),
        )  # fmt: skip

    @property
    def has_stopped_early(self) -> bool:
        """Whether early stopping would end it again at once."""
        waited = self.epoch - (self.best_epoch or 0)
        return bool(self.early_stopping) and waited >= self.early_stopping

    def in_place(self) -> Options:
        """Return the options that go on with the run itself."""
        options = self._named()
        if not self.is_finished:
            return options
        left = (self.epochs or 0) > self.epoch
        options["epochs"] = self.epochs if left else self._longer
        return options | self._patience()

    def as_fork(self) -> Options:
        """Return the options that start a run from its newest checkpoint."""
        return self._named() | {"fork": True}

    def anew(self) -> Options:
        """Return the options that train longer as a fork, with a rate that falls later."""
        return self.as_fork() | self._longer_options() | self._patience()

    def go_on(self) -> Options:
        """Return the options of most use: the run itself, unless its rate is near zero."""
        is_at_floor = self.is_finished and self.epoch >= (self.horizon or math.inf)
        return self.anew() if is_at_floor else self.in_place()

    def fork_from(self, checkpoint: str) -> Options:
        """Return the options that start a run from a checkpoint: an epoch, "best" or its name.

        From the second half of a run it is a longer one, since little would be left to train.
        """
        options = self._named() | {"resume_epoch": checkpoint, "fork": True}
        is_late = 2 * self.epoch > min(self.epochs or 0, self.horizon or math.inf)
        return options | (self._longer_options() if is_late else {})

    def _named(self) -> Options:
        """Return the options that name the run, and what it trains."""
        named: Options = {"resume_run": self.run_id}
        if self.script is not None:
            named[SCRIPT] = self.script
        return named if self.task is None else named | {"task": self.task}

    @property
    def _longer(self) -> int:
        return 2 * max(self.epoch, 1)

    def _longer_options(self) -> Options:
        epochs = max(self._longer, self.epochs or 0)
        horizon = {"schedule_epochs": max(epochs, self.horizon)} if self.horizon else {}
        return {"epochs": epochs} | horizon

    def _patience(self) -> Options:
        return {"early_stopping": 0} if self.has_stopped_early else {}


def horizon_of(options: Mapping[str, Any]) -> int | None:
    """Return the epochs over which a run's learning rate falls to near zero; None: it does not.

    Args:
        options: As they are stored; those of a training without a schedule have none.
    """
    horizon = options.get("schedule_epochs") or options.get("epochs")
    is_number = type(horizon) is int and 0 < horizon < 2**53
    return horizon if options.get("schedule") == "cosine" and is_number else None


def task_of(options: Mapping[str, Any]) -> str | None:
    """Return what the commands of a run are to name as what it trains; None: nothing."""
    task = options.get("task")
    return task if isinstance(task, str) else None


def train_command(options: Mapping[str, Any], project: str | None = None) -> str:
    """Return the full command that starts the program with `options`, ready to paste.

    Args:
        options: Name to value.
        project: What `mlflow run` is given; default: this project by its full path, which is
            right in every folder.
    """
    script = options.get(SCRIPT, invocation.script())
    if script is not None:
        return _script_command(script, options)
    words = {name: quoted(to_text(value)) for name, value in options.items()}
    launcher = environment.ranks().launcher  # onward launch --nproc N
    if environment.launched_run_id() is None:
        start = " ".join(["train", *launcher[1:], "--", "run"]) if launcher else "train run"
        return " ".join([start, *(f"--{k} {v}" for k, v in words.items())])
    start = f"mlflow run {project or _project()} --env-manager local"
    if launcher:
        start += f" -e distributed -P nproc={launcher[-1]}"
    return " ".join([start, *(f"-P {k}={v}" for k, v in words.items())])


def _script_command(script: Sequence[str], options: Mapping[str, Any]) -> str:
    """Return how a loop of one's own goes on: as it was started, with options as variables."""
    variables = [
        f"ONWARD_{name.upper()}={quoted(to_text(value))}"
        for name, value in options.items()
        if name not in _TOLD_BY_LOOP
    ]
    return " ".join([*variables, quoted(*script)])


def script_of(words: object) -> tuple[str, ...] | None:
    """Return the words that start a script, as a run tells them; None if they cannot be that.

    Whoever can write to the run's tags chooses them, and somebody may paste them: they are a
    Python that runs a file or a module, or our launcher that does, and nothing else.
    """
    if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
        return None
    for patterns in _STARTS:
        start, rest = words[: len(patterns)], words[len(patterns) :]
        if all(map(re.fullmatch, patterns, start)) and rest and len(words) <= 200:
            return None if rest[0].startswith("-") and rest[0] != "-m" else tuple(words)
    return None


def _project() -> str:
    """Return where `mlflow run` finds this project; it works in the project's folder."""
    here = Path.cwd()
    if here.is_relative_to(tempfile.gettempdir()) and here.name.startswith("tmp"):
        return "<project>"  # a temporary copy of a zip or a git repository
    return quoted(str(here))
