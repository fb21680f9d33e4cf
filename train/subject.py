"""A task as the library sees it: a subject that a run can be opened for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from onward.checkpoint.content import Content
from onward.metrics import History
from onward.monitor import Best, Monitor
from onward.run.subject import DatasetInfo, RunFiles
from onward.system import environment
from onward.tracking.models import ServedModel
from onward.words.language import _
from train.strategy import PARTS, require_parts
from train.task import OPTIONAL, Task
from train.task_file import pack


class TaskSubject:
    """A task as the library sees it; see `train.subject.Subject`.

    Args:
        name: Of the task.
        task: The task.
        options: Those that it was opened with.
        file: Where its code is; None: it is this program's own.

    Attributes:
        options: The same, with every option chosen that was left to choose.
    """

    def __init__(self, name: str, task: Task, options: Any, file: Path | None = None) -> None:
        self.name, self.task, self._file = name, task, file
        options = getattr(task, "options", options)
        monitor = options.monitor
        if monitor is not None and Monitor.parse(monitor) == task.monitor:
            monitor = None  # said twice, it is the same run
        options = options.replace(
            schedule_epochs=options.schedule_epochs or options.epochs, monitor=monitor
        )
        if not options.threads:
            num_weights = sum(p.numel() for p in task.build_model().parameters())
            threads = environment.choose_threads(
                num_weights, options.batch_size, environment.num_cpus()
            )
            options = options.replace(threads=threads)
        num_ranks = environment.ranks().size
        if options.strategy == PARTS:
            options = options.replace(parts=options.parts or num_ranks)
            require_parts(options, num_ranks)
        self.options = options

    @property
    def monitor(self) -> Monitor:
        """The metric that decides which epoch is best: the one that was given, or the task's."""
        given = self.options.monitor
        return self.task.monitor if given is None else Monitor.parse(given)

    @property
    def plateau(self) -> Monitor:
        """The metric that schedule=plateau watches: one that was given, or the task's own."""
        if self.options.monitor is not None:
            return self.monitor
        return getattr(self.task, "plateau", self.monitor)

    @property
    def data_fingerprint(self) -> str:
        """SHA-256 of what it is trained on, in hex."""
        return getattr(self.task, "fingerprint", "0" * 64)

    @property
    def copies_in_background(self) -> bool:
        """The loop changes weights by steps of its optimizer only."""
        return True

    def params(self) -> Mapping[str, str]:
        """Return what MLflow shows as the run's params: its options."""
        return self.options.in_words()

    def code(self) -> Mapping[str, bytes]:
        """Return nothing: a task's code goes with its model."""
        return {}

    def facts(self) -> Mapping[str, Any]:
        """Return what a checkpoint says of the data."""
        return self._ask("facts", lambda: {})

    def in_words(self) -> Iterable[str]:
        """Return what is trained, on what and where, in some lines."""
        yield from self._ask("in_words", lambda: ())
        yield _("Device: {device}, {threads} CPU threads").format(
            device=environment.choose_device(self.options.device), threads=self.options.threads
        )

    def dataset_info(self) -> DatasetInfo | None:
        """Return what MLflow's pages show of the data."""
        return self._ask("dataset_info", lambda: None)

    def keep(self, files: RunFiles) -> None:
        """Store the prepared data with the run."""
        self._ask("keep", lambda _files: None, files)

    def extras(self, history: History, best: Best | None) -> Mapping[str, Any]:
        """Return what else is to be found in the file of a checkpoint."""
        return self._ask("extras", lambda _history, _best: {}, history, best)

    def figures(self, content: Content, is_best: bool) -> Mapping[str, bytes]:
        """Return pictures of how good a checkpoint is."""
        return self._ask("figures", lambda _content, _is_best: {}, content, is_best)

    def model(self, content: Content, folder: Path) -> ServedModel | None:
        """Write the model that is to be served."""
        served: ServedModel | None
        served = self._ask("model", lambda _content, _folder: None, content, folder)
        if served is None or self._file is None:
            return served
        return served._replace(loader=pack(self._file, folder))

    def _ask(self, name: str, default: Callable[..., Any], *arguments: Any) -> Any:
        assert name in OPTIONAL
        return getattr(self.task, name, default)(*arguments)
