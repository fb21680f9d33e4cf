"""What a run on several ranks costs: against bare DDP under the same launcher, side by side.

    onward launch --nproc 2 benchmarks/ranks.py --steps 300 --rounds 5

Loops take turns, so that a busy machine disturbs all of them alike. Printed by rank 0: the seconds
of a step (median of the rounds) bare and through `run.batches`, what the agreement alone takes, and
what a commit takes.
"""

import argparse
import statistics
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import onward


def make(width):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1)
    )
    net = DistributedDataParallel(model, find_unused_parameters=True)
    return net, torch.optim.AdamW(net.parameters(), lr=1e-3)


def step(net, optimizer, batch, weight=1.0):
    optimizer.zero_grad()
    (net(batch).square().mean() * weight).backward()
    optimizer.step()


def bare(data, batch_size, args):
    """Return the seconds of a step of a plain loop over this rank's half of each batch."""
    net, optimizer = make(args.width)
    loader = DataLoader(data, batch_size=batch_size // dist.get_world_size())
    rows = iter(loader)
    dist.barrier()
    started = time.perf_counter()
    for _number in range(args.steps):
        step(net, optimizer, next(rows)[0])
    dist.barrier()
    return (time.perf_counter() - started) / args.steps


def tracked(data, batch_size, args):
    """Return the same through `run.batches`, and the seconds of an agreement and of a commit."""
    net, optimizer = make(args.width)
    loader = DataLoader(data, batch_size=batch_size)
    state = {"model": net, "optimizer": optimizer}
    with onward.open_run(state, log_model=False) as run:
        for _epoch in run.epochs(range(1)):
            dist.barrier()
            started = time.perf_counter()
            for (batch,) in run.batches(loader):
                step(net, optimizer, batch, run.batch_weight)
            dist.barrier()
            seconds = (time.perf_counter() - started) / args.steps
        started = time.perf_counter()
        for _number in range(args.steps):
            run.world.agree([0.0] * 5)
        agreement = (time.perf_counter() - started) / args.steps
        committed = time.perf_counter()
    return seconds, agreement, time.perf_counter() - committed


def main():
    """Measure, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=1024)
    args = parser.parse_args()
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    batch_size = 64 * dist.get_world_size()
    data = TensorDataset(torch.randn(args.steps * batch_size, 64))
    found = [
        (bare(data, batch_size, args), *tracked(data, batch_size, args))
        for _round in range(args.rounds)
    ]
    if dist.get_rank() == 0:
        medians = [statistics.median(column) for column in zip(*found, strict=True)]
        plain, seconds, agreement, end = medians
        print(f"ranks      {dist.get_world_size()}")
        print(f"bare       {plain * 1e3:.3f} ms a step")
        print(f"tracked    {seconds * 1e3:.3f} ms a step, {seconds / plain:.3f} of bare")
        print(f"agreement  {agreement * 1e3:.3f} ms")
        print(f"the end    {end:.2f} s, with the last commit")


if __name__ == "__main__":
    main()
