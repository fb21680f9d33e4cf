"""A checkpoint that several ranks saved, on a machine that reads a part of it.

    resumed/4f1c…/shard-00001-00000.pth     verified, as its name is there

The ranks of a machine share what is downloaded: the first that needs a file fetches it, and the
others wait for that. The first rank keeps the folder, by a lock, until all have read what they
hold. One that nobody keeps is a rest of what was not gone on from, and is removed by whoever comes
next, of whatever run.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

from onward.checkpoint.artifacts import Artifacts
from onward.checkpoint.downloads import fetch_files
from onward.checkpoint.manifest import FileEntry, Manifest
from onward.checkpoint.shards import Shards
from onward.system.files import FolderLock, exclusively, make_folder, rename_over
from onward.system.threads import each
from onward.terminal.progress import Moved

_NUM_THREADS = 4
_LOCK_FILE = "lock"  # held by who takes a folder, or removes one
_kept: dict[Path, FolderLock] = {}  # folders that this process keeps
os.register_at_fork(after_in_child=_kept.clear)


class HostFiles:
    """The files of one checkpoint on this machine.

    Args:
        home: Where this user's files lie.
        manifest: What was committed.
        open_artifacts: Opens the run's files, where one is not here yet.

    Attributes:
        moved: Counts what was downloaded.
    """

    def __init__(
        self, home: Path, manifest: Manifest, open_artifacts: Callable[[], Artifacts]
    ) -> None:
        self.manifest, self._open, self.moved = manifest, open_artifacts, Moved()
        # By its content: what another attempt has left under the same name is another's.
        self.folder = home / "resumed" / manifest.digest[:32]

    @cached_property
    def _artifacts(self) -> Artifacts:
        return self._open()

    def keep(self) -> None:
        """Keep the folder until `remove`, or until this process ends or keeps another one.

        All others are removed that no other process keeps.

        Raises:
            OSError: The disk cannot be written.
        """
        home = self.folder.parent
        make_folder(home)
        with exclusively(home / _LOCK_FILE):
            for folder in home.iterdir():
                if folder.is_dir() and folder != self.folder:
                    _remove(folder)
            if self.folder not in _kept:
                lock = FolderLock(self.folder)
                if lock.acquire():
                    _kept[self.folder] = lock
                else:  # on another machine with the same disk
                    lock.release()

    def fetch(self, entry: FileEntry) -> None:
        """Make sure that a file is here, and is what the manifest says.

        Raises:
            CheckpointDamaged: It is not, in the store, or is missing there.
            StoreUnavailable: The store does not answer.
        """
        path = self.folder / entry.path
        if path.exists():
            return
        make_folder(path.parent)
        with exclusively(self.folder / f"{entry.path.replace('/', '-')}.lock"):
            if path.exists():
                return
            only = dataclasses.replace(self.manifest, files=(entry,))
            with tempfile.TemporaryDirectory(dir=self.folder) as private:
                name = self.manifest.name
                fetch_files(self._artifacts, only, Path(private), name, self.moved)
                rename_over(Path(private) / entry.path, path)

    def fetch_all(self, entries: Iterable[FileEntry]) -> None:
        """Do so with several, some at a time."""
        list(each(self.fetch, entries, _NUM_THREADS))

    def shards(self) -> Shards:
        """Return what all ranks saved: a file is fetched as something of it is read.

        Raises:
            CheckpointDamaged: The indexes are not those of one checkpoint.
        """
        self.fetch_all(self.manifest.indexes)
        name = self.manifest.name
        return Shards(self.folder, self.manifest, name, is_verified=True, fetch=self.fetch)

    def of_ranks(self, ranks: range, num_ranks: int) -> list[FileEntry]:
        """Return the files that those of so many ranks are to read, as far as can be told.

        With as many ranks as saved it these are what each has written. Each file is one rank's.
        """
        world = self.manifest.world
        saved = (f"shard-{v:05d}-" for v in range(world) if v * num_ranks // world in ranks)
        prefixes = tuple(saved)
        return [e for e in self.manifest.shard_files if e.path.startswith(prefixes)]

    def remove(self) -> None:
        """Remove them, unless another process keeps them: all have read what they hold."""
        with exclusively(self.folder.parent / _LOCK_FILE):
            _remove(self.folder)


def _remove(folder: Path) -> None:
    """Remove a folder that no other process keeps; who calls holds the lock of all."""
    with contextlib.suppress(OSError):  # the disk is full: what comes next removes it
        lock = _kept.pop(folder, None) or FolderLock(folder)
        if lock.acquire():
            shutil.rmtree(folder, ignore_errors=True)
        lock.release()


@atexit.register
def _leave() -> None:
    """Remove what this process has kept and not gone on from."""
    for folder in list(_kept):
        with exclusively(folder.parent / _LOCK_FILE):
            _remove(folder)
