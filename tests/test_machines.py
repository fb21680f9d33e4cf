"""What the machines of other ranks do is told to rank 0, which waits for none of them."""

import json
import threading
from dataclasses import dataclass

import pytest
import torch.distributed as dist
from support import attempt_of, wait_for

from onward.attempts.heartbeat import Heartbeat
from onward.world.board import Board
from onward.world.machines import Machine, OtherMachines


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


def test_each_machine_is_told_under_its_first_rank(store):
    """Once for each sample; the other ranks of a machine, and rank 0, tell nothing."""
    others = OtherMachines(Rank(0, store))
    assert others.sample() == {}
    machines = [
        Machine(Rank(rank, store, leads), lambda: {"system/cpu": 7.0}, 60.0)
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


def test_a_board_that_does_not_answer_is_asked_once(monkeypatch):
    """A heartbeat that waited for it would let the run be taken for dead."""
    monkeypatch.setattr("onward.world.machines.ANSWER_SECONDS", 0.05)
    others = OtherMachines(Rank(0, Silent()))
    assert others.sample() == {}
    assert others._is_lost


def test_they_are_metrics_of_the_attempt(store, tracking, record):
    """Beside those of rank 0's own machine."""
    store.set("machine/1", json.dumps([1, 1, {"system/cpu_utilization_percentage": 5.0}]))
    store.add("machines", 1)
    attempt = attempt_of(tracking, record.run_id)
    heart = Heartbeat(attempt, dict, lambda error: None, OtherMachines(Rank(0, store)).sample)
    heart._sample()
    told = {point.key: point.value for point in heart.waiting()}
    assert told["system/rank_1/cpu_utilization_percentage"] == 5.0
    assert "system/cpu_utilization_percentage" in told
