"""Measured processes: each on its own, its memory watched from outside, a server beside it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BENCHMARKS = Path(__file__).parent
ROOT = BENCHMARKS.parent
SAMPLE_SECONDS = 0.05


class Ended(NamedTuple):
    """A process that has ended well: when, by the monotonic clock, its CPU and its memory.

    The peak memory is what cannot be dropped, of the process and its children: the sum of RssAnon
    and, since it is the same pages in all, the largest RssShmem. Libraries and other mapped files
    are not counted.
    """

    started: float
    ended: float
    cpu_seconds: float
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """From its start to its end."""
        return self.ended - self.started


def environment(home: Path, tracking_uri: str, **more: str) -> dict[str, str]:
    """Return the environment of a measured process: one thread, and nobody's settings."""
    left_out = ("MLFLOW_", "TRAIN_", "ONWARD_", "OMP_", "MKL_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    env["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(BENCHMARKS)))
    env |= {"OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8", "TRAIN_HOME": str(home)}
    return env | {"MLFLOW_TRACKING_URI": tracking_uri} | more


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Run an `mlflow server` on 127.0.0.1, with all that it keeps; give its address."""
    sys.path.insert(0, str(ROOT))
    from tests.support import mlflow_server

    with tempfile.TemporaryDirectory() as folder, mlflow_server(Path(folder)) as running:
        yield running.address


def run(words: list[str], folder: Path, env: dict[str, str]) -> Ended:
    """Run a command in a folder to its end, and watch its memory.

    Raises:
        RuntimeError: It failed; with the end of what it printed.
    """
    with (folder / "output.txt").open("w+b") as output:
        started = time.monotonic()
        child = subprocess.Popen(words, cwd=folder, env=env, stdout=output, stderr=output)
        watch = _Watch(child.pid)
        watch.start()
        try:
            _pid, status, usage = os.wait4(child.pid, 0)
            code = child.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            child.kill()
            raise
        ended = time.monotonic()
        watch.stop()
        if code:
            output.seek(0)
            text = output.read().decode(errors="replace")[-4000:]
            raise RuntimeError(f"{' '.join(words)} ended with {code}:\n{text}")
    return Ended(started, ended, usage.ru_utime + usage.ru_stime, watch.peak_bytes)


class _Watch(threading.Thread):
    """Looks at a process's memory now and then."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._ended, self.peak_bytes = pid, threading.Event(), 0

    def run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, sum(memory_bytes(self._pid)))

    def stop(self) -> None:
        self._ended.set()
        self.join()


def memory_bytes(pid: int) -> tuple[int, int]:
    """Return a process's own memory with that of all its children, and the largest shared one."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        listed = Path(f"/proc/{pid}/task").glob("*/children")
        children = [int(child) for path in listed for child in path.read_text().split()]
    except OSError:  # it has ended
        return 0, 0
    found = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    own, shared = (int(found.get(k, "0").split()[0]) << 10 for k in ("RssAnon", "RssShmem"))
    below = [memory_bytes(child) for child in children]
    return own + sum(b[0] for b in below), max([shared, *(b[1] for b in below)])
