"""Tensors that are spread over ranks: each rank writes its own pieces.

    shard-00001-00000.pth, …    what rank 1 holds, as `torch.save` of tensors alone
    shard-00001.json            which region of which tensor each of them is; see `index`

`checkpoint.pth` has a marker in place of such a tensor. What a rank writes depends on what it holds
and on nobody else. See `shards` for how it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from onward.checkpoint.hashed import PART_BYTES, PartWriter
from onward.checkpoint.index import (
    ITEM_BYTES,
    MAX_KEY_CHARS,
    Index,
    Origin,
    Placed,
    is_shape,
)
from onward.checkpoint.manifest import FileEntry
from onward.checkpoint.plain import to_plain, whole_tensor
from onward.errors import CheckpointError
from onward.system.boxes import Box, cut, region
from onward.system.files import atomic_folder
from onward.words.language import _

if TYPE_CHECKING:
    from torch import Tensor

MARKER = "onward.spread"  # the one key of what stands for a tensor that is spread
_HEAD_BYTES = 8192  # of a file of tensors, beside them
_NAME_BYTES = 512  # that a tensor takes in it beside its elements
_MAX_NAMES = 50_000  # in one file, whose pickle is read whole


class Piece(TypedDict):
    """What this rank holds of a tensor; a dict, so that it is staged like any state."""

    key: str  # which tensor: where it is in the state
    shape: tuple[int, ...]  # of the whole tensor
    offset: tuple[int, ...]  # where in it the piece begins
    tensor: Tensor  # the piece; not spread


class Marker(NamedTuple):
    """What stands in a state for a tensor that is spread over ranks."""

    key: str
    dtype: str
    shape: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return what is stored."""
        return {MARKER: [self.key, self.dtype, list(self.shape)]}


def marker_in(value: Any) -> Marker | None:
    """Return the marker that a value is, None if it is none.

    Raises:
        ValueError: It is to be one, and is not.
    """
    if not isinstance(value, Mapping) or MARKER not in value:
        return None
    told = value[MARKER]
    is_right = len(value) == 1 and isinstance(told, list) and len(told) == 3
    if not is_right or not isinstance(told[0], str) or not is_shape(told[2]):
        raise ValueError("it holds a piece that cannot be read")
    if not isinstance(told[1], str) or told[1] not in ITEM_BYTES:
        raise ValueError("it holds a piece of a kind that is not read")
    return Marker(told[0], told[1], tuple(told[2]))


def replaced(tree: Any, make: Callable[[Marker], Any]) -> Any:
    """Return a state with what `make` returns in place of each marker.

    Raises:
        ValueError: A marker is none.
    """
    marker = marker_in(tree)
    if marker is not None:
        return make(marker)
    if isinstance(tree, Mapping):
        return {key: replaced(value, make) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(replaced(value, make) for value in tree)
    return tree


def write_shard(
    folder: Path,
    origin: Origin,
    pieces: Iterable[Piece],
    own: Any = None,
    max_bytes: int = PART_BYTES,
) -> Index:
    """Write what a rank holds as the local folder `folder`; see `add_shard`.

    Guarantees:
        The folder has its name only when all of it is on disk.
    """
    with atomic_folder(folder) as temporary:
        return add_shard(temporary, origin, pieces, own, max_bytes)


def add_shard(
    folder: Path,
    origin: Origin,
    pieces: Iterable[Piece],
    own: Any = None,
    max_bytes: int = PART_BYTES,
) -> Index:
    """Write what a rank holds into a folder that is made durable by whoever makes it.

    Args:
        folder: Where to.
        origin: Which rank, and when.
        pieces: What it holds of the tensors that are spread; empty ones are left out.
        own: What it has for itself: tensors, and what JSON can say. Tuples come back as lists.
        max_bytes: No file is larger; a larger piece is cut.

    Raises:
        OSError: The disk is full, or cannot be written.
        CheckpointError: It cannot be read again: there is too much of it, or a dtype that is not.
    """
    mine = [piece for piece in pieces if piece["tensor"].numel()]
    told = _taken_out(own, origin.rank, mine)
    files: list[FileEntry] = []
    placed: list[Placed] = []
    held: dict[str, Tensor] = {}
    left = max_bytes - _HEAD_BYTES

    def write() -> None:
        writer = PartWriter(folder, origin.tensor_file(len(files)), 1 << 62)
        # What is a part of a larger storage would be saved with all of it.
        files.extend(writer.save({name: _compact(piece) for name, piece in held.items()}))
        held.clear()

    for piece in mine:
        tensor = whole_tensor(piece["key"], piece["tensor"])
        dtype = _dtype_of(tensor, piece["key"])
        box = Box(tuple(piece["offset"]), tuple(tensor.shape))
        largest = (max_bytes - _HEAD_BYTES - _NAME_BYTES) // ITEM_BYTES[dtype]
        for part in cut(box, largest):
            size = part.num_elements * ITEM_BYTES[dtype] + _NAME_BYTES
            if held and (size > left or len(held) == _MAX_NAMES):
                write()
            left = (left if held else max_bytes - _HEAD_BYTES) - size
            name = str(len(placed))
            held[name] = region(tensor, box, part)
            shape = tuple(piece["shape"])
            placed.append(Placed(piece["key"], dtype, shape, part, len(files), name))
    if held:
        write()
    index = Index(origin, tuple(files), tuple(placed), told)
    text = index.text
    # IMPORTANT: the index comes last; without it the rank has written nothing.
    (folder / origin.index_file).write_bytes(text)
    return index


def _taken_out(own: Any, rank: int, pieces: list[Piece]) -> Any:
    """Return what a rank has for itself with markers for tensors, which are added to `pieces`."""

    def take(where: str, tensor: Tensor) -> Any:
        tensor = whole_tensor(where, tensor)
        shape = tuple(tensor.shape)
        if tensor.numel():
            pieces.append(Piece(key=where, shape=shape, offset=(0,) * len(shape), tensor=tensor))
        return Marker(where, _dtype_of(tensor, where), shape).to_dict()

    return to_plain(own, f"rank {rank}", take)


def _dtype_of(tensor: Tensor, key: str) -> str:
    if len(key) > MAX_KEY_CHARS:
        told = _("the path of {where} has more than {number} characters")
        raise CheckpointError(told.format(where=f"{key[:60]}…", number=MAX_KEY_CHARS))
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in ITEM_BYTES:
        told = _("{where} is of {dtype}, which is not saved in pieces")
        raise CheckpointError(told.format(where=key, dtype=dtype))
    return dtype


def _compact(tensor: Tensor) -> Tensor:
    is_all = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if is_all and not tensor.is_cuda else tensor.cpu().contiguous().clone()
