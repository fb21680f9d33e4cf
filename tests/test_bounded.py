"""A server that accepts and stays silent, or drips, holds nobody for long."""

import contextlib
import itertools
import os
import socket
import sys
import threading
import time

import pytest
from mlflow.tracking import request_header
from support import attempt_of, cli, wait_for

from onward.checkpoint import pipeline as pipeline_module
from onward.checkpoint.pipeline import Pipeline
from onward.checkpoint.policy import Retention
from onward.checkpoint.spool import RunFolder
from onward.checkpoint.store import CheckpointStore
from onward.errors import StoreUnavailable
from onward.publish.publisher import Publisher
from onward.tracking import bounded
from onward.tracking.artifacts import Artifacts
from onward.tracking.client import Tracking

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
WHOLE = HEAD + b"Content-Length: 2\r\n\r\n{}"


class Server:
    """Accepts calls on 127.0.0.1 and answers them as `pieces` says, with a pause between two.

    After the pieces it says nothing more, and leaves the connection open.
    """

    def __init__(self):
        self.pieces = lambda: iter(())
        self.num_connections = self.num_pieces = 0
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.num_connections += 1
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection):
        with contextlib.suppress(OSError), connection:
            while connection.recv(65536):
                self.num_pieces += 1
                for piece in self.pieces():
                    connection.sendall(piece)
                    if self._closed.wait(0.02):
                        return

    def close(self):
        self._closed.set()
        self._listener.close()


@pytest.fixture
def server(monkeypatch):
    """Return a silent server, which is the tracking server; a call may take half a second."""
    monkeypatch.setattr(bounded, "FIRST_SECONDS", 0.5)
    monkeypatch.setattr(bounded, "CALL_SECONDS", 0.5)
    monkeypatch.setattr(bounded, "TELL_SECONDS", 0.1)
    server = Server()
    os.environ["MLFLOW_TRACKING_URI"] = server.address
    os.environ["MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR"] = "0"
    yield server
    server.close()


def forever(*first):
    """Return a function that yields `first`, then one byte after the other."""
    return lambda: itertools.chain(first, itertools.repeat(b"x"))


DRIPPING = {
    "nothing": lambda: iter(()),
    "status": forever(b"HTTP/1.1 2"),
    "header": forever(HEAD + b"X: "),
    "body": forever(HEAD + b"Content-Length: 100000\r\n\r\n"),
    "chunks": lambda: itertools.chain(
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n"], itertools.repeat(b"1\r\nx\r\n")
    ),
}


@pytest.mark.parametrize("what", DRIPPING)
def test_a_server_that_does_not_end_its_answer_is_given_up(server, what, caplog):
    """Whatever of it comes: the call is over in its time, and is not made again after it."""
    server.pieces = DRIPPING[what]
    ends = time.monotonic() + 30
    with pytest.raises(StoreUnavailable, match="does not answer") as caught:
        Tracking().probe()
    assert time.monotonic() < ends
    assert "\n" not in str(caught.value)
    assert server.num_connections == 1
    assert caplog.text.count(f"Waiting for the server at {server.address}") == 1


@pytest.mark.parametrize(
    "words",
    [["list"], ["list", "r1"], ["verify", "r1"], ["sync", "r1"], ["run"], ["ui"], ["prune", "r1"]],
)
def test_every_command_is_over_with_one_line(server, words):
    """Not only training asks a server."""
    done = cli(*words)
    assert done.exit_code == 7, done.output
    assert "does not answer" in done.stderr.splitlines()[-1]


def test_a_server_that_has_answered_may_take_its_time(server, monkeypatch, caplog):
    """Only the first answer is waited for with a line; the limit of each call stays."""
    server.pieces = lambda: iter([WHOLE])
    tracking = Tracking()
    tracking.probe()
    server.pieces = lambda: iter(())
    with pytest.raises(StoreUnavailable, match="does not answer"):
        tracking.probe()
    assert "Waiting for the server" not in caplog.text


@pytest.mark.parametrize("verb", ["list", "delete"])
def test_the_store_behind_the_server_is_given_up_too(server, verb):
    """What is asked of it besides files, whose size nobody knows here."""
    Tracking()
    artifacts = Artifacts("mlflow-artifacts:/0/r1/artifacts", server.address)
    ends = time.monotonic() + 30
    with pytest.raises(StoreUnavailable, match="does not answer"):
        getattr(artifacts, verb)("checkpoints")
    assert time.monotonic() < ends, "MLflow's own limit is 120 s"


def test_the_users_limit_holds_where_it_is_less(server, monkeypatch):
    """MLFLOW_HTTP_REQUEST_TIMEOUT is for a call now, not for a piece of it."""
    monkeypatch.setattr(bounded, "FIRST_SECONDS", 600.0)
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "1"
    server.pieces = DRIPPING["body"]
    with pytest.raises(StoreUnavailable, match="does not answer"):
        Tracking().probe()


def test_a_server_that_asks_to_wait_for_an_hour_is_not_waited_for(server):
    """Retry-After holds within the time of the call."""
    busy = b"HTTP/1.1 429 Busy\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n"
    server.pieces = lambda: iter([busy])
    with pytest.raises(StoreUnavailable):
        Tracking().probe()


def test_a_server_that_owes_an_answer_counts_as_away(server, tmp_path, monkeypatch):
    """`offline` stands at the epochs within seconds, not when a call is given up."""
    monkeypatch.setattr(pipeline_module, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(bounded, "CALL_SECONDS", 600.0)
    server.pieces = lambda: iter([WHOLE])
    tracking = Tracking()
    tracking.probe()
    store = CheckpointStore(Artifacts(str(tmp_path / "store")), "r1")
    spool = RunFolder(tmp_path / "run").spool(1)
    publisher = Publisher(attempt_of(tracking, "r1"), store, spool, Retention())
    pipeline = Pipeline(publisher, spool)
    assert pipeline.condition == ""
    server.pieces, asked = (lambda: iter(())), server.num_pieces

    def ask():
        with contextlib.suppress(StoreUnavailable):
            tracking.probe()

    threading.Thread(target=ask, daemon=True).start()
    wait_for(lambda: server.num_pieces > asked)
    assert pipeline.condition == "offline, 0 waiting"


def test_a_request_looks_for_no_notebook(server, monkeypatch):
    """Half of a request's CPU were imports of Databricks' packages, which fail each time."""
    Tracking()
    looked = []

    class Looks:
        def find_spec(self, name, path=None, target=None):
            looked.append(name)

    monkeypatch.setattr(sys, "meta_path", [Looks(), *sys.meta_path])
    headers = request_header.registry.resolve_request_headers()
    assert "User-Agent" in headers
    assert looked == []
