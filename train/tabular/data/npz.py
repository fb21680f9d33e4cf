"""`.npz` files that others wrote: what they declare must be what they hold, before it is made."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from onward.system.files import size_in_words
from onward.words.language import _

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
