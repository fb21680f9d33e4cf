"""How far a long transfer is: a bar on a terminal, else a line in the log now and then.

Nothing is shown of what is over within two seconds. The bar is drawn where the log is shown, on
the console of a log handler, so that messages come above it; without one there is no bar.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from onward.system.streams import Region, Target
from onward.system.untrusted import told
from onward.words.language import _

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

log = logging.getLogger(__name__)  # lines that a terminal does not show: it has the bar

DELAY_SECONDS = 2.0  # before anything is shown
REFRESH_SECONDS = 0.2  # of the bar
LINE_SECONDS = 10.0  # between two lines of the log


class Moved:
    """Counts the bytes of a transfer; any thread may do so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_bytes = 0
        self._growing: list[Target] = []

    def add(self, num_bytes: int) -> None:
        """Count bytes that have arrived for good."""
        with self._lock:
            self._num_bytes += num_bytes

    @contextlib.contextmanager
    def growing(self, file: Target) -> Iterator[None]:
        """Count what `file` has so far, as long as the block lasts; `add` is for after it."""
        with self._lock:
            self._growing.append(file)
        try:
            yield
        finally:
            with self._lock:
                self._growing.remove(file)

    def num_bytes(self) -> int:
        """Return how many there are by now."""
        with self._lock:
            return self._num_bytes + sum(map(_written_bytes, self._growing))


def _written_bytes(file: Target) -> int:
    """Return how much of a file is there; one that is filled from several ends has holes."""
    if isinstance(file, Region):
        return file.num_bytes
    try:
        found = os.stat(file)
    except FileNotFoundError:
        return 0
    return min(found.st_size, 512 * found.st_blocks)


@contextlib.contextmanager
def show_transfer(title: str, total_bytes: int, measure: Callable[[], int]) -> Iterator[None]:
    """Show how far the transfer is that the block makes, if it lasts.

    Args:
        title: What is done, such as "Downloading epoch_12".
        total_bytes: How much there is to do; 0: nothing is shown.
        measure: Returns how much is done. It is called in a thread, and not before the delay is
            over.
    """
    over = threading.Event()
    thread = threading.Thread(target=_show, args=(title, total_bytes, measure, over), daemon=True)
    try:
        # From Python 3.12 on no thread is begun while the interpreter ends: then nothing is shown.
        with contextlib.suppress(RuntimeError):
            thread.start()
        yield
    finally:
        over.set()
        if thread.is_alive():
            thread.join()


def _show(title: str, total_bytes: int, measure: Callable[[], int], over: threading.Event) -> None:
    started = time.monotonic()
    if not total_bytes or over.wait(DELAY_SECONDS):
        return
    done, next_line = 0, 0.0
    # A terminal that is gone is no reason to stop the transfer.
    with contextlib.suppress(OSError), _bar(_find_terminal()) as draw:
        while True:
            done = max(done, min(measure(), total_bytes))  # a file may be fetched anew
            now = time.monotonic()
            text = _in_words(done, total_bytes, now - started)
            if now >= next_line:
                next_line = now + LINE_SECONDS
                log.info("%s: %s", title, text)
            draw(title, done / total_bytes, text)
            if over.wait(REFRESH_SECONDS):
                return


def _in_words(done: int, total: int, seconds: float) -> str:
    """Return how far it is, and once a hundredth is there, how long it will take.

    The speed is the mean since the beginning: whole files arrive in jumps.

    >>> _in_words(1_200_000_000, 4_800_000_000, 12.0)
    '1.2 of 4.8 GB, 100.0 MB/s, 0:00:36 left'
    >>> _in_words(212, 4_800_000_000, 12.0)
    '0.0 of 4.8 GB, for 0:00:12'
    """
    unit, name = (1e9, "GB") if total >= 1e9 else (1e6, "MB")
    text = _("{done:.1f} of {total:.1f} {unit}").format(
        done=done / unit, total=total / unit, unit=name
    )
    if 100 * done < total or not seconds:
        return _("{text}, for {time}").format(text=text, time=timedelta(seconds=round(seconds)))
    left = timedelta(seconds=round((total - done) * seconds / done))
    speed = done / seconds / 1e6
    return _("{text}, {speed:.1f} MB/s, {left} left").format(text=text, speed=speed, left=left)


def _find_terminal() -> Console | None:
    """Return the terminal that shows the log, None if it is shown on none."""
    for handler in logging.getLogger("onward").handlers:
        console: Console | None = getattr(handler, "console", None)
        if console is not None and console.is_interactive:
            return console
    return None


@contextlib.contextmanager
def _bar(console: Console | None) -> Iterator[Callable[[str, float, str], None]]:
    """Show a bar for the length of a block; yield what draws it, which does nothing elsewhere."""
    if console is None:
        yield lambda title, part, text: None
        return
    from rich.live import Live

    # What is printed to stdout stays there: it may be no terminal.
    with Live(
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as live:
        yield lambda title, part, text: live.update(_row(title, part, text), refresh=True)


def _row(title: str, part: float, text: str) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 1))
    row.add_column()  # the only one that may be cut
    row.add_column(no_wrap=True)
    row.add_column(no_wrap=True)
    row.add_row(
        Text(told(title), no_wrap=True, overflow="ellipsis"),
        ProgressBar(total=1.0, completed=part, width=10),
        Text(text),
    )
    return row
