"""The way of a checkpoint: stage → write → upload → commit → publish → point → prune.

Training waits for staging only. Two threads do the rest: one writes to the spool on local disk,
one brings to the store what is there (see `Publishing`).

Checkpoints that are neither kept nor the best give way: to a newer one while they wait for their
upload, and entirely where the buffers are still being written. Their metrics travel with the next.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onward.checkpoint.handover import Item, Publishing, Shared, Spooled, Timings
from onward.checkpoint.manifest import Manifest, checkpoint_name
from onward.checkpoint.pieces import Piece
from onward.checkpoint.policy import find_best
from onward.checkpoint.room import LOOK_SECONDS, Room
from onward.checkpoint.spool import Spool
from onward.checkpoint.spooling import PIECES, write_item
from onward.checkpoint.staging import MayWait, Staged, Stager
from onward.checkpoint.transfers import show_upload
from onward.checkpoint.uploader import Uploader
from onward.monitor import UNDECLARED, Monitor
from onward.system.threads import act_after
from onward.words.language import _

log = logging.getLogger(__name__)

STALL_SECONDS = 60.0  # without a file that arrives, after which the store counts as away
PATIENCE_SECONDS = 2.0  # after which a wait is announced
SILENT_SECONDS = 5.0  # after which a server that owes an answer counts as away
LET_GO_SECONDS = 3.0  # that the end waits for what is under way, which is to stop


class Pipeline:
    """Saves the checkpoints of one attempt in the background.

    Args:
        publisher: Brings them to the store.
        spool: Where they are written first.
        max_spool_bytes: How much may wait on local disk before training waits.
        is_sync: Whether `save` waits for the commit, as long as the store answers.
        monitor: The metric that decides which checkpoint is best.

    Attributes:
        uploader: Knows what commits have cost, and where other ranks put their pieces.
    """

    def __init__(
        self,
        publisher: Publishing,
        spool: Spool,
        max_spool_bytes: float = math.inf,
        is_sync: bool = False,
        monitor: Monitor = UNDECLARED,
    ) -> None:
        self.publisher = publisher
        self.spool, self._is_sync = spool, is_sync
        self._stager = Stager()
        self._staged: Staged | None = None  # whose copy may still be under way
        self._hold_seconds = 0.0
        best = find_best(publisher.manifests)
        self._monitor = monitor
        self._best_score = best.score if best is not None else None
        self._items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._shared = Shared()
        # How long the process may still take to end: less than ∞ once a signal asked it to.
        self.seconds_left: Callable[[], float] = lambda: math.inf
        self.is_paused = False  # whether the newest checkpoint could not be written
        self._ends_at = math.inf  # when the end of training has waited long enough
        self._room = Room(spool, self._shared, max_spool_bytes, self._wait_seconds)
        self._writer = self._thread(self._write_all)
        self.uploader = Uploader(publisher, spool, self._shared, is_prompt=is_sync)
        self._upload_thread = self._thread(self.uploader.work)

    @property
    def timings(self) -> Timings | None:
        """What the newest commit cost."""
        return self.uploader.timings

    def open(self) -> None:
        """Start the threads."""
        self._writer.start()
        self._upload_thread.start()

    def save(
        self,
        state: Mapping[str, Any],
        metrics: Mapping[str, float],
        kept: bool,
        may_wait: MayWait | None = None,
        required: bool = False,
        pieces: Sequence[Piece] | None = None,
    ) -> bool:
        """Save a checkpoint: stage it now, and do the rest in the background.

        Args:
            state: What `checkpoint.pth` is to hold.
            metrics: The epoch's own metrics, for the manifest.
            kept: Whether it stays for good. One that is neither kept nor a new best is passed
                over where the one before is still being written.
            may_wait: Tells the tensors that only an optimizer step changes; see `hold_update`.
                Default: none are.
            required: Not to be passed over, though it is not kept.
            pieces: What this rank holds of what is spread over all; see `rank_files`.

        Returns:
            Whether it is set aside, and not passed over.

        Raises:
            BaseException: What ended one of the threads.
        """
        self.check()
        if not (self._is_best(metrics) or kept or required or self._stager.is_free):
            return False
        started = time.monotonic()
        spread = {} if pieces is None else {PIECES: pieces}
        self._staged = self._stager.stage({**state, **spread}, may_wait)
        stall_seconds = time.monotonic() - started + self._hold_seconds
        self._hold_seconds = 0.0
        self.uploader.totals.num_saved += 1
        self.uploader.totals.stall_seconds += stall_seconds
        with self._shared.changed:
            self._shared.num_writing += 1
        self._items.put(Item(self._staged, metrics, kept, stall_seconds))
        if self._is_sync:
            self._wait_until_committed()
        return True

    def hold_update(self) -> None:
        """Wait, right before the weights change, until they are set aside."""
        if self._staged is not None:
            started = time.monotonic()
            self._staged.hold_update()
            self._staged = None
            self._hold_seconds += time.monotonic() - started

    def fail(self, error: BaseException) -> None:
        """End saving by `error`, which the training thread is told at its next step."""
        with self._shared.changed:
            self._shared.error = error
            self._shared.changed.notify_all()

    @property
    def condition(self) -> str:
        """How the way to the store is, in words: "" where nothing is to be told."""
        with self._shared.changed:
            number = self._shared.num_waiting
            if self._shared.offline or self.publisher.silent_seconds() > SILENT_SECONDS:
                return _("offline, {number} waiting").format(number=number)
            if (seconds := self._stalled_seconds()) > STALL_SECONDS:
                told = _("no answer for {seconds:.0f} s, {number} waiting")
                return told.format(seconds=seconds, number=number)
            return ""

    def _stalled_seconds(self) -> float:
        return self._shared.stalled_seconds(self.publisher.store.uploads.moved)

    @property
    def num_waiting(self) -> int:
        """Checkpoints in the spool that are not committed, or not told of yet."""
        with self._shared.changed:
            return self._shared.num_waiting

    def end_writing(self, drain_seconds: float) -> BaseException | None:
        """Write what is set aside, and take no more; return what ended saving, if something has.

        Args:
            drain_seconds: How long the end of training may wait for the store in all.
        """
        self._ends_at = time.monotonic() + drain_seconds
        with self._shared.changed:
            self._shared.closing = True
            self._shared.changed.notify_all()
        self._items.put(None)
        self._writer.join()
        self._stager.close()
        return self._shared.error

    def close(self, ending: Callable[[], None], drain_seconds: float) -> bool:
        """Wait until everything is in the store.

        Args:
            ending: What comes last, in the background: closing the run.
            drain_seconds: How long to wait; `seconds_left` can make it less.

        Returns:
            Whether everything is, `ending` included; else the spool holds the rest.

        Raises:
            BaseException: What ended one of the threads.
        """
        if self._writer.is_alive():
            self.end_writing(drain_seconds)
        ends = time.monotonic() + drain_seconds
        with self._shared.changed:
            self._shared.ending = ending
            self._shared.changed.notify_all()
        with show_upload(self.spool, self.spool.list()):
            self._join_uploader(min(drain_seconds, PATIENCE_SECONDS), lambda: not self.num_waiting)
            limit, num = min(drain_seconds, self.seconds_left()), self.num_waiting
            if num and limit > 0:
                log.info(_("Waiting up to %.3g s for the store (%d to upload) …"), limit, num)
            self._join_uploader(ends - time.monotonic(), lambda: not self.num_waiting)
        self._join_uploader(ends - time.monotonic())
        self.check()
        return not self._upload_thread.is_alive()

    def let_go(self, then: Callable[[], object]) -> None:
        """Begin nothing more, and call `then` once nothing is under way any more.

        What is under way is waited for a moment only; it ends by itself, or with the process.
        """
        with self._shared.changed:
            self._shared.is_left = True
            self._shared.changed.notify_all()
        try:
            self._join_uploader(LET_GO_SECONDS)
        finally:  # also where Ctrl-C ends the wait
            act_after(self._upload_thread, then)

    def _join_uploader(self, seconds: float, is_enough: Callable[[], bool] = lambda: False) -> None:
        """Wait so long for the uploader to end, or for `is_enough`; less if a signal asks to."""
        ends = time.monotonic() + seconds
        while self._upload_thread.is_alive() and not is_enough():
            left = min(ends - time.monotonic(), self.seconds_left())
            if left <= 0:
                return
            self._upload_thread.join(min(left, LOOK_SECONDS))

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        score = metrics.get(self._monitor.name)
        if not self._monitor.is_better(score, self._best_score):
            return False
        self._best_score = score
        return True

    def _wait_until_committed(self) -> None:
        shared = self._shared

        def is_done() -> bool:
            is_away = shared.offline or self._stalled_seconds() > STALL_SECONDS
            is_over = shared.error is not None or self.seconds_left() < math.inf
            return is_away or is_over or not (shared.num_writing or shared.num_waiting)

        with shared.changed:
            while not shared.changed.wait_for(is_done, LOOK_SECONDS):
                pass
        self.check()

    def _wait_seconds(self) -> float:
        """Return how long room on the disk may still be waited for."""
        return min(self._ends_at - time.monotonic(), self.seconds_left())

    def check(self) -> None:
        """Raise what ended one of the threads, or was given to `fail`."""
        if self._shared.error is not None:
            raise self._shared.error

    def _thread(self, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # raised again in the training thread
                self.fail(error)

        # A daemon: a server that never answers must not keep the process from ending.
        return threading.Thread(target=guarded, daemon=True)

    def _write_all(self) -> None:
        while (item := self._items.get()) is not None:
            spooled = None
            try:
                spooled = self._write(item)
            except OSError as error:
                if not self.is_paused:
                    log.warning(_("Saving is paused, training goes on: %s"), error)
                self.is_paused = True
                self.spool.removed(checkpoint_name(item.staged.state))
            finally:
                item.staged.release()
            with self._shared.changed:
                self._shared.num_writing -= 1
                if spooled is not None:
                    self._shared.spooled.append(spooled)
                    self._shared.drop_overtaken(self.publisher, self.spool)
                self._shared.changed.notify_all()

    def _write(self, item: Item) -> Spooled:
        item.staged.wait()
        seconds, part_bytes = 0.0, self.publisher.store.uploads.part_size.bytes

        def write() -> Manifest:
            nonlocal seconds
            started = time.monotonic()
            manifest = write_item(
                item, self.spool, part_bytes, self.uploader.rank_files, self._wait_seconds
            )
            seconds = time.monotonic() - started
            return manifest

        manifest = self._room.write(write)
        self.is_paused = False
        return Spooled(manifest, item.stall_seconds, seconds)
