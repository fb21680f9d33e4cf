"""A checkpoint's bytes: how they are written, checked, and read.

A checkpoint is a folder `epoch_N`, or inside an epoch `global_step_N`, with

    checkpoint.pth              torch.save of one dict; tensors and builtins only; a large one
                                is a folder of part-00000, part-00001, …
    checkpoint_metrics.json     the epoch's metrics, as MLflow's own callbacks write them
    shard-00001-00000.pth, …    of several ranks: tensors of which each has a piece; see `pieces`
    shard-00001.json            which pieces those of rank 1 are
    manifest.json               the commit record: size and SHA-256 of the others

Nothing here is trusted before it is verified, and nothing is ever executed: manifests are
validated field by field, files are hashed before they are opened, `weights_only=True`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from onward.checkpoint.content import Content
from onward.checkpoint.hashed import PART_BYTES, PartWriter, verify_file
from onward.checkpoint.index import index_file
from onward.checkpoint.manifest import (
    CHECKPOINT_FILE,
    FORMAT_VERSION,
    MANIFEST_FILE,
    METRICS_FILE,
    READABLE_VERSIONS,
    FileEntry,
    Manifest,
)
from onward.checkpoint.pieces import Marker, replaced
from onward.checkpoint.plain import require_readable, to_plain
from onward.checkpoint.shards import Shard, Shards, read_index
from onward.errors import CheckpointDamaged
from onward.metrics import EPOCH
from onward.monitor import UNDECLARED, Monitor
from onward.system.files import atomic_folder
from onward.system.streams import chunks_of
from onward.system.tensors import load_tensors
from onward.system.untrusted import shown
from onward.words.language import _


class Listed(Protocol):
    """Files that were written, as a manifest lists them."""

    @property
    def entries(self) -> Sequence[FileEntry]:
        """Each with size and hash."""
        ...


def write_checkpoint(
    folder: Path,
    checkpoint: Mapping[str, Any],
    *,
    attempt: int,
    kept: bool,
    metrics: Mapping[str, float],
    part_bytes: int = PART_BYTES,
    shard: Callable[[Path], Listed] | None = None,
) -> Manifest:
    """Write the files of one checkpoint, and its manifest, as the local folder `folder`.

    Args:
        folder: The final name; replaced if it is there.
        checkpoint: What `Content.to_dict` returned.
        attempt: The attempt that saves it.
        kept: Whether it stays for good.
        metrics: Those of the epoch just completed; inside an epoch there are none.
        part_bytes: A larger `checkpoint.pth` becomes a folder of parts of this size.
        shard: Writes what this rank has of tensors that are spread into the folder it is given, by
            `add_shard`, or all ranks have. What it does not list is added at the commit.

    Raises:
        OSError: The disk is full, or cannot be written.
        CheckpointError: It would be too large to be read again, but for its tensors.

    Guarantees:
        Each byte is written once, and hashed while it is. The folder has its name only when all
        of it is on disk.
    """
    plain = to_plain(upgraded(checkpoint))
    assert shard is None or plain.get("layout"), "a program that knows no pieces would take it"
    require_readable(plain)
    finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
    numbers = {**finite, "epoch": plain["epoch"], "global_step": plain["step"]}
    with atomic_folder(folder) as temporary:
        parts = PartWriter(temporary, CHECKPOINT_FILE, part_bytes)
        files = parts.save(plain)
        small = PartWriter(temporary, METRICS_FILE, part_bytes)
        small.write(json.dumps(numbers, indent=1, allow_nan=False).encode())
        index = shard(temporary) if shard is not None else None
        manifest = Manifest(
            epoch=plain["epoch"],
            step=plain["step"],
            epoch_step=plain["epoch_step"],
            attempt=attempt,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            kept=kept,
            metrics=finite,
            files=(*files, *small.close(), *(index.entries if index is not None else ())),
            monitor=Monitor.parse(plain["monitor"]) if "monitor" in plain else UNDECLARED,
            unit=plain.get("unit", EPOCH),
            world=plain.get("world", 1),
            layout=plain.get("layout", ""),
            format_version=plain["format_version"],
        )
        (temporary / MANIFEST_FILE).write_bytes(manifest.to_json())
    return manifest


def cut_again(folder: Path, manifest: Manifest, target: Path, part_bytes: int) -> Manifest:
    """Write a checkpoint's files once more as the folder `target`, in parts of another size.

    Of the ranks' files those that the manifest lists.

    Raises:
        OSError: The disk is full, or cannot be written.
        CheckpointDamaged: A file is not what the manifest says.
    """
    with atomic_folder(target) as temporary:
        files = list(_shards_cut_again(folder, manifest, temporary, part_bytes))
        entries = sorted(set(manifest.files) - set(manifest.shard_files), key=lambda e: e.path)
        own = [entry for entry in entries if entry.path.split("/")[0] == CHECKPOINT_FILE]
        for entry in entries:
            verify_file(folder, entry, manifest.name)
            if entry not in own:
                shutil.copyfile(folder / entry.path, temporary / entry.path)
                files.append(entry)
        if own:  # ranks but the first have none
            writer = PartWriter(temporary, CHECKPOINT_FILE, part_bytes)
            for entry in own:
                with (folder / entry.path).open("rb") as file:
                    for chunk in chunks_of(file):
                        writer.write(chunk)
            files = [*writer.close(), *files]
        cut = dataclasses.replace(manifest, files=tuple(files))
        (temporary / MANIFEST_FILE).write_bytes(cut.to_json())
    return cut


def _shards_cut_again(
    folder: Path, manifest: Manifest, target: Path, part_bytes: int
) -> Iterator[FileEntry]:
    entries = {entry.path: entry for entry in manifest.shard_files}
    for rank in range(manifest.world):
        if index_file(rank) in entries:
            index = read_index(folder, entries[index_file(rank)], rank, manifest.name)
            yield from Shard(folder, index, manifest.name).cut_into(target, part_bytes).entries


def checkpoint_files(folder: Path, manifest: Manifest) -> Sequence[Path]:
    """Return `checkpoint.pth`, or the parts in order where it is cut and they were not joined."""
    whole = folder / CHECKPOINT_FILE
    own = sorted(e.path for e in manifest.files if e.path.split("/")[0] == CHECKPOINT_FILE)
    return [whole] if whole.is_file() else [folder / path for path in own]


def load_checkpoint(folder: Path, manifest: Manifest, name: str) -> dict[str, Any]:
    """Read a checkpoint that was verified; only tensors and builtins come out, on the CPU.

    Raises:
        CheckpointDamaged: It is not a checkpoint of this format.
    """
    checkpoint = load_tensors(checkpoint_files(folder, manifest), name)
    if not isinstance(checkpoint, dict) or not is_readable(checkpoint):
        raise CheckpointDamaged(name, _("it holds no checkpoint of this format"))
    return upgraded(checkpoint)


def load_whole(folder: Path, manifest: Manifest, name: str) -> dict[str, Any]:
    """Read a checkpoint that was verified, with whole tensors where ranks have pieces of them.

    Raises:
        CheckpointDamaged: It is not a checkpoint of this format.
    """
    checkpoint = load_checkpoint(folder, manifest, name)
    if not manifest.shard_files:
        return checkpoint
    whole = Shards(folder, manifest, name, is_verified=True).assemble(checkpoint)
    return {key: value for key, value in whole.items() if key not in ("world", "layout")}


def load_content(folder: Path, manifest: Manifest, name: str, is_whole: bool = True) -> Content:
    """Read a checkpoint that was verified, as `load_checkpoint`, from which a run can go on.

    Args:
        folder: Where it lies.
        manifest: What was committed.
        name: What it is called in messages.
        is_whole: Whether to put tensors together that are spread over ranks, as if one process had
            saved it; else a marker stands for each of them.

    Raises:
        CheckpointDamaged: It is none, lacks what a run needs, or is not what its manifest says.
    """
    checkpoint = load_checkpoint(folder, manifest, name)
    for key in ("config", "data"):
        if not isinstance(checkpoint.get(key), dict):
            raise CheckpointDamaged(name, _("it lacks {key}").format(key=key))
    for key in ("history", "rng"):
        if key not in checkpoint:
            raise CheckpointDamaged(name, _("it lacks {key}").format(key=key))
    try:
        content = Content.from_dict(checkpoint)
    except (
        TypeError, ValueError, KeyError, AttributeError, RuntimeError, OverflowError,
    ) as error:  # fmt: skip
        found = " ".join(f"{type(error).__name__}: {error}".split())[:100]
        told = _("what it holds cannot be read ({found})").format(found=found)
        raise CheckpointDamaged(name, told) from error
    if not isinstance(content.data.get("fingerprint"), str):
        raise CheckpointDamaged(name, _("it lacks {key}").format(key="data"))
    for key in ("epoch", "step", "epoch_step", "monitor", "unit", "world", "layout"):
        found, expected = getattr(content, key), getattr(manifest, key)
        if found != expected:
            raise CheckpointDamaged(
                name,
                _("it holds {key} {found}, its manifest says {expected}").format(
                    key=key, found=found, expected=expected
                ),
            )
    if manifest.shard_files and not is_whole:
        return content
    return _put_together(content, folder, manifest, name)


def _put_together(content: Content, folder: Path, manifest: Manifest, name: str) -> Content:
    """Return it as one process would have saved it."""
    if not manifest.shard_files:
        try:
            if content.layout:  # else there are none
                replaced(content.parts, _refuse_marker)
        except ValueError as error:
            raise CheckpointDamaged(name, str(error)) from error
        return content
    shards = Shards(folder, manifest, name, is_verified=True)
    return dataclasses.replace(content, parts=shards.assemble(content.parts), world=1, layout="")


def _refuse_marker(marker: Marker) -> None:
    told = _("no rank has a piece of {path}")
    raise ValueError(told.format(path=shown(marker.key, 100)))


def is_readable(checkpoint: Mapping[str, Any]) -> bool:
    """Tell whether it is of a version that this program ever wrote."""
    version = checkpoint.get("format_version")
    return type(version) is int and version in READABLE_VERSIONS


def upgraded(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint of version 1, or of none yet, as one of version 2; others as they are."""
    if checkpoint.get("format_version", 1) > 1:
        return dict(checkpoint)
    inside_an_epoch = {"epoch_step": 0, "epoch_sums": {}, "epoch_seconds": 0.0}  # since version 2
    return {**inside_an_epoch, **checkpoint, "format_version": FORMAT_VERSION}
