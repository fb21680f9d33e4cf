"""A run's files in a folder of this machine, into which others may write as well."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from onward.errors import UnsafeFile
from onward.system.files import (
    NO_LINK,
    PUBLIC,
    UMASK,
    copy_out,
    create,
    open_plain,
    rename,
    require_plain,
)
from onward.system.streams import Target, chunks_of, write_hashed
from onward.words.language import _

_MLFLOW_TEMPORARY = ".artifact.uploading."  # by which MLflow names what is not whole yet


class Tree:
    """A folder that others may write to as well: nothing that lies in it leads out of it.

    Each part of a path is opened by itself, and no link is followed, so that none can be put in
    the way at any moment; what is no plain file is not opened.

    Args:
        root: The folder. What leads to it may be links; itself and the folder it lies in may not:
            those two are made for one run.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def items(self, path: str) -> list[tuple[str, bool]]:
        """Return each name in the folder `path`, and whether it is a folder's; [] if there is none.

        A link is none, whatever it names.
        """
        try:
            with self._opened(path) as folder, os.scandir(folder) as entries:
                found = [(e.name, e.is_dir(follow_symlinks=False)) for e in entries]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(item for item in found if not item[0].startswith(_MLFLOW_TEMPORARY))

    def put(self, source: Path, path: str, give_away: bool = False) -> None:
        """Copy `source` to the folder `path`, under its own name, replacing what is there.

        Args:
            source: A file of our own.
            path: The folder; made if need be.
            give_away: `source` is not changed any more: on the same filesystem it gets a second
                name, which writes no bytes, and the permissions of any new file.

        Killed, it may leave a file that ends in ``.tmp``: doing it again clears that away.
        """
        name = source.name
        temporary = f"{name}.tmp"
        with self._opened(path, make=True) as folder:
            with contextlib.suppress(FileNotFoundError):
                self._require_plain(name, folder, path)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            try:
                if not (give_away and _has_link(source, temporary, folder)):
                    with open(source, "rb") as file:
                        copy_out(file, create(temporary, PUBLIC, folder))
                rename(temporary, name, folder)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)

    def fetch(self, path: str, target: Target, max_bytes: int) -> str:
        """Copy the file at `path` to a file of our own; return the SHA-256 of what came.

        Raises:
            FileNotFoundError: There is none.
            TooLarge: It is longer than `max_bytes`.
        """
        parent, name = self._split(path)
        with self._opened(parent) as folder:
            self._require_plain(name, folder, parent)
            with open_plain(name, folder) as file:
                return write_hashed(chunks_of(file), target, max_bytes, path)

    def delete(self, path: str) -> None:
        """Remove the file or folder at `path`, which may be gone already."""
        parent, name = self._split(path)
        with contextlib.suppress(FileNotFoundError), self._opened(parent) as folder:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            if stat.S_ISLNK(found):
                raise UnsafeFile(str(self.root / path), _("a symbolic link"))
            if stat.S_ISDIR(found):
                shutil.rmtree(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)

    def _require_plain(self, name: str, folder: int, path: str) -> None:
        """Refuse what is no file, by its whole path."""
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        require_plain(found, self.root / path / name)

    def _split(self, path: str) -> tuple[str, str]:
        """Return the folder and the name of `path`, which is not the root itself."""
        whole = PurePosixPath(path)
        if not whole.name:
            raise UnsafeFile(path, _("no path inside a run's folder"))
        return str(whole.parent), whole.name

    @contextlib.contextmanager
    def _opened(self, path: str, make: bool = False) -> Iterator[int]:
        """Open the folder `path`; yield its descriptor, for calls that take a `dir_fd`."""
        parts = PurePosixPath(path).parts
        if "/" in parts or ".." in parts:
            raise UnsafeFile(path, _("no path inside a run's folder"))
        base = self.root.parents[min(1, len(self.root.parents) - 1)]
        if make:
            base.mkdir(parents=True, exist_ok=True)
        at = base
        folder = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in (*self.root.relative_to(base).parts, *parts):
                at /= part
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=folder)
                inner = self._step(part, folder, at)
                os.close(folder)
                folder = inner
            yield folder
        finally:
            os.close(folder)

    def _step(self, part: str, folder: int, at: Path) -> int:
        try:
            return os.open(part, os.O_RDONLY | os.O_DIRECTORY | NO_LINK, dir_fd=folder)
        except OSError as error:
            if stat.S_ISLNK(os.stat(part, dir_fd=folder, follow_symlinks=False).st_mode):
                raise UnsafeFile(str(at), _("a symbolic link")) from error
            raise


def _has_link(source: Path, name: str, folder: int) -> bool:
    """Give our own `source` a second name in `folder`, that others can read, if that can be."""
    try:
        source.chmod(PUBLIC & ~UMASK)
        os.link(source, name, dst_dir_fd=folder, follow_symlinks=False)
    except OSError:  # another filesystem, or one without links
        return False
    return True
