"""Invariant 8: one writer. A living run is not entered, a dead one is, and one claim wins."""

import signal
import sys
import threading
from pathlib import Path

import pytest
from support import (
    SMALL,
    client,
    environment,
    mlflow_server,
    start_logged,
    wait_for,
    write_table,
)

from onward.attempts.heartbeat import Beat
from onward.errors import RunNotUsable
from onward.tracking.client import Tracking

pytestmark = pytest.mark.slow

MACHINE = Path(__file__).parent / "machine.py"
ENDLESS = (*SMALL, "--target", "price", "--epochs", "1000000", "--schedule_epochs", "9")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A tracking server for this module."""
    with mlflow_server(tmp_path_factory.mktemp("server")) as running:
        yield running.address


@pytest.fixture
def machines(tmp_path, server):
    """Start the command line on a machine of that name; what still runs at the end is killed."""
    running = []
    table = str(write_table(tmp_path / "table.csv"))

    def start(name, *options):
        if "--resume_run" not in options:
            options = (*ENDLESS, "--data", table, *options)
        env = environment(tmp_path / name, server, MLFLOW_EXPERIMENT_NAME=tmp_path.name)
        command = [sys.executable, str(MACHINE), name, "run", *options]
        file = tmp_path / f"output_{len(running)}.txt"
        running.append(start_logged(command, file, cwd=tmp_path, env=env))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def end(process, seconds=120):
    """Wait until it ends; return what it printed."""
    process.wait(seconds)
    return process.output.read_text()


def find(uri, name, condition):
    """Return the first attempt's run once it is so."""
    api = client(uri)

    def found():
        experiment = api.get_experiment_by_name(name)
        runs = api.search_runs([experiment.experiment_id]) if experiment else []
        main = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
        return main[0] if main and condition(main[0]) else None

    return wait_for(found)


def beats(run):
    """Return the number of its newest beat."""
    beat = Beat.from_tags(run.data.tags)
    return beat.number if beat else -1


def committed(run):
    return "train.epoch" in run.data.tags and beats(run) >= 1


def test_a_living_run_is_not_entered_unless_it_is_taken_over(machines, tmp_path, server):
    """It is refused where its process is seen, and where its heartbeat is; `take_over` stops it."""
    first = machines("here")
    run = find(server, tmp_path.name, committed)
    again = machines("here", "--resume_run", run.info.run_id)
    printed = end(again)
    assert again.returncode == 6, printed
    assert "is being trained by another process on this machine" in printed
    other = machines("there", "--resume_run", run.info.run_id)
    printed = end(other)
    assert other.returncode == 6, printed
    assert "is RUNNING on here: waiting 3 s" in printed
    assert "is being trained on here" in printed
    assert first.poll() is None
    taker = machines("there", "--resume_run", run.info.run_id, "--take_over", "true")
    printed = end(first)
    assert first.returncode == 8, printed
    assert "was overtaken by attempt 2" in printed
    find(server, tmp_path.name, lambda run: Beat.from_tags(run.data.tags).attempt == 2)
    assert client(server).get_run(run.info.run_id).info.status == "RUNNING"
    taker.send_signal(signal.SIGTERM)
    assert taker.wait(60) == 75
    assert client(server).get_run(run.info.run_id).info.status == "KILLED"


def test_a_dead_run_is_taken_when_its_lease_has_run_out(machines, tmp_path, server):
    """What a dead machine left RUNNING is resumed by its ID, and its end is told as it was."""
    first = machines("here")
    run = find(server, tmp_path.name, committed)
    first.kill()
    first.wait()
    second = machines(
        "there", "--resume_run", "auto", *ENDLESS, "--data", str(tmp_path / "table.csv")
    )
    find(server, tmp_path.name, lambda run: Beat.from_tags(run.data.tags).attempt == 2)
    second.send_signal(signal.SIGTERM)
    printed = end(second)
    assert second.returncode == 75, printed
    assert "No sign of life from here: taking the run over" in printed
    tags = client(server).get_run(run.info.run_id).data.tags
    assert tags["train.attempt.1"].endswith("on here, vanished")
    assert tags["train.attempt.2"].endswith("on there, preempted")
    assert "vanished" in tags["mlflow.note.content"]


def test_of_two_that_start_at_once_one_wins(machines, tmp_path, server):
    """Both see a dead run; one claims it, the other is told who has it."""
    first = machines("here")
    run = find(server, tmp_path.name, committed)
    first.kill()
    first.wait()
    both = [machines(name, "--resume_run", run.info.run_id) for name in ("a", "b")]
    wait_for(lambda: any(process.poll() is not None for process in both))
    [loser] = [process for process in both if process.poll() is not None]
    printed = end(loser)
    assert loser.returncode == 6, printed
    assert "is being continued by another process" in printed or "is being trained on" in printed
    find(server, tmp_path.name, lambda run: Beat.from_tags(run.data.tags).attempt == 2)
    assert client(server).get_run(run.info.run_id).data.tags["train.attempt"] == "2"


def test_fifty_races_have_one_winner_each(server, monkeypatch):
    """An attempt is claimed by a param that is written once: of four claims at the same instant
    one wins, and the others are told the winner."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    tracking = Tracking()
    run_id = tracking.create_run("0", None, {}).run_id
    for number in range(1, 51):
        barrier, results = threading.Barrier(4), {}

        def claim(name, number=number, barrier=barrier, results=results):
            barrier.wait()
            try:
                results[name] = tracking.claim_attempt(run_id, number, name)
            except RunNotUsable as refused:
                results[name] = str(refused)

        threads = [threading.Thread(target=claim, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        [winner] = [name for name, error in results.items() if error is None]
        assert len(results) == 4
        assert all(f"run {winner})" in error for error in results.values() if error)
