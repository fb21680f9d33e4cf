"""A folder may have any name: what is stored there is found there, by MLflow's own tools too."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from onward.checkpoint.format import write_checkpoint
from onward.cli import listing
from onward.errors import CheckpointNotFound
from onward.opening import maintenance
from onward.opening.source import find_source, find_store
from onward.system import environment
from onward.tracking.artifact_folder import warn_of_percent
from onward.tracking.names import EPOCH_TAG, HOST_TAG
from onward.tracking.translate import local_path, local_uri
from train.cli import main
from train.kind import find_task

# Names that MLflow reads as they are, and those that it reads as others.
NAMES = ["a b", "a+b", "a#b", "a?b=c", "a;b", "a&b", "100%", "数据", "é", "%zz", "a:b", "[a]"]
READ_OTHERWISE = {
    "a%20b": "a b",
    "a%2Fb": "a/b",
    "a%2520b": "a%20b",
    "%E6%95%B0": "数",
    "a%23b": "a#b",
}


@pytest.mark.parametrize("how", ["path", "uri"])
@pytest.mark.parametrize("name", [*NAMES, *READ_OTHERWISE])
def test_checkpoints_are_found_where_they_were_put(tracking, commit_to, tmp_path, name, how):
    """By a resume, `list`, `verify`, and MLflow's own client; nothing lies anywhere else."""
    root = tmp_path / "project" / name / "mlruns"
    location = str(root) if how == "path" else local_uri(root)
    experiment = tracking.client.create_experiment("odd", location)
    run = commit_to(tracking.create_run(experiment, None, {}), {1: 0.5, 2: 0.6})
    _record, _folder, store = find_store(tracking, run.run_id)
    assert find_source(run, store, None, find_task()).epoch == 2
    assert len(listing.checkpoint_rows(tracking, run.run_id)) == 2
    assert {row["status"] for row in maintenance.verify_rows(tracking, run.run_id)} == {"ok"}
    listed = tracking.client.list_artifacts(run.run_id, "checkpoints/epoch_2")
    assert len(listed) == 3
    pointer = run.tags["mlflow.latest_checkpoint_artifact"]
    assert Path(tracking.client.download_artifacts(run.run_id, pointer)).is_file()
    expected = root if how == "uri" else tmp_path / "project" / READ_OTHERWISE.get(name, name)
    assert {p.is_relative_to(expected) for p in (tmp_path / "project").rglob("*.pth")} == {True}
    store.delete("epoch_1")
    assert [m.epoch for m in store.list()] == [2]


@pytest.mark.parametrize("name", [*NAMES, *READ_OTHERWISE])
def test_a_path_becomes_a_uri_and_is_the_same_path_again(tmp_path, name):
    """The one place where a path is quoted, and the one where it is unquoted."""
    assert local_path(local_uri(tmp_path / name)) == tmp_path / name


@pytest.mark.parametrize(
    "uri", ["s3://b/x", "mlflow-artifacts:/0/r/artifacts", "http://[", "hdfs:/x"]
)
def test_what_is_no_folder_of_this_machine_is_none(uri):
    """Nor is what is no address at all."""
    assert local_path(uri) is None


def test_a_folder_that_mlflow_reads_otherwise_is_told(tracking, tmp_path, caplog):
    """The user learns where the files are, and how to avoid it."""
    for name in [*NAMES, *READ_OTHERWISE]:
        experiment = tracking.client.create_experiment(name, str(tmp_path / name))
        caplog.clear()
        warn_of_percent(tracking.create_run(experiment, None, {}))
        assert (str(tmp_path / READ_OTHERWISE.get(name, name)) in caplog.text) == (
            name in READ_OTHERWISE
        )


@pytest.mark.parametrize("name", ["a b", "a%20b", "a%2Fb", "a#b"])
def test_checkpoints_that_stay_here_lie_in_the_home_of_that_name(
    tracking, record, tmp_path, make_checkpoint, name
):
    """With upload=off; TRAIN_HOME is read as it is."""
    os.environ["TRAIN_HOME"] = str(tmp_path / name)
    tracking.set_tags(record.run_id, {HOST_TAG: environment.hostname()})
    _record, folder, store = find_store(tracking, record.run_id)
    path = folder.spool(1).path("epoch_1")
    store.put(path, write_checkpoint(path, make_checkpoint(1), attempt=1, kept=True, metrics={}))
    assert (folder.artifacts() / "checkpoints" / "epoch_1" / "manifest.json").exists()
    assert folder.path.is_relative_to(tmp_path / name)
    assert [m.epoch for m in store.list()] == [1]


@pytest.mark.parametrize("left", ["nothing", "an upload that was killed"])
@pytest.mark.parametrize("command", ["list", "verify", "prune"])
def test_a_run_that_shows_none_of_what_it_committed_is_an_error(
    tracking, record, commit_to, command, left
):
    """Exit code 4, and where it was looked for: an empty table would be silently less."""
    run = commit_to(record, {6: 0.5})
    _record, _folder, store = find_store(tracking, run.run_id)
    manifest = store.folder / "checkpoints" / "epoch_6" / "manifest.json"
    (store.folder / "checkpoints" / "index.json").unlink()
    manifest.unlink()
    if left == "nothing":
        store.list()
        store.delete("epoch_6")
    result = CliRunner().invoke(main, [command, run.run_id])
    assert result.exit_code == 4
    told = result.output.splitlines()[-1]
    assert "epoch 6" in told
    assert str(store.folder) in told


def test_a_run_that_committed_none_is_no_error(tracking, record):
    """It has just begun."""
    assert listing.checkpoint_rows(tracking, record.run_id) == []
    assert list(maintenance.verify_rows(tracking, record.run_id)) == []
    Path(record.artifact_uri).mkdir(parents=True)
    tracking.set_tags(record.run_id, {EPOCH_TAG: "[" * 5_000})
    with pytest.raises(CheckpointNotFound) as caught:
        listing.checkpoint_rows(tracking, record.run_id)
    assert len(str(caught.value)) < 1_000
