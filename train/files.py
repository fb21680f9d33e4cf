"""Files that are either whole or not there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
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
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
