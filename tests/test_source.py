"""What a resume goes on from: the run, and a checkpoint of it that was verified."""

import dataclasses
import json
import logging
import re
import shutil
from pathlib import Path

import pytest
from support import cli

from onward.checkpoint.spool import RunFolder
from onward.errors import (
    CheckpointDamaged,
    CheckpointError,
    CheckpointNotFound,
    RunNotUsable,
    StoreUnavailable,
)
from onward.monitor import Monitor
from onward.opening.source import find_run, find_source, open_store, whose
from onward.system import environment
from onward.tracking.artifact_folder import require_local_artifacts
from onward.tracking.names import EPOCH_TAG, OPTIONS_TAG, TASK_TAG
from onward.tracking.record import RunRecord
from onward.tracking.translate import local_path
from train.kind import TaskKind, find_task
from train.tabular.options import Config

TABLE = find_task()
SCORES = {1: 0.1, 2: 0.9, 3: 0.5}


@pytest.fixture
def trained(record, commit_to):
    """Return a run with the checkpoints of epochs 1, 2 (the best) and 3."""
    return commit_to(record, SCORES)


def find(tracking, run_id, wanted=None):
    """Return the source that a resume of the run goes on from."""
    record = find_run(tracking, run_id)
    folder = RunFolder(environment.run_folder(tracking.uri, record.run_id))
    return find_source(record, open_store(tracking, record, folder), wanted, TABLE)


def stored(record, epoch, name="checkpoint.pth"):
    return Path(record.artifact_uri) / "checkpoints" / f"epoch_{epoch}" / name


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("wanted", "epoch", "is_newest"),
    [
        (None, 3, True),
        ("latest", 3, True),
        ("3", 3, True),
        ("2", 2, False),
        ("best", 2, False),
        ("1", 1, False),
    ],
)
def test_an_epoch_is_found_by_number_or_by_name(tracking, trained, wanted, epoch, is_newest):
    """The newest, the best and any epoch that exists can be asked for."""
    source = find(tracking, trained.run_id, wanted)
    assert source.epoch == source.content.epoch == epoch
    assert source.is_newest is is_newest
    assert [m.epoch for m in source.manifests] == [1, 2, 3]
    assert source.content.parts["model"]["weight"][0] == epoch


@pytest.mark.parametrize(
    ("wanted", "name", "is_newest"),
    [
        (None, "global_step_25", True),
        ("latest", "global_step_25", True),
        ("global_step_25", "global_step_25", True),
        ("global_step_13", "global_step_13", False),
        ("2", "epoch_2", False),
        ("best", "epoch_2", False),
    ],
)
def test_one_inside_an_epoch_is_found_by_its_name(
    tracking, record, commit_to, wanted, name, is_newest
):
    """It is the newest where it is, and by its name it can be asked for; it is never the best."""
    trained = commit_to(record, {1: 0.1, (1, 3): None, 2: 0.9, (2, 5): None})
    source = find(tracking, trained.run_id, wanted)
    assert (source.manifest.name, source.is_newest) == (name, is_newest)
    assert source.content.step == source.manifest.step
    assert source.content.epoch_step == source.manifest.epoch_step
    names = ["epoch_1", "global_step_13", "epoch_2", "global_step_25"]
    assert [m.name for m in source.manifests] == names


@pytest.mark.parametrize("wanted", ["global_step_20", "20", "global_step_2", "25"])
def test_a_step_that_has_none_names_those_there_are(tracking, record, commit_to, wanted):
    """A step is not taken for an epoch, nor an epoch's end for a step; what exists is listed."""
    trained = commit_to(record, {2: 0.9, (2, 5): None})
    with pytest.raises(CheckpointNotFound, match=f"{wanted}: it has 2, global_step_25"):
        find(tracking, trained.run_id, wanted)


def test_a_damaged_one_inside_an_epoch_is_passed_over(tracking, record, commit_to, caplog):
    """Resume falls back to the end of the epoch before, and then trains the epoch from there."""
    trained = commit_to(record, {2: 0.9, (2, 5): None})
    flip(Path(trained.artifact_uri) / "checkpoints" / "global_step_25" / "checkpoint.pth")
    with caplog.at_level(logging.WARNING, "onward"):
        source = find(tracking, trained.run_id)
    assert [m.name for m in source.manifests] == ["epoch_2"]
    assert (source.epoch, source.epochs_begun, source.is_newest) == (2, 2, True)
    assert f"global_step_25 of run '{trained.run_id}' is damaged" in caplog.text


def test_a_pruned_epoch_names_those_that_exist(tracking, record, commit_to):
    """Whoever asks for an epoch that is gone is told which ones are not."""
    trained = commit_to(record, SCORES, kept=False)
    with pytest.raises(CheckpointNotFound, match="no checkpoint of epoch 1: it has 2, 3"):
        find(tracking, trained.run_id, "1")


def test_best_is_refused_where_no_epoch_has_a_score(tracking, record, commit_to):
    """With an undefined correlation throughout there is no best epoch, and this is said."""
    trained = commit_to(record, {1: float("nan"), 2: float("nan")})
    with pytest.raises(CheckpointNotFound, match="a best epoch: it has 1, 2"):
        find(tracking, trained.run_id, "best")


@pytest.mark.parametrize("name", ["checkpoint.pth", "checkpoint_metrics.json"])
def test_a_damaged_newest_is_passed_over_with_a_warning(tracking, trained, caplog, name):
    """Resume falls back to the one before, and prunes by what is good only (invariants 1, 3)."""
    flip(stored(trained, 3, name))
    with caplog.at_level(logging.WARNING, "onward"):
        source = find(tracking, trained.run_id)
    assert source.epoch == 2
    assert [m.epoch for m in source.manifests] == [1, 2]
    assert source.is_newest
    [warning] = [r.getMessage() for r in caplog.records]
    assert f"epoch_3 of run '{trained.run_id}' is damaged: {name} has sha256" in warning
    assert "Falling back" in warning


def test_a_newest_that_lost_its_manifest_is_passed_over(tracking, trained):
    """A checkpoint named by the index alone does not exist (invariant 1)."""
    stored(trained, 3, "manifest.json").unlink()
    assert find(tracking, trained.run_id).epoch == 2


def test_all_damaged_is_an_error_about_the_newest(tracking, trained):
    """With nothing good left, training does not start from scratch (invariant 7)."""
    for epoch in SCORES:
        flip(stored(trained, epoch))
    with pytest.raises(CheckpointDamaged, match="epoch_3"):
        find(tracking, trained.run_id)


def test_an_epoch_that_was_asked_for_is_not_replaced_by_another(tracking, trained):
    """Only the newest may be passed over: a chosen epoch that is damaged is an error.

    The message names those that may be asked for instead.
    """
    flip(stored(trained, 2))
    with pytest.raises(CheckpointDamaged, match=r"epoch_2 .* The run also has 1, 3"):
        find(tracking, trained.run_id, "2")


def test_a_checkpoint_of_a_newer_version_is_not_passed_over(tracking, trained):
    """A newer program's checkpoint is no damage: going back would lose its epochs silently."""
    path = stored(trained, 3, "manifest.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(CheckpointError, match="format version 99"):
        find(tracking, trained.run_id)


def test_latest_is_the_newest_unfinished_run(tracking, commit_to):
    """Finished runs and runs without a checkpoint are not what "latest" means."""
    made = []
    for number, status in enumerate(["KILLED", "FAILED", "FINISHED"], start=1):
        run = tracking.client.create_run("0", start_time=1000 * number)
        commit_to(tracking.get_run(run.info.run_id), {1: 0.5})
        tracking.set_status(run.info.run_id, status)
        made.append(run.info.run_id)
    tracking.create_run("0", "newer, but without a checkpoint", {})
    assert find_run(tracking, "latest").run_id == made[1]
    assert find(tracking, "latest").record.run_id == made[1]
    assert find_run(tracking, made[2]).run_id == made[2]


def test_latest_says_whose_run_it_takes(tracking, commit_to, caplog):
    """On a server that many use it may be a colleague's, of any name."""
    tags = {"mlflow.user": "ann\x1b[2J"}
    record = commit_to(tracking.create_run("0", "her\nrun", tags), {1: 0.5})
    with caplog.at_level("INFO", "onward"):
        assert find_run(tracking, "latest").run_id == record.run_id
    [told] = [r.getMessage() for r in caplog.records if "newest unfinished" in r.getMessage()]
    assert told.startswith(
        f"The newest unfinished run is '{record.run_id}' (her\\nrun of ann\\x1b[2J"
    )
    assert re.search(r", started \d{4}-\d\d-\d\d \d\d:\d\d\)$", told)


@pytest.mark.parametrize("start_time_ms", [-(10**18), 0, 10**18])
def test_a_start_that_no_calendar_has_is_told_all_the_same(record, start_time_ms):
    """Whoever may write to the server can write any time."""
    odd = dataclasses.replace(record, start_time_ms=start_time_ms, tags={})
    assert whose(odd).startswith("a run of somebody unknown, started ")


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:5000/#/experiments/0/runs/{}",
        "https://mlflow.example.com/some/path/#/experiments/12/runs/{}/model-metrics?o=1",
        "/#/experiments/0/runs/{}/artifacts/checkpoints",
        "runs:/{}",
        "runs:/{}/model",
        " {} ",
    ],
)
def test_a_run_is_found_by_the_address_of_its_page(tracking, commit_to, address):
    """As it is copied from the browser; every command takes it."""
    record = commit_to(tracking.create_run("0", "a run", {}), {1: 0.5})
    given = address.format(record.run_id)
    assert find_run(tracking, given).run_id == record.run_id
    for words in (["list", given], ["verify", given], ["show", given], ["sync", given]):
        done = cli(*words)
        assert done.exit_code == 0, done.output
        assert address == " {} " or given not in done.output


def test_latest_without_any_run_says_where_it_looked(tracking, record):
    """No unfinished run with a checkpoint: the experiment is named."""
    with pytest.raises(RunNotUsable, match="experiment 0 has no unfinished run"):
        find_run(tracking, "latest")


def test_a_run_that_died_before_its_first_commit_starts_again(tracking, record):
    """One of our runs without a checkpoint is begun anew in place, with its own options."""
    options = Config(epochs=7, seed=3)
    tags = {"train.fingerprint": "f", OPTIONS_TAG: json.dumps(options.to_dict())}
    tracking.set_tags(record.run_id, tags)
    source = find(tracking, record.run_id)
    assert (source.epoch, source.content, source.manifests) == (0, None, [])
    assert source.options == options
    assert source.is_newest
    with pytest.raises(CheckpointNotFound, match="epoch 4: it has none"):
        find(tracking, record.run_id, "4")


def test_a_run_that_is_not_ours_is_refused(tracking, record):
    """A run of another program is not begun anew."""
    with pytest.raises(RunNotUsable, match="no checkpoint of this program"):
        find(tracking, record.run_id)


def test_a_run_whose_checkpoints_vanished_does_not_start_again(tracking, trained):
    """Training from scratch in place of lost epochs would be silently less (invariant 7)."""
    shutil.rmtree(Path(trained.artifact_uri) / "checkpoints")
    with pytest.raises(CheckpointNotFound, match="though it had some"):
        find(tracking, trained.run_id)


def test_options_come_from_the_newest_attempt(tracking, trained):
    """Options changed by a later attempt win over those in the checkpoint; without them, those."""
    changed = Config(epochs=99)
    tracking.set_tags(trained.run_id, {OPTIONS_TAG: json.dumps(changed.to_dict())})
    assert find(tracking, trained.run_id).options == changed
    tracking.set_tags(trained.run_id, {OPTIONS_TAG: "not JSON"})
    assert find(tracking, trained.run_id).options == Config()


@pytest.fixture
def moved(tracking, tmp_path, record, commit_to, monkeypatch):
    """Return (run, new project folder) after the project was moved away from its artifacts."""
    project = tmp_path / "project"
    project.mkdir()
    experiment = tracking.client.create_experiment("moved", str(project / "mlruns" / "1"))
    run = commit_to(tracking.create_run(experiment, None, {}), SCORES)
    project.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    return run, tmp_path / "moved"


def test_a_moved_project_is_not_an_empty_run(tracking, moved, tmp_path):
    """The recorded folder, the one found, and the way back are named; nothing is made."""
    run, folder = moved
    with pytest.raises(StoreUnavailable) as caught:
        find(tracking, run.run_id)
    message = str(caught.value)
    assert f"recorded at '{run.artifact_uri}', which does not exist" in message
    assert f"they lie in '{folder / 'mlruns'}'" in message
    assert f"ln -s {folder / 'mlruns'} {tmp_path / 'project' / 'mlruns'}" in message
    assert not (tmp_path / "project").exists()


def test_the_advice_for_a_moved_project_works(tracking, moved, tmp_path):
    """After the command of the message, the run can be resumed."""
    run, folder = moved
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "mlruns").symlink_to(folder / "mlruns")
    assert find(tracking, run.run_id).epoch == 3


def test_files_that_are_nowhere_are_said_to_be_nowhere(tracking, moved, tmp_path, monkeypatch):
    """Where the files are not in the working folder either, it says so; nothing is made."""
    run, _ = moved
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreUnavailable, match="it was moved or deleted"):
        require_local_artifacts(run)
    assert not (tmp_path / "project").exists()


def test_a_new_run_has_no_folder_yet(record):
    """The artifact folder of a run that has just been made need not exist."""
    assert not Path(record.artifact_uri).exists()
    require_local_artifacts(record)


def test_a_checkpoint_store_that_lost_only_this_run_is_told_too(tracking, trained):
    """The project is there, the run's own folder is gone: that is no empty run either."""
    shutil.rmtree(trained.artifact_uri)
    with pytest.raises(StoreUnavailable, match="which does not exist"):
        find(tracking, trained.run_id)


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("/a/b c", "/a/b c"),
        ("file:///a/b%20c", "/a/b c"),
        ("mlflow-artifacts:/0/r/artifacts", None),
        ("s3://bucket/x", None),
        ("http://host/x", None),
    ],
)
def test_local_artifact_folders_are_told_from_servers(uri, path):
    """Only a plain path or a file: URI is a folder of this machine."""
    assert local_path(uri) == (path and Path(path))


def test_a_server_holds_files_that_need_not_be_here():
    """Artifacts behind a server are never looked for on the local disk."""
    tags = {EPOCH_TAG: "1"}
    uri = "mlflow-artifacts:/0/r/artifacts"
    require_local_artifacts(RunRecord("r", "", "0", "KILLED", uri, 0, {}, tags, {}))


def test_an_unknown_run_is_refused(tracking):
    """A run ID that does not exist is named."""
    with pytest.raises(RunNotUsable, match="0000"):
        find(tracking, "0" * 32)


@pytest.mark.parametrize("direction", ["min", "max"])
def test_the_best_is_the_best_by_the_runs_own_metric(tracking, record, commit_to, direction):
    """Its least where the run minimises; of equals the older."""
    scores = {1: 0.5, 2: 0.25, 3: 0.5, 4: 0.25}
    trained = commit_to(record, scores, monitor=Monitor("val_rmse", direction))
    source = find(tracking, trained.run_id, "best")
    assert (source.epoch, source.is_newest) == (2 if direction == "min" else 1, False)
    assert source.content.monitor == source.manifest.monitor == Monitor("val_rmse", direction)


def test_a_run_of_another_task_is_refused_with_both_names(tracking, record, commit_to):
    """Which code is to be used is for the command to say, never for the store."""
    trained = commit_to(record, SCORES)
    other = TaskKind("mine", Config, lambda: None)
    folder = RunFolder(environment.run_folder(tracking.uri, trained.run_id))
    store = open_store(tracking, trained, folder)
    with pytest.raises(RunNotUsable, match=r"trains the task 'tabular', and .* is for 'mine'"):
        find_source(trained, store, None, other)
    unsaved = tracking.create_run("0", "of a task", {})
    tags = {"train.fingerprint": "f", OPTIONS_TAG: "{}", TASK_TAG: "other\nname"}
    tracking.set_tags(unsaved.run_id, tags)
    with pytest.raises(RunNotUsable, match=r"'other\\nname', and .*task=<file>") as caught:
        find(tracking, unsaved.run_id)
    assert "\n" not in str(caught.value)
