"""Trains a loop for long, and notes after each epoch what the process holds.

    soaked.py samples.jsonl 4000 0.25

4,000 epochs, each at least 0.25 s long; at 0 nothing is noted. Each line of samples.jsonl tells of
one moment: seconds, process, epoch, bytes of memory, open files, threads, bytes on the spool's
disk, and calls to the server since the start.
"""

import http.client
import json
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader, TensorDataset

import onward
from onward.errors import StoreUnavailable

calls = 0


def count_calls() -> None:
    """Count what this process asks of servers, whatever library does it."""
    put = http.client.HTTPConnection.putrequest

    def counted(*args, **options):
        global calls
        calls += 1
        return put(*args, **options)

    http.client.HTTPConnection.putrequest = counted


def bytes_below(folder: Path) -> int:
    """Return the size of all files; they come and go meanwhile."""
    found = 0
    for where, _folders, names in os.walk(folder):
        for name in names:
            try:
                found += os.stat(os.path.join(where, name)).st_size
            except FileNotFoundError:
                continue
    return found


def sample(epoch: int) -> dict:
    """Return what this process holds now."""
    process = psutil.Process()
    return {
        "seconds": time.time(),
        "process": os.getpid(),
        "epoch": epoch,
        "memory": process.memory_full_info().uss,
        "files": process.num_fds(),
        "threads": process.num_threads(),
        "spool": bytes_below(Path(os.environ["TRAIN_HOME"])),
        "calls": calls,
    }


def main() -> None:
    """Train, the same loop however often it is begun."""
    file, epochs, pace = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    sys.argv[1:] = []  # where it is noted is no option of the training
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    count_calls()
    rows = torch.randn(256, 32)
    loader = DataLoader(TensorDataset(rows, rows.sum(1, True)), batch_size=64, shuffle=True)
    model = torch.nn.Sequential(
        torch.nn.Linear(32, 256), torch.nn.Dropout(0.1), torch.nn.ReLU(), torch.nn.Linear(256, 1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    state = {"model": model, "optimizer": optimizer}
    options = {"checkpoint_freq": 25, "checkpoint_minutes": 0, "log_model": False}
    try:
        run = onward.open_run(state, minimize="loss", resume_run="auto", **options)
    except StoreUnavailable as error:  # whoever starts it does so again
        print(error)
        sys.exit(error.exit_code)
    with run:
        for epoch in run.epochs(range(epochs)):
            ends, total = time.monotonic() + pace, 0.0
            for x, y in run.batches(loader):
                optimizer.zero_grad()
                loss = torch.nn.functional.mse_loss(model(x), y)
                loss.backward()
                optimizer.step()
                total += loss.item()
            run.log(loss=total / len(loader))
            if pace:
                with file.open("a") as out:
                    out.write(json.dumps(sample(epoch)) + "\n")
                time.sleep(max(0.0, ends - time.monotonic()))


if __name__ == "__main__":
    main()
