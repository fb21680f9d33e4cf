"""What others wrote into tags, params and metrics of a run costs that value, and nothing else."""

import json
import math

import pytest

from onward.attempts.attempt import Attempt
from onward.attempts.heartbeat import Beat
from onward.attempts.spans import first_epochs
from onward.cli import listing
from onward.errors import RunNotUsable, UnsafeValue
from onward.metrics import Point
from onward.monitor import UNDECLARED, Monitor
from onward.opening.source import find_run
from onward.tracking.names import (
    ATTEMPT_PARAM,
    ATTEMPT_TAG,
    DATA_TAG,
    EPOCH_TAG,
    HEARTBEAT_TAG,
    MANIFEST_TAG,
    MONITOR_TAG,
    OPTIONS_TAG,
    PARENT_TAG,
)

DIGITS = "9" * 5000
DEEP = "[" * 3000


@pytest.fixture
def trained(record, commit_to):
    """Return a run with a checkpoint."""
    return commit_to(record, {1: 0.5})


HOSTILE = [
    (OPTIONS_TAG, '{"epochs": 1e999}'),
    (OPTIONS_TAG, '{"epochs": true}'),
    (OPTIONS_TAG, '{"epochs": "3"}'),
    (OPTIONS_TAG, '{"epochs": -1}'),
    (OPTIONS_TAG, '{"epochs": ' + "9" * 40 + "}"),
    (OPTIONS_TAG, '{"epochs": ' + DIGITS + "}"),
    (OPTIONS_TAG, DEEP),
    (OPTIONS_TAG, "[1]"),
    (EPOCH_TAG, DIGITS),
    (EPOCH_TAG, "\u0663"),
    (EPOCH_TAG, "[/red]"),
    (HEARTBEAT_TAG, DEEP),
    (HEARTBEAT_TAG, '{"time": 1e999}'),
    (MONITOR_TAG, DIGITS),
    (MONITOR_TAG, "[/red]:max"),
    (MONITOR_TAG, "a\x1b[2Jb:min"),
    (MONITOR_TAG, "epoch:min"),
    (f"{ATTEMPT_TAG}1", f"epochs {DIGITS}-3 on x, running"),
    (f"{ATTEMPT_TAG}{'9' * 200}", "epochs 1-2 on x, running"),
]


@pytest.mark.parametrize(("tag", "value"), HOSTILE, ids=lambda text: text[:30])
def test_a_tag_of_somebody_hides_no_run(tracking, trained, commit_to, capsys, tag, value):
    """The list shows that run, and the others, whatever is in a tag."""
    other = commit_to(tracking.create_run("0", "another", {}), {1: 0.5})
    tracking.client.set_tag(trained.run_id, tag, value)
    for as_json in (False, True):
        listing.show(listing.run_rows(tracking), None, as_json)
        printed = capsys.readouterr().out
        assert trained.run_id in printed
        assert other.run_id in printed
        assert "\x1b" not in printed


@pytest.mark.parametrize(
    "name", ["[/red] my run", "[red", "[link=file:///etc]x[/link]", "a\x1b[2Jb", "]" * 300]
)
def test_a_name_is_shown_as_it_is(tracking, record, commit_to, capsys, name):
    """No name is markup: it neither ends the table nor colours it nor moves the cursor."""
    tracking.rename(commit_to(record, {1: 0.5}).run_id, name)
    listing.show(listing.run_rows(tracking), None, False)
    printed = capsys.readouterr().out
    assert name.replace("\x1b", "\\x1b")[:20] in printed
    assert "\x1b" not in printed


@pytest.mark.parametrize("value", [1e308, -1e308, math.inf, math.nan, 5.0])
def test_a_best_value_that_cannot_be_is_unknown(tracking, trained, capsys, value):
    """A correlation lies between -1 and 1; a row of 309 digits is none."""
    tracking.log_points(trained.run_id, [Point("best_val_pearson", 1, 1, value)])
    [row] = listing.run_rows(tracking)
    assert row["best_val_pearson"] is None
    listing.show([row], None, True)
    assert "NaN" not in capsys.readouterr().out


def test_the_monitor_is_what_the_run_says(tracking, trained):
    """It decides which metric is the best value, and what that can be; without it there is one."""
    assert trained.monitor == UNDECLARED
    assert trained.monitor.limit == UNDECLARED.limit
    points = [Point("best_val_pearson", 1, 1, 0.5), Point("best_val_rmse", 1, 1, 2.5)]
    tracking.log_points(trained.run_id, points)
    assert tracking.get_run(trained.run_id).best == 0.5
    tracking.set_tags(trained.run_id, {MONITOR_TAG: "val_rmse:min"})
    found = tracking.get_run(trained.run_id)
    assert (found.monitor, found.best) == (Monitor("val_rmse", "min"), 2.5)
    [row] = listing.run_rows(tracking)
    assert (row["monitor"], row["best_val_rmse"]) == ("val_rmse:min", 2.5)
    tracking.log_points(trained.run_id, [Point("best_val_rmse", 2, 1, math.inf)])
    assert tracking.get_run(trained.run_id).best is None


NO_MONITORS = ["", ":", "val_rmse", ":min", "val_rmse:", "val_rmse:up", "val_rmse:MIN", " a:max",
               "a :max", f"{'x' * 251}:min", DEEP, "null", '{"a": "b:max"'[:9]]  # fmt: skip


@pytest.mark.parametrize("text", NO_MONITORS, ids=lambda text: text[:20])
def test_a_monitor_that_is_none_counts_as_unknown(tracking, trained, caplog, text):
    """One warning; the run is judged as one that says nothing, and its best is that one's."""
    points = [Point("best_val_pearson", 1, 1, 0.5), Point("best_val_rmse", 1, 1, 2.5)]
    tracking.log_points(trained.run_id, points)
    tracking.client.set_tag(trained.run_id, MONITOR_TAG, text)
    for _ in range(3):
        found = tracking.get_run(trained.run_id)
        assert (found.monitor, found.monitor.limit, found.best) == (UNDECLARED, 1.001, 0.5)
    [told] = [r.getMessage() for r in caplog.records]
    assert f"Of run '{trained.run_id}' {MONITOR_TAG} counts as unknown: " in told
    assert len(told) < 250


@pytest.mark.parametrize("value", [1e300, -1.0, 0.5, math.inf, math.nan])
def test_the_description_bears_any_number(tracking, trained, value):
    """It says "?" where the epoch of the best cannot be one."""
    points = [Point("best_val_pearson", 1, 1, 0.5), Point("best_epoch", 1, 1, value)]
    tracking.log_points(trained.run_id, points)
    attempt = Attempt.first(tracking, trained)
    attempt.describe(tracking.get_run(trained.run_id))
    note = tracking.get_run(trained.run_id).tags["mlflow.note.content"]
    assert "best val_pearson 0.50000 (epoch ?)" in note
    assert len(note) < 1000


def test_what_is_unknown_is_told_once(tracking, trained, caplog):
    """One warning names the run and the tag, however often it is read."""
    tracking.set_tags(trained.run_id, {EPOCH_TAG: "x\ny"})
    for _ in range(3):
        assert tracking.get_run(trained.run_id).epoch is None
    [told] = [r.getMessage() for r in caplog.records]
    assert told == (
        f"Of run '{trained.run_id}' {EPOCH_TAG} counts as unknown: 'x\\ny' is none that this "
        "program writes"
    )


def claim(tracking, run_id, number, value="e" * 32):
    tracking.log_params(run_id, {f"{ATTEMPT_PARAM}{number}": value}, known=())


@pytest.mark.parametrize("number", ["99999999", DIGITS[:200], "3", "-1", "x", "\u0663", "01"])
def test_attempts_are_those_without_a_gap(tracking, trained, caplog, number):
    """A number that somebody wrote far ahead neither counts nor stands in the way."""
    Attempt.first(tracking, trained)
    claim(tracking, trained.run_id, number)
    record = tracking.get_run(trained.run_id)
    assert record.attempts == 1
    assert len([r for r in caplog.records if "counts as unknown" in r.getMessage()]) == 1
    attempt = Attempt.another(tracking, record, None, 2, {})
    attempt.check_lease()
    assert attempt.number == (4 if number == "3" else 2)


@pytest.mark.parametrize("value", ["garbage ../", "e" * 32])
def test_a_claim_of_somebody_costs_its_number(tracking, trained, value):
    """A param is never written again: whatever stands there, the next attempt gets the next one."""
    Attempt.first(tracking, trained)
    for number in (2, 4, 5, 7):
        claim(tracking, trained.run_id, number, value)
    record = tracking.get_run(trained.run_id)
    assert record.attempts == 2
    attempt = Attempt.another(tracking, record, None, 2, {})
    assert attempt.number == 8
    attempt.check_lease()
    assert tracking.get_run(trained.run_id).attempts == 8
    assert record.child_of(2) == (value if value == "e" * 32 else None)


def test_first_epochs_are_numbers(tracking):
    """Tags of thousands of digits mark no line in a figure."""
    tags = {f"{ATTEMPT_TAG}{DIGITS}": "epochs 1-2", f"{ATTEMPT_TAG}2": f"epochs {DIGITS}-3"}
    assert first_epochs({**tags, f"{ATTEMPT_TAG}3": "epochs 4-5"}) == {3: 4}


@pytest.mark.parametrize("value", ["true", "-1", "1e16", "1e999", "NaN", '"1"', "null"])
def test_each_number_of_a_beat_can_be_calculated_with(value):
    """A heartbeat with one bad number is no heartbeat."""
    beat = json.loads(Beat.of_this_process(1, 1, {}).to_tag()[HEARTBEAT_TAG])
    for field in ("attempt", "number", "time", "pid", "started"):
        text = json.dumps({**beat, field: "X"}).replace('"X"', value)
        assert Beat.from_tags({HEARTBEAT_TAG: text}) is None


def test_a_data_fingerprint_that_is_none_is_refused(tracking, trained):
    """It would become a folder's name; one that is gone is said to be gone."""
    tracking.set_tags(trained.run_id, {DATA_TAG: "../../x"})
    with pytest.raises(UnsafeValue):
        _ = tracking.get_run(trained.run_id).data_fingerprint
    tracking.client.delete_tag(trained.run_id, DATA_TAG)
    with pytest.raises(RunNotUsable, match=r"its tag train\.data is gone"):
        _ = tracking.get_run(trained.run_id).data_fingerprint


def test_a_manifest_tag_that_is_none_counts_as_none(tracking, trained):
    """It is compared with hashes, so it is one or unknown."""
    assert trained.manifest_sha256 == trained.tags[MANIFEST_TAG]
    tracking.set_tags(trained.run_id, {MANIFEST_TAG: "A" * 64})
    assert tracking.get_run(trained.run_id).manifest_sha256 is None


def test_only_an_attempt_that_a_run_claimed_leads_to_it(tracking, trained):
    """A tag that names somebody's run as the parent does not turn `prune` against that run."""
    stranger = tracking.create_run("0", "x", {PARENT_TAG: trained.run_id})
    assert find_run(tracking, stranger.run_id).run_id == stranger.run_id
    Attempt.first(tracking, trained)
    claim(tracking, trained.run_id, 2, stranger.run_id)
    assert find_run(tracking, stranger.run_id).run_id == trained.run_id
