"""What a resume takes until its first new step, beside a fresh start and one pass over the bytes.

    python benchmarks/resume.py                     100 million weights with AdamW: 1.2 GB
    python benchmarks/resume.py --width 1024        a small one

A run of a loop of one's own saves one checkpoint to a folder of this disk. Then, in turns, each a
process of its own: the same loop begins a new run, which is what starting takes; and it goes on
with the run, by `resume_run`. Both are measured from the start of the process to the end of its
first step. After its step the first also reads, hashes and copies every byte of the checkpoint
once, to new memory, as many files at a time as a resume reads: there, since memory that a process
touches first can be dear. The files are in the page cache.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import processes
from checkpoint import BATCH, WIDTH, build

PIECE_BYTES = 1 << 20
STEPPED, PASSED, MADE = "stepped", "passed", "made"


def train(width: int, run_id: str | None, checkpoint: str | None) -> None:
    """Make a run of one epoch and end it; with a checkpoint make a step and stop dead."""
    import torch

    import onward

    model, optimizer = build(width)
    state = {"model": model, "optimizer": optimizer}
    options = {"resume_run": run_id} if run_id else {}
    with onward.open_run(state, minimize="loss", log_model=False, **options) as run:
        for _epoch in run.epochs(range(2 if checkpoint else 1)):
            optimizer.zero_grad()
            loss = model(torch.randn(BATCH, width)).square().mean()
            loss.backward()
            optimizer.step()
            Path(STEPPED).write_text(str(time.monotonic()))
            if checkpoint and not run_id:
                Path(PASSED).write_text(str(seconds_of_a_pass(Path(checkpoint))))
            if checkpoint:
                os._exit(0)
            run.log(loss=loss.item())
    Path(MADE).write_text(run.run_id)


def seconds_of_a_pass(folder: Path) -> float:
    """Return what it takes to read, hash and copy each byte of the files in a folder once."""

    def copy(file: Path) -> str:
        hashed, buffer = hashlib.sha256(), bytearray(file.stat().st_size)
        view, place = memoryview(buffer), 0
        with file.open("rb") as source:
            while count := source.readinto(view[place : place + PIECE_BYTES]):
                hashed.update(view[place : place + count])
                place += count
        return hashed.hexdigest()

    started = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(copy, filter(Path.is_file, folder.rglob("*"))))
    return time.perf_counter() - started


def measure(folder: Path, width: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each round: of a fresh start, of a resume, and of a pass."""
    env = processes.environment(folder / "home", f"sqlite:///{folder}/mlflow.db")

    def run(*words: str) -> processes.Ended:
        return processes.run([sys.executable, __file__, "--width", str(width), *words], folder, env)

    def first_step(*words: str) -> float:
        ended = run("--child", "--checkpoint", str(stored), *words)
        return float((folder / STEPPED).read_text()) - ended.started

    run("--child")
    run_id = (folder / MADE).read_text()
    [stored] = folder.glob("mlruns/**/epoch_1")
    found: dict[str, list[float]] = {"fresh start": [], "resume": [], "pass": []}
    for _ in range(rounds):
        found["fresh start"].append(first_step())
        found["pass"].append(float((folder / PASSED).read_text()))
        found["resume"].append(first_step("--run_id", run_id))
        print({name: round(values[-1], 2) for name, values in found.items()}, file=sys.stderr)
    return found


def main() -> None:
    """Measure, and print a table of the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)
    parser.add_argument("--run_id", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        train(args.width, args.run_id, args.checkpoint)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), args.width, args.rounds)
    rows = zip(*found.values(), strict=True)
    more = statistics.median((resume - fresh) / once for fresh, resume, once in rows)
    print("| what | seconds |\n| --- | --- |")
    for name, values in found.items():
        print(f"| {name} | {statistics.median(values):.2f} |")
    print(f"| resume beyond a fresh start, in passes | {more:.2f} |")


if __name__ == "__main__":
    main()
