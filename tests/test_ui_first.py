"""`mlflow ui` before the first training: its experiment's files go through a server, not to us."""

import os
import shutil
import sqlite3
import sys

import pytest
from support import SMALL, cli, write_table

from onward.errors import StoreUnavailable
from onward.tracking.artifacts import Artifacts
from onward.tracking.client import Tracking

TWIN = "Default-files"


@pytest.fixture
def ui_first(isolated, empty_database, tmp_path):
    """Return a connection to a database as `mlflow ui` makes it in an empty folder."""
    path = tmp_path / "mlflow.db"
    shutil.copy(empty_database, path)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE experiments SET artifact_location = 'mlflow-artifacts:/0'")
    database.close()
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{path}"
    return Tracking()


def train(tmp_path, *options):
    """Run `train run` in this process on a small table."""
    table = write_table(tmp_path / "table.csv")
    return cli("run", *SMALL, "--data", table, "--target", "price", *options)


def only_run(tracking):
    """Return the one run of ours, wherever it is."""
    [record] = tracking.search_runs(tracking.experiment_id())
    return record


def test_training_works_in_an_experiment_beside_it(ui_first, tmp_path):
    """One line tells; the files lie in this folder; every later command finds the run."""
    done = train(tmp_path, "--epochs", "1")
    assert done.exit_code == 0, done.output
    assert done.output.count(f"its runs go to experiment '{TWIN}'") == 1
    record = only_run(ui_first)
    assert record.status == "FINISHED"
    assert record.artifact_uri.startswith(f"{tmp_path}/mlruns/{record.experiment_id}/")
    assert ui_first.client.get_experiment(record.experiment_id).name == TWIN
    longer = train(tmp_path, "--resume_run", record.run_id, "--epochs", "2")
    assert longer.exit_code == 0, longer.output
    forked = train(tmp_path, "--resume_run", record.run_id, "--fork", "true", "--epochs", "3")
    assert forked.exit_code == 0, forked.output
    for words in (["list"], ["list", record.run_id], ["verify", record.run_id], ["sync"]):
        shown = cli(*words)
        assert shown.exit_code == 0, shown.output
    assert record.run_id in cli("list").stdout
    assert ui_first.client.search_runs(["0"]) == []


def test_a_launch_of_mlflow_run_is_closed_with_the_run_that_it_trained(ui_first, tmp_path):
    """Its own run is in the experiment that cannot be used: it names the one that was trained."""
    launched = ui_first.create_run("0", "a launch", {})
    os.environ |= {"MLFLOW_RUN_ID": launched.run_id, "MLFLOW_EXPERIMENT_ID": "0"}
    done = train(tmp_path, "--epochs", "1")
    assert done.exit_code == 0, done.output
    record = only_run(ui_first)
    stray = ui_first.get_run(launched.run_id)
    assert record.run_id != launched.run_id
    assert (record.status, stray.status) == ("FINISHED", "FINISHED")
    assert stray.tags["train.launched"] == record.run_id
    assert "This launch is run [" in stray.tags["mlflow.note.content"]


def test_two_that_make_the_experiment_at_once_get_the_same(ui_first, monkeypatch):
    """Who comes second takes what the first has made."""
    find, make = ui_first.client.get_experiment_by_name, ui_first.client.create_experiment
    found = []

    def find_late(name):
        return find(name) if found else found.append(make(name))

    monkeypatch.setattr(ui_first.client, "get_experiment_by_name", find_late)
    assert ui_first.experiment_id() == found[0]


@pytest.mark.parametrize("words", [["list"], ["verify"], ["run", "--resume_run"], ["sync"]])
def test_a_run_whose_files_are_behind_a_server_is_told_with_the_way_out(ui_first, words):
    """It was made through the server: there it can be gone on with."""
    record = ui_first.create_run("0", "a run", {"train.fingerprint": "f" * 64})
    done = cli(*words, record.run_id)
    assert done.exit_code == 7, done.output
    assert done.stderr.count("\n") == 1
    assert "start that server and set MLFLOW_TRACKING_URI to its address" in done.stderr


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("s3://bucket/0", "pip install boto3"),
        ("gs://bucket/0", "pip install google-cloud-storage"),
        ("wasbs://c@a.blob.core.windows.net/0", "pip install azure-storage-blob"),
        ("abfss://c@a.dfs.core.windows.net/0", "pip install azure-storage-blob"),
        ("sftp://u:secret@127.0.0.1/0", "pip install 'paramiko<4' pysftp"),
        ("oss://bucket/0", "MLflow knows no artifact store of the kind 'oss:'"),
        ("mlflow-artifacts:/0", "start that server and set MLFLOW_TRACKING_URI"),
    ],
)
def test_a_store_that_cannot_be_opened_is_told_before_a_run_is_made(
    tracking, uri, told, tmp_path, monkeypatch
):
    """One line, with what to do, and no run is left behind."""
    for package in ("boto3", "google.cloud", "azure", "paramiko"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(StoreUnavailable) as caught:
        Artifacts(uri, tracking.uri)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    if not uri.startswith("mlflow-artifacts:"):
        os.environ["MLFLOW_EXPERIMENT_ID"] = tracking.client.create_experiment("elsewhere", uri)
        done = train(tmp_path, "--epochs", "1")
        assert (done.exit_code, done.stderr.count("\n")) == (7, 1), done.output
        assert told in done.stderr
        assert tracking.client.search_runs([os.environ["MLFLOW_EXPERIMENT_ID"]]) == []
