"""Files of tensors that others wrote: nothing in them is executed, and nothing in them grows.

What comes out is tensors, numbers, text, lists, tuples and dicts, and takes no more memory than
the file does, a few times over. All limits are looked at before anything of that size is made.
"""

from __future__ import annotations

import bisect
import io
import math
import re
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from onward.errors import CheckpointDamaged
from onward.system.pickled import MAX_PICKLE_BYTES, PROTOCOL, TENSORS, UnreadableFile, check_pickle
from onward.words.language import _

MAX_DEPTH = 64
MAX_DIMENSIONS = 64
MAX_SHARED = 4  # times that all bytes of a file may be in its tensors: two models can share weights
MAX_LEGACY_BYTES = 64 << 20  # of a file from before torch 1.6, whose parts cannot be told apart

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how such a file begins
_NUMPY = {
    f"numpy.{core}.multiarray.{name}" for core in ("core", "_core")  # before NumPy 2, and since
    for name in ("scalar", "_reconstruct")
} | {"numpy.ndarray", "numpy.dtype"}  # fmt: skip
_OF_SCRIPTS = {
    "builtins.set", "builtins.complex", "collections.Counter", "torch.device", "torch.Size",
}  # fmt: skip


def load_tensors(paths: Sequence[Path], name: str, from_script: bool = False) -> Any:
    """Read what `torch.save` wrote, on the CPU.

    Args:
        paths: The file, or the parts that one was cut into. They must not change, nor be cut off,
            as long as the tensors live: a single one is mapped into memory.
        name: What it is, for messages.
        from_script: Take NumPy's numbers and arrays too, and what else is harmless.

    Raises:
        CheckpointDamaged: It cannot be read, holds code, or would grow when read.
    """
    import torch

    try:
        with io.BufferedReader(_JoinedFile(list(paths))) as file:
            num_bytes = file.seek(0, io.SEEK_END)
            is_archive, pickle_bytes = _inspect(cast(BinaryIO, file), num_bytes, from_script)
            file.seek(0)
            whole = paths[0] if len(paths) == 1 and is_archive else None
            with torch.serialization.safe_globals(_stand_ins() if from_script else []):
                found = torch.load(
                    whole or file, map_location="cpu", weights_only=True, mmap=whole is not None
                )
        _refuse_growth(found, num_bytes, pickle_bytes)
        return _plain(found, from_script)
    except UnreadableFile as error:
        raise CheckpointDamaged(name, str(error)) from error
    except Exception as error:  # torch raises many kinds for bytes that are no tensors
        raise CheckpointDamaged(name, _unreadable(error)) from error


def as_number(value: Any) -> float | None:
    """Return a real number as one, also where it is a tensor; None where it is none.

    >>> as_number(3), as_number(True), as_number("3"), as_number(10**400)
    (3.0, None, None, None)
    """
    import torch

    if isinstance(value, torch.Tensor) and value.ndim == 0 and not value.is_complex():
        value = value.item()
    if not isinstance(value, int | float) or type(value) is bool:
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _unreadable(error: Exception) -> str:
    """Return, in half a line, why torch did not read a file; its own text is advice to trust it."""
    text = " ".join(str(error).split())
    code = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:class|global|operand)[: ]+([\w.]+)", text)
    if code:
        return _("it holds code ({code}), and nothing in a checkpoint is executed").format(
            code=code[1] or code[2]
        )
    return _("it cannot be read safely ({kind}: {text})").format(
        kind=type(error).__name__, text=text[:100]
    )


def _inspect(file: BinaryIO, num_bytes: int, from_script: bool) -> tuple[bool, int]:
    """Refuse a file that would be larger in memory than on disk, or hold something else.

    Returns:
        Whether it is an archive, and the size of its pickle.
    """
    file.seek(0)
    head = file.read(512)
    allowed = TENSORS | _NUMPY | _OF_SCRIPTS if from_script else TENSORS
    if head.startswith(b"PK\3\4"):  # by which torch, too, tells one
        pickled = _pickle_of(file, num_bytes)
        return True, check_pickle(io.BytesIO(pickled), allowed)
    if not from_script or not head.startswith(_LEGACY):
        raise UnreadableFile(_what_it_is(head))
    if num_bytes > MAX_LEGACY_BYTES:
        raise UnreadableFile(
            _("torch from before 1.6 wrote it, and of such files 64 MiB are read at most: save it "
              "again with a newer one")
        )  # fmt: skip
    file.seek(0)
    return False, sum(check_pickle(file, allowed) for _part in range(5))


def _pickle_of(file: BinaryIO, num_bytes: int) -> bytes:
    """Return the pickle of an archive, in which torch stores all members as they are."""
    grows = _("its {num_bytes:,} bytes would grow when read").format(num_bytes=num_bytes)
    file.seek(max(num_bytes - 22, 0))
    # Without a comment behind it there is but one directory, for Python and for torch alike.
    if not file.read(4) == b"PK\5\6":
        raise UnreadableFile(_("its end is missing, or something else follows it"))
    try:
        archive = zipfile.ZipFile(_Sparing(file))
        members = archive.infolist()
        folder = members[0].filename.partition("/")[0]
        if any(m.compress_type != zipfile.ZIP_STORED for m in members):
            raise UnreadableFile(grows)
        if sum(m.file_size for m in members) > num_bytes:
            raise UnreadableFile(grows)
        if len({m.filename.lower() for m in members}) < len(members):  # torch takes a for A
            raise UnreadableFile(_("two of its members have one name"))
        if f"{folder}/data.pkl" not in archive.namelist():
            raise UnreadableFile(_("it is a zip archive that torch.save did not write"))
        pickled = archive.getinfo(f"{folder}/data.pkl")
        if pickled.file_size > MAX_PICKLE_BYTES:
            raise UnreadableFile(_("beside its tensors it holds more than 32 MiB"))
        return archive.read(pickled)
    except UnreadableFile:
        raise
    except Exception as error:  # of many kinds; another reader may unpack what this one does not
        told = _("its archive cannot be read ({error})")
        raise UnreadableFile(told.format(error=error)) from error


class _Sparing(io.RawIOBase):
    """A file for zipfile, which reads as much at a time as the file itself says."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int | None = -1) -> bytes:
        limit = MAX_PICKLE_BYTES + 1
        found = self._file.read(limit if size is None or size < 0 else min(size, limit))
        if len(found) == limit:
            raise UnreadableFile(_("the directory of its archive is longer than 32 MiB"))
        return found


def _what_it_is(head: bytes) -> str:
    """Return what a file is that is neither of the two kinds that torch writes."""
    text = head.lstrip().lower()
    if not head:
        return _("it is empty")
    if head.startswith(b"version https://git-lfs"):
        return _("it is a pointer of Git LFS: `git lfs pull` fetches the file itself")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return _("it is a web page: download the file itself, perhaps after logging in")
    if head.startswith(b"\x1f\x8b"):
        return _("it is compressed: unpack it with gunzip")
    if len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5:
        if head[1] == PROTOCOL:
            return _("it is a pickle that torch.save did not write")
        return _(
            "it is a pickle of protocol {protocol}, and torch reads only {own} safely: write it "
            "again by torch.save without pickle_protocol"
        ).format(protocol=head[1], own=PROTOCOL)
    if all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        return _("it is plain text")
    return _("torch.save did not write it")


def _refuse_growth(found: Any, num_bytes: int, pickle_bytes: int) -> None:
    """Refuse what takes far more memory, once it is copied or walked, than its file has bytes."""
    import torch

    left_values, left_bytes = MAX_SHARED * pickle_bytes + 1024, MAX_SHARED * num_bytes
    grows = _("its {num_bytes:,} bytes would grow when read").format(num_bytes=num_bytes)
    storages: dict[int, int] = {}
    level: list[Any] = [found]
    for _depth in range(MAX_DEPTH):
        left_values -= len(level)
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += dict.keys(value)
                inner += dict.values(value)
            elif isinstance(value, list | tuple):
                inner += value
            elif isinstance(value, torch.Tensor):
                _require_dense(value)
                storage = value.untyped_storage()
                size = value.numel() * value.element_size()
                left_bytes -= size
                storages[storage._cdata] = storage.nbytes()
                if size > storage.nbytes():
                    raise UnreadableFile(
                        _("a tensor of {size:,} bytes in it is made of {stored:,}").format(
                            size=size, stored=storage.nbytes()
                        )
                    )
            elif isinstance(value, torch.UntypedStorage | torch.TypedStorage):
                raise UnreadableFile(_("it holds a tensor of a kind that is not read"))
            if len(inner) > left_values or left_bytes < 0:
                raise UnreadableFile(grows)
        if sum(storages.values()) > num_bytes:
            raise UnreadableFile(grows)
        level = inner
        if not level:
            return
    raise UnreadableFile(_("it is nested too deeply"))


def _require_dense(tensor: Any) -> None:
    import torch

    is_plain = (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and tensor.dim() <= MAX_DIMENSIONS
    )
    if not is_plain:
        raise UnreadableFile(_("it holds a tensor of a kind that is not read"))


def _plain(value: Any, from_script: bool) -> Any:
    """Return it without subclasses and stand-ins; it is of limited depth by now."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, _NumpyArray):
        return value.tensor()
    if type(value) in (dict, OrderedDict):  # whose own methods a pickle can put others before
        return {_plain(k, from_script): _plain(v, from_script) for k, v in dict.items(value)}
    if type(value) in (list, tuple):
        return type(value)(_plain(inner, from_script) for inner in value)
    if value is None or type(value) in (bool, int, float, str, bytes) or from_script:
        return value
    told = _("it holds a {kind}, and only tensors, numbers and text are read")
    raise UnreadableFile(told.format(kind=type(value).__name__))


class _NumpyType:
    """Stands for `numpy.dtype`, of which nothing is called: the types of numbers, and no other."""

    code = ""

    def __init__(self, code: object, *_flags: object) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", code):
            told = _("it holds NumPy values of type {code}, and only numbers are read")
            raise UnreadableFile(told.format(code=str(code)[:20]))
        self.code = code

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise UnreadableFile(_("it holds NumPy values of a kind that is not read"))
        self.code = f"{order}{self.code}"


class _NumpyArray:
    """Stands for a `numpy.ndarray`, of which nothing is called."""

    parts: tuple[tuple[int, ...], str, bool, bytes] | None = None

    def __setstate__(self, state: Any) -> None:
        _version, shape, kind, is_fortran, content = state
        is_shape = type(shape) is tuple and all(type(n) is int and n >= 0 for n in shape)
        if not is_shape or type(kind) is not _NumpyType or type(content) is not bytes:
            raise UnreadableFile(_("it holds NumPy values of a kind that is not read"))
        self.parts = (shape, kind.code, bool(is_fortran), content)

    def tensor(self) -> Any:
        import numpy as np
        import torch

        shape, code, is_fortran, content = self.parts or ((), "", False, b"")
        kind = np.dtype(code)
        if len(shape) > MAX_DIMENSIONS or math.prod(shape) * kind.itemsize != len(content):
            raise UnreadableFile(_("it holds NumPy values of a kind that is not read"))
        array = np.frombuffer(content, kind).reshape(shape, order="F" if is_fortran else "C")
        return torch.from_numpy(np.array(array, kind.newbyteorder("="), order="C"))


def _numpy_scalar(kind: Any, content: Any) -> Any:
    import numpy as np

    if type(kind) is not _NumpyType or type(content) is not bytes:
        raise UnreadableFile(_("it holds NumPy values of a kind that is not read"))
    return np.frombuffer(content, np.dtype(kind.code), count=1)[0].item()


def _numpy_reconstruct(_kind: object, _shape: object, _code: object) -> _NumpyArray:
    return _NumpyArray()


def _stand_ins() -> list[Any]:
    """Return what is called in place of NumPy's own functions, which trust what they are given."""
    named: list[Any] = [(_NumpyArray, "numpy.ndarray"), (_NumpyType, "numpy.dtype")]
    for core in ("core", "_core"):
        named.append((_numpy_scalar, f"numpy.{core}.multiarray.scalar"))
        named.append((_numpy_reconstruct, f"numpy.{core}.multiarray._reconstruct"))
    return named


class _JoinedFile(io.RawIOBase):
    """The parts of a file, read as one."""

    def __init__(self, paths: list[Path]) -> None:
        self._files = [path.open("rb") for path in paths]
        sizes = [path.stat().st_size for path in paths]
        self._starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._position, self._starts[-1])[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._starts[-1]:
            return 0
        part = bisect.bisect_right(self._starts, self._position) - 1
        file = self._files[part]
        file.seek(self._position - self._starts[part])
        count = file.readinto(memoryview(buffer))
        self._position += count
        return count

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()
