"""The index of a rank's pieces: `shard-00001.json`, read from a store that is not trusted.

    {"format_version": 3, "attempt": 2, "step": 400, "rank": 1, "world": 4,
     "files": [{"path": "shard-00001-00000.pth", "bytes": …, "sha256": …}],
     "pieces": [{"key": "model['head.weight']", "dtype": "float32", "global_shape": [193, 15],
                 "offset": [97, 0], "shape": [96, 15], "file": 0, "name": "12"}],
     "own": …}

`file` is the place of a file in `files`, `name` that of the tensor in it. `own` is what the rank
has for itself, such as its random state; a tensor in it is a piece like the others.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

from onward.checkpoint.manifest import FileEntry, is_count, is_file_entry, require_known
from onward.errors import CheckpointDamaged, CheckpointError
from onward.system.boxes import Box
from onward.system.pickled import DTYPES
from onward.system.tensors import MAX_DIMENSIONS
from onward.system.untrusted import parse_json, shown
from onward.words.language import _

INDEX_VERSIONS = (3,)  # of the format of checkpoints, where that of the index changed
MAX_INDEX_BYTES = 16 << 20  # some 100,000 pieces
MAX_KEY_CHARS = 1000
ITEM_BYTES = {
    name: int(found[0]) // 8 if (found := re.findall(r"\d+$", name)) else 1 for name in DTYPES
}


class Origin(NamedTuple):
    """Who saves a shard, and when.

    Args:
        rank: Which of the ranks, from 0.
        world: How many there are.
        attempt: The attempt that saves.
        step: Optimizer steps completed.
    """

    rank: int
    world: int
    attempt: int
    step: int

    @property
    def index_file(self) -> str:
        """The name of the index."""
        return index_file(self.rank)

    def tensor_file(self, number: int) -> str:
        """Return the name of one of its files of tensors."""
        return f"shard-{self.rank:05d}-{number:05d}.pth"


def index_file(rank: int) -> str:
    """Return the name of a rank's index."""
    return f"shard-{rank:05d}.json"


@dataclass(frozen=True, slots=True)
class Placed:
    """A piece of a tensor, in a file.

    Args:
        key: Which tensor.
        dtype: Of its elements.
        global_shape: That of the whole tensor.
        box: Which region of it the piece is.
        file: The place of its file in the index.
        name: What it is called in that file.
    """

    key: str
    dtype: str
    global_shape: tuple[int, ...]
    box: Box
    file: int
    name: str

    @property
    def num_bytes(self) -> int:
        """How large it is."""
        return self.box.num_elements * ITEM_BYTES[self.dtype]

    def to_dict(self) -> dict[str, Any]:
        """Return what the index says of it."""
        return {
            "key": self.key,
            "dtype": self.dtype,
            "global_shape": self.global_shape,
            "offset": self.box.offset,
            "shape": self.box.shape,
            "file": self.file,
            "name": self.name,
        }


@dataclass(frozen=True)
class Index:
    """What a rank has written.

    Args:
        origin: Which rank, and when.
        files: Its files of tensors.
        pieces: What is in them.
        own: What the rank has for itself, as JSON.
    """

    origin: Origin
    files: tuple[FileEntry, ...]
    pieces: tuple[Placed, ...]
    own: Any = None

    @property
    def entries(self) -> tuple[FileEntry, ...]:
        """What a manifest lists: the files of tensors, and the index itself, which comes last."""
        digest = hashlib.sha256(self.text).hexdigest()
        own = FileEntry(self.origin.index_file, len(self.text), digest)
        return (*self.files, own)

    @cached_property
    def text(self) -> bytes:
        """What the file holds.

        Raises:
            CheckpointError: It would be longer than it is read again.
            ValueError: `own` has a number that is not finite.
        """
        document = {
            "format_version": INDEX_VERSIONS[-1],
            **{name: getattr(self.origin, name) for name in ("attempt", "step", "rank", "world")},
            "files": [asdict(entry) for entry in self.files],
            "pieces": [piece.to_dict() for piece in self.pieces],
            "own": self.own,
        }
        text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
        if len(text) > MAX_INDEX_BYTES:
            told = _("the state of rank {rank} has {number:,} pieces, and the index of so many is "
                     "longer than is read again")  # fmt: skip
            raise CheckpointError(told.format(rank=self.origin.rank, number=len(self.pieces)))
        return text


def parse_index(text: bytes, rank: int, name: str) -> Index:
    """Read the index of a rank, of which nothing is taken on trust but its length.

    Args:
        text: What the file holds.
        rank: By the file's name.
        name: The checkpoint, for messages.

    Raises:
        CheckpointDamaged: A field is missing, of a wrong type, or points elsewhere.
        CheckpointError: A newer version of this program wrote it.
    """
    path = index_file(rank)
    try:
        document = parse_json(text)
    except ValueError as error:
        told = _("{path} is not JSON ({error})").format(path=path, error=error)
        raise CheckpointDamaged(name, told) from error

    def check(holds: bool, what: str, value: object) -> None:
        if not holds:
            found = f"{what} {shown(repr(value), 200)}"
            raise CheckpointDamaged(name, _("{path} has {what}").format(path=path, what=found))

    check(isinstance(document, dict), "document", document)
    version = document.get("format_version")
    check(is_count(version), "format_version", version)
    require_known(version, name, INDEX_VERSIONS)
    for key in ("attempt", "step", "world"):
        check(is_count(document.get(key)), key, document.get(key))
    check(document.get("rank") == rank and is_count(document["rank"]), "rank", document.get("rank"))
    check(rank < document["world"], "world", document["world"])
    origin = Origin(rank, document["world"], document["attempt"], document["step"])
    files, pieces = document.get("files"), document.get("pieces")
    check(isinstance(files, list) and all(map(is_file_entry, files)), "files", files)
    paths = [entry["path"] for entry in files]
    check(paths == [origin.tensor_file(i) for i in range(len(files))], "files", paths)
    check(isinstance(pieces, list), "pieces", pieces)
    entries = tuple(FileEntry(e["path"], e["bytes"], e["sha256"]) for e in files)
    for number, piece in enumerate(pieces):
        check(_is_piece(piece, len(files)), f"piece {number}", piece)
    placed = tuple(map(_placed, pieces))
    names = Counter((piece.file, piece.name) for piece in placed)
    check(len(names) == len(placed), "the same name twice:", names.most_common(1))
    left = [entry.bytes for entry in entries]
    for number, piece in enumerate(placed):
        left[piece.file] -= piece.num_bytes  # else it would be larger than its file
        check(left[piece.file] >= 0, f"piece {number}", piece.to_dict())
    return Index(origin, entries, placed, document.get("own"))


def _is_piece(piece: Any, num_files: int) -> bool:
    if not isinstance(piece, Mapping):
        return False
    key, name, file = (piece.get(field) for field in ("key", "name", "file"))
    shapes: list[Any] = [piece.get(field) for field in ("global_shape", "offset", "shape")]
    return (
        isinstance(key, str)
        and 0 < len(key) <= MAX_KEY_CHARS
        and isinstance(name, str)
        and 0 < len(name) <= MAX_KEY_CHARS
        and isinstance(piece.get("dtype"), str)
        and piece["dtype"] in ITEM_BYTES
        and is_count(file)
        and file < num_files
        and all(map(is_shape, shapes))
        and _lies_inside(*shapes)
    )


def _lies_inside(global_shape: list[int], offset: list[int], shape: list[int]) -> bool:
    return len(global_shape) == len(offset) == len(shape) and all(
        n > 0 and at + n <= size for size, at, n in zip(global_shape, offset, shape, strict=True)
    )


def is_shape(value: Any) -> bool:
    """Tell whether it is a list of sizes, which a tensor may have as its shape."""
    return isinstance(value, list) and len(value) <= MAX_DIMENSIONS and all(map(is_count, value))


def _placed(piece: Mapping[str, Any]) -> Placed:
    box = Box(tuple(piece["offset"]), tuple(piece["shape"]))
    shape = tuple(piece["global_shape"])
    return Placed(piece["key"], piece["dtype"], shape, box, piece["file"], piece["name"])
