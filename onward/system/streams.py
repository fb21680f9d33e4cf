"""Bytes as they pass from one file to another: bounded, and hashed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from onward.errors import TooLarge
from onward.system.files import CHUNK_BYTES, PRIVATE, create, make_folder, open_plain


def write_hashed(
    chunks: Iterable[bytes], target: Path, max_bytes: int, name: str, offset: int | None = None
) -> str:
    """Write `chunks` to the file `target`, hashing them as they pass; return the SHA-256.

    Nothing is fsynced: it is for files that a process reads and throws away.

    Args:
        chunks: The bytes.
        target: The file.
        max_bytes: How many they may be.
        name: What the source is called in a message.
        offset: Where in the file, which is there, they begin; None: the file is made, or replaced.

    Raises:
        TooLarge: They are more than `max_bytes`; a new file is gone then.
        OSError: The disk is full or the folder cannot be written.
    """
    if offset is None:
        make_folder(target.parent)
        target.unlink(missing_ok=True)
    sha256, num_bytes = hashlib.sha256(), 0
    with create(target, PRIVATE) if offset is None else target.open("r+b") as file:
        file.seek(offset or 0)
        for chunk in chunks:
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                if offset is None:
                    target.unlink()
                raise TooLarge(name, max_bytes)
            sha256.update(chunk)
            file.write(chunk)
    return sha256.hexdigest()


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
