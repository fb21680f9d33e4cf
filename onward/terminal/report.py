"""What the user sees while it runs: log lines, and a progress bar on a terminal."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from onward.metrics import EPOCH, STEP, in_words, is_wall_clock, timing_prefix
from onward.monitor import UNDECLARED, Monitor
from onward.system.files import open_own
from onward.system.untrusted import told
from onward.terminal import progress
from onward.words.language import _

log = logging.getLogger(__name__)
epoch_log = logging.getLogger("onward.epochs")  # a line an epoch; a shorter one where a bar is

_REFRESH_SECONDS = 0.1
_MAX_SHOWN = 12  # metrics in the line of an epoch of a loop of one's own
_LINE_SECONDS = 1.0  # between two lines of steps that nothing is saved of


class _Lasting:
    """A stream that may be lost, as a closed terminal or a broken pipe is: then nothing is shown.

    Training goes on; the log file has it all.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or lose the stream."""
        with self._kept():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or lose the stream."""
        with self._kept():
            self._stream.flush()

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            # What is left in its buffer must not turn up as an error at the process's end.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _make_console() -> Console:
    if sys.stdout is None:  # closed by whoever started the process: rich writes nowhere then
        return Console()
    # A bar only where there is a terminal: FORCE_COLOR alone makes none.
    stream: Any = _Lasting(sys.stdout)
    return Console(file=stream, force_interactive=None if sys.stdout.isatty() else False)


def _value(value: float) -> str:
    return in_words(value) if math.isfinite(value) else f"{value}"


def _keys_shown(metrics: Mapping[str, float], monitored: str, shows_all: bool) -> list[str]:
    """Return the metrics to be told of an epoch: the losses, the monitored one, or all."""
    keys = [k for k in dict.fromkeys(("train_loss", "val_loss", monitored)) if k in metrics]
    own = (k for k in metrics if not (is_wall_clock(k) or k.startswith("best_")))
    return list(dict.fromkeys([*keys, *own]))[:_MAX_SHOWN] if shows_all else keys


class _ConsoleHandler(logging.Handler):
    """Prints messages above the progress bar, if there is one."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == epoch_log.name and self.console.is_interactive:
            return
        if record.name == progress.log.name and self.console.is_interactive:
            return
        message = told(record.getMessage())
        if record.levelno >= logging.ERROR:
            message = _("error: {error}").format(error=message)
        elif record.levelno >= logging.WARNING:
            message = _("warning: {message}").format(message=message)
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)


class _FileFormatter(logging.Formatter):
    """A line of the log file: one, whatever the message holds."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line."""
        record.message = told(record.message)
        return super().formatMessage(record)


class _OwnFileHandler(logging.FileHandler):
    """Writes to a file that is this user's alone, and to none that was put in its place."""

    def _open(self) -> Any:
        return os.fdopen(open_own(Path(self.baseFilename)), "a", encoding=self.encoding)


class Reporter:
    """Log lines and the progress bar of one process.

    Args:
        console: Where to write; a bar is shown only where it is a terminal.
        has_bar: Whether it is shown there; a loop of one's own may have one itself.
    """

    def __init__(self, console: Console | None = None, has_bar: bool = True) -> None:
        self._console, self._has_bar = console or _make_console(), has_bar
        self._bar: Progress | None = None
        self._next_refresh = self._next_line = 0.0
        self._monitor, self._unit = UNDECLARED, EPOCH
        self._early: logging.handlers.MemoryHandler | None = None

    @classmethod
    def silent(cls) -> Reporter:
        """Return one that shows nothing: of a rank that says what another says already."""
        return cls(Console(quiet=True), has_bar=False)

    def open_log(self) -> None:
        """Send the log to the terminal, and keep it for the file that `log_to` names."""
        logger = logging.getLogger("onward")
        logger.setLevel(logging.INFO)
        logger.propagate = False
        self._early = logging.handlers.MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1)
        logger.handlers = [_ConsoleHandler(self._console), self._early]

    def log_to(self, path: Path) -> None:
        """Write the log, from its first line, to the file `path`."""
        file = _OwnFileHandler(path, encoding="utf-8")
        file.setFormatter(_FileFormatter())
        if self._early is not None:
            self._early.setTarget(file)
            self._early.flush()
            logging.getLogger("onward").removeHandler(self._early)
        logging.getLogger("onward").addHandler(file)

    def close_log(self) -> None:
        """Stop logging, and close the file."""
        logger = logging.getLogger("onward")
        for handler in logger.handlers:
            handler.close()
        logger.handlers = []

    def begin(self, epochs: int, epochs_done: int, monitor: Monitor, unit: str = EPOCH) -> None:
        """Show the bar, with `epochs_done` of `epochs` behind it; `unit` is what they are."""
        self._monitor, self._unit = monitor, unit
        if not (self._console.is_interactive and self._has_bar):
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            TextColumn("{task.percentage:3.0f} % ETA"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._epochs = epochs
        first = self._number(epochs_done + 1)
        self._bar.add_task(first, total=epochs, completed=epochs_done)
        self._bar.start()

    def advance(self, epochs_done: float) -> None:
        """Move the bar; cheap enough to be called at every step."""
        if self._bar is not None and time.monotonic() >= self._next_refresh:
            self._next_refresh = time.monotonic() + _REFRESH_SECONDS
            self._bar.update(self._bar.task_ids[0], completed=epochs_done)

    def epoch(
        self,
        epoch: int,
        metrics: Mapping[str, float],
        best_epoch: int | None,
        note: str,
    ) -> None:
        """Tell how an epoch went; `note` says what is to be said of its checkpoint."""
        name, unit = self._monitor.name, self._unit
        now = time.monotonic()
        if unit == STEP and not note and now < self._next_line:
            return  # a loop may log at each step
        self._next_line = now + _LINE_SECONDS
        shown = [
            f"{key} {_value(metrics[key])}" for key in _keys_shown(metrics, name, not self._has_bar)
        ]
        best = _(" (best)") if epoch == best_epoch else _(" (best: epoch {best_epoch})")
        if unit == STEP and epoch != best_epoch:
            best = _(" (best: step {best_epoch})")
        best = best.format(best_epoch=best_epoch) if best_epoch else ""
        line = "  ".join([f"{unit} {epoch}", *shown]) + best
        line += f"  [{note}]" if note else ""
        prefix = timing_prefix(metrics)
        seconds = metrics.get(f"{prefix}epoch_seconds")
        rate = metrics.get(f"{prefix}steps_per_second")
        took = "" if rate is None else f"  {rate:.3g}/s"
        epoch_log.info("%s%s", line, took if seconds is None else f"  {seconds:.1f} s")
        if self._bar is not None:
            losses = [k for k in ("val_loss",) if k in metrics and k != name]
            told_short = [f"{_('loss')} {metrics[k]:.4g}" for k in losses]
            told_short += [f"{name.removeprefix('val_')} {metrics.get(name, math.nan):.4f}"]
            done = f"{self._number(epoch)} {' '.join(told_short)}{best}"
            done += f" [{note}]" if note else ""
            self._console.print(
                told(f"{done} {seconds or 0.0:.1f} s"), markup=False, highlight=False
            )
            ahead = self._number(min(epoch + 1, self._epochs))
            ahead += f" {_('best')} {best_epoch}" if best_epoch else ""
            ahead += f" [{note}]" if note and note != _("kept") else ""
            self._bar.update(
                self._bar.task_ids[0], completed=epoch, description=escape(told(ahead))
            )

    def _number(self, epoch: int) -> str:
        return _("epoch {epoch}/{epochs}").format(epoch=epoch, epochs=self._epochs)

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
