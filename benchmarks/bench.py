"""Train one workload in each way, in turns; write tables and plot of docs/benchmarks.md.

    python benchmarks/bench.py --rounds 5
    python benchmarks/bench.py --rounds 2 --ways bare train_run by_hand --no_write
    python benchmarks/bench.py --tables local server --rounds 2

Each way is a process of its own, which ways/ has a file for. All are told the same address of one
`mlflow server` on this machine, and take turns, so that a machine that drifts drifts for all. That
they train the same is checked by their final losses, and by what the server then has of them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import math
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import checkpoint
import marks
import processes
from processes import ROOT
from workload import Workload

PAGE = ROOT / "docs" / "benchmarks.md"
PLOT = ROOT / "docs" / "images" / "benchmarks.png"
TOLERANCE = 1e-6  # relative: Lightning's and MLflow's loggers keep floats of 32 bits


class Way(NamedTuple):
    """One way to train: what the table says of it, and the package and metric that it has."""

    title: str
    package: str = ""
    metric: str = "val_loss"  # on the server; empty: it tracks nothing


WAYS = {
    "bare": Way("bare loop: nothing logged, nothing saved", metric=""),
    "open_run": Way("the bare loop through `onward.open_run`"),
    "train_run": Way("`train run`, with its model and figures at the end"),
    "by_hand": Way("by hand: `log_metrics`, `torch.save`, `log_artifact`"),
    "lightning_logger": Way('Lightning, `MLFlowLogger(log_model="all")`', "lightning"),
    "lightning_callback": Way("Lightning, `MlflowModelCheckpointCallback`", "lightning"),
    "transformers_callback": Way(
        "Transformers, `MLflowCallback` with artifacts", "transformers", "eval_val_loss"
    ),
    "dcp": Way("bare loop, `dcp.async_save` to local disk", metric=""),
}
NOT_THERE = {
    "Composer": "mosaicml 0.32.1 asks for torch < 2.7.1: it does not install beside torch 2.13"
}
COMMANDS = {
    "`import torch`": ["-c", "import torch"],
    "`import mlflow`": ["-c", "import mlflow"],
    "the help of `train`": ["-m", "train", "--help"],
    "`onward list`": ["-m", "onward", "list"],
}


class Measured(NamedTuple):
    """What one process cost, in seconds and bytes, and its final loss on the validation rows."""

    start: float  # from the start of the process to the first step
    training: float  # from there to the end of the last step
    cpu: float  # of the process, in that phase
    end: float  # from there to the end of the process
    whole: float
    peak_bytes: int
    val_loss: float


class Bench:
    """The workload on disk, and the server.

    Args:
        folder: Where all of it may lie.
        address: The server's.
        workload: Its sizes.
    """

    def __init__(self, folder: Path, address: str, workload: Workload) -> None:
        self.folder, self.address, self.workload = folder, address, workload
        self._number = 0
        workload.write(folder, folder / "home")

    def train(self, name: str) -> Measured:
        """Train in one way, in a process of its own.

        Raises:
            RuntimeError: It failed, or the server has not what it should have of it.
        """
        folder, experiment = self._folder(), f"{name}-{self._number}"
        more = {"MLFLOW_EXPERIMENT_NAME": experiment, marks.FOLDER_VARIABLE: str(folder)}
        env = processes.environment(self.folder / "home", self.address, **more)
        drive = str(processes.BENCHMARKS / "drive.py")
        ended = processes.run([sys.executable, drive, name, str(self.folder)], folder, env)
        steps, told = marks.read(folder)
        tracked = self._tracked(experiment, WAYS[name].metric) if WAYS[name].metric else None
        return Measured(
            steps.first - ended.started,
            steps.last - steps.first,
            steps.cpu_seconds,
            ended.ended - steps.last,
            ended.seconds,
            ended.peak_bytes,
            told.get("val_loss", tracked),
        )

    def command(self, words: list[str]) -> processes.Ended:
        """Run a command of Python."""
        env = processes.environment(self.folder / "home", self.address)
        return processes.run([sys.executable, *words], self._folder(), env)

    def _folder(self) -> Path:
        self._number += 1
        folder = self.folder / str(self._number)
        folder.mkdir()
        return folder

    def _tracked(self, experiment: str, metric: str) -> float:
        from mlflow import MlflowClient

        client = MlflowClient(self.address)
        found = client.get_experiment_by_name(experiment)
        runs = client.search_runs([found.experiment_id]) if found else []
        histories = [client.get_metric_history(run.info.run_id, metric) for run in runs]
        points = max(histories, key=len, default=[])
        if len(points) != self.workload.epochs:
            raise RuntimeError(f"{experiment}: the server has {len(points)} values of {metric}")
        return max(points, key=lambda point: point.step).value


def in_turn(bench: Bench, names: list[str], rounds: int) -> dict[str, list[Measured]]:
    """Return what each way cost in each round.

    Raises:
        RuntimeError: They did not train the same.
    """
    found: dict[str, list[Measured]] = {name: [] for name in names}
    for number in range(1, rounds + 1):
        for name in names:
            found[name].append(bench.train(name))
            tell(f"round {number}  {name:22} {found[name][-1]}")
    require_same(found)
    return found


def require_same(found: dict[str, list[Measured]]) -> None:
    """Refuse to compare ways whose final losses differ."""
    losses = {name: runs[0].val_loss for name, runs in found.items()}
    first = next(iter(losses.values()))
    different = {k: v for k, v in losses.items() if not math.isclose(v, first, rel_tol=TOLERANCE)}
    if different:
        raise RuntimeError(f"not the same training: val_loss {first}, but {different}")


def ratio(runs: list[Measured], base: list[Measured], field: str) -> float:
    """Return the median of the rounds' ratios."""
    pairs = zip(runs, base, strict=True)
    return statistics.median(getattr(run, field) / getattr(other, field) for run, other in pairs)


def in_markdown(found: dict[str, list[Measured]], missing: dict[str, str]) -> str:
    """Return the table of medians."""
    lines = [
        "| way | start to first step (s) | training (s) | ratio | its CPU (s) | ratio | last step "
        "to exit (s) | whole process (s) | ratio | peak memory (MB) | loss |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    base = next(iter(found.values()))
    for name, runs in found.items():
        m = Measured(*map(statistics.median, zip(*runs, strict=True)))
        same = "same bits" if m.val_loss == base[0].val_loss else "same in 32 bits"
        lines.append(
            f"| {WAYS[name].title} | {m.start:.1f} | {m.training:.2f} | "
            f"{ratio(runs, base, 'training'):.2f} | {m.cpu:.2f} | {ratio(runs, base, 'cpu'):.2f} | "
            f"{m.end:.1f} | {m.whole:.1f} | "
            f"{ratio(runs, base, 'whole'):.2f} | {m.peak_bytes / 1e6:.0f} | {same} |"
        )
    lines += [f"| {name} | not measured: {why} |" + " |" * 9 for name, why in missing.items()]
    return "\n".join(lines)


def commands_in_markdown(bench: Bench, rounds: int) -> str:
    """Return the table of what commands and imports take."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, words in COMMANDS.items():
            seconds[name].append(bench.command(words).seconds)
    lines = ["| process | whole (s) |", "| --- | --- |"]
    lines += [f"| {name} | {statistics.median(found):.2f} |" for name, found in seconds.items()]
    return "\n".join(lines)


def draw(found: dict[str, list[Measured]], path: Path) -> None:
    """Draw each way's phases, one after the other."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.45 * len(found) + 1.2))
    names = list(reversed(found))
    left = [0.0] * len(names)
    phases = {"start": "#b8b8b8", "training": "#3f6fb5", "end": "#e0a040"}
    labels = ("start to first step", "training", "last step to exit")
    for (phase, color), label in zip(phases.items(), labels, strict=True):
        width = [statistics.median(getattr(run, phase) for run in found[name]) for name in names]
        axes.barh([WAYS[n].title.replace("`", "") for n in names], width, 0.6, left, color=color,
                  label=label)  # fmt: skip
        left = [a + b for a, b in zip(left, width, strict=True)]
    axes.set_xlabel("seconds")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100, metadata={"Software": None})


def machine(rounds: int) -> str:
    """Return in a line where, when and with what was measured."""
    packages = ("torch", "mlflow", "lightning", "transformers")
    versions = [f"{p} {importlib.metadata.version(p)}" for p in packages if is_there(p)]
    busy = os.getloadavg()[2] / (os.cpu_count() or 1)
    state = f"busy with other work too (load {busy:.1f} a core)" if busy > 0.7 else "quiet"
    return (
        f"{time.strftime('%d %B %Y')}, {os.cpu_count()} cores, {state}; Python "
        f"{platform.python_version()}, {', '.join(versions)}; medians over {rounds} rounds."
    )


def is_there(package: str) -> bool:
    """Tell whether a package is installed."""
    return not package or importlib.util.find_spec(package) is not None


def put(page: str, name: str, made: str) -> str:
    """Return the page with a table made anew."""
    between = rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)"
    return re.sub(between, lambda _: f"\n{made}\n\n", page, flags=re.DOTALL)


def tell(text: str) -> None:
    """Say how it goes, beside the tables."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure, print the tables, and write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="+", choices=("ways", "commands", "local", "server"),
                        default=["ways", "commands"])  # fmt: skip
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=Workload.epochs)
    parser.add_argument("--rows", type=int, default=Workload.rows)
    parser.add_argument("--steps", type=int, default=12, help="between saves, of local and server")
    parser.add_argument("--no_write", action="store_true", help="leave the page as it is")
    args = parser.parse_args()
    made = {}
    names = [name for name in args.ways if is_there(WAYS[name].package)]
    missing = {WAYS[n].title: "not installed" for n in args.ways if n not in names} | NOT_THERE
    with tempfile.TemporaryDirectory() as folder, processes.server() as address:
        bench = Bench(Path(folder), address, Workload(epochs=args.epochs, rows=args.rows))
        if "ways" in args.tables:
            found = in_turn(bench, names, args.rounds)
            made["ways"] = in_markdown(found, missing)
            if not args.no_write:
                draw(found, PLOT)
        if "commands" in args.tables:
            made["commands"] = commands_in_markdown(bench, args.rounds)
    for store in {"local", "server"} & set(args.tables):
        large = checkpoint.in_turn(
            store, args.rounds, checkpoint.WAYS, steps=args.steps, threads=1, width=checkpoint.WIDTH
        )
        made[store] = checkpoint.in_markdown(large)
    page = PAGE.read_text()
    for name, table in made.items():
        told = f"{machine(args.rounds)}\n\n{table}"
        print(f"\n{name}: {told}")
        page = put(page, name, told)
    if not args.no_write:
        PAGE.write_text(page)


if __name__ == "__main__":
    main()
