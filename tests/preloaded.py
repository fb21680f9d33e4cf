"""Python programs that begin as forks of a process which has imported torch and MLflow.

Most of what a test of killed processes takes is that each of them imports the same for seconds. One
that begins so is a process all the same, with its own folder, environment, files, signals and end;
what is ours it imports itself. What a fork cannot stand for is started as ever: see `fits`. The
ranks that such a process launches begin so too, as children of it: see `Rank`.

    preloaded.py            forks at each request that comes from the socket which is its stdin
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import math
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_REQUEST_BYTES = 1 << 17  # as much as a socket takes at once
NEEDED = {"cwd", "env", "stdout", "stderr"}
OPTIONS = {*NEEDED, "start_new_session"}
SCRIPTS = {"onward": "onward", "train": "train", "torchrun": "torch.distributed.run"}
# What a command sets for itself, and a launcher for its ranks.
OF_COMMANDS = {"OMP_WAIT_POLICY": "PASSIVE", "TORCH_CPP_LOG_LEVEL": "ERROR"}
LAUNCHERS = (["-m", "torch.distributed.run"], ["-m", "onward", "launch"], ["-m", "train", "launch"])
STOPS = {
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
}
PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl
# What Python and the libraries read before the first line of a program, or while they are loaded.
AT_LOAD = ("OMP_", "MKL_", "ATEN_", "KMP_", "PYTHON", "LD_", "LC_", "LANG", "TORCH_CPP_")


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
        given = popen.keys()
        if not NEEDED <= given <= OPTIONS:
            return False
        return may_become(words_of(command), popen["env"], self._env)

    def start(self, command, *, cwd, env, stdout, stderr, start_new_session=False):
        """Start Python as `subprocess.Popen` does; return its `Forked`."""
        request = _request(words_of(command), cwd, env, start_new_session)
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
                socket.send_fds(self._started(), [request], passed)
        finally:
            for file in passed:
                os.close(file)
        return Forked(os.fdopen(told), *read)

    def _started(self) -> socket.socket:
        if self._control is None:
            self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with other:
                # Telemetry is a thread, which no fork has.
                more = {**OF_COMMANDS, "MLFLOW_DISABLE_TELEMETRY": "true"}
                subprocess.Popen([sys.executable, __file__], stdin=other, env=self._env | more)
        return self._control


class Rank:
    """A rank as a launcher's child, in place of the `subprocess.Popen` that torch's agent makes.

    It is forked by a process that the launcher has forked before it did anything. What stands
    between the two ends at once, so that the rank comes to the launcher, which asks for that.

    Args:
        args: Its words, the first of which is Python.
        env: Its environment.
        stdout: The file it prints into; None: into this process's.
        stderr: The same for its errors.
        start_new_session: Whether it leads a group of its own.
    """

    control: socket.socket  # of the process that forks

    def __init__(self, args, env, stdout, stderr, start_new_session) -> None:
        request = _request(words_of(args), os.getcwd(), env, start_new_session)
        told, tell = os.pipe()
        streams = [number if file is None else file.fileno()
                   for number, file in ((1, stdout), (2, stderr))]  # fmt: skip
        socket.send_fds(self.control, [request], [tell, *streams])
        os.close(tell)
        with os.fdopen(told) as stream:
            self.pid, self.returncode = int(stream.readline()), None

    def poll(self) -> int | None:
        """Return its exit code, once it has one."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its exit code.

        Raises:
            subprocess.TimeoutExpired: It has not ended by then.
        """
        until = time.monotonic() + (math.inf if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return self.returncode


def words_of(command: Sequence) -> list[str] | None:
    """Return the words of a command after `python`; None: it is none of Python's."""
    program, *words = (str(word) for word in command)
    if program == sys.executable:
        return words
    path = Path(program)
    is_script = path.parent == Path(sys.executable).parent and path.name in SCRIPTS
    return ["-m", SCRIPTS[path.name], *words] if is_script else None


def _request(words, cwd, env, is_leader) -> bytes:
    request = {"words": words, "cwd": str(cwd), "env": env, "is_leader": is_leader}
    return json.dumps(request).encode()


def may_become(words: Sequence[str] | None, env: dict[str, str], here: dict[str, str]) -> bool:
    """Tell whether a fork may go on as Python with these words.

    Args:
        words: Those after `python`; None: it is another program.
        env: The environment it is to have.
        here: The one that what is forked was started with.
    """
    flags = ("-m", "-c", "-u")
    if not words or (words[0].startswith("-") and words[0] not in flags):
        return False
    return _at_load(env) == _at_load(here)


def _at_load(env: Mapping[str, str]) -> dict[str, str]:
    read = {name: value for name, value in env.items() if name.startswith(AT_LOAD)}
    return OF_COMMANDS | read


def preload() -> None:
    """Import what takes long, and is not ours."""
    import alembic.command
    import matplotlib.backends.backend_agg
    import mlflow.pytorch
    import mlflow.store.tracking.sqlalchemy_store
    import pyarrow.parquet
    import rich.progress
    import torch._dynamo
    import torch.distributed.run

    del alembic, matplotlib, mlflow, pyarrow, rich, torch
    gc.collect()
    gc.freeze()  # else each fork copies what it only searches


def forks(control: socket.socket) -> dict:
    """Fork at each request, until there are no more; return in a fork, with its request.

    Between the two is a process that tells the process's ID, waits for it, and tells how it ended.
    """
    for request, (told, *streams) in requests(control):
        child = os.fork()
        if not child:
            os.close(told)
            redirect(*streams)
            return request
        for stream in streams:
            os.close(stream)
        os.write(told, b"%d\n" % child)
        _pid, status = os.waitpid(child, 0)
        os.write(told, b"%d\n" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    os._exit(0)


def orphans(control: socket.socket) -> tuple[dict, int]:
    """Fork at each request; return in a fork, which goes to whoever takes orphans.

    Returns:
        The request, and where the process tells its ID once it is what it is to be.
    """
    for request, (told, *streams) in requests(control):
        between = os.getpid()
        if os.fork():
            os._exit(0)
        redirect(*streams)
        while os.getppid() == between:
            time.sleep(0.001)
        return request, told
    os._exit(0)


def requests(control: socket.socket) -> Iterator[tuple[dict, list[int]]]:
    """Yield each request and its files, in a fork of its own."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, files, _flags, _address = socket.recv_fds(control, MAX_REQUEST_BYTES, 3)
        if not request:
            return
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            yield json.loads(request), files
        for file in files:
            os.close(file)


def redirect(stdout: int, stderr: int) -> None:
    """Read nothing, and print into these files."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.set_inheritable(0, True)  # it may be that number already
    if nothing:
        os.close(nothing)
    for name, number, file in (("stdout", 1, stdout), ("stderr", 2, stderr)):
        os.dup2(file, number)
        os.close(file)
        old = getattr(sys, name)
        show(name, number, old.errors, old.line_buffering, old.write_through)


def show(name: str, number: int, errors: str, line_buffering: bool, write_through: bool) -> None:
    """Let `sys.stdout` or `sys.stderr` print to a file; all at once, if it is written through."""
    file = io.FileIO(number, "w", closefd=False)
    new = io.TextIOWrapper(
        file if write_through else io.BufferedWriter(file),
        errors=errors, line_buffering=line_buffering, write_through=write_through,
    )  # fmt: skip
    setattr(sys, name, new)
    setattr(sys, f"__{name}__", new)


def begin(words: list[str], cwd: str, env: dict[str, str], is_leader: bool) -> list[str]:
    """Be a process of its own, as Python is when it has been started; return the words.

    A launcher gets a process that forks its ranks, which is a fork of what it is now.
    """
    if is_leader:
        os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # which something may have asked for
    sys.modules["numpy"].random.seed()  # as it is when it is imported
    if words[0] == "-u":
        words = words[1:]
        for name, number in (("stdout", 1), ("stderr", 2)):
            show(name, number, getattr(sys, name).errors, False, True)
    if words[:2] in LAUNCHERS or words[:3] in LAUNCHERS:
        Rank.control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork():
            control.close()
            launch_forks(env)
        else:
            Rank.control.close()
            return begin_rank(control)
    return words


def begin_rank(control: socket.socket) -> list[str]:
    """Fork ranks; return in each, once it is a process of its own, with its words."""
    # Its launcher's group may get these, to which what forks belongs.
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in STOPS}
    request, told = orphans(control)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    words = begin(**request)
    os.write(told, b"%d\n" % os.getpid())
    os.close(told)
    return words


def launch_forks(env: dict[str, str]) -> None:
    """Let torch's agent fork its ranks in this process, where a fork fits."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    def popen(args, **options):
        fits = may_become(words_of(args), options["env"], env)
        return (Rank if fits else subprocess.Popen)(args, **options)

    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    subprocess_handler.Popen = popen


def become(words: list[str]) -> None:
    """Go on as Python that was started with these words."""
    if words[0] == "-m":
        sys.path[0], sys.argv = os.getcwd(), words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.path[0], sys.argv = "", ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})
    else:
        sys.path[0], sys.argv = str(Path(words[0]).resolve().parent), words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    preload()
    become(begin(**forks(socket.socket(fileno=0))))
