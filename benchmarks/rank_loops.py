"""What the ranks of benchmarks/ranks.py run; rank 0 writes what came of it as JSON.

onward launch --nproc 2 benchmarks/rank_loops.py steps result.json steps=100 rounds=4
"""

import atexit
import importlib
import json
import os
import signal
import statistics
import sys
import time
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import onward

RANK, SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))

# What a life imports as it needs it.
LATE = (
    *(
        "torch._dynamo",
        "mlflow.store.tracking.sqlalchemy_store",
        "alembic.command",
        "rich.progress",
    ),
    *("onward.opening.together", "onward.script.open", "pygments.lexers.python"),
)


def make(width, layout):
    """Return an MLP of three layers as a layout has it, "one", "ddp" or "fsdp"; and AdamW."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1)
    )
    if layout == "fsdp":
        fully_shard(model)
    elif layout == "ddp":
        model = DistributedDataParallel(model, find_unused_parameters=True)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def step(net, optimizer, batch, weight=1.0):
    """Make an optimizer step; return the loss."""
    optimizer.zero_grad()
    loss = (net(batch) - batch.sum(1, keepdim=True)).square().mean()
    (loss * weight).backward()
    optimizer.step()
    return loss.detach()


def bare(rows, num_steps, width):
    """Return the seconds of a step of a plain loop over this rank's part of each batch."""
    net, optimizer = make(width, "ddp")
    batches = iter(DataLoader(TensorDataset(rows), batch_size=64))
    dist.barrier()
    started = time.perf_counter()
    for _number in range(num_steps):
        step(net, optimizer, next(batches)[0])
    dist.barrier()
    return (time.perf_counter() - started) / num_steps


def tracked(rows, num_steps, width):
    """Return the same through `run.batches`, and the seconds of an agreement."""
    net, optimizer = make(width, "ddp")
    loader = DataLoader(TensorDataset(rows), batch_size=64 * SIZE)
    state = {"model": net, "optimizer": optimizer}
    with onward.open_run(state, log_model=False, upload="sync") as run:
        for _epoch in run.epochs(range(1)):
            dist.barrier()
            started = time.perf_counter()
            for (batch,) in run.batches(loader):
                step(net, optimizer, batch, run.batch_weight)
            dist.barrier()
            seconds = (time.perf_counter() - started) / num_steps
        started = time.perf_counter()
        for _number in range(num_steps):
            run.world.agree([0.0] * 5)
        agreement = (time.perf_counter() - started) / num_steps
        started = time.perf_counter()
        for _number in range(num_steps):
            dist.all_reduce(torch.zeros(1))
        reduction = (time.perf_counter() - started) / num_steps
    return seconds, agreement, reduction


def steps(steps, rounds, width):
    """Take turns of both; return the median of each figure, in seconds."""
    rows = torch.randn(steps * 64 * SIZE, 64)
    found = [(bare(rows, steps, width), *tracked(rows, steps, width)) for _round in range(rounds)]
    names = ("bare", "tracked", "agreement", "all_reduce")
    return dict(zip(names, map(statistics.median, zip(*found, strict=True)), strict=True))


def commits(layout, width, rounds):
    """Return the seconds from a save to the checkpoint that is visible, for each save."""
    net, optimizer = make(width, layout)
    seconds, state = [], {"model": net, "optimizer": optimizer}
    with onward.open_run(state, log_model=False, upload="sync", keep_last=1) as run:
        saved = 0.0
        for epoch in run.epochs(range(rounds + 1)):
            if epoch:
                seconds.append(time.perf_counter() - saved)
            step(net, optimizer, torch.randn(8, 64))
            run.log(loss=float(epoch))
            saved = time.perf_counter()
    weights = sum(p.numel() for p in net.parameters())
    return {"seconds": seconds, "bytes": 12 * weights}


def worlds(layout, width, num_steps):
    """Train on the same rows whatever the number of ranks; return the losses, save the weights."""
    net, optimizer = make(width, layout)
    torch.manual_seed(1)
    loader = DataLoader(TensorDataset(torch.randn(64 * num_steps, 64)), batch_size=64, shuffle=True)
    losses = []
    with onward.open_run({"model": net, "optimizer": optimizer}, log_model=False) as run:
        for _epoch in run.epochs(range(1)):
            for (batch,) in run.batches(loader):
                loss = step(net, optimizer, batch, run.batch_weight)
                losses.append(run.world.sum([float(loss) * run.batch_weight / SIZE])[0])
    state = getattr(net, "module", net).state_dict()
    return {"losses": losses, "weights": {k: full(v).tolist() for k, v in state.items()}}


def full(tensor):
    """Return a tensor that is whole on each rank."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def kill(events, steps):
    """Let rank 1 die in its first life; note when what happens, from then to the next step."""

    def note(what, when):
        with open(events, "a") as file:
            file.write(json.dumps({"what": what, "time": when, "rank": RANK}) + "\n")

    atexit.register(lambda: note("ended", time.time()))
    note("started", psutil.Process().create_time())
    note("imported", time.time())
    net, optimizer = make(64, "ddp")
    note("grouped", time.time())
    loader = DataLoader(TensorDataset(torch.randn(8 * steps, 64)), batch_size=8)
    state = {"model": net, "optimizer": optimizer}
    with onward.open_run(state, log_model=False, checkpoint_steps=5, upload="sync") as run:
        note("opened", time.time())
        for _epoch in run.epochs(range(2)):
            for (batch,) in run.batches(loader):
                step(net, optimizer, batch, run.batch_weight)
                if run.step <= steps:
                    note("stepped", time.time())
                if (RANK, run.attempt.number, run.step) == (1, 1, steps // 2):
                    note("killed", time.time())
                    os.kill(os.getpid(), signal.SIGKILL)


def imports():
    """Import what rank 0 does on its way to a step; return the seconds since the process began."""
    for name in LATE:
        importlib.import_module(name)
    return {"seconds": time.time() - psutil.Process().create_time()}


def main(what, result, *words):
    """Do it with the options that follow, such as steps=100."""
    given = dict(word.split("=", 1) for word in words)
    options = {k: int(v) if v.isdecimal() else v for k, v in given.items()}
    torch.set_num_threads(1)
    if SIZE > 1:
        dist.init_process_group("gloo")
    found = {f.__name__: f for f in (steps, commits, worlds, kill, imports)}[what](**options)
    if RANK == 0:
        Path(result).write_text(json.dumps(found))
    if SIZE > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
