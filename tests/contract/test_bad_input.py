"""Whatever is wrong: one line that says what and what to do, an exit code, nothing lost."""

import math
import os
import shutil
import sqlite3

import pytest
from support import (
    SMALL,
    checkpoint,
    cli,
    client,
    comparable,
    differences,
    only_run,
    write_table,
)

from train.tabular.task import TabularTask

TINY = (*SMALL, "--target", "price", "--epochs", "2")


def refused(code, *options, command="run"):
    """Return the one line with which a command was refused."""
    result = cli(command, *options)
    [line] = result.stderr.splitlines() or [""]
    assert line.startswith("error: "), result.output
    assert result.exit_code == code, line
    return line


@pytest.fixture
def run(tracking_uri, table):
    """A finished run of two epochs."""
    result = cli("run", *TINY, "--data", table)
    assert result.exit_code == 0, result.output
    return only_run(tracking_uri)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--epoch", "3"], 2, ["--epoch", "--epochs", "--help"]),
        (["--checkpoint_freq", "0"], 2, ["checkpoint_freq=0", "the least is 1"]),
        (["--epochs", "0"], 2, ["epochs=0", "the least is 1"]),
        (["--epochs", "-3"], 2, ["epochs=-3"]),
        (["--epochs", "many"], 2, ["epochs='many'", "whole number"]),
        (["--lr", "nan"], 2, ["lr=nan"]),
        (["--schedule", "linear"], 2, ["schedule='linear'", "cosine"]),
        (["--device", "tpu9"], 2, ["device='tpu9'"]),
        (["--resume_epoch", "3"], 2, ["resume_run=<id>"]),
        (["--fork", "true"], 2, ["resume_run=<id>"]),
        (["--resume_run", ""], 2, ["resume_run=", "variable"]),
        (["--data", "gone.csv", "--target", "y"], 3, ["gone.csv", "searched", "absolute path"]),
        (["--data", "table.csv"], 3, ["target=", "'price'"]),
        (["--data", "table.csv", "--target", "prize"], 3, ["'prize'", "did you mean 'price'"]),
        (["--data", "table.csv", "--target", "color"], 3, ["'color'", "not a number"]),
        (["--data", "empty.csv", "--target", "y"], 3, ["empty.csv"]),
        (["--data", "header.csv", "--target", "y"], 3, ["header.csv"]),
        (["--data", "binary.csv", "--target", "y"], 3, ["binary.csv"]),
        (
            ["--resume_run", "0123456789abcdef"],
            6,
            ["0123456789abcdef", "not on the tracking server"],
        ),
        (["--resume_run", "latest"], 6, ["no unfinished run", "train list"]),
        (["--resume_from", "gone.pth"], 4, ["gone.pth"]),
    ],
)
def test_one_line_says_what_and_what_to_do(tracking_uri, tmp_path, table, options, code, words):
    """A command that cannot be carried out is refused before a run is made."""
    (tmp_path / "empty.csv").touch()
    (tmp_path / "header.csv").write_text("x,y\n")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)) * 9)
    line = refused(code, *options)
    for word in words:
        assert word in line
    assert client(tracking_uri).search_runs(["0"]) == []


def test_a_finished_run(run):
    """It tells to pass a larger epochs; with those it has it stays FINISHED and is no error;
    fewer are refused."""
    run_id = run.info.run_id
    assert "finished after 2 epochs: pass a larger epochs" in refused(6, "--resume_run", run_id)
    assert "epochs=1 is fewer" in refused(2, "--resume_run", run_id, "--epochs", "1")
    result = cli("run", "--resume_run", run_id, "--epochs", "2")
    assert result.exit_code == 0
    assert "FINISHED after epoch 2" in result.stdout


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("seed", "0", "7"),
        ("batch_size", "64", "32"),
        ("lr", "0.002", "0.5"),
    ],
)
def test_another_training_is_refused(run, name, old, new):
    """Both values are named, and the command that forks is printed whole."""
    run_id = run.info.run_id
    line = refused(2, "--resume_run", run_id, "--epochs", "3", f"--{name}", new)
    assert f"{name} is {old} in the run and {new} was given" in line
    assert f"--resume_run {run_id} --fork true --epochs 3 --{name} {new}" in line


@pytest.mark.parametrize(
    ("name", "new"), [("hidden_size", "8"), ("target", "size"), ("drop", "color")]
)
def test_another_model_is_another_run(run, name, new):
    """What neither a resume nor a fork can change is refused by both, without advice to fork."""
    for options in ((), ("--fork",)):
        words = ("--resume_run", run.info.run_id, "--epochs", "3", f"--{name}", new, *options)
        line = refused(2, *words)
        assert f"{new} was given" in line
        assert "fresh run" in line
        assert "--fork true" not in line


def test_a_run_named_by_the_launcher_is_not_trained_over(run, tracking_uri):
    """`mlflow run --run-id` of a run that has been trained is refused, and changes nothing."""
    before = client(tracking_uri).get_run(run.info.run_id).to_dictionary()
    os.environ["MLFLOW_RUN_ID"] = run.info.run_id
    line = refused(6, *TINY)
    assert f"resume_run={run.info.run_id}" in line
    assert client(tracking_uri).get_run(run.info.run_id).to_dictionary() == before


def test_an_attempts_id_leads_to_its_run(run, tracking_uri):
    """The ID that `mlflow run` prints last is the attempt's: it works as well."""
    run_id = run.info.run_id
    assert cli("run", "--resume_run", run_id, "--epochs", "3").exit_code == 0
    query = f"tags.`mlflow.parentRunId` = '{run_id}'"
    [child] = client(tracking_uri).search_runs(["0"], query)
    result = cli("run", "--resume_run", child.info.run_id, "--epochs", "4")
    assert result.exit_code == 0, result.output
    assert len(client(tracking_uri).get_metric_history(run_id, "lr")) == 4


def test_other_data_is_refused_and_the_same_in_another_place_is_not(run, table, tmp_path):
    """It is the table's content that counts, not its path."""
    other = write_table(tmp_path / "other.csv", seed=1)
    run_id = run.info.run_id
    line = refused(2, "--resume_run", run_id, "--epochs", "3", "--data", other)
    assert f"data is {table} in the run and {other} was given" in line
    moved = shutil.move(table, tmp_path / "moved.csv")
    result = cli("run", "--resume_run", run_id, "--epochs", "3", "--data", moved)
    assert result.exit_code == 0, result.output


def test_a_pruned_epoch_names_those_there_are(run):
    """Asking for an epoch that is gone lists the epochs that can be had."""
    cli("run", "--resume_run", run.info.run_id, "--epochs", "4", "--checkpoint_freq", "2")
    line = refused(4, "--resume_run", run.info.run_id, "--resume_epoch", "1")
    assert "no checkpoint of epoch 1: it has 2, 4" in line


def test_a_run_of_another_program(tracking_uri):
    """A run without our checkpoints is not taken over, and is not changed."""
    other = client(tracking_uri).create_run("0")
    line = refused(6, "--resume_run", other.info.run_id)
    assert "has no checkpoint of this program" in line
    assert client(tracking_uri).get_run(other.info.run_id).data.tags == other.data.tags


def test_a_deleted_run(run, tracking_uri):
    """It says so, and how to bring the run back."""
    client(tracking_uri).delete_run(run.info.run_id)
    assert "mlflow runs restore" in refused(6, "--resume_run", run.info.run_id)


@pytest.mark.parametrize("options", [["--data", "gone.csv"], ["--resume_run", "0123"]])
def test_the_launch_is_closed(tracking_uri, options):
    """The run that `mlflow run` made for a launch that is refused ends FAILED, not RUNNING."""
    launched = client(tracking_uri).create_run("0")
    os.environ["MLFLOW_RUN_ID"] = launched.info.run_id
    assert cli("run", *options).exit_code > 0
    assert client(tracking_uri).get_run(launched.info.run_id).info.status == "FAILED"


def test_a_project_that_was_moved(run, tracking_uri, tmp_path):
    """A run whose recorded artifact folder is gone is never one without checkpoints: the folder
    is named, and where the files lie now; nothing is made at the old place."""
    old, new = tmp_path / "old", tmp_path / "new"
    artifacts = run.info.artifact_uri
    assert artifacts.startswith(str(tmp_path / "mlruns"))
    new.mkdir()
    (tmp_path / "mlruns").rename(new / "mlruns")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        moved = artifacts.replace(str(tmp_path), str(old))
        database.execute("UPDATE runs SET artifact_uri = ?", [moved])
        database.execute("UPDATE experiments SET artifact_location = ?", [f"{old}/mlruns/0"])
    os.chdir(new)
    for options in (["--resume_run", run.info.run_id], TINY):
        line = refused(7, *options, "--data", tmp_path / "table.csv")
        assert str(old) in line
    assert str(new / "mlruns") in refused(7, run.info.run_id, command="list")
    assert not old.exists()


def test_a_server_that_does_not_answer(monkeypatch):
    """The address is named, without the password in it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for words in (["run"], ["list"]):
        line = refused(7, command=words[0])
        assert "127.0.0.1:9 does not answer" in line
        assert "secret" not in line


def test_an_old_file_store(tmp_path):
    """A leftover `mlruns/0/meta.yaml` flips MLflow to its file store: it says what to do."""
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("experiment_id: '0'\n")
    line = refused(7)
    assert "mlflow migrate-filestore" in line
    assert "sqlite:///mlflow.db" in line


def test_a_loss_that_is_not_finite(tracking_uri, table, tmp_path, monkeypatch):
    """The run stops before the update, FAILED, with the step named; it goes on from the last
    checkpoint as if the fault had never been."""
    whole = TabularTask.loss
    calls = iter(range(1, 1000))

    def faulty(task, model, indices):
        return whole(task, model, indices) * (math.nan if next(calls) == 8 else 1.0)

    monkeypatch.setattr(TabularTask, "loss", faulty)
    line = refused(5, *TINY, "--data", table)
    assert "loss is nan at step 8 (epoch 2" in line
    run = only_run(tracking_uri)
    assert run.info.status == "FAILED"
    monkeypatch.undo()
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri
    assert cli("run", "--resume_run", run.info.run_id).exit_code == 0
    assert cli("run", *TINY, "--data", table).exit_code == 0
    [run_id, other] = [
        r.info.run_id
        for r in client(tracking_uri).search_runs(["0"], "tags.train.fingerprint LIKE '%'")
    ]
    saved = [comparable(checkpoint(tracking_uri, r, tmp_path / r)) for r in (run_id, other)]
    assert differences(*saved) == []


def test_debug_shows_where_it_came_from(tracking_uri):
    """Only `--debug` shows a traceback."""
    result = cli("run", "--data", "gone.csv", "--target", "y", "--debug")
    assert result.exception is not None
    assert type(result.exception).__name__ == "DataNotFound"
