"""What ranks have written, read by anybody: any region of any tensor, whatever rank saved it.

What is read depends on what a rank is to hold, and on nobody else: so a state that many ranks saved
is read by any number of them, or by one process, to the bit. See `pieces` for how it is written.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from onward.checkpoint.hashed import verify_file
from onward.checkpoint.index import MAX_INDEX_BYTES, Index, Placed, index_file, parse_index
from onward.checkpoint.manifest import FileEntry, Manifest
from onward.checkpoint.pieces import Marker, Piece, add_shard, replaced
from onward.errors import CheckpointDamaged
from onward.system.boxes import Box, covers_once, overlap, region, whole
from onward.system.files import read_plain
from onward.system.tensors import load_tensors
from onward.system.untrusted import shown
from onward.words.language import _

if TYPE_CHECKING:
    from torch import Tensor


def read_index(folder: Path, entry: FileEntry, rank: int, name: str) -> Index:
    """Read the index of a rank from a folder.

    Args:
        folder: Where it lies.
        entry: What the manifest says of it.
        rank: By its name.
        name: The checkpoint, for messages.

    Raises:
        CheckpointDamaged: It is not what the manifest says, or no index.
    """
    verify_file(folder, entry, name)
    try:
        text = read_plain(folder / entry.path, MAX_INDEX_BYTES)
    except ValueError as error:
        raise CheckpointDamaged(name, f"{entry.path}: {error}") from error
    return parse_index(text, rank, name)


def with_ranks(manifest: Manifest, texts: Sequence[bytes]) -> Manifest:
    """Return the manifest of rank 0 with what all ranks have written, as it is to be committed.

    Args:
        manifest: What `write_checkpoint` returned, or what of it went up.
        texts: The index of each rank, in their order, as it lies in the store: where it is, the
            rank's files are.

    Raises:
        CheckpointDamaged: One is no index, or of another attempt, step or number of ranks.
    """
    files = [entry for entry in manifest.files if entry not in manifest.shard_files]
    if len(texts) != manifest.world:
        raise CheckpointDamaged(
            manifest.name, _("{path} is missing").format(path=index_file(len(texts)))
        )
    for rank, text in enumerate(texts):
        index = parse_index(text, rank, manifest.name)
        _require_origin(index, manifest, manifest.name)
        own = FileEntry(index_file(rank), len(text), hashlib.sha256(text).hexdigest())
        files += [*index.files, own]
    return dataclasses.replace(manifest, files=tuple(files))


def _require_origin(index: Index, manifest: Manifest, name: str) -> None:
    expected = (manifest.world, manifest.attempt, manifest.step)
    if index.origin[1:] != expected:
        told = _("{path} is of another attempt, step or number of ranks")
        raise CheckpointDamaged(name, told.format(path=index.origin.index_file))


class Shard:
    """What one rank has written, opened as it is asked for.

    Args:
        folder: Where the files lie. They must not change as long as it is read from.
        index: What is in them.
        name: The checkpoint, for messages.
        is_verified: Whether they are known to be what the index says; else they are compared.
        fetch: Brings a file to the folder before it is opened; default: all are there.
    """

    def __init__(
        self,
        folder: Path,
        index: Index,
        name: str,
        is_verified: bool = False,
        fetch: Callable[[FileEntry], object] = lambda entry: None,
    ) -> None:
        self.index, self._fetch = index, fetch
        self._folder, self._name, self._is_verified = folder, name, is_verified
        self._opened: dict[int, Mapping[str, Tensor]] = {}
        self._listed: dict[int, list[Placed]] = {}
        for piece in index.pieces:
            self._listed.setdefault(piece.file, []).append(piece)

    @property
    def opened(self) -> list[str]:
        """The files that were opened so far."""
        return [self.index.files[file].path for file in sorted(self._opened)]

    def tensor(self, piece: Placed) -> Tensor:
        """Return a piece, which is what the index says; it is mapped into memory.

        Raises:
            CheckpointDamaged: Its file is not what it should be.
        """
        return self._open(piece.file)[piece.name]

    def check(self) -> None:
        """Open every file once.

        Raises:
            CheckpointDamaged: One is not what it should be.
        """
        for file in range(len(self.index.files)):
            self._open(file)
            del self._opened[file]

    def cut_into(self, target: Path, max_bytes: int) -> Index:
        """Write the same once more into the folder `target`, in files of another size."""
        pieces = [
            Piece(
                key=piece.key,
                shape=piece.global_shape,
                offset=piece.box.offset,
                tensor=self.tensor(piece),
            )
            for piece in self.index.pieces
        ]
        return add_shard(target, self.index.origin, pieces, self.index.own, max_bytes)

    def _open(self, file: int) -> Mapping[str, Tensor]:
        if file in self._opened:
            return self._opened[file]
        entry, listed = self.index.files[file], self._listed.get(file, [])
        self._fetch(entry)
        if not self._is_verified:
            verify_file(self._folder, entry, self._name)
        tensors = load_tensors([self._folder / entry.path], self._name)
        if (
            not isinstance(tensors, dict)
            or tensors.keys() != {piece.name for piece in listed}
            or not all(_is_as_told(tensors[piece.name], piece) for piece in listed)
        ):
            told = _("{path} holds other tensors than its index says")
            raise CheckpointDamaged(self._name, told.format(path=entry.path))
        self._opened[file] = tensors
        return tensors


def _is_as_told(tensor: Any, piece: Placed) -> bool:
    kind = f"torch.{piece.dtype}"
    return str(getattr(tensor, "dtype", "")) == kind and tuple(tensor.shape) == piece.box.shape


@dataclass(frozen=True)
class _Spread:
    """One tensor: what all ranks say of it, and where its pieces are."""

    dtype: str
    shape: tuple[int, ...]
    pieces: list[tuple[int, Placed]]  # (rank, piece)


class Shards:
    """What all ranks have written, to be read by anybody.

    Args:
        folder: Where the files lie. They must not change as long as it is read from.
        manifest: What was committed.
        name: The checkpoint, for messages.
        is_verified: Whether each file is known to be what the manifest says; else it is compared
            when it is opened. Indexes always are.
        fetch: Brings a file of tensors to the folder before it is opened; default: all are there.

    Raises:
        CheckpointDamaged: A rank's index is missing or wrong; ranks do not agree; a tensor is not
            there whole, or a region of it twice; there are files that no index names.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        name: str,
        is_verified: bool = False,
        fetch: Callable[[FileEntry], object] = lambda entry: None,
    ) -> None:
        self._name = name
        entries = {entry.path: entry for entry in manifest.shard_files}
        named = {index_file(rank) for rank in range(manifest.world)}
        self._shards = []
        for rank in range(manifest.world):
            entry = entries.get(index_file(rank))
            if entry is None:
                self._refuse(_("{path} is missing"), index_file(rank))
            index = read_index(folder, entry, rank, name)
            _require_origin(index, manifest, name)
            for entry in index.files:
                named.add(entry.path)
                if entries.get(entry.path) != entry:
                    self._refuse(_("{path} is not the file that its index names"), entry.path)
            self._shards.append(Shard(folder, index, name, is_verified, fetch))
        for path in entries.keys() - named:
            self._refuse(_("{path} is in no index"), path)
        self._tensors = self._gathered()

    @property
    def keys(self) -> Iterable[str]:
        """The tensors that are there."""
        return self._tensors.keys()

    @property
    def opened(self) -> list[str]:
        """The files of tensors that were opened so far."""
        return [path for shard in self._shards for path in shard.opened]

    def own(self, rank: int) -> Any:
        """Return what a rank had for itself; tuples are lists now.

        Raises:
            CheckpointDamaged: It cannot be read.
        """
        return self.assemble(self._shards[rank].index.own)

    def read(self, marker: Marker, box: Box) -> Tensor:
        """Return a region of a tensor, from as few files as have a part of it.

        Raises:
            CheckpointDamaged: There is no such tensor, or a file of it is not what it should be.
        """
        import torch

        spread = self._require(marker)
        found = torch.empty(box.shape, dtype=getattr(torch, spread.dtype))
        for rank, piece in spread.pieces:
            shared = overlap(box, piece.box)
            if shared is not None:
                held = self._shards[rank].tensor(piece)
                region(found, box, shared).copy_(region(held, piece.box, shared))
        return found

    def assemble(self, tree: Any) -> Any:
        """Return a state with whole tensors in place of markers; what was tied is tied.

        Raises:
            CheckpointDamaged: See `read`.
        """
        made: dict[str, Tensor] = {}

        def make(marker: Marker) -> Tensor:
            if marker.key not in made:
                made[marker.key] = self.read(marker, whole(marker.shape))
            self._require(marker)
            return made[marker.key]

        return self._replaced(tree, make)

    def require(self, tree: Any) -> None:
        """Make sure that each marker of a state has its tensor, by the indexes alone.

        Raises:
            CheckpointDamaged: One has none, or one of another shape.
        """
        for state in (tree, *(shard.index.own for shard in self._shards)):
            self._replaced(state, self._require)

    def check(self, tree: Any) -> None:
        """Do the same, and open every file.

        Raises:
            CheckpointDamaged: Something is not as the indexes say.
        """
        self.require(tree)
        for shard in self._shards:
            shard.check()

    def _replaced(self, tree: Any, make: Callable[[Marker], Any]) -> Any:
        try:
            return replaced(tree, make)
        except CheckpointDamaged:
            raise
        except ValueError as error:
            raise CheckpointDamaged(self._name, str(error)) from error

    def _require(self, marker: Marker) -> _Spread:
        found = self._tensors.get(marker.key)
        if found is None and 0 in marker.shape:
            return _Spread(marker.dtype, marker.shape, [])
        if found is None:
            self._refuse(_("no rank has a piece of {path}"), marker.key)
        if (found.dtype, found.shape) != (marker.dtype, marker.shape):
            self._refuse(_("the pieces of {path} are of another dtype or shape"), marker.key)
        return found

    def _gathered(self) -> dict[str, _Spread]:
        """Return the tensors, each of which is there once and whole."""
        found: dict[str, _Spread] = {}
        for rank, shard in enumerate(self._shards):
            for piece in shard.index.pieces:
                spread = found.setdefault(piece.key, _Spread(piece.dtype, piece.global_shape, []))
                if (spread.dtype, spread.shape) != (piece.dtype, piece.global_shape):
                    self._refuse(_("the pieces of {path} are of another dtype or shape"), piece.key)
                spread.pieces.append((rank, piece))
        for key, spread in found.items():
            if not covers_once(spread.shape, [piece.box for _rank, piece in spread.pieces]):
                told = _("the pieces of {path} do not make it up: some is missing, or there twice")
                self._refuse(told, key)
        return found

    def _refuse(self, told: str, path: str) -> NoReturn:
        raise CheckpointDamaged(self._name, told.format(path=shown(path, 100)))
