"""The pieces of a checkpoint that ranks hold: each writes its own, rank 0 takes them into one.

They meet on one disk, in the folder of rank 0's attempt: each rank's folder has its name only when
all of it is written, so what is there is whole. From there on it is a checkpoint as any other: one
uploader brings it to the store, and commits it. Ranks that do not see that disk write to their own,
and bring it to the store themselves; see `others`.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onward.checkpoint.bringing import rank_folder
from onward.checkpoint.hashed import PART_BYTES
from onward.checkpoint.index import MAX_INDEX_BYTES, Origin, parse_index
from onward.checkpoint.manifest import FileEntry, checkpoint_name
from onward.checkpoint.others import Bringer, Others
from onward.checkpoint.pieces import Piece, add_shard, write_shard
from onward.checkpoint.staging import MayWait, Staged, Stager
from onward.system.files import make_folder, read_plain, rename_over
from onward.words.language import _

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.02  # between two looks whether the others have written
_FAILED = ".failed"  # behind the name of what a rank could not write


@dataclass(frozen=True)
class Written:
    """What all ranks have written, as a manifest lists it."""

    entries: Sequence[FileEntry]


class RankFiles:
    """Where the ranks of one machine meet.

    Args:
        folder: Of rank 0's attempt; all ranks see it.
        rank: The number of this process.
        world: How many there are.
        attempt: The number of the attempt.
        timeout_seconds: How long rank 0 waits for the others' files.
        others: To rank 0 those that do not see the folder; None: there are none.
    """

    def __init__(
        self, folder: Path, rank: int, world: int, attempt: int, timeout_seconds: float,
        others: Others | None = None,
    ) -> None:  # fmt: skip
        self.folder, self._rank, self._world = folder, rank, world
        self._attempt, self._timeout, self.others = attempt, timeout_seconds, others
        self._lost = threading.Event()

    def lose(self) -> None:
        """Wait for nobody any more: a rank is gone."""
        self._lost.set()
        if self.others is not None:
            self.others.lose()

    @property
    def is_lost(self) -> bool:
        """Whether a rank is gone."""
        return self._lost.is_set()

    def forget(self, name: str) -> None:
        """Let the others remove a checkpoint that nobody needs on a disk any more."""
        if self.others is not None:
            self.others.leave(name)

    def write(self, name: str, step: int, pieces: Sequence[Piece]) -> None:
        """Write what this rank holds; where that fails, rank 0 hears of it.

        Raises:
            OSError: The disk is full, or cannot be written.
        """
        place = self._place(self._rank, name)
        try:
            make_folder(place.parent)
            write_shard(place, self._origin(step), pieces)
        except OSError:
            with contextlib.suppress(OSError):
                place.with_name(f"{name}{_FAILED}").touch()
            raise

    def take(
        self, to: Path, name: str, step: int, pieces: Sequence[Piece],
        seconds_left: Callable[[], float],
    ) -> Written:  # fmt: skip
        """Write what rank 0 holds into a folder, and move there what the others have written.

        What is written on another disk is waited for, and stays there.

        Args:
            to: Where to.
            name: The checkpoint.
            step: Optimizer steps completed.
            pieces: Those of rank 0.
            seconds_left: How long the others may still be waited for.

        Raises:
            OSError: The disk is full, or a rank's files do not come.
            CheckpointDamaged: They are no such files.
        """
        entries = list(add_shard(to, self._origin(step), pieces, None, PART_BYTES).entries)
        for rank in range(1, self._world):
            place, origin = self._place(rank, name), self._origin(step)._replace(rank=rank)
            self._wait(rank, name, seconds_left)
            if self._is_elsewhere(rank):
                continue
            index = parse_index(read_plain(place / origin.index_file, MAX_INDEX_BYTES), rank, name)
            if index.origin != origin:
                told = _("what rank {rank} has written of {name} is of another step")
                raise OSError(told.format(rank=rank, name=name))
            for entry in index.entries:
                rename_over(place / entry.path, to / entry.path)
            entries += index.entries
            self._forget(place.parent)
        return Written(entries)

    def _is_elsewhere(self, rank: int) -> bool:
        return self.others is not None and rank in self.others.ranks

    def _has_written(self, rank: int, name: str) -> bool | None:
        """Tell whether a rank has written a checkpoint; None: it is about to."""
        if self._is_elsewhere(rank):
            assert self.others is not None
            return self.others.has_written(rank, name)
        place = self._place(rank, name)
        has_failed = place.with_name(f"{name}{_FAILED}").exists()
        return True if place.is_dir() else False if has_failed else None

    def _wait(self, rank: int, name: str, seconds_left: Callable[[], float]) -> None:
        ends = time.monotonic() + self._timeout
        while not (has_written := self._has_written(rank, name)):
            is_over = time.monotonic() >= ends or seconds_left() <= 0 or self._lost.is_set()
            if has_written is False or is_over:
                told = _("the files of rank {rank} for {name} did not come")
                raise TimeoutError(told.format(rank=rank, name=name))
            time.sleep(LOOK_SECONDS)

    def _forget(self, folder: Path) -> None:
        """Remove what a rank has written up to now: it is taken, or was never asked for."""
        names = sorted(folder.glob("*"), key=lambda path: path.stat().st_mtime)
        for path in names[:-1]:  # the newest may be of a checkpoint that is yet to come
            shutil.rmtree(path, ignore_errors=True)
        for path in names[-1:]:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    def _place(self, rank: int, name: str) -> Path:
        return rank_folder(self.folder, rank) / name

    def _origin(self, step: int) -> Origin:
        return Origin(self._rank, self._world, self._attempt, step)


class RankWriter:
    """Sets aside what a rank other than 0 holds, and writes it in the background.

    Args:
        files: Where to.
        bringer: Brings it to the store, where rank 0 does not see that; None: it does.
    """

    def __init__(self, files: RankFiles, bringer: Bringer | None = None) -> None:
        self._files, self._bringer = files, bringer
        self._stager = Stager()
        self._staged: Staged | None = None
        self._items: queue.SimpleQueue[tuple[str, int, Staged] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, daemon=True)

    def save(
        self, state: Mapping[str, Any], pieces: Sequence[Piece], may_wait: MayWait | None
    ) -> None:
        """Set the pieces aside; see `Pipeline.save`."""
        if not self._thread.is_alive():
            self._thread.start()
            if self._bringer is not None:
                self._bringer.start()
        self._staged = self._stager.stage({"pieces": list(pieces)}, may_wait)
        self._items.put((checkpoint_name(state), state["step"], self._staged))

    def hold_update(self) -> None:
        """Wait, right before the weights change, until they are set aside."""
        if self._staged is not None:
            self._staged.hold_update()
            self._staged = None

    def close(self) -> None:
        """Write what is set aside."""
        if self._thread.is_alive():
            self._items.put(None)
            self._thread.join()

    def end(self, log_file: Path) -> None:
        """Bring nothing more but the rank's log: rank 0 has ended."""
        if self._bringer is not None:
            self._bringer.close(log_file)

    def _write_all(self) -> None:
        while (item := self._items.get()) is not None:
            name, step, staged = item
            is_written = False
            try:
                staged.wait()
                self._files.write(name, step, staged.state["pieces"])
                is_written = True
            except OSError as error:
                log.warning("%s", error)  # rank 0 tells, which waits for it
            finally:
                staged.release()
                if self._bringer is not None:
                    self._bringer.tell(name, is_written)
