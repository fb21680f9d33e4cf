"""Finding what is to be trained: the table, or a file with a task of somebody's own."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from onward.errors import UsageError
from onward.options.merged import merged
from onward.options.run_options import RunOptions
from onward.words.language import _
from train.loop_options import TABULAR, LoopOptions
from train.task_file import load_file

if TYPE_CHECKING:
    from onward.checkpoint.content import Content
    from onward.run.subject import Stored
    from onward.tracking.artifacts import Artifacts
    from train.subject import TaskSubject


class TaskKind:
    """A module with a task; see `train.subject.Kind`.

    Args:
        name: What it is, in a word.
        declared: The class of all options of its runs.
        load: Returns the module.
        file: Where it is from; None: from this program.
    """

    knows_length = True

    def __init__(
        self,
        name: str,
        declared: type[RunOptions],
        load: Callable[[], ModuleType],
        file: Path | None = None,
    ) -> None:
        self.name, self.declared, self.file = name, declared, file
        self._load = load

    @functools.cached_property
    def module(self) -> ModuleType:
        """The module."""
        return self._load()

    def open(self, options: RunOptions, stored: Stored | None) -> TaskSubject:
        """Return the task, opened; see `Kind.open`."""
        from train.subject import TaskSubject

        return TaskSubject(self.name, self.module.open_task(options, stored), options, self.file)

    def open_model(self, options: RunOptions, stored: Stored) -> Any:
        """Return what makes the model of a checkpoint: less than the task, if the module can."""
        opened = getattr(self.module, "open_model", None)
        return opened(options, stored) if opened else self.open(options, stored)

    def compare(
        self, run_id: str, content: Content, options: RunOptions, artifacts: Artifacts
    ) -> None:
        """Tell nothing: all that may differ is in the options."""

    def from_file(
        self, path: Path, given: Mapping[str, Any], weights_only: bool
    ) -> tuple[TaskSubject, Content]:
        """Return what is to be trained from a plain checkpoint file on, and what it holds."""
        from train.fits import fitted
        from train.script import check_order, read_checkpoint_file

        options, content = read_checkpoint_file(path, given, self.declared, weights_only)
        subject = self.open(options, None)
        content = fitted(content, subject, path)
        check_order(content, subject, path)
        return subject, content

    def is_source_of(self, options: RunOptions, data_fingerprint: str) -> bool:
        """Tell whether the options name data of that fingerprint."""
        asked = getattr(self.module, "is_source_of", None)
        return bool(asked(options, data_fingerprint)) if asked else False


def find_task(text: str = TABULAR) -> TaskKind:
    """Return the task that the option `task` names.

    Args:
        text: "tabular", or the path of a Python file.

    Raises:
        UsageError: There is no such file, or no task in it.
    """
    if text == TABULAR:
        from train.tabular.options import Config

        return TaskKind(
            TABULAR, Config, functools.partial(importlib.import_module, "train.tabular.task")
        )
    path = Path(text)
    if path.suffix != ".py" or not path.is_file():
        told = _("task={task!r} is neither 'tabular' nor a Python file: searched '{path}'")
        raise UsageError(told.format(task=text, path=path.absolute()))
    module = load_file(path)
    own = getattr(module, "Options", None)
    parts = (LoopOptions, RunOptions)
    declared = merged(own, *parts) if own is not None else merged(*parts)
    if not callable(getattr(module, "open_task", None)):
        told = _("'{path}' is no task: it has no function open_task(options, stored)")
        raise UsageError(told.format(path=path))
    return TaskKind(getattr(module, "NAME", path.stem), declared, lambda: module, path)
