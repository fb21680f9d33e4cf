"""Bytes as they pass from one file to another: bounded, and hashed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from onward.errors import TooLarge
from onward.system.files import CHUNK_BYTES, PRIVATE, create, make_folder, open_plain


class Region:
    """A piece of a file that one of several threads fills from its start.

    They take turns: the kernel lets one at a time write to a file, and keeps a processor busy for
    each that waits.

    Args:
        file: Opened to be written to.
        start: Where in it the piece begins.
        turn: Held by who writes to the file.

    Attributes:
        num_bytes: How much is filled.
    """

    def __init__(self, file: BinaryIO, start: int, turn: threading.Lock) -> None:
        self._file, self._start, self._turn = file, start, turn
        self.num_bytes = 0

    def fill(self, chunk: bytes) -> None:
        """Write the next bytes."""
        with self._turn:
            self._file.seek(self._start + self.num_bytes)
            self._file.write(chunk)
        self.num_bytes += len(chunk)


Target = Path | Region  # a file, which is made or replaced, or a piece of one


def write_hashed(chunks: Iterable[bytes], target: Target, max_bytes: int, name: str) -> str:
    """Write `chunks` to `target`, hashing them as they pass; return the SHA-256.

    Nothing is fsynced: it is for files that a process reads and throws away. `name` is what the
    source is called in a message.

    Raises:
        TooLarge: There are more than `max_bytes`; a file is gone then.
        OSError: The disk is full or the folder cannot be written.
    """
    sha256, num_bytes = hashlib.sha256(), 0
    with _opened(target) as write:
        for chunk in chunks:
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                if isinstance(target, Path):
                    target.unlink()
                raise TooLarge(name, max_bytes)
            sha256.update(chunk)
            write(chunk)
    return sha256.hexdigest()


@contextlib.contextmanager
def _opened(target: Target) -> Iterator[Callable[[bytes], object]]:
    """Yield what writes the next bytes."""
    if isinstance(target, Region):
        target.num_bytes = 0
        yield target.fill
        return
    make_folder(target.parent)
    target.unlink(missing_ok=True)
    with create(target, PRIVATE) as file:
        yield file.write


def chunks_of(file: BinaryIO) -> Iterator[bytes]:
    """Yield the bytes of an open file, a piece that stays in the processor's cache at a time."""
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


@contextlib.contextmanager
def private_copy(path: Path) -> Iterator[Path]:
    """Yield a copy of a file that nobody else changes or cuts off, for the length of a block.

    Raises:
        OSError: There is no such file, or no room for another.
    """
    with open_plain(path) as file, tempfile.TemporaryDirectory(prefix="train-") as folder:
        copy = Path(folder) / "file"
        write_hashed(chunks_of(file), copy, os.fstat(file.fileno()).st_size, str(path))
        yield copy
