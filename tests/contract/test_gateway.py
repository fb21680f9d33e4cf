"""A gateway before the server refuses something: nothing waits for what can be done without."""

import http.client
import re
import sys
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from gateway import Gateway
from support import SMALL, client, environment, launch, mlflow_server, run_command

import onward
from onward.attempts import attempt, heartbeat
from onward.checkpoint import uploader

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One real server for all tests."""
    with mlflow_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def open_gateway(server):
    """Return a function that opens a gateway before the server, with a rule."""
    opened = []

    def begin(rule, **options):
        opened.append(Gateway(server.port, rule, **options))
        return opened[-1]

    yield begin
    for gateway in opened:
        gateway.close()


@pytest.fixture
def train(table, tmp_path):
    """Return a function that trains by way of a gateway: what was printed, and the run."""

    def run(gateway, *options):
        env = environment(tmp_path / "home", gateway.address)
        words = ("--data", str(table), "--target", "price", *SMALL, *options)
        done = launch(*words, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        run_id = re.search(r"^Run ([0-9a-f]{32})", done.stdout, re.MULTILINE)[1]
        return done.stdout, client(gateway.address).get_run(run_id)

    return run


def checkpoints(gateway, run):
    """Return the folders of the checkpoints of a run."""
    found = client(gateway.address).list_artifacts(run.info.run_id, "checkpoints")
    return sorted(f.path.split("_")[-1] for f in found if f.is_dir)


@pytest.mark.parametrize("status", [403, 405, 500])
def test_a_gateway_that_refuses_to_delete(open_gateway, train, status, tmp_path):
    """All epochs arrive, the run is FINISHED, it is told once, and `train prune` says why."""
    gateway = open_gateway(lambda method, *_: status if method == "DELETE" else None)
    printed, run = train(gateway, "--epochs", "12", "--upload", "sync")
    assert run.info.status == "FINISHED"
    assert run.data.tags["train.epoch"] == "12"
    assert len(checkpoints(gateway, run)) == 12
    assert printed.count("go on without it") == 1
    assert "wait on this disk" not in printed
    assert gateway.refused
    pruned = run_command(
        [sys.executable, "-m", "train", "prune", run.info.run_id],
        cwd=tmp_path, env=environment(tmp_path / "home", gateway.address),
    )  # fmt: skip
    assert pruned.returncode == 7
    assert "the store refuses to delete epoch_" in pruned.stderr
    assert len(checkpoints(gateway, run)) == 12


def test_a_gateway_with_nginx_s_default_limit(open_gateway, train, tmp_path):
    """Checkpoints larger than it takes go up in parts, and the run is FINISHED; it is told once."""

    def limit(method, path, num_bytes):
        return 413 if method == "PUT" and num_bytes > 1 << 20 else None

    gateway = open_gateway(limit)
    printed, run = train(gateway, "--epochs", "3", "--hidden_size", "500", "--num_layers", "2")
    assert run.info.status == "FINISHED"
    assert run.data.tags["train.epoch"] == "3"
    assert printed.count("client_max_body_size") == 1
    assert len(gateway.refused) <= 4
    verified = run_command(
        [sys.executable, "-m", "train", "verify", run.info.run_id],
        cwd=tmp_path, env=environment(tmp_path / "home", gateway.address),
    )  # fmt: skip
    assert verified.returncode == 0, verified.stdout


def test_prepared_data_larger_than_a_gateway_takes(open_gateway, tmp_path):
    """It goes up in parts; a machine that has no table goes on with the same bytes."""

    def limit(method, path, num_bytes):
        return 413 if method == "PUT" and num_bytes > 1 << 20 else None

    gateway = open_gateway(limit)
    draw = np.random.default_rng(0)
    table, homes = tmp_path / "t.npz", (tmp_path / "home", tmp_path / "other")
    np.savez(table, X=draw.normal(size=(8000, 90)).astype(np.float32), y=draw.normal(size=8000))
    words = ("--data", str(table), "--target", "y", *SMALL, "--epochs", "1")
    first = launch(*words, cwd=tmp_path, env=environment(homes[0], gateway.address))
    assert first.returncode == 0, first.stdout + first.stderr
    run_id = re.search(r"^Run ([0-9a-f]{32})", first.stdout, re.MULTILINE)[1]
    found = client(gateway.address).list_artifacts(run_id, "data/processed_data.npz")
    assert [f.path.split("/")[-1] for f in found] == [f"part-{i:05d}" for i in range(len(found))]
    assert len(found) > 2
    table.unlink()
    resumed = launch(
        "--resume_run", run_id, "--epochs", "2",
        cwd=tmp_path, env=environment(homes[1], gateway.address),
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    sent, joined = ([*home.rglob("processed_data.npz")] for home in homes)
    assert len(sent) == len(joined) == 1
    assert sent[0].read_bytes() == joined[0].read_bytes()


def test_a_gateway_that_asks_to_wait(open_gateway, train):
    """A Retry-After that would be an hour is not slept through; what was asked to wait arrives."""
    asked = set()

    def busy(method, path, num_bytes):
        is_first = method == "PUT" and path not in asked
        asked.add(path)
        return 429 if is_first and "checkpoint.pth" in path else None

    gateway = open_gateway(busy, headers={"Retry-After": "1"})
    printed, run = train(gateway, "--epochs", "3", "--upload", "sync")
    assert run.info.status == "FINISHED"
    assert "published later" not in printed


@pytest.fixture
def asked(server, tmp_path, monkeypatch):
    """What this process asks of the server by HTTP, whatever library does it: (thread, call)."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.setenv("TRAIN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 1e6)  # one, at the start
    found, put = [], http.client.HTTPConnection.putrequest

    def noted(connection, method, url, *args, **options):
        path = re.sub(r"[0-9a-f]{32}", "ID", url.split("?")[0])
        found.append((threading.current_thread(), f"{method} {path}"))
        return put(connection, method, url, *args, **options)

    monkeypatch.setattr(http.client.HTTPConnection, "putrequest", noted)
    return found


def train_own_loop(asked, epochs):
    """Train, each epoch kept; return the calls of the whole run, and those while it trained."""
    model = torch.nn.Linear(2, 1)
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1)}
    asked.clear()
    with onward.open_run(state, minimize="loss", checkpoint_freq=1) as run:
        begin = len(asked)
        for _epoch in run.epochs(range(epochs)):
            state["optimizer"].step()
            run.log(loss=1.0, accuracy=0.5)
        own = [call for thread, call in asked[begin:] if thread is threading.current_thread()]
    return Counter(call for _thread, call in asked), own


def test_an_epoch_is_one_batch_of_metrics_and_tags_and_one_upload_a_file(asked, monkeypatch):
    """The training thread itself asks nothing of the server. 2 s."""
    monkeypatch.setattr(attempt, "seconds_awake_or_asleep", lambda: 0.0)  # no moment is over
    monkeypatch.setattr(uploader, "ROUND_SECONDS", 0.0)  # each epoch has a round of its own
    (few, own), (many, more_own) = train_own_loop(asked, 2), train_own_loop(asked, 6)
    assert not own + more_own, "on the training thread"
    more = many - few
    written = {call: n / 4 for call, n in more.items() if not call.startswith(("GET", "DELETE"))}
    batches = {call: n for call, n in written.items() if "/mlflow-artifacts/" not in call}
    assert batches == {"POST /api/2.0/mlflow/runs/log-batch": 1}
    uploads = {call: n for call, n in written.items() if call not in batches}
    assert all(call.startswith("PUT ") for call in uploads)
    once = [call.rsplit("/checkpoints/")[1] for call, n in uploads.items() if n == 1 / 4]
    names = ("checkpoint.pth", "checkpoint_metrics.json", "manifest.json")
    assert sorted(once) == [f"epoch_{epoch}/{name}" for epoch in range(3, 7) for name in names]
    derived = {call.rsplit("/", 1)[1]: n for call, n in uploads.items() if n != 1 / 4}
    assert derived.keys() <= {"index.json", "attempt_1.log"}  # both now and then
    assert max(derived.values(), default=0) <= 1
    assert not more["GET /api/2.0/mlflow/runs/get"], "the lease, though it was asked for just now"
