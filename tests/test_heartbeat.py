"""A living attempt is seen to live, a dead one to be dead, and no two clocks are compared."""

import dataclasses
import json
import os
import random
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import wait_for

from onward.attempts import heartbeat
from onward.attempts.attempt import Attempt
from onward.attempts.heartbeat import Beat, Heartbeat, vanished_at, wait_until_free
from onward.errors import RunNotUsable, StoreUnavailable, Superseded
from onward.system import environment, processes
from onward.tracking.client import MAX_TAG_CHARS, Tracking
from onward.tracking.names import HEARTBEAT_TAG
from onward.tracking.record import RunRecord

LEASE = heartbeat.LEASE_SECONDS
LOOK = heartbeat.LOOK_SECONDS


def elsewhere(**changes):
    """Return the beat of a process on another machine."""
    beat = Beat.of_this_process(1, 3, {"epoch": 2})
    return dataclasses.replace(beat, **{"host": "there", "machine": "other", **changes})


def with_tag(text):
    """Return a run whose heartbeat is that text."""
    return RunRecord("r", "", "0", "RUNNING", "", 0, {}, {HEARTBEAT_TAG: text}, {})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
FIELDS = st.sampled_from([field.name for field in dataclasses.fields(Beat)])
VALID = dataclasses.asdict(elsewhere())


def test_a_beat_can_be_read_again():
    """What a tag says is what the process said, the exact start of the process included."""
    beat = Beat.of_this_process(2, 7, {"epoch": 3, "step": 40, "val_loss": 0.1})
    assert Beat.from_tags(beat.to_tag()) == beat
    assert (beat.pid, beat.host) == (os.getpid(), environment.hostname())


def test_a_beat_tells_metrics_of_any_number_type():
    """A loop may log tensors and NumPy numbers; they must not stop the heart."""
    told = {"a": torch.tensor(0.5), "b": numpy.float32(0.25), "c": 3}
    beat = Beat.from_tags(Beat.of_this_process(1, 1, told).to_tag())
    assert beat.progress == {"a": 0.5, "b": 0.25, "c": 3}


def test_a_beat_with_very_many_metrics_fits_its_tag():
    """A tag that MLflow would cut is not set at all, and a run without beats looks dead."""
    told = {"epoch": 3, "step": 40, **{f"a rather long name {i}": i / 7 for i in range(1000)}}
    [text] = Beat.of_this_process(1, 1, told).to_tag().values()
    assert 0.9 * MAX_TAG_CHARS < len(text) <= MAX_TAG_CHARS
    assert list(Beat.from_tags({HEARTBEAT_TAG: text}).progress)[:2] == ["epoch", "step"]


@pytest.mark.parametrize(
    "text",
    ["", "no JSON", "5", "null", '"x"', "[]", "{}", "[" * 5000, '{"pid": 1}', "9" * 5000,
     json.dumps(VALID | {"more": 1}), json.dumps(VALID | {"pid": "1"}),
     json.dumps(VALID | {"pid": -1}), json.dumps(VALID | {"started": "soon"}),
     json.dumps(VALID | {"time": [5]}), json.dumps(VALID | {"time": "5"}),
     json.dumps(VALID | {"time": float("nan")}), json.dumps(VALID | {"time": float("inf")}),
     json.dumps(VALID | {"time": 10**400}), json.dumps(VALID | {"machine": ["other"]}),
     json.dumps(VALID | {"attempt": None}), json.dumps(VALID | {"progress": 3})],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_a_heartbeat_that_cannot_be_read_is_none(text):
    """Whatever somebody wrote there, nobody fails on it: the run's start counts in its place."""
    assert Beat.from_tags({HEARTBEAT_TAG: text}) is None
    assert vanished_at(with_tag(text)) == 0


@given(field=FIELDS, value=JSON, rest=JSON)
def test_no_heartbeat_is_an_error(field, value, rest):
    """What can be read can be worked with; what cannot is None."""
    for document in (VALID | {field: value}, rest):
        beat = Beat.from_tags({HEARTBEAT_TAG: json.dumps(document)})
        vanished_at(with_tag(json.dumps(document)))
        if beat is not None:
            processes.is_alive(beat.pid, beat.started)


def test_a_run_has_vanished_when_it_is_running_and_silent(monkeypatch):
    """Silent for longer than the lease; closed runs and a clock that is ahead are no news."""
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(time=lambda: 1_000_000.0))
    for age, expected in [(0, None), (LEASE, None), (LEASE + 1, 999_939.0), (-9999, None)]:
        record = with_tag(elsewhere(time=1_000_000.0 - age).to_tag()[HEARTBEAT_TAG])
        assert vanished_at(record) == expected
        assert vanished_at(dataclasses.replace(record, status="KILLED")) is None
    assert vanished_at(dataclasses.replace(with_tag(""), start_time_ms=5_000)) == 5


# Before a run is taken.


class Clock:
    """A clock on which only `sleep` takes time; what happens meanwhile is in `at`.

    Args:
        wall: The wall clock, which stands still.
    """

    def __init__(self, wall=1_700_000_000.0):
        self.now, self.num_looks, self.at, self.wall = 5_000.0, 0, {}, wall
        self.started = self.now

    def monotonic(self):
        return self.now

    def time(self):
        return self.wall

    def sleep(self, seconds):
        self.now += seconds
        self.num_looks += 1
        self.at.get(self.num_looks, lambda: None)()

    @property
    def waited(self):
        return self.now - self.started


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(heartbeat, "time", clock)
    return clock


@pytest.fixture
def beat_of(tracking, record):
    """Return a function that claims attempt 1, lets it say that, and returns the run."""

    def say(beat):
        tracking.claim_attempt(record.run_id, 1, record.run_id)
        tracking.set_tags(record.run_id, beat.to_tag())
        return tracking.get_run(record.run_id)

    return say


@pytest.fixture
def ended_process():
    """Return the ID of a process that has ended, and when it started."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    started = processes._started(process.pid)
    process.wait()
    return {"pid": process.pid, "started": started}


@pytest.mark.parametrize("status", ["KILLED", "FAILED", "FINISHED"])
def test_a_closed_run_is_free(tracking, beat_of, clock, status):
    """What said that it ended is not waited for, on whatever machine it was."""
    run = beat_of(elsewhere())
    tracking.set_status(run.run_id, status)
    run = tracking.get_run(run.run_id)
    assert wait_until_free(tracking, run, take_over=False) is run
    assert clock.num_looks == 0


def test_a_run_that_nobody_claimed_is_free(tracking, record, clock):
    """MLflow's own RUNNING, of a launch that never began, keeps nobody waiting."""
    assert wait_until_free(tracking, record, take_over=False) is record
    assert clock.num_looks == 0


@pytest.mark.parametrize("take_over", [False, True])
def test_a_living_process_on_this_machine_keeps_its_run(tracking, beat_of, clock, take_over):
    """It is named, so that it can be stopped; `take_over` is for machines out of reach."""
    run = beat_of(Beat.of_this_process(1, 3, {}))
    with pytest.raises(RunNotUsable, match=rf"by process {os.getpid()} on this machine \(attempt"):
        wait_until_free(tracking, run, take_over)
    assert clock.num_looks == 0


def test_a_dead_process_on_this_machine_is_not_waited_for(tracking, beat_of, clock, ended_process):
    """Here the process itself can be looked for."""
    run = beat_of(dataclasses.replace(Beat.of_this_process(1, 3, {}), **ended_process))
    assert wait_until_free(tracking, run, take_over=False) is run
    assert clock.num_looks == 0


def test_another_process_with_the_same_id_is_not_taken_for_it(tracking, beat_of, clock):
    """An ID is given again after a while; with it goes another start."""
    own = Beat.of_this_process(1, 3, {})
    run = beat_of(dataclasses.replace(own, started=own.started - 1))
    assert wait_until_free(tracking, run, take_over=False) is run
    assert clock.num_looks == 0


@pytest.mark.parametrize("clocks_apart", [-1e9, -3600, 0, 3600, 1e9])
def test_a_silent_run_elsewhere_is_free_after_the_lease(tracking, beat_of, clock, clocks_apart):
    """Seeing it silent for so long counts, not what its machine's clock says (invariant 8)."""
    run = beat_of(elsewhere(time=clock.wall + clocks_apart))
    now = wait_until_free(tracking, run, take_over=False)
    assert now == run
    assert LEASE <= clock.waited <= LEASE + LOOK


@pytest.mark.parametrize("look", [1, 15, 30])
def test_a_beat_within_the_lease_keeps_the_run(tracking, beat_of, clock, look):
    """Whenever it changes, and with whatever time in it, its attempt is alive."""
    run = beat_of(elsewhere())
    later = elsewhere(number=4, time=0.0).to_tag()
    clock.at[look] = lambda: tracking.set_tags(run.run_id, later)
    with pytest.raises(RunNotUsable, match=r"is being trained on there: stop it there, take it"):
        wait_until_free(tracking, run, take_over=False)
    assert clock.num_looks == look


@pytest.mark.parametrize("status", ["FINISHED", "KILLED"])
def test_a_run_that_is_closed_while_it_is_watched_is_free(tracking, beat_of, clock, status):
    """Its last sign of life was its end; the caller gets the run as it is now."""
    run = beat_of(elsewhere())
    clock.at[3] = lambda: tracking.set_status(run.run_id, status)
    now = wait_until_free(tracking, run, take_over=False)
    assert (now.status, clock.num_looks) == (status, 3)


def test_take_over_does_not_wait(tracking, beat_of, clock):
    """Who knows better need not wait."""
    run = beat_of(elsewhere())
    assert wait_until_free(tracking, run, take_over=True) is run
    assert clock.num_looks == 0


@pytest.mark.parametrize("text", ["", "[]", '{"machine": 5}', json.dumps(VALID | {"pid": "x"})])
def test_a_run_whose_heartbeat_cannot_be_read_is_waited_for(tracking, record, clock, text):
    """It may be alive all the same, so it is watched; that it has no name holds nothing up."""
    tracking.claim_attempt(record.run_id, 1, record.run_id)
    tracking.set_tags(record.run_id, {HEARTBEAT_TAG: text})
    run = tracking.get_run(record.run_id)
    assert wait_until_free(tracking, run, take_over=False) == run
    assert LEASE <= clock.waited <= LEASE + LOOK


class Away(Tracking):
    """A connection that can be cut."""

    is_away = False

    def get_run(self, run_id):
        if self.is_away:
            raise StoreUnavailable("away")
        return super().get_run(run_id)


def test_while_the_store_is_away_the_lease_does_not_run(tracking, beat_of, clock):
    """Nobody can beat then: silence counts from when it is back."""
    run, connection = beat_of(elsewhere()), Away()
    clock.at[20] = lambda: setattr(connection, "is_away", True)
    clock.at[50] = lambda: setattr(connection, "is_away", False)
    wait_until_free(connection, run, take_over=False)
    assert 49 * LOOK + LEASE <= clock.waited <= 50 * LOOK + LEASE


def test_who_beats_again_after_an_outage_keeps_the_run(tracking, beat_of, clock):
    """The outage was not its fault."""
    run, connection = beat_of(elsewhere()), Away()
    clock.at[20] = lambda: setattr(connection, "is_away", True)
    clock.at[50] = lambda: setattr(connection, "is_away", False)
    clock.at[70] = lambda: tracking.set_tags(run.run_id, elsewhere(number=4).to_tag())
    with pytest.raises(RunNotUsable, match="is being trained on there"):
        wait_until_free(connection, run, take_over=False)


def claim_next(tracking, run, beat, child=None):
    """Claim attempt 2, as a process does that has not come to begin it."""
    child = child or tracking.create_run("0", None, beat.to_tag()).run_id
    tracking.claim_attempt(run.run_id, 2, child)
    return tracking.get_run(run.run_id)


def test_who_claims_the_run_while_it_is_watched_has_it(tracking, beat_of, clock):
    """Of two that wait for the same dead run the second one learns who was first."""
    run = beat_of(elsewhere())
    clock.at[5] = lambda: claim_next(tracking, run, elsewhere(attempt=2, host="a third"))
    with pytest.raises(RunNotUsable, match="is being trained on a third"):
        wait_until_free(tracking, run, take_over=False)


@pytest.mark.parametrize("status", ["RUNNING", "KILLED"])
def test_an_attempt_that_was_just_claimed_is_seen(tracking, beat_of, clock, ended_process, status):
    """Between its claim and its first beat it is its child that says where it is."""
    run = beat_of(elsewhere())
    tracking.set_status(run.run_id, status)
    own = Beat.of_this_process(2, 0, {})
    run = claim_next(tracking, run, own)
    with pytest.raises(RunNotUsable, match=f"by process {os.getpid()} on this machine"):
        wait_until_free(tracking, run, take_over=False)
    child = run.params["train.attempt.2"]
    tracking.set_tags(child, dataclasses.replace(own, **ended_process).to_tag())
    assert wait_until_free(tracking, run, take_over=False) is run


@pytest.mark.parametrize("status", ["RUNNING", "KILLED"])
def test_an_attempt_that_ended_before_it_began_is_not_waited_for(tracking, beat_of, clock, status):
    """Its child says so, as the run itself does once it is begun."""
    run = beat_of(elsewhere())
    tracking.set_status(run.run_id, status)
    run = claim_next(tracking, run, elsewhere(attempt=2))
    tracking.set_status(run.params["train.attempt.2"], "KILLED")
    assert wait_until_free(tracking, run, take_over=False) is run
    assert clock.waited == 0


@pytest.mark.parametrize("child", ["deleted", "never was a run"])
def test_a_claim_whose_child_is_gone_holds_nothing_up(tracking, beat_of, clock, child):
    """That the child cannot be asked means watching the run itself."""
    run = beat_of(elsewhere())
    if child == "deleted":
        child = tracking.create_run("0", None, {}).run_id
        tracking.client.delete_run(child)
    run = claim_next(tracking, run, None, child)
    assert wait_until_free(tracking, run, take_over=False) == run
    assert LEASE <= clock.waited <= LEASE + LOOK


# While it is trained.


@pytest.fixture
def beating(tracking, record, monkeypatch):
    """Return a function that starts a heart for attempt 1, a hundred beats a second.

    Each sample is one number, taken at the time 10 × its number.
    """
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    attempt, hearts = Attempt.first(tracking, record), []

    def start(connection=tracking, progress=dict, child_id=None):
        own = dataclasses.replace(attempt, tracking=connection, child_id=child_id or record.run_id)
        superseded = []
        heart = Heartbeat(own, progress, superseded.append)
        heart._system = SimpleNamespace(sample=lambda: {"system/load": heart._number / 8})
        monkeypatch.setattr(heartbeat, "now_ms", lambda: 10 * heart._number)
        hearts.append(heart)
        heart.start()
        return heart, superseded

    yield start
    for heart in hearts:
        heart.stop()
        heart._thread.join(60)


def number(tracking, run):
    """Return the number of the run's newest beat."""
    beat = Beat.from_tags(tracking.get_run(run.run_id).tags)
    return beat.number if beat else 0


def published(tracking, run_id):
    """Return the samples on the server, as (step, timestamp, value)."""
    found = tracking.client.get_metric_history(run_id, "system/load")
    return [(m.step, m.timestamp, m.value) for m in found]


def samples(last):
    """Return what a heart samples in so many beats."""
    return [(n, 10 * n, n / 8) for n in range(1, last + 1)]


def test_a_heart_beats_and_tells_how_far_it_is(tracking, record, beating):
    """Each beat is another value, at once from the start, with the newest progress in it."""
    told = {"epoch": 3, "val_loss": 0.5}
    beating(progress=lambda: told)
    wait_for(lambda: number(tracking, record) >= 1)
    first = number(tracking, record)
    told = {"epoch": 4}
    wait_for(lambda: number(tracking, record) > first + 2)
    beat = Beat.from_tags(tracking.get_run(record.run_id).tags)
    assert (beat.attempt, beat.progress, beat.pid) == (1, {"epoch": 4}, os.getpid())


def test_a_heart_that_is_stopped_beats_no_more(tracking, record, beating):
    """What is written after the end would look like a life."""
    heart, _ = beating()
    wait_for(lambda: number(tracking, record) >= 1)
    heart.stop()
    heart._thread.join(60)
    assert not heart._thread.is_alive()
    last = number(tracking, record)
    assert published(tracking, record.run_id) == samples(last)


def test_a_later_claim_is_noticed_and_stops_the_beats(tracking, record, beating):
    """Invariant 8: a superseded attempt says so once, and does not touch the run any more."""
    heart, superseded = beating()
    wait_for(lambda: number(tracking, record) >= 1)
    tracking.claim_attempt(record.run_id, 2, "another")
    heart._thread.join(60)
    assert not heart._thread.is_alive()
    [error] = superseded
    assert isinstance(error, Superseded)
    assert (error.attempt, error.newest) == (1, 2)
    assert number(tracking, record) < heart._number, "it wrote a beat before it looked"


def test_a_heart_survives_an_outage_and_loses_no_sample(tracking, record, beating):
    """Invariant 10: what was sampled meanwhile is published once, with the times it was taken."""
    connection = Away()
    heart, superseded = beating(connection)
    wait_for(lambda: number(tracking, record) >= 2)
    connection.is_away = True
    before = heart._number
    wait_for(lambda: heart._number > before + 5)
    assert len(heart.waiting()) > 3
    connection.is_away = False
    wait_for(lambda: number(tracking, record) > before + 7)
    heart.stop()
    heart._thread.join(60)
    heart.publish()  # as the end of a run does: the stop may have come right after a sample
    assert superseded == []
    assert published(tracking, record.run_id) == samples(heart._number)
    assert heart.waiting() == []


class CutHalfway(Tracking):
    """A connection that breaks once, when half of the points are through."""

    is_cut = False

    def log_points(self, run_id, points, tags=None):
        if not self.is_cut:
            self.is_cut = True
            super().log_points(run_id, points[: len(points) // 2])
            raise StoreUnavailable("cut")
        super().log_points(run_id, points, tags)


def still(tracking, record, connection=None, child_id=None):
    """Return a heart that does not beat by itself, with ten samples that wait."""
    attempt = Attempt(connection or tracking, record.run_id, 1, 1, child_id or record.run_id, "")
    heart = Heartbeat(attempt, dict, lambda error: None)
    heart._system = SimpleNamespace(sample=lambda: {"system/load": heart._number / 8})
    for heart._number in range(1, 11):
        heart._sample()
    return heart


@pytest.fixture
def sampled(monkeypatch):
    """Let a sample be taken at the time 10, 20, 30 …."""
    times = iter(range(10, 10_000, 10))
    monkeypatch.setattr(heartbeat, "now_ms", lambda: next(times))


def test_publishing_again_changes_nothing(tracking, record, sampled):
    """A publication that broke off half way is repeated, and each point is there once."""
    heart = still(tracking, record, CutHalfway())
    with pytest.raises(StoreUnavailable):
        heart.publish()
    assert len(published(tracking, record.run_id)) == 5
    assert len(heart.waiting()) == 10
    for _ in range(2):
        heart.publish()
        assert heart.waiting() == []
        assert published(tracking, record.run_id) == samples(10)


def test_only_so_many_samples_wait(tracking, record, monkeypatch, sampled):
    """An outage of weeks does not fill the memory: the oldest samples go."""
    monkeypatch.setattr(heartbeat, "MAX_WAITING_POINTS", 4)
    heart = still(tracking, record)
    assert [point.step for point in heart.waiting()] == [7, 8, 9, 10]
    heart.publish()
    assert published(tracking, record.run_id) == samples(10)[6:]


def test_samples_of_a_child_that_somebody_deleted_hold_nothing_up(tracking, record, sampled):
    """There is nowhere to show them; the end of the run must not wait for that."""
    child = tracking.create_run("0", None, {}).run_id
    heart = still(tracking, record, child_id=child)
    tracking.client.delete_run(child)
    heart.publish()
    assert heart.waiting() == []


def test_no_fault_in_what_it_tells_ends_the_heart(tracking, record, beating):
    """A heart that stopped unnoticed would give the run away while it is trained."""
    told = [{"epoch": "a word"}, {"epoch": object()}]
    beating(progress=lambda: told.pop() if told else {"epoch": 5})
    wait_for(lambda: number(tracking, record) >= 3)
    beat = Beat.from_tags(tracking.get_run(record.run_id).tags)
    assert beat.progress == {"epoch": 5}


def test_a_heart_draws_no_random_numbers(tracking, record, beating):
    """Invariant 4: the global generators belong to the training, in good times and in bad."""

    def state():
        name, keys, *rest = numpy.random.get_state()
        return random.getstate(), name, keys.tolist(), rest, torch.get_rng_state().tolist()

    connection = Away()
    before = state()
    heart, _ = beating(connection)
    heart._system = heartbeat.SystemMetrics()
    wait_for(lambda: number(tracking, record) >= 3)
    connection.is_away = True
    last = heart._number
    wait_for(lambda: heart._number > last + 3)
    connection.is_away = False
    wait_for(lambda: number(tracking, record) > last + 6)
    assert state() == before


class Silent(Tracking):
    """A connection to a server that takes a call and never answers, until it is freed."""

    def __init__(self):
        super().__init__()
        self.called, self.free = threading.Event(), threading.Event()

    def get_run(self, run_id):
        self.called.set()
        assert self.free.wait(60)
        return super().get_run(run_id)


def test_a_heart_that_waits_for_an_answer_keeps_nobody_from_ending(beating):
    """Nothing that talks to a server is waited for without a limit (design 5)."""
    connection = Silent()
    heart, _ = beating(connection)
    assert connection.called.wait(60)
    heart.stop()
    assert heart._thread.is_alive()
    assert heart._thread.daemon
    connection.free.set()
