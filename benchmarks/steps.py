"""What the built-in loop costs a step with saving off, against the bare loop, in one process.

    python benchmarks/steps.py

A run is trained as ever, into a database in a folder of its own, but nothing is saved. After each
of its epochs the bare loop trains one: both in CPU time of the one thread that trains, which a busy
machine disturbs little. Evaluation is in neither.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from processes import ROOT
from workload import Workload


def ratios(epochs: int, rows: int, folder: Path) -> list[float]:
    """Return for each epoch but the first the loop's seconds, in those of the bare loop's.

    Changes this process for good: what saves and what evaluates is replaced.
    """
    sys.path.insert(0, str(ROOT))
    os.environ |= {
        "TRAIN_HOME": f"{folder}/home",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    os.chdir(folder)
    workload = Workload(epochs=epochs, rows=rows)
    workload.write(folder, folder / "home")

    from table import Table

    from onward.checkpoint.pipeline import Pipeline
    from train.cli import main
    from train.tabular.task import TabularTask

    table = Table(folder)
    model, optimizer = table.build()
    found: list[float] = []
    evaluate, began = TabularTask.evaluate, time.thread_time()

    def in_turn(task, trained):
        nonlocal began
        ours, began = time.thread_time() - began, time.thread_time()
        for batch in table.batches(len(found) + 1):
            table.step(model, optimizer, batch)
        found.append(ours / (time.thread_time() - began))
        metrics = evaluate(task, trained)
        began = time.thread_time()
        return metrics

    TabularTask.evaluate = in_turn
    Pipeline.save = lambda *_, **__: True
    words = [*workload.options(folder), "--log_model", "false", "--upload", "off"]
    main(["run", *words], standalone_mode=False)
    return found[1:]


def main() -> None:
    """Print the median, and how far the middle half of the epochs lies apart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rows", type=int, default=Workload.rows)
    args = parser.parse_args()
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        found = ratios(args.epochs, args.rows, Path(folder))
        os.chdir(here)
    low, middle, high = statistics.quantiles(found, n=4)
    print(f"a step of the loop: {middle:.3f} of the bare one's CPU time ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
