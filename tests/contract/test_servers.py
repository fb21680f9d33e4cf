"""The life of a run on each kind of server that people have is what it is on this machine alone."""

import json
import math
import os
import re
import threading
from pathlib import Path
from typing import NamedTuple

import mlflow
import own_loops
import pandas as pd
import pytest
import torch
from support import (
    SMALL,
    checkpoint,
    cli,
    client,
    comparable,
    curves,
    differences,
    environment,
    index,
    launch_killed,
    write_table,
)

import onward

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first test starts servers

# The fixtures of conftest.py: the tracking server, and the store that a client reaches by itself.
PLACES = {
    "PostgreSQL, S3 through the server": ("team_server", None),
    "PostgreSQL, S3": ("team_server", "s3"),
    "PostgreSQL, Azure": ("team_server", "azure"),
    "MariaDB, GCS": ("mariadb_server", "gcs"),
    "SQLite, SFTP": ("sqlite_server", "sftp"),
    "login": ("login_server", None),
    "nginx": ("nginx", None),
}
TARGET = "Preis in €"
OPTIONS = (
    *SMALL, "--target", TARGET, "--epochs", "4", "--checkpoint_freq", "1", "--dropout", "0.1",
    "--upload", "sync", "--threads", "1",
)  # fmt: skip
LOSS = "Verlust/価格 β"


class Place(NamedTuple):
    """Where runs are kept: the address, what a client needs for it, and what must not be told."""

    uri: str
    variables: dict[str, str]
    secrets: tuple[str, ...]
    experiment_id: str


@pytest.fixture(params=list(PLACES))
def place(request, tmp_path):
    """An experiment with a name as people give them, on servers; the environment names it."""
    server, store = (name and request.getfixturevalue(name) for name in PLACES[request.param])
    parts = [part for part in (server, store) if part]
    variables, secrets = {}, ()
    for part in parts:
        variables |= getattr(part, "variables", {})
        secrets += getattr(part, "secrets", ())
    name = f"Größe & Preis 価格, {request.param}"
    variables |= {"MLFLOW_TRACKING_URI": server.address, "MLFLOW_EXPERIMENT_NAME": name}
    os.environ.update(variables)
    location = f"{store.uri}/Läufe 価格" if store else None
    experiment_id = client(server.address).create_experiment(name, location)
    return Place(server.address, variables, secrets, experiment_id)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table whose names have spaces and letters of other languages."""
    path = write_table(tmp_path_factory.mktemp("data") / "Größe und 価格.csv", num_rows=200)
    head, rest = path.read_text().split("\n", 1)
    head = head.replace("price", TARGET).replace("color", "Farbe 色")
    path.write_text(f"{head}\n{rest}", encoding="utf-8")
    return path


class Died(Exception):
    """Stands for what ends a process."""


def die_at(step):
    """Return what ends a loop after so many steps."""

    def act(number):
        if number == step:
            raise Died

    return act


def odd_loop(act=lambda epoch: None, **options):
    """Log what is no number, or none that is finite, over more than ten epochs."""
    torch.manual_seed(0)
    weight = torch.zeros(2)
    options |= {"config": {"größe": "ä b"}, "minimize": LOSS, "checkpoint_freq": 1}
    with onward.open_run({"weight": weight}, **options) as run:
        for epoch in run.epochs(range(1, 12)):
            weight += torch.rand(2)
            run.log(**{LOSS: 1 / epoch, "nan": math.nan, "infinite": math.inf, "less": -math.inf})
            act(epoch)
    return weight


def ids(uri, experiment_id="0"):
    """Return the IDs of the runs that are no attempts of others, oldest first."""
    found = client(uri).search_runs([experiment_id], order_by=["attributes.start_time"])
    return [run.info.run_id for run in found if "mlflow.parentRunId" not in run.data.tags]


def outcome(uri, run_id, folder):
    """Return all that the main job's run has come to."""
    saved = comparable(checkpoint(uri, run_id, folder / "checkpoint"))
    return {"saved": saved, "curves": curves(uri, run_id), "index": index(uri, run_id, folder)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, table):
    """What the same work comes to in a local store, without a death."""
    folder = tmp_path_factory.mktemp("calm")
    with pytest.MonkeyPatch.context() as patch:
        uri = f"sqlite:///{folder}/mlflow.db"
        given = {
            "MLFLOW_TRACKING_URI": uri,
            "TRAIN_HOME": str(folder / "home"),
            "LC_ALL": "C.UTF-8",
        }
        for name, value in given.items():
            patch.setenv(name, value)
        patch.chdir(folder)
        told("run", *OPTIONS, "--data", table)
        [run_id] = ids(uri)
        found = outcome(uri, run_id, folder / "got")
        return found | {"own": own_loops.classifier(), "odd": odd_loop()}


def told(*words):
    """Run a command in this process; return what it prints."""
    result = cli(*words)
    assert result.exit_code == 0, f"{words}: {result.output} {result.exception!r}"
    return result.output


def test_the_life_of_a_run(undisturbed, place, table, tmp_path, monkeypatch, capfd):
    """Killed amid the upload of a file, and of a part, gone on with elsewhere beside an own loop,
    forked, checked, thinned out, exported, served: the bits are those of a local run, and no secret
    is anywhere."""
    env, told_of = environment(tmp_path / "first", **place.variables), []

    def kill_twice():
        done = launch_killed("amid:file@2", *OPTIONS, "--data", table, cwd=tmp_path, env=env)
        [run_id] = re.findall(r"^Run ([0-9a-f]{32})", done.stdout, re.MULTILINE)
        again = launch_killed("amid:part:2@3", "--resume_run", run_id, cwd=tmp_path, env=env)
        told_of.extend((done.stdout, done.stderr, again.stdout, again.stderr))

    killed = threading.Thread(target=kill_twice)
    killed.start()  # two runs at once
    own_id = own_loop_died(place, tmp_path, monkeypatch, undisturbed)
    killed.join()
    assert len(told_of) == 4
    [run_id] = [row["run_id"] for row in json.loads(told("list", "--json")) if row["epoch"] == 2]
    monkeypatch.setenv("TRAIN_HOME", str(tmp_path / "elsewhere"))
    told_of.append(told("run", "--resume_run", run_id, "--log_model", "true"))
    assert "Resuming training from epoch 3 " in told_of[-1]
    found = outcome(place.uri, run_id, tmp_path / "found")
    assert differences({k: undisturbed[k] for k in found}, found) == []
    told_of.append(told("run", "--resume_run", run_id, "--resume_epoch", "2", "--fork"))
    fork_id = re.search(r"^Run ([0-9a-f]{32})", told_of[-1], re.MULTILINE)[1]
    forked = outcome(place.uri, fork_id, tmp_path / "forked")
    assert differences(undisturbed["saved"], forked["saved"]) == []
    told_of += [told("verify", fork_id), told("list", fork_id)]
    told_of.append(told("export", run_id, "--to", tmp_path / "plain.pth"))
    weights = torch.load(tmp_path / "plain.pth", weights_only=True)["model_state_dict"]
    assert differences(weights, undisturbed["saved"]["model_state_dict"]) == []
    told_of.append(odd_runs(place, tmp_path, monkeypatch, undisturbed))
    loaded = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    rows = pd.read_csv(table)
    numbers = loaded.predict(rows)
    assert len(numbers) == len(rows)
    assert all(map(math.isfinite, numbers))
    told_of += capfd.readouterr()
    no_secret(place, (run_id, own_id, fork_id), told_of, tmp_path)


def own_loop_died(place, tmp_path, monkeypatch, undisturbed):
    """Let a loop of one's own die, and go on elsewhere; return its run's ID."""
    monkeypatch.setenv("TRAIN_HOME", str(tmp_path / "own"))
    with pytest.raises(Died):
        own_loops.classifier(die_at(15), checkpoint_steps=5, upload="sync", task="own")
    [run_id] = [
        run_id
        for run_id in ids(place.uri, place.experiment_id)
        if client(place.uri).get_run(run_id).info.status == "FAILED"
    ]
    monkeypatch.setenv("TRAIN_HOME", str(tmp_path / "own elsewhere"))
    state = own_loops.classifier(resume_run=run_id, checkpoint_steps=5, task="own")
    for name, part in undisturbed["own"].items():
        assert differences(part.state_dict(), state[name].state_dict()) == [], name
    return run_id


def odd_runs(place, tmp_path, monkeypatch, undisturbed):
    """Die and go on with metrics of all kinds, then thin out; return what is printed."""

    def die(epoch):
        if epoch == 7:
            raise Died

    with pytest.raises(Died):
        odd_loop(die, task="odd")
    [row] = [row for row in json.loads(told("list", "--json")) if row["epoch"] == 6]
    monkeypatch.setenv("TRAIN_HOME", str(tmp_path / "odd elsewhere"))
    assert torch.equal(odd_loop(task="odd", resume_run=row["run_id"]), undisturbed["odd"])
    api = client(place.uri)
    for name, expected in (("nan", math.nan), ("infinite", 1.797e308), ("less", -1.797e308)):
        points = api.get_metric_history(row["run_id"], name)
        assert [point.step for point in points] == list(range(1, 12))
        assert all(
            math.isnan(p.value) if math.isnan(expected) else p.value / expected >= 1 for p in points
        )
    printed = told("prune", row["run_id"], "--keep_every", "5")
    left = [entry["epoch"] for entry in json.loads(told("list", row["run_id"], "--json"))]
    assert left == [5, 10, 11]
    for epoch in range(1, 12):  # some stores list a folder that has no files any more
        files = api.list_artifacts(row["run_id"], f"checkpoints/epoch_{epoch}")
        assert bool(files) == (epoch in left), epoch
    return printed + told("verify", row["run_id"])


def no_secret(place, run_ids, told_of, tmp_path):
    """Assert that no password or key is in what was stored, logged or printed."""
    api = client(place.uri)
    for run_id in run_ids:
        told_of.append(str(api.get_run(run_id).to_dictionary()))
        for log in api.list_artifacts(run_id, "logs"):
            told_of.append(
                Path(api.download_artifacts(run_id, log.path, str(tmp_path))).read_text()
            )
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    told_of += [path.read_bytes().decode("latin-1") for path in kept]
    for secret in place.secrets:
        assert not [text[:200] for text in told_of if secret in text]
