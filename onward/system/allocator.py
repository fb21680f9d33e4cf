"""What glibc keeps of the memory that is freed: enough for the next step of a training."""

from __future__ import annotations

import ctypes
import os

from onward.system import environment

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as `mallopt` numbers what it sets
_KEPT_BYTES = 128 * 2**20  # that may lie free at the end of the heap
_MAPPED_BYTES = 32 * 2**20  # from which memory is mapped for itself: the most that there is


def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to 128 MiB at the end of its heap.

    By default blocks from 128 KiB and the end of the heap go back to the system, which fills each
    page with zeros when it is asked for again: of a small model's activations in every step.
    What whoever started the process has set of malloc stays; without glibc nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None and not environment.tunes_malloc():
        # IMPORTANT: both, since to set one of them keeps the other from adapting itself.
        mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
