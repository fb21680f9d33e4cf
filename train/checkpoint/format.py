"""A checkpoint's bytes: the files, the manifest that makes them one, and how both are checked.

A checkpoint is a folder `epoch_N` with

    checkpoint.pth              torch.save of one dict; tensors and builtins only
    checkpoint_metrics.json     the epoch's metrics, as MLflow's own callbacks write them
    manifest.json               the commit record: size and SHA-256 of the others

Nothing here is trusted before it is verified, and nothing is ever executed: manifests are
validated field by field, files are hashed before they are opened, `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from train.errors import CheckpointDamaged, CheckpointError
from train.files import atomic_write
from train.metrics import MONITOR

FORMAT_VERSION = 1
CHECKPOINT_FILE = "checkpoint.pth"
METRICS_FILE = "checkpoint_metrics.json"
MANIFEST_FILE = "manifest.json"
NAME = re.compile(r"epoch_(0|[1-9]\d{0,17})")


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint: name in its folder, size, hash."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The commit record of a checkpoint."""

    epoch: int
    step: int
    attempt: int
    created: str  # ISO 8601, UTC
    kept: bool  # whether the save policy keeps it for good
    metrics: Mapping[str, float | None]  # of the epoch; None where not finite
    files: tuple[FileEntry, ...]

    @property
    def name(self) -> str:
        """The folder of the checkpoint."""
        return f"epoch_{self.epoch}"

    @property
    def score(self) -> float | None:
        """The value that decides which checkpoint is best, or None."""
        return self.metrics.get(MONITOR)

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(entry.bytes for entry in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document."""
        return {"format_version": FORMAT_VERSION, **asdict(self), "files": self._files()}

    def _files(self) -> list[dict[str, Any]]:
        return [asdict(entry) for entry in self.files]

    @classmethod
    def from_dict(cls, document: Any, name: str) -> Manifest:
        """Make a manifest from a JSON document, of which nothing is taken on trust.

        Args:
            document: What the JSON said.
            name: The folder it lies in, which must be the one it names.

        Raises:
            CheckpointDamaged: A field is missing, of a wrong type, or points elsewhere.
            CheckpointError: A newer version of this program wrote it.
        """

        def check(holds: bool, what: str) -> None:
            if not holds:
                raise CheckpointDamaged(name, f"manifest.json has {what}")

        check(isinstance(document, dict), "no object")
        version = document.get("format_version")
        check(_is_count(version), f"format_version {version!r}")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"checkpoint {name} has format version {version}, and this program reads "
                f"{FORMAT_VERSION}: use the version of the program that wrote it"
            )
        for key in ("epoch", "step", "attempt"):
            check(_is_count(document.get(key)), f"{key} {document.get(key)!r}")
        check(_is_time(document.get("created")), f"created {document.get('created')!r}")
        check(isinstance(document.get("kept"), bool), f"kept {document.get('kept')!r}")
        metrics, files = document.get("metrics"), document.get("files")
        check(isinstance(metrics, dict) and all(map(_is_metric, metrics.items())), "bad metrics")
        check(isinstance(files, list) and all(map(_is_file_entry, files)), "bad file entries")
        paths = [entry["path"] for entry in files]
        check(len(set(paths)) == len(paths) and CHECKPOINT_FILE in paths, f"files {paths}")
        manifest = cls(
            epoch=document["epoch"],
            step=document["step"],
            attempt=document["attempt"],
            created=document["created"],
            kept=document["kept"],
            metrics=metrics,
            files=tuple(FileEntry(e["path"], e["bytes"], e["sha256"]) for e in files),
        )
        check(manifest.name == name, f"epoch {manifest.epoch}, which is not this folder's")
        return manifest


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_time(value: object) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def _is_metric(item: tuple[object, object]) -> bool:
    key, value = item
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # Compared, not `math.isfinite`: that raises for an integer too large for a double.
    finite = number and abs(value) <= sys.float_info.max  # type: ignore[arg-type]
    return isinstance(key, str) and (value is None or finite)


def _is_file_entry(entry: object) -> bool:
    """Tell whether `entry` names a plain file directly inside the checkpoint's folder."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("path"), str)
        and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}", entry["path"]) is not None
        and entry["path"] != MANIFEST_FILE
        and _is_count(entry.get("bytes"))
        and isinstance(entry.get("sha256"), str)
        and re.fullmatch(r"[0-9a-f]{64}", entry["sha256"]) is not None
    )


def parse_manifest(text: bytes, name: str) -> Manifest:
    """Read `manifest.json`; see `Manifest.from_dict` for what is raised."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointDamaged(name, f"manifest.json is not JSON ({error})") from error
    return Manifest.from_dict(document, name)


def to_plain(value: Any, where: str = "checkpoint") -> Any:
    """Return `value` with NumPy's numbers and arrays as Python's and torch's.

    Raises:
        CheckpointError: Something is neither a tensor nor a builtin, so that
            `weights_only=True` could not load it again.
    """
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))
    if isinstance(value, Mapping):
        return {
            to_plain(k, f"a key of {where}"): to_plain(v, f"{where}[{k!r}]")
            for k, v in value.items()
        }
    if type(value) in (list, tuple):
        return type(value)(to_plain(v, f"{where}[{i}]") for i, v in enumerate(value))
    raise CheckpointError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, and a checkpoint "
        "holds only tensors and builtins: let its state_dict() return those"
    )


def write_checkpoint(
    folder: Path,
    checkpoint: Mapping[str, Any],
    *,
    attempt: int,
    kept: bool,
    metrics: Mapping[str, float],
) -> Manifest:
    """Write the files of one checkpoint, and the manifest last, into the local `folder`.

    Args:
        folder: Made if need be; files that are there are replaced.
        checkpoint: What `TrainState.capture` returned, and more.
        attempt: The attempt that saves it.
        kept: Whether it stays for good.
        metrics: The epoch's metrics.

    Guarantees:
        Each file is hashed while it is written, once, and fsynced before it has its name.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    plain = to_plain({"format_version": FORMAT_VERSION, **checkpoint})
    finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
    numbers = {**finite, "epoch": plain["epoch"], "global_step": plain["step"]}
    files = (
        _write(folder / CHECKPOINT_FILE, lambda file: torch.save(plain, file)),
        _write(folder / METRICS_FILE, lambda file: _dump(numbers, file)),
    )
    manifest = Manifest(
        epoch=plain["epoch"],
        step=plain["step"],
        attempt=attempt,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        kept=kept,
        metrics=finite,
        files=files,
    )
    _write(folder / MANIFEST_FILE, lambda file: _dump(manifest.to_dict(), file))
    return manifest


def _dump(document: object, file: IO[bytes]) -> None:
    file.write(json.dumps(document, indent=1, allow_nan=False).encode())


class _HashingFile:
    """A file to write to that knows the size and SHA-256 of what went through."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._sha256, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self._sha256.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def _write(path: Path, write: Callable[[Any], None]) -> FileEntry:
    hashing: list[_HashingFile] = []

    def through_hash(file: IO[bytes]) -> None:
        hashing.append(_HashingFile(file))
        write(hashing[0])

    atomic_write(path, through_hash)
    return FileEntry(path.name, hashing[0].bytes, hashing[0].hexdigest())


def verify(folder: Path, manifest: Manifest, name: str) -> None:
    """Compare size and hash of every file with the manifest.

    Raises:
        CheckpointDamaged: A file is missing, or differs.
    """
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file():
            raise CheckpointDamaged(name, f"{entry.path} is missing")
        size = path.stat().st_size
        if size != entry.bytes:
            raise CheckpointDamaged(
                name, f"{entry.path} has {size:,} bytes, its manifest says {entry.bytes:,}"
            )
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != entry.sha256:
            raise CheckpointDamaged(
                name,
                f"{entry.path} has sha256 {found[:12]}…, its manifest says {entry.sha256[:12]}…",
            )


def load_checkpoint(path: Path, name: str) -> dict[str, Any]:
    """Read a `checkpoint.pth` that was verified; only tensors and builtins come out, on the CPU.

    Raises:
        CheckpointDamaged: It is not a checkpoint of this format.
    """
    import torch

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for bytes that are no checkpoint
        found = " ".join(str(error).split())[:160]
        raise CheckpointDamaged(name, f"it cannot be read ({found})") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format_version") != FORMAT_VERSION:
        raise CheckpointDamaged(name, "it holds no checkpoint of this format")
    return checkpoint
