"""Staging: what is set aside is the state at that time, whatever training does after it."""

import threading
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from onward.checkpoint.staging import Stager, changed_by_step
from onward.errors import CheckpointError


def build():
    """Return a model with running means, and its optimizer after one step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step(model, optimizer)
    return model, optimizer


def step(model, optimizer, before_update=lambda: None):
    optimizer.zero_grad()
    model(torch.randn(8, 3)).square().mean().backward()
    before_update()
    optimizer.step()


def state_of(model, optimizer):
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}


def leaves(value):
    """Return all tensors of a nested state, copied, and the rest as it is."""
    if isinstance(value, torch.Tensor):
        return [value.detach().clone()]
    if isinstance(value, dict):
        return [leaf for key in value for leaf in leaves(value[key])]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def same(a, b):
    return all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(a, b, strict=True)
    )


def test_staged_is_the_state_of_that_time():
    """A forward pass at once, and a step after `hold_update`, change nothing of it."""
    model, optimizer = build()
    expected = leaves(state_of(model, optimizer))
    staged = Stager().stage(state_of(model, optimizer), changed_by_step(optimizer))
    step(model, optimizer, staged.hold_update)
    staged.wait()
    assert same(leaves(staged.state), expected)
    assert not same(leaves(state_of(model, optimizer)), expected)


def test_what_a_forward_pass_changes_is_copied_at_once():
    """Running means do not wait for the step: they are set aside before `stage` returns."""
    model, optimizer = build()
    may_wait = changed_by_step(optimizer)
    asked = {}

    def note(tensor):
        asked[tensor.data_ptr()] = may_wait(tensor)
        return asked[tensor.data_ptr()]

    mean = model[1].running_mean
    expected = mean.clone()
    staged = Stager().stage(state_of(model, optimizer), note)
    mean.fill_(9.0)
    staged.wait()
    assert torch.equal(staged.state["model"]["1.running_mean"], expected)
    assert asked[mean.data_ptr()] is False


def test_without_leave_to_wait_all_is_copied_at_once():
    """By default `stage` returns with everything set aside."""
    model, optimizer = build()
    expected = leaves(state_of(model, optimizer))
    staged = Stager().stage(state_of(model, optimizer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    staged.wait()
    assert same(leaves(staged.state), expected)


def test_only_weights_and_moments_may_wait():
    """The test picks what the optimizer holds, and no buffer, random state or other tensor."""
    model, optimizer = build()
    may_wait = changed_by_step(optimizer)
    moments = [t for s in optimizer.state.values() for t in s.values()]
    assert len(moments) == 3 * len(list(model.parameters()))
    assert all(map(may_wait, [*model.parameters(), *moments]))
    others = [*model.buffers(), torch.get_rng_state(), torch.zeros(3), model[0].weight.clone()]
    assert not any(map(may_wait, others))


def test_buffers_are_used_again():
    """The second copy goes to the memory of the first: new memory costs ten times as much."""
    stager, source = Stager(), {"w": torch.ones(4), "list": [torch.zeros(2)]}
    pointers = []
    for value in (1.0, 2.0):
        source["w"].fill_(value)
        staged = stager.stage(source)
        staged.wait()
        assert staged.state["w"].tolist() == [value] * 4
        pointers.append([t.data_ptr() for t in (staged.state["w"], staged.state["list"][0])])
        staged.release()
    assert pointers[0] == pointers[1]


@pytest.mark.parametrize("other", [torch.ones(5), torch.ones(4, dtype=torch.float64)])
def test_a_tensor_of_another_kind_gets_another_buffer(other):
    """Where a shape or a type has changed, the old buffer is not forced upon it."""
    stager = Stager()
    staged = stager.stage({"w": torch.zeros(4)})
    staged.wait()
    staged.release()
    staged = stager.stage({"w": other})
    staged.wait()
    assert torch.equal(staged.state["w"], other)
    assert staged.state["w"].dtype == other.dtype


def test_the_memory_of_the_buffers_is_given_back():
    """The model of a finished run is made after it, and needs as much."""
    stager = Stager()
    staged = stager.stage({"weight": torch.ones(4)})
    staged.wait()
    buffer = weakref.ref(staged.state["weight"])
    staged.release()
    del staged
    stager.close()
    assert buffer() is None


def test_buffers_are_lent_once_at_a_time():
    """A second state waits until the first is written: it could not be whole otherwise."""
    stager, reached = Stager(), threading.Event()
    first = stager.stage({"w": torch.zeros(4)})
    assert not stager.is_free

    def stage_again():
        stager.stage({"w": torch.ones(4)}).wait()
        reached.set()

    threading.Thread(target=stage_again, daemon=True).start()
    assert not reached.wait(0.05)
    assert first.state["w"].tolist() == [0.0] * 4
    first.release()
    assert reached.wait(60)


def test_tied_weights_stay_tied():
    """A weight that is in two places is copied once, and stored once."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    staged = Stager().stage(model.state_dict())
    staged.wait()
    tied = staged.state["0.weight"], staged.state["1.weight"]
    assert tied[0].data_ptr() == tied[1].data_ptr()
    assert torch.equal(tied[0], model[0].weight)
    assert staged.state["0.bias"].data_ptr() != staged.state["1.bias"].data_ptr()


def test_arrays_are_not_taken_for_tied_weights():
    """NumPy arrays of one shape are different values, and stay so."""
    arrays = {f"a{i}": np.full(1000, float(i)) for i in range(20)}
    staged = Stager().stage(arrays)
    staged.wait()
    assert [staged.state[name][0].item() for name in arrays] == [float(i) for i in range(20)]


def test_views_and_empty_tensors_keep_their_values():
    """A transposed view, a slice and empty tensors come out as they went in."""
    base = torch.arange(6.0).view(2, 3)
    state = {"t": base.T, "s": base[:, 1:], "b": base, "e": torch.empty(0), "f": torch.empty(0, 2)}
    staged = Stager().stage(state)
    staged.wait()
    assert all(torch.equal(staged.state[name], tensor) for name, tensor in state.items())


def test_a_content_that_cannot_be_saved_frees_the_buffers():
    """After an error in a state the next one can be staged."""
    stager = Stager()
    with pytest.raises(CheckpointError, match="hook"):
        stager.stage({"w": torch.ones(2), "hook": object()})
    assert stager.is_free
    staged = stager.stage({"w": torch.ones(2)})
    staged.wait()
    assert staged.state["w"].tolist() == [1.0, 1.0]


def test_an_error_while_copying_is_raised_to_who_waits():
    """A copy that fails in the background is never written as if it were whole."""
    source = torch.ones(4)
    staged = Stager().stage({"w": source}, lambda tensor: True)
    staged.wait()
    broken = Stager()
    broken._buffers["checkpoint['w']"] = torch.ones(4)[:0].expand(0)
    broken._buffer = lambda where, tensor: torch.empty(3)  # too small: the copy must fail
    staged = broken.stage({"w": source}, lambda tensor: True)
    staged.hold_update()
    with pytest.raises(RuntimeError, match="size of tensor"):
        staged.wait()


def test_what_is_given_back_keeps_no_memory():
    """Once training has ended, the buffers are free for what is made of its result."""
    stager = Stager()
    staged = stager.stage({"weight": torch.ones(1000)})
    staged.wait()
    buffer = weakref.ref(staged.state["weight"])
    staged.release()
    stager.close()
    assert buffer() is None
