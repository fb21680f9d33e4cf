"""`.npz` files, in which arrays lie so that they can be mapped into memory.

Of those that others wrote what they declare must be what they hold, before it is made.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from onward.system.files import size_in_words
from onward.words.language import _

_ALIGNMENT: Final = 64  # where an array begins, as `np.save` has it
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")  # of a member: magic, bytes of name and of extra
_LOCAL_MAGIC: Final = b"PK\x03\x04"
_ZIP64_BYTES: Final = 20  # of a member's header, where sizes of more than 4 GB have their place
_PADDING: Final = 0xD935  # the kind of extra bytes that only fill, as zipalign has it
MAX_COLUMNS: Final = 1_000_000  # of all arrays together; thousands are used


def check_declared(file: Path | BinaryIO, max_bytes: int) -> None:
    """Refuse arrays that are larger than their members, or all together than there is room for.

    Args:
        file: An `.npz` file, compressed or not.
        max_bytes: How much all of it may take.

    Raises:
        ValueError: Says what is wrong.
        OSError, zipfile.BadZipFile: It is none.
    """
    num_columns, num_bytes = 0, 0
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            num_bytes += member.file_size
            with archive.open(member) as array:
                try:
                    shape, kind, _order = _read_header(array)
                except ValueError:  # it is no array, or not one that is read: np.load says so
                    continue
                declared, held = _size(shape, kind), member.file_size - array.tell()
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
    if num_bytes > max_bytes:
        told = _("its arrays take {needed}, and there is room for {limit}")
        raise ValueError(
            told.format(needed=size_in_words(num_bytes), limit=size_in_words(max_bytes))
        )


def write_arrays(file: BinaryIO, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an `.npz` file of nothing compressed, in which each array begins at a multiple of 64.

    Args:
        file: A new file, at its beginning.
        arrays: What `np.load` will find; the same ones give the same bytes.

    Raises:
        OSError: The disk is full.
    """
    with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # of 1980, as `np.savez` has it
            begins = file.tell() + _LOCAL_HEADER.size + len(member.filename) + _ZIP64_BYTES + 4
            padding = -begins % _ALIGNMENT
            member.extra = struct.pack("<HH", _PADDING, padding) + bytes(padding)
            with archive.open(member, "w", force_zip64=True) as out:
                np.lib.format.write_array(out, np.ascontiguousarray(array), allow_pickle=False)


def mapped(file: BinaryIO) -> dict[str, NDArray[Any]]:
    """Return the arrays of an `.npz` file as they lie there: the pages are read as they are used.

    What is written to one stays in memory. One that does not begin where the processor wants
    it, as `np.savez` has it, is read.

    Args:
        file: As `write_arrays` wrote it, of which the bytes have been checked.

    Raises:
        ValueError: An array is compressed, is not of plain numbers, or does not lie in the file.
        OSError, zipfile.BadZipFile: It is none.
    """
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            with archive.open(member) as opened:
                shape, kind, is_fortran = _read_header(opened)
                skipped = opened.tell()
            file.seek(member.header_offset)
            magic, *lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            if member.compress_type or is_fortran or magic != _LOCAL_MAGIC:
                raise ValueError(
                    _("array '{name}' is not as it was saved").format(name=member.filename)
                )
            begins = member.header_offset + _LOCAL_HEADER.size + sum(lengths) + skipped
            if not math.prod(shape):
                array = np.empty(shape, kind)
            else:
                array = np.asarray(np.memmap(file, kind, "c", begins, shape))
            if not array.flags.aligned:
                array = array.copy()
            arrays[member.filename.removesuffix(".npy")] = array
    return arrays


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
