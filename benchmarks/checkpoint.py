"""What saving costs: ours against none, inline saving, and torch's own asynchronous saving.

    python benchmarks/checkpoint.py                    all ways, in turn, twice
    python benchmarks/checkpoint.py --store server     the same through an `mlflow server`

Trains a model of 100 million parameters with AdamW (1.2 GB of state) on random numbers, and
saves it four times. Each way is a process of its own; they take turns, so that a machine that
drifts drifts for all. Reported for each: the whole time of training and what follows, the time
that training stood still for a checkpoint, the peak memory, and the bytes written to disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = ("none", "ours", "inline", "dcp")
LAYERS, WIDTH, BATCH = 6, 4096, 16
NUM_CHECKPOINTS = 4


def train(way: str, folder: Path, steps: int, threads: int) -> dict[str, float]:
    """Train and save in one way; return what it cost."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    batch = torch.randn(BATCH, WIDTH)

    def step() -> None:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()

    step()  # makes the moments
    saver = {"none": Nothing, "ours": Ours, "inline": Inline, "dcp": Dcp}[way]
    saver = saver(model, optimizer, folder)
    written = bytes_written()
    started = time.perf_counter()
    stalls = []
    for number in range(1, NUM_CHECKPOINTS + 1):
        for _ in range(steps):
            step()
        stalls.append(saver.save(number))
    for _ in range(steps):
        step()
    trained = time.perf_counter()
    saver.close()
    finished = time.perf_counter()
    state_bytes = 3 * sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "total_seconds": finished - started,
        "end_seconds": finished - trained,
        "stall_seconds": statistics.median(saver.stalls(stalls)),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "written_per_state": (bytes_written() - written) / NUM_CHECKPOINTS / state_bytes,
        "state_bytes": state_bytes,
    }


def bytes_written() -> int:
    """Return what this process has given the kernel to write to disks."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["write_bytes"])


class Nothing:
    """No checkpoints at all."""

    def __init__(self, model, optimizer, folder: Path) -> None:
        self.model, self.optimizer, self.folder = model, optimizer, folder

    def state(self, number: int) -> dict:
        return {
            "epoch": number,
            "step": number,
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
        }

    def save(self, number: int) -> float:
        return 0.0

    def stalls(self, measured: list[float]) -> list[float]:
        return measured

    def close(self) -> None:
        pass


class Inline(Nothing):
    """`torch.save`, then `log_artifact`, while training waits."""

    def __init__(self, model, optimizer, folder: Path) -> None:
        super().__init__(model, optimizer, folder)
        import mlflow

        self.mlflow = mlflow
        mlflow.start_run()

    def save(self, number: int) -> float:
        import torch

        started = time.perf_counter()
        path = self.folder / f"checkpoint_{number}.pth"
        torch.save(self.state(number), path)
        self.mlflow.log_artifact(str(path), f"checkpoints/epoch_{number}")
        path.unlink()
        return time.perf_counter() - started


class Dcp(Nothing):
    """`torch.distributed.checkpoint.async_save`, to local disk only."""

    def __init__(self, model, optimizer, folder: Path) -> None:
        super().__init__(model, optimizer, folder)
        import torch.distributed as dist

        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        self.future = None

    def save(self, number: int) -> float:
        import torch.distributed.checkpoint as dcp

        started = time.perf_counter()
        if self.future is not None:
            self.future.result()
        path = self.folder / f"dcp_{number}"
        self.future = dcp.async_save(self.state(number), checkpoint_id=str(path))
        return time.perf_counter() - started

    def close(self) -> None:
        self.future.result()


class Ours(Nothing):
    """This project's pipeline: staged, hashed, verified on load, committed into MLflow."""

    def __init__(self, model, optimizer, folder: Path) -> None:
        super().__init__(model, optimizer, folder)
        from train.checkpoint.pipeline import Pipeline
        from train.checkpoint.policy import Retention
        from train.checkpoint.publisher import Publisher
        from train.checkpoint.spool import Spool
        from train.checkpoint.store import CheckpointStore
        from train.tracking import Tracking

        tracking = Tracking()
        record = tracking.create_run("0", None, {})
        spool = Spool(folder / "spool", 1)
        store = CheckpointStore(tracking.artifacts(record), record.run_id)
        self.pipeline = Pipeline(Publisher(tracking, store, spool, Retention()), spool)
        self.pipeline.open()
        spool.folder.mkdir()
        spool.log_file.touch()
        optimizer.register_step_pre_hook(self.hold)
        self.held: list[float] = []

    def hold(self, *_) -> None:
        started = time.perf_counter()
        self.pipeline.hold_update()
        self.held[-1:] = [h + time.perf_counter() - started for h in self.held[-1:]]

    def save(self, number: int) -> float:
        from train.checkpoint.staging import changed_by_step

        started = time.perf_counter()
        self.pipeline.save(self.state(number), {}, True, changed_by_step(self.optimizer))
        self.held.append(0.0)
        return time.perf_counter() - started

    def stalls(self, measured: list[float]) -> list[float]:
        return [a + b for a, b in zip(measured, self.held, strict=True)]

    def close(self) -> None:
        assert self.pipeline.close(lambda: None, 600)


def run(way: str, store: str, steps: int, threads: int) -> dict[str, float]:
    """Run one way in a process of its own, with a store of its own."""
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        server = None
        if store == "server":
            from tests.support import Server  # a real one, on 127.0.0.1

            server = Server(Path(folder) / "server")
            server.start()
            env["MLFLOW_TRACKING_URI"] = server.address
        try:
            words = [sys.executable, __file__, "--way", way, "--folder", folder]
            words += ["--steps", str(steps), "--threads", str(threads)]
            done = subprocess.run(
                words, cwd=folder, env=env, stdout=subprocess.PIPE, text=True, check=True
            )
            return json.loads(done.stdout.splitlines()[-1])
        finally:
            if server is not None:
                server.stop()


def main() -> None:
    """Run all ways in turn, and print a table of the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", choices=("local", "server"), default="local")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20, help="between two checkpoints")
    parser.add_argument("--threads", type=int, default=1, help="that training computes with")
    parser.add_argument("--ways", nargs="*", default=WAYS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(train(args.way, Path(args.folder), args.steps, args.threads)))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways}
    for _ in range(args.rounds):
        for way in args.ways:
            found[way].append(run(way, args.store, args.steps, args.threads))
            print(way, found[way][-1], file=sys.stderr)
    print(f"{os.cpu_count()} cores, {args.threads} threads, {args.steps} steps between saves")
    headings = ("way", "total s", "ratio", "stall s", "end s", "peak GB", "written")
    print("{:8} {:>8} {:>6} {:>8} {:>7} {:>8} {:>8}".format(*headings))
    base = statistics.median(r["total_seconds"] for r in found[args.ways[0]])
    for way, runs in found.items():
        m = {k: statistics.median(r[k] for r in runs) for k in runs[0]}
        print(
            f"{way:8} {m['total_seconds']:8.2f} {m['total_seconds'] / base:6.2f} "
            f"{m['stall_seconds']:8.3f} {m['end_seconds']:7.2f} {m['peak_bytes'] / 1e9:8.2f} "
            f"{m['written_per_state']:8.2f}"
        )


if __name__ == "__main__":
    main()
