"""What the contract tests share: a small table, launches, servers, and comparing runs."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from onward.checkpoint.format import load_whole
from onward.checkpoint.hashed import verify_file
from onward.checkpoint.manifest import MANIFEST_FILE, parse_manifest
from onward.metrics import is_wall_clock
from onward.options.declare import OnResume, options_of
from train.tabular.data import cache
from train.tabular.options import Config

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SERVER_BIN = Path(os.environ.get("SERVER_BIN", BIN))  # of an MLflow of another version
# Models and figures of finished runs cost seconds: `test_results.py` is about them.
SMALL = ("--batch_size", "64", "--hidden_size", "16", "--num_layers", "1", "--log_model", "false")
# What may differ between two equal runs: when, where and in which attempt they were made.
NOT_COMPARED = {"timestamp", "environment"}


def only_what_was_fitted(folder: Path) -> Callable[[str, Path, int], None]:
    """Return how a run's prepared data is downloaded from `folder`, where its arrays are gone."""

    def download(name: str, to: Path, _max_bytes: int) -> None:
        if name != cache.JSON_NAME:
            raise FileNotFoundError(name)
        to.parent.mkdir(parents=True)
        shutil.copyfile(folder / name, to)

    return download


def write_table(path: Path, num_rows: int = 400, seed: int = 0) -> Path:
    """Write a table with numbers, categories and missing values, and a target to learn."""
    draw = random.Random(seed)
    lines = ["size,weight,color,price"]
    for _ in range(num_rows):
        size, weight = draw.gauss(0, 1), draw.gauss(5, 2)
        color = draw.choice(["red", "green", "blue"])
        price = 3 * size + weight + len(color) + draw.gauss(0, 0.3)
        shown = "" if draw.random() < 0.05 else f"{weight:.4f}"
        lines.append(f"{size:.4f},{shown},{color},{price:.4f}")
    path.write_text("\n".join(lines) + "\n")
    return path


def environment(home: Path, tracking_uri: str | None = None, **extra: str) -> dict[str, str]:
    """Return the environment of a process as on a machine of its own."""
    # OMP_WAIT_POLICY is what a command that ran in this process has left there.
    left_out = ("MLFLOW_", "TRAIN_", "ONWARD_", "OMP_WAIT_POLICY")
    env = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    env["PATH"] = f"{BIN}{os.pathsep}{env['PATH']}"
    env["TRAIN_HOME"] = str(home)
    env["PYTHONPATH"] = str(ROOT)
    env["LC_ALL"] = "C.UTF-8"  # the messages in English
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process compiles all of ours, for 0.4 s
    if tracking_uri is not None:
        env["MLFLOW_TRACKING_URI"] = tracking_uri
    return env | extra


@functools.cache
def _preloaded(**variables: str):
    from preloaded import Preloaded

    return Preloaded(environment(Path(os.devnull), **variables))


def start_command(command: Sequence, **popen):
    """Start a command as `subprocess.Popen` does; Python as a fork, where that is the same.

    See `preloaded.py`. What it prints is text.
    """
    one_thread = {"OMP_NUM_THREADS": "1"}
    is_asked = one_thread.items() <= (popen.get("env") or {}).items()
    preloaded = _preloaded(**one_thread) if is_asked else _preloaded()
    if preloaded.fits(command, popen):
        return preloaded.start(command, **popen)
    return subprocess.Popen([str(word) for word in command], text=True, **popen)


def run_command(command: Sequence, timeout: float = 240, **popen) -> subprocess.CompletedProcess:
    """Run a command to its end, see `start_command`; return what it printed."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = start_command(command, **(pipes | popen))
    try:
        printed = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(command, process.returncode, *printed)


def launch(*options: str, **popen) -> subprocess.CompletedProcess:
    """Run `train run` with `options` to its end."""
    return run_command([sys.executable, "-m", "train", "run", *options], **popen)


def launch_killed(death: str, *options: str, **popen) -> subprocess.CompletedProcess:
    """Run `train run` so that it kills itself with SIGKILL at `death`; see `killer.py`."""
    killer = Path(__file__).parent / "contract" / "killer.py"
    done = run_command([sys.executable, killer, death, "run", *options], **popen)
    assert done.returncode == -signal.SIGKILL, f"not killed at {death}:\n{done.stdout}{done.stderr}"
    return done


def start_logged(command: list, file: Path, **popen):
    """Start a command, see `start_command`; what it prints goes to `file`, its `output`."""
    with file.open("wb") as output:
        process = start_command(command, stdout=output, stderr=output, **popen)
    process.output = file
    return process


@contextlib.contextmanager
def group_of(process):
    """Give a process that leads a session of its own; in the end kill all that is in it."""
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def cli(*words: str):
    """Run the command line in this process; return click's result."""
    from click.testing import CliRunner

    from train.cli import main

    return CliRunner().invoke(main, [str(word) for word in words])


def wait_for(condition, seconds: float = 120):
    """Return what `condition` returns as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"did not happen within {seconds} s")


ASK = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)"


class Server:
    """A real `mlflow server`, which can be stopped and started again.

    Args:
        folder: Its files.
        host: Its address.
        prefix: Words that run a command where it is to run.
        backend: The address of its database; default: a file of SQLite.
        artifacts: Where it keeps what goes through it; default: a folder.
        options: More words of its command line.
        variables: More of its environment.
    """

    def __init__(
        self,
        folder: Path,
        host: str = "127.0.0.1",
        prefix: Sequence[str] = (),
        backend: str | None = None,
        artifacts: str | None = None,
        options: Sequence[str] = (),
        variables: dict[str, str] | None = None,
    ) -> None:
        self._host, self._prefix, self._options = host, prefix, options
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._variables = {  # which other users of the machine cannot read, as they can the words
            "MLFLOW_BACKEND_STORE_URI": backend or f"sqlite:///{folder}/mlflow.db",
            "MLFLOW_ARTIFACTS_DESTINATION": artifacts or str(folder / "artifacts"),
            **(variables or {}),
        }
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://{host}:{self.port}"
        self._process = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        env = environment(
            self.folder, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", **self._variables
        )
        env["PATH"] = f"{SERVER_BIN}{os.pathsep}{env['PATH']}"
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._prefix,
                    *(SERVER_BIN / "mlflow", "server"),
                    *("--host", self._host, "--port", str(self.port)),
                    *("--workers", "1", *self._options),
                ],
                cwd=self.folder,
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        check = [*self._prefix, sys.executable, "-c", ASK, f"{self.address}/health"]

        def answers() -> bool:
            if self._prefix:
                return subprocess.run(check, capture_output=True).returncode == 0
            return _answers(f"{self.address}/health")

        wait_for(lambda: self._process.poll() is not None or answers())
        assert self._process.poll() is None, (self.folder / "server.log").read_text()

    def freeze(self) -> None:
        """Let it accept connections and answer nothing, until `thaw`."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on where it was."""
        os.killpg(self._process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """Kill it, if it runs."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def mlflow_server(folder: Path, **options):
    """Run a server for the length of a block."""
    server = Server(folder, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


def client(tracking_uri: str):
    """Return MLflow's client of a store."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri)


def only_run(tracking_uri: str):
    """Return the one run of the store that is no attempt of another."""
    runs = client(tracking_uri).search_runs(["0"])
    [run] = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    return run


def children(tracking_uri: str, run_id: str):
    """Return the runs of a run's later attempts, oldest first."""
    query = f"tags.`mlflow.parentRunId` = '{run_id}'"
    return client(tracking_uri).search_runs(["0"], query, order_by=["attributes.start_time"])


def checkpoint(tracking_uri: str, run_id: str, folder: Path) -> dict:
    """Download and load the checkpoint that MLflow's own pointer names."""
    run = client(tracking_uri).get_run(run_id)
    path = run.data.tags["mlflow.latest_checkpoint_artifact"]
    folder.mkdir(parents=True, exist_ok=True)
    local = client(tracking_uri).download_artifacts(run_id, path, str(folder))
    return torch.load(local, weights_only=True)


def whole(tracking_uri: str, run_id: str, folder: Path) -> dict:
    """Return the same with the tensors that ranks have saved in pieces."""
    run = client(tracking_uri).get_run(run_id)
    path = Path(run.data.tags["mlflow.latest_checkpoint_artifact"]).parent
    folder.mkdir(parents=True, exist_ok=True)
    local = Path(client(tracking_uri).download_artifacts(run_id, str(path), str(folder)))
    manifest = parse_manifest((local / MANIFEST_FILE).read_bytes(), local.name)
    for entry in manifest.files:
        verify_file(local, entry, local.name)
    return load_whole(local, manifest, local.name)


def ended(tracking_uri: str, run_id: str, folder: Path) -> dict:
    """Return all that a run has come to that is the same however often it was interrupted."""
    state = {
        key: value
        for key, value in whole(tracking_uri, run_id, folder).items()
        if key.endswith("state_dict") or key in ("epoch", "step", "rng", "ranks", "feeds")
    }
    rows = index(tracking_uri, run_id, folder)
    return {"state": state, "curves": curves(tracking_uri, run_id), "kept": rows}


def index(tracking_uri: str, run_id: str, folder: Path) -> list[dict]:
    """Return the manifests of the run's checkpoints, without what may differ."""
    folder.mkdir(parents=True, exist_ok=True)
    local = client(tracking_uri).download_artifacts(run_id, "checkpoints/index.json", str(folder))
    entries = json.loads(Path(local).read_text())["checkpoints"]
    return [{k: entry[k] for k in ("epoch", "step", "kept")} for entry in entries]


def curves(tracking_uri: str, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Return metric to its (step, value) rows in the order of the store, wall clock left out."""
    api = client(tracking_uri)
    keys = [k for k in api.get_run(run_id).data.metrics if not is_wall_clock(k)]
    return {
        key: [(m.step, m.value) for m in api.get_metric_history(run_id, key)]
        for key in sorted(keys)
    }


def differences(a, b, where: str = "") -> list[str]:
    """Return the leaves in which two checkpoints differ, at zero tolerance."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        return [] if same else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        if set(a) != set(b):
            return [f"{where}: keys {set(a) ^ set(b)}"]
        return [d for k in a for d in differences(a[k], b[k], f"{where}/{k}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [
            d
            for i, (x, y) in enumerate(zip(a, b, strict=True))
            for d in differences(x, y, f"{where}[{i}]")
        ]
    both_nan = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
    return [] if a == b or both_nan else [f"{where}: {a!r} != {b!r}"]


def attempt_of(tracking, run_id: str, number: int = 10**6):
    """Return an attempt at a run that no other one comes after."""
    from onward.attempts.attempt import Attempt

    return Attempt(tracking, run_id, number, 1, run_id, "http://server/#/run")


def comparable(saved: dict) -> dict:
    """Return a checkpoint without what two equal runs may differ in."""
    kept = {k: v for k, v in saved.items() if k not in NOT_COMPARED}
    kept["history"] = {
        key: rows[:, [0, 2]]  # the step and the value, not the time
        for key, rows in saved["history"].items()
        if not is_wall_clock(key)
    }
    kept["config"] = {
        name: saved["config"].get(name)  # new ones are left out at their defaults
        for name, (_, option) in options_of(Config).items()
        if option.on_resume is not OnResume.CHANGE and name != "data"  # a path
    }
    return kept
