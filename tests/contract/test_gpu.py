"""On a GPU: exact resume, staging beside the computation, pieces, bf16; for benchmarks/gpu.sh."""

import pytest
import torch
import torch.distributed as dist
from support import SMALL, checkpoint, environment, launch, only_run
from torch.distributed.fsdp import fully_shard

import onward
from onward.checkpoint.staging import Stager, changed_by_step
from onward.run.sharded import split_parts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that CUDA can use"),
]
STEPS = 5  # of an epoch


class Stopped(Exception):
    """Ends a training as an error would."""


@pytest.fixture
def deterministic(monkeypatch):
    """Let every operation of this process have a fixed order, and put that back."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def build(width=256, layers=2):
    """Return a model with dropout on the GPU, and its optimizer."""
    torch.manual_seed(0)
    parts = [(torch.nn.Linear(width, width), torch.nn.Dropout(0.1)) for _ in range(layers)]
    model = torch.nn.Sequential(*(layer for part in parts for layer in part)).cuda()
    return model, torch.optim.AdamW(model.parameters(), fused=True)


def step(model, optimizer, before_update=lambda: None):
    """Make an optimizer step on random numbers of the GPU's own generator."""
    optimizer.zero_grad()
    width = next(model.parameters()).shape[1]
    model(torch.randn(64, width, device="cuda")).square().mean().backward()
    before_update()
    optimizer.step()


def train(epochs, stop_at=None, **options):
    """Train by `open_run`; return the run and all that it changed."""
    model, optimizer = build()
    state = {"model": model, "optimizer": optimizer}
    with onward.open_run(state, minimize="loss", checkpoint_steps=2, **options) as run:
        for epoch in run.epochs(range(epochs)):
            for number in run.batches(range(STEPS)):
                if (epoch, number) == stop_at:
                    raise Stopped(run.run_id)
                step(model, optimizer)
            run.log(loss=1.0 / (1 + epoch))
    return [*model.state_dict().values(), *leaves(optimizer.state_dict())]


def leaves(value):
    """Return all tensors of a nested state."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [leaf for key in value for leaf in leaves(value[key])]
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list) else []


@pytest.mark.parametrize("background_copy", [False, True])
@pytest.mark.parametrize("stop_at", [(1, 0), (1, 3), (2, 4)])
def test_a_resume_on_a_gpu_has_the_same_bits(tracking, deterministic, stop_at, background_copy):
    """Weights, moments and the GPU's random numbers, at the end and inside an epoch."""
    copied = {"background_copy": background_copy}
    whole = train(4, **copied)
    with pytest.raises(Stopped) as stopped:
        train(4, stop_at, **copied)
    resumed = train(4, resume_run=str(stopped.value), **copied)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert whole[0].is_cuda


def test_staging_copies_to_pinned_memory_beside_the_computation():
    """The call returns before the bytes are there, no step waits on the host, none is torn."""
    model, optimizer = build(width=8192, layers=4)  # 3.2 GB with its moments
    step(model, optimizer)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    stager = Stager()
    stager.stage(state, changed_by_step(optimizer)).release()  # the buffers are made
    stager = stager if stager.is_free else Stager()
    expected = [leaf.clone() for leaf in leaves(state)]
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    staged = stager.stage(state, changed_by_step(optimizer))
    step(model, optimizer, staged.hold_update)
    end.record()
    is_host_free = not end.query()  # what the host has asked for is still computed
    staged.wait()
    assert is_host_free
    kept = leaves(staged.state)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(expected, kept, strict=True))
    assert all(b.is_pinned() for b in kept if b.numel() > 1000)
    staged.release()


def test_pieces_of_a_sharded_model_are_staged_pinned():
    """FSDP2 on one rank with NCCL: what it holds is copied beside the step, like whole tensors."""
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model, _ = build()
        fully_shard(model)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        step(model, optimizer)
        parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        _, pieces = split_parts(parts)
        expected = {piece["key"]: piece["tensor"].clone() for piece in pieces}
        staged = Stager().stage({"pieces": pieces}, changed_by_step(optimizer))
        step(model, optimizer, staged.hold_update)
        staged.wait()
        kept = {piece["key"]: piece["tensor"] for piece in staged.state["pieces"]}
        assert len(kept) == 3 * len(list(model.parameters()))
        assert all(torch.equal(kept[key], expected[key].cpu()) for key in expected)
        assert all(tensor.is_pinned() for tensor in kept.values())
        staged.release()
    finally:
        dist.destroy_process_group()


def test_bf16_trains_the_table_on_the_gpu(table, tmp_path):
    """It learns, and a resume of what is finished to more epochs goes on."""
    env = environment(tmp_path / "home", f"sqlite:///{tmp_path}/mlflow.db")
    options = [*SMALL, "--data", str(table), "--target", "price", "--precision", "bf16"]
    done = launch(*options, "--device", "cuda", "--epochs", "4", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    run = only_run(env["MLFLOW_TRACKING_URI"])
    assert run.data.metrics["val_pearson"] > 0.5
    content = checkpoint(env["MLFLOW_TRACKING_URI"], run.info.run_id, tmp_path / "got")
    assert content["environment"]["device"] == torch.cuda.get_device_name()
    more = ["--resume_run", run.info.run_id, "--epochs", "6"]
    done = launch(*more, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
