"""A checkpoint's bytes: how they are written, checked, and read.

A checkpoint is a folder `epoch_N`, or inside an epoch `global_step_N`, with

    checkpoint.pth              torch.save of one dict; tensors and builtins only; a large one
                                is a folder of part-00000, part-00001, …
    checkpoint_metrics.json     the epoch's metrics, as MLflow's own callbacks write them
    manifest.json               the commit record: size and SHA-256 of the others

Nothing here is trusted before it is verified, and nothing is ever executed: manifests are
validated field by field, files are hashed before they are opened, `weights_only=True`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pickle
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from onward.checkpoint.content import Content
from onward.checkpoint.manifest import (
    CHECKPOINT_FILE,
    FORMAT_VERSION,
    MANIFEST_FILE,
    METRICS_FILE,
    READABLE_VERSIONS,
    FileEntry,
    Manifest,
)
from onward.errors import CheckpointDamaged, CheckpointError
from onward.metrics import EPOCH
from onward.monitor import UNDECLARED, Monitor
from onward.system.files import atomic_folder, size_in_words
from onward.system.pickled import MAX_PICKLE_BYTES
from onward.system.tensors import load_tensors
from onward.words.language import _

PART_BYTES = 256 << 20
_CHUNK_BYTES = 1 << 20


def to_plain(
    value: Any, where: str = "checkpoint", tensor: Callable[[str, Any], Any] | None = None
) -> Any:
    """Return `value` with NumPy's numbers and arrays as Python's and torch's.

    Args:
        value: Tensors, numbers, strings, nested in dicts, lists and tuples.
        where: The name of `value`, for messages.
        tensor: Maps (where, tensor) to what stands for the tensor; default: the tensor.

    Raises:
        CheckpointError: Something is neither a tensor nor a builtin, so that
            `weights_only=True` could not load it again.
    """
    import numpy as np
    import torch

    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))
    if isinstance(value, torch.Tensor):
        return value.detach() if tensor is None else tensor(where, value)
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, Mapping):
        return {
            to_plain(k, f"a key of {where}"): to_plain(v, f"{where}[{k!r}]", tensor)
            for k, v in value.items()
        }
    if type(value) in (list, tuple):
        return type(value)(to_plain(v, f"{where}[{i}]", tensor) for i, v in enumerate(value))
    raise CheckpointError(
        _(
            "{where} is a {kind}, and a checkpoint holds only tensors and builtins: "
            "let its state_dict() return those"
        ).format(where=where, kind=f"{type(value).__module__}.{type(value).__qualname__}")
    )


def write_checkpoint(
    folder: Path,
    checkpoint: Mapping[str, Any],
    *,
    attempt: int,
    kept: bool,
    metrics: Mapping[str, float],
    part_bytes: int = PART_BYTES,
) -> Manifest:
    """Write the files of one checkpoint, and its manifest, as the local folder `folder`.

    Args:
        folder: The final name; replaced if it is there.
        checkpoint: What `Content.to_dict` returned.
        attempt: The attempt that saves it.
        kept: Whether it stays for good.
        metrics: Those of the epoch just completed; inside an epoch there are none.
        part_bytes: A larger `checkpoint.pth` becomes a folder of parts of this size.

    Raises:
        OSError: The disk is full, or cannot be written.
        CheckpointError: It would be too large to be read again, but for its tensors.

    Guarantees:
        Each byte is written once, and hashed while it is. The folder has its name only when all
        of it is on disk.
    """
    import torch

    plain = to_plain(upgraded(checkpoint))
    _require_readable(plain)
    finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
    numbers = {**finite, "epoch": plain["epoch"], "global_step": plain["step"]}
    with atomic_folder(folder) as temporary:
        parts = _PartWriter(temporary, CHECKPOINT_FILE, part_bytes)
        try:
            torch.save(plain, parts)  # type: ignore[arg-type]
        except RuntimeError:  # what torch makes of an error in our write
            if parts.error is not None:
                raise parts.error from None
            raise
        files = parts.close()
        small = _PartWriter(temporary, METRICS_FILE, part_bytes)
        small.write(json.dumps(numbers, indent=1, allow_nan=False).encode())
        manifest = Manifest(
            epoch=plain["epoch"],
            step=plain["step"],
            epoch_step=plain["epoch_step"],
            attempt=attempt,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            kept=kept,
            metrics=finite,
            files=(*files, *small.close()),
            monitor=Monitor.parse(plain["monitor"]) if "monitor" in plain else UNDECLARED,
            unit=plain.get("unit", EPOCH),
            format_version=plain["format_version"],
        )
        (temporary / MANIFEST_FILE).write_bytes(manifest.to_json())
    return manifest


class _Measure(pickle.Pickler):
    """Counts the bytes of a pickle, in which a tensor is some 200, whatever its size."""

    def __init__(self) -> None:
        self.num_bytes = self._num_tensors = 0
        super().__init__(self, protocol=2)  # as torch.save

    def write(self, data: bytes) -> int:
        """Count what is written."""
        self.num_bytes += len(data)
        return len(data)

    def persistent_id(self, value: Any) -> int | None:
        """Leave tensors out, but for what the pickle says of them."""
        import torch

        if not isinstance(value, torch.Tensor):
            return None
        self.num_bytes += 200
        self._num_tensors += 1
        return self._num_tensors


def _require_readable(plain: Mapping[str, Any]) -> None:
    """Refuse what no reader would take, while the one before is still the newest."""
    measure = _Measure()
    measure.dump(plain)
    if measure.num_bytes > MAX_PICKLE_BYTES:
        raise CheckpointError(
            _("the state has {size} beside its tensors, and at most {most} are read again: put "
              "long lists of numbers, such as a replay buffer, into tensors or arrays")
            .format(
                size=size_in_words(measure.num_bytes), most=size_in_words(MAX_PICKLE_BYTES)
            )
        )  # fmt: skip


def cut_again(folder: Path, manifest: Manifest, target: Path, part_bytes: int) -> Manifest:
    """Write a checkpoint's files once more as the folder `target`, in parts of another size.

    Raises:
        OSError: The disk is full, or cannot be written.
        CheckpointDamaged: A file is not what the manifest says.
    """
    with atomic_folder(target) as temporary:
        writer = _PartWriter(temporary, CHECKPOINT_FILE, part_bytes)
        others = []
        for entry in sorted(manifest.files, key=lambda e: e.path):
            verify_file(folder, entry, manifest.name)
            if entry.path.split("/")[0] != CHECKPOINT_FILE:
                shutil.copyfile(folder / entry.path, temporary / entry.path)
                others.append(entry)
                continue
            with (folder / entry.path).open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    writer.write(chunk)
        cut = dataclasses.replace(manifest, files=(*writer.close(), *others))
        (temporary / MANIFEST_FILE).write_bytes(cut.to_json())
    return cut


class _PartWriter:
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
        view = memoryview(data).cast("B")
        try:
            for start in range(0, len(view), _CHUNK_BYTES):
                self._write_chunk(view[start : start + _CHUNK_BYTES])
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
        self._file.flush()

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
    if size != entry.bytes:
        raise CheckpointDamaged(
            name,
            _("{path} has {size:,} bytes, its manifest says {expected:,}").format(
                path=entry.path, size=size, expected=entry.bytes
            ),
        )
    found = sha256
    if found is None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != entry.sha256:
        raise CheckpointDamaged(
            name,
            _("{path} has sha256 {found}…, its manifest says {expected}…").format(
                path=entry.path, found=found[:12], expected=entry.sha256[:12]
            ),
        )


def load_checkpoint(folder: Path, manifest: Manifest, name: str) -> dict[str, Any]:
    """Read a checkpoint that was verified; only tensors and builtins come out, on the CPU.

    Raises:
        CheckpointDamaged: It is not a checkpoint of this format.
    """
    own = sorted(e.path for e in manifest.files if e.path.split("/")[0] == CHECKPOINT_FILE)
    checkpoint = load_tensors([folder / path for path in own], name)
    if not isinstance(checkpoint, dict) or not is_readable(checkpoint):
        raise CheckpointDamaged(name, _("it holds no checkpoint of this format"))
    return upgraded(checkpoint)


def load_content(folder: Path, manifest: Manifest, name: str) -> Content:
    """Read a checkpoint that was verified, as `load_checkpoint`, from which a run can go on.

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
    for key in ("epoch", "step", "epoch_step", "monitor", "unit"):
        found, expected = getattr(content, key), getattr(manifest, key)
        if found != expected:
            raise CheckpointDamaged(
                name,
                _("it holds {key} {found}, its manifest says {expected}").format(
                    key=key, found=found, expected=expected
                ),
            )
    return content


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
