"""Tell in two minutes whether something became slower: ratios of today against recorded ones.

    python benchmarks/quick.py            fails where one is more than 10 % above ratios.json
    python benchmarks/quick.py --record   write ratios.json anew

Each ratio is a median of pairs that were measured one right after the other, so that a machine that
is slower is so for both. CPU time is judged always. Wall-clock time is judged by the pairs in which
the bare loop had its core to itself: where other work had a part of it, the clock tells of that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import processes
from bench import COMMANDS, Bench, tell
from workload import Workload

RECORDED = processes.BENCHMARKS / "ratios.json"
LIMIT = 1.10
QUIET = 1.1  # the clock's seconds to those of the CPU, of a loop that nothing disturbs
TRAINING = {"train_run": "training phase of `train run`", "open_run": "training phase of open_run"}
STEP = "a step of the loop / bare loop, CPU"


def slower(found: Mapping[str, float], recorded: Mapping[str, float]) -> list[str]:
    """Return a sentence for each ratio that is more than 10 % above the recorded one."""
    return [
        f"{name}: {found[name]:.3f}, recorded is {before:.3f}: "
        f"{100 * (found[name] / before - 1):.0f} % more"
        for name, before in recorded.items()
        if name in found and found[name] > LIMIT * before
    ]


def measure(rounds: int, workload: Workload) -> dict[str, float]:
    """Return each ratio, by what it is of; without those that a busy machine made worthless."""
    found: dict[str, list[float]] = {}

    def note(name: str, seconds: float, base: float) -> None:
        found.setdefault(name, []).append(seconds / base)
        tell(f"{name:56} {seconds:6.2f} s against {base:5.2f} s: {seconds / base:.3f}")

    with tempfile.TemporaryDirectory() as folder, processes.server() as address:
        bench = Bench(Path(folder), address, workload)
        for _ in range(rounds):
            bare = bench.train("bare")
            for way, name in TRAINING.items():
                own = bench.train(way)
                note(f"{name} / bare loop, CPU", own.cpu, bare.cpu)
                if bare.training < QUIET * bare.cpu:
                    note(f"{name} / bare loop, clock", own.training, bare.training)
            imported = bench.command(COMMANDS["`import mlflow`"]).cpu_seconds
            for name in ("the help of `train`", "`onward list`"):
                took = bench.command(COMMANDS[name]).cpu_seconds
                note(f"{name} / import mlflow, CPU", took, imported)
    ratios = {name: statistics.median(values) for name, values in found.items()}
    return ratios | {STEP: step_ratio()}


def step_ratio() -> float:
    """Return what steps.py finds, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        code = "import sys, steps, pathlib, json; found = steps.ratios(12, 50_000, pathlib.Path())"
        code += "; json.dump(found, open('ratios.json', 'w'))"
        env = processes.environment(Path(folder), "")
        processes.run([sys.executable, "-c", code], Path(folder), env)
        return statistics.median(json.loads((Path(folder) / "ratios.json").read_text()))


def main() -> None:
    """Measure, and compare or record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rows", type=int, default=Workload.rows)
    parser.add_argument("--record", action="store_true", help="write ratios.json anew")
    args = parser.parse_args()
    found = measure(args.rounds, Workload(epochs=args.epochs, rows=args.rows))
    if args.record:
        rounded = {name: round(ratio, 3) for name, ratio in found.items()}
        RECORDED.write_text(json.dumps(rounded, indent=1) + "\n")
        missing = [n for n in TRAINING.values() if f"{n} / bare loop, clock" not in found]
        if missing:
            sys.exit(f"Too busy a machine to record the clock of: {', '.join(missing)}")
        return
    recorded = json.loads(RECORDED.read_text())
    for name in {**recorded, **found}:
        today = f"{found[name]:.3f}" if name in found else "not judged, the machine is busy"
        before = f"{recorded[name]:.3f}" if name in recorded else "nothing: run with --record"
        print(f"{name}: {today}, recorded is {before}")
    worse = slower(found, recorded)
    if worse:
        sys.exit("Slower than recorded:\n" + "\n".join(worse))


if __name__ == "__main__":
    main()
