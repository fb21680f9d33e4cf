"""Files that are hashed as they are written, and compared as they are read."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from onward.checkpoint.manifest import FileEntry, Manifest
from onward.errors import CheckpointDamaged
from onward.system.files import CHUNK_BYTES
from onward.words.language import _

PART_BYTES = 256 << 20


class PartWriter:
    """A file to write to, that hashes what goes through and starts a new part when one is full.

    One part alone becomes the file itself, several become a folder of that name.
    """

    def __init__(self, folder: Path, name: str, part_bytes: int) -> None:
        self._folder, self._name, self._part_bytes = folder, name, part_bytes
        self._parts = folder / f"{name}.parts"
        self._parts.mkdir()
        self._entries: list[FileEntry] = []
        self.error: OSError | None = None  # such as a full disk
        self._open_part()

    def _open_part(self) -> None:
        self._path = self._parts / f"part-{len(self._entries):05d}"
        self._file = open(self._path, "xb")  # noqa: SIM115 - closed by _close_part
        self._sha256, self._bytes = hashlib.sha256(), 0

    def _close_part(self) -> None:
        self._file.close()
        name = f"{self._name}/{self._path.name}"
        self._entries.append(FileEntry(name, self._bytes, self._sha256.hexdigest()))

    def write(self, data: Any) -> int:
        """Write bytes; return how many."""
        view = memoryview(data).cast("B")
        try:
            for start in range(0, len(view), CHUNK_BYTES):
                self._write_chunk(view[start : start + CHUNK_BYTES])
        except OSError as error:
            self.error = error
            raise
        return len(view)

    def _write_chunk(self, chunk: memoryview) -> None:
        while len(chunk):
            if self._bytes == self._part_bytes:
                self._close_part()
                self._open_part()
            piece = chunk[: self._part_bytes - self._bytes]
            self._file.write(piece)
            self._sha256.update(piece)  # piece by piece, while it is in the processor's cache
            self._bytes += len(piece)
            chunk = chunk[len(piece) :]

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        self._file.flush()

    def save(self, content: Any) -> list[FileEntry]:
        """Write what `torch.save` makes of it, and `close`.

        Raises:
            OSError: The disk is full, or cannot be written.
        """
        import torch

        try:
            torch.save(content, self)  # type: ignore[arg-type]
        except RuntimeError:  # what torch makes of an error in our write
            if self.error is not None:
                raise self.error from None
            raise
        return self.close()

    def close(self) -> list[FileEntry]:
        """Give the file or the folder of parts its name, and return what a manifest lists."""
        self._close_part()
        final = self._folder / self._name
        if len(self._entries) > 1:
            self._parts.rename(final)
            return self._entries
        self._path.rename(final)
        self._parts.rmdir()
        return [dataclasses.replace(self._entries[0], path=self._name)]


def verify(folder: Path, manifest: Manifest, name: str) -> None:
    """Compare size and hash of every file with the manifest.

    Raises:
        CheckpointDamaged: A file is missing, or differs.
    """
    for entry in manifest.files:
        verify_file(folder, entry, name)


def verify_file(folder: Path, entry: FileEntry, name: str, sha256: str | None = None) -> None:
    """Compare size and hash of one file with what its manifest says.

    Args:
        folder: Where the checkpoint lies.
        entry: What its manifest says of the file.
        name: The checkpoint, for messages.
        sha256: That of the file, where it is known; default: it is read.

    Raises:
        CheckpointDamaged: It is missing, or differs.
    """
    path = folder / entry.path
    if not path.is_file():
        raise CheckpointDamaged(name, _("{path} is missing").format(path=entry.path))
    size = path.stat().st_size
    if sha256 is None and size == entry.bytes:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    require_same(entry, name, size, sha256 or "")


def require_same(entry: FileEntry, name: str, size: int, found: str) -> None:
    """Make sure that a file has the size in bytes, and the SHA-256, that its manifest says.

    Raises:
        CheckpointDamaged: It has not.
    """
    if size != entry.bytes:
        raise CheckpointDamaged(
            name,
            _("{path} has {size:,} bytes, its manifest says {expected:,}").format(
                path=entry.path, size=size, expected=entry.bytes
            ),
        )
    if found != entry.sha256:
        raise CheckpointDamaged(
            name,
            _("{path} has sha256 {found}…, its manifest says {expected}…").format(
                path=entry.path, found=found[:12], expected=entry.sha256[:12]
            ),
        )
