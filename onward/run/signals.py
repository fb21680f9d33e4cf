"""Stopping when a signal asks for it, at a moment when nothing is half done."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from onward.words.language import _

# Of a scheduler, Ctrl-C, a closed terminal, and what Slurm is asked to send before its time is up.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class StoppedAtOnce(KeyboardInterrupt):
    """Raised where a signal comes, before training.

    A class of its own: after Python's own, once it has passed through exec(), `python -m` ends by
    the signal, whatever the exit code is to be.
    """


class _AtOnce:
    """Handles signals until training begins; remembers one, since what it raises can get lost."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.is_held = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        _say(number, _("stopping"))
        if not self.is_held:
            raise StoppedAtOnce


def stop_at_once() -> None:
    """Until training begins, let every such signal raise `StoppedAtOnce` where it comes."""
    at_once = _AtOnce()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, at_once)


def hold() -> None:
    """From here on only remember such a signal, until the run that was opened takes it over.

    IMPORTANT: raised between the two, it would leave a run RUNNING that nobody closes.
    """
    for number in SIGNALS:
        handler = signal.getsignal(number)
        if isinstance(handler, _AtOnce):
            handler.is_held = True


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let a signal that raises wait for the end of a block; a second one of its kind does not."""
    came: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if number in came:
            give_back()
            signal.raise_signal(number)
        came.append(number)

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    is_main = threading.current_thread() is threading.main_thread()
    found = {number: signal.getsignal(number) for number in SIGNALS if is_main}
    before = {number: handler for number, handler in found.items() if callable(handler)}
    try:
        for number in before:
            signal.signal(number, remember)
        yield
    finally:
        give_back()
    if came:
        signal.raise_signal(came[0])


def ignore() -> None:
    """Let no signal disturb a process that has only to end: all it was asked for is done."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _say(number: int, what: str) -> None:
    # Not by the log: a signal may have come in the middle of a line of it.
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(2, f"{_name(number)}: {what}\n".encode())


def _name(number: int) -> str:
    """Return what asked to stop: a signal by its name, the alarm by the option that set it."""
    return "max_minutes" if number == signal.SIGALRM else signal.Signals(number).name


class StopNow(BaseException):
    """Ends a block of `StopRequest.at_once`; not an error, so that nothing takes it for one."""


class StopRequest:
    """Remembers the first signal; the loop asks for it between two steps.

    A second signal of the same kind ends the process at once, as if there were no handler. One of
    another kind changes nothing, since `mlflow run` answers Ctrl-C with a SIGTERM of its own.
    A signal that was ignored at start (`nohup`) stays ignored.

    Args:
        max_seconds: After so many seconds the process is asked to stop in the same way.
        has_agent: Whether an agent sends each signal on, that may come from elsewhere as well: then
            no second one ends the process, and the agent does if it takes too long.
    """

    def __init__(self, max_seconds: float = math.inf, has_agent: bool = False) -> None:
        self._has_agent = has_agent
        self._ends_at = time.monotonic() + max_seconds
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._at_once = False
        self._previous: dict[signal.Signals, Any] = {}
        self._given_back: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Take over the signals, and set the alarm; outside the main thread nobody can."""
        if threading.current_thread() is not threading.main_thread():
            return
        if pyarrow := sys.modules.get("pyarrow"):  # MLflow has imported it
            # While it reads a CSV it would handle signals itself: by an error, or not at all.
            pyarrow.enable_signal_handlers(False)
        for number in SIGNALS:
            if signal.getsignal(number) is signal.SIG_IGN:
                continue
            before = self._previous[number] = signal.signal(number, self._handle)
            if isinstance(before, _AtOnce) and before.received and self.received is None:
                self.received, self._received_at = before.received, time.monotonic()
        if self._ends_at < math.inf:
            self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._handle)
            signal.setitimer(signal.ITIMER_REAL, max(self._ends_at - time.monotonic(), 0.001))

    def take(self, number: int) -> None:
        """Take over what another rank was asked."""
        if self.received is None:
            self.received, self._received_at = signal.Signals(number), time.monotonic()

    def uninstall(self) -> None:
        """Give the signals back."""
        if signal.SIGALRM in self._previous:
            signal.setitimer(signal.ITIMER_REAL, 0)  # first: nobody else expects it
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous, self._given_back = {}, self._previous

    @property
    def received_name(self) -> str:
        """What asked to stop: "SIGTERM", …, or "max_minutes"."""
        assert self.received is not None
        return _name(self.received)

    def seconds_left(self, grace_seconds: float) -> float:
        """Return what is left of the time that the process may take to end; ∞ without a signal."""
        if self.received is None:
            return math.inf
        return max(0.0, grace_seconds - (time.monotonic() - self._received_at))

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal end the block where it comes.

        Raises:
            StopNow: One has come, in the block or before.
        """
        self._at_once = True
        try:
            if self.received is not None:
                raise StopNow
            yield
        finally:
            self._at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in self._given_back:  # whoever keeps the handlers it finds has put this one back
            signal.signal(number, self._given_back[signal.Signals(number)])
            signal.raise_signal(number)
            return
        if self.received is None:
            self.received, self._received_at = signal.Signals(number), time.monotonic()
            _say(number, _("saving what is under way, then stopping"))
        if not self._has_agent:
            signal.signal(number, signal.SIG_DFL)
        if self._at_once:
            self._at_once = False
            raise StopNow
