"""The run of a trainer of others: opened when it is first asked for, and closed once."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from onward.errors import UsageError
from onward.run import rng
from onward.run.parts import Part
from onward.run.run import Run
from onward.script.open import open_run
from onward.system import environment
from onward.words.language import _


class OpenedRun:
    """A run whose one part is the state of a trainer that restores itself, from a file.

    Args:
        given: What `onward.open_run` is given.
        capture: Returns the trainer's state, as tensors and builtins.

    Attributes:
        saved: The state to go on from, until it is put back; None: from the beginning.
        random_state: The random numbers to go on with, until they are put back.
        is_closed: Whether the run is over.
    """

    def __init__(self, given: Mapping[str, Any], capture: Callable[[], dict[str, Any]]) -> None:
        self._given, self._capture = given, capture
        self._run: Run | None = None
        self._folder: Path | None = None  # in which `saved` lies as a file
        self.saved: Mapping[str, Any] | None = None
        self.random_state: dict[str, Any] | None = None
        self.is_closed = False

    @property
    def is_open(self) -> bool:
        """Whether there is a run that is not closed."""
        return self._run is not None

    @property
    def run(self) -> Run:
        """The run, which is opened if it is not.

        Raises:
            UsageError: It is over. `onward.open_run` tells the others.
        """
        if self.is_closed:
            raise UsageError(
                _("this Resumable has seen one fit to its end, and its run is closed: make a new "
                  "one for the next")
            )  # fmt: skip
        if self._run is None:
            self._open()
        assert self._run is not None
        return self._run

    def _open(self) -> None:
        environment.require_one_process()
        now = rng.capture()
        part = Part(self._capture, lambda saved: setattr(self, "saved", saved), is_checked=False)
        run = open_run({"trainer": part}, **self._given)
        run.__enter__()
        self._run = run
        if self.saved is not None:
            self.random_state = rng.capture()
        rng.restore(now)
        atexit.register(self.abandon)

    def file(self) -> str | None:
        """Return a file with the state to go on from; None: from the beginning."""
        run = self.run
        if self.saved is None:
            return None
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="onward-"))
            torch.save(self.saved, self._folder / f"{run.run_id}.ckpt")
        return str(self._folder / f"{run.run_id}.ckpt")

    def remove_file(self) -> None:
        """Remove the file, if there is one."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def restore_random_state(self) -> None:
        """Put the random numbers to go on with back, once."""
        if self.random_state is not None:
            rng.restore(self.random_state)
            self.random_state = None

    def abandon(self) -> None:
        """Close a run that no training has closed: the process ends."""
        self.close(KeyboardInterrupt())

    def close(self, error: BaseException | None) -> None:
        """Close the run, if it is open; there is no other one after it.

        Args:
            error: What ended training; None: it is finished.
        """
        run, self._run, self.is_closed = self._run, None, True
        self.saved = self.random_state = None
        self.remove_file()
        atexit.unregister(self.abandon)
        if run is not None:
            run.__exit__(type(error) if error else None, error, None)
