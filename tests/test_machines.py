"""What the machines of other ranks do is told to rank 0, which waits for none of them."""

import json
import threading
from dataclasses import dataclass

import pytest
import torch.distributed as dist
from support import attempt_of, wait_for

from onward.attempts.heartbeat import Heartbeat
from onward.tracking.names import HEARTBEAT_TAG
from onward.world.board import Board
from onward.world.machines import NUM_QUIET, Machine, OtherMachines


@dataclass
class Rank:
    """One of several ranks, with a machine of its own."""

    rank: int
    store: object
    leads_host: bool = True
    is_alone: bool = False

    @property
    def is_leader(self):
        return self.rank == 0

    @property
    def board(self):
        return Board(self.store, 60.0)


class Silent(dist.HashStore):
    """A store beyond a link that was cut: it never answers."""

    def add(self, *_):
        threading.Event().wait()


@pytest.fixture
def store():
    return dist.HashStore()


def tell(store, machine, note):
    """Tell on the board what a machine does."""
    store.set(f"machine/{machine}", json.dumps(note))
    store.add("machines", 1)


def test_each_machine_is_told_under_its_first_rank(store):
    """Once for each sample; the other ranks of a machine, and rank 0, tell nothing."""
    others = OtherMachines(Rank(0, store))
    assert others.sample() == {}
    machines = [
        Machine(Rank(rank, store, leads), lambda: lambda: {"system/cpu": 7.0}, 60.0)
        for rank, leads in ((0, True), (1, False), (2, True), (4, True))
    ]
    for machine in machines:
        machine.open()
    found = {}

    def all_told():
        found.update(others.sample())
        return len(found) == 2

    wait_for(all_told)
    assert found == {"system/rank_2/cpu": 7.0, "system/rank_4/cpu": 7.0}
    assert others.sample() == {}
    for machine in machines:
        machine.close()


def test_a_board_that_does_not_answer_is_asked_again_after_a_pause(store, monkeypatch):
    """A heartbeat that waited for it each time would let the run be taken for dead."""
    monkeypatch.setattr("onward.world.machines.ANSWER_SECONDS", 0.05)
    place = Rank(0, Silent())
    others = OtherMachines(place)
    assert others.sample() == {}
    place.store = store
    tell(store, 1, [1, 2, {"system/cpu": 7.0}])
    assert [others.sample() for _beat in range(NUM_QUIET)] == [{}] * NUM_QUIET
    assert others.sample() == {"system/rank_2/cpu": 7.0}


@pytest.mark.parametrize(
    "note",
    [3, [1, 2], [1, 2, 3], [1, "x", {"a": 1}], [1, 2, {"a": "many"}], [1, 2, {"a": 10**400}]],
)
def test_a_malformed_note_is_passed_over(store, note):
    """What other machines tell is told all the same."""
    tell(store, 1, note)
    tell(store, 2, [1, 4, {"system/cpu": 7.0}])
    assert OtherMachines(Rank(0, store)).sample() == {"system/rank_4/cpu": 7.0}


def test_a_heartbeat_outlives_whatever_others_raise(tracking, record):
    """Without beats the run would be taken for dead."""

    def fail():
        raise RuntimeError("a fault")

    heart = Heartbeat(attempt_of(tracking, record.run_id), dict, lambda error: None, fail)
    heart.start()
    wait_for(lambda: HEARTBEAT_TAG in tracking.get_run(record.run_id).tags)
    heart.stop()


def test_they_are_metrics_of_the_attempt(store, tracking, record):
    """Beside those of rank 0's own machine."""
    tell(store, 1, [1, 1, {"system/cpu_utilization_percentage": 5.0}])
    attempt = attempt_of(tracking, record.run_id)
    heart = Heartbeat(attempt, dict, lambda error: None, OtherMachines(Rank(0, store)).sample)
    heart._sample()
    told = {point.key: point.value for point in heart.waiting()}
    assert told["system/rank_1/cpu_utilization_percentage"] == 5.0
    assert "system/cpu_utilization_percentage" in told
