"""A loop of one's own on any number of ranks, which does to itself what it is told to.

    ranked.py [RANK:STEP:WHAT:LIFE ...]

Variables: FSDP, WORKERS, EPOCHS, STEPS, ROWS, PLAIN, SEEDED.

In the attempt LIFE rank RANK does WHAT after its so-many-th step of it: a signal that it sends
itself, such as KILL, or its launcher, such as TERM@agent; or ERROR. What ONWARD_ variables say goes
to the run. A process that goes on with one has other random numbers at first, unless SEEDED.
"""

import os
import random
import signal
import sys

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

import onward


class Rows(Dataset):
    """Rows that are noisy anew each time they are read."""

    def __init__(self, number, noise):
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(number, 6, generator=generator)
        self.y, self._noise = self.x.sum(1, keepdim=True), noise

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        noise = self._noise * torch.randn(6) if self._noise else 0.0
        return self.x[index] + noise, self.y[index]


def do(what):
    """Do it to this process, or to its launcher."""
    name, _at, target = what.partition("@")
    if name == "ERROR":
        raise ValueError("a fault of its own")
    os.kill(os.getppid() if target == "agent" else os.getpid(), getattr(signal, f"SIG{name}"))


def is_first():
    """Tell whether this process begins the run."""
    lives = os.environ.get("_ONWARD_LIVES")
    is_anew = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    return not (is_anew or "ONWARD_RESUME_RUN" in os.environ or (lives and os.path.exists(lives)))


def main(plan):
    """Train, and do what is planned."""
    torch.set_num_threads(1)
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    torch.manual_seed(0)
    is_plain = "PLAIN" in os.environ  # nothing that a rank has of its own
    of_ranks = [] if is_plain else [nn.BatchNorm1d(33), nn.Dropout(0.2)]
    model = nn.Sequential(nn.Linear(6, 33), *of_ranks, nn.GELU(), nn.Linear(33, 1))
    is_seeded = is_first() or "SEEDED" in os.environ
    number = 100 + rank if is_seeded else int.from_bytes(os.urandom(4), "little")
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(number)
    net = model
    if size > 1:
        dist.init_process_group("gloo")
        if "FSDP" in os.environ:
            fully_shard(model)
        else:
            net = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    workers = int(os.environ.get("WORKERS", 0))
    rows = Rows(int(os.environ.get("ROWS", 146)), 0.0 if is_plain else 0.1)
    loader = DataLoader(rows, batch_size=14, shuffle=True, num_workers=workers)
    num_done = 0

    def evaluate():
        net.eval()
        with torch.no_grad():
            loss = nn.functional.mse_loss(net(rows.x), rows.y)
        net.train()
        return loss

    def train_on(x, y):
        nonlocal num_done
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(x), y)
        (loss * run.batch_weight).backward()
        optimizer.step()
        run.mean("train_loss").add(loss, len(x))
        num_done += 1

    def do_what_is_planned():
        for planned in plan:
            who, step, what, life = planned.split(":")
            if (int(who), int(step), int(life)) == (rank, num_done, run.attempt.number):
                do(what)

    state = {"model": net, "optimizer": optimizer}
    with onward.open_run(state, minimize="val_loss", checkpoint_steps=2) as run:
        if "STEPS" in os.environ:
            batches = iter(run.batches(loader, repeat=True))
            for number in run.steps(range(int(os.environ["STEPS"]))):
                train_on(*next(batches))
                if number % 5 == 4:
                    run.log(val_loss=evaluate())
                do_what_is_planned()
            return
        for _epoch in run.epochs(range(int(os.environ.get("EPOCHS", 4)))):
            for x, y in run.batches(loader):
                train_on(x, y)
                do_what_is_planned()
            run.log(train_loss=run.mean("train_loss").value, val_loss=evaluate())
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
