"""What a run trains, as much of it as opening the run, saving it and showing it needs.

A trainer, or somebody's own loop, brings a `Kind`; opening a run makes a `Subject` of it. What is
behind them, a table or anything else, nobody here knows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from onward.checkpoint.content import Content
from onward.checkpoint.parts import PartSize
from onward.errors import RunNotUsable
from onward.metrics import History
from onward.monitor import Best, Monitor
from onward.options.run_options import RunOptions
from onward.publish.results import Results
from onward.system.untrusted import shown
from onward.tracking.artifacts import Artifacts
from onward.tracking.client import Tracking
from onward.tracking.record import RunRecord
from onward.words.language import _

UNNAMED = "tabular"  # what runs train that do not say it, as those of the first versions

# (name of the file, where to put it, how long it may be); raises TooLarge where it is longer
Download = Callable[[str, Path, int], object]


@dataclass(frozen=True)
class RunFiles:
    """What can be done to the files of a run's `data/`; names are relative to it.

    Args:
        put: Stores a local file, under its own name, in a folder; raises RequestTooLarge where the
            way takes no request of that size.
        names: Returns what is directly in a folder.
        download: Fetches a file; raises FileNotFoundError if there is none.
        smaller: Returns the size of part to try after one of that size was refused; 0: none.
    """

    put: Callable[[Path, str], object]
    names: Callable[[str], Collection[str]]
    download: Download
    smaller: Callable[[int], int]


def _there_is_none(name: str, *_arguments: object) -> object:
    raise FileNotFoundError(name)


# Of a rank that does not speak to MLflow.
NO_FILES = RunFiles(lambda *_: None, lambda _inside: (), _there_is_none, lambda _refused: 0)


class DatasetInfo(NamedTuple):
    """What MLflow's pages show of the data.

    Args:
        name: Of the dataset.
        source: Where it was read.
        columns: Name to kind: "double" or "string".
        profile: What else is worth showing, such as numbers of rows.
    """

    name: str
    source: str
    columns: Mapping[str, str]
    profile: Mapping[str, int]


@dataclass(frozen=True)
class Stored:
    """What a run that is gone on from has stored of what it trains.

    Args:
        run_id: The run.
        data_fingerprint: What its data is known by.
        options: With which its data was made.
        files: Those of its `data/`.
        is_other_data: Whether it is to be trained on other data from here on, as a fork may.
    """

    run_id: str
    data_fingerprint: str
    options: RunOptions
    files: RunFiles
    is_other_data: bool = False


class Subject(Results, Protocol):
    """What is trained: opened, with its data at hand."""

    @property
    def name(self) -> str:
        """What it is, in a word: a part of the run's fingerprint."""
        ...

    @property
    def options(self) -> RunOptions:
        """The options of the run, those chosen that were left to choose."""
        ...

    @property
    def monitor(self) -> Monitor:
        """The metric that decides which epoch is best."""
        ...

    @property
    def data_fingerprint(self) -> str:
        """SHA-256 of what it is trained on, in hex."""
        ...

    @property
    def copies_in_background(self) -> bool:
        """Whether nothing but the steps of its optimizers changes weights."""
        ...

    def params(self) -> Mapping[str, str]:
        """Return what MLflow shows as the run's params."""
        ...

    def code(self) -> Mapping[str, bytes]:
        """Return what is stored of the code of an attempt, besides what changed of this library."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """Return what a checkpoint says of the data, beside its fingerprint."""
        ...

    def in_words(self) -> Iterable[str]:
        """Return what is trained, on what and where, in some lines."""
        ...

    def dataset_info(self) -> DatasetInfo | None:
        """Return what MLflow's pages show of the data; None: nothing."""
        ...

    def keep(self, files: RunFiles) -> None:
        """Store the prepared data with the run, so that a resume elsewhere needs nothing else."""
        ...

    def extras(self, history: History, best: Best | None) -> Mapping[str, Any]:
        """Return what else is to be found in the file of a checkpoint, as tensors and builtins."""
        ...


class Kind(Protocol):
    """What can be trained: it opens subjects."""

    @property
    def name(self) -> str:
        """That of its subjects."""
        ...

    @property
    def declared(self) -> type[RunOptions]:
        """The class of all their options."""
        ...

    def open(self, options: RunOptions, stored: Stored | None) -> Subject:
        """Return what is to be trained.

        Args:
            options: Those of the run.
            stored: What the run has that is gone on from; None for a fresh one.

        Raises:
            DataError: The data is missing, cannot be read, or cannot be trained on.
        """
        ...

    @property
    def knows_length(self) -> bool:
        """Whether its options say how long a run is; else its loop does."""
        ...

    def compare(
        self, run_id: str, content: Content, options: RunOptions, artifacts: Artifacts
    ) -> None:
        """Tell what of the training is not as it was when a checkpoint was saved, beside options.

        Args:
            run_id: The run.
            content: The checkpoint.
            options: Those to go on with.
            artifacts: The files of the run.

        Raises:
            RunNotUsable: Something is not, and `options.strict` refuses it.
        """
        ...

    def from_file(
        self, path: Path, given: Mapping[str, Any], weights_only: bool
    ) -> tuple[Subject, Content]:
        """Return what is to be trained from a plain checkpoint file on, and what it holds.

        Raises:
            CheckpointError: The file cannot be used.
        """
        ...

    def is_source_of(self, options: RunOptions, data_fingerprint: str) -> bool:
        """Tell whether the options name data of that fingerprint, in whatever place."""
        ...


def data_files(artifacts: Artifacts) -> RunFiles:
    """Return what can be done to the files of a run's `data/`."""
    part_size = PartSize()
    return RunFiles(
        put=lambda path, inside: artifacts.upload(path, f"data/{inside}".rstrip("/")),
        names=lambda inside: artifacts.list(f"data/{inside}".rstrip("/")),
        download=lambda name, to, max_bytes: artifacts.download(f"data/{name}", to, max_bytes),
        smaller=lambda refused: part_size.bytes if part_size.refused(refused) else 0,
    )


def stored_of(
    tracking: Tracking,
    record: RunRecord,
    options: RunOptions,
    data_fingerprint: str | None = None,
    is_other_data: bool = False,
) -> Stored:
    """Return what a run has stored of what it trains.

    Args:
        tracking: The server.
        record: The run.
        options: Its options.
        data_fingerprint: What its data must be; default: what the run's tag says.
        is_other_data: See `Stored`.
    """
    fingerprint = data_fingerprint or record.data_fingerprint
    files = data_files(tracking.artifacts(record))
    return Stored(record.run_id, fingerprint, options, files, is_other_data)


def require_kind(run_id: str, data: Mapping[str, Any], kind: Kind) -> None:
    """Refuse to go on with a run by another task than it was trained by.

    What a run says of its task is shown; which code is used is for the command to say.

    Args:
        run_id: The run.
        data: What its checkpoint says of what it was trained on; see `facts_of`.
        kind: What the command names.

    Raises:
        RunNotUsable: It trains something else.
    """
    name = str(data.get("task", UNNAMED))
    if name == kind.name:
        return
    told = _("trains the task '{name}', and the command is for '{kind}'")
    if "script" in data:
        script = shown(str(data["script"]), 60)
        told = _("is of the script {script}, which goes on with it by ONWARD_RESUME_RUN={run_id}")
        raise RunNotUsable(run_id, told.format(script=script, run_id=run_id))
    if name != UNNAMED:
        told = _(
            "trains the task '{name}', and the command is for '{kind}': name the file of that task "
            "too, with task=<file>"
        )
    raise RunNotUsable(run_id, told.format(name=shown(name, 60), kind=kind.name))


def facts_of(subject: Subject) -> dict[str, Any]:
    """Return what a checkpoint says of the data of its run, and of what was trained on it."""
    named = {} if subject.name == UNNAMED else {"task": subject.name}
    return {"fingerprint": subject.data_fingerprint, **named, **subject.facts()}
