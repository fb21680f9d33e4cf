"""The learning rate of each epoch, also after a resume."""

import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onward.monitor import Monitor
from train.schedule import FLOOR, PLATEAU_EPOCHS, PLATEAU_FACTOR, Schedule
from train.tabular.options import Config

LOSS = Monitor("val_loss", "min")


def schedule(watched=LOSS, **options):
    options = Config(**options)
    horizon = options.schedule_epochs or options.epochs  # as it is chosen when a run begins
    return Schedule(options.replace(schedule_epochs=horizon), watched)


def rates(scheduled, losses, first=1):
    """Return the rate of each epoch, while the losses, or what else is watched, are observed."""
    found = []
    for epoch, loss in enumerate(losses, start=first):
        found.append(scheduled.lr(epoch))
        scheduled.observe(loss)
    return found


def test_a_schedule_needs_its_horizon():
    """Who makes one without it has not opened the task: no default hides that."""
    with pytest.raises(AssertionError, match="chosen when the task was opened"):
        Schedule(Config(), LOSS)


def test_cosine_starts_at_lr_and_ends_at_the_floor():
    """The first epoch has the full rate, the middle the mean, and the horizon ends at 1 %."""
    cosine = schedule(lr=2.0, epochs=10)
    assert cosine.lr(1) == 2.0
    assert cosine.lr(6) == pytest.approx(2.0 * (1 + FLOOR) / 2)
    assert cosine.lr(11) == pytest.approx(2.0 * FLOOR)


def test_cosine_stays_at_the_floor_past_its_horizon():
    """A run extended past schedule_epochs goes on at the floor, and says so (invariant 5)."""
    cosine = schedule(lr=2.0, epochs=100, schedule_epochs=10)
    assert {cosine.lr(epoch) for epoch in range(11, 101)} == {cosine.lr(11)}
    assert not cosine.is_past_horizon(10)
    assert cosine.is_past_horizon(11)


def test_the_horizon_does_not_move_with_epochs():
    """More epochs on a resume change no rate of those before (invariant 5)."""
    short = schedule(epochs=10, schedule_epochs=10)
    extended = schedule(epochs=40, schedule_epochs=10)
    assert [short.lr(e) for e in range(1, 11)] == [extended.lr(e) for e in range(1, 11)]


@given(st.integers(1, 500), st.floats(1e-6, 10))
def test_cosine_only_falls(epochs, lr):
    """The rate never rises, and lies between the floor and lr."""
    cosine = schedule(epochs=epochs, lr=lr)
    found = [cosine.lr(epoch) for epoch in range(1, epochs + 3)]
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(lr)
    assert found[-1] == pytest.approx(lr * FLOOR)


def test_none_is_constant_and_has_no_horizon():
    """Without a schedule the rate is lr, whatever the losses and however long."""
    constant = schedule(schedule="none", lr=0.5, epochs=3)
    assert set(rates(constant, [1.0, 2.0, math.nan, 0.1, 3.0])) == {0.5}
    assert not constant.is_past_horizon(100)


def test_plateau_falls_to_a_third_after_three_bad_epochs():
    """The rate falls after PLATEAU_EPOCHS epochs without a better loss; a better one resets."""
    assert PLATEAU_EPOCHS == 3
    losses = [1.0, 1.0, 1.0, 0.9, 1.0, 1.0, 0.9, 0.9]
    found = rates(schedule(schedule="plateau", lr=3.0), [*losses, 0.8])
    assert found[:7] == [3.0] * 7
    assert found[7:] == pytest.approx([3.0 * PLATEAU_FACTOR] * 2)


@given(
    st.sampled_from(["cosine", "plateau", "none"]),
    st.lists(st.floats(0, 10), min_size=1, max_size=20),
    st.data(),
)
def test_resumed_anywhere_equals_uninterrupted(kind, losses, data):
    """The state, by way of a file, gives the rates of an uninterrupted run (invariant 5)."""
    cut = data.draw(st.integers(0, len(losses)))
    expected = rates(schedule(schedule=kind, epochs=20), losses)
    before, after = schedule(schedule=kind, epochs=20), schedule(schedule=kind, epochs=20)
    found = rates(before, losses[:cut])
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after.load_state_dict(torch.load(file, weights_only=True))
    assert found + rates(after, losses[cut:], first=cut + 1) == expected


def test_a_fork_with_another_lr_keeps_the_plateau():
    """The state holds a factor, not a rate, so that a fork may change lr."""
    old, forked = (schedule(schedule="plateau", lr=lr) for lr in (3.0, 6.0))
    rates(old, [1.0, 1.0, 1.0, 1.0])
    forked.load_state_dict(old.state_dict())
    assert forked.lr(5) == pytest.approx(2 * old.lr(5))
    assert forked.lr(5) == pytest.approx(2.0)


@pytest.mark.parametrize("first", [math.nan, -math.inf, math.inf])
def test_neither_nan_nor_infinity_is_ever_the_best_loss(first):
    """A first loss of NaN is a bad epoch, and does not make all later ones bad."""
    losses = [first, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    assert set(rates(schedule(schedule="plateau", lr=3.0), losses)) == {3.0}
    assert set(rates(schedule(schedule="plateau", lr=3.0), [1.0, *losses])) == {3.0}


@pytest.mark.parametrize("first", [math.nan, -math.inf, math.inf])
def test_plateau_watches_a_metric_that_is_to_rise(first):
    """Where more is better, it falls after three epochs without a higher value; a tie is none."""
    watched = Monitor("acc", "max")
    rising = [first, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert set(rates(schedule(watched, schedule="plateau", lr=3.0), rising)) == {3.0}
    values = [0.5, 0.5, 0.4, 0.6, 0.5, 0.6, 0.1, 0.7]
    found = rates(schedule(watched, schedule="plateau", lr=3.0), values)
    assert found[:7] == [3.0] * 7
    assert found[7] == pytest.approx(3.0 * PLATEAU_FACTOR)


@given(st.lists(st.floats(-10, 10), max_size=20))
def test_to_rise_is_to_fall_upside_down(values):
    """The two directions are one rule."""
    falling = rates(schedule(schedule="plateau"), values)
    upside_down = [-value for value in values]
    assert rates(schedule(Monitor("acc"), schedule="plateau"), upside_down) == falling
