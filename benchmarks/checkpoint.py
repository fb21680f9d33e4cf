"""What saving costs: ours against none, a process, inline saving, and torch's asynchronous saving.

    python benchmarks/checkpoint.py                    all ways, in turn, twice
    python benchmarks/checkpoint.py --store server     the same through an `mlflow server`

Trains a model of 100 million parameters with AdamW (1.2 GB of state) on random numbers, and
saves it four times. Each way is a process of its own; they take turns, so that a machine that
drifts drifts for all. Reported for each, medians over the rounds:

    train s     from the first step to the end of the last: background work slows it
    end s       what follows, until all is saved
    total s     both; `ratio` is to the first way's
    stall s     that training stood still for a checkpoint, median over the checkpoints
    peak GB     highest memory of the way's process and its children; see `processes.Ended`
    written     bytes given to disks by the same processes, in sizes of the state, a checkpoint
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import processes

TITLES = {
    "none": "no checkpoints",
    "ours": "this project, saving by threads",
    "process": "the same, saving by a process",
    "inline": "`torch.save` + `log_artifact`, inline",
    "dcp": "`torch.distributed.checkpoint.async_save`, local only",
}
WAYS = tuple(TITLES)
LAYERS, WIDTH, BATCH = 6, 4096, 16
NUM_CHECKPOINTS = 4
RESULT_FILE = "result.json"


def build(width: int):
    """Return the model, of LAYERS × width² weights, and its optimizer."""
    import torch

    model = torch.nn.Sequential(*(torch.nn.Linear(width, width, bias=False) for _ in range(LAYERS)))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)


def train(way: str, folder: Path, steps: int, threads: int, width: int) -> dict[str, float]:
    """Train and save in one way; return what it cost."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, optimizer = build(width)
    batch = torch.randn(BATCH, width)

    def step() -> None:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()

    step()  # makes the moments
    savers = {"none": Nothing, "ours": Ours, "process": Process, "inline": Inline, "dcp": Dcp}
    saver = savers[way](model, optimizer, folder)
    written = saver.bytes_written()
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
        "train_seconds": trained - started,
        "total_seconds": finished - started,
        "end_seconds": finished - trained,
        "stall_seconds": statistics.median(saver.stalls(stalls)),
        "written_per_state": (saver.bytes_written() - written) / NUM_CHECKPOINTS / state_bytes,
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
            "epoch_step": 0,
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
        }

    def save(self, number: int) -> float:
        return 0.0

    def stalls(self, measured: list[float]) -> list[float]:
        return measured

    def bytes_written(self) -> int:
        return bytes_written()

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


def open_pipeline(folder: Path):
    """Open this project's pipeline, to a new run."""
    from onward.attempts.attempt import Attempt
    from onward.checkpoint.pipeline import Pipeline
    from onward.checkpoint.policy import Retention
    from onward.checkpoint.spool import Spool
    from onward.checkpoint.store import CheckpointStore
    from onward.publish.publisher import Publisher
    from onward.tracking.client import Tracking

    tracking = Tracking()
    record = tracking.create_run("0", None, {})
    spool = Spool(folder / "spool", 1)
    store = CheckpointStore(tracking.artifacts(record), record.run_id)
    attempt = Attempt.first(tracking, record)
    pipeline = Pipeline(Publisher(attempt, store, spool, Retention()), spool)
    pipeline.open()
    spool.folder.mkdir()
    spool.log_file.touch()
    return pipeline


class Ours(Nothing):
    """This project's pipeline: staged, hashed, verified on load, committed into MLflow."""

    def __init__(self, model, optimizer, folder: Path) -> None:
        super().__init__(model, optimizer, folder)
        self.pipeline = self.open(folder)
        optimizer.register_step_pre_hook(self.hold)
        self.held: list[float] = []

    def open(self, folder: Path):
        return open_pipeline(folder)

    def hold(self, *_) -> None:
        started = time.perf_counter()
        self.pipeline.hold_update()
        self.held[-1:] = [h + time.perf_counter() - started for h in self.held[-1:]]

    def save(self, number: int) -> float:
        from onward.checkpoint.staging import changed_by_step

        started = time.perf_counter()
        self.pipeline.save(self.state(number), {}, True, changed_by_step(self.optimizer))
        self.held.append(0.0)
        return time.perf_counter() - started

    def stalls(self, measured: list[float]) -> list[float]:
        return [a + b for a, b in zip(measured, self.held, strict=True)]

    def close(self) -> None:
        assert self.pipeline.close(lambda: None, 600)


class Process(Ours):
    """The same, but all that follows the copy is done by the same code in a process of its own."""

    def open(self, folder: Path):
        return RemotePipeline(folder)

    def bytes_written(self) -> int:
        return super().bytes_written() + self.pipeline.worker_bytes


class RemotePipeline:
    """Stages into shared memory, and has a worker process do the rest.

    The worker starts here, and is ready before training begins. The tensors are sent once; from
    then on only what else has changed. It answers when the buffers are free, and at the start and
    at the end with the bytes that it has written.
    """

    def __init__(self, folder: Path) -> None:
        import torch.multiprocessing

        context = torch.multiprocessing.get_context("spawn")
        self.connection, worker_end = context.Pipe()
        self.worker = context.Process(target=work, args=(folder, worker_end), daemon=True)
        self.worker.start()
        worker_end.close()
        self.stager, self.staged = shared_stager(), None
        self.thread = ThreadPoolExecutor(1)
        self.handed_over: list = []
        self.has_tensors = False
        self.worker_bytes = self.connection.recv()

    def save(self, state, metrics, kept, may_wait) -> None:
        self.staged = self.stager.stage(state, may_wait)
        self.handed_over.append(self.thread.submit(self.hand_over, self.staged))

    def hand_over(self, staged) -> None:
        try:
            staged.wait()
            numbers = {k: v for k, v in staged.state.items() if isinstance(v, int)}
            self.connection.send(numbers if self.has_tensors else staged.state)
            self.has_tensors = True
            assert self.connection.recv() == "free"
        finally:
            staged.release()

    def hold_update(self) -> None:
        if self.staged is not None:
            self.staged.hold_update()
            self.staged = None

    def close(self, ending, drain_seconds: float) -> bool:
        for done in self.handed_over:
            done.result()
        self.connection.send(None)
        if not self.connection.poll(drain_seconds):
            return False
        self.worker_bytes = self.connection.recv()
        return True


def shared_stager():
    """Return a stager whose buffers lie in memory that can be shared with a process."""
    import torch

    from onward.checkpoint.staging import Stager

    class SharedStager(Stager):
        def _buffer(self, where: str, tensor: torch.Tensor) -> torch.Tensor:
            if where not in self._buffers:
                # `empty(...).share_memory_()` would make it twice, and touch it here and now.
                storage = torch.UntypedStorage._new_shared(tensor.numel() * tensor.element_size())
                empty = torch.empty(0, dtype=tensor.dtype)
                self._buffers[where] = empty.set_(storage, 0, tensor.shape)
            return self._buffers[where]

    return SharedStager()


def work(folder: Path, connection) -> None:
    """Write, hash, upload and commit what is staged elsewhere, until None comes."""
    from onward.checkpoint.staging import Staged

    def lend(state, may_wait) -> Staged:
        staged = Staged(lambda: connection.send("free"))
        staged.state = state
        staged._copied.set()
        return staged

    pipeline = open_pipeline(folder)
    pipeline._stager.stage = lend
    connection.send(bytes_written())
    state: dict = {}
    while (changes := connection.recv()) is not None:
        state = state | changes
        pipeline.save(state, {}, True)
    assert pipeline.close(lambda: None, 600)
    connection.send(bytes_written())


def run(way: str, store: str, *words: str) -> dict[str, float]:
    """Run one way in a process of its own, with a store of its own."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        uri = f"sqlite:///{folder}/mlflow.db"
        if store == "server":
            uri = stack.enter_context(processes.server())
        env = processes.environment(Path(folder) / "home", uri)
        command = [sys.executable, __file__, *words, "--way", way, "--folder", folder]
        ended = processes.run(command, Path(folder), env)
        found = json.loads((Path(folder) / RESULT_FILE).read_text())
    return found | {"whole_seconds": ended.seconds, "peak_bytes": ended.peak_bytes}


def main() -> None:
    """Run all ways in turn, and print a table of the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", choices=("local", "server"), default="local")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20, help="between two checkpoints")
    parser.add_argument("--threads", type=int, default=1, help="that training computes with")
    parser.add_argument("--ways", nargs="*", default=WAYS)
    parser.add_argument("--width", type=int, default=WIDTH, help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = {k: getattr(args, k) for k in ("steps", "threads", "width")}
    if args.way:
        folder = Path(args.folder)
        (folder / RESULT_FILE).write_text(json.dumps(train(args.way, folder, **sizes)))
        return
    print(in_markdown(in_turn(args.store, args.rounds, args.ways, **sizes)))


def in_turn(store: str, rounds: int, ways: Sequence[str], **sizes: int) -> dict[str, list[dict]]:
    """Return what each way cost in each round."""
    words = [word for k, v in sizes.items() for word in (f"--{k}", str(v))]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            found[way].append(run(way, store, *words))
            print(way, found[way][-1], file=sys.stderr)
    return found


def in_markdown(found: dict[str, list[dict[str, float]]]) -> str:
    """Return a table of the medians; ratios are those of a round, to its first way."""
    lines = [
        "| way | training (s) | ratio | until all is saved (s) | ratio | stall a checkpoint (s) | "
        "peak memory (GB) | bytes written, in states |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    base = next(iter(found.values()))
    for way, runs in found.items():
        m = {k: statistics.median(r[k] for r in runs) for k in runs[0]}
        ratios = {
            k: statistics.median(r[k] / b[k] for r, b in zip(runs, base, strict=True))
            for k in ("train_seconds", "total_seconds")
        }
        stall = f"{m['stall_seconds']:.3f}" if way != "none" else "-"
        lines.append(
            f"| {TITLES[way]} | {m['train_seconds']:.1f} | {ratios['train_seconds']:.2f} | "
            f"{m['total_seconds']:.1f} | {ratios['total_seconds']:.2f} | {stall} | "
            f"{m['peak_bytes'] / 1e9:.2f} | {m['written_per_state']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
