"""Files that are either whole or not there; files of our own, and files of others.

What lies under TRAIN_HOME is this user's alone: folders are made 0700, files 0600, whatever the
umask. What lies in a store's folder others may write to as well: see `tracking.tree`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import stat
import uuid
import weakref
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from onward.errors import UnsafeFile, UsageError
from onward.system.untrusted import parse_json
from onward.words.language import _

# That is written at a time. For larger pieces Linux may look for memory in one piece of that size,
# of which the first use can cost five times as much: see docs/experiments.md.
CHUNK_BYTES = 1 << 17
MIN_PART_BYTES = 256 << 10  # of what goes up in parts: no gateway's limit is meant to be less

PRIVATE = 0o600
PUBLIC = 0o666  # less the umask
NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC
# Read once, and before there are threads: asking for it sets it.
UMASK = os.umask(0o077)
os.umask(UMASK)


def atomic_write(
    path: Path, write: Callable[[BinaryIO], object], permissions: int = PRIVATE
) -> None:
    """Write a file so that its name never shows anything but the whole of it.

    Args:
        path: The final name; its folder is made if need be. A file of that name is replaced.
        write: Writes the bytes to the open binary file that it is given.
        permissions: PRIVATE, or PUBLIC for what the user asked for.

    Raises:
        OSError: The disk is full or the folder cannot be written.

    Guarantees:
        On return the bytes and the name are on disk (both fsynced). A writer that fails, or is
        killed at any moment, leaves the old file or none under `path`; killed, it may leave a
        file that ends in ``.tmp`` beside it.
    """
    if permissions == PRIVATE:
        make_folder(path.parent)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with create(temporary, permissions) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        # IMPORTANT: the bytes are on disk before the name is; the other way round a power cut
        # could leave an empty file under the final name.
        rename_over(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a private folder so that its name never shows anything but the whole of it.

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
    make_folder(temporary)
    try:
        yield temporary
        for item in temporary.rglob("*"):
            with contextlib.suppress(PermissionError):  # a filesystem that has no permissions
                item.chmod(0o700 if item.is_dir() else PRIVATE)
            _sync(item)
        _sync(temporary)
        if path.exists():
            shutil.rmtree(path)
        # IMPORTANT: the bytes are on disk before the name is.
        rename_over(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make a folder for this user alone, and those above it that are missing; again is harmless."""
    missing = []
    for folder in (path, *path.parents):
        if folder.exists():
            break
        missing.append(folder)
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(0o700)
            if UMASK & 0o700:
                folder.chmod(0o700)


def require_own(path: Path) -> None:
    """Refuse a folder that somebody else may write to; one that is not there yet is fine.

    A link to it counts like the folder: whoever made it chose what is written to.

    Raises:
        UsageError: The message says what mends it.
    """
    try:
        owners, found = {path.lstat().st_uid}, path.stat()
    except OSError:
        return
    owners.add(found.st_uid)
    others = owners - {os.geteuid(), 0}
    # /tmp itself, say: it is meant for all.
    is_shared = bool(found.st_mode & stat.S_ISVTX) or found.st_uid != os.geteuid()
    if not others and not found.st_mode & 0o022:
        return
    if not others and not is_shared:
        raise UsageError(
            _(
                "others may write to '{path}', so that what lies there cannot be trusted: look "
                "through it, then `chmod go-w {quoted}`"
            ).format(path=path, quoted=shlex.quote(str(path)))
        )
    raise UsageError(
        _(
            "'{path}' is not this user's alone (uid {owner}, mode {mode:o}), so that what lies "
            "there cannot be trusted: set TRAIN_HOME to a folder of your own"
        ).format(path=path, owner=max(others, default=found.st_uid), mode=found.st_mode & 0o7777)
    )


def create(path: Path | str, permissions: int, folder: int | None = None) -> BinaryIO:
    """Make a file that was not there, and open it; `folder` is what its name is relative to."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK
    descriptor = os.open(path, flags, permissions, dir_fd=folder)
    if permissions == PRIVATE and UMASK & PRIVATE:
        os.fchmod(descriptor, PRIVATE)
    return os.fdopen(descriptor, "wb")


def open_own(path: Path) -> int:
    """Open a private file to write at its end, made if need be; return its descriptor.

    Raises:
        UnsafeFile: Something else is in its place: a link, a pipe, a file with a second name.
    """
    make_folder(path.parent)
    with contextlib.suppress(FileNotFoundError):
        require_plain(path.lstat(), path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | NO_LINK
    descriptor = os.open(path, flags, PRIVATE)
    try:
        found = os.fstat(descriptor)
        require_plain(found, path)
        if found.st_uid != os.geteuid() or found.st_nlink != 1:
            raise UnsafeFile(str(path), _("a file that is not this program's"))
        if UMASK & PRIVATE:
            os.fchmod(descriptor, PRIVATE)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_plain(path: Path | str, folder: int | None = None) -> BufferedReader:
    """Open a file to read it.

    Args:
        path: The file.
        folder: What `path` is relative to; default: the working directory.

    Raises:
        UnsafeFile: It is a link, a pipe, a device: reading might never end.
    """
    require_plain(os.stat(path, dir_fd=folder, follow_symlinks=False), path)
    # Another may have taken its place by now, which must not hold this process up.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | NO_LINK, dir_fd=folder)
    file = os.fdopen(descriptor, "rb")
    try:
        require_plain(os.fstat(descriptor), path)
    except OSError:
        file.close()
        raise
    return file


def read_plain(path: Path, max_bytes: int) -> bytes:
    """Return what a file holds.

    Raises:
        ValueError: It is longer than `max_bytes`.
        OSError: It cannot be read; see `open_plain`.
    """
    with open_plain(path) as file:
        text = file.read(max_bytes + 1)
    if len(text) > max_bytes:
        raise ValueError(f"it has more than {max_bytes:,} bytes")
    return text


def read_json(path: Path, max_bytes: int) -> Any:
    """Read a JSON file of which nothing is known.

    Raises:
        ValueError: It is longer than `max_bytes`, or what `parse_json` raises.
        OSError: It cannot be read; see `open_plain`.
    """
    return parse_json(read_plain(path, max_bytes))


def require_plain(found: os.stat_result, path: Path | str) -> None:
    """Refuse what is no file, by what `os.stat` found of it.

    Raises:
        UnsafeFile: It is a link, a pipe, a device.
        IsADirectoryError: It is a folder.
    """
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(f"'{path}' is a folder")
    if not stat.S_ISREG(found.st_mode):
        is_link = stat.S_ISLNK(found.st_mode)
        raise UnsafeFile(str(path), _("a symbolic link") if is_link else _("no plain file"))


def copy_out(source: BinaryIO, target: BinaryIO) -> None:
    """Write what is left of `source` to `target`, which is on disk then, and closed."""
    with target:
        shutil.copyfileobj(source, target, CHUNK_BYTES)
        target.flush()
        os.fsync(target.fileno())


def rename(old: str, new: str, folder: int) -> None:
    """Give a file in the open `folder` another name, replacing what has it; durable on return."""
    os.replace(old, new, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def rename_over(old: Path, new: Path) -> None:
    """Give a file another name, replacing what has it; durable on return."""
    os.replace(old, new)
    _sync(new.parent)


def name_if_free(temporary: Path, target: Path) -> bool:
    """Give a whole file its name, unless there is a file of that name; tell whether it has it.

    Guarantees:
        Of several processes that do it at once one has its file there; none replaces another's.
    """
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError:  # a file system without second names
        if target.exists():
            return False
        os.replace(temporary, target)
    _sync(target.parent)
    return True


@contextlib.contextmanager
def exclusively(path: Path) -> Iterator[None]:
    """Let one process of this machine at a time into the block; the others wait.

    Args:
        path: A file for the lock; where it cannot be made, nobody is kept out.
    """
    try:
        file = os.fdopen(open_own(path), "ab")
    except OSError:
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class FolderLock:
    """Tells other processes on this machine that a folder is in use, until this process ends.

    The operating system gives it back when the process dies, however it dies: a process that is
    forked meanwhile, such as the worker of a loader, does not hold it on.
    """

    _all: ClassVar[weakref.WeakSet[FolderLock]] = weakref.WeakSet()

    def __init__(self, folder: Path) -> None:
        self._file = os.fdopen(open_own(folder / "lock"), "ab")
        self._all.add(self)

    @classmethod
    def forget(cls) -> None:
        """Hold no lock in a process that was forked."""
        for lock in list(cls._all):
            lock.release()

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


os.register_at_fork(after_in_child=FolderLock.forget)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | NO_LINK)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size_in_words(num_bytes: float) -> str:
    """Return a size in the unit that suits it.

    >>> [size_in_words(number) for number in (0, 31_420, 999_999, 2.5e9, 4.8e12)]
    ['0 B', '31.4 kB', '1.0 MB', '2.5 GB', '4.8 TB']
    """
    if num_bytes < 1000:
        return f"{num_bytes:.0f} B"
    for unit, length in (("kB", 1e3), ("MB", 1e6), ("GB", 1e9)):
        if num_bytes < 999.95 * length:
            return f"{num_bytes / length:.1f} {unit}"
    return f"{num_bytes / 1e12:.1f} TB"
