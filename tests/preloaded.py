"""Python programs that begin as forks of a process which has imported torch and MLflow.

Most of what a test of killed processes takes is that each of them imports the same for seconds. One
that begins so is a process all the same, with its own folder, environment, files, signals and end;
what is ours it imports itself. What a fork cannot stand for is started as ever: see `fits`.

    preloaded.py            forks at each request that comes from the socket which is its stdin
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_REQUEST_BYTES = 1 << 17  # as much as a socket takes at once
NEEDED = {"cwd", "env", "stdout", "stderr"}
OPTIONS = {*NEEDED, "start_new_session"}
SCRIPTS = {"onward": "onward", "train": "train", "torchrun": "torch.distributed.run"}
# What Python and the libraries read before the first line of a program, or while they are loaded.
AT_LOAD = ("OMP_", "MKL_", "ATEN_", "KMP_", "PYTHON", "LD_", "LC_", "LANG")


class Forked:
    """A process that was forked; it is used as one of `subprocess.Popen` with text.

    Args:
        told: A pipe that tells the process's ID, and in the end its exit code.
        stdout: What it prints, if that is read here.
        stderr: The same of its errors.
    """

    def __init__(self, told, stdout, stderr) -> None:
        self._told, self.stdout, self.stderr = told, stdout, stderr
        self.pid, self.returncode = int(told.readline()), None
        self._end = threading.Thread(target=self._await_end, daemon=True)
        self._end.start()

    def _await_end(self) -> None:
        with self._told:
            self.returncode = int(self._told.readline())

    def poll(self) -> int | None:
        """Return its exit code, once it has one."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its exit code.

        Raises:
            subprocess.TimeoutExpired: It has not ended by then.
        """
        self._end.join(timeout)
        if self._end.is_alive():
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it by SIGTERM to end."""
        self.send_signal(signal.SIGTERM)

    def communicate(self, timeout: float | None = None) -> tuple[str | None, str | None]:
        """Wait for its end; return all that it has printed.

        Raises:
            subprocess.TimeoutExpired: It has not ended by then.
        """
        read: dict[str, str] = {}

        def drain(name: str) -> None:
            with getattr(self, name) as stream:
                read[name] = stream.read()

        names = [name for name in ("stdout", "stderr") if getattr(self, name) is not None]
        readers = [threading.Thread(target=drain, args=(name,), daemon=True) for name in names]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return read.get("stdout"), read.get("stderr")


class Preloaded:
    """The process that is forked, started when it is first asked.

    Args:
        env: Its environment.
    """

    def __init__(self, env: dict[str, str]) -> None:
        self._env, self._lock = env, threading.Lock()
        self._control: socket.socket | None = None

    def fits(self, command: Sequence, popen: Mapping[str, Any]) -> bool:
        """Tell whether a fork is as what `subprocess.Popen` starts with these arguments."""
        words, given = words_of(command), popen.keys()
        if not words or not NEEDED <= given <= OPTIONS:
            return False
        if words[0].startswith("-") and words[0] not in ("-m", "-c"):
            return False
        return _at_load(popen["env"]) == _at_load(self._env)

    def start(self, command, *, cwd, env, stdout, stderr, start_new_session=False):
        """Start Python as `subprocess.Popen` does; return its `Forked`."""
        request = {
            "words": words_of(command),
            "cwd": str(cwd),
            "env": env,
            "is_leader": start_new_session,
        }
        told, tell = os.pipe()
        passed, read = [tell], []
        for where in (stdout, stderr):
            here = None
            if where == subprocess.PIPE:
                end, there = os.pipe()
                here = os.fdopen(end, encoding="utf-8", errors="replace")
            elif where == subprocess.DEVNULL:
                there = os.open(os.devnull, os.O_WRONLY)
            else:
                there = os.dup(passed[1] if where == subprocess.STDOUT else where.fileno())
            passed.append(there)
            read.append(here)
        try:
            with self._lock:
                socket.send_fds(self._started(), [json.dumps(request).encode()], passed)
        finally:
            for file in passed:
                os.close(file)
        return Forked(os.fdopen(told), *read)

    def _started(self) -> socket.socket:
        if self._control is None:
            self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with other:
                # As a command has it; and telemetry is a thread, which no fork has.
                more = {"OMP_WAIT_POLICY": "PASSIVE", "MLFLOW_DISABLE_TELEMETRY": "true"}
                env = self._env | more
                subprocess.Popen([sys.executable, __file__], stdin=other, env=env)
        return self._control


def words_of(command: Sequence) -> list[str] | None:
    """Return the words of a command after `python`; None: it is none of Python's."""
    program, *words = (str(word) for word in command)
    if program == sys.executable:
        return words
    path = Path(program)
    is_script = path.parent == Path(sys.executable).parent and path.name in SCRIPTS
    return ["-m", SCRIPTS[path.name], *words] if is_script else None


def _at_load(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(AT_LOAD)}


def preload() -> None:
    """Import what takes long, and is not ours."""
    import alembic.command
    import matplotlib.backends.backend_agg
    import mlflow.pytorch
    import mlflow.store.tracking.sqlalchemy_store
    import pyarrow.parquet
    import rich.progress
    import torch._dynamo

    del alembic, matplotlib, mlflow, pyarrow, rich, torch
    gc.collect()
    gc.freeze()  # else each fork copies what it only searches


def forks(control: socket.socket) -> dict:
    """Fork at each request, until there are no more; return in a fork, with its request.

    Between the two is a process that tells the process's ID, waits for it, and tells how it ended.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, files, _flags, _address = socket.recv_fds(control, MAX_REQUEST_BYTES, 3)
        if not request:
            os._exit(0)
        if os.fork():
            for file in files:
                os.close(file)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        told, *streams = files
        child = os.fork()
        if not child:
            os.close(told)
            redirect(*streams)
            return json.loads(request)
        for stream in streams:
            os.close(stream)
        os.write(told, b"%d\n" % child)
        _pid, status = os.waitpid(child, 0)
        os.write(told, b"%d\n" % os.waitstatus_to_exitcode(status))
        os._exit(0)


def redirect(stdout: int, stderr: int) -> None:
    """Read nothing, and print into these files."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name, number, file in (("stdout", 1, stdout), ("stderr", 2, stderr)):
        os.dup2(file, number)
        os.close(file)
        old = getattr(sys, name)
        new = os.fdopen(number, "w", errors=old.errors, closefd=False)
        new.reconfigure(line_buffering=old.line_buffering, write_through=old.write_through)
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def become(words: list[str], cwd: str, env: dict[str, str], is_leader: bool) -> None:
    """Go on as Python that was started with these words."""
    if is_leader:
        os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # which something may have asked for
    if words[0] == "-m":
        sys.path[0], sys.argv = cwd, words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.path[0], sys.argv = "", ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})
    else:
        sys.path[0], sys.argv = str(Path(words[0]).resolve().parent), words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    preload()
    become(**forks(socket.socket(fileno=0)))
