"""What a run on several ranks pays; each command prints one table, in MarkDown.

    python benchmarks/ranks.py steps         a step under DDP, bare and tracked; the agreement
    python benchmarks/ranks.py commits       from a save to the visible checkpoint: 1, 2, 4 ranks
    python benchmarks/ranks.py strategies    a step of the built-in loop by `parts`, ddp, fsdp
    python benchmarks/ranks.py kill          from a rank's SIGKILL to the next step of the next life
    python benchmarks/ranks.py worlds        how far other numbers of ranks end from one

Ranks meet on loopback; the store is SQLite with local artifacts, made anew for each job. Ways that
are compared take turns, so that a busy machine disturbs all of them alike.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support import environment, write_table  # noqa: E402

LOOPS = Path(__file__).with_name("rank_loops.py")


class Machine:
    """A folder for jobs, with an empty store that each of them gets a copy of."""

    def __init__(self, folder):
        self.folder, self._number = folder, 0
        self._empty = folder / "empty.db"
        env = environment(folder, f"sqlite:///{self._empty}")
        made = "from onward.tracking.client import Tracking; Tracking().probe()"
        subprocess.run([sys.executable, "-c", made], env=env, cwd=folder, check=True)

    def run(self, *words, module=None):
        """Run Python on a file, or a module, to its end; return the store's address."""
        self._number += 1
        place = self.folder / str(self._number)
        place.mkdir()
        (place / "mlflow.db").write_bytes(self._empty.read_bytes())
        uri = f"sqlite:///{place}/mlflow.db"
        env = environment(place / "home", uri, TORCH_CPP_LOG_LEVEL="ERROR", OMP_NUM_THREADS="1")
        command = [sys.executable, *(["-W", "ignore", "-m", module] if module else []), *words]
        with (place / "output").open("wb") as output:
            done = subprocess.run(command, cwd=place, env=env, stdout=output, stderr=output)
        if done.returncode:
            sys.exit((place / "output").read_text()[-4000:])
        return uri

    def ranks(self, num_ranks, what, **options):
        """Run one of the loops on so many ranks; return what it found."""
        result = self.folder / f"{what}.json"
        words = [LOOPS, what, result, *(f"{k}={v}" for k, v in options.items())]
        if num_ranks == 1:
            self.run(*words)
        else:
            self.run("launch", "--nproc", str(num_ranks), *words, module="onward")
        return json.loads(result.read_text())


def table(*rows):
    """Print a table, whose first row is its head."""
    head, *body = [[str(cell) for cell in row] for row in rows]
    for row in (head, ["---"] * len(head), *body):
        print(f"| {' | '.join(row)} |")


def steps(machine, args):
    """Bare and tracked DDP, in turns inside one job."""
    found = machine.ranks(2, "steps", steps=args.steps, rounds=args.rounds, width=1024)
    ratio = found["tracked"] / found["bare"]
    table(
        ("what", "ms a step", "ratio"),
        ("bare DDP", f"{found['bare'] * 1e3:.2f}", "1.000"),
        ("`run.batches`", f"{found['tracked'] * 1e3:.2f}", f"{ratio:.3f}"),
        ("the agreement alone", f"{found['agreement'] * 1e3:.3f}", "-"),
        ("an `all_reduce` of one number", f"{found['all_reduce'] * 1e3:.3f}", "-"),
    )


def commits(machine, args):
    """One process, and 2 and 4 ranks of each layout."""
    ways = [(1, "one"), (2, "ddp"), (4, "ddp"), (2, "fsdp"), (4, "fsdp")]
    seconds = {way: [] for way in ways}
    for _round in range(args.rounds):
        for num_ranks, layout in ways:
            found = machine.ranks(num_ranks, "commits", layout=layout, width=4052, rounds=3)
            seconds[num_ranks, layout] += found["seconds"]
    size = f"{found['bytes'] / 1e6:.0f} MB"
    rows = [
        (num_ranks, layout, size, f"{statistics.median(all_):.2f}", f"{min(all_):.2f}")
        for (num_ranks, layout), all_ in seconds.items()
    ]
    table(("ranks", "layout", "state", "seconds to the commit, median", "least"), *rows)


STRATEGIES = {
    "one process": (1, ()),
    "`parts=4`, one process": (1, ("--strategy", "parts", "--parts", "4")),
    "`ddp`": (2, ("--strategy", "ddp")),
    "`parts=4`": (2, ("--strategy", "parts", "--parts", "4")),
    "`fsdp`": (2, ("--strategy", "fsdp")),
    "`ddp`, 4 accumulated": (2, ("--strategy", "ddp", "--accumulation_steps", "4")),
    "`fsdp`, 4 accumulated": (2, ("--strategy", "fsdp", "--accumulation_steps", "4")),
}


def strategies(machine, args):
    """The built-in loop on one table, its ways in turns."""
    from mlflow import MlflowClient

    data = write_table(machine.folder / "table.csv", 20_000)
    words = ["--data", data, "--target", "price", "--batch_size", "512", "--hidden_size", "512",
             "--epochs", "4", "--log_model", "false", "--threads", "1"]  # fmt: skip
    found = {name: [] for name in STRATEGIES}
    for _round in range(args.rounds):
        for name, (num_ranks, more) in STRATEGIES.items():
            launch = ["launch", "--nproc", str(num_ranks), "--"] if num_ranks > 1 else []
            uri = machine.run(*launch, "run", *words, *more, module="train")
            client = MlflowClient(uri)
            [run] = client.search_runs(["0"])
            [key] = [key for key in run.data.metrics if key.endswith("epoch_seconds")]
            history = client.get_metric_history(run.info.run_id, key)
            found[name] += [point.value for point in history[1:]]
    num_steps = 16_000 / 512
    table(
        ("way", "ranks", "ms a step"),
        *(
            (name, STRATEGIES[name][0], f"{statistics.median(seconds) / num_steps * 1e3:.1f}")
            for name, seconds in found.items()
        ),
    )


def kill(machine, args):
    """Kill rank 1; compare with two processes that import the same, and do nothing else."""
    rows = []
    for number in range(args.rounds):
        events = machine.folder / f"events-{number}"
        machine.ranks(2, "kill", events=events, steps=40)
        imports = max(_imports(machine.folder))
        told = [json.loads(line) for line in events.read_text().splitlines()]
        [killed] = [event["time"] for event in told if event["what"] == "killed"]
        own = [event for event in told if event["rank"] == 0]
        begun = max(number for number, event in enumerate(own) if event["what"] == "started")
        after = {"ended": own[begun - 1]["time"] - killed}
        for event in own[begun:]:
            after.setdefault(event["what"], event["time"] - killed)
        steps = ("ended", "started", "imported", "opened", "stepped")
        rows.append([*(after[step] for step in steps), imports])
    names = (
        *("the end of the other rank", "new processes", "their first imports", "the run opened"),
        *("the next optimizer step", "imports alone, of both at once"),
        "the next step, less imports",
    )
    columns = zip(*([*row, row[4] - row[5]] for row in rows), strict=True)
    medians = [f"{statistics.median(column):.2f}" for column in columns]
    table(("from the kill to", "seconds"), *zip(names, medians, strict=True))


def _imports(folder):
    """Return how long each of two processes takes that only import what a rank does."""
    results = [folder / f"imports-{rank}.json" for rank in range(2)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, LOOPS, "imports"]
    started = [subprocess.Popen([*command, result], env=env) for result in results]
    for process in started:
        process.wait()
    return [json.loads(result.read_text())["seconds"] for result in results]


def worlds(machine, args):
    """The same data and seed: the distance of weights and losses from those of one process."""
    ways = [(1, "one"), (2, "ddp"), (4, "ddp"), (2, "fsdp"), (4, "fsdp")]
    found = {
        way: machine.ranks(way[0], "worlds", layout=way[1], width=256, num_steps=args.steps)
        for way in ways
    }
    pairs = [(ways[1], ways[0]), (ways[2], ways[0]), (ways[2], ways[1]), (ways[3], ways[1]),
             (ways[4], ways[3])]  # fmt: skip
    rows = []
    for pair in pairs:
        weights, losses = [], []
        for way in pair:
            tensors = found[way]["weights"].values()
            weights.append(
                torch.cat([torch.tensor(t, dtype=torch.float64).ravel() for t in tensors])
            )
            losses.append(torch.tensor(found[way]["losses"], dtype=torch.float64))
        apart = weights[0] - weights[1]
        figures = (
            apart.abs().max() / weights[1].abs().max(),
            apart.norm() / weights[1].norm(),
            ((losses[0] - losses[1]).abs() / losses[1]).max(),
        )
        names = [f"{layout} {num}" if num > 1 else "one process" for num, layout in pair]
        rows.append((*names, *(f"{figure:.1e}" for figure in figures)))
    table(("ranks", "against", "weights, of the largest", "their norm", "loss of a step"), *rows)


def main():
    """Print one table."""
    shown = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shown)
    ways = {f.__name__: f for f in (steps, commits, strategies, kill, worlds)}
    parser.add_argument("what", choices=ways)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        ways[args.what](Machine(Path(folder)), args)


if __name__ == "__main__":
    main()
