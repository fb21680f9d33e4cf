"""Programs of other people: where they are, and how one is started, awaited and ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from support import BIN, ROOT, wait_for

BUILD = ROOT / "build" / "servers"  # `make servers` puts there what the system lacks
DEBIAN = BUILD / "debian"  # packages of Debian, unpacked
NOBODY = "nobody"  # some servers refuse to run as root
LIBRARIES = ("usr/lib/*-linux-gnu", "lib/*-linux-gnu")
PROGRAMS = ("usr/sbin", "usr/bin", "usr/lib/postgresql/*/bin")
IS_ROOT = os.geteuid() == 0


class Missing(Exception):
    """A server cannot be had here."""


def find(name: str, root: Path = DEBIAN) -> Path:
    """Return the path of a program: of this environment, of the system, or unpacked below `root`.

    Raises:
        Missing: It is nowhere.
    """
    folders = [*BIN.parent.glob("bin"), BUILD / "node_modules" / ".bin"]
    for base in (Path("/"), root):
        folders += [folder for pattern in PROGRAMS for folder in sorted(base.glob(pattern))]
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *map(str, folders)]))
    if found is None:
        raise Missing(f"there is no {name}: `make servers` installs it")
    return Path(found)


def free_ports(number: int) -> list[int]:
    """Return ports that nobody listens at."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def listens(port: int) -> bool:
    """Tell whether somebody takes connections at a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Program:
    """A server that runs until it is stopped.

    Args:
        folder: Its files; what it says goes to `output` there.
        as_nobody: Whether it must not run as root.
    """

    variables: dict[str, str]
    secrets: tuple[str, ...] = ()

    def __init__(self, folder: Path, as_nobody: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.debian = folder, DEBIAN
        self.user: dict = {}
        self._own: list[Path] = []
        self._process: subprocess.Popen | None = None
        if as_nobody and IS_ROOT:
            self._move_out()

    def _move_out(self) -> None:
        """Take a folder, and what was unpacked, to where another user can come to."""
        self.user = {"user": NOBODY, "group": "nogroup", "extra_groups": []}
        self.folder = Path(tempfile.mkdtemp(prefix="onward-"))
        self._own.append(self.folder)
        if DEBIAN.exists():
            self.debian = self.folder / "debian"
            shutil.copytree(
                DEBIAN, self.debian, symlinks=True, ignore=shutil.ignore_patterns("*.deb")
            )
        shutil.chown(self.folder, NOBODY, "nogroup")

    def command(self) -> list:
        """Return the words that start it."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Tell whether it answers."""
        raise NotImplementedError

    def write(self, name: str, text: str) -> Path:
        """Write a file of its folder that only it can read."""
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)
        if self.user:
            shutil.chown(path, NOBODY, "nogroup")
        return path

    def environment(self) -> dict[str, str]:
        """Return the environment of its processes."""
        found = [folder for pattern in LIBRARIES for folder in self.debian.glob(pattern)]
        libraries = os.pathsep.join(map(str, found))
        return {**os.environ, "LD_LIBRARY_PATH": libraries, "HOME": str(self.folder)}

    def call(self, *words: object, **options) -> None:
        """Run one of its other programs to its end.

        Raises:
            Missing: It fails.
        """
        done = subprocess.run(
            [*map(str, words)], cwd=self.folder, env=self.environment(), timeout=120,
            capture_output=True, text=True, **self.user, **options,
        )  # fmt: skip
        if done.returncode:
            raise Missing(f"{words[0]} ended with {done.returncode}: {done.stderr[-500:]}")

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            Missing: It ends in place of that.
        """
        with open(self.folder / "output", "ab") as output:
            process = subprocess.Popen(
                [*map(str, self.command())], cwd=self.folder, env=self.environment(),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, **self.user,
            )  # fmt: skip
        self._process = process
        wait_for(lambda: process.poll() is not None or self.ready(), 60)
        if process.poll() is not None:
            raise Missing(f"{process.args[0]} ended: {self.output()[-1000:]}")

    def output(self) -> str:
        """Return what it has said."""
        return (self.folder / "output").read_text(errors="replace")

    def signal(self, number: int) -> None:
        """Send a signal to all its processes, e.g. SIGSTOP and SIGCONT."""
        os.killpg(self._process.pid, number)

    def stop(self) -> None:
        """Kill it, and its processes, if it runs."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        """Stop it for good."""
        self.stop()
        for folder in self._own:
            shutil.rmtree(folder, ignore_errors=True)
