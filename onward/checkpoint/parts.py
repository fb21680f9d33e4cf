"""How large the parts of a checkpoint are: as large as the way to the store takes them."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from onward.checkpoint.artifacts import Artifacts
from onward.checkpoint.hashed import PART_BYTES
from onward.checkpoint.manifest import METRICS_FILE, FileEntry
from onward.errors import RequestTooLarge, StoreUnavailable
from onward.system.files import MIN_PART_BYTES, size_in_words
from onward.words.language import _

log = logging.getLogger(__name__)

MIN_SLOW_BYTES = 1 << 20
PART_SECONDS = 10.0  # that a part is to take on a slow way
SLOW_SECONDS = 30.0  # that one may take before smaller ones are made
MEASURED_SECONDS = 1.0  # what takes less says nothing of the speed
LOST_SECONDS = 60.0  # what fails after so long was too large
MAX_BREAKS = 2  # in the middle of large files, none having arrived: then they were too large


class Smaller(Exception):
    """A file is not to be sent again: smaller parts are to be made."""


class PartSize:
    """The size of the parts of a run's checkpoints, or of its data; it only ever shrinks."""

    def __init__(self, num_bytes: int = PART_BYTES) -> None:
        self.bytes = num_bytes
        self._is_told = False  # that the store has refused one
        self._num_breaks = 0
        self._lock = threading.Lock()

    def refused(self, num_bytes: int) -> bool:
        """Note that the store takes no request of that size; return whether a smaller one may do.

        Each size that is tried is half of the one before.
        """
        with self._lock:
            if num_bytes <= MIN_PART_BYTES:
                return False
            size = self.bytes
            while size >= num_bytes:
                size //= 2
            size = max(size, MIN_PART_BYTES)
            self.bytes = min(size, self.bytes)
            if not self._is_told:
                self._is_told = True
                log.warning(
                    _("A gateway before the store takes no request of %s (413): larger files go up "
                      "in parts. With nginx, client_max_body_size is the setting"),
                    size_in_words(num_bytes),
                )  # fmt: skip
            return True

    def broke(self, num_bytes: int) -> bool:
        """Note that no answer came to a file though the store answers; return whether to cut it."""
        with self._lock:
            if num_bytes <= MIN_PART_BYTES:
                return False
            self._num_breaks += 1
            if self._num_breaks >= MAX_BREAKS and num_bytes <= self.bytes:
                self._num_breaks = 0
                size = self.bytes
                while size >= num_bytes:
                    size //= 2
                self.bytes = max(size, MIN_PART_BYTES)
                log.info(
                    _("Connections to the store break off in the middle of %s: checkpoints go up "
                      "in parts of %s"),
                    size_in_words(num_bytes), size_in_words(self.bytes),
                )  # fmt: skip
            return num_bytes > self.bytes

    def arrived(self, num_bytes: int, seconds: float) -> None:
        """Note that a file has arrived, and how long it took."""
        if num_bytes > MIN_PART_BYTES:
            self._num_breaks = 0
        self.took(num_bytes, seconds)

    def took(self, num_bytes: int, seconds: float) -> None:
        """Note how long a file took, until it arrived or was given up."""
        if seconds < MEASURED_SECONDS:
            return
        per_second = num_bytes / seconds
        with self._lock:
            if self.bytes <= per_second * SLOW_SECONDS:
                return
            size = self.bytes
            while size > per_second * PART_SECONDS and size // 2 >= MIN_SLOW_BYTES:
                size //= 2
            if size < self.bytes:
                self.bytes = size
                log.info(
                    _("The store takes %s/s: checkpoints go up in parts of %s"),
                    size_in_words(per_second), size_in_words(size),
                )  # fmt: skip


def send_once(
    artifacts: Artifacts,
    file: Path,
    target: str,
    entry: FileEntry,
    part_size: PartSize,
    is_clean: bool,
) -> None:
    """Upload one file of a checkpoint, once.

    Args:
        artifacts: Where to.
        file: The file.
        target: Its path there.
        entry: What the manifest says of it.
        part_size: Notes what the way takes.
        is_clean: Whether nothing was there before: then what has the file's size is the file.

    Raises:
        Smaller: It is not to be tried again at this size.
        StoreUnavailable: It may be.
    """
    started = time.monotonic()
    is_remote = artifacts.folder is None
    try:
        artifacts.upload(file, target.rpartition("/")[0], give_away=True)
    except RequestTooLarge as error:
        if entry.path == METRICS_FILE or not part_size.refused(entry.bytes):
            raise
        raise Smaller from error
    except StoreUnavailable as error:
        seconds, is_lost = time.monotonic() - started, error.status is None
        if not is_remote or not (is_lost or seconds >= MEASURED_SECONDS):
            raise
        # Its answer may be all that was lost. A store that is away does not tell.
        if artifacts.size(target) == entry.bytes and is_clean:
            return
        if is_lost and entry.path != METRICS_FILE and part_size.broke(entry.bytes):
            raise Smaller from error
        if seconds > LOST_SECONDS:
            part_size.took(entry.bytes, seconds)
            if part_size.bytes < entry.bytes:
                raise Smaller from error
        raise
    if is_remote:
        part_size.arrived(entry.bytes, time.monotonic() - started)
