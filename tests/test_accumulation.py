"""Gradients that are added up over several batches: nothing is saved between them."""

import os
import signal
from itertools import count

import pytest
import torch
from support import differences
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import onward
from onward.errors import Interrupted
from onward.run.updates import MAX_PARTS, Updates

NUM_BATCHES, NUM_PARTS = 12, 4  # of an epoch, and of an update


class Died(Exception):
    """Stands for whatever ends a process."""


def loop(act=lambda number: None, unit="epochs", num_parts=NUM_PARTS, **options):
    """Train by updates of several batches, and call `act` after each; return what was learned."""
    torch.manual_seed(0)
    x = torch.randn(NUM_BATCHES * 8, 3)
    data = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8, shuffle=True)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    state = {"model": model, "optimizer": optimizer, "loop": {"batches": 0}}
    numbers = count(1)

    def train(x, y):
        (model(x) - y).square().mean().backward()
        state["loop"]["batches"] += 1
        if state["loop"]["batches"] % num_parts == 0:
            optimizer.step()
            optimizer.zero_grad()
        act(next(numbers))

    with onward.open_run(state, upload="sync", log_model=False, **options) as run:
        if unit == "epochs":
            for _epoch in run.epochs(range(2)):
                for x, y in run.batches(data):
                    train(x, y)
        else:
            batches = run.batches(data, repeat=True)
            for _step in run.steps(range(2 * NUM_BATCHES)):
                train(*next(batches))
    return {name: part.state_dict() for name, part in state.items() if name != "loop"}


@pytest.mark.parametrize("unit", ["epochs", "steps"])
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_resume_begins_with_an_update(unit, how, tracking):
    """Where a checkpoint is due between two parts of an update, it is saved after the last one."""
    straight = loop(unit=unit, checkpoint_steps=3)

    def end(number):
        if number == 7 and how == "killed":
            raise Died
        if number == 6 and how == "stopped":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Died if how == "killed" else Interrupted):
        loop(end, unit=unit, checkpoint_steps=3)
    [run, _] = tracking.client.search_runs(["0"], order_by=["attributes.start_time DESC"])
    assert differences(straight, loop(unit=unit, resume_run=run.info.run_id)) == []


def test_what_is_left_at_an_epochs_end_is_told(tracking, capsys):
    """A checkpoint at an epoch's end cannot wait: one line says what it lacks."""
    loop(num_parts=5)
    assert capsys.readouterr().out.count("gradients that no optimizer has used") == 1
    loop()
    assert "gradients" not in capsys.readouterr().out


def test_a_loop_that_makes_its_updates_by_hand_is_saved_all_the_same():
    """An optimizer that never steps is not waited for for ever."""
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    updates = Updates()
    updates.watch([optimizer])
    weight.sum().backward()
    updates.begin()
    assert not updates.is_whole()
    for _ in range(MAX_PARTS):
        updates.begin()
    assert updates.is_whole()
    updates.begin()
    optimizer.step()
    assert updates.is_whole()
    optimizer.zero_grad()
    updates.begin()
    assert updates.is_whole()
