"""The constants that docs/scale.md multiplies: what a byte, a file, a request and a rank cost here.

    python benchmarks/scale.py

Each is measured alone, some times, and the median is told. Put them, or those of your own machines,
into `CONSTANTS` of tools/scale.py, and run that: it writes the tables anew.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the server of the tests: a real one

from support import Server  # noqa: E402

import onward  # noqa: E402
from onward.attempts import heartbeat  # noqa: E402
from onward.checkpoint.format import write_checkpoint  # noqa: E402
from onward.checkpoint.manifest import FileEntry, Manifest  # noqa: E402
from onward.metrics import History, Point  # noqa: E402
from onward.run import rng  # noqa: E402
from onward.tracking.client import Tracking  # noqa: E402


def median_of(act, times):
    """Return the median of the seconds that calls take."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def disk(folder, num_bytes, rounds):
    """Return bytes per second of hashing, of writing a checkpoint, and of reading it."""
    weights = torch.randint(255, (num_bytes,), dtype=torch.uint8)
    content = {"epoch": 1, "step": 1, "epoch_step": 0, "model_state_dict": {"w": weights}}
    content |= {"history": {}, "rng": {}, "epoch_sums": {}, "epoch_seconds": 0.0, "config": {}}
    content |= {"data": {"fingerprint": "d" * 64}}

    def write():
        write_checkpoint(folder / "epoch_1", content, attempt=1, kept=True, metrics={})

    def read():
        for file in (folder / "epoch_1").rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    hashlib.file_digest(opened, "sha256")

    view = memoryview(weights.numpy())
    times = {
        "hash": median_of(lambda: hashlib.sha256(view).digest(), rounds),
        "write": median_of(write, rounds),
        "read and hash": median_of(read, rounds),
    }
    return {f"{name}, bytes/s": num_bytes / seconds for name, seconds in times.items()}


def documents():
    """Return the bytes of what grows with files, points and ranks."""

    def manifest(number):
        files = [FileEntry(f"shard-{i:05}.pth/part-00000", 2**28, "a" * 64) for i in range(number)]
        made = Manifest(
            epoch=1, step=1, attempt=1, created="2026-01-01T00:00:00+00:00", kept=True,
            metrics={}, files=tuple(files),
        )  # fmt: skip
        return len(made.to_json())

    def saved(number):
        history = History(Point("loss", i, 1_700_000_000_000 + i, i / 7) for i in range(number))
        file = Path("history.pth")
        torch.save({"history": history.state_dict()}, file)
        return file.stat().st_size

    file = Path("rng.pth")
    torch.save(rng.capture(), file)
    return {
        "manifest, bytes": manifest(0),
        "manifest, bytes a file": (manifest(1000) - manifest(0)) / 1000,
        "history, bytes a value": (saved(11_000) - saved(1_000)) / 10_000,
        "random state, bytes a rank": file.stat().st_size,
    }


def requests_of(address, commits):
    """Return how long requests take, and how many a commit and a heartbeat are."""
    import requests

    os.environ["MLFLOW_TRACKING_URI"] = address
    tracking = Tracking()
    record = tracking.create_run("0", "a run", {})
    points = [Point(f"m{i}", 1, 1_700_000_000_000, 0.5) for i in range(100)]
    steps = iter(range(10_000))

    def log():
        tracking.log_points(record.run_id, [p._replace(step=next(steps)) for p in points])

    found = {
        "tags, seconds a request": median_of(
            lambda: tracking.set_tags(record.run_id, {"a": "b"}), 40
        ),
        "100 metrics, seconds a request": median_of(log, 40),
        "run read, seconds a request": median_of(lambda: tracking.get_run(record.run_id), 40),
    }
    sent = Counter()
    send = requests.Session.send

    def counted(session, request, **options):
        sent["artifacts" if "mlflow-artifacts" in request.path_url else "tracking"] += 1
        return send(session, request, **options)

    requests.Session.send = counted
    numbers = []
    model = torch.nn.Linear(2, 1)
    heartbeat.BEAT_SECONDS = 1e6  # one, at the start
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1)}
    options = {"checkpoint_minutes": 0, "checkpoint_freq": 10**6, "upload": "sync"}
    with onward.open_run(state, checkpoint_steps=1, **options) as run:
        for _step in run.steps(range(commits)):
            state["optimizer"].step()
            run.log(loss=0.5)
            numbers.append(dict(sent))
    requests.Session.send = send
    for kind in ("tracking", "artifacts"):
        more = [after[kind] - before[kind] for before, after in pairwise(numbers[2:])]
        found[f"{kind}, requests a commit"] = statistics.median(more)
    return found


def gather(rank, world, port, times, queue):
    """Gather every rank's random state at rank 0, over gloo."""
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    mine = torch.zeros(16_000, dtype=torch.uint8)
    all_of_them = [torch.empty_like(mine) for _ in range(world)] if rank == 0 else None
    seconds = median_of(lambda: dist.gather(mine, all_of_them), times)
    if rank == 0:
        queue.put(seconds)
    dist.barrier()
    dist.destroy_process_group()


def gathers(worlds, times=100):
    """Return the seconds that a gather of the random states takes, by number of ranks."""
    import torch.multiprocessing as multiprocessing
    from test_readme import free_port

    found = {}
    for world in worlds:
        queue = multiprocessing.get_context("spawn").SimpleQueue()
        multiprocessing.spawn(gather, (world, free_port(), times, queue), world)
        found[f"gather of {world} random states, seconds"] = queue.get()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=int, default=1_000_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--commits", type=int, default=12)
    parser.add_argument("--worlds", type=int, nargs="*", default=[2, 4, 8])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TRAIN_HOME"] = str(folder / "home")
        os.chdir(folder)
        found = disk(folder, args.bytes, args.rounds) | documents() | gathers(args.worlds)
        server = Server(folder / "server")
        server.start()
        try:
            found |= requests_of(server.address, args.commits)
        finally:
            server.stop()
        os.chdir(ROOT)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
