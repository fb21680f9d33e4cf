"""Runs that an older version of the program stored are listed, verified and gone on from.

`tests/golden/make.py` made them, with the code of its day: a finished run with its model, a fork of
it, one killed inside an epoch, what that would have been, one whose checkpoints were not uploaded,
and one that another disk went on with while its own had something to publish.
"""

import json
import os
import sqlite3
import tarfile

import pytest
import torch
from support import ROOT, checkpoint, cli, client, curves, differences

from onward.system import environment, git, processes

HOST = "golden-host"
MADE_AT = "/tmp/golden"
OPTIONS = (
    "--data", "table.csv", "--target", "price", "--epochs", "4", "--checkpoint_freq", "2",
    "--batch_size", "32", "--hidden_size", "8", "--num_layers", "1", "--threads", "1",
    "--dropout", "0.1", "--checkpoint_steps", "3", "--upload", "sync", "--log_model", "false",
)  # fmt: skip
MADE_WITH = "sqlite:///mlflow.db"
EXACT = ("model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "rng", "step")

pytestmark = pytest.mark.slow


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Unpack the runs where this test works; return what each is, to its ID."""
    with tarfile.open(ROOT / "tests" / "golden" / "runs.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:  # MLflow keeps full paths
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("logged_models", "artifact_location"),
        ):
            change = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
            database.execute(change, (MADE_AT, str(tmp_path)))
    database.close()
    monkeypatch.setattr(environment, "hostname", lambda: HOST)
    monkeypatch.setattr(processes, "machine", lambda: HOST)
    # Whether a developer has changed something in the meantime is no part of what is tested.
    monkeypatch.setattr(git, "code_diff", lambda: b"")
    monkeypatch.setenv("TRAIN_HOME", str(tmp_path / "home"))
    uri = f"sqlite:///{tmp_path}/mlflow.db"  # MLflow keeps what it opened, by its address
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    then, now = (environment.run_folder(address, "").name for address in (MADE_WITH, uri))
    for folder in (tmp_path / "home" / "runs").iterdir():
        folder.rename(folder.with_name(folder.name.replace(then, now)))
    return json.loads((tmp_path / "runs.json").read_text())


@pytest.fixture
def uri(runs):
    """Return where they are stored."""
    return os.environ["MLFLOW_TRACKING_URI"]


def done(*words):
    """Run a command to its good end; return what it printed."""
    result = cli(*words)
    assert result.exit_code == 0, result.output
    return result.output


def trained(*words):
    """Train; return the ID of the run."""
    [line] = [text for text in done("run", *words).splitlines() if ", attempt " in text]
    return line.split()[1].removesuffix(",")


def test_all_are_listed(runs):
    """Each has its epochs, its status and its best value."""
    rows = {row["run_id"]: row for row in json.loads(done("list", "--json"))}
    assert rows.keys() == set(runs.values())
    keys = ("status", "epoch", "epochs")
    told = {name: tuple(rows[run_id][key] for key in keys) for name, run_id in runs.items()}
    assert told == {
        "finished": ("FINISHED", 4, 4),
        "fork": ("FINISHED", 4, 4),
        "killed": ("RUNNING", 2, 4),
        "undisturbed": ("FINISHED", 4, 4),
        "off": ("FINISHED", 2, 2),
        "overtaken": ("FINISHED", 4, 4),
    }
    assert all(0.5 < row["best_val_pearson"] < 1 for row in rows.values())


def test_all_are_verified_and_shown(runs, tmp_path):
    """Each checkpoint is whole, can be shown, and exported with the script version's keys."""
    for name, run_id in runs.items():
        rows = json.loads(done("verify", run_id, "--json"))
        assert [row["status"] for row in rows] == ["ok"] * len(rows)
        assert len(rows) >= 1, name
        assert "optimizer_state_dict" in done("show", run_id)
    done("export", runs["finished"], "--epoch", "2", "--to", tmp_path / "plain.pth")
    saved = torch.load(tmp_path / "plain.pth", weights_only=True)
    assert (saved["epoch"], len(saved["aucs"]), saved["format_version"]) == (2, 2, 2)


def is_same_processor(stored):
    """Tell whether sums are made as they were then: only there bits must be the same.

    The name of a virtual machine's processor does not tell which of its instructions there are.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    now = environment.describe("cpu", 1)
    then = stored["environment"]
    return now["device"] == then["device"] and libraries(now) == libraries(then)


def libraries(described):
    """Return package to version, without the program itself: its name has changed since."""
    own = {"onward", "resumable-train"}
    return {name: version for name, version in described["versions"].items() if name not in own}


def test_auto_goes_on_with_the_killed_one_as_if_it_had_not_been(runs, uri, tmp_path):
    """It is found by its fingerprint, and ends with the bits of the run that was not killed."""
    assert trained(*OPTIONS, "--seed", "1", "--resume_run", "auto") == runs["killed"]
    [ended, expected] = [
        checkpoint(uri, runs[name], tmp_path / name) for name in ("killed", "undisturbed")
    ]
    if is_same_processor(expected):
        assert differences(*({key: c[key] for key in EXACT} for c in (ended, expected))) == []
        assert expected["config"].items() <= ended["config"].items()  # a later one has more options
        assert curves(uri, runs["killed"]) == curves(uri, runs["undisturbed"])
    for name, value in expected["model_state_dict"].items():
        torch.testing.assert_close(ended["model_state_dict"][name], value, rtol=1e-4, atol=1e-5)


def test_a_finished_one_is_extended_and_forked(runs, uri):
    """It goes on in place with more epochs, and from an older epoch as a new run."""
    told = done("run", "--resume_run", runs["finished"], "--epochs", "5")
    assert f"Run {runs['finished']}, attempt 2" in told
    assert "not as it was" not in told, "what was not recorded then is no fault now"
    fork = trained("--resume_run", runs["fork"], "--resume_epoch", "2", "--lr", "0.001", "--fork")
    assert fork not in runs.values()
    assert client(uri).get_run(fork).data.tags["train.forked_from_run"] == runs["fork"]


def test_one_that_was_not_uploaded_goes_on(runs, uri):
    """Its checkpoints are on this machine's disk."""
    assert trained("--resume_run", runs["off"], "--epochs", "3") == runs["off"]
    assert client(uri).get_run(runs["off"]).data.tags["train.epoch"] == "3"


def test_what_was_overtaken_becomes_a_run(runs):
    """`sync` tells of it, and makes a run of it that is resumed."""
    assert "was overtaken by attempt 2" in done("sync", runs["overtaken"])
    told = done("sync", runs["overtaken"], "--as_fork", "true")
    [new_id] = [line.split("is now run ")[1][:32] for line in told.splitlines() if "is now" in line]
    assert trained("--resume_run", new_id) == new_id


def test_it_predicts_as_its_model_does(runs, tmp_path):
    """`train predict` and the model that was logged then give the same numbers."""
    import mlflow
    import pandas

    done("predict", runs["finished"], "table.csv", "--to", "out.csv")
    rows = pandas.read_csv("table.csv")
    model = mlflow.pyfunc.load_model(f"runs:/{runs['finished']}/model")
    found = pandas.read_csv("out.csv")["predicted_price"]
    torch.testing.assert_close(
        torch.tensor(model.predict(rows)), torch.tensor(found.to_numpy()), rtol=1e-5, atol=1e-5
    )
