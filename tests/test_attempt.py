"""An attempt is claimed once, shown as a run of its own, and closed with the run's status."""

import os

import pytest

from train.attempt import Attempt, run_link
from train.errors import RunNotUsable


@pytest.fixture
def elsewhere(tracking):
    """Return the ID of another experiment."""
    return tracking._client.create_experiment("elsewhere")


def another(tracking, record, launched=None, first_epoch=4):
    record = tracking.get_run(record.run_id)
    return Attempt.another(tracking, record, launched, first_epoch, {"epochs": "9"})


def runs(tracking, experiment_id="0"):
    return {r.info.run_id for r in tracking._client.search_runs([experiment_id])}


def test_the_first_attempt_is_the_run_itself(tracking, record):
    """A fresh run has no child: attempt 1 is claimed for the run."""
    attempt = Attempt.first(tracking, record)
    assert (attempt.number, attempt.first_epoch, attempt.child_id) == (1, 1, record.run_id)
    assert tracking.get_run(record.run_id).params == {"train.attempt.1": record.run_id}
    assert runs(tracking) == {record.run_id}


def test_a_later_attempt_is_a_child_with_its_own_params(tracking, record):
    """Without a launch's run, a child is made in the run's experiment (design 2)."""
    Attempt.first(tracking, record)
    attempt = another(tracking, record)
    child = tracking.get_run(attempt.child_id)
    assert attempt.number == 2
    assert child.name.startswith("attempt 2: epochs 4-… on ")
    assert child.tags["mlflow.parentRunId"] == record.run_id
    assert child.params == {"epochs": "9"}
    assert tracking.get_run(record.run_id).params["train.attempt.2"] == child.run_id
    assert runs(tracking) == {record.run_id, child.run_id}


def test_the_launch_becomes_the_child(tracking, record):
    """The run that `mlflow run` made in the same experiment is the child; its params stay."""
    launched = tracking.create_run("0", "funny-name-1", {})
    tracking.log_params(launched.run_id, {"epochs": "'9'"}, known=())
    attempt = another(tracking, record, tracking.get_run(launched.run_id))
    child = tracking.get_run(launched.run_id)
    assert (attempt.child_id, attempt.stray_id) == (launched.run_id, None)
    assert child.name.startswith("attempt 1: ")
    assert child.params == {"epochs": "'9'"}
    assert child.tags["mlflow.parentRunId"] == record.run_id


def test_a_launch_in_another_experiment_is_left_there_with_a_link(tracking, record, elsewhere):
    """A stray launch run is described, not deleted, and closed with the attempt (design 2)."""
    launched = tracking.create_run(elsewhere, "stray", {})
    attempt = another(tracking, record, launched)
    assert attempt.stray_id == launched.run_id
    assert runs(tracking) == {record.run_id, attempt.child_id}
    tags = tracking.get_run(launched.run_id).tags
    assert tags["train.launched"] == record.run_id
    assert run_link(tracking, record) in tags["mlflow.note.content"]
    attempt.end("KILLED", 4)
    closed = [launched.run_id, attempt.child_id, record.run_id]
    assert [tracking.get_run(run_id).status for run_id in closed] == ["KILLED"] * 3


def test_of_two_attempts_at_once_one_is_refused_and_closed(tracking, record):
    """One writer (invariant 8): who reads the same state and claims later loses."""
    seen = tracking.get_run(record.run_id)
    winner = Attempt.another(tracking, seen, None, 1, {})
    before = runs(tracking)
    with pytest.raises(RunNotUsable, match=f"attempt 1, run {winner.child_id}"):
        Attempt.another(tracking, seen, None, 1, {})
    [lost] = runs(tracking) - before
    assert tracking.get_run(lost).status == "FAILED"
    assert tracking.get_run(record.run_id).status == "RUNNING"


def test_begin_makes_the_run_running_and_tells_how_to_resume(tracking, record):
    """A closed run is RUNNING again, with the attempt's number and its own commands."""
    tracking.set_status(record.run_id, "KILLED")
    attempt = another(tracking, record)
    attempt.begin({"train.code": "abc"})
    run = tracking.get_run(record.run_id)
    assert run.status == "RUNNING"
    assert (run.tags["train.attempt"], run.tags["train.code"]) == ("1", "abc")
    note = run.tags["mlflow.note.content"]
    assert f"python -m train run --resume_run {record.run_id}" in note
    assert "--resume_epoch best --fork true" in note
    assert len(note) < 7_000


def test_the_note_tells_the_command_that_the_user_came_by(tracking, record):
    """Under `mlflow run` the commands are those of `mlflow run`."""
    os.environ["MLFLOW_RUN_ID"] = record.run_id
    Attempt.first(tracking, record).begin({})
    note = tracking.get_run(record.run_id).tags["mlflow.note.content"]
    assert f"mlflow run . --env-manager local -P resume_run={record.run_id}" in note


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
@pytest.mark.parametrize(
    ("last_epoch", "epochs"), [(6, "epochs 4-6"), (4, "epochs 4-4"), (3, "no epoch")]
)
def test_end_closes_run_and_child_and_names_the_epochs(
    tracking, record, status, last_epoch, epochs
):
    """Status tells the truth (invariant 9), and the child's name says what it did."""
    attempt = another(tracking, record)
    attempt.begin({})
    attempt.end(status, last_epoch)
    child = tracking.get_run(attempt.child_id)
    assert tracking.get_run(record.run_id).status == child.status == status
    assert child.name.startswith(f"attempt 1: {epochs} on ")


def test_the_first_attempt_keeps_the_name_of_its_run(tracking, record):
    """Only children are renamed: the run's name is the user's."""
    attempt = Attempt.first(tracking, record)
    attempt.end("FINISHED", 3)
    run = tracking.get_run(record.run_id)
    assert (run.name, run.status) == ("a run", "FINISHED")


def test_a_link_shows_no_password(tracking, record):
    """A server's address is shown without its user; a database's is where `mlflow ui` is."""
    path = f"/#/experiments/0/runs/{record.run_id}"
    assert run_link(tracking, record) == f"http://127.0.0.1:5000{path} (once `mlflow ui` runs)"
    tracking.uri = "https://me:secret@mlflow.example.org/"
    assert run_link(tracking, record) == f"https://***@mlflow.example.org{path}"


def test_a_child_that_somebody_deleted_leaves_the_run_closed(tracking, record):
    """The run's own status comes first: it does not depend on its children (invariant 9)."""
    attempt = another(tracking, record)
    attempt.begin({})
    tracking._client.delete_run(attempt.child_id)
    with pytest.raises(RunNotUsable):
        attempt.end("KILLED", 4)
    assert tracking.get_run(record.run_id).status == "KILLED"
