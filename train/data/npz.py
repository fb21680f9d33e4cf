"""`.npz` files that others wrote: what they declare must be what they hold, before it is made."""

from __future__ import annotations

import hashlib
import io
import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from train.files import open_plain, size_in_words
from train.language import _

MAX_COLUMNS: Final = 1_000_000  # of all arrays together; thousands are used
_HEADER: Final = struct.Struct("<4sHHHHHIIIHH")  # of a member of a zip archive
_STORED, _DIRECTORY = 0, b"PK\1\2"
_ZIP64: Final = 0xFFFFFFFF
_CHUNK_BYTES: Final = 1 << 20


def check_declared(path: Path, free_bytes: int) -> None:
    """Refuse a table whose arrays are larger than their members, or than the memory.

    Args:
        path: An `.npz` file, compressed or not.
        free_bytes: How much all of it may take.

    Raises:
        ValueError: Says what is wrong.
        OSError, zipfile.BadZipFile: It is none.
    """
    num_columns, num_bytes = 0, 0
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            num_bytes += member.file_size
            with archive.open(member) as file:
                try:
                    shape, kind, _order = _read_header(file)
                except ValueError:  # it is no array, or not one that is read: np.load says so
                    continue
                declared, held = _size(shape, kind), member.file_size - file.tell()
            if declared != held:
                raise ValueError(
                    _("array '{name}' declares {declared} and holds {held}").format(
                        name=member.filename.removesuffix(".npy"),
                        declared=size_in_words(declared), held=size_in_words(held),
                    )
                )  # fmt: skip
            num_columns += shape[1] if len(shape) == 2 else 1
    if num_columns > MAX_COLUMNS:
        told = _("it has {num_columns:,} columns, and at most {limit:,} are read")
        raise ValueError(told.format(num_columns=num_columns, limit=MAX_COLUMNS))
    if num_bytes > free_bytes:
        told = _("its arrays take {needed}, and this machine has {free} of memory free")
        raise ValueError(
            told.format(needed=size_in_words(num_bytes), free=size_in_words(free_bytes))
        )


def read_hashed(path: Path) -> tuple[dict[str, NDArray[Any]], str]:
    """Read what `np.savez` wrote, from the first byte to the last; return also its SHA-256.

    Each byte is read once, so that the arrays are made of what was hashed. An array takes no more
    memory than the file has bytes.

    Raises:
        ValueError: It is no such file: compressed, say.
        OSError: It cannot be read.
    """
    arrays: dict[str, NDArray[Any]] = {}
    sha256 = hashlib.sha256()
    with open_plain(path) as file:
        num_bytes = file.seek(0, io.SEEK_END)
        file.seek(0)
        reader = _Hashed(file, sha256.update)
        while (head := reader.read(4)) == b"PK\3\4":
            name, size = _member(reader, head)
            end = reader.position + size
            if end > num_bytes:
                raise ValueError(_("its end is missing, or something else follows it"))
            shape, kind, is_fortran = _read_header(reader)
            if _size(shape, kind) != end - reader.position:
                raise ValueError(
                    _("array '{name}' declares {declared} and holds {held}").format(
                        name=name, declared=size_in_words(_size(shape, kind)),
                        held=size_in_words(max(end - reader.position, 0)),
                    )
                )  # fmt: skip
            array = np.empty(shape, kind, order="F" if is_fortran else "C")
            reader.fill(memoryview(array.reshape(-1, order="A")).cast("B"))  # type: ignore[arg-type]
            arrays[name] = array
        if head != _DIRECTORY:
            raise ValueError(_("its end is missing, or something else follows it"))
        while reader.read(_CHUNK_BYTES):
            pass
    return arrays, sha256.hexdigest()


class _Hashed:
    """A file that is read from front to back, and hashed as it is."""

    def __init__(self, file: BinaryIO, update: Callable[[Any], object]) -> None:
        self._file, self._update = file, update
        self.position = 0

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes."""
        found = self._file.read(size)
        self._update(found)
        self.position += len(found)
        return found

    def fill(self, view: memoryview) -> None:
        """Read as many bytes as `view` has."""
        for start in range(0, len(view), _CHUNK_BYTES):
            piece = view[start : start + _CHUNK_BYTES]
            done = 0
            while done < len(piece):
                count = self._file.readinto(piece[done:])  # type: ignore[attr-defined]
                if not count:
                    raise ValueError(_("its end is missing, or something else follows it"))
                done += count
            self._update(piece)
            self.position += len(piece)


def _member(reader: _Hashed, head: bytes) -> tuple[str, int]:
    """Return the name and the size of the member that begins here, as `np.savez` writes it."""
    _magic, _version, flags, method, *_rest, size, name_bytes, extra_bytes = _HEADER.unpack(
        head + reader.read(_HEADER.size - 4)
    )
    name, extra = reader.read(name_bytes).decode(), reader.read(extra_bytes)
    if size == _ZIP64 and extra[:2] == b"\1\0" and len(extra) >= 12:
        size = struct.unpack("<Q", extra[4:12])[0]
    if method != _STORED or flags & 9 or not name.endswith(".npy"):  # 9: encrypted, no sizes
        raise ValueError(_("it is compressed, or np.savez did not write it"))
    return name.removesuffix(".npy"), size


def _read_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Return shape, type and order of the array that begins here."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(
            _("it has arrays of an unknown version, {version}").format(version=version)
        )
    shape, is_fortran, kind = read(file)
    if kind.hasobject:
        raise ValueError(_("it holds pickled objects, which are not read (allow_pickle=False)"))
    return shape, kind, is_fortran


def _size(shape: tuple[int, ...], kind: np.dtype[Any]) -> int:
    """Return how many bytes such an array has; a dimension of a negative length has none."""
    return math.prod(shape) * kind.itemsize if all(n >= 0 for n in shape) else -1
