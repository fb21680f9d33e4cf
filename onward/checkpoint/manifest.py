"""The manifest: the commit record of a checkpoint, read from a store that is not trusted."""

from __future__ import annotations

import builtins
import functools
import hashlib
import json
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any, TypeGuard

from onward.errors import CheckpointDamaged, CheckpointError
from onward.metrics import EPOCH, STEP, UNITS
from onward.monitor import UNDECLARED, Monitor
from onward.system.untrusted import is_fingerprint, is_path_part, parse_json, shown
from onward.words.language import _

# 1: no checkpoints inside an epoch; 2: no other monitor, no other parts than model, optimizer and
# scheduler. A version is written only where the one before cannot say it, so that an older program
# can go on with all that it could have made.
READABLE_VERSIONS = (1, 2, 3)
FORMAT_VERSION = 2  # that is written where nothing needs a newer one
ROOT = "checkpoints"  # the folder of all, among the files of a run
CHECKPOINT_FILE = "checkpoint.pth"
METRICS_FILE = "checkpoint_metrics.json"
MANIFEST_FILE = "manifest.json"
DRAFT_FILE = "draft.json"  # a manifest that lacks the files of ranks that bring theirs themselves
NAME = re.compile(r"(?:epoch|global_step)_(?:0|[1-9][0-9]{0,17})")
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}(/part-[0-9]{5})?")
_SHARD_FILE = r"shard-[0-9]{5}(?:-[0-9]{5}\.pth|\.json)"  # of what each rank has; see `index`
_OWN_FILE = re.compile(  # those of a checkpoint; in a local store some may not be whole yet
    rf"(?:{CHECKPOINT_FILE}(?:/part-[0-9]{{5}})?|{METRICS_FILE}|{MANIFEST_FILE}|{DRAFT_FILE}"
    rf"|{_SHARD_FILE})"
    r"(?:\.tmp)?"
)
_LAYOUT = re.compile(r"[a-z][a-z0-9_+]{0,31}")
MAX_WORLD = 100_000  # ranks, which are numbered with five digits


def is_own_file(path: str) -> bool:
    """Tell whether this program puts a file of that path into the folder of a checkpoint.

    >>> [is_own_file(p) for p in ("checkpoint.pth/part-00001", "manifest.json.tmp", "notes.txt")]
    [True, True, False]
    >>> [is_own_file(p) for p in ("shard-00001.json", "shard-00001-00000.pth", "shard-1.json")]
    [True, True, False]
    """
    return _OWN_FILE.fullmatch(path) is not None


def is_layout(value: object) -> bool:
    """Tell whether it may be the name of a layout: how a model is spread over ranks."""
    return isinstance(value, str) and _LAYOUT.fullmatch(value) is not None


def checkpoint_name(content: Mapping[str, Any]) -> str:
    """Return the folder of a checkpoint: named by its epoch, or inside one by its step.

    Args:
        content: A checkpoint, or a manifest as a dict, of any version.
    """
    inside = content.get("epoch_step", 0) or content.get("unit", EPOCH) == STEP
    return f"global_step_{content['step']}" if inside else f"epoch_{content['epoch']}"


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
    epoch_step: int = 0  # steps of the epoch under way; 0 where none is
    attempt: int
    created: str  # ISO 8601, UTC
    kept: bool  # whether the save policy keeps it for good
    metrics: Mapping[str, float | None]  # of the epoch just completed; None where not finite
    files: tuple[FileEntry, ...]
    monitor: Monitor = UNDECLARED  # the metric that decides which is best
    unit: str = EPOCH  # what `epoch` counts: where it is steps, there are no epochs
    world: int = 1  # ranks that trained it
    layout: str = ""  # how the model was spread over them
    format_version: int = FORMAT_VERSION
    # Set as it is committed, see `chain`; what was saved is the same before and after.
    run_id: str | None = field(default=None, compare=False)  # None: of an earlier program
    previous: str | None = field(default=None, compare=False)  # digest of the one before it
    hmac: str | None = field(default=None, compare=False)  # None: not signed

    @functools.cached_property
    def name(self) -> str:
        """The folder of the checkpoint."""
        return checkpoint_name(vars(self))

    @property
    def key(self) -> str:
        """What it is asked for by: its epoch, or inside one its name."""
        return self.name if self.epoch_step or self.unit == STEP else str(self.epoch)

    @functools.cached_property
    def order(self) -> tuple[int, int]:
        """What is newer is greater; an epoch's end comes after its last step."""
        return (self.step, self.epoch)

    @functools.cached_property
    def score(self) -> float | None:
        """The value that decides which checkpoint is best, or None."""
        return self.monitor.score(self.metrics.get(self.monitor.name))

    def is_same(self, other: Manifest) -> bool:
        """Whether it is the same checkpoint, however each is cut into parts."""
        if self.order != other.order:  # at once, since it is asked of each checkpoint of a run
            return False
        return replace(self, files=()) == replace(other, files=())

    @property
    def shard_files(self) -> tuple[FileEntry, ...]:
        """Those in which ranks have their pieces of what is spread over them, and the indexes."""
        return tuple(e for e in self.files if re.fullmatch(_SHARD_FILE, e.path))

    @property
    def indexes(self) -> tuple[FileEntry, ...]:
        """Those that tell what is in the others, one for each rank."""
        return tuple(e for e in self.shard_files if e.path.endswith(".json"))

    @property
    def missing_ranks(self) -> list[int]:
        """Those of which nothing is listed, though each has a part: they bring it themselves."""
        told = {entry.path for entry in self.indexes}
        ranks = range(self.world if self.layout else 0)
        return [rank for rank in ranks if f"shard-{rank:05d}.json" not in told]

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(entry.bytes for entry in self.files)

    @property
    def canonical(self) -> builtins.bytes:
        """The bytes that are hashed and signed: all of it but the signature."""
        document = {k: v for k, v in self.to_dict().items() if k != "hmac"}
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @property
    def digest(self) -> str:
        """SHA-256 of `canonical`: by it the next manifest and the run's tag name this one."""
        return hashlib.sha256(self.canonical).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document."""
        monitor = None if self.monitor == UNDECLARED else str(self.monitor)
        unit = None if self.unit == EPOCH else self.unit
        ranks = {"world": self.world if self.world > 1 else None, "layout": self.layout or None}
        told = {"monitor": monitor, "unit": unit, **ranks, "files": self._files()}
        own = {f.name: getattr(self, f.name) for f in fields(self)}  # `asdict` copies all deeply
        document = {"format_version": self.format_version, **own, **told}
        optional = {"monitor", "unit", *ranks, *COMMIT_FIELDS}
        return {k: v for k, v in document.items() if k not in optional or v is not None}

    def to_json(self) -> builtins.bytes:
        """Return what `manifest.json` holds."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False).encode()

    @functools.cached_property
    def line(self) -> str:
        """The JSON document as an index holds it, which is written again at each commit."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def _files(self) -> list[dict[str, Any]]:
        return [dict(vars(entry)) for entry in self.files]

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
                raise CheckpointDamaged(name, _("manifest.json has {what}").format(what=what))

        check(isinstance(document, dict), _("no object"))
        version = document.get("format_version")
        check(is_count(version), f"format_version {_in_short(version)}")
        require_known(version, name)
        document = {**document, **({"epoch_step": 0, "format_version": 2} if version == 1 else {})}
        monitor, unit = _monitor_of(document), document.get("unit", EPOCH)
        check(monitor is not None, f"monitor {_in_short(document.get('monitor'))}")
        check(unit in UNITS, f"unit {_in_short(unit)}")
        world, layout = document.get("world", 1), document.get("layout", "")
        check(_is_world(world), f"world {_in_short(world)}")
        check(layout == "" or is_layout(layout), f"layout {_in_short(layout)}")
        for key in ("epoch", "step", "epoch_step", "attempt"):
            check(is_count(document.get(key)), f"{key} {_in_short(document.get(key))}")
        created, kept = (document.get(key) for key in ("created", "kept"))
        check(_is_time(created), f"created {_in_short(created)}")
        check(isinstance(kept, bool), f"kept {_in_short(kept)}")
        for key, is_right in COMMIT_FIELDS.items():  # an earlier program did not write them
            value = document.get(key)
            check(value is None or is_right(value), f"{key} {_in_short(value)}")
        metrics, files = document.get("metrics"), document.get("files")
        check(isinstance(metrics, dict) and all(map(_is_metric, metrics.items())), _("bad metrics"))
        check(isinstance(files, list) and all(map(is_file_entry, files)), _("bad file entries"))
        paths = [entry["path"] for entry in files]
        check(_make_one_checkpoint(paths), f"files {_in_short(paths)}")
        manifest = cls(
            epoch=document["epoch"],
            step=document["step"],
            epoch_step=document["epoch_step"],
            attempt=document["attempt"],
            created=created,
            kept=kept,
            metrics=metrics,
            files=tuple(FileEntry(e["path"], e["bytes"], e["sha256"]) for e in files),
            monitor=monitor or UNDECLARED,
            unit=unit,
            world=world,
            layout=layout,
            format_version=document["format_version"],
            **{key: document.get(key) for key in COMMIT_FIELDS},
        )
        wrong = _("{name}, which is not this folder's name")
        check(manifest.name == name, wrong.format(name=manifest.name))
        return manifest


def require_known(version: int, name: str, known: Collection[int] = READABLE_VERSIONS) -> None:
    """Refuse a document of a version of the format that this program does not read.

    Raises:
        CheckpointError: It is of another one.
    """
    if version not in known:
        raise CheckpointError(
            _(
                "checkpoint {name} has format version {version}, and this program reads up to "
                "{newest}: use the version of the program that wrote it"
            ).format(name=name, version=version, newest=READABLE_VERSIONS[-1])
        )


def _in_short(value: object) -> str:
    return shown(repr(value), 60)


def _monitor_of(document: Mapping[str, Any]) -> Monitor | None:
    """Return the monitor that a manifest names, None where it names none that can be."""
    text = document.get("monitor")
    if text is None:
        return UNDECLARED
    try:
        return Monitor.parse(text) if isinstance(text, str) else None
    except ValueError:
        return None


def is_count(value: object) -> TypeGuard[int]:
    """Tell whether it is a whole number that is not negative, of at most 63 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_world(value: object) -> bool:
    return is_count(value) and 0 < value <= MAX_WORLD


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


def _make_one_checkpoint(paths: list[str]) -> bool:
    """Tell whether the files are distinct, with one `checkpoint.pth`, or all parts of one."""
    own = sorted(p for p in paths if p.split("/")[0] == CHECKPOINT_FILE)
    parts = [f"{CHECKPOINT_FILE}/part-{i:05d}" for i in range(len(own))]
    return len(set(paths)) == len(paths) and own in ([CHECKPOINT_FILE], parts) and bool(own)


def is_file_entry(entry: object) -> bool:
    """Tell whether `entry` names a file in the checkpoint's folder, or a part of one."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("path"), str)
        and _PATH.fullmatch(entry["path"]) is not None
        and entry["path"] not in (MANIFEST_FILE, DRAFT_FILE)
        and is_count(entry.get("bytes"))
        and is_fingerprint(entry.get("sha256"))
    )


COMMIT_FIELDS = {"run_id": is_path_part, "previous": is_fingerprint, "hmac": is_fingerprint}


def parse_manifest(text: bytes, name: str) -> Manifest:
    """Read `manifest.json`; see `Manifest.from_dict` for what is raised."""
    try:
        document = parse_json(text)
    except ValueError as error:
        raise CheckpointDamaged(
            name, _("manifest.json is not JSON ({error})").format(error=error)
        ) from error
    return Manifest.from_dict(document, name)
