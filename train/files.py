"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that its name never shows anything but the whole of it.

    Args:
        path: The final name; its folder is made if need be. A file of that name is replaced.
        write: Writes the bytes to the open binary file that it is given.

    Raises:
        OSError: The disk is full or the folder cannot be written.

    Guarantees:
        On return the bytes and the name are on disk (both fsynced). A writer that fails, or is
        killed at any moment, leaves the old file or none under `path`; killed, it may leave a
        file that ends in ``.tmp`` beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        # IMPORTANT: the bytes are on disk before the name is; the other way round a power cut
        # could leave an empty file under the final name.
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a folder so that its name never shows anything but the whole of it.

    ::

        with atomic_folder(path) as temporary:
            (temporary / "a").write_bytes(...)

    Raises:
        OSError: The disk is full or the folder cannot be written.

    Guarantees:
        After the block every file and the name are on disk (fsynced). A block that fails, or a
        process killed at any moment, leaves no `path`, or the one that was there; killed, it may
        leave a folder that ends in ``.tmp`` beside it.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for item in [*temporary.rglob("*"), temporary]:
            _sync(item)
        if path.exists():
            shutil.rmtree(path)
        # IMPORTANT: the bytes are on disk before the name is.
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Give `source` the second name `target`, replacing what is there.

    On the same filesystem it is a hard link, which writes no bytes; elsewhere it is a copy, whole
    or not there. Either way `source` must not be changed afterwards. Killed, it may leave a file
    that ends in ``.tmp`` beside `target`: doing it again clears that away.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
            _sync(temporary)
        os.replace(temporary, target)
        _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


class FolderLock:
    """Tells other processes on this machine that a folder is in use, until this process ends.

    The operating system gives it back when the process dies, however it dies.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / "lock", "ab")  # noqa: SIM115 - held open on purpose

    def acquire(self) -> bool:
        """Take the lock and return True, or False if another process holds it."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Give the lock back."""
        self._file.close()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size_in_words(num_bytes: float) -> str:
    """Return a size in the unit that suits it.

    >>> size_in_words(0), size_in_words(31_420), size_in_words(999_999), size_in_words(2.5e9)
    ('0 B', '31.4 kB', '1.0 MB', '2.5 GB')
    """
    if num_bytes < 1000:
        return f"{num_bytes:.0f} B"
    for unit, length in (("kB", 1e3), ("MB", 1e6)):
        if num_bytes < 999.95 * length:
            return f"{num_bytes / length:.1f} {unit}"
    return f"{num_bytes / 1e9:.1f} GB"
