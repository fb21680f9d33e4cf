"""An attempt is claimed once, shown as a run of its own, and closed with the run's status."""

import os
import re
import signal
import subprocess
import sys
from subprocess import PIPE

import pytest

from onward.attempts import attempt as module
from onward.attempts.attempt import LEASE_SECONDS, Attempt
from onward.errors import RunNotUsable, Superseded
from onward.metrics import Point
from onward.system import environment
from onward.system.processes import seconds_awake_or_asleep
from onward.tracking.client import Tracking
from onward.tracking.names import HEARTBEAT_TAG, PARENT_TAG
from onward.tracking.ui import run_link


@pytest.fixture
def elsewhere(tracking):
    """Return the ID of another experiment."""
    return tracking.client.create_experiment("elsewhere")


def another(tracking, record, launched=None, first_epoch=4):
    record = tracking.get_run(record.run_id)
    return Attempt.another(tracking, record, launched, first_epoch, {"epochs": "9"})


def runs(tracking, experiment_id="0"):
    return {r.info.run_id for r in tracking.client.search_runs([experiment_id])}


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
    assert f"]({run_link(tracking, record).split()[0]})" in tags["mlflow.note.content"]
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
    tracking.log_points(record.run_id, [Point("best_val_pearson", 1, 1, 0.5)])
    attempt = another(tracking, record)
    attempt.begin({"train.code": "abc"})
    run = tracking.get_run(record.run_id)
    assert run.status == "RUNNING"
    assert (run.tags["train.attempt"], run.tags["train.code"]) == ("1", "abc")
    note = run.tags["mlflow.note.content"]
    assert f"train run --resume_run {record.run_id}" in note
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
    assert run_link(tracking, record) == f"https://mlflow.example.org{path}"


ENDED = [("FINISHED", "finished"), ("KILLED", "preempted"), ("FAILED", "failed")]


def told(tracking, record, number):
    """Return what the run says of its attempt of that number."""
    return tracking.get_run(record.run_id).tags.get(f"train.attempt.{number}", "")


def die(*args):
    """End as a process that is killed: nothing catches it, nothing more is said."""
    raise KeyboardInterrupt


@pytest.mark.parametrize(("status", "word"), ENDED)
def test_a_tag_tells_in_words_what_became_of_an_attempt(tracking, record, status, word):
    """While it runs and when it has ended; its child has the word alone, to be searched for."""
    Attempt.first(tracking, record).begin({})
    host = environment.hostname()
    assert told(tracking, record, 1) == f"epochs 1-… on {host}, running"
    attempt = another(tracking, record)
    attempt.begin({})
    assert told(tracking, record, 2) == f"epochs 4-… on {host}, running"
    attempt.end(status, 6)
    assert told(tracking, record, 2) == f"epochs 4-6 on {host}, {word}"
    child = tracking.get_run(attempt.child_id)
    assert (child.tags["train.ended"], child.status) == (word, status)
    assert "train.ended" not in tracking.get_run(record.run_id).tags


@pytest.mark.parametrize(("status", "word"), ENDED)
def test_the_first_attempt_tells_it_too(tracking, record, status, word):
    """It has no child: its word is on the run."""
    attempt = Attempt.first(tracking, record)
    attempt.begin({})
    attempt.end(status, 3)
    assert told(tracking, record, 1) == f"epochs 1-3 on {environment.hostname()}, {word}"


@pytest.mark.parametrize(
    ("first", "then", "words"),
    [(1, 4, "epochs 1-3"), (1, 1, "no epoch"), (4, 4, "no epoch"), (4, 5, "epochs 4-4")],
)
def test_of_one_that_died_without_a_word_the_next_one_tells(
    tracking, record, monkeypatch, first, then, words
):
    """It vanished; its child is closed and named by what it had committed (invariant 9)."""
    Attempt.first(tracking, record).end("KILLED", 0)
    monkeypatch.setattr(environment, "hostname", lambda: "a host on fire")
    dead = another(tracking, record, first_epoch=first)
    dead.begin({})
    monkeypatch.setattr(environment, "hostname", lambda: "here")
    another(tracking, record, first_epoch=then).begin({})
    assert told(tracking, record, 2) == f"{words} on a host on fire, vanished"
    assert told(tracking, record, 3) == f"epochs {then}-… on here, running"
    child = tracking.get_run(dead.child_id)
    assert (child.status, child.tags["train.ended"]) == ("KILLED", "vanished")
    assert child.name == f"attempt 2: {words} on a host on fire"


def test_of_one_whose_successor_died_before_it_could_tell(tracking, record, monkeypatch):
    """The next one that lives tells of both, each by the epochs that it had committed."""
    Attempt.first(tracking, record).begin({})
    dead = another(tracking, record, first_epoch=4)
    dead.begin({})
    record = tracking.get_run(record.run_id)
    with monkeypatch.context() as dying:
        dying.setattr(Tracking, "open_children", die)
        with pytest.raises(KeyboardInterrupt):
            another(tracking, record, first_epoch=6)
    assert told(tracking, record, 2).endswith(", running")
    assert told(tracking, record, 3) == ""
    another(tracking, record, first_epoch=6).begin({})
    host = environment.hostname()
    assert told(tracking, record, 1) == f"epochs 1-3 on {host}, vanished"
    assert told(tracking, record, 2) == f"epochs 4-5 on {host}, vanished"
    assert told(tracking, record, 3) == "no epoch, vanished"
    [alive] = tracking.open_children(record)
    assert alive.name == f"attempt 4: epochs 6-… on {host}"


@pytest.mark.parametrize("status", ["FINISHED", "KILLED"])
@pytest.mark.parametrize("step", ["rename", "set_status"])
def test_one_that_died_at_its_end_leaves_the_run_to_the_next(
    tracking, record, monkeypatch, status, step
):
    """The run, which comes last, is not ended; a child that was left open is closed."""
    Attempt.first(tracking, record).end("KILLED", 3)
    dead = another(tracking, record)
    dead.begin({})
    with monkeypatch.context() as dying:
        dying.setattr(Tracking, step, die)
        with pytest.raises(KeyboardInterrupt):
            dead.end(status, 5)
    assert tracking.get_run(record.run_id).status == "RUNNING"
    assert tracking.get_run(dead.child_id).status == "RUNNING"
    another(tracking, record, first_epoch=6).begin({})
    assert told(tracking, record, 2) == f"epochs 4-5 on {environment.hostname()}, vanished"
    child = tracking.get_run(dead.child_id)
    assert (child.status, child.tags["train.ended"]) == ("KILLED", "vanished")


def test_one_that_died_before_the_last_word_leaves_the_run_to_the_next(
    tracking, record, monkeypatch
):
    """Its child has ended as it should, the run has not: somebody goes on with it."""
    Attempt.first(tracking, record).end("KILLED", 3)
    dead = another(tracking, record)
    dead.begin({})
    with monkeypatch.context() as dying:
        dying.setattr(Attempt, "_tell", die)
        with pytest.raises(KeyboardInterrupt):
            dead.end("FINISHED", 5)
    assert tracking.get_run(dead.child_id).status == "FINISHED"
    assert tracking.get_run(record.run_id).status == "RUNNING"
    another(tracking, record, first_epoch=6).begin({})
    child = tracking.get_run(dead.child_id)
    assert (child.status, child.tags["train.ended"]) == ("FINISHED", "finished")


def test_of_a_first_one_that_died_without_a_word(tracking, record):
    """The run is the attempt: its name stays, its status is that of the next one."""
    Attempt.first(tracking, record).begin({})
    another(tracking, record).begin({})
    assert told(tracking, record, 1) == f"epochs 1-3 on {environment.hostname()}, vanished"
    run = tracking.get_run(record.run_id)
    assert (run.name, run.status) == ("a run", "RUNNING")


def test_one_that_was_claimed_and_never_begun_vanished_as_well(tracking, record):
    """It died between its claim and its first word."""
    Attempt.first(tracking, record).end("KILLED", 3)
    dead = another(tracking, record)
    another(tracking, record).begin({})
    assert told(tracking, record, 2) == "no epoch, vanished"
    child = tracking.get_run(dead.child_id)
    assert (child.status, child.name) == ("KILLED", "attempt 2: no epoch")


@pytest.mark.parametrize(("status", "word"), ENDED)
def test_what_has_told_its_end_is_left_alone(tracking, record, status, word):
    """The next attempt does not rewrite how the one before ended."""
    Attempt.first(tracking, record).end("KILLED", 0)
    ended = another(tracking, record)
    ended.begin({})
    ended.end(status, 6)
    before = told(tracking, record, 2), tracking.get_run(ended.child_id)
    another(tracking, record, first_epoch=7).begin({})
    assert (told(tracking, record, 2), tracking.get_run(ended.child_id)) == before
    assert before[0].endswith(f", {word}")


def test_an_attempt_that_was_overtaken_leaves_the_run_alone(tracking, record):
    """One writer (invariant 8): it closes its own child, and nothing else."""
    Attempt.first(tracking, record).end("KILLED", 3)
    old = another(tracking, record)
    old.begin({})
    another(tracking, record).begin({})
    before = tracking.get_run(record.run_id)
    old.end("KILLED", 5)
    assert tracking.get_run(record.run_id) == before
    child = tracking.get_run(old.child_id)
    assert (child.status, child.tags["train.ended"]) == ("KILLED", "preempted")


def test_the_description_lists_the_newest_ten(tracking, record):
    """Each with its words, the newest last; the older ones are in the tags."""
    Attempt.first(tracking, record).begin({})
    for _ in range(11):
        another(tracking, record).begin({})
    note = tracking.get_run(record.run_id).tags["mlflow.note.content"]
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", note, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(3, 13))
    assert [words for _, words in rows] == [told(tracking, record, n) for n in range(3, 13)]
    assert "train run" in note


def test_after_a_thousand_attempts_the_description_is_as_short(tracking, record, monkeypatch):
    """MLflow would cut it without a word; nothing of the run grows until it is refused."""
    monkeypatch.setattr(environment, "hostname", lambda: "h" * 64)
    tracking.log_params(record.run_id, {f"train.attempt.{n}": "c" for n in range(1, 1000)}, ())
    words = f"epochs 10000-20000 on {'h' * 64}, preempted"
    for start in range(1, 1000, 500):
        numbers = range(start, min(start + 500, 1000))
        tracking.set_tags(record.run_id, {f"train.attempt.{n}": words for n in numbers})
    attempt = another(tracking, record, first_epoch=1_000_000)
    assert attempt.number == 1000
    attempt.begin({})
    attempt.end("KILLED", 1_000_000)
    note = tracking.get_run(record.run_id).tags["mlflow.note.content"]
    assert len(note) < 7_000
    assert note.count(", preempted |") == 10
    assert f"| 1000 | {told(tracking, record, 1000)} |" in note


def test_a_child_that_somebody_deleted_leaves_the_run_closed(tracking, record, caplog):
    """The run's own end does not depend on its children: it is a warning (invariant 9)."""
    attempt = another(tracking, record)
    attempt.begin({})
    tracking.client.delete_run(attempt.child_id)
    attempt.end("FINISHED", 4)
    assert tracking.get_run(record.run_id).status == "FINISHED"
    assert told(tracking, record, 1).endswith(", finished")
    [warning] = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert attempt.child_id in warning


def test_a_stray_launch_that_somebody_deleted_does_so_too(tracking, record, elsewhere):
    """Nor on the launch that lies in another experiment; the child is closed as well."""
    launched = tracking.create_run(elsewhere, "stray", {})
    attempt = another(tracking, record, launched)
    attempt.begin({})
    tracking.client.delete_run(launched.run_id)
    attempt.end("FINISHED", 4)
    assert tracking.get_run(record.run_id).status == "FINISHED"
    assert tracking.get_run(attempt.child_id).status == "FINISHED"


def test_a_vanished_child_that_somebody_deleted_holds_nothing_up(tracking, record):
    """The next attempt begins, and the run tells of the dead one all the same."""
    Attempt.first(tracking, record).end("KILLED", 3)
    dead = another(tracking, record)
    dead.begin({})
    tracking.client.delete_run(dead.child_id)
    another(tracking, record, first_epoch=6).begin({})
    assert told(tracking, record, 2).startswith("epochs 4-5 on ")
    assert told(tracking, record, 2).endswith(", vanished")


def test_a_deleted_run_is_not_closed(tracking, record):
    """That the run itself is gone is an error: nothing of it can be true any more."""
    attempt = Attempt.first(tracking, record)
    tracking.client.delete_run(record.run_id)
    with pytest.raises(RunNotUsable, match="was deleted"):
        attempt.end("FINISHED", 3)


def test_what_a_launch_left_that_died_before_its_claim_is_closed(tracking, record):
    """A child without an attempt does not stay RUNNING; what others made below the run does."""
    Attempt.first(tracking, record)
    below = {PARENT_TAG: record.run_id}
    orphan = tracking.create_run("0", "attempt 2: epochs 4-…", {**below, HEARTBEAT_TAG: "{}"})
    others = tracking.create_run("0", "a note", below)
    attempt = another(tracking, record)
    found = [tracking.get_run(r).status for r in (orphan.run_id, others.run_id, attempt.child_id)]
    assert found == ["KILLED", "RUNNING", "RUNNING"]


EVIL = "[x](http://x) ![p](//x/p.png) <img src=//x> | a\n| b `c`\n```\n# d"


def test_what_others_wrote_is_no_markup_of_a_description(tracking, record, elsewhere):
    """A name, a host or a word of an attempt makes no link, picture, row or heading."""
    tracking.rename(record.run_id, EVIL)
    attempt = another(tracking, record, tracking.create_run(elsewhere, "stray", {}))
    stray = tracking.get_run(attempt.stray_id).tags["mlflow.note.content"]
    attempt.begin({f"train.attempt.{attempt.number - 1}": EVIL, "train.epoch": EVIL})
    attempt.describe(tracking.get_run(record.run_id))
    note = tracking.get_run(record.run_id).tags["mlflow.note.content"]
    for text in (stray, note):
        assert "\\[x\\]" in text or text is note
        assert not re.search(r"(?<!\\)!\[|<img|\]\(http://x|\]\(//x|^# d", text, re.MULTILINE)
    assert stray.count("\n") == 0
    rows = [line for line in note.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert note.count("```") % 2 == 0


def test_the_lease_is_asked_for_once_a_moment(tracking, record, monkeypatch):
    """Invariant 8: before a file, or metrics, an answer of a moment ago is believed."""
    now = [1000.0]
    monkeypatch.setattr(module, "seconds_awake_or_asleep", lambda: now[0])
    first = Attempt.first(tracking, record)
    first.require_lease()
    another(tracking, record)
    now[0] += LEASE_SECONDS / 2
    first.require_lease()  # asked a moment ago
    with pytest.raises(Superseded):
        first.check_lease()
    now[0] += LEASE_SECONDS / 2
    for _ in range(2):
        with pytest.raises(Superseded):
            first.require_lease()


def test_the_clock_of_the_lease_goes_on_while_the_process_is_stopped():
    """Awake again, a process that was frozen does not believe what it was told before."""
    clock = "seconds_awake_or_asleep()"
    code = f"from onward.system.processes import *; a = {clock}; input('-'); print({clock} - a)"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, bufsize=0) as frozen:
        frozen.stdout.read(1)
        frozen.send_signal(signal.SIGSTOP)
        began = seconds_awake_or_asleep()
        while seconds_awake_or_asleep() - began < 0.2:
            pass
        frozen.send_signal(signal.SIGCONT)
        told, _nothing = frozen.communicate(b"\n")
    assert float(told) >= 0.2
