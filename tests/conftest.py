"""Every test has an environment of its own; an MLflow store costs it the copy of a file."""

import logging
import os
import shutil
import signal
import sqlite3

import pytest
from hypothesis import settings

from train.tracking import Artifacts, Tracking

settings.register_profile("suite", max_examples=60, deadline=None, database=None)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """Give the test an empty folder to work in, and put back what a process has one of."""
    before = dict(os.environ)
    signals = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    logger = logging.getLogger("train")
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate
    for name in before:
        if name.startswith(("MLFLOW_", "TRAIN_")):
            del os.environ[name]
    os.environ["TRAIN_HOME"] = str(tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)
    for number, handler in signals.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """Make MLflow's tables once: that takes seconds."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{path}"
    Tracking().probe()
    os.environ.pop("MLFLOW_TRACKING_URI")
    if uri is not None:
        os.environ["MLFLOW_TRACKING_URI"] = uri
    return path


@pytest.fixture
def tracking_uri(isolated, empty_database, tmp_path):
    """Choose a fresh SQLite store, with artifacts in `tmp_path/mlruns`, by MLflow's variable."""
    path = tmp_path / "mlflow.db"
    shutil.copy(empty_database, path)
    with sqlite3.connect(path) as database:
        root = str(tmp_path / "mlruns" / "0")
        database.execute("UPDATE experiments SET artifact_location = ?", [root])
    database.close()
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{path}"
    return os.environ["MLFLOW_TRACKING_URI"]


@pytest.fixture
def tracking(tracking_uri):
    """Return a connection to a fresh store."""
    return Tracking()


@pytest.fixture
def record(tracking):
    """Return a new run."""
    return tracking.create_run("0", "a run", {})


class RecordedArtifacts(Artifacts):
    """The files of a run in a local folder; notes each call, and fails at the one it is told to.

    A call reads "upload checkpoints/epoch_1/checkpoint.pth".
    """

    def __init__(self, root, calls):
        super().__init__(str(root))
        self.calls = calls

    def list(self, path=""):
        self.calls.note(f"list {path}")
        return super().list(path)

    def upload(self, local_file, folder):
        name = f"{folder}/{local_file.name}"
        with self.calls.cutting(f"upload {name}", local_file) as whole_or_cut:
            super().upload(whole_or_cut, folder)

    def download(self, path, local_file):
        self.calls.note(f"download {path}")
        super().download(path, local_file)

    def delete(self, path):
        self.calls.note(f"delete {path}")
        super().delete(path)
