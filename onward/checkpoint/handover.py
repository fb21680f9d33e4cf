"""What the threads of a pipeline hand to each other, and to whom they hand it over."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from onward.checkpoint.content import Content
from onward.checkpoint.manifest import Manifest
from onward.checkpoint.pieces import Piece
from onward.checkpoint.policy import Retention
from onward.checkpoint.staging import MayWait, Staged
from onward.checkpoint.store import CheckpointStore
from onward.metrics import History, Point


@dataclass(frozen=True)
class Timings:
    """What the newest commit cost."""

    stall_seconds: float
    write_seconds: float
    upload_seconds: float
    bytes: int

    def as_metrics(self) -> dict[str, float]:
        """Return them under the names they are published by, without their `timing_prefix`."""
        return {f"checkpoint_{name}": float(v) for name, v in dataclasses.asdict(self).items()}


@dataclass
class Totals:
    """What all checkpoints of an attempt cost, so far."""

    started: float = field(default_factory=time.monotonic)
    num_saved: int = 0  # set aside by training
    num_committed: int = 0  # the others were overtaken, or wait
    stall_seconds: float = 0.0  # that training waited
    write_seconds: float = 0.0
    upload_seconds: float = 0.0
    bytes: int = 0  # committed

    def add(self, timings: Timings) -> None:
        """Count a commit."""
        self.num_committed += 1
        self.write_seconds += timings.write_seconds
        self.upload_seconds += timings.upload_seconds
        self.bytes += timings.bytes


@dataclass
class Spooled:
    """A checkpoint in the spool."""

    manifest: Manifest
    stall_seconds: float
    write_seconds: float

    def timings(self, upload_seconds: float) -> Timings:
        """Return what its commit cost in all."""
        return Timings(self.stall_seconds, self.write_seconds, upload_seconds, self.manifest.bytes)


@dataclass
class Shared:
    """What the threads share; read and changed only while `changed` is held."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    spooled: list[Spooled] = field(default_factory=list)
    uploading: Spooled | None = None
    begun: float = 0.0  # when that upload was, on the monotonic clock
    num_writing: int = 0  # handed over by training, not yet in the spool
    offline: bool = False
    closing: bool = False  # training is over
    ending: Callable[[], None] | None = None  # what comes last, once it is known
    is_left: bool = False  # training waits no more: the rest stays in the spool
    error: BaseException | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be begun."""
        return self.is_left or self.error is not None

    @property
    def ends_now(self) -> bool:
        """Whether what comes last may begin, once the spool is empty."""
        return self.ending is not None and not self.num_writing

    def wait_for_work(self, seconds: float | None) -> bool:
        """Wait that long until something is in the spool or the end may come; tell whether it is.

        The lock of `changed` is held.
        """
        return bool(self.changed.wait_for(self._has_work, seconds))

    def _has_work(self) -> bool:
        return bool(self.spooled) or self.is_over or self.ends_now

    def num_bytes(self) -> int:
        """Return the size of what is in the spool."""
        return sum(spooled.manifest.bytes for spooled in self.spooled)

    def stalled_seconds(self, moved: float) -> float:
        """Return for how long nothing of the upload under way has arrived.

        Args:
            moved: When a file has arrived last, on the monotonic clock.
        """
        return time.monotonic() - max(self.begun, moved) if self.uploading else 0.0

    def take_overtaken(self, publisher: Publishing) -> Sequence[Spooled]:
        """Take out what a newer one makes needless before its upload has begun; return it."""
        stored = publisher.manifests
        # The one under way may be committed already: it must not count twice.
        spooled_manifests = [s.manifest for s in self.spooled]
        waiting = [m for m in spooled_manifests if not any(m.is_same(n) for n in stored)]
        gone = publisher.retention.to_prune([*stored, *waiting])
        taken = [s for s in self.spooled if s.manifest in gone and s is not self.uploading]
        self.spooled = [s for s in self.spooled if s not in taken]
        return taken


@dataclass
class Item:
    """A checkpoint on its way."""

    staged: Staged
    metrics: Mapping[str, float]
    kept: bool
    stall_seconds: float


class Noting(Protocol):
    """What people see of a run, and are to see once it is committed."""

    published: History  # metrics that people see
    tags: dict[str, str]  # what the next commit is to say of the run besides

    def add(self, points: Iterable[Point], order: tuple[int, int] | None = None) -> None:
        """Note metric values, to be published once a checkpoint that holds them is committed."""

    def add_held(self, content: Content) -> None:
        """Note what a committed checkpoint holds and people do not see."""


class Saver(Protocol):
    """Takes checkpoints of a training that goes on."""

    timings: Timings | None

    @property
    def publisher(self) -> Noting:
        """Of what the checkpoints hold."""
        ...

    @property
    def condition(self) -> str:
        """How the way to the store is, in words; "": nothing is to be told."""
        ...

    def check(self) -> None:
        """Raise what has ended saving."""

    def hold_update(self) -> None:
        """Wait, right before the weights change, until they are set aside."""

    def save(
        self,
        state: Mapping[str, Any],
        metrics: Mapping[str, float],
        kept: bool,
        may_wait: MayWait | None = None,
        required: bool = False,
        pieces: Sequence[Piece] | None = None,
    ) -> bool:
        """Save a checkpoint; return whether it is set aside."""


class Publishing(Noting, Protocol):
    """Brings a run's store in line with a checkpoint; each of its steps can be repeated.

    Each raises `StoreUnavailable` where it is to be called again later.
    """

    store: CheckpointStore
    manifests: list[Manifest]  # of the checkpoints in the store
    retention: Retention
    sweeps: bool  # whether folders without a commit are removed

    def commit(self, manifest: Manifest) -> None:
        """Upload the spooled checkpoint, and do all that follows."""

    def settle(self) -> None:
        """Do what follows a commit."""

    def seconds_to_tidy(self) -> float | None:
        """Return in how long `settle` has to be called once more; None: it has not."""

    def tidy(self) -> None:
        """Bring the index up to date and prune, a last time."""

    def refresh_page(self) -> None:
        """Bring what people look at up to date, now and then."""

    def show(self) -> None:
        """Do so now."""

    def refresh_log(self) -> None:
        """Bring the attempt's log up to date, now and then."""

    def upload_log(self) -> bool:
        """Store the attempt's log."""

    def silent_seconds(self) -> float:
        """Return for how long the server has owed an answer."""
