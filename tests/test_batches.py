"""Batches: a pure function of seed, epoch and batch number."""

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from onward.run.order import batches, epoch_order, num_batches

counts, sizes = st.integers(1, 400), st.integers(1, 60)
windows = st.integers(0, 500)
seeds, epochs = st.integers(0, 2**63 - 1), st.integers(0, 10_000)


@given(counts, sizes, seeds, epochs, windows)
def test_an_epoch_holds_every_sample_once(num_samples, batch_size, seed, epoch, window):
    """Nothing is left out or repeated, and batches differ in size by one at most."""
    parts = list(batches(num_samples, batch_size, seed, epoch, window=window))
    assert len(parts) == num_batches(num_samples, batch_size)
    assert sorted(torch.cat(parts).tolist()) == list(range(num_samples))
    assert max(map(len, parts)) <= batch_size
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(counts, sizes, seeds, epochs, windows, st.data())
def test_an_epoch_can_begin_anywhere(num_samples, batch_size, seed, epoch, window, data):
    """Starting at batch k gives the batches that follow k in the whole epoch."""
    whole = list(batches(num_samples, batch_size, seed, epoch, window=window))
    start = data.draw(st.integers(0, len(whole)))
    rest = list(batches(num_samples, batch_size, seed, epoch, start, window))
    assert [b.tolist() for b in rest] == [b.tolist() for b in whole[start:]]


def test_the_order_owes_nothing_to_global_random_state():
    """Seeding, or drawing from, the global generators changes no batch; batches change no state."""
    before = epoch_order(100, seed=3, epoch=4)
    random.seed(1), np.random.seed(2), torch.manual_seed(5)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert torch.equal(epoch_order(100, seed=3, epoch=4), before)
    list(batches(100, 7, 3, 4))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert states == after


def test_no_two_epochs_or_seeds_share_an_order():
    """Neighbouring seeds and epochs, and those with an equal sum, go different ways."""
    orders = [
        tuple(epoch_order(50, seed, epoch).tolist()) for seed in range(20) for epoch in range(20)
    ]
    assert len(set(orders)) == 400


def test_a_window_lies_in_few_places():
    """What is shuffled together is read from 16 places, others in each epoch, and mixed well."""
    length, window = 100, 1600
    found = []
    for epoch in (1, 2):
        order = epoch_order(50_000, seed=3, epoch=epoch, window=window)
        places = [set((part // length).tolist()) for part in order.split(window)]
        assert max(map(len, places)) == 16
        assert sum(map(len, places)) == 500  # no place is read twice
        steps = order[:window].diff()
        assert (steps == 1).float().mean() < 0.01
        found.append(frozenset(places[0]))
    assert found[0] != found[1]
    full = epoch_order(1000, seed=3, epoch=1)
    assert all(torch.equal(full, epoch_order(1000, 3, 1, window)) for window in (0, 1000, 2000))
