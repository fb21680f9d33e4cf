"""The training loop: steps in parts, and an epoch that goes on in the middle."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from onward.errors import NonFinite, UsageError
from onward.monitor import Monitor
from onward.run.order import batches, num_batches
from onward.run.state import TrainState
from onward.world import ALONE
from train.loop import _require_reported, build_optimizer, train_epoch
from train.schedule import Schedule
from train.strategy import Averaged
from train.tabular.data.dataset import prepare
from train.tabular.options import Config
from train.tabular.task import TabularTask

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = torch.arange(50)


@pytest.fixture
def make_task(tmp_path):
    """Return a function that makes a task on a table that is wider than long: with the ridge."""
    random = np.random.default_rng(0)
    x = random.normal(size=(80, 100))
    np.savez(tmp_path / "t.npz", x=x, y=x[:, 0] + random.normal(size=80))

    def make(**options):
        options = {"num_layers": 1, "hidden_size": 8, "dropout": 0.0, "batch_size": 25, **options}
        config = Config(data=str(tmp_path / "t.npz"), target="y", schedule_epochs=1, **options)
        return TabularTask(prepare(config), config, "cpu")

    return make


class Counting:
    """What `train_epoch` needs of a run: its state, its order, and steps that are counted.

    Args:
        task: The task to train.
        stop_after: Steps after which the epoch is left; default: all are made.
    """

    world, batch_weight = ALONE, 1.0

    def __init__(self, task, stop_after=math.inf):
        torch.manual_seed(0)
        self.options, self.stop_after, self.task = task.options, stop_after, task
        self.model = task.build_model()
        torch.nn.init.normal_(self.model.linear.weight)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01, fused=True)
        schedule = Schedule(task.options, Monitor("val_loss", "min"))
        self.state = TrainState(
            {"model": self.model, "optimizer": self.optimizer, "scheduler": schedule}
        )

    @property
    def step(self):
        return self.state.step

    def mean(self, name):
        return self.state.mean(name)

    def order(self, num_samples, batch_size):
        assert (num_samples, batch_size) == (self.task.num_samples, self.options.batch_size)
        self.state.know_counts(num_samples, num_batches(num_samples, batch_size))
        for batch in batches(num_samples, batch_size, 0, epoch=1, start=self.state.epoch_step):
            if self.state.step == self.stop_after:
                raise InterruptedError
            yield batch
            self.state.step += 1
            self.state.epoch_step += 1

    def train_epoch(self):
        """Make the rest of the epoch; return its mean loss."""
        strategy = Averaged(self, self.model, self.options)
        train_epoch(self, self.task, self.model, self.optimizer, strategy, self.options)
        return self.mean("train_loss").value

    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def gradient(task, num_parts, rows=ROWS):
    """Return loss and gradient of a batch, computed in so many parts."""
    run = Counting(task)
    options = task.options.replace(accumulation_steps=num_parts)
    loss, _num = Averaged(run, run.model, options).backward(task, rows)
    return loss, torch.cat([p.grad.flatten() for p in run.model.parameters()])


@pytest.mark.parametrize("num_rows", [50, 3, 2, 1])
@pytest.mark.parametrize("num_parts", [2, 3, 7])
def test_the_gradient_of_the_parts_is_that_of_the_whole(make_task, num_parts, num_rows):
    """Parts of unequal size count by their rows, and the ridge penalty counts once."""
    task, rows = make_task(), ROWS[:num_rows]
    assert Counting(task).model.ridge > 0
    whole, parts = gradient(task, 1, rows), gradient(task, num_parts, rows)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-6)
    assert whole[1].abs().max() > 0.1


def test_a_batch_in_one_part_is_computed_as_ever(make_task):
    """With accumulation_steps=1 loss and gradient are, bit for bit, those of a plain backward."""
    task = make_task()
    run = Counting(task)
    loss = task.loss(run.model, ROWS)
    loss.backward()
    plain = torch.cat([p.grad.flatten() for p in run.model.parameters()])
    found = gradient(task, 1)
    assert found[0].equal(loss.detach())
    assert found[1].equal(plain)
    assert not found[0].requires_grad


def test_an_epoch_in_parts_ends_where_the_whole_one_does(make_task):
    """The same steps, the same losses, and the same number of them: only memory is saved."""
    whole, parts = (Counting(make_task(accumulation_steps=n)) for n in (1, 3))
    assert parts.train_epoch() == pytest.approx(whole.train_epoch(), rel=1e-5)
    assert parts.step == whole.step == 3
    torch.testing.assert_close(parts.weights(), whole.weights(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3])
def test_the_rest_of_an_epoch_gives_its_mean_loss(make_task, stop_after):
    """The loss of an epoch that was left and gone on with is that of all its rows (invariant 5)."""
    task = make_task(dropout=0.3)
    undisturbed = Counting(task)
    expected = undisturbed.train_epoch()
    left = Counting(task, stop_after)
    if stop_after < 3:
        with pytest.raises(InterruptedError):
            left.train_epoch()
    else:
        left.train_epoch()  # as if stopped while it was evaluated
    captured = left.state.capture()
    resumed = Counting(task)
    resumed.state.restore(captured)
    assert resumed.train_epoch() == expected
    assert resumed.step == 3
    assert resumed.weights().equal(undisturbed.weights())


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_the_rest_of_an_epoch_of_an_earlier_version_gives_the_same_mean(make_task, stop_after):
    """Its sums were saved without the number of their values: nobody sees that afterwards."""
    task = make_task(dropout=0.3)
    undisturbed = Counting(task)
    expected = undisturbed.train_epoch()
    left = Counting(task, stop_after)
    if stop_after < 3:
        with pytest.raises(InterruptedError):
            left.train_epoch()
    else:
        left.train_epoch()
    captured = left.state.capture()
    assert set(captured.epoch_sums) == {"train_loss", "train_loss/count"}
    sums = {"train_loss": captured.epoch_sums["train_loss"]}
    resumed = Counting(task)
    resumed.state.restore(dataclasses.replace(captured, epoch_sums=sums))
    assert resumed.train_epoch() == expected


def test_an_epochs_mean_is_what_it_was_before_there_were_counts(make_task):
    """The sum over its rows by their number, in float64: no digit of an old curve changes."""
    task = make_task(batch_size=30)
    run, total = Counting(task), torch.zeros((), dtype=torch.float64)
    loss, sizes = task.loss, []

    def noted(model, rows):
        found = loss(model, rows)
        total.add_(found.detach() * len(rows))
        sizes.append(len(rows))
        return found

    task.loss = noted
    assert run.train_epoch() == (total / task.num_samples).item()
    assert len(set(sizes)) == 2, "all batches are of one size"


def test_no_part_that_is_not_finite_is_passed_over(make_task):
    """NaN in one part of a batch is refused before the step: the weights are untouched."""
    run = Counting(make_task(accumulation_steps=3))
    before, loss, calls = run.weights(), run.task.loss, []

    def spoiled(model, rows):
        calls.append(rows)
        return loss(model, rows) * (math.nan if len(calls) == 5 else 1.0)

    run.task.loss = spoiled
    with pytest.raises(NonFinite, match=r"loss is nan at step 2 \(epoch 1,"):
        run.train_epoch()
    assert len(calls) == 6
    assert not run.weights().equal(before), "the first step was made"
    once = Counting(make_task(accumulation_steps=3), stop_after=1)
    with pytest.raises(InterruptedError):
        once.train_epoch()
    assert run.weights().equal(once.weights())


@pytest.mark.parametrize("missing", ["val_rmse", "val_loss"])
def test_a_metric_that_is_to_be_watched_and_is_not_reported_is_told(missing):
    """Whether it decides, or a plateau watches it; what there is to choose from is named."""
    metrics = {"val_acc": 0.5, "val_pearson": 0.9}
    _require_reported(metrics, "val_acc", "val_pearson")
    with pytest.raises(UsageError) as caught:
        _require_reported(metrics, "val_acc", missing)
    assert str(caught.value) == (
        f"{missing} is to be watched, and the task reports val_acc, val_pearson: name one of "
        "these, as in monitor=val_acc:min"
    )


def test_a_task_may_bring_its_own_optimizer(make_task):
    """Without one it is AdamW at the run's lr."""
    task = make_task(lr=0.5)
    model = task.build_model()
    usual = build_optimizer(task, model, task.options)
    assert (type(usual), usual.param_groups[0]["lr"]) == (torch.optim.AdamW, 0.5)
    task.build_optimizer = lambda model: torch.optim.SGD(model.parameters(), lr=0.25)
    own = build_optimizer(task, model, task.options)
    assert (type(own), own.param_groups[0]["lr"]) == (torch.optim.SGD, 0.25)
