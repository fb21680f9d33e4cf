"""Whether an attempt is alive: it says so on the server, and others look before they take over.

Liveness is judged by seeing the heartbeat change, or by looking for the process where it is on
this machine; never by comparing the clocks of two machines.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from onward.attempts.attempt import Attempt
from onward.errors import RunNotUsable, StoreUnavailable, Superseded
from onward.metrics import Point
from onward.system import environment, processes
from onward.system.system_metrics import SystemMetrics
from onward.system.untrusted import parse_json
from onward.tracking.client import MAX_TAG_CHARS, Tracking, now_ms
from onward.tracking.names import HEARTBEAT_TAG
from onward.tracking.record import RunRecord
from onward.words.language import _

log = logging.getLogger(__name__)

BEAT_SECONDS = 15.0
LEASE_SECONDS = 60.0  # without a beat for so long an attempt is taken for dead
LOOK_SECONDS = 2.0  # between two looks while the lease runs out
MAX_WAITING_POINTS = 100_000  # system metrics kept while the server is away: days
MAX_NUMBER = 1e15  # in a beat: no time, ID or count is larger


@dataclasses.dataclass(frozen=True)
class Beat:
    """What a heartbeat says of the attempt and its process."""

    attempt: int
    number: int
    time: float  # of its machine's clock, to show, not to compare
    host: str
    machine: str
    pid: int
    started: float
    progress: Mapping[str, Any]  # newest epoch and its numbers, committed or not

    @classmethod
    def of_this_process(cls, attempt: int, number: int, progress: Mapping[str, Any]) -> Beat:
        """Return the beat of that number; of a metric it tells the value as a plain number."""
        where = (environment.hostname(), processes.machine(), *processes.this())
        told = {k: v if isinstance(v, int) else float(v) for k, v in progress.items()}
        return cls(attempt, number, time.time(), *where, told)

    def to_tag(self) -> dict[str, str]:
        """Return the tag that shows it; metrics that would not fit are left out, the last first."""
        shown, progress = dataclasses.asdict(self), dict(self.progress)
        while len(text := json.dumps(shown | {"progress": progress})) > MAX_TAG_CHARS:
            progress.popitem()
        return {HEARTBEAT_TAG: text}

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Beat | None:
        """Return the newest one of a run, None if there is none that can be read.

        Whoever may write to the server can write anything there: each field is of its type, and
        each number can be calculated with.
        """
        try:
            beat = cls(**parse_json(tags[HEARTBEAT_TAG]))
            words = (beat.host, beat.machine)
            numbers = (beat.attempt, beat.number, beat.time, beat.pid, beat.started)
            kinds = (int, int, int | float, int, int | float)
            fits = (
                all(isinstance(word, str) for word in words)
                and all(isinstance(n, kind) for n, kind in zip(numbers, kinds, strict=True))
                and not any(isinstance(n, bool) for n in numbers)
                and all(0 <= n < MAX_NUMBER for n in numbers)
                and isinstance(beat.progress, Mapping)
            )
            return beat if fits else None
        except (KeyError, ValueError, TypeError):
            return None


class Heartbeat:
    """Says every BEAT_SECONDS that the attempt is alive, and what its machine does.

    Args:
        attempt: The attempt.
        progress: Returns what is worth telling of the training.
        on_superseded: Called once a later attempt has the run.
        others: Returns what other machines do that train with this one, by name.
    """

    def __init__(
        self,
        attempt: Attempt,
        progress: Callable[[], Mapping[str, Any]],
        on_superseded: Callable[[Superseded], None],
        others: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self._attempt, self._progress, self._on_superseded = attempt, progress, on_superseded
        self._others = others
        self._system = SystemMetrics()
        self._points: list[Point] = []  # sampled, not yet published
        self._number = 0
        self._lock = threading.Lock()  # one at a time publishes
        self._stopped = threading.Event()
        # A daemon: a server that never answers must not keep the process from ending.
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Beat no more. Does not wait: a beat under way may still be answered."""
        self._stopped.set()

    def waiting(self) -> list[Point]:
        """Return the system metrics that are not published."""
        return list(self._points)

    def publish(self) -> None:
        """Publish the system metrics that wait, with the run that stands for the attempt.

        If somebody deleted that run, there is nowhere to show them.

        Raises:
            StoreUnavailable: Call again later.
        """
        with self._lock:
            points = list(self._points)
            try:
                self._attempt.tracking.log_points(self._attempt.child_id, points)
            except RunNotUsable as error:
                log.debug("%s", error)
            del self._points[: len(points)]

    def _beat_on(self) -> None:
        while not self._stopped.wait(BEAT_SECONDS if self._number else 0.0):
            self._number += 1
            self._sample()
            if self._stopped.is_set():
                return
            try:
                self._beat()
            except Superseded as error:
                self._on_superseded(error)
                return
            # That the store is away is told by those who wait for it; and no fault in what a
            # beat tells may end the beats, since without them the run would be taken for dead.
            except Exception as error:
                log.debug("beat %d: %s", self._number, error)

    def _sample(self) -> None:
        now, found = now_ms(), self._system.sample()
        try:
            found = {**found, **self._others()}
        except Exception as error:  # of whatever kind: a beat waits for nothing that others say
            log.debug("beat %d: %s", self._number, error)
        for key, value in found.items():
            self._points.append(Point(key, self._number, now, value))
        del self._points[:-MAX_WAITING_POINTS]

    def _beat(self) -> None:
        attempt = self._attempt
        attempt.check_lease()
        beat = Beat.of_this_process(attempt.number, self._number, self._progress())
        attempt.tracking.set_tags(attempt.run_id, beat.to_tag())
        self.publish()


def wait_until_free(tracking: Tracking, record: RunRecord, take_over: bool) -> RunRecord:
    """Make sure that no living attempt works on the run.

    Args:
        tracking: The server.
        record: The run, just read.
        take_over: Do not wait for an attempt on another machine that may be alive.

    Returns:
        `record`, or where this took time the run as it is now.

    Raises:
        RunNotUsable: One does; the message says where.
    """
    if not _is_open(tracking, record):
        return record
    beat = _beat_of_newest(tracking, record)
    if beat is not None and beat.machine == processes.machine():
        if processes.is_alive(beat.pid, beat.started):
            raise RunNotUsable(
                record.run_id,
                _(
                    "is being trained by process {pid} on this machine (attempt {attempt}): "
                    "wait for it, stop it, or fork with fork=true"
                ).format(pid=beat.pid, attempt=beat.attempt),
            )
        return record
    if take_over:
        return record
    host = beat.host if beat is not None else _("a machine that it does not name")
    log.info(
        _(
            "Run '%s' is RUNNING on %s: waiting %.0f s to see whether it still is "
            "(take_over=true does not wait)"
        ),
        record.run_id, host, LEASE_SECONDS,
    )  # fmt: skip
    return _watch(tracking, record, host)


def _is_open(tracking: Tracking, record: RunRecord) -> bool:
    """Tell whether the newest attempt has not said that it ended; it may just have been claimed."""
    if _is_begun(record):
        return bool(record.attempts) and record.status == "RUNNING"
    child = _newest_child(tracking, record)
    return child is None or child.status == "RUNNING"


def _beat_of_newest(tracking: Tracking, record: RunRecord) -> Beat | None:
    """Return the heartbeat of the newest attempt; before its first, what it said as it claimed."""
    if _is_begun(record):
        return Beat.from_tags(record.tags)
    child = _newest_child(tracking, record)
    return Beat.from_tags(child.tags) if child is not None else None


def _is_begun(record: RunRecord) -> bool:
    """Tell whether the newest attempt is more than claimed, as far as is known."""
    beat = Beat.from_tags(record.tags)
    return beat is None or beat.attempt >= record.attempts


def _newest_child(tracking: Tracking, record: RunRecord) -> RunRecord | None:
    """Return the run that stands for the newest attempt; None where there is none any more."""
    child_id = record.child_of(record.attempts)
    try:
        return tracking.get_run(child_id) if child_id else None
    except RunNotUsable:  # somebody deleted it
        return None


def _watch(tracking: Tracking, record: RunRecord, host: str) -> RunRecord:
    """Return the run once the lease has run out, or it was closed.

    Raises:
        RunNotUsable: An attempt is alive, or another process has taken the run.
    """
    seen = (record.attempts, record.tags.get(HEARTBEAT_TAG))
    ends = time.monotonic() + LEASE_SECONDS
    while True:
        time.sleep(LOOK_SECONDS)
        try:
            now = tracking.get_run(record.run_id)
        except StoreUnavailable:  # nobody can beat now: the lease does not run
            ends = time.monotonic() + LEASE_SECONDS
            continue
        if now.attempts == record.attempts and not _is_open(tracking, now):
            return now
        if (now.attempts, now.tags.get(HEARTBEAT_TAG)) != seen:
            beat = _beat_of_newest(tracking, now)
            raise RunNotUsable(
                record.run_id,
                _(
                    "is being trained on {host}: stop it there, take it from there with "
                    "take_over=true, or fork with fork=true"
                ).format(host=beat.host if beat else host),
            )
        if time.monotonic() >= ends:
            log.info(_("No sign of life from %s: taking the run over"), host)
            return now


def vanished_at(record: RunRecord) -> float | None:
    """Return since when a run that is RUNNING has shown no life, None if it does.

    In seconds since 1970, to show, not to act on: it compares the clocks of two machines.
    """
    if record.status != "RUNNING":
        return None
    beat = Beat.from_tags(record.tags)
    last_seen = beat.time if beat else record.started
    if last_seen is None:
        return None
    return last_seen if time.time() - last_seen > LEASE_SECONDS else None
