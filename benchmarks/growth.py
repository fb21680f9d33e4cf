"""How time and memory grow with rows, epochs, checkpoints, runs, weights and steps.

    python benchmarks/growth.py                     small sizes, a minute or two
    python benchmarks/growth.py --sizes full        those of docs/benchmarks.md: an hour, 12 GB
    python benchmarks/growth.py --what steps --sizes full

Each is trained by processes of their own, into a database in a folder of its own. What should grow
in proportion may do so, and what should stay may stay; where something grows faster is told.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import marks
import processes
from processes import ROOT
from workload import Workload

PLOT = ROOT / "docs" / "images" / "growth.png"
RECORDED = processes.BENCHMARKS / "growth.json"  # what is drawn: the newest of each at full sizes
MARGIN = 0.15  # of a power: 1.4 times more for a size ten times as large
RESULT = "points.json"
Points = list[tuple[int, float]]


class Growth(NamedTuple):
    """What grows: how it is measured, at which sizes, and with which power it may."""

    what: str
    cost: str
    measure: Callable[[Path, Sequence[int]], dict[str, Points]]
    small: tuple[int, ...]
    full: tuple[int, ...]
    power: int  # of its time: 0 stays, 1 grows in proportion


def bend(points: Points, power: float = 1.0) -> int | None:
    """Return the size at which a cost has grown faster than by that power of it; None: nowhere.

    A fixed part only makes it grow more slowly. Sizes are to lie at least three times apart.
    """
    for (size, cost), (larger, more) in itertools.pairwise(points):
        if math.log(more / cost) / math.log(larger / size) > power + MARGIN:
            return larger
    return None


def by_rows(folder: Path, sizes: Sequence[int]) -> dict[str, Points]:
    """Seconds of an epoch of `train run`, and peak memory, by the rows of the table."""
    seconds, memory = [], []
    for rows in sizes:
        own = folder / str(rows)
        own.mkdir()
        workload = Workload(
            rows=rows, columns=16, epochs=3, batch_size=2048, hidden_size=64, num_layers=1
        )
        workload.write(own, own / "home")
        ended = _train(own, workload, "--upload_data", "no")
        steps, _told = marks.read(own)
        seconds.append((rows, (steps.last - steps.first) / workload.epochs))
        memory.append((rows, ended.peak_bytes / 1e6))
    return {"seconds": seconds, "MB": memory}


def by_epochs(folder: Path, sizes: Sequence[int]) -> dict[str, Points]:
    """Seconds of an epoch, and bytes of a checkpoint, by the epochs before it."""
    return _by_history(folder, sizes, {"seconds": "epoch_seconds", "MB": "checkpoint_bytes"})


def by_checkpoints(folder: Path, sizes: Sequence[int]) -> dict[str, Points]:
    """Seconds of bringing a checkpoint to the store, by those that the run has there."""
    kept = ("--checkpoint_freq", "1", "--upload", "sync")
    return _by_history(folder, sizes, {"seconds": "checkpoint_upload_seconds"}, *kept)


def by_runs(folder: Path, sizes: Sequence[int]) -> dict[str, Points]:
    """Seconds of `onward list`, by the runs of the experiment."""
    env = processes.environment(folder / "home", f"sqlite:///{folder}/mlflow.db")
    seconds, done = [], 0
    for size in sizes:
        _child(folder, "make_runs", size - done)
        done = size
        words = [sys.executable, "-m", "onward", "list"]
        runs = [processes.run(words, folder, env).seconds for _ in range(3)]
        seconds.append((size, statistics.median(runs)))
    return {"seconds": seconds}


def by_weights(folder: Path, sizes: Sequence[int]) -> dict[str, Points]:
    """Seconds of a save that training waits for, and peak memory, by the number of weights."""
    seconds, memory = [], []
    for size in sizes:
        ended, found = _child(folder, "save_weights", size)
        seconds.append((size, found))
        memory.append((size, ended.peak_bytes / 1e6))
    return {"seconds": seconds, "MB": memory}


def by_steps(folder: Path, sizes: Sequence[int]) -> dict[str, Points]:
    """CPU seconds of a step of an own loop, a metric at each hundredth, by the steps before it."""
    _ended, found = _child(folder, "make_steps", *sizes)
    return found


def make_runs(folder: Path, number: int) -> None:
    """Train so many runs of one epoch."""
    import onward

    for _ in range(number):
        model, optimizer = _small_model(8)
        state = {"model": model, "optimizer": optimizer}
        with onward.open_run(state, minimize="loss", log_model=False) as run:
            for _epoch in run.epochs(range(1)):
                run.log(loss=1.0)


def save_weights(folder: Path, number: int) -> float:
    """Return the seconds of an epoch in which nothing is done but that it is saved."""
    import torch

    import onward

    torch.set_num_threads(1)
    model, optimizer = _small_model(number)
    model.weight.grad = torch.zeros_like(model.weight)
    state, seconds, saving = {"model": model, "optimizer": optimizer}, [], None
    options = {"upload": "sync", "checkpoint_freq": 1, "log_model": False}
    with onward.open_run(state, minimize="loss", **options) as run:
        for _epoch in run.epochs(range(4)):
            if saving is not None:
                seconds.append(time.monotonic() - saving)
            optimizer.step()
            run.log(loss=1.0)
            saving = time.monotonic()
    return statistics.median(seconds)


def make_steps(folder: Path, *sizes: int) -> dict[str, Points]:
    """Train to the largest size; at each, return the last tenth's CPU of a step, and memory."""
    import os

    import onward

    model, optimizer = _small_model(8)
    state = {"model": model, "optimizer": optimizer}
    size, begins = 0, {size * 9 // 10: size for size in sizes}
    seconds, memory = [], []
    with onward.open_run(state, minimize="loss", log_model=False) as run:
        for step in run.steps(range(max(sizes))):
            if step in begins:
                size, began = begins[step], time.thread_time()
            model.weight.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 100 == 0:
                run.log(loss=1.0)
            if step + 1 == size:
                took = (time.thread_time() - began) / (size - size * 9 // 10)
                seconds.append((size, took))
                memory.append((size, sum(processes.memory_bytes(os.getpid())) / 1e6))
    return {"seconds": seconds, "MB": memory}


GROWTHS = {
    "rows": Growth("rows of the table", "an epoch", by_rows, (3_000, 10_000, 30_000),
                   (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000), 1),
    "epochs": Growth("epochs done", "an epoch", by_epochs, (10, 50),
                     (10, 50, 200, 1_000, 5_000), 0),
    "checkpoints": Growth("checkpoints of the run", "a commit", by_checkpoints, (5, 25),
                          (5, 25, 100, 500, 2_000), 0),
    "runs": Growth("runs of the experiment", "`onward list`", by_runs, (1, 4),
                   (1, 10, 100, 1_000), 1),
    "weights": Growth("weights", "a save", by_weights, (100_000, 1_000_000),
                      (1_000_000, 10_000_000, 100_000_000, 300_000_000), 1),
    "steps": Growth("steps of an own loop", "a step", by_steps, (100, 1_000, 10_000),
                    (100, 1_000, 10_000, 100_000, 1_000_000), 0),
}  # fmt: skip


def _train(folder: Path, workload: Workload, *words: str) -> processes.Ended:
    uri, more = f"sqlite:///{folder}/mlflow.db", {marks.FOLDER_VARIABLE: str(folder)}
    env = processes.environment(folder / "home", uri, **more)
    code = "import marks, sys; marks.install(); from train.__main__ import console; console()"
    options = [*workload.options(folder), "--log_model", "false", *words]
    return processes.run([sys.executable, "-c", code, "run", *options], folder, env)


def _by_history(
    folder: Path, sizes: Sequence[int], metrics: dict[str, str], *words: str
) -> dict[str, Points]:
    """Return medians of wall-clock metrics of one long run, each over the last tenth of a size."""
    from mlflow import MlflowClient

    workload = Workload(rows=400, columns=4, epochs=max(sizes), hidden_size=8, num_layers=1)
    workload.write(folder, folder / "home")
    _train(folder, workload, *(words or ("--checkpoint_freq", str(max(sizes)))))
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs(["0"], "metrics.val_loss > -1")
    found = {}
    for name, metric in metrics.items():
        history = client.get_metric_history(run.info.run_id, f"system/{metric}")
        values = {point.step: point.value / (1e6 if name == "MB" else 1) for point in history}
        found[name] = [
            (size, statistics.median(v for s, v in values.items() if 0.9 * size <= s <= size))
            for size in sizes
        ]
    return found


def _child(folder: Path, name: str, *sizes: int) -> tuple[processes.Ended, object]:
    """Call a function of this file in a process of its own; return what it returned."""
    env = processes.environment(folder / "home", f"sqlite:///{folder}/mlflow.db")
    words = [sys.executable, __file__, "--call", name, *map(str, sizes)]
    ended = processes.run(words, folder, env)
    return ended, json.loads((folder / RESULT).read_text())


def _small_model(number: int):
    """Return a model with about so many weights, and an optimizer with two moments of each."""
    import torch

    model = torch.nn.Linear(number // 8, 8, bias=False)
    return model, torch.optim.AdamW(model.parameters(), fused=True)


def draw(found: dict[str, dict[str, Points]], path: Path) -> None:
    """Draw the time, and the memory, of each by its size."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(9, 5))
    for one, (name, series) in zip(axes.flat, found.items(), strict=False):
        growth = GROWTHS[name]
        one.loglog(*zip(*series["seconds"], strict=True), "o-", color="#3f6fb5", label="seconds")
        if "MB" in series:
            one.loglog(*zip(*series["MB"], strict=True), "s--", color="#e0a040", label="MB")
        one.set_title(f"{growth.cost.replace('`', '')}, by {growth.what}", fontsize=9)
        one.spines[["top", "right"]].set_visible(False)
        low, high = one.get_ylim()
        if high < 10 * low:  # a tenth more is to look like a tenth more
            middle = (low * high) ** 0.5
            one.set_ylim(middle / 10**0.5, middle * 10**0.5)
        one.tick_params(which="both", labelsize=7)
        one.legend(frameon=False, fontsize=7)
    for one in list(axes.flat)[len(found) :]:
        one.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=90, metadata={"Software": None})


def recorded() -> dict[str, dict[str, Points]]:
    """Return what was measured at full sizes, on whatever day."""
    return json.loads(RECORDED.read_text()) if RECORDED.exists() else {}


def in_words(name: str, series: dict[str, Points]) -> str:
    """Return a row of the table: costs at the least and the largest size, and where it bends."""
    growth, told = GROWTHS[name], []
    for unit, points in series.items():
        (small, cost), (large, more) = points[0], points[-1]
        power = growth.power if unit == "seconds" or name in ("rows", "weights") else 0
        at = bend(points, power)
        bent = f"bends upward at {at:,}" if at is not None else "no bend"
        told.append(f"{cost:.3g} to {more:.3g} {unit}: {bent}")
    return f"| {growth.what}, {small:,} to {large:,} | {growth.cost} | {'; '.join(told)} |"


def main() -> None:
    """Measure each, print the table, and draw it where the sizes are the full ones."""
    if sys.argv[1:2] == ["--call"]:
        found = globals()[sys.argv[2]](Path(), *map(int, sys.argv[3:]))
        Path(RESULT).write_text(json.dumps(found))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", nargs="+", choices=tuple(GROWTHS), default=list(GROWTHS))
    parser.add_argument("--sizes", choices=("small", "full"), default="small")
    parser.add_argument("--plot", type=Path, help="where to draw it")
    args = parser.parse_args()
    found = {}
    print("| what grows | cost of | from the least to the largest |\n| --- | --- | --- |")
    for name in args.what:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = GROWTHS[name].measure(Path(folder), getattr(GROWTHS[name], args.sizes))
        print(in_words(name, found[name]), flush=True)
    if args.plot:
        draw(found, args.plot)
    if args.sizes == "full":
        known = recorded() | found
        known = {name: known[name] for name in GROWTHS if name in known}
        RECORDED.write_text(json.dumps(known) + "\n")
        draw(known, PLOT)


if __name__ == "__main__":
    main()
