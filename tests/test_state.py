"""The state of training goes through a file and back to the last bit."""

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from onward.checkpoint.content import Content
from onward.checkpoint.format import load_checkpoint, write_checkpoint
from onward.errors import CheckpointError
from onward.metrics import History, Point
from onward.monitor import UNDECLARED, Best, Monitor
from onward.run import rng
from onward.run.order import batches, num_batches
from onward.run.state import TrainState
from train.schedule import Schedule
from train.tabular.options import Config
from train.tabular.task import TabularTask


def new_state(seed):
    """Return a state with a small model, dropout included, drawn from `seed`."""
    rng.seed_all(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    return state_of(model, optimizer, schedule="plateau")


def state_of(model, optimizer=None, **options):
    """Return the state of a model, with an optimizer and a schedule."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters())
    schedule = Schedule(Config(schedule_epochs=20, **options), Monitor("val_loss", "min"))
    return TrainState({"model": model, "optimizer": optimizer, "scheduler": schedule})


def make_step(state):
    """Make a step on a random batch; all that is drawn comes from the global generators."""
    model, optimizer = state.parts["model"], state.parts["optimizer"]
    optimizer.zero_grad()
    loss = (model(torch.randn(16, 4)) + random.random() + np.random.random()).square().mean()
    loss.backward()
    optimizer.step()
    state.mean("loss").add(loss.detach())
    state.step += 1
    state.epoch_step += 1


def train_epoch(state, num_steps=3):
    """Make the steps that are left of an epoch, and end it."""
    for _ in range(num_steps - state.epoch_step):
        make_step(state)
    value = state.mean("loss").value
    state.end_epoch()
    state.parts["scheduler"].observe(value)
    for key, measured in (("val_loss", value), ("val_pearson", -value / 10)):
        state.history.add(Point(key, state.epoch, 1_700_000_000_000 + state.epoch, measured))
    state.note_best(-value / 10, state.epoch)


def through_a_file(state, folder):
    """Save the state as a checkpoint and load it again."""
    content = state.capture().to_dict()
    manifest = write_checkpoint(folder / "epoch", content, attempt=1, kept=True, metrics={})
    return Content.from_dict(load_checkpoint(folder / "epoch", manifest, manifest.name))


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
    return leaves(state.capture().to_dict())


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


def test_running_means_come_back_and_are_the_states_own(tmp_path):
    """The means of an epoch under way go on from a checkpoint, which they do not change."""
    state = new_state(1)
    make_step(state)
    state.epoch_seconds = 1.5
    loaded = through_a_file(state, tmp_path)
    restored = new_state(2)
    restored.restore(loaded)
    assert (restored.epoch_step, restored.epoch_seconds) == (1, 1.5)
    before = state.mean("loss").value
    assert loaded.epoch_sums["loss"].dtype == torch.float64
    assert restored.mean("loss").value == before
    restored.mean("loss").add(before + 2)
    assert restored.mean("loss").value == pytest.approx(before + 1), "what is added is not lost"
    assert loaded.epoch_sums["loss"].item() == before
    assert loaded.epoch_sums["loss/count"].item() == 1
    assert state.mean("loss").value == before


batch_means = st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(1, 9)), min_size=1, max_size=9)


@given(batch_means, st.data())
def test_a_mean_is_that_of_all_values_wherever_the_epoch_was_stopped(added, data):
    """It counts each batch by its size, and a stop between two of them changes no bit of it."""
    cut = data.draw(st.integers(0, len(added)))
    whole, stopped = TrainState({}), TrainState({})
    for value, num in added:
        whole.mean("loss").add(torch.tensor(value, dtype=torch.float64), num)
    for value, num in added[:cut]:
        stopped.mean("loss").add(value, num)
    resumed = TrainState({})
    resumed.restore(stopped.capture())
    for value, num in added[cut:]:
        resumed.mean("loss").add(value, num)
    assert resumed.mean("loss").value == whole.mean("loss").value
    values = [value for value, num in added for _ in range(num)]
    assert whole.mean("loss").value == pytest.approx(sum(values) / len(values), abs=1e-9)


@pytest.mark.parametrize(
    "value", [np.float32(0.1), np.array(0.1, np.float32), torch.tensor(0.1), torch.tensor(1), True]
)
def test_a_mean_is_of_numbers_of_any_kind(value):
    """Added up in float64, counted in whole numbers of any size, and saved as such."""
    state = TrainState({})
    for _ in range(1000):
        state.mean("loss").add(value, np.int32(10**7))
    saved = state.capture().epoch_sums
    assert (saved["loss"].dtype, saved["loss/count"].dtype) == (torch.float64, torch.int64)
    assert saved["loss/count"].item() == 10**10
    assert state.mean("loss").value == pytest.approx(float(value), rel=1e-7)


def test_means_of_different_names_are_different_and_begin_without_a_value():
    """Nothing was added: that is no number, not 0."""
    state = TrainState({})
    state.mean("a").add(1.0, 3)
    state.mean("b").add(torch.tensor(3.0))
    assert (state.mean("a").value, state.mean("b").value) == (1.0, 3.0)
    assert math.isnan(state.mean("c").value)


@pytest.mark.parametrize(("num_samples", "batch_size"), [(50, 16), (50, 50), (7, 3), (8, 4)])
def test_sums_that_an_earlier_version_saved_give_the_same_mean(num_samples, batch_size):
    """It saved no count: the samples of the steps that are done, by the order of batches."""
    sizes = [len(batch) for batch in batches(num_samples, batch_size, seed=0, epoch=1)]
    losses = [0.1 * (step + 1) for step in range(len(sizes))]
    whole = TrainState({})
    for loss, size in zip(losses, sizes, strict=True):
        whole.mean("train_loss").add(loss, size)
    for cut in range(len(sizes) + 1):
        stopped = TrainState({}, epoch_step=cut)
        for loss, size in zip(losses[:cut], sizes[:cut], strict=True):
            stopped.mean("train_loss").add(loss, size)
        content = stopped.capture()
        sums = {k: v for k, v in content.epoch_sums.items() if not k.endswith("/count")}
        old = TrainState({})
        old.restore(dataclasses.replace(content, epoch_sums=sums))
        old.know_counts(num_samples, num_batches(num_samples, batch_size))
        for loss, size in zip(losses[cut:], sizes[cut:], strict=True):
            old.mean("train_loss").add(loss, size)
        assert old.mean("train_loss").value == whole.mean("train_loss").value
        assert old.epoch_sums["train_loss/count"] == num_samples


def test_counts_that_are_known_stay():
    """What a loop of another kind has counted is not replaced by what the table's would be."""
    state = TrainState({}, epoch_step=2)
    state.mean("loss").add(1.0, 5)
    state.know_counts(num_samples=50, num_batches=5)
    assert state.mean("loss").value == 1.0


def test_the_end_of_an_epoch_clears_what_was_of_it():
    """Nothing of an epoch goes into the next: neither its sums, nor its steps, nor its time."""
    state = new_state(1)
    make_step(state)
    state.epoch_seconds = 1.5
    state.end_epoch()
    assert (state.epoch, state.step, state.epoch_step, state.epoch_seconds) == (1, 1, 0, 0.0)
    assert state.capture().epoch_sums == {}
    assert math.isnan(state.mean("loss").value)
    state.mean("loss").add(2.0)
    assert state.mean("loss").value == 2.0


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
    state = state_of(Drawing(2, 1))
    content = state.capture()
    expected = (torch.rand(1).item(), random.random(), np.random.random())
    state.restore(content)
    assert (torch.rand(1).item(), random.random(), np.random.random()) == expected


@pytest.mark.parametrize("part", ["model", "optimizer", "scheduler"])
def test_a_missing_part_is_an_error(part):
    """A part of the state that cannot be restored is never passed over (invariant 7)."""
    content = new_state(1).capture().to_dict()
    del content[f"{part}_state_dict"]
    with pytest.raises(CheckpointError, match=part):
        new_state(1).restore(Content.from_dict(content))


@pytest.mark.parametrize(
    "field", ["step", "epoch_step", "epoch_sums", "epoch_seconds", "epoch", "history", "rng"]
)
def test_a_missing_field_is_an_error(field):
    """Nor is one of the fields, of which no default can stand for what was (invariant 7)."""
    state = new_state(1)
    make_step(state)
    content = state.capture().to_dict()
    del content[field]
    with pytest.raises((KeyError, TypeError), match=field):
        Content.from_dict(content)


def test_another_model_is_refused():
    """Weights of another shape are an error, not a partial load (invariant 7)."""
    content = new_state(1).capture()
    other = state_of(nn.Linear(4, 9))
    with pytest.raises(CheckpointError, match=r"size mismatch|Missing key"):
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
        ([math.nan], None),
        ([], None),
    ],
)
def test_the_best_is_finite_and_the_older_of_equals(values, best):
    """NaN is never best, 0.0 can be, and a tie keeps the older epoch."""
    state = new_state(1)
    for epoch, value in enumerate(values, start=1):
        state.note_best(value, epoch)
    assert state.best == best
    assert state.best_epoch == (best and best[1])


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([0.3, 0.1, 0.2], (0.1, 2)),
        ([0.1, 0.1], (0.1, 1)),
        ([math.nan, 0.1, math.nan], (0.1, 2)),
        ([-math.inf, 0.1, math.inf], (0.1, 2)),
        ([0.2, -0.2], (-0.2, 2)),
        ([math.nan], None),
    ],
)
def test_where_less_is_better_the_lowest_is_best(values, best):
    """Neither NaN nor infinity, however low, and a tie keeps the older epoch."""
    state = TrainState({}, Monitor("loss", "min"))
    for epoch, value in enumerate(values, start=1):
        state.note_best(value, epoch)
    assert state.best == best


@pytest.mark.parametrize(
    ("monitor", "best"),
    [
        (Monitor("acc"), (0.9, 2)),
        (Monitor("acc", "min"), (0.5, 1)),
        (Monitor("other"), None),
        (UNDECLARED, (0.4, 3)),
    ],
)
def test_the_best_is_found_again_in_the_history(monitor, best):
    """It is no state of its own: what the file says of it does not count."""
    values = {"acc": [0.5, 0.9, math.inf, 0.9], "val_pearson": [0.1, math.nan, 0.4, 7.0]}
    state = TrainState({}, monitor)
    for key, measured in values.items():
        for epoch, value in enumerate(measured, start=1):
            state.history.add(Point(key, epoch, epoch, value))
    content = dataclasses.replace(state.capture(), best_epoch=4)
    restored = TrainState({}, monitor, best=Best(2.0, 9))
    restored.restore(content)
    assert restored.best == best


def test_captured_keys_are_those_that_readers_know():
    """The documented keys are there; with what the table adds, the script version's too."""
    state = new_state(1)
    history = [Point("train_loss", 1, 1, 0.5), Point("val_loss", 1, 1, 0.4)]
    state.history = History([*history, Point("val_pearson", 1, 1, 0.9)])
    state.note_best(0.9, 1)
    own = {
        "epoch", "step", "epoch_step", "epoch_sums", "epoch_seconds",
        "model_state_dict", "optimizer_state_dict", "scheduler_state_dict",
        "best_epoch", "history", "rng",
        "format_version", "config", "data", "environment", "timestamp",
    }  # fmt: skip
    assert set(state.capture().to_dict()) == own
    task = TabularTask.__new__(TabularTask)  # its data does not matter
    task.options = Config()
    content = dataclasses.replace(
        state.capture(), extras=task.extras(state.history, state.best)
    ).to_dict()
    assert set(content) == own | {"train_losses", "val_losses", "aucs", "best_corr"}
    lists = content["train_losses"], content["val_losses"], content["aucs"]
    assert lists == ([0.5], [0.4], [0.9])
    assert (content["best_corr"], content["best_epoch"]) == (0.9, 1)
    assert content["format_version"] == 2, "an earlier program could not go on with it"


def test_what_an_earlier_program_could_not_say_is_of_a_newer_version():
    """Another monitor, or other parts: it must not go on as if it knew them."""
    state = new_state(1)
    extras = {"best_corr": None}
    content = dataclasses.replace(state.capture(), extras=extras)
    assert content.format_version == 2
    assert "monitor" not in content.to_dict()
    watched = dataclasses.replace(content, monitor=Monitor("loss", "min"))
    assert (watched.format_version, watched.to_dict()["monitor"]) == (3, "loss:min")
    assert Content.from_dict(watched.to_dict()).monitor == Monitor("loss", "min")
    parts = {**content.parts, "average": {}}
    assert dataclasses.replace(content, parts=parts).format_version == 3
    assert dataclasses.replace(content, extras={}).format_version == 3


class DrawingWhileSaved(nn.Linear):
    """A model that draws random numbers while it is saved."""

    def state_dict(self, *args, **kwargs):
        torch.rand(1), random.random(), np.random.random()
        return super().state_dict(*args, **kwargs)


def test_capture_of_parts_that_draw_disturbs_nothing():
    """Saving leaves the random numbers as they were, whatever a part draws (invariant 4)."""
    model = DrawingWhileSaved(2, 1)
    state = state_of(model)
    before = leaves(rng.capture())
    content = state.capture()
    assert leaves(rng.capture()) == before == leaves(content.rng)
