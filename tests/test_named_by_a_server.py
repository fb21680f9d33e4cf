"""A tracking server that names a folder of this machine gets nothing of what lies there."""

import dataclasses
import os
from types import SimpleNamespace

import pytest

from onward.errors import StoreUnavailable
from onward.tracking.artifacts import is_of_a_run
from onward.tracking.client import Tracking
from onward.tracking.models import _require_empty

RUN_ID = "4f1c"


@pytest.fixture
def root(tmp_path):
    """Return the folder that the server names for the run."""
    return tmp_path / "mlruns" / "0" / RUN_ID / "artifacts"


@pytest.fixture
def open_named(record):
    """Return a function that opens the files of a run, which a server says are in that folder."""

    def open_named(folder):
        os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
        named = dataclasses.replace(record, run_id=RUN_ID, artifact_uri=str(folder))
        return Tracking().artifacts(named)

    return open_named


OURS = [
    *("checkpoints/index.json", "checkpoints/index.html", "checkpoints/epoch_3/manifest.json"),
    *("checkpoints/epoch_3/checkpoint.pth", "checkpoints/global_step_7/checkpoint.pth/part-00001"),
    *("checkpoints/epoch_3/checkpoint_metrics.json", "data/processed_data.npz"),
    *("data/processed_data.json", "logs/attempt_12.log", "figures/best_predicted.png"),
    *("code/diff.patch", "checkpoints/epoch_3/checkpoint.pth.tmp"),
]
THEIRS = [
    *("thesis.tex", "checkpoints/epoch_1/weights.bin", "checkpoints/best.ckpt", "data/table.csv"),
    *(".ssh/authorized_keys", "logs/train.log", "checkpoints/epoch_1/deep/er/x", "figures/a/b.png"),
]


def put(root, path):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text("x")


def test_a_folder_with_the_runs_own_files_is_used_and_told(root, open_named, caplog):
    """Two machines may share a disk; the user learns that others have nothing of it."""
    for path in OURS:
        put(root, path)
    assert "checkpoints" in open_named(root).list()
    assert str(root) in caplog.text


def test_a_folder_that_is_not_there_yet_is_used(root, open_named):
    """A new run has none."""
    assert open_named(root).list() == []


@pytest.mark.parametrize("path", THEIRS)
def test_a_folder_with_other_files_is_refused(root, open_named, path):
    """One of them is named, and where it lies; none is changed."""
    put(root, "checkpoints/epoch_3/manifest.json")
    put(root, path)
    with pytest.raises(StoreUnavailable) as caught:
        open_named(root)
    assert path in str(caught.value)
    assert str(root) in str(caught.value)
    assert not is_of_a_run(path)


def test_a_link_in_it_is_not_looked_behind(root, open_named, tmp_path):
    """It is none of the run's files, wherever it leads."""
    put(tmp_path / "victim", "index.json")
    root.mkdir(parents=True)
    (root / "checkpoints").symlink_to(tmp_path / "victim")
    with pytest.raises(StoreUnavailable, match="'checkpoints' in it"):
        open_named(root)


@pytest.mark.parametrize("name", ["artifacts", "5a5a/artifacts", f"{RUN_ID}/files"])
def test_a_folder_of_another_run_is_refused(tmp_path, open_named, name):
    """However much it looks like one of ours."""
    put(tmp_path / name, "checkpoints/epoch_3/checkpoint.pth")
    with pytest.raises(StoreUnavailable, match="epoch_3"):
        open_named(tmp_path / name)


def test_a_database_is_taken_at_its_word(tracking, record, tmp_path):
    """Whoever trains without a server chose the folder."""
    (tmp_path / "notes.txt").write_text("x")
    tracking.artifacts(record).upload(tmp_path / "notes.txt", "")
    assert tracking.artifacts(record).list() == ["notes.txt"]


def test_a_new_model_overwrites_nothing(tmp_path):
    """MLflow itself would write `MLmodel` and more over what lies there."""
    model = SimpleNamespace(artifact_location=str(tmp_path / "m-1"))
    _require_empty(model)
    (tmp_path / "m-1").mkdir()
    _require_empty(model)
    put(tmp_path / "m-1", "requirements.txt")
    with pytest.raises(StoreUnavailable, match="m-1"):
        _require_empty(model)
    _require_empty(SimpleNamespace(artifact_location="mlflow-artifacts:/0/models/m-1/artifacts"))
