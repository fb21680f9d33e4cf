"""Every test has an environment of its own; an MLflow store costs it the copy of a file."""

import json
import logging
import math
import os
import shutil
import signal
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings
from support import attempt_of

from onward.checkpoint import downloads, uploads
from onward.checkpoint import store as store_module
from onward.checkpoint import transfers as transfers_module
from onward.checkpoint import uploader as uploader_module
from onward.checkpoint.format import write_checkpoint
from onward.checkpoint.manifest import checkpoint_name
from onward.checkpoint.policy import Retention
from onward.checkpoint.spool import RunFolder
from onward.checkpoint.store import CheckpointStore
from onward.errors import StoreUnavailable
from onward.monitor import UNDECLARED
from onward.publish.publisher import Publisher
from onward.run.signals import SIGNALS
from onward.script import open as script_open
from onward.system import invocation
from onward.system.streams import write_hashed
from onward.tracking.artifacts import Artifacts
from onward.tracking.client import Tracking
from onward.tracking.names import (
    DATA_TAG,
    FINGERPRINT_TAG,
    LATEST_CHECKPOINT_TAG,
    MONITOR_TAG,
    OPTIONS_TAG,
)
from onward.words import shell
from train.tabular.options import Config

settings.register_profile("suite", max_examples=60, deadline=None, database=None)
settings.load_profile("suite")


@pytest.fixture
def surroundings():
    """What a test stands in is put back after it, not by a `monkeypatch.undo()` inside it."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(autouse=True)
def isolated(tmp_path, surroundings):
    """Give the test an empty folder to work in, and put back what a process has one of."""
    environment = dict(os.environ)
    signals = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in signals.items():
        if handler is signal.SIG_IGN:  # by `nohup`, on which no test must depend
            signal.signal(number, signal.SIG_DFL)
    logger = logging.getLogger("onward")
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate
    for name in environment:
        if name.startswith(("MLFLOW_", "TRAIN_", "ONWARD_")):
            del os.environ[name]
    surroundings.setattr(invocation, "_script", None)
    surroundings.setattr(script_open, "_open", None)
    surroundings.setattr(shell, "_program", "onward")
    surroundings.setattr(shell, "_task", "")
    os.environ["TRAIN_HOME"] = str(tmp_path / "home")
    os.environ["LC_ALL"] = "C.UTF-8"  # the messages in English, whoever runs the tests
    surroundings.chdir(tmp_path)
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)
    for number, handler in signals.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(autouse=True)
def pauses(surroundings):
    """Let no test wait before a transfer is tried again; return how long each pause would be."""
    asked = []
    surroundings.setattr(transfers_module, "time", SimpleNamespace(sleep=asked.append))
    surroundings.setattr(uploader_module, "MAX_RETRY_SECONDS", 0.01)
    return asked


@pytest.fixture
def one_at_a_time(monkeypatch):
    """Let the files of a checkpoint go up and down in their order, not several at a time."""
    for module in (store_module, uploads, downloads):
        monkeypatch.setattr(module, "NUM_TRANSFERS", 1)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """Make MLflow's tables once: that takes seconds."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        Tracking().probe()
    return path


@pytest.fixture
def tracking(isolated, empty_database, tmp_path):
    """Return a connection to a fresh SQLite store, with its artifacts in `tmp_path/mlruns`."""
    path = tmp_path / "mlflow.db"
    shutil.copy(empty_database, path)
    database = sqlite3.connect(path)
    with database:
        root = str(tmp_path / "mlruns" / "0")
        database.execute("UPDATE experiments SET artifact_location = ?", [root])
    database.close()
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{path}"
    return Tracking()


@pytest.fixture
def record(tracking):
    """Return a new run."""
    return tracking.create_run("0", "a run", {})


class Held:
    """A point at which a thread waits."""

    def __init__(self):
        self.reached, self.free = threading.Event(), threading.Event()

    def wait(self):
        """Wait until a thread is there."""
        assert self.reached.wait(60), "no thread came"


class Calls:
    """What was called, in order, by whatever thread; from one of the calls on they can fail.

    Args:
        fail: Index of the first call that fails, counted from `arm`.
        when: How that one fails: "before" anything is done, "half" way through, or "after" all
            is done. The later ones fail before.
        num_failing: How many fail; default: all, as when a server is gone.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._held = {}
        self.arm(None)

    def hold(self, name):
        """Let the thread that makes this call wait in it; return what tells and frees it."""
        self._held[name] = Held()
        return self._held[name]

    def free(self):
        """Let nothing fail and nobody wait any more."""
        self.arm(None)
        for held in self._held.values():
            held.free.set()

    def arm(self, fail=None, when="before", num_failing=math.inf):
        """Forget the calls so far, and let those from the index `fail` on fail."""
        with self._lock:
            self.names, self._fail, self._when, self._num_failing = [], fail, when, num_failing

    def make(self, name, act, act_half=None):
        """Note a call, then make it, or fail."""
        with self._lock:
            since = math.inf if self._fail is None else len(self.names) - self._fail
            fails = self._fail is not None and 0 <= since < self._num_failing
            self.names.append(name)
            when = self._when if since == 0 else "before"
        if name in self._held:
            self._held[name].reached.set()
            assert self._held[name].free.wait(60)
        if not fails:
            return act()
        if when == "after":
            act()
        elif when == "half" and act_half is not None:
            act_half()
        raise StoreUnavailable(f"{name} failed on purpose")


class RecordedArtifacts(Artifacts):
    """The files of a run in a folder; each call is noted, as "upload logs/attempt_1.log".

    Args:
        root: The folder.
        calls: Notes the calls, and makes some of them fail.
        is_remote: Whether it passes for a store that is no folder of this machine.
    """

    def __init__(self, root, calls, is_remote=False):
        super().__init__(str(root))
        self.root, self.calls = Path(root), calls
        if is_remote:
            self.folder = None

    def list(self, path=""):
        return self.calls.make(f"list {path}", lambda: super(RecordedArtifacts, self).list(path))

    def upload(self, local_file, folder, give_away=False):
        def half():
            (self.root / folder).mkdir(parents=True, exist_ok=True)
            target = self.root / folder / local_file.name
            target.unlink(missing_ok=True)  # it may be a second name of a local file
            content = local_file.read_bytes()
            target.write_bytes(content[: len(content) // 2])

        def whole():
            super(RecordedArtifacts, self).upload(local_file, folder, give_away)

        self.calls.make(f"upload {folder}/{local_file.name}", whole, half)

    def download(self, path, target, max_bytes):
        def half():
            content = (self.root / path).read_bytes()
            write_hashed([content[: len(content) // 2]], target, max_bytes, path)

        def whole():
            return super(RecordedArtifacts, self).download(path, target, max_bytes)

        return self.calls.make(f"download {path}", whole, half)

    def delete(self, path, *is_own):
        delete = super().delete
        return self.calls.make(f"delete {path}", lambda: delete(path, *is_own))


class RecordedTracking(Tracking):
    """A connection on which is noted what a server does, as "publish 1 1 2" and "point to …"."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def log_points(self, run_id, points, tags=None):
        name = " ".join(["publish", *(str(point.step) for point in points)])
        log = super().log_points
        half = points[: len(points) // 2]
        self.calls.make(name, lambda: log(run_id, points), lambda: log(run_id, half))
        if tags is not None:  # of one request a server stores them last
            self.set_tags(run_id, tags)

    def set_tags(self, run_id, tags):
        name = f"point to {tags.get(LATEST_CHECKPOINT_TAG)}"
        self.calls.make(name, lambda: super(RecordedTracking, self).set_tags(run_id, tags))


@pytest.fixture
def recorded_tracking(tracking, calls):
    """Return a connection to the store of `tracking` whose calls are noted in `calls`."""
    return RecordedTracking(calls)


@pytest.fixture
def calls():
    """Return what notes the calls of `artifacts`, and can make them fail or wait."""
    calls = Calls()
    yield calls
    calls.free()


@pytest.fixture
def artifacts(tmp_path, calls):
    """Return the recorded files of a run."""
    return RecordedArtifacts(tmp_path / "artifacts", calls)


@pytest.fixture
def one_thread():
    """Compute on one thread: on a busy machine two are a hundred times slower on small tensors."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_checkpoint():
    """Return a function that makes the smallest content of a checkpoint that can be resumed."""
    import torch

    def make(epoch, epoch_step=0, **more):
        weights = {"weight": torch.full((3,), float(epoch))}
        counts = {"epoch": epoch, "step": 10 * epoch + epoch_step, "epoch_step": epoch_step}
        content = {**counts, "model_state_dict": weights, "history": {}, "rng": {}}
        content |= {"epoch_sums": {}, "epoch_seconds": 0.0}
        rest = {"config": Config().to_dict(), "data": {"fingerprint": "d" * 64}}
        return {**content, **rest, **more}

    return make


@pytest.fixture
def commit_to(tracking, tmp_path, make_checkpoint):
    """Return a function that commits checkpoints to a run, as an attempt of ours does.

    It takes the run and, for each epoch, the score that decides which is best. In place of an epoch
    there may be (epoch, epoch_step), inside one; those have no score. It is one of `monitor`.
    """

    def commit(record, scores, kept=True, monitor=UNDECLARED):
        store = CheckpointStore(tracking.artifacts(record), record.run_id)
        spool = RunFolder(tmp_path / "committing" / record.run_id).spool(1)
        publisher = Publisher(attempt_of(tracking, record.run_id), store, spool, Retention())
        identity = {FINGERPRINT_TAG: "f" * 64, DATA_TAG: "d" * 64}
        tracking.set_tags(record.run_id, {**identity, OPTIONS_TAG: json.dumps(Config().to_dict())})
        judged = {}
        if monitor != UNDECLARED:
            judged = {"monitor": str(monitor), "format_version": 3}
            tracking.set_tags(record.run_id, {MONITOR_TAG: str(monitor)})
        for where, score in scores.items():
            epoch, epoch_step = where if isinstance(where, tuple) else (where, 0)
            metrics = {} if epoch_step else {"val_loss": 1 / epoch, monitor.name: score}
            content = make_checkpoint(epoch, epoch_step, **judged)
            path = spool.path(checkpoint_name(content))
            manifest = write_checkpoint(path, content, attempt=1, kept=kept, metrics=metrics)
            publisher.commit(manifest)
            spool.remove(manifest.name)
        return tracking.get_run(record.run_id)

    return commit


class Refusing(BaseHTTPRequestHandler):
    """Answers every call with `code` and `body`."""

    code, body, kind = 401, b"", "text/plain"

    def _answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.code)
        self.send_header("Content-Type", self.kind)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def log_message(self, *_):
        pass


@pytest.fixture
def refusing(monkeypatch):
    """Return a function that starts a server which refuses everything, as MLFLOW_TRACKING_URI."""
    servers = []

    def start(code, body, kind="text/plain"):
        handler = type("", (Refusing,), {"code": code, "body": body.encode(), "kind": kind})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        address = f"127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@{address}")
        return f"http://***@{address}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
