"""The thread that brings checkpoints from the spool to the store, and publishes what they hold.

On a server checkpoints that come quickly go up in rounds of two seconds: by then a newer one may
have overtaken those that need not stay, and what follows a commit is done for all of them at once.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import random
import time
from collections.abc import Callable

from onward.checkpoint.handover import Publishing, Shared, Spooled, Timings, Totals
from onward.checkpoint.rank_files import RankFiles
from onward.checkpoint.spool import Spool
from onward.errors import RankFilesMissing, StoreRefused, UnsafeFile
from onward.words.language import _

log = logging.getLogger(__name__)

# IMPORTANT: a generator of its own; the global one belongs to the training.
_jitter = random.Random()

ROUND_SECONDS = 2.0  # from the beginning of a round to that of the next
MAX_RETRY_SECONDS = 10.0  # between two looks whether the server is back


class Uploader:
    """Commits what is in the spool, the oldest first, until the end may come.

    Args:
        publisher: Brings checkpoints to the store.
        spool: Where they wait.
        shared: What is handed over.
        is_prompt: Whether training waits for each commit: there are no rounds.
    """

    def __init__(
        self, publisher: Publishing, spool: Spool, shared: Shared, is_prompt: bool
    ) -> None:
        self.timings: Timings | None = None
        self.totals = Totals()
        self.rank_files: RankFiles | None = None
        self.has_left = False
        self._publisher, self._spool, self._shared = publisher, spool, shared
        # To a folder of this machine nothing is sent, and the disk may be short of room.
        self._has_rounds = not (is_prompt or publisher.store.folder is not None)
        self._round_at = -math.inf  # when the newest round began

    def work(self) -> None:
        """Do that; the thread's whole life."""
        shared = self._shared
        self._begin(self._publisher.settle)  # what the attempt before left undone
        while True:
            with shared.changed:
                shared.wait_for_work(self._seconds_to_round)
                if shared.is_over:
                    return
                newest = shared.spooled[-1].manifest.order if shared.spooled else None
            if newest is None:
                self._begin(self._publisher.tidy)
                self._begin(shared.ending or (lambda: None))
                return
            self._round_at = time.monotonic()
            self._work_a_round(newest)

    def _seconds_to_round(self) -> float:
        if not self._has_rounds:
            return 0.0
        return self._round_at + ROUND_SECONDS - time.monotonic()

    def _work_a_round(self, newest: tuple[int, int]) -> None:
        """Commit what waits, up to `newest` and for as long as the round lasts; then tell of it."""
        while (spooled := self._shared.begin_upload(newest)) is not None:
            self._until_it_works(functools.partial(self._commit, spooled), spooled)
            if self._seconds_to_round() <= 0:
                break
        done = tuple(self._shared.committed)
        started = time.monotonic()
        if not (done and self._until_it_works(self._tell)):
            return
        done[-1].upload_seconds += time.monotonic() - started
        for spooled in done:
            self._spool.remove(spooled.manifest.name)
            self.totals.add(spooled.timings())
        self.timings = done[-1].timings()
        self._shared.forget_committed()

    def _commit(self, spooled: Spooled) -> None:
        started = time.monotonic()
        self._publisher.put(spooled.manifest)
        spooled.upload_seconds = time.monotonic() - started
        self._shared.has_committed(spooled)

    def _tell(self) -> None:
        """Do what follows the commits of a round."""
        self._publisher.settle()
        if any(spooled.manifest.kept for spooled in self._shared.committed):
            self._publisher.refresh_log()
        self._publisher.refresh_page()

    def _begin(self, work: Callable[[], None]) -> None:
        """Do what is under way from now on, unless nothing more is to be begun."""
        with self._shared.changed:
            if self._shared.is_left:
                return
        self._until_it_works(work)

    def _until_it_works(self, work: Callable[[], None], spooled: Spooled | None = None) -> bool:
        """Do it again and again while the server is away, until it is done or given up.

        Args:
            work: What to do.
            spooled: Which checkpoint it is about: one that is overtaken meanwhile is given up.

        Returns:
            Whether it is done.
        """
        for number in itertools.count():
            try:
                work()
            except OSError as error:  # the store is away, or the disk is full
                if not self._wait_offline(number, error, spooled):
                    return False
            else:
                break
        with self._shared.changed:
            if self._shared.offline:
                log.info(_("The server answers again"))
            self._shared.offline = False
        return True

    def _wait_offline(self, number: int, error: Exception, spooled: Spooled | None) -> bool:
        """Wait for the next try; return False if meanwhile it became needless."""
        shared = self._shared
        with shared.changed:
            if isinstance(error, RankFilesMissing) and self.rank_files and self.rank_files.is_lost:
                log.warning("%s", error)
                shared.spooled = [other for other in shared.spooled if other is not spooled]
                self.has_left, shared.uploading, self._publisher.sweeps = True, None, False
                return False
            if not shared.offline:
                told = _("%s. What is saved waits on this disk, and is published later")
                if isinstance(error, StoreRefused | UnsafeFile):
                    told = _("%s. It will not go away by itself: what is saved waits on this disk")
                log.warning(told, error)
            shared.offline, shared.uploading = True, None
            shared.drop_overtaken(self._publisher, self._spool)
            shared.changed.notify_all()
            # 2**number alone would be too large for a float after hours.
            seconds = min(MAX_RETRY_SECONDS, 0.5 * 2 ** min(number, 10))
            seconds *= _jitter.uniform(0.5, 1.0)

            def is_over() -> bool:
                return shared.is_left or (spooled is not None and spooled not in shared.spooled)

            shared.changed.wait_for(is_over, seconds)
            shared.uploading, shared.begun = spooled, time.monotonic()
            return not is_over()
