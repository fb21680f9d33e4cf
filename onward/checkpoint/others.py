"""Ranks whose machines do not share the disk of rank 0: each brings its files to the store itself.

What they tell each other about it is on the board of the ranks, and lasts as long as these do:

    apart/R         whether rank R is one of them
    written/R/NAME  that it has written what it holds of a checkpoint; or that it could not
    asked           the number of what rank 0 asks for, and which checkpoint all are to bring
    brought/R       the number of what it was asked for, and what became of it
    lease/…         whether the attempt still has the run: asked before each file, answered; refused
    left/K          the K-th checkpoint that nobody needs on a disk any more

All of that is a hint. What is in the store is the truth: where a rank's index is, its files are.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from onward.checkpoint.artifacts import Artifacts
from onward.checkpoint.bringing import bring_part, remove_part
from onward.checkpoint.manifest import NAME
from onward.checkpoint.uploads import Uploads
from onward.errors import RankFilesMissing, RankLost, StoreUnavailable
from onward.system.threads import bounded
from onward.words.language import _
from onward.world import World
from onward.world.board import Board

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.05  # between two looks for an answer
END_SECONDS = 5.0  # that the last words may take, and those said while others wait for a lock
QUIET_SECONDS = 60.0  # in which a board that did not answer is not told what can wait
SERVE_SECONDS = 0.2  # between two looks for what rank 0 asks
_WRITTEN, _FAILED = "written", "failed"


class Others:
    """Those ranks, as rank 0 sees them.

    Args:
        world: The ranks.
    """

    def __init__(self, world: World) -> None:
        self._world, self._lost = world, threading.Event()
        self._number = self._num_left = 0
        self._refusal: BaseException | None = None
        self._ranks: frozenset[int] | None = None  # not read yet
        self._left: list[str] = []  # what they have not heard of
        self._quiet_until = 0.0
        self._leaving = threading.Lock()

    @property
    def ranks(self) -> frozenset[int]:
        """Which they are; known once all have met."""
        return self._find(self._world.board)

    def _find(self, board: Board) -> frozenset[int]:
        if self._ranks is None:
            others = range(1, self._world.size)
            self._ranks = frozenset(r for r in others if board.read(f"apart/{r}") == "yes")
        return self._ranks

    def lose(self) -> None:
        """Wait for nobody any more: a rank is gone."""
        self._lost.set()

    @property
    def is_lost(self) -> bool:
        """Whether nobody is waited for."""
        return self._lost.is_set()

    def has_written(self, rank: int, name: str) -> bool | None:
        """Tell whether a rank has written a checkpoint; None: it is about to."""
        told = self._world.board.read(f"written/{rank}/{name}")
        return None if told is None else told == _WRITTEN

    def ask(self, name: str) -> None:
        """Let all of them bring what they have of a checkpoint; its name is free."""
        self._number += 1
        if not self.is_lost:
            with contextlib.suppress(RankLost):  # nobody is there to hear it
                self._world.board.post("asked", json.dumps([self._number, name]))

    def brought(self, rank: int, name: str) -> str | None:
        """Return the SHA-256 of a rank's index, once it has brought what was asked for last.

        Raises:
            RankFilesMissing: It could not.
        """
        try:
            told = self._world.board.read(f"brought/{rank}") or "[0, null, null]"
        except RankLost as error:
            raise RankFilesMissing(rank, name, str(error)) from error
        number, sha256, reason = json.loads(told)
        if number != self._number:
            return None
        if reason is not None:
            raise RankFilesMissing(rank, name, reason)
        return str(sha256)

    def leave(self, name: str) -> None:
        """Let them remove what they have of a checkpoint, if there are any.

        Who calls may have a lock that training waits for. What a board that does not answer was not
        told, it is told with a later one.
        """
        with self._leaving:
            self._left.append(name)
            if self.is_lost or time.monotonic() < self._quiet_until:
                return
            board = self._world.board.within(END_SECONDS)
            try:
                while self._find(board) and self._left:
                    board.post(f"left/{self._num_left + 1}", self._left[0])
                    self._num_left += 1
                    del self._left[0]
                self._left.clear()
            except RankLost:
                self._quiet_until = time.monotonic() + QUIET_SECONDS

    @contextlib.contextmanager
    def answering(self, check_lease: Callable[[], object]) -> Iterator[None]:
        """Answer, while the block runs, whether the attempt still has the run."""
        over = threading.Event()

        def answer() -> None:
            board, answered = self._world.board, 0
            with contextlib.suppress(RankLost):
                while not over.wait(LOOK_SECONDS):
                    if (asked := board.count("lease/asked")) <= answered:
                        continue
                    try:
                        check_lease()
                    except StoreUnavailable:  # asked again
                        continue
                    except BaseException as error:  # the attempt has the run no more
                        self._refusal = error
                        board.post("lease/refused", str(asked))
                        return
                    board.post("lease/answered", str(asked))
                    answered = asked

        threading.Thread(target=answer, name="lease", daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def require_lease(self) -> None:
        """Raise what an answer was refused by."""
        if self._refusal is not None:
            raise self._refusal


def ask_for_lease(world: World, over: threading.Event) -> None:
    """Wait until rank 0 answers that the attempt still has the run.

    Raises:
        StoreUnavailable: It has not, or `over` is set.
    """
    board = world.board
    asked = board.count("lease/asked", 1)
    while int(board.read("lease/answered") or 0) < asked:
        if int(board.read("lease/refused") or 0) >= asked:
            raise StoreUnavailable(_("the attempt does not have the run any more"))
        if over.wait(LOOK_SECONDS):
            raise StoreUnavailable(_("the ranks have ended"))


class Bringer:
    """Such a rank, as it sees itself: brings what it has written, when rank 0 asks for it.

    Args:
        world: The ranks.
        folder: Where this one has what it has written.
        open_artifacts: Opens the run's files.
    """

    def __init__(self, world: World, folder: Path, open_artifacts: Callable[[], Artifacts]) -> None:
        self._world, self._folder, self._open = world, folder, open_artifacts
        self._uploads: Uploads | None = None
        self._number = self._num_left = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def tell(self, name: str, is_written: bool) -> None:
        """Let rank 0 know what became of a checkpoint on this disk."""
        with contextlib.suppress(RankLost):
            note = _WRITTEN if is_written else _FAILED
            self._world.board.post(f"written/{self._world.rank}/{name}", note)

    def close(self, log_file: Path) -> None:
        """Listen no more. What was not asked for stays on this disk.

        Args:
            log_file: That of the rank, which goes to the store too, if that answers soon.
        """
        self._over.set()
        if self._thread.is_alive():  # else nothing of this rank was ever asked for
            self._thread.join(END_SECONDS)
            if self._thread.is_alive():  # in a call that nobody answers
                return
            with contextlib.suppress(RankLost):
                self._remove_left(self._world.board.within(END_SECONDS))
        with contextlib.suppress(OSError):
            if bounded(lambda: self._open().upload(log_file, "logs"), END_SECONDS):
                log_file.unlink()
                log_file.parent.rmdir()

    def _serve(self) -> None:
        board = self._world.board
        with contextlib.suppress(RankLost):
            while not self._over.wait(SERVE_SECONDS):
                self._remove_left(board)
                number, name = json.loads(board.read("asked") or "[0, null]")
                if number != self._number:
                    sha256, error = self._bring(self._place(name))
                    board.post(f"brought/{self._world.rank}", json.dumps([number, sha256, error]))
                    self._number = number

    def _place(self, name: str) -> Path:
        """Return where a checkpoint is; a name that is none leads nowhere else."""
        return self._folder / (name if NAME.fullmatch(name) else "none")

    def _bring(self, part: Path) -> tuple[str | None, str | None]:
        """Bring a checkpoint; return the SHA-256 of its index, or why it is not there."""
        try:
            if self._uploads is None:
                self._uploads = Uploads(self._open())
            return bring_part(self._uploads, part, self._check_lease), None
        except RankLost:
            raise
        except Exception as error:  # of whatever kind: rank 0 waits to hear of it
            told = str(error) or type(error).__name__
            log.warning(_("%s could not be brought to the store: %s"), part.name, told)
            return None, told[:500]

    def _check_lease(self) -> None:
        ask_for_lease(self._world, self._over)

    def _remove_left(self, board: Board) -> None:
        while (name := board.read(f"left/{self._num_left + 1}")) is not None:
            self._num_left += 1
            remove_part(self._place(name))
