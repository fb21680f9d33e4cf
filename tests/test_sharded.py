"""State that is spread over ranks, each played in turn by this process: torch's fake group."""

import contextlib
import itertools
import math

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore

from onward.checkpoint.index import Origin
from onward.checkpoint.manifest import Manifest
from onward.checkpoint.pieces import add_shard
from onward.checkpoint.plain import to_plain
from onward.checkpoint.shards import Shards
from onward.checkpoint.staging import Stager, changed_by_step
from onward.errors import CheckpointError
from onward.run.differences import first_difference
from onward.run.parts import capture, put_back, ties_of
from onward.run.sharded import join, own_of, put_own, split, split_parts
from onward.run.state import TrainState
from onward.system.boxes import box_of, covers_once

LAYOUTS = {  # shape of the mesh, placements on it
    "fsdp": ((3,), [Shard(0)]),
    "columns": ((2,), [Shard(1)]),
    "hybrid": ((2, 2), [Replicate(), Shard(0)]),
    "rows and columns": ((2, 3), [Shard(0), Shard(1)]),
    "rows twice": ((2, 2), [Shard(0), Shard(0)]),
    "replicated": ((2,), [Replicate()]),
}
layouts = st.sampled_from(sorted(LAYOUTS))
shapes = st.tuples(st.integers(1, 7), st.integers(1, 7))


@contextlib.contextmanager
def rank_of(world, rank):
    """Be one of so many ranks, none of which is asked anything."""
    _clear_sharding_prop_cache()  # in which are meshes, as another rank saw them
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def each_rank(layout):
    """Yield (rank, number of ranks, mesh, placements), being that rank meanwhile."""
    shape, placements = LAYOUTS[layout]
    world = math.prod(shape)
    for rank in range(world):
        with rank_of(world, rank):
            yield rank, world, init_device_mesh("cpu", shape), placements


class Net(nn.Module):
    """Two weights, one of them under two names, and a buffer that is not spread."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.tied = self.weight
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def trained(net):
    """Return an optimizer that has taken a step, with a gradient of the weight itself."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    for parameter in net.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    return optimizer


def made(shape, make=lambda tensor: tensor, seed=0):
    """Return a net in some layout."""
    numbers = torch.Generator().manual_seed(seed)
    tensors = (torch.randn(shape, generator=numbers), torch.randn(3, 2, generator=numbers))
    return Net(*map(make, tensors))


def spreading(mesh, placements):
    """Return what spreads a tensor, of which each rank knows all."""
    return lambda tensor: distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def saved(folder, layout, shape):
    """Save a trained net from each rank; return the state of rank 0, and what reads the pieces."""
    files, state = [], None
    for rank, world, mesh, placements in each_rank(layout):
        net = made(shape, spreading(mesh, placements))
        parts, pieces = split_parts({"model": capture(net), "optimizer": trained(net).state_dict()})
        state = to_plain(parts) if state is None else state
        assert repr(state["model"]["weight"]) == repr(parts["model"]["weight"])
        files += add_shard(folder, Origin(rank, world, 1, 3), pieces).entries
    manifest = Manifest(
        epoch=0, step=3, epoch_step=3, attempt=1, created="2026-01-02T03:04:05+00:00", kept=True,
        metrics={}, files=tuple(files), world=world, layout="fsdp", format_version=3,
    )  # fmt: skip
    return state, Shards(folder, manifest, "x")


@given(layouts, shapes)
@settings(max_examples=25)
def test_each_element_is_written_by_one_rank(layout, shape):
    """A rank's box is what torch says, and those that are written make up the tensor."""
    boxes = []
    for _rank, _world, mesh, placements in each_rank(layout):
        spread = spreading(mesh, placements)(torch.zeros(shape))
        box, is_first = box_of(spread)
        expected = compute_local_shape_and_global_offset(shape, mesh, placements)
        assert box.shape == expected[0] == tuple(spread.to_local().shape)
        if box.num_elements:
            assert box.offset == expected[1]
            boxes += [box] if is_first else []
    assert covers_once(shape, boxes)


@given(layouts, layouts, shapes)
@settings(max_examples=8)
def test_any_layout_is_put_back_into_any_other(tmp_path_factory, layout, other, shape):
    """Weights and moments, into an optimizer that has none yet; what was tied is tied."""
    state, shards = saved(tmp_path_factory.mktemp("saved"), layout, shape)
    net = made(shape)
    optimizer = trained(net)
    whole = {"model": capture(net), "optimizer": optimizer.state_dict()}
    assert first_difference(whole, shards.assemble(state), "state") is None
    for source in (state, whole):
        for _rank, _world, mesh, placements in each_rank(other):
            net = made(shape, spreading(mesh, placements), seed=1)
            optimizer = torch.optim.AdamW(net.parameters())
            for name, part in {"model": net, "optimizer": optimizer}.items():
                joined = join(source[name], part, name, shards)
                put_back(part, joined, name)
                assert first_difference(joined, capture(part), name) is None
                assert first_difference(whole[name], capture(part), name) is None
            found = capture(net)
            assert ties_of(join(state["model"], net, "model", shards)) <= ties_of(found)
            moment = optimizer.state[net.weight]["exp_avg"]
            assert isinstance(moment, DTensor)
            assert moment.placements == net.weight.placements
            assert type(optimizer.state[net.weight]["step"]) is torch.Tensor


def test_a_run_goes_back_to_what_ranks_saved(tmp_path):
    """`TrainState.restore` takes markers, and whole tensors, in whatever layout it is itself."""
    state, shards = saved(tmp_path, "fsdp", (5, 4))
    net = made((5, 4), seed=1)
    now = TrainState({"model": net, "optimizer": torch.optim.AdamW(net.parameters())})
    content = now.capture()
    object.__setattr__(content, "parts", state)
    object.__setattr__(content, "layout", "fsdp")
    now.restore(content, shards)
    assert torch.equal(net.weight, shards.assemble(state)["model"]["weight"])
    with pytest.raises(CheckpointError, match=r"model\['weight'\] was saved in pieces"):
        now.restore(content)


def test_another_model_is_refused_as_ever():
    """A weight of another shape is told by its name, however it is spread."""
    whole = capture(made((5, 4)))
    for _rank, _world, mesh, placements in each_rank("fsdp"):
        net = made((6, 4), spreading(mesh, placements))
        state = TrainState({"model": net})
        content = state.capture()
        object.__setattr__(content, "parts", {"model": whole})
        with pytest.raises(CheckpointError, match=r"size mismatch for weight"):
            state.restore(content)


def test_pieces_are_set_aside_in_the_background():
    """They are the memory of weights and moments, which only a step changes; buffers are not."""
    for _rank, _world, mesh, placements in itertools.islice(each_rank("fsdp"), 1):
        net = made((6, 4), spreading(mesh, placements))
        optimizer = trained(net)
        parts, pieces = split_parts({"model": capture(net), "optimizer": optimizer.state_dict()})
        may_wait = changed_by_step(optimizer)
        assert len(pieces) == 6
        assert all(may_wait(piece["tensor"]) for piece in pieces)
        assert not may_wait(net.mean)
        assert not may_wait(torch.empty(0))
        staged = Stager().stage({"parts": parts, "pieces": pieces}, may_wait)
        staged.wait()
        kept = staged.state["pieces"][0]["tensor"].clone()
        with torch.no_grad():
            net.weight.mul_(2)
        assert torch.equal(staged.state["pieces"][0]["tensor"], kept)
        assert torch.equal(2 * kept, net.weight.to_local())


def test_what_is_spread_is_refused_where_a_whole_tensor_is_needed():
    """Else a piece would be saved as if it were all."""
    for _rank, _world, mesh, placements in itertools.islice(each_rank("fsdp"), 1):
        state = {"a": [spreading(mesh, placements)(torch.zeros(6, 2))]}
        for refuse in (to_plain, Stager().stage):
            with pytest.raises(CheckpointError, match=r"\['a'\]\[0\] is spread over ranks"):
                refuse(state)
        partial = DTensor.from_local(torch.zeros(6, 2), mesh, [Partial()])
        with pytest.raises(CheckpointError, match="only Shard and Replicate"):
            split(partial, "a")


def test_a_difference_in_a_piece_is_found():
    """Each rank compares what it holds, also with a whole tensor."""
    for rank, _world, mesh, placements in each_rank("fsdp"):
        whole = torch.arange(12.0).view(6, 2)
        spread, other = (spreading(mesh, placements)(tensor) for tensor in (whole, whole.clone()))
        assert first_difference(spread, other, "x") is None
        assert first_difference(whole, spread, "x") is None
        other.to_local()[0, 0] += rank == 1
        found = first_difference(spread, other, "x")
        assert found == ("x has other values" if rank == 1 else None)
        assert "float32[6, 2]" in first_difference(whole[:5], spread, "x")


def test_a_ranks_own_buffers_come_back():
    """Those that are saved; a missing one is an error."""
    net = made((5, 4))
    net.mean += 3
    own = own_of({"nets": [net]})
    assert list(own) == ["nets.0.mean"]
    own = {name: tensor.clone() for name, tensor in own.items()}
    net.mean.zero_()
    put_own({"nets": [net]}, own, "model")
    assert net.mean.tolist() == [3, 3]
    with pytest.raises(CheckpointError, match=r"the rank's own nets\.0\.mean is not"):
        put_own({"nets": [net]}, {}, "model")
