"""Processes: what this one is known by, whether another is alive, with whose end this one ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import uuid
from functools import cache
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # of Linux's prctl
# Also goes on while the machine sleeps; elsewhere than on Linux the monotonic one does.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def seconds_awake_or_asleep() -> float:
    """Return a clock's seconds that go by also while this process is stopped, or the machine."""
    return time.clock_gettime(_CLOCK)


@cache
def machine() -> str:
    """Return what two processes share that can see each other: boot and PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux: the machine's own number
        return f"{uuid.getnode():x}"


def this() -> tuple[int, float]:
    """Return this process's ID, and when it started; see `is_alive`."""
    return os.getpid(), _started(os.getpid())


def is_alive(pid: int, started: float) -> bool:
    """Tell whether the process of that ID that started then is alive, on this `machine`.

    Args:
        pid: Its ID.
        started: When it started, in seconds since the machine did: the wall clock may be set.
    """
    import psutil

    try:
        is_dead = psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        return not is_dead and abs(_started(pid) - started) < 0.1
    except (psutil.Error, OSError):
        return False


def _started(pid: int) -> float:
    import psutil

    path = Path(f"/proc/{pid}/stat")
    if not path.exists():  # not Linux
        return psutil.Process(pid).create_time()
    after_name = path.read_bytes().rpartition(b")")[2].split()  # the name may hold anything
    return int(after_name[19]) / os.sysconf("SC_CLK_TCK")


def stop_with_parent() -> None:
    """Let this process be asked to stop when the one that started it dies, where Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
