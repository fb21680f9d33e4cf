"""Every error this program raises on purpose, and the exit code that goes with it.

    TrainError                                  1   anything below, caught at once
    ├── UsageError (ValueError)                 2   an option or a value that cannot be used
    │   └── ForkNeeded                          2   the option would make it another training
    ├── DataError (ValueError)                  3   the table cannot be trained on
    │   └── DataNotFound (FileNotFoundError)    3
    ├── CheckpointError                         4   no checkpoint to go on from
    │   ├── CheckpointNotFound (LookupError)    4
    │   ├── CheckpointFileNotFound (FileNotFoundError)  4
    │   └── CheckpointDamaged (ValueError)      4
    ├── NonFinite (ArithmeticError)             5   loss or gradients are NaN or infinite
    ├── RunNotUsable (LookupError)              6   the run is unknown, deleted, finished, taken
    ├── UnsafeValue (ValueError)                6   the store or the server says what cannot be used
    ├── UnsafeFile (PermissionError)            6   a link, a pipe, a device in place of a file
    ├── StoreUnavailable (ConnectionError)      7   the tracking server or its artifacts
    │   ├── RankFilesMissing                    7   what a rank is to bring there itself is not
    │   └── StoreRefused                        7   what will not go away by itself
    │       ├── RequestTooLarge                 7   a gateway takes no request of that size
    │       └── NotOffered                      7   the server is of an older version of MLflow
    ├── TooLarge (ValueError)                   7   a file of a store is longer than it may be
    ├── RankLost (SystemExit)                   1   a rank died, or does not answer
    ├── RankStopped (SystemExit)                1   another rank stopped: the code is that rank's
    ├── Superseded (SystemExit)                 8   a later attempt has taken the run over
    └── Interrupted (SystemExit)               75   stopped by a signal; can be resumed

Each message is one line: what failed, what was found against what was expected, what to do.
The command line prints that line and exits with the class's ``exit_code``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from onward.words.language import _
from onward.words.shell import command


class TrainError(Exception):
    """Base of every error that this program raises on purpose."""

    exit_code = 1
    __str__ = Exception.__str__  # those that are an OSError too would print it in their own way


class UsageError(TrainError, ValueError):
    """An option, or a combination of options, that cannot be used."""

    exit_code = 2


def _shown(value: object) -> object:
    return _("empty") if value == "" else value


class ForkNeeded(UsageError):
    """Options given on a resume that would make it another training.

    Args:
        run_id: The run that was to be resumed.
        changes: Option name to (value of the run, value given).
        command: The full command that forks with the given values.
        has_checkpoint: Else there is nothing to fork, and the command starts afresh.
    """

    def __init__(
        self,
        run_id: str,
        changes: Mapping[str, tuple[object, object]],
        command: str,
        has_checkpoint: bool = True,
    ):
        self.run_id, self.changes, self.command = run_id, dict(changes), command
        listed = ", ".join(
            _("{name} is {old} in the run and {new} was given").format(
                name=name, old=_shown(old), new=_shown(new)
            )
            for name, (old, new) in changes.items()
        )
        told = _(
            "run '{run_id}' cannot be resumed with other values: {changes}. "
            "Leave them out to go on, or fork: {command}"
        )
        if not has_checkpoint:
            told = _(
                "run '{run_id}' cannot be resumed with other values: {changes}. It has no "
                "checkpoint yet. Leave them out to go on, or start afresh: {command}"
            )
        super().__init__(told.format(run_id=run_id, changes=listed, command=command))


class DataError(TrainError, ValueError):
    """Data that cannot be read, or cannot be trained on."""

    exit_code = 3


class DataNotFound(DataError, FileNotFoundError):
    """The data is not where it was said to be.

    Args:
        path: The path as it was given.
        searched: The absolute path that was looked at.
    """

    def __init__(self, path: str, searched: str):
        self.path, self.searched = path, searched
        super().__init__(
            _(
                "data '{path}' was not found: searched '{searched}'. A relative path starts in the "
                "folder the program runs in, which under `mlflow run` is the project's; "
                "pass an absolute path"
            ).format(path=path, searched=searched)
        )


class CheckpointError(TrainError):
    """A checkpoint that cannot be used."""

    exit_code = 4


class CheckpointNotFound(CheckpointError, LookupError):
    """The run has no such checkpoint.

    Args:
        run_id: The run that was searched.
        wanted: What was asked for, as a reader would say it: "epoch 7".
        existing: The epochs (or steps) whose checkpoints do exist, in order.
    """

    def __init__(self, run_id: str, wanted: str, existing: Iterable[str]):
        self.run_id, self.wanted, self.existing = run_id, wanted, list(existing)
        told = _("run '{run_id}' has no checkpoint of {wanted}: it has none")
        if self.existing:
            told = _(
                "run '{run_id}' has no checkpoint of {wanted}: it has {existing}. "
                "`{command}` shows them"
            )
        super().__init__(
            told.format(
                run_id=run_id,
                wanted=wanted,
                existing=", ".join(self.existing),
                command=command("list", run_id),
            )
        )


class CheckpointFileNotFound(CheckpointError, FileNotFoundError):
    """There is no such checkpoint file.

    Args:
        path: The path as it was given.
        searched: The absolute path that was looked at.
    """

    def __init__(self, path: str, searched: str):
        self.path, self.searched = path, searched
        super().__init__(
            _(
                "checkpoint file '{path}' was not found: searched '{searched}'. Under `mlflow run` "
                "a relative path starts in the project's folder; pass an absolute path"
            ).format(path=path, searched=searched)
        )


class CheckpointDamaged(CheckpointError, ValueError):
    """A checkpoint whose bytes are not what its manifest says.

    Args:
        name: The checkpoint: "epoch_12 of run 'a1b2'", or a file's path.
        found: What was found, against what was expected.
        others: The epochs whose checkpoints may be asked for instead.
    """

    def __init__(self, name: str, found: str, others: Iterable[str] = ()):
        self.name, self.found, self.others = name, found, list(others)
        message = _("checkpoint {name} is damaged: {found}").format(name=name, found=found)
        if self.others:
            message += _(". The run also has {others}").format(others=", ".join(self.others))
        super().__init__(message)


class NonFinite(TrainError, ArithmeticError):
    """The loss or a gradient is NaN or infinite; the update was not made.

    Args:
        what: "loss" or "gradient norm".
        value: What it was.
        epoch: The epoch under way.
        step: The optimizer step that would have been made, counted from 1.
        lr: The learning rate in force.
    """

    exit_code = 5

    def __init__(self, what: str, value: float, epoch: int, step: int, lr: float):
        self.what, self.value, self.epoch, self.step, self.lr = what, value, epoch, step, lr
        shown = {"loss": _("loss"), "gradient norm": _("gradient norm")}.get(what, what)
        super().__init__(
            _(
                "{what} is {value} at step {step} (epoch {epoch}, lr {lr:g}): the update was not "
                "made and the last checkpoint is untouched. Try a lower lr, or look at the data"
            ).format(what=shown, value=value, step=step, epoch=epoch, lr=lr)
        )


class RunNotUsable(TrainError, LookupError):
    """The run cannot be used as asked.

    Args:
        run_id: The run, or "latest".
        why: What is wrong with it, and what to do.
    """

    exit_code = 6

    def __init__(self, run_id: str, why: str):
        self.run_id, self.why = run_id, why
        super().__init__(_("run '{run_id}' {why}").format(run_id=run_id, why=why))


class UnsafeValue(TrainError, ValueError):
    """A store or a server gave a value that is not used: it could lead out of our folders.

    Args:
        what: What it should have been: "run ID".
        value: What it was, ready to be shown.
    """

    exit_code = 6

    def __init__(self, what: str, value: str):
        self.what, self.value = what, value
        super().__init__(
            _(
                "{what} '{value}' is not used: it is none that this program or MLflow makes. Look "
                "at who may write to the server, or ask its administrator"
            ).format(what=what, value=value)
        )


class UnsafeFile(TrainError, PermissionError):
    """Something that this program never makes is in place of a file or folder: it is not touched.

    Args:
        path: Where it is.
        what: What it is: "a symbolic link".
    """

    exit_code = 6

    def __init__(self, path: str, what: str):
        self.path, self.what = path, what
        super().__init__(
            _(
                "'{path}' is {what}, which this program never makes there, and is not touched: "
                "look at who may write to that folder, then take it away"
            ).format(path=path, what=what)
        )


class StoreUnavailable(TrainError, ConnectionError):
    """The tracking server, or the place of the artifacts, cannot be used."""

    exit_code = 7
    retry_after = 0.0  # seconds that the server asks to wait
    status: int | None = None  # what it has answered with by HTTP; None: nothing


class RankFilesMissing(StoreUnavailable):
    """What a rank is to bring to the store is not there, so that nothing is committed.

    Args:
        rank: The rank.
        name: The checkpoint.
        reason: Why, as far as it is known.
    """

    def __init__(self, rank: int, name: str, reason: str):
        self.rank, self.name, self.reason = rank, name, reason
        told = _("the files of rank {rank} for {name} are not in the store: {reason}")
        super().__init__(told.format(rank=rank, name=name, reason=reason))


class StoreRefused(StoreUnavailable):
    """The answer was no, and will be as long as nobody changes something: waiting does not help."""


class RequestTooLarge(StoreRefused):
    """What is between here and the store takes no request of that size; smaller ones it may."""


class NotOffered(StoreRefused):
    """The server is of an older version of MLflow, which has nothing of what is asked for."""


class TooLarge(TrainError, ValueError):
    """A file of a store is longer than it may be; what came of it is thrown away.

    Args:
        path: The file.
        max_bytes: How much of it was to be read at most.
    """

    exit_code = 7

    def __init__(self, path: str, max_bytes: int):
        self.path, self._max_bytes = path, max_bytes
        super().__init__(
            _("'{path}' has more than {max_bytes:,} bytes, and no more of it is read").format(
                path=path, max_bytes=max_bytes
            )
        )


class Superseded(TrainError, SystemExit):
    """A later attempt has been claimed: this one publishes nothing more and stops.

    Args:
        run_id: The run.
        attempt: The attempt that stops.
        newest: The newest attempt.
    """

    exit_code = code = 8

    def __init__(self, run_id: str, attempt: int, newest: int):
        self.run_id, self.attempt, self.newest = run_id, attempt, newest
        super().__init__(
            _(
                "attempt {attempt} of run '{run_id}' was overtaken by attempt {newest}: it "
                "publishes nothing more and stops"
            ).format(attempt=attempt, run_id=run_id, newest=newest)
        )


class RankLost(TrainError, SystemExit):
    """A rank died or does not answer, and with it what all of them were about to do.

    Args:
        ranks: Those that do not answer; none: that cannot be told.
        reason: What was seen of it.
    """

    exit_code = code = 1

    def __init__(self, ranks: Sequence[int], reason: str):
        self.ranks, self.reason = list(ranks), reason
        told = _("rank {ranks} died, or does not answer: {reason}")
        if not ranks:
            told = _("the ranks have lost each other: {reason}")
        super().__init__(told.format(ranks=", ".join(map(str, ranks)), reason=reason))


class RankStopped(TrainError, SystemExit):
    """Another rank has ended, and this one ends with it, by the same code.

    Args:
        rank: That rank.
        reason: What it says.
        code: That of its exit.
    """

    def __init__(self, rank: int, reason: str, code: int):
        self.rank, self.reason, self.exit_code = rank, reason, code
        self.code = code
        super().__init__(
            _("rank {rank} has ended: {reason}").format(rank=rank, reason=reason or code)
        )


class Interrupted(TrainError, SystemExit):
    """A signal asked the run to stop; what was committed is safe.

    Where nobody catches it the process ends with the exit code, without a traceback.

    Args:
        signal_name: "SIGTERM", "SIGINT", …, or "max_minutes"
        epoch: Epochs completed.
        epoch_step: Steps completed of the next one.
        is_by_step: Whether `epoch` counts steps.
    """

    exit_code = code = 75

    def __init__(self, signal_name: str, epoch: int, epoch_step: int = 0, is_by_step: bool = False):
        self.signal_name, self.epoch, self.epoch_step = signal_name, epoch, epoch_step
        message = _("stopped by {signal_name} after {epoch} epochs")
        if is_by_step:
            message = _("stopped by {signal_name} after {epoch} steps")
        elif epoch_step:
            message = _(
                "stopped by {signal_name} after {epoch} epochs and {epoch_step} steps of the next"
            )
        super().__init__(
            message.format(signal_name=signal_name, epoch=epoch, epoch_step=epoch_step)
        )
