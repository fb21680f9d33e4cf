"""Room on the local disk for one more checkpoint, and waiting until uploads have made it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from onward.checkpoint.handover import Shared
from onward.checkpoint.manifest import Manifest
from onward.checkpoint.spool import Spool
from onward.words.language import _

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5  # between two looks whether there is room, or a signal came
SPACE_FACTOR = 1.1  # room wanted on the disk, in sizes of the largest checkpoint


class Room:
    """The room that a spool has.

    Args:
        spool: Where checkpoints are written.
        shared: What waits there.
        max_bytes: How much may.
        seconds_left: Returns how long may still be waited; less than ∞ once the end has begun.
    """

    def __init__(
        self, spool: Spool, shared: Shared, max_bytes: float, seconds_left: Callable[[], float]
    ) -> None:
        self._spool, self._shared, self._max_bytes = spool, shared, max_bytes
        self._seconds_left = seconds_left
        self._largest_bytes = 0  # of those written

    def write(self, write: Callable[[], Manifest]) -> Manifest:
        """Write a checkpoint once there is room for it.

        Raises:
            OSError: The disk has none, and no upload is under way that would make some.
        """
        is_told = False
        while True:
            with self._shared.changed:
                num_waiting = self._shared.num_waiting
            try:
                self._wait_until_it_may()
                self._require_space()
                manifest = write()
            except OSError as full:
                if not self._comes_by_uploads(num_waiting, full, is_told):
                    raise
                is_told = True
            else:
                self._largest_bytes = max(self._largest_bytes, manifest.bytes)
                return manifest

    def _wait_until_it_may(self) -> None:
        """Wait until no more than may waits for its upload, the new one counted."""
        shared = self._shared
        with shared.changed:

            def may() -> bool:
                fits = shared.num_bytes() + self._largest_bytes <= self._max_bytes
                # After an error there would never be room, and training must hear of it.
                return fits or not shared.num_waiting or self._ends()

            if not may():
                log.warning(
                    _("The spool is full (%.1f GB wait for their upload): training will wait"),
                    shared.num_bytes() / 1e9,
                )
                self._wait_for(may)

    def _wait_for(self, is_decided: Callable[[], bool]) -> None:
        """Wait for it, and let what is in the spool wait no more."""
        shared = self._shared
        shared.is_urgent = True
        shared.changed.notify_all()
        while not shared.changed.wait_for(is_decided, LOOK_SECONDS):
            pass
        shared.is_urgent = False

    def _ends(self) -> bool:
        has_failed = self._shared.error is not None
        return self._shared.closing or has_failed or self._seconds_left() < float("inf")

    def _require_space(self) -> None:
        free_bytes = self._spool.free_bytes()
        if free_bytes < SPACE_FACTOR * self._largest_bytes:
            raise OSError(
                _("the disk of '{folder}' has {free_bytes:,} bytes free").format(
                    folder=self._spool.folder, free_bytes=free_bytes
                )
            )

    def _comes_by_uploads(self, num_waiting: int, full: OSError, is_told: bool) -> bool:
        """Wait for an upload to make room; return whether one has, since `num_waiting` waited."""
        shared = self._shared
        with shared.changed:

            def is_decided() -> bool:
                # At the end nothing else is left to do than to wait for the store.
                stands = not shared.num_waiting or (shared.offline and not shared.closing)
                over = shared.error is not None or self._seconds_left() <= 0
                return shared.num_waiting < num_waiting or stands or over

            if not is_decided() and not is_told:
                log.warning(_("%s: training will wait until uploads have made room"), full)
            self._wait_for(is_decided)
            return shared.num_waiting < num_waiting
