"""Bringing files to the store: again where it fails, noted where it is done, shown if it lasts."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from onward.checkpoint.manifest import FileEntry, Manifest
from onward.checkpoint.spool import UPLOADED_FILE, Spool
from onward.errors import StoreUnavailable
from onward.system.files import open_plain
from onward.terminal.progress import show_transfer
from onward.words.language import _

log = logging.getLogger(__name__)

NUM_TRANSFERS = 4  # at a time
NUM_TRIES = 3  # of each transfer

T = TypeVar("T")

# IMPORTANT: a generator of its own; the global one belongs to the training.
_jitter = random.Random()


def retried(transfer: Callable[[], T]) -> T:
    """Run one transfer; when it fails try again, a little later each time and never in step.

    Raises:
        StoreUnavailable: The last try failed too.
    """
    for number in range(1, NUM_TRIES):
        try:
            return transfer()
        except StoreUnavailable as error:
            log.debug("try %d: %s", number, error)
            pause = _jitter.uniform(0.5, 1.0) * 0.1 * 4**number  # under 2 s in all
            time.sleep(max(pause, error.retry_after))
    return transfer()


def line(entry: FileEntry) -> str:
    """Return how an uploaded file is noted; by its path too, since parts can be equal."""
    return f"{entry.sha256} {entry.path}"


def noted(folder: Path) -> set[str]:
    """Return the lines of the files that uploads of the local `folder` have brought so far."""
    try:
        with open_plain(folder / UPLOADED_FILE) as file:
            return set(file.read().decode().splitlines())
    except FileNotFoundError:
        return set()


@contextlib.contextmanager
def show_upload(spool: Spool, manifests: Sequence[Manifest]) -> Iterator[None]:
    """Show how much of checkpoints in `spool` has gone up, while the block brings them there."""

    def unsent_bytes() -> int:
        left = 0
        for manifest in manifests:
            folder = spool.path(manifest.name)
            done = noted(folder)
            if folder.exists():  # else all of it has
                left += sum(e.bytes for e in manifest.files if line(e) not in done)
        return left

    total = unsent_bytes()
    number = len(manifests)
    title = manifests[0].name if number == 1 else _("{number} checkpoints").format(number=number)
    title = _("Uploading {title}").format(title=title)
    with show_transfer(title, total, lambda: total - unsent_bytes()):
        yield
