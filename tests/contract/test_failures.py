"""What goes wrong between a loop and its server while it trains: the end is that of a calm run.

docs/reliability.md has the table of all failures, and where each is tested.
"""

import random
import signal
import socket
import threading
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gateway import Gateway
from proxy import FaultyProxy
from support import client, differences, ended, wait_for

import onward
from onward.cli import main as onward_cli

pytestmark = pytest.mark.slow

EPOCHS = 6
SIZE = 180_000  # weights: a checkpoint of 2 MB


@pytest.fixture(scope="module")
def server(team_server):
    """One real server for all tests: before PostgreSQL and S3."""
    return team_server


@pytest.fixture
def train(monkeypatch, tmp_path, one_thread):
    """Return a function that trains by way of an address, on a disk of its own."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def run(address, epochs=EPOCHS, at=lambda epoch: None, **options):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("TRAIN_HOME", str(tmp_path / f"home-{address.rpartition(':')[2]}"))
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        model = torch.nn.Linear(SIZE, 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        options = {"checkpoint_freq": 1, "log_model": False, **options}
        state = {"model": model, "optimizer": optimizer}
        with onward.open_run(state, minimize="loss", **options) as run:
            for epoch in run.epochs(range(epochs)):
                at(epoch)
                optimizer.zero_grad()
                loss = model(torch.rand(1, SIZE)).square().mean()
                loss.backward()
                optimizer.step()
                run.log(loss=loss.item())
        return run.run_id

    return run


@pytest.fixture(scope="module")
def calm():
    """What a run that nothing befell has come to, by its epochs."""
    return {}


@pytest.fixture
def ends_as_if_calm(server, calm, train, tmp_path):
    """Return a function that compares a run with one that nothing befell."""

    def check(run_id, epochs=EPOCHS):
        assert client(server.address).get_run(run_id).info.status == "FINISHED"
        if epochs not in calm:
            alone = train(server.address, epochs)
            calm[epochs] = ended(server.address, alone, tmp_path / "calm")
        found = ended(server.address, run_id, tmp_path / "found")
        assert differences(calm[epochs], found) == []

    return check


@pytest.fixture
def gateway(server):
    """A gateway before the server that refuses nothing yet."""
    opened = Gateway(server.port, lambda *_: None, {"Retry-After": "1"})
    yield opened
    opened.close()


@pytest.fixture
def proxy(server):
    """A connection to the server that is good as yet."""
    opened = FaultyProxy(server.port)
    yield opened
    opened.fault = None
    opened.close()


def is_file(path):
    """Tell whether a request is for a file, not for the tracking server."""
    return "/mlflow-artifacts/" in path


@pytest.mark.parametrize(
    ("status", "files_only"),
    [(500, False), (503, False), (429, False), (401, False), (507, True)],
)
def test_refused_for_a_while(gateway, train, ends_as_if_calm, status, files_only):
    """From an epoch on the server fails, is busy, knows the password no more, or is full; later all
    is well again. 3 s each."""

    def refuse(epoch):
        if epoch == 2:
            gateway.rule = lambda _m, path, _n: status if is_file(path) >= files_only else None
        if epoch == 4:
            wait_for(lambda: gateway.refused)
            gateway.rule = lambda *_: None

    run_id = train(gateway.address, at=refuse)
    assert gateway.refused
    ends_as_if_calm(run_id)


@pytest.mark.parametrize(("status", "files_only"), [(403, False), (507, True), (404, True)])
def test_refused_for_good(gateway, train, ends_as_if_calm, status, files_only):
    """A token that has expired, a full store, a bucket that is gone: training ends in time, and
    what waits is published once somebody has mended it. 4 s each."""

    def refuse(epoch):
        if epoch == 2:
            gateway.rule = lambda _m, path, _n: status if is_file(path) >= files_only else None

    began = time.monotonic()
    run_id = train(gateway.address, at=refuse, drain_seconds=1)
    assert time.monotonic() - began < 60
    gateway.rule = lambda *_: None
    assert client(gateway.address).get_run(run_id).info.status == "RUNNING"
    done = CliRunner().invoke(onward_cli.main, ["sync"])
    assert done.exit_code == 0, done.output
    ends_as_if_calm(run_id)


@pytest.mark.parametrize(
    "fault", [("cut", 1 << 20), ("cut", 3 << 20), ("late", 0.2), ("slow", 1_000_000)], ids=str
)
def test_a_bad_connection_all_the_time(proxy, train, ends_as_if_calm, fault):
    """Each connection breaks after a megabyte, or three; 200 ms on each way; 1 MB/s. 4 to 15 s."""
    proxy.fault = fault
    run_id = train(proxy.address, epochs=1, drain_seconds=100)
    proxy.fault = None
    ends_as_if_calm(run_id, 1)


def send_half(port, path):
    """Begin an upload at the server, as if its bytes were still on their way."""
    with socket.create_connection(("127.0.0.1", port)) as begun:
        head = f"PUT {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 2000000\r\n\r\n"
        begun.sendall(head.encode() + b"x" * 1_000_000)


@pytest.mark.parametrize("how", ["frozen", "killed"])
def test_a_server_that_stops_in_the_middle_of_an_upload(
    server, gateway, train, ends_as_if_calm, how
):
    """It is frozen for a while, or killed and started again. 4 and 12 s."""
    once, again, stopped = threading.Lock(), threading.Event(), threading.Event()

    def stop(method, path, _num_bytes):
        if method == "PUT" and "epoch_3/checkpoint.pth" in path and once.acquire(blocking=False):
            send_half(server.port, path)
            server.freeze() if how == "frozen" else server.stop()
            stopped.set()

    def mend():
        again.wait(60)
        server.thaw() if how == "frozen" else server.start()

    def at(epoch):
        if epoch == EPOCHS - 1:
            assert stopped.wait(60)
            again.set()

    mending = threading.Thread(target=mend)
    mending.start()
    gateway.rule = stop
    run_id = train(gateway.address, at=at)
    mending.join()
    ends_as_if_calm(run_id)


@pytest.mark.parametrize(
    ("name", "how"), [("postgres", "stopped"), ("postgres", "frozen"), ("s3", "frozen")]
)
def test_what_the_server_needs_is_away_for_a_while(
    request, server, train, ends_as_if_calm, name, how
):
    """Its database is stopped and started again, or stands still; so does its store. 4 s each."""
    behind, is_away = request.getfixturevalue(name), threading.Event()

    def mend():
        if is_away.is_set():
            behind.start() if how == "stopped" else behind.signal(signal.SIGCONT)
            is_away.clear()

    def at(epoch):
        if epoch == 2:
            is_away.set()
            behind.stop() if how == "stopped" else behind.signal(signal.SIGSTOP)
        if epoch == 4:
            mend()

    try:
        run_id = train(server.address, at=at)
    finally:  # it is that of other tests too
        mend()
    ends_as_if_calm(run_id)


def test_a_clock_that_is_wrong_and_jumps_back(server, train, ends_as_if_calm, monkeypatch):
    """By a day ahead, then an hour back, then a day behind on the machine that goes on. 2 s."""
    right, ahead = (time.time, time.time_ns), [86_400]
    monkeypatch.setattr(time, "time", lambda: right[0]() + ahead[0])
    monkeypatch.setattr(time, "time_ns", lambda: right[1]() + ahead[0] * 10**9)

    def jump(epoch):
        if epoch == 2:
            ahead[0] -= 3_600

    run_id = train(server.address, epochs=4, at=jump)
    ahead[0] = -86_400
    assert train(server.address, at=lambda epoch: None, resume_run=run_id) == run_id
    points = client(server.address).get_metric_history(run_id, "loss")
    assert [p.timestamp for p in points] == sorted({p.timestamp for p in points})
    ends_as_if_calm(run_id)
