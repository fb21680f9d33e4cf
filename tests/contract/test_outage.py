"""Invariant 10: an outage stops nothing and loses nothing."""

import contextlib
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from proxy import FaultyProxy
from support import (
    SMALL,
    checkpoint,
    comparable,
    curves,
    differences,
    environment,
    index,
    launch,
    mlflow_server,
    only_run,
    run_command,
    start_command,
    wait_for,
    write_table,
)

pytestmark = pytest.mark.slow

EPOCHS = 120
OPTIONS = (
    *SMALL,
    *("--target", "price", "--dropout", "0.1", "--checkpoint_freq", "10", "--epochs", str(EPOCHS)),
)
MACHINE = Path(__file__).parent / "machine.py"
QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


STARTED = []


@pytest.fixture(autouse=True)
def ended():
    """End what a test that failed left running, or frozen."""
    yield
    while STARTED:
        STARTED.pop().kill()


def start(*options, cwd, env):
    """Start `train run` in the background."""
    process = start_command(
        [sys.executable, "-m", "train", "run", *options],
        cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    STARTED.append(process)
    return process


def until(process, beginning):
    """Read what a process prints up to a line that begins so."""
    printed = []
    for line in process.stdout:
        printed.append(line)
        if line.startswith(beginning):
            return printed
    raise AssertionError("".join(printed))


@pytest.fixture
def table(tmp_path):
    """A table of which an epoch takes a while."""
    return str(write_table(tmp_path / "table.csv", num_rows=4000))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run on the same table in a store of its own; return (store, run ID)."""
    folder = tmp_path_factory.mktemp("undisturbed")
    uri = f"sqlite:///{folder}/mlflow.db"
    table = str(write_table(folder / "table.csv", num_rows=4000))
    done = launch(*OPTIONS, "--data", table, cwd=folder, env=environment(folder / "home", uri))
    assert done.returncode == 0, done.stderr
    return uri, only_run(uri).info.run_id


def assert_equal(expected, found, tmp_path):
    """Weights, curves and the set of checkpoints are the same in both (store, run ID)."""
    saved = [
        comparable(checkpoint(*pair, tmp_path / f"c{i}"))
        for i, pair in enumerate((expected, found))
    ]
    assert differences(*saved) == []
    assert curves(*expected) == curves(*found)
    assert index(*expected, tmp_path / "i1") == index(*found, tmp_path / "i2")


def test_the_server_is_away_for_a_while(undisturbed, table, tmp_path):
    """Training goes on while the server is gone, and everything is there once it is back."""
    with mlflow_server(tmp_path / "server") as server:
        env = environment(tmp_path / "elsewhere", server.address, **QUICK)
        process = start(*OPTIONS, "--data", table, cwd=tmp_path, env=env)
        until(process, "epoch 20 ")
        server.stop()
        until(process, f"epoch {EPOCHS - 20} ")
        server.start()
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == 0, printed
        run = only_run(server.address)
        assert run.info.status == "FINISHED"
        assert_equal(undisturbed, (server.address, run.info.run_id), tmp_path)


def test_the_server_is_away_for_good(undisturbed, table, tmp_path):
    """The process ends with exit code 0 and says what waits; `train sync` publishes it, and a
    second one finds nothing."""
    with mlflow_server(tmp_path / "server") as server:
        env = environment(tmp_path / "elsewhere", server.address, **QUICK)
        words = (*OPTIONS, "--data", table, "--drain_seconds", "1")
        process = start(*words, cwd=tmp_path, env=env)
        printed = until(process, "epoch 20 ")
        server.stop()
        printed += process.communicate(timeout=120)[0].splitlines(keepends=True)
        assert process.returncode == 0, printed
        assert any("offline, " in line for line in printed)
        assert "train sync" in printed[-1]
        server.start()
        run = only_run(server.address)
        assert run.info.status == "RUNNING"
        for expected in ("Published what attempt 1", "waits on this disk"):
            done = run_command([sys.executable, "-m", "train", "sync"], cwd=tmp_path, env=env)
            assert expected in done.stdout, done
        assert only_run(server.address).info.status == "FINISHED"
        assert_equal(undisturbed, (server.address, run.info.run_id), tmp_path)


def test_a_connection_that_misbehaves(undisturbed, table, tmp_path):
    """Broken connections, answers cut short, 503 and slowness cost neither a metric nor a
    checkpoint, and never the training."""
    with mlflow_server(tmp_path / "server") as server:
        proxy = FaultyProxy(server.port)
        env = environment(tmp_path / "elsewhere", proxy.address, **QUICK)
        process = start(*OPTIONS, "--data", table, cwd=tmp_path, env=env)
        until(process, "epoch 10 ")
        for fault in ("reset", ("cut", 300), "503", "delay", ("cut", 9000)):
            hits = proxy.num_hits(fault)
            proxy.fault = fault
            wait_for(lambda: proxy.num_hits(fault) > hits)  # noqa: B023 - called at once
            proxy.fault = None
            passed = proxy.num_hits(None)
            wait_for(lambda: proxy.num_hits(None) > passed + 4)  # noqa: B023
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == 0, printed
        proxy.close()
        run = only_run(server.address)
        assert run.info.status == "FINISHED"
        assert_equal(undisturbed, (server.address, run.info.run_id), tmp_path)


@pytest.fixture(params=["local", "server"])
def store(request, tmp_path):
    """Return the address of a store: a database with files beside it, or a server."""
    if request.param == "local":
        yield f"sqlite:///{tmp_path}/mlflow.db"
        return
    with mlflow_server(tmp_path / "server") as server:
        yield server.address


def freeze(process, store):
    """Stop a process where it is, but where it would lock the database for all others."""
    while True:
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1][1] == "T")
        if not store.startswith("sqlite:///"):
            return
        with contextlib.closing(sqlite3.connect(store.removeprefix("sqlite:///"), 0.2)) as database:
            try:
                database.execute("BEGIN EXCLUSIVE")  # it must not read there either
                return
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)


def test_a_frozen_attempt_that_wakes_up(undisturbed, table, store, tmp_path):
    """Invariant 8: while one attempt is frozen another takes over on another machine; the first,
    awake again, publishes nothing more and ends with exit code 8. One request that was under way
    when it froze may still land: it doubles no metric, and the next resume puts it right."""
    env = environment(tmp_path / "frozen", store)
    process = start(*OPTIONS, "--data", table, cwd=tmp_path, env=env)
    until(process, "epoch 30 ")
    wait_for(lambda: "train.epoch" in only_run(store).data.tags)
    freeze(process, store)
    run_id = only_run(store).info.run_id
    env = environment(tmp_path / "other", store)
    words = [sys.executable, MACHINE, "other", "run", "--resume_run", run_id]
    again = run_command(words, cwd=tmp_path, env=env)
    assert again.returncode == 0, again.stderr
    process.send_signal(signal.SIGCONT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 8, printed
    assert "was overtaken by attempt 2" in printed
    assert only_run(store).info.status == "FINISHED"
    assert curves(store, run_id) == curves(*undisturbed)
    done = launch("--resume_run", run_id, "--epochs", str(EPOCHS), cwd=tmp_path, env=env)
    assert "Nothing is left to train" in done.stdout, done
    assert_equal(undisturbed, (store, run_id), tmp_path)


def test_killed_while_the_server_is_away(undisturbed, table, tmp_path):
    """A resume on the same disk goes on from the newest spooled checkpoint, which it publishes
    first; what is on another disk is overtaken, kept, and made a fork."""
    with mlflow_server(tmp_path / "server") as server:
        env = environment(tmp_path / "elsewhere", server.address, **QUICK)
        process = start(*OPTIONS, "--data", table, cwd=tmp_path, env=env)
        until(process, "epoch 20 ")
        server.stop()
        until(process, f"epoch {EPOCHS - 40} ")
        process.send_signal(signal.SIGKILL)
        process.communicate()
        server.start()
        run_id = only_run(server.address).info.run_id
        again = launch("--resume_run", run_id, cwd=tmp_path, env=env)
        assert again.returncode == 0, again.stderr
        first = int(again.stdout.split("Resuming training from epoch ")[1].split(" ")[0])
        assert first > EPOCHS - 60, "the spool holds what was trained during the outage"
        assert_equal(undisturbed, (server.address, run_id), tmp_path)
