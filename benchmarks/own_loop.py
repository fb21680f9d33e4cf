"""What `onward` costs a loop of one's own, per step and per logged metric, against the bare loop.

    python benchmarks/own_loop.py

The loops take turns, with an optimizer step on a tiny model in each, so that what is told is the
difference alone: CPU time of the training thread, which a busy machine does not disturb. Nothing is
saved meanwhile.
"""

import argparse
import os
import statistics
import tempfile
import time

import torch
from torch.utils.data import DataLoader, TensorDataset

import onward

BATCH = 8


def make():
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    return {"model": model, "optimizer": optimizer}


def step(state, batch):
    state["optimizer"].zero_grad()
    state["model"](batch).mean().backward()
    state["optimizer"].step()


def bare(data, log_every):
    """Return the seconds of an epoch."""
    state, loader = make(), DataLoader(data, batch_size=BATCH)
    started = time.thread_time()
    for (batch,) in loader:
        step(state, batch)
    return time.thread_time() - started


def by_epochs(data, log_every):
    """Return the seconds of an epoch through `run.batches`."""
    state, loader = make(), DataLoader(data, batch_size=BATCH)
    with onward.open_run(state, checkpoint_minutes=0, log_model=False) as run:
        for _epoch in run.epochs(range(1)):
            started = time.thread_time()
            for (batch,) in run.batches(loader):
                step(state, batch)
            seconds = time.thread_time() - started
    return seconds


def by_steps(data, log_every):
    """Return the seconds of as many steps through `run.steps`, with a metric now and then."""
    state, loader = make(), iter(DataLoader(data, batch_size=BATCH))
    number = len(data) // BATCH
    with onward.open_run(state, checkpoint_minutes=0, log_model=False) as run:
        started = time.thread_time()
        for i in run.steps(range(number)):
            step(state, next(loader)[0])
            if log_every and i % log_every == 0:
                run.log(loss=0.5)
            if i == number - 1:
                seconds = time.thread_time() - started
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = TensorDataset(torch.randn(args.steps * BATCH, 4))
    ways = {
        "bare": (bare, 0), "run.batches": (by_epochs, 0), "run.steps": (by_steps, 0),
        "run.steps, run.log at each": (by_steps, 1),
    }  # fmt: skip
    seconds = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRAIN_HOME"] = f"{folder}/home"
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        os.chdir(folder)
        for _round in range(args.rounds):
            for name, (loop, log_every) in ways.items():
                seconds[name].append(loop(data, log_every))
    least = statistics.median(seconds["bare"])
    for name, found in seconds.items():
        more = (statistics.median(found) - least) / args.steps
        print(f"{name:28}  {statistics.median(found):7.3f} s  {1e6 * more:+7.2f} us a step")


if __name__ == "__main__":
    main()
