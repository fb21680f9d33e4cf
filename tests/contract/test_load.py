"""What a thousand runs, and two thousand checkpoints of one, ask of the server."""

import http.client
import re
from collections import Counter

import pytest
from many import add_checkpoints, add_runs, train
from support import client, mlflow_server

from onward.attempts import heartbeat
from onward.cli import listing
from onward.tracking.client import Tracking

pytestmark = pytest.mark.slow

RUNS, CHECKPOINTS = 1_000, 2_000


@pytest.fixture
def asked(monkeypatch):
    """Every call that this process makes to a server, without what differs between runs."""
    found, put = Counter(), http.client.HTTPConnection.putrequest

    def noted(connection, method, url, *args, **options):
        path = re.sub(r"[0-9a-f]{32}", "ID", url.split("?")[0])
        found[f"{method} {path}"] += 1
        return put(connection, method, url, *args, **options)

    monkeypatch.setattr(http.client.HTTPConnection, "putrequest", noted)
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 1e6)  # one, at the start
    return found


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """A server, and a killed run."""
    with mlflow_server(tmp_path / "server") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        run_id = train(1)
        client(server.address).update_run(run_id, status="KILLED")
        yield server, run_id


def resumed(asked, wanted, tmp_path, monkeypatch, more):
    """Go on, on a machine of its own, for a step more; return the calls of all that."""
    monkeypatch.setenv("TRAIN_HOME", str(tmp_path / f"home-{wanted}-{more}"))
    asked.clear()
    run_id = train(more, resume_run=wanted)
    client(Tracking().uri).update_run(run_id, status="KILLED")
    return run_id, Counter(asked)


def test_what_many_runs_and_checkpoints_cost(loaded, asked, tmp_path, monkeypatch):
    """A list, `latest` and `auto` ask as much of a server that has 1,000 runs, and a run that has
    2,000 checkpoints, as of an empty one, but for a page of the search. 20 s."""
    server, run_id = loaded
    few = [resumed(asked, "latest", tmp_path, monkeypatch, 2)[1]]
    few.append(resumed(asked, "auto", tmp_path, monkeypatch, 3)[1])
    add_checkpoints(server.folder, run_id, CHECKPOINTS)
    add_runs(server.folder, run_id, RUNS)
    many = []
    for wanted, more in (("latest", 4), ("auto", 5)):
        found, calls = resumed(asked, wanted, tmp_path, monkeypatch, more)
        assert found == run_id
        many.append(calls)
    for before, after in zip(few, many, strict=True):
        reads = [sum(n for call, n in c.items() if call.startswith("GET")) for c in (before, after)]
        assert reads[1] <= reads[0] + 6, after - before
        assert sum(after.values()) <= sum(before.values()) + 10, after - before
    tracking = Tracking()
    asked.clear()
    assert len(listing.run_rows(tracking)) == RUNS + 1
    assert asked.total() <= 4, asked
    asked.clear()
    assert len(listing.checkpoint_rows(tracking, run_id)) >= CHECKPOINTS
    assert asked.total() <= 4, asked
