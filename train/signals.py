"""Stopping when a signal asks for it, at a moment when nothing is half done."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from train.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def stop_at_once() -> None:
    """Until training begins, let every such signal raise KeyboardInterrupt where it comes."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


class StopRequest:
    """Remembers the first signal; the loop asks for it between two steps.

    A second signal of the same kind ends the process at once, as if there were no handler.
    A signal that was ignored at start (`nohup`) stays ignored.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Take over the signals."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)

    def uninstall(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def check(self, epoch: int) -> None:
        """Stop if a signal has come.

        Args:
            epoch: Epochs completed, for the message.

        Raises:
            Interrupted: One has.
        """
        if self._received is not None:
            raise Interrupted(self._received.name, epoch)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        signal.signal(number, signal.SIG_DFL)
