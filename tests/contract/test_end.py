"""The end of a process is bounded, whatever the server does."""

import signal
import subprocess
import sys
import time

import pytest
from proxy import FaultyProxy
from support import SMALL, environment, mlflow_server, start_logged, wait_for

pytestmark = pytest.mark.slow

AT_MOST = 20.0  # on a busy machine; without a bound it is minutes


@pytest.fixture
def proxy(tmp_path):
    """A proxy before a real server; what it holds back is let go in the end."""
    with mlflow_server(tmp_path / "server") as server:
        between = FaultyProxy(server.port)
        yield between
        between.fault = None
        between.close()


@pytest.fixture
def start(proxy, table, tmp_path):
    """Return a function that starts training, and freezes the server at an upload."""
    processes = []

    def begin(*options):
        words = ("--data", str(table), "--target", "price", *SMALL, *options)
        env = environment(tmp_path / "home", proxy.address, PYTHONUNBUFFERED="1")
        processes.append(
            start_logged(
                [sys.executable, "-m", "train", "run", *words],
                tmp_path / "out.txt", cwd=tmp_path, env=env,
            )
        )  # fmt: skip
        process = processes[-1]
        wait_for(lambda: "epoch 10 " in process.output.read_text() or process.poll() is not None)
        proxy.fault = ("freeze", b"/checkpoint.pth HTTP")  # in the middle of an upload
        wait_for(lambda: proxy.fault == "freeze")
        return process

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def seconds_to_end(process):
    """Return how long the process takes to end; one that hangs is given up."""
    started = time.monotonic()
    try:
        process.wait(90)
    except subprocess.TimeoutExpired:
        process.kill()
    return time.monotonic() - started


def test_a_signal_while_the_server_is_frozen(start):
    """It ends within `grace_seconds` and a little, with the exit code of a stop."""
    process = start("--epochs", "100000", "--grace_seconds", "2")
    wait_for(lambda: "epoch 40 " in process.output.read_text())
    process.send_signal(signal.SIGTERM)
    assert seconds_to_end(process) < AT_MOST
    assert process.returncode == 75, process.output.read_text()
    assert "wait on this disk" in process.output.read_text()


def test_finished_while_the_server_is_frozen(start):
    """It ends within `drain_seconds` and a little, and says what waits."""
    process = start("--epochs", "300", "--drain_seconds", "1")
    wait_for(lambda: "epoch 300 " in process.output.read_text())
    assert seconds_to_end(process) < AT_MOST
    assert process.returncode == 0, process.output.read_text()
    assert "wait on this disk" in process.output.read_text()
