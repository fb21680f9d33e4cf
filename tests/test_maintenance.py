"""Verify, prune, export, show: what is done with the checkpoints of a run besides training."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from onward.checkpoint.format import write_checkpoint
from onward.checkpoint.index import Origin
from onward.checkpoint.pieces import Marker, add_shard
from onward.checkpoint.policy import Retention
from onward.checkpoint.spool import RunFolder
from onward.checkpoint.store import CheckpointStore
from onward.errors import CheckpointDamaged, CheckpointNotFound, RunNotUsable
from onward.monitor import Monitor
from onward.opening import maintenance
from onward.run.state import TrainState
from onward.system import environment
from onward.tracking.names import HOST_TAG, OPTIONS_TAG
from train.schedule import Schedule
from train.tabular.options import Config

SCORES = {1: 0.1, 2: 0.9, 3: 0.3, 4: 0.2}


@pytest.fixture
def trained(record, commit_to):
    """Return a run with checkpoints of four epochs, the second being the best; all are kept."""
    return commit_to(record, SCORES)


def stored(record, epoch, name="checkpoint.pth"):
    return Path(record.artifact_uri) / "checkpoints" / f"epoch_{epoch}" / name


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def epochs_of(tracking, record):
    return [m.epoch for m in CheckpointStore(tracking.artifacts(record), record.run_id).list()]


def everything(record):
    """Return path to bytes of all files of a run."""
    root = Path(record.artifact_uri)
    return {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_each_checkpoint_is_ok_damaged_or_uncommitted(tracking, trained):
    """One row for each folder, with what was found; a leftover is no damage, and comes first.

    A checkpoint that the index knows, and that has lost its manifest, is no leftover.
    """
    shutil.copytree(stored(trained, 1).parent, stored(trained, 5).parent)
    stored(trained, 5, "manifest.json").unlink()
    cut(stored(trained, 2))
    stored(trained, 3, "manifest.json").unlink()
    stored(trained, 4, "manifest.json").write_bytes(b"{")
    rows = list(maintenance.verify_rows(tracking, trained.run_id))
    found = [(row["name"], row["status"]) for row in rows]
    assert found == [
        ("epoch_5", "uncommitted"), ("epoch_1", "ok"), ("epoch_2", "damaged"),
        ("epoch_3", "damaged"), ("epoch_4", "damaged"),
    ]  # fmt: skip
    assert rows[1]["bytes"] == sum(
        stored(trained, 1, name).stat().st_size
        for name in ("checkpoint.pth", "checkpoint_metrics.json")
    )
    assert "checkpoint.pth has" in rows[2]["found"]
    assert "manifest.json is gone" in rows[3]["found"]
    assert "is not JSON" in rows[4]["found"]


def test_verifying_changes_nothing(tracking, trained):
    """Neither the store nor what it links to is written to."""
    before = everything(trained)
    list(maintenance.verify_rows(tracking, trained.run_id))
    assert everything(trained) == before


def test_a_run_without_checkpoints_has_no_rows(tracking, record):
    """Nothing to verify is no error; an unknown run is one."""
    assert list(maintenance.verify_rows(tracking, record.run_id)) == []
    with pytest.raises(RunNotUsable):
        list(maintenance.verify_rows(tracking, "0" * 32))


@pytest.mark.parametrize(
    ("retention", "left"),
    [
        (Retention(), [1, 2, 3, 4]),
        (Retention(every=3), [2, 3, 4]),
        (Retention(every=100), [2, 4]),
        (Retention(last=2, every=100), [2, 3, 4]),
        (Retention(best=3, every=100), [2, 3, 4]),
        (Retention(last=0, best=0, every=100), [2, 4]),
    ],
)
def test_pruning_leaves_what_was_asked_for(tracking, trained, retention, left):
    """Newest and best stay always; those kept when saved stay unless `keep_every` is given."""
    would_go = maintenance.prune(tracking, trained.run_id, retention, dry_run=True)
    assert epochs_of(tracking, trained) == [1, 2, 3, 4], "a dry run deletes nothing"
    gone = maintenance.prune(tracking, trained.run_id, retention, dry_run=False)
    assert gone == would_go
    assert [m.epoch for m in gone] == [e for e in SCORES if e not in left]
    assert epochs_of(tracking, trained) == left
    assert maintenance.prune(tracking, trained.run_id, retention, dry_run=False) == []


def test_what_is_not_given_is_as_the_run_was_asked_for(tracking, trained):
    """`keep_last` and `keep_best` of the run count where the command does not name them."""
    config = Config(keep_last=3, keep_best=2)
    tracking.set_tags(trained.run_id, {OPTIONS_TAG: json.dumps(config.to_dict())})
    found = maintenance.retention_of(tracking, trained.run_id, None, None, None)
    assert found == Retention(last=3, best=2)
    assert maintenance.retention_of(tracking, trained.run_id, 1, 4, 10) == Retention(1, 4, 10)


@pytest.mark.parametrize("damaged", [[4], [3, 4]])
def test_the_newest_good_one_is_never_pruned(tracking, trained, damaged):
    """A damaged newest does not count: what a resume would go on from stays (invariant 3)."""
    for epoch in damaged:
        cut(stored(trained, epoch))
    maintenance.prune(tracking, trained.run_id, Retention(every=100), dry_run=False)
    newest_good = max(set(SCORES) - set(damaged))
    assert epochs_of(tracking, trained) == sorted({2, newest_good, *damaged})


def test_the_best_good_one_is_never_pruned(tracking, trained):
    """A damaged best does not count either: the next best one, which is good, stays."""
    cut(stored(trained, 2))
    second = max((1, 3, 4), key=SCORES.__getitem__)
    maintenance.prune(tracking, trained.run_id, Retention(every=100), dry_run=False)
    assert epochs_of(tracking, trained) == sorted({2, second, 4})


def test_where_all_are_damaged_nothing_is_pruned(tracking, trained):
    """Without a good one nothing may go."""
    for epoch in SCORES:
        cut(stored(trained, epoch))
    assert maintenance.prune(tracking, trained.run_id, Retention(every=100), dry_run=False) == []
    assert epochs_of(tracking, trained) == [1, 2, 3, 4]


def test_the_index_never_names_what_is_gone(tracking, trained, calls, artifacts, monkeypatch):
    """Invariant 3: the index first, then the manifest, then the data."""
    recorded = type(artifacts)(trained.artifact_uri, calls)
    monkeypatch.setattr(tracking, "artifacts", lambda record: recorded)
    maintenance.prune(tracking, trained.run_id, Retention(every=3), dry_run=False)
    changes = [name for name in calls.names if name.startswith(("upload", "delete"))]
    assert changes == [
        "upload checkpoints/index.json",
        "delete checkpoints/epoch_1/manifest.json",
        "delete checkpoints/epoch_1",
    ]


def test_a_run_that_is_being_trained_here_is_not_pruned(tracking, trained):
    """One writer (invariant 8): the process that trains prunes itself."""
    folder = RunFolder(environment.run_folder(tracking.uri, trained.run_id))
    assert folder.acquire()
    with pytest.raises(RunNotUsable, match="is being trained by another process"):
        maintenance.prune(tracking, trained.run_id, Retention(every=100), dry_run=False)
    assert epochs_of(tracking, trained) == [1, 2, 3, 4]
    folder.release()
    maintenance.prune(tracking, trained.run_id, Retention(every=100), dry_run=False)
    assert folder.acquire(), "it was not given back"
    folder.release()


@pytest.mark.parametrize(("wanted", "epoch"), [("latest", 4), ("best", 2), ("1", 1)])
def test_an_exported_checkpoint_is_one_plain_file(tracking, trained, tmp_path, wanted, epoch):
    """Any checkpoint becomes a .pth that torch loads without this program."""
    to = tmp_path / "out" / "checkpoint.pth"
    assert maintenance.export(tracking, trained.run_id, wanted, to).epoch == epoch
    loaded = torch.load(to, weights_only=True)
    assert loaded["epoch"] == epoch
    assert not to.samefile(stored(trained, epoch)), "the store's own file was given away"
    maintenance.export(tracking, trained.run_id, "1", to)
    assert torch.load(to, weights_only=True)["epoch"] == 1


def test_one_inside_an_epoch_is_looked_after_too(tracking, record, commit_to, tmp_path):
    """By its name it can be verified, shown and exported."""
    trained = commit_to(record, {1: 0.1, (1, 3): None})
    rows = list(maintenance.verify_rows(tracking, trained.run_id))
    found = [(row["name"], row["status"]) for row in rows]
    assert found == [("epoch_1", "ok"), ("global_step_13", "ok")]
    shown = maintenance.describe(tracking, trained.run_id, "global_step_13")
    assert (shown["manifest"]["epoch"], shown["manifest"]["epoch_step"]) == (1, 3)
    to = tmp_path / "out.pth"
    assert maintenance.export(tracking, trained.run_id, "global_step_13", to).step == 13
    assert torch.load(to, weights_only=True)["epoch_step"] == 3


def test_pruning_treats_one_inside_an_epoch_as_any_other(tracking, record, commit_to):
    """Kept ones stay unless `keep_every` is given: that is about whole epochs."""
    trained = commit_to(record, {1: 0.1, (1, 3): None, 2: 0.2, (2, 3): None, (2, 5): None})
    gone = maintenance.prune(tracking, trained.run_id, Retention(every=1), dry_run=False)
    assert [m.name for m in gone] == ["global_step_13", "global_step_23"]
    store = CheckpointStore(tracking.artifacts(trained), trained.run_id)
    assert [m.name for m in store.list()] == ["epoch_1", "epoch_2", "global_step_25"]


def test_pruning_keeps_the_least_of_a_run_that_minimises(tracking, record, commit_to):
    """Best is what the run was judged by."""
    scores = {1: 0.5, 2: 0.25, 3: 0.75, 4: 0.4}
    trained = commit_to(record, scores, monitor=Monitor("val_rmse", "min"))
    gone = maintenance.prune(tracking, trained.run_id, Retention(every=99), dry_run=True)
    assert [m.epoch for m in gone] == [1, 3]
    gone = maintenance.prune(tracking, trained.run_id, Retention(best=2, every=99), dry_run=False)
    assert [m.epoch for m in gone] == [1, 3]
    assert epochs_of(tracking, trained) == [2, 4]
    found = maintenance.describe(tracking, trained.run_id, "best")
    assert (found["manifest"]["epoch"], found["manifest"]["monitor"]) == (2, "val_rmse:min")
    assert found["state"]["monitor"] == "'val_rmse:min'"


def test_exported_parts_are_joined_with_the_scripts_keys(tracking, record, tmp_path):
    """A checkpoint in parts is one file again, with all that the script version knows."""
    model = torch.nn.Linear(50, 50)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = Schedule(Config(schedule_epochs=20), Monitor("val_loss", "min"))
    parts = {"model": model, "optimizer": optimizer, "scheduler": schedule}
    content = TrainState(parts, epoch=1, step=1).capture().to_dict()
    content |= {"config": Config().to_dict(), "data": {"fingerprint": "d"}, "timestamp": 1.0}
    content |= {"train_losses": [0.5], "val_losses": [0.5], "aucs": [], "best_corr": None}
    options = {"attempt": 1, "kept": True, "metrics": {}, "part_bytes": 2000}
    manifest = write_checkpoint(tmp_path / "epoch_1", content, **options)
    assert len(manifest.files) > 5
    CheckpointStore(tracking.artifacts(record), record.run_id).put(tmp_path / "epoch_1", manifest)
    maintenance.export(tracking, record.run_id, "latest", tmp_path / "out.pth")
    loaded = torch.load(tmp_path / "out.pth", weights_only=True)
    assert torch.equal(loaded["model_state_dict"]["weight"], model.weight)
    assert {
        "epoch", "model_state_dict", "optimizer_state_dict", "scheduler_state_dict",
        "train_losses", "val_losses", "aucs", "best_corr", "best_epoch", "timestamp",
    } <= set(loaded)  # fmt: skip


def test_a_damaged_one_is_not_exported(tracking, trained, tmp_path):
    """What cannot be trusted is not made to look as if it could; an older file stays."""
    to = tmp_path / "out.pth"
    to.write_bytes(b"old")
    cut(stored(trained, 4))
    with pytest.raises(CheckpointDamaged, match="epoch_4"):
        maintenance.export(tracking, trained.run_id, "latest", to)
    assert to.read_bytes() == b"old"
    with pytest.raises(CheckpointNotFound, match="epoch 7: it has 1, 2, 3, 4"):
        maintenance.export(tracking, trained.run_id, "7", to)


def test_what_a_checkpoint_holds_is_shown(tracking, trained):
    """Manifest, options, and each part of the state with its type and shape."""
    found = maintenance.describe(tracking, trained.run_id, "best")
    assert found["run_id"] == trained.run_id
    assert (found["manifest"]["epoch"], found["options"]["epochs"]) == (2, 20)
    state = found["state"]
    assert state["model_state_dict.weight"] == "float32 [3]"
    assert state["epoch"] == "2"
    assert state["data.fingerprint"] == repr("d" * 64)
    assert not [key for key in state if key.startswith("config")]


def test_checkpoints_that_stay_on_this_disk_are_found_there(tracking, trained):
    """With upload=off all of it works on the disk that has them."""
    folder = RunFolder(environment.run_folder(tracking.uri, trained.run_id))
    shutil.move(Path(trained.artifact_uri) / "checkpoints", folder.artifacts() / "checkpoints")
    with pytest.raises(CheckpointNotFound, match="though it had some"):
        list(maintenance.verify_rows(tracking, trained.run_id))
    tracking.set_tags(trained.run_id, {HOST_TAG: environment.hostname()})
    rows = list(maintenance.verify_rows(tracking, trained.run_id))
    assert [row["status"] for row in rows] == ["ok"] * 4


def test_a_checkpoint_of_ranks_is_looked_after_like_any_other(tracking, record, tmp_path):
    """Its pieces are verified, put together in an export, shown, and deleted with it."""
    weight, folder = torch.rand(10, 3), tmp_path / "epoch_1"
    marker = Marker("w", "float32", (10, 3)).to_dict()
    content = TrainState({}, epoch=1, step=1).capture().to_dict()
    content |= {"config": Config().to_dict(), "data": {"fingerprint": "d"}, "format_version": 3}
    content |= {"model_state_dict": {"weight": marker}, "world": 2, "layout": "fsdp"}

    def shard(to, rank):
        piece = {"key": "w", "shape": (10, 3), "offset": (5 * rank, 0)}
        own = [{**piece, "tensor": weight[5 * rank : 5 * rank + 5]}]
        return add_shard(to, Origin(rank, 2, 1, 1), own)

    manifest = write_checkpoint(
        folder, content, attempt=1, kept=True, metrics={}, shard=lambda to: shard(to, 0)
    )
    files = (*manifest.files, *shard(folder, 1).entries)
    store = CheckpointStore(tracking.artifacts(record), record.run_id)
    store.put(folder, dataclasses.replace(manifest, files=files))
    [row] = maintenance.verify_rows(tracking, record.run_id)
    assert (row["status"], row["bytes"]) == ("ok", sum(entry.bytes for entry in files))
    maintenance.export(tracking, record.run_id, "latest", tmp_path / "out.pth")
    loaded = torch.load(tmp_path / "out.pth", weights_only=True)
    assert torch.equal(loaded["model_state_dict"]["weight"], weight)
    shown = maintenance.describe(tracking, record.run_id, "latest")
    assert shown["state"]["model_state_dict.weight"] == "float32 [10, 3]"
    assert (shown["manifest"]["world"], shown["manifest"]["layout"]) == (2, "fsdp")
    cut(stored(record, 1, "shard-00001-00000.pth"))
    [row] = maintenance.verify_rows(tracking, record.run_id)
    assert row["status"] == "damaged"
    assert "shard-00001-00000.pth has" in row["found"]
    store.list()
    store.delete("epoch_1")
    assert not stored(record, 1).parent.exists()
