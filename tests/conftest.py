"""Every test has an environment of its own; an MLflow store costs it the copy of a file."""

import json
import logging
import os
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest
from hypothesis import settings

from train.checkpoint.pipeline import Pipeline
from train.checkpoint.store import CheckpointStore
from train.config import Config
from train.errors import StoreUnavailable
from train.tracking import DATA_TAG, FINGERPRINT_TAG, OPTIONS_TAG, Artifacts, Tracking

settings.register_profile("suite", max_examples=60, deadline=None, database=None)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """Give the test an empty folder to work in, and put back what a process has one of."""
    environment = dict(os.environ)
    signals = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    logger = logging.getLogger("train")
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate
    for name in environment:
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
    os.environ.update(environment)


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


class Calls:
    """What was called, in order; one of the calls can be made to fail.

    Args:
        fail: Index of the call that fails, counted from `arm`.
        when: "before" anything is done, "half" way through an upload, or "after" all is done.
    """

    def __init__(self):
        self.names, self._fail, self._when = [], None, "before"

    def arm(self, fail, when="before"):
        """Forget the calls so far, and let the one at index `fail` fail."""
        self.names, self._fail, self._when = [], fail, when

    def make(self, name, act, act_half=None):
        """Note a call, then make it, or fail."""
        self.names.append(name)
        if len(self.names) - 1 != self._fail:
            return act()
        if self._when == "after":
            act()
        elif self._when == "half" and act_half is not None:
            act_half()
        raise StoreUnavailable(f"{name} failed on purpose")


class RecordedArtifacts(Artifacts):
    """The files of a run in a local folder; each call is noted, as "upload logs/attempt_1.log"."""

    def __init__(self, root, calls):
        super().__init__(str(root))
        self.root, self.calls = Path(root), calls

    def list(self, path=""):
        return self.calls.make(f"list {path}", lambda: super(RecordedArtifacts, self).list(path))

    def upload(self, local_file, folder):
        def half():
            (self.root / folder).mkdir(parents=True, exist_ok=True)
            content = local_file.read_bytes()
            (self.root / folder / local_file.name).write_bytes(content[: len(content) // 2])

        def whole():
            super(RecordedArtifacts, self).upload(local_file, folder)

        self.calls.make(f"upload {folder}/{local_file.name}", whole, half)

    def download(self, path, local_file):
        def whole():
            super(RecordedArtifacts, self).download(path, local_file)

        self.calls.make(f"download {path}", whole)

    def delete(self, path):
        self.calls.make(f"delete {path}", lambda: super(RecordedArtifacts, self).delete(path))


@pytest.fixture
def calls():
    """Return what notes the calls of `artifacts`, and can make one of them fail."""
    return Calls()


@pytest.fixture
def artifacts(tmp_path, calls):
    """Return the recorded files of a run."""
    return RecordedArtifacts(tmp_path / "artifacts", calls)


@pytest.fixture
def make_checkpoint():
    """Return a function that makes the smallest content of a checkpoint that can be resumed."""
    import torch

    def make(epoch, **more):
        weights = {"weight": torch.full((3,), float(epoch))}
        content = {"epoch": epoch, "step": 10 * epoch, "model_state_dict": weights}
        return {**content, "config": Config().to_dict(), **more}

    return make


@pytest.fixture
def commit_to(tracking, tmp_path, make_checkpoint):
    """Return a function that commits checkpoints to a run, as an attempt of ours does.

    It takes the run and, for each epoch, the score that decides which is best.
    """

    def commit(record, scores, kept=True):
        store = CheckpointStore(tracking.artifacts(record), record.run_id)
        pipeline = Pipeline(tracking, store, 1, tmp_path / "spool" / record.run_id)
        identity = {FINGERPRINT_TAG: "f" * 64, DATA_TAG: "d" * 64}
        tracking.set_tags(record.run_id, {**identity, OPTIONS_TAG: json.dumps(Config().to_dict())})
        for epoch, score in scores.items():
            metrics = {"val_loss": 1 / epoch, "val_pearson": score}
            pipeline.commit(make_checkpoint(epoch), metrics, kept)
        return tracking.get_run(record.run_id)

    return commit
