"""The state of training goes through a file and back to the last bit."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from onward.checkpoint.format import load_checkpoint, write_checkpoint
from onward.metrics import History, Point
from onward.options.run_options import Config
from onward.run import rng
from onward.run.state import TrainState
from train.schedule import Schedule


def new_state(seed):
    """Return a state with a small model, dropout included, drawn from `seed`."""
    rng.seed_all(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    return TrainState(model, optimizer, Schedule(Config(schedule="plateau")))


def make_step(state):
    """Make a step on a random batch; all that is drawn comes from the global generators."""
    state.optimizer.zero_grad()
    loss = (state.model(torch.randn(16, 4)) + random.random() + np.random.random()).square().mean()
    loss.backward()
    state.optimizer.step()
    total = state.running_sum("loss", loss.device)
    total += loss.detach()
    state.step += 1
    state.epoch_step += 1


def train_epoch(state, num_steps=3):
    """Make the steps that are left of an epoch, and end it."""
    for _ in range(num_steps - state.epoch_step):
        make_step(state)
    value = state.running_sum("loss", torch.device("cpu")).item() / num_steps
    state.end_epoch()
    state.scheduler.observe(value)
    state.history.add(Point("val_loss", state.epoch, 1_700_000_000_000 + state.epoch, value))
    state.note_best(-value, state.epoch)


def through_a_file(state, folder):
    """Save the state as a checkpoint and load it again."""
    content = state.capture()
    manifest = write_checkpoint(folder / "epoch", content, attempt=1, kept=True, metrics={})
    return load_checkpoint(folder / "epoch", manifest, manifest.name)


def leaves(value, where=""):
    """Return path to value of everything in a checkpoint, tensors as (kind, shape, bytes)."""
    if isinstance(value, torch.Tensor):
        return {where: (value.dtype, value.shape, value.detach().numpy().tobytes())}
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {where: (type(value), repr(value))}
    found = {where: type(value) is tuple}
    for key, item in items:
        found |= leaves(item, f"{where}/{key!r}")
    return found


def bits(state):
    """Return everything that a checkpoint of `state` holds."""
    return leaves(dict(state.capture()))


@pytest.mark.parametrize("inside", [0, 2])
@pytest.mark.parametrize("done", [0, 1, 3])
def test_restored_equals_captured_to_the_last_bit(done, inside, tmp_path):
    """Weights, moments, schedule, history, best and random numbers come back (invariant 5)."""
    state = new_state(1)
    for _ in range(done):
        train_epoch(state)
    for _ in range(inside):
        make_step(state)
    loaded = through_a_file(state, tmp_path)
    restored = new_state(2)
    restored.restore(loaded)
    assert bits(restored) == bits(state)


@pytest.mark.parametrize("inside", [0, 1, 3])
def test_training_goes_on_from_a_file_as_if_never_stopped(inside, tmp_path):
    """After a restore at any step, all is as without the stop, bit for bit (invariant 5)."""
    state = new_state(1)
    train_epoch(state)
    for _ in range(inside):
        make_step(state)
    loaded = through_a_file(state, tmp_path)
    train_epoch(state)
    expected = bits(state)
    restored = new_state(2)
    restored.restore(loaded)
    train_epoch(restored)
    assert bits(restored) == expected


def test_running_sums_come_back_and_are_the_states_own(tmp_path):
    """The sums of an epoch under way go on from a checkpoint, which they do not change."""
    state, cpu = new_state(1), torch.device("cpu")
    make_step(state)
    state.epoch_seconds = 1.5
    loaded = through_a_file(state, tmp_path)
    restored = new_state(2)
    restored.restore(loaded)
    assert (restored.epoch_step, restored.epoch_seconds) == (1, 1.5)
    total = restored.running_sum("loss", cpu)
    assert total.dtype == torch.float64
    assert total.equal(state.running_sum("loss", cpu))
    total += 1
    assert restored.running_sum("loss", cpu).equal(total), "what is added is not lost"
    assert loaded["epoch_sums"]["loss"].equal(state.running_sum("loss", cpu))


def test_the_end_of_an_epoch_clears_what_was_of_it():
    """Nothing of an epoch goes into the next: neither its sums, nor its steps, nor its time."""
    state, cpu = new_state(1), torch.device("cpu")
    make_step(state)
    state.epoch_seconds = 1.5
    state.end_epoch()
    assert (state.epoch, state.step, state.epoch_step, state.epoch_seconds) == (1, 1, 0, 0.0)
    assert state.capture()["epoch_sums"] == {}
    assert state.running_sum("loss", cpu).item() == 0.0


def test_capture_does_not_disturb_training():
    """Epochs are the same with a capture after each as without (invariant 4)."""
    without, with_capture = new_state(1), None
    train_epoch(without)
    train_epoch(without)
    expected = bits(without)
    with_capture = new_state(1)
    train_epoch(with_capture)
    with_capture.capture()
    train_epoch(with_capture)
    assert bits(with_capture) == expected


class Drawing(nn.Linear):
    """A model that draws random numbers while it is loaded."""

    def load_state_dict(self, *args, **kwargs):
        torch.rand(1), random.random(), np.random.random()
        return super().load_state_dict(*args, **kwargs)


def test_restored_random_numbers_survive_parts_that_draw_while_loading():
    """Random state is restored last: what loading draws changes nothing (invariant 5)."""
    model = Drawing(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    state = TrainState(model, optimizer, Schedule(Config()))
    content = state.capture()
    expected = (torch.rand(1).item(), random.random(), np.random.random())
    state.restore(content)
    assert (torch.rand(1).item(), random.random(), np.random.random()) == expected


@pytest.mark.parametrize(
    "part",
    [
        *("model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "history", "rng"),
        *("step", "epoch_step", "epoch_sums", "epoch_seconds"),
    ],
)
def test_a_missing_part_is_an_error(part):
    """A part of the state that cannot be restored is never passed over (invariant 7)."""
    state = new_state(1)
    content = state.capture()
    del content[part]
    with pytest.raises(KeyError, match=part):
        state.restore(content)


def test_another_model_is_refused():
    """Weights of another shape are an error, not a partial load (invariant 7)."""
    content = new_state(1).capture()
    model = nn.Linear(4, 9)
    other = TrainState(model, torch.optim.AdamW(model.parameters()), Schedule(Config()))
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):
        other.restore(content)


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([0.1, 0.3, 0.2], (0.3, 2)),
        ([0.3, 0.3], (0.3, 1)),
        ([math.nan, 0.1, math.nan], (0.1, 2)),
        ([0.0], (0.0, 1)),
        ([-0.5, -0.2], (-0.2, 2)),
        ([math.inf, 0.1, -math.inf], (0.1, 2)),
        ([math.nan], (None, None)),
        ([], (None, None)),
    ],
)
def test_the_best_is_finite_and_the_older_of_equals(values, best):
    """NaN is never best, 0.0 can be, and a tie keeps the older epoch."""
    state = new_state(1)
    for epoch, value in enumerate(values, start=1):
        state.note_best(value, epoch)
    assert (state.best_corr, state.best_epoch) == best


def test_captured_keys_are_those_that_readers_know():
    """The documented keys are there, the lists of the script version included."""
    state = new_state(1)
    history = [Point("train_loss", 1, 1, 0.5), Point("val_loss", 1, 1, 0.4)]
    state.history = History([*history, Point("val_pearson", 1, 1, 0.9)])
    content = state.capture()
    assert set(content) == {
        "epoch", "step", "epoch_step", "epoch_sums", "epoch_seconds",
        "model_state_dict", "optimizer_state_dict", "scheduler_state_dict",
        "train_losses", "val_losses", "aucs", "best_corr", "best_epoch", "history", "rng",
    }  # fmt: skip
    lists = content["train_losses"], content["val_losses"], content["aucs"]
    assert lists == ([0.5], [0.4], [0.9])


class DrawingWhileSaved(nn.Linear):
    """A model that draws random numbers while it is saved."""

    def state_dict(self, *args, **kwargs):
        torch.rand(1), random.random(), np.random.random()
        return super().state_dict(*args, **kwargs)


def test_capture_of_parts_that_draw_disturbs_nothing():
    """Saving leaves the random numbers as they were, whatever a part draws (invariant 4)."""
    model = DrawingWhileSaved(2, 1)
    state = TrainState(model, torch.optim.AdamW(model.parameters()), Schedule(Config()))
    before = leaves(rng.capture())
    content = state.capture()
    assert leaves(rng.capture()) == before == leaves(content["rng"])
