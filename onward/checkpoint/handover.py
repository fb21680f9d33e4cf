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
from onward.checkpoint.spool import Spool
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
    upload_seconds: float = 0.0

    def timings(self) -> Timings:
        """Return what its commit cost in all."""
        seconds = (self.stall_seconds, self.write_seconds, self.upload_seconds)
        return Timings(*seconds, self.manifest.bytes)


@dataclass
class Shared:
    """What the threads share; read and changed only while `changed` is held."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    spooled: list[Spooled] = field(default_factory=list)
    uploading: Spooled | None = None  # one of them
    committed: list[Spooled] = field(default_factory=list)  # but not yet told of
    begun: float = 0.0  # when that upload was, on the monotonic clock
    num_writing: int = 0  # handed over by training, not yet in the spool
    offline: bool = False
    closing: bool = False  # training is over
    ending: Callable[[], None] | None = None  # what comes last, once it is known
    is_left: bool = False  # training waits no more: the rest stays in the spool
    is_urgent: bool = False  # training waits for room in the spool
    error: BaseException | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be begun."""
        return self.is_left or self.error is not None

    @property
    def ends_now(self) -> bool:
        """Whether what comes last may begin, once the spool is empty."""
        return self.ending is not None and not self.num_writing

    @property
    def num_waiting(self) -> int:
        """How many checkpoints are in the spool."""
        return len(self.spooled) + len(self.committed)

    def wait_for_work(self, pause_seconds: Callable[[], float]) -> None:
        """Wait until something is in the spool and may be brought, or the end may come.

        The lock of `changed` is held.

        Args:
            pause_seconds: How long what is there may wait for more.
        """

        def is_over() -> bool:
            return self.is_over or self.ends_now

        self.changed.wait_for(lambda: self.spooled or is_over())
        self.changed.wait_for(
            lambda: self.closing or self.is_urgent or is_over(), max(0.0, pause_seconds())
        )

    def begin_upload(self, newest: tuple[int, int]) -> Spooled | None:
        """Take the oldest that waits, to be brought now; None: it is newer than `newest`."""
        with self.changed:
            waiting = [s for s in self.spooled if s.manifest.order <= newest and not self.is_over]
            self.uploading, self.begun = next(iter(waiting), None), time.monotonic()
            return self.uploading

    def has_committed(self, spooled: Spooled) -> None:
        """Note that it is in the store, so that it is overtaken no more."""
        with self.changed:
            self.spooled = [other for other in self.spooled if other is not spooled]
            self.uploading = None
            self.committed.append(spooled)

    def forget_committed(self) -> None:
        """Note that what was committed is told of, and gone from the spool."""
        with self.changed:
            self.committed = []
            self.changed.notify_all()

    def num_bytes(self) -> int:
        """Return the size of what is in the spool."""
        return sum(spooled.manifest.bytes for spooled in (*self.spooled, *self.committed))

    def stalled_seconds(self, moved: float) -> float:
        """Return for how long nothing of the upload under way has arrived.

        Args:
            moved: When a file has arrived last, on the monotonic clock.
        """
        is_busy = self.uploading or self.committed
        return time.monotonic() - max(self.begun, moved) if is_busy else 0.0

    def drop_overtaken(self, publisher: Publishing, spool: Spool) -> None:
        """Remove what a newer one makes needless before its upload has begun."""
        stored = publisher.manifests
        # The one under way may be committed already: it must not count twice.
        spooled_manifests = [s.manifest for s in self.spooled]
        waiting = [m for m in spooled_manifests if not any(m.is_same(n) for n in stored)]
        gone = publisher.retention.to_prune([*stored, *waiting])
        taken = [s for s in self.spooled if s.manifest in gone and s is not self.uploading]
        self.spooled = [s for s in self.spooled if s not in taken]
        for overtaken in taken:
            spool.remove(overtaken.manifest.name)


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

    @property
    def timings(self) -> Timings | None:
        """What the newest commit cost."""
        ...

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

    def put(self, manifest: Manifest) -> None:
        """Upload it: then it is committed."""

    def settle(self) -> None:
        """Do what follows one commit, or several."""

    def tidy(self) -> None:
        """Do what a store has refused, a last time."""

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
