"""Batches: a pure function of seed, epoch and batch number."""

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from onward.run.order import batches, epoch_order, num_batches

counts, sizes = st.integers(1, 400), st.integers(1, 60)
seeds, epochs = st.integers(0, 2**63 - 1), st.integers(0, 10_000)


@given(counts, sizes, seeds, epochs)
def test_an_epoch_holds_every_sample_once(num_samples, batch_size, seed, epoch):
    """Nothing is left out or repeated, and batches differ in size by one at most."""
    parts = list(batches(num_samples, batch_size, seed, epoch))
    assert len(parts) == num_batches(num_samples, batch_size)
    assert sorted(torch.cat(parts).tolist()) == list(range(num_samples))
    assert max(map(len, parts)) <= batch_size
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(counts, sizes, seeds, epochs, st.data())
def test_an_epoch_can_begin_anywhere(num_samples, batch_size, seed, epoch, data):
    """Starting at batch k gives the batches that follow k in the whole epoch."""
    whole = list(batches(num_samples, batch_size, seed, epoch))
    start = data.draw(st.integers(0, len(whole)))
    rest = list(batches(num_samples, batch_size, seed, epoch, start))
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
