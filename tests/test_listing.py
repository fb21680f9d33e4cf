"""`train list`: which runs can be resumed, and which checkpoints a run has."""

import dataclasses
import json
import time
from pathlib import Path

import pytest
from support import cli

from onward.attempts.heartbeat import Beat
from onward.cli import listing
from onward.errors import RunNotUsable
from onward.metrics import Point
from onward.monitor import Monitor
from onward.tracking.names import EPOCH_TAG, HEARTBEAT_TAG, MONITOR_TAG, OPTIONS_TAG
from train.tabular.options import Config

SCORES = {1: 0.1, 2: 0.9, 3: float("nan")}


@pytest.fixture
def trained(record, commit_to):
    """Return a run with checkpoints of three epochs, the second being the best."""
    return commit_to(record, SCORES)


def test_checkpoints_are_listed_oldest_first_with_their_marks(tracking, trained):
    """Each row tells epoch, step, losses, what it is kept for, size, time and path."""
    rows = listing.checkpoint_rows(tracking, trained.run_id)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert [row["val_loss"] for row in rows] == [1, 1 / 2, 1 / 3]
    assert [row["val_pearson"] for row in rows] == [0.1, 0.9, None]
    assert [row["best"] for row in rows] == [False, True, False]
    assert [row["latest"] for row in rows] == [False, False, True]
    assert all(row["kept"] and row["attempt"] == 1 for row in rows)
    for row in rows:
        path = Path(trained.artifact_uri) / row["path"]
        files = [path, path.with_name("checkpoint_metrics.json")]
        assert row["bytes"] == sum(file.stat().st_size for file in files)
        assert abs(row["created"] - time.time()) < 60


def test_one_inside_an_epoch_is_listed_with_its_steps(tracking, record, commit_to, capsys):
    """It is told apart from an epoch's end, has no metrics, and can be the latest."""
    trained = commit_to(record, {1: 0.1, (1, 3): None})
    rows = listing.checkpoint_rows(tracking, trained.run_id)
    assert [(r["epoch"], r["step"], r["epoch_step"]) for r in rows] == [(1, 10, 0), (1, 13, 3)]
    assert [(r["val_loss"], r["latest"], r["best"]) for r in rows][1] == (None, True, False)
    assert rows[1]["path"] == "checkpoints/global_step_13/checkpoint.pth"
    listing.show(rows, trained.run_id, False)
    line = capsys.readouterr().out.splitlines()[2]
    assert line.split()[:5] == ["1", "+", "3", "steps", "13"]
    assert rows[1]["path"] in line


def test_runs_are_listed_newest_first_and_only_ours(tracking, record, trained):
    """A run is listed with how far it is; runs without a checkpoint are left out."""
    tracking.create_run("0", "somebody else's", {})
    tracking.claim_attempt(record.run_id, 1, record.run_id)
    tracking.log_points(record.run_id, [Point("best_val_pearson", 2, 1, 0.9)])
    tracking.set_status(record.run_id, "KILLED")
    [row] = listing.run_rows(tracking)
    assert row["run_id"] == record.run_id
    assert (row["name"], row["status"], row["attempts"]) == ("a run", "KILLED", 1)
    assert (row["epoch"], row["epochs"]) == (3, Config().epochs)
    assert row["best_val_pearson"] == 0.9
    assert abs(row["started"] - time.time()) < 60
    assert row["last_active"] == row["started"], "it has shown no life since"


@pytest.mark.parametrize("options", ["not JSON", "[]", "5", '{"seed": 1}'])
def test_a_run_with_strange_options_is_listed_all_the_same(tracking, trained, options):
    """A tag that somebody edited costs the number of epochs, not the listing."""
    tracking.set_tags(trained.run_id, {OPTIONS_TAG: options})
    [row] = listing.run_rows(tracking)
    assert (row["epoch"], row["epochs"]) == (3, None)


def test_a_listing_costs_three_calls_whatever_the_number(
    tracking, artifacts, trained, calls, monkeypatch
):
    """One call for the run, one for the folder, one for the index (issue 2)."""
    recorded = type(artifacts)(trained.artifact_uri, calls)
    monkeypatch.setattr(tracking, "artifacts", lambda record: recorded)
    get_run = tracking.client.get_run
    monkeypatch.setattr(
        tracking.client, "get_run", lambda run: calls.make("run", lambda: get_run(run))
    )
    assert len(listing.checkpoint_rows(tracking, trained.run_id)) == 3
    assert calls.names == ["run", "list checkpoints", "download checkpoints/index.json"]


def test_an_unknown_run_is_refused(tracking):
    """A run ID that does not exist is an error, not an empty table."""
    with pytest.raises(RunNotUsable):
        listing.checkpoint_rows(tracking, "0" * 32)


def test_json_is_for_scripts(tracking, trained, capsys):
    """`--json` prints the rows as they are: numbers, null where there is none, full paths."""
    rows = listing.checkpoint_rows(tracking, trained.run_id)
    listing.show(rows, trained.run_id, as_json=True)
    assert json.loads(capsys.readouterr().out) == rows
    listing.show([], None, as_json=True)
    assert json.loads(capsys.readouterr().out) == []


def test_tables_in_a_pipe_are_plain_and_whole(tracking, trained, capsys):
    """Without a terminal no line is wrapped or coloured, and IDs and paths are whole."""
    listing.show(listing.checkpoint_rows(tracking, trained.run_id), trained.run_id, False)
    lines = capsys.readouterr().out.splitlines()
    assert "\x1b" not in "".join(lines)
    assert len(lines) == 5
    assert "checkpoints/epoch_2/checkpoint.pth" in lines[2]
    assert "best" in lines[2]
    assert "latest" in lines[3]
    assert lines[4] == f"resume: train run --resume_run {trained.run_id}"
    listing.show(listing.run_rows(tracking), None, False)
    lines = capsys.readouterr().out.splitlines()
    assert trained.run_id in lines[1]
    assert "3/20" in lines[1]


def test_a_finished_run_is_resumed_with_more_epochs(tracking, trained, capsys):
    """What is told to resume it is not refused."""
    tracking.set_status(trained.run_id, "FINISHED")
    more = f"resume: train run --resume_run {trained.run_id} --epochs 20"
    listing.show(listing.checkpoint_rows(tracking, trained.run_id), trained.run_id, False)
    assert capsys.readouterr().out.splitlines()[-1] == more
    listing.show(listing.run_rows(tracking), None, False)
    assert capsys.readouterr().out.splitlines()[-1] == more


def test_nothing_to_list_is_said(capsys):
    """An empty listing is a sentence, not an empty table."""
    listing.show([], None, False)
    listing.show([], "r1", False)
    assert capsys.readouterr().out.splitlines() == [
        "no run here has a checkpoint: `train run` trains one",
        "run 'r1' has no checkpoint",
    ]


@pytest.mark.parametrize(
    ("seconds", "age"),
    [(0, "0 s"), (59, "59 s"), (90, "2 min"), (7_200, "2 h"), (200_000, "2 d"), (-500, "0 s")],
)
def test_ages_are_in_the_largest_unit(monkeypatch, seconds, age):
    """A time is told as people would; a clock that runs ahead makes no negative age."""
    monkeypatch.setattr(listing.time, "time", lambda: 1_000_000.0)
    assert listing._age(1_000_000.0 - seconds) == f"{age} ago"


def beat(tracking, run, **changes):
    """Let the run's newest attempt have said something, and return the run."""
    tracking.claim_attempt(run.run_id, 1, run.run_id)
    newest = dataclasses.replace(Beat.of_this_process(1, 3, {}), **changes)
    tracking.set_tags(run.run_id, newest.to_tag())


@pytest.mark.parametrize(
    ("age", "status", "shown"),
    [
        (0, "RUNNING", "RUNNING"),
        (7200, "RUNNING", "vanished 2 h ago"),
        (-7200, "RUNNING", "RUNNING"),  # its clock is ahead of ours
        (7200, "KILLED", "KILLED"),
        (7200, "FINISHED", "FINISHED"),
    ],
)
def test_a_run_that_shows_no_life_is_listed_as_vanished(
    tracking, trained, capsys, age, status, shown
):
    """RUNNING for ever is what a power cut leaves; the list tells since when (invariant 9)."""
    beat(tracking, trained, time=time.time() - age)
    tracking.set_status(trained.run_id, status)
    [row] = listing.run_rows(tracking)
    assert row["status"] == status
    assert row["vanished"] is None or abs(row["vanished"] - (time.time() - 7200)) < 60
    listing.show([row], None, False)
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith(f"{trained.run_id}  {shown}  ")


@pytest.mark.parametrize(
    "text", ["", "[]", "5", "null", '{"time": "5"}', "[" * 5000, '{"time": [1], "pid": {}}']
)
def test_a_run_with_a_strange_heartbeat_is_listed_all_the_same(tracking, trained, text):
    """Whatever somebody wrote there: it then counts from the start of the run."""
    tracking.set_tags(trained.run_id, {HEARTBEAT_TAG: text})
    [row] = listing.run_rows(tracking)
    assert row["vanished"] is None
    assert row["epoch"] == 3


@pytest.mark.parametrize("text", ["", "three", "-1", "1.5", "[]"])
def test_a_run_with_a_strange_epoch_is_listed_all_the_same(tracking, trained, text, capsys):
    """A tag that somebody edited costs the number, not the listing."""
    tracking.set_tags(trained.run_id, {EPOCH_TAG: text})
    [row] = listing.run_rows(tracking)
    assert row["epoch"] is None
    listing.show([row], None, False)
    assert "None" not in capsys.readouterr().out


EVIL = "[/red] [link=http://x]my\x1b[2J\nrun\u202e"


def test_a_name_is_shown_as_its_characters(tracking, trained, capsys):
    """One run's name neither ends the listing of all nor does anything to the terminal."""
    tracking.rename(trained.run_id, EVIL)
    listing.show(listing.run_rows(tracking), None, False)
    [_heading, line, _hint] = capsys.readouterr().out.splitlines()
    assert line.endswith("[/red] [link=http://x]my\\x1b[2J\\nrun\\u202e")


def test_what_a_checkpoint_holds_is_shown_as_its_characters(capsys):
    """Options and environment of a stored checkpoint are what somebody wrote there."""
    manifest = {"name": EVIL, "files": [], "metrics": {EVIL: 0.5}}
    environment = {EVIL: EVIL, "versions": {"torch": EVIL}, "where": "http://me:pw@host"}
    listing.show_checkpoint(
        {"manifest": manifest, "options": {"data": EVIL}, "environment": environment,
         "state": {EVIL: EVIL}}
    )  # fmt: skip
    row = {"name": EVIL, "status": "damaged", "bytes": 5, "found": EVIL}
    listing.show_verified([row], "r1")
    out = capsys.readouterr().out
    assert out.count("[/red] [link=http://x]my\\x1b[2J\\nrun\\u202e") == 10
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "pw" not in out


def test_what_was_asked_for_as_latest_is_told_by_its_id(tracking, trained, tmp_path):
    """An hour later "latest" is another run."""
    result = cli("export", "latest", "--to", tmp_path / "m.pth")
    assert f"epoch_3 of run {trained.run_id} is in" in result.output


def test_a_run_without_a_checkpoint_is_told_as_that(tracking, record):
    """An empty table would read as all being well."""
    result = cli("verify", record.run_id)
    assert f"run '{record.run_id}' has no checkpoint" in result.output


def test_checkpoints_of_another_key_are_told_as_that(tracking, trained, tmp_path, monkeypatch):
    """Whoever gave the wrong one looks at the key, not at the disk."""
    (tmp_path / "key").write_bytes(b"k" * 32)
    monkeypatch.setenv("TRAIN_CHECKPOINT_KEY", str(tmp_path / "key"))
    result = cli("show", trained.run_id)
    assert result.exit_code == 4
    result = cli("run", "--resume_run", trained.run_id, "--epochs", 9)
    assert "is signed by the key that was given" in result.stderr


RMSE = Monitor("val_rmse", "min")


def test_the_best_of_a_run_that_minimises_is_its_least(tracking, record, commit_to, capsys):
    """By the metric that the run was judged by, whose name is in the heading and in the JSON."""
    trained = commit_to(record, {1: 0.5, 2: 0.25, 3: 0.75}, monitor=RMSE)
    rows = listing.checkpoint_rows(tracking, trained.run_id)
    assert [row["val_rmse"] for row in rows] == [0.5, 0.25, 0.75]
    assert [row["best"] for row in rows] == [False, True, False]
    assert {row["monitor"] for row in rows} == {"val_rmse:min"}
    assert not [row for row in rows if "val_pearson" in row]
    listing.show(rows, trained.run_id, False)
    heading, _, second, *_ = capsys.readouterr().out.splitlines()
    assert heading.split()[:5] == ["epoch", "step", "val", "loss", "val_rmse"]
    assert second.split()[3:5] == ["0.25000", "best"]
    tracking.log_points(trained.run_id, [Point("best_val_rmse", 2, 1, 0.25)])
    [row] = listing.run_rows(tracking)
    assert (row["monitor"], row["best_val_rmse"]) == ("val_rmse:min", 0.25)
    assert "best_val_pearson" not in row
    listing.show([row], None, False)
    heading, line, *_ = capsys.readouterr().out.splitlines()
    assert "  best val_rmse  " in heading
    assert "  0.25000  " in line
    listing.show(rows, trained.run_id, as_json=True)
    assert json.loads(capsys.readouterr().out) == rows


def test_where_runs_are_judged_by_several_metrics_each_names_its_own(
    tracking, record, commit_to, capsys
):
    """The heading cannot; the value is told with its metric."""
    first = commit_to(record, {1: 0.5}, monitor=RMSE)
    second = commit_to(tracking.create_run("0", "another", {}), {1: 0.75})
    tracking.log_points(first.run_id, [Point("best_val_rmse", 1, 1, 0.5)])
    tracking.log_points(second.run_id, [Point("best_val_pearson", 1, 1, 0.75)])
    listing.show(listing.run_rows(tracking), None, False)
    heading, *lines = capsys.readouterr().out.splitlines()
    assert "  best  " in heading
    assert "val_" not in heading
    [of_first] = [line for line in lines if line.startswith(first.run_id)]
    [of_second] = [line for line in lines if line.startswith(second.run_id)]
    assert "  0.50000 val_rmse  " in of_first
    assert "  0.75000 val_pearson  " in of_second


@pytest.mark.parametrize("text", ["", "acc", "acc:up", ":min", "a" * 300 + ":min"])
def test_a_run_with_a_strange_monitor_is_listed_all_the_same(tracking, trained, text):
    """A tag that somebody edited: then it is judged as runs without one."""
    tracking.set_tags(trained.run_id, {MONITOR_TAG: text})
    [row] = listing.run_rows(tracking)
    assert (row["monitor"], row["best_val_pearson"]) == ("val_pearson:max", None)


def test_a_large_value_of_a_metric_stays_short(tracking, record, commit_to, capsys):
    """A loss may be anything; hundreds of digits tell nobody more."""
    trained = commit_to(record, {1: 1e300}, monitor=RMSE)
    listing.show(listing.checkpoint_rows(tracking, trained.run_id), trained.run_id, False)
    assert "  1e+300  " in capsys.readouterr().out
