"""What a checkpoint file holds is tried before a run is made: then the first step cannot fail."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from onward.errors import CheckpointError
from onward.monitor import Monitor
from onward.run.state import TrainState
from train.fits import fitted
from train.schedule import Schedule
from train.subject import TaskSubject
from train.tabular.options import Config

PATH = Path("x.pth")
OPTIONS = Config(schedule_epochs=20, threads=1)


class LinearTask:
    """A task whose model is one layer."""

    monitor = Monitor("val_loss", "min")

    def __init__(self, width=3):
        self._width = width

    def build_model(self):
        """Return the layer."""
        return nn.Linear(self._width, 1)


def trained(kind=torch.optim.AdamW, steps=2, **options):
    """Return a model and an optimizer after some steps."""
    model = nn.Linear(3, 1)
    optimizer = kind(model.parameters(), lr=0.01, **options)
    for _ in range(steps):
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    return model, optimizer


def content(model, optimizer, **changes):
    """Return a checkpoint of them."""
    captured = TrainState(parts_of(model, optimizer), LinearTask.monitor).capture()
    return dataclasses.replace(captured, **changes)


def parts_of(model, optimizer):
    schedule = Schedule(OPTIONS, LinearTask.monitor)
    return {"model": model, "optimizer": optimizer, "scheduler": schedule}


def with_part(checkpoint, name, state):
    """Return the checkpoint with another state of one of its parts."""
    return dataclasses.replace(checkpoint, parts={**checkpoint.parts, name: state})


def fit(checkpoint, width=3):
    return fitted(checkpoint, TaskSubject("linear", LinearTask(width), OPTIONS), PATH)


def step_from(checkpoint):
    """Make an optimizer step as the loop does; return the optimizer."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    TrainState(parts_of(model, optimizer), LinearTask.monitor).restore(checkpoint)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return optimizer


def test_a_model_of_another_shape_is_refused_with_both_shapes():
    """Options that make another model than the file's are told by the first difference."""
    checkpoint = content(*trained())
    fit(checkpoint)
    with pytest.raises(CheckpointError, match=r"'weight' has shape \(1, 3\) .*, \(1, 4\) here"):
        fit(checkpoint, 4)
    del checkpoint.parts["model"]["bias"]
    with pytest.raises(CheckpointError, match="'bias' has shape none in the file"):
        fit(checkpoint)
    checkpoint.parts["model"] |= {"bias": torch.zeros(1), "more": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"'more' has shape .* none here"):
        fit(checkpoint)


@pytest.mark.parametrize("kind", [torch.complex64, torch.int64, torch.bool])
def test_weights_of_another_kind_are_refused(kind):
    """Complex weights would lose a part in silence."""
    checkpoint = content(*trained())
    checkpoint.parts["model"]["weight"] = torch.ones(1, 3, dtype=kind)
    with pytest.raises(CheckpointError, match=r"'weight' is of .*, and float32 is needed"):
        fit(checkpoint)


def test_a_model_that_has_diverged_is_refused():
    """Its first step would fail, after a run was made."""
    checkpoint = content(*trained())
    checkpoint.parts["model"]["bias"] = torch.tensor([float("nan")])
    with pytest.raises(CheckpointError, match="has diverged: 'bias'"):
        fit(checkpoint)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.AdamW, {}),
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.AdamW, {"foreach": True}),
        (torch.optim.AdamW, {"steps": 0}),
        (torch.optim.Adam, {}),
    ],
    ids=str,
)
def test_states_of_adamw_go_on(kind, options):
    """The moments are the file's; how they are computed is this program's own."""
    model, optimizer = trained(kind, **options)
    checkpoint = fit(content(model, optimizer))
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(checkpoint.parts["optimizer"]["state"][index][name], value)
    group = step_from(checkpoint).param_groups[0]
    assert (group["fused"], group["decoupled_weight_decay"]) == (True, True)
    assert group["amsgrad"] == options.get("amsgrad", False)


@pytest.mark.parametrize(
    "changes",
    [
        {"capturable": True},
        {"differentiable": True},
        {"lr": torch.tensor(0.1)},
        {"fused": None, "foreach": True},
        {"initial_lr": 0.1, "max_lr": 1.0},
        {"betas": [np.float64(0.5), 0.9]},
    ],
    ids=str,
)
def test_how_a_state_was_computed_does_not_matter(changes):
    """Flags that this machine does not have are not taken from the file."""
    checkpoint = content(*trained())
    checkpoint.parts["optimizer"]["param_groups"][0] |= changes
    step_from(fit(checkpoint))


@pytest.mark.parametrize(
    ("kind", "options", "found"),
    [
        (torch.optim.SGD, {}, "it lacks betas"),
        (torch.optim.SGD, {"momentum": 0.9}, "it lacks betas"),
        (torch.optim.RMSprop, {}, "it lacks betas"),
        (torch.optim.Adagrad, {}, "it lacks betas"),
        (torch.optim.NAdam, {}, "it lacks amsgrad"),
        (torch.optim.RAdam, {}, "it lacks amsgrad"),
        (torch.optim.AdamW, {"maximize": True}, "its maximize is True"),
    ],
    ids=str,
)
def test_states_of_another_kind_are_refused_with_the_way_out(kind, options, found):
    """Before a run is made, not by a traceback at its first step."""
    checkpoint = content(*trained(kind, **options))
    with pytest.raises(CheckpointError, match=f"{found}.*resume_from_weights_only=true"):
        fit(checkpoint)
    step_from(fit(with_part(checkpoint, "optimizer", None)))


def first(state):
    return state["state"][0]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda s: s.update(state=[]), "no groups and states"),
        (lambda s: s.update(param_groups=5), "no groups and states"),
        (lambda s: s.update(param_groups=s["param_groups"] * 2), "2 groups"),
        (lambda s: s["param_groups"][0].update(params=[0]), "of 1 weights"),
        (lambda s: s["param_groups"][0].update(params=[0, 0]), "its states are not"),
        (lambda s: s["state"].update({7: {}}), "its states are not"),
        (lambda s: s["param_groups"][0].update(betas=(0.9, 1.0)), "its betas is"),
        (lambda s: s["param_groups"][0].update(betas=0.9), "its betas is"),
        (lambda s: s["param_groups"][0].update(eps=-1.0), "its eps is"),
        (lambda s: s["param_groups"][0].update(amsgrad=True), "AdamW has .*max_exp_avg_sq"),
        (lambda s: first(s).pop("exp_avg"), "for 'weight' it holds exp_avg_sq, step"),
        (lambda s: first(s).update(exp_avg=torch.zeros(7)), r"has shape \(7,\)"),
        (lambda s: first(s).update(exp_avg=[0.0]), "has shape none"),
        (lambda s: first(s).update(exp_avg=torch.full((1, 3), float("inf"))), "cannot have"),
        (lambda s: first(s).update(exp_avg_sq=torch.full((1, 3), -1.0)), "cannot have"),
        (lambda s: first(s).update(exp_avg=torch.zeros(1, 3, dtype=torch.complex64)), "cannot"),
        (lambda s: first(s).update(step=-1), "its step is -1"),
        (lambda s: first(s).update(step=torch.ones(2)), "its step is"),
        (lambda s: s["state"].update({0: 5}), "for 'weight' it holds int"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, found):
    """Fields, shapes and numbers are each looked at, and the first wrong one is named."""
    checkpoint = content(*trained())
    change(checkpoint.parts["optimizer"])
    with pytest.raises(CheckpointError, match=found) as caught:
        fit(checkpoint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"rng": {}},
        {"rng": {"python": 1}},
        {"epoch_sums": {"train_loss": 1}},
    ],
    ids=str,
)
def test_every_other_part_is_tried_too(changes):
    """What could not be restored is found out before the run is made."""
    with pytest.raises(CheckpointError, match="cannot be used"):
        fit(content(*trained(), **changes))


@pytest.mark.parametrize("state", [{}, {"factor": 1.0}, 5], ids=str)
def test_a_schedule_that_does_not_fit_is_refused(state):
    """Its state is tried as the others are."""
    with pytest.raises(CheckpointError, match="cannot be used"):
        fit(with_part(content(*trained()), "scheduler", state))


def test_where_a_schedule_is_missing_a_fresh_one_begins():
    """As where the file's is of another kind."""
    fresh = Schedule(OPTIONS, LinearTask.monitor).state_dict()
    assert fit(with_part(content(*trained()), "scheduler", None)).parts["scheduler"] == fresh


def test_the_optimizer_of_a_task_is_tried_as_it_is():
    """What is not AdamW is looked at by its own `load_state_dict`, not by AdamW's fields."""

    class OfItsOwn(LinearTask):
        def build_optimizer(self, model):
            return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    subject = TaskSubject("linear", OfItsOwn(), OPTIONS)
    model, optimizer = trained(torch.optim.SGD, momentum=0.9)
    found = fitted(content(model, optimizer), subject, PATH).parts["optimizer"]
    for index, one in optimizer.state_dict()["state"].items():
        assert torch.equal(found["state"][index]["momentum_buffer"], one["momentum_buffer"])
    with pytest.raises(CheckpointError, match="cannot be used"):
        fitted(with_part(content(model, optimizer), "optimizer", {"state": {}}), subject, PATH)


def test_to_try_a_file_draws_no_random_number():
    """Training is not disturbed by it."""
    checkpoint = content(*trained())
    before = torch.get_rng_state()
    fit(checkpoint)
    assert torch.equal(torch.get_rng_state(), before)
