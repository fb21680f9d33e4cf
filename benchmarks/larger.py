"""A Parquet folder that is prepared and trained on in memory, from the page cache, and beyond.

    python benchmarks/larger.py                          3 million rows: two minutes
    python benchmarks/larger.py --rows 20000000 --limit 1G

The same model goes through the same rows: held in memory; mapped, so that they are read from the
page cache; and with --limit in a control group of so much memory, page cache included, which needs
root and control groups for memory: there it is prepared, and trained on in windows. Each is a
process of its own with one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import processes

FILE_ROWS = 1_000_000
BATCH, WINDOW = 2048, 1_000_000
GROUPS = (  # where control groups are, and what limits one
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
)


def write(folder: Path, rows: int) -> None:
    """Write 14 columns of numbers, 2 of categories, one of times, and the target."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet

    random = np.random.default_rng(0)
    words = pa.array([f"word {i}" for i in range(200)])
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        n = min(FILE_ROWS, rows - start)
        values = {f"x{i}": random.normal(size=n) for i in range(14)}
        y = sum(values[f"x{i}"] for i in range(5)) + 0.1 * random.normal(size=n)
        columns = {
            name: pa.array(v, mask=random.random(n) < 0.05 if name in ("x3", "x4") else None)
            for name, v in values.items()
        }
        columns |= {f"c{i}": words.take(pa.array(random.integers(0, 200, n))) for i in range(2)}
        columns["t"] = pa.array(random.integers(15 * 10**8, 17 * 10**8, n)).cast(pa.timestamp("s"))
        path = folder / f"{number:03}.parquet"
        pyarrow.parquet.write_table(pa.table({**columns, "y": y}), path, row_group_size=1 << 17)


def measure(folder: Path, way: str, window: int, steps: int) -> dict[str, float]:
    """Prepare the folder, or take what is prepared, and train for some steps."""
    import dataclasses

    import numpy as np
    import torch

    from onward.run.order import batches
    from train.tabular.data.provide import prepare_cached
    from train.tabular.options import Config
    from train.tabular.task import TabularTask

    torch.manual_seed(0)
    config = Config(data=str(folder), target="y", hidden_size=64, num_layers=1, dropout=0.0)
    began, cpu = time.perf_counter(), time.process_time()
    dataset = prepare_cached(config, folder.parent / "home", None)
    found = {"opened": time.perf_counter() - began, "opened_cpu": time.process_time() - cpu}
    if way == "memory":
        features = dataset.train.features
        held = type(features)(np.array(features.numeric), np.array(features.categorical))
        dataset = dataclasses.replace(
            dataset, train=dataclasses.replace(dataset.train, features=held)
        )
    task = TabularTask(dataset, config, "cpu")
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    done = 0
    for rows in batches(task.num_samples, BATCH, 0, 1, window=window):
        optimizer.zero_grad()
        task.loss(model, rows).backward()
        optimizer.step()
        done += 1
        if done == steps // 10:  # the first ones are not counted
            began, cpu = time.perf_counter(), time.process_time()
        if done == steps:
            break
    counted = (done - steps // 10) * BATCH
    taken = {"rows": counted / (time.perf_counter() - began)}
    taken["rows_cpu"] = counted / (time.process_time() - cpu)
    return found | taken | {"arrays": dataset.train.num_bytes + dataset.val.num_bytes}


def run(folder: Path, way: str, window: int, steps: int, group: Path | None = None) -> str:
    """Measure a way in a process of its own; return the row of the table."""
    env = processes.environment(folder.parent / "home", "")
    words = [sys.executable, __file__, "--call", way, str(folder), str(window), str(steps)]
    if group is not None:
        words = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *words]
    ended = processes.run(words, folder.parent, env)
    found = json.loads((folder.parent / "result.json").read_text())
    costs = f"{found['opened']:.1f} | {found['opened_cpu']:.1f} | {ended.peak_bytes / 1e6:.0f}"
    speed = f"{found['rows'] / 1e3:.0f} | {found['rows_cpu'] / 1e3:.0f}"
    return f"{costs} | {found['arrays'] / 1e6:.0f} | {speed} |"


@contextlib.contextmanager
def limited(limit: str) -> Iterator[Path]:
    """Make a control group of so much memory."""
    root, name = next((root, name) for root, name in GROUPS if (root / "cgroup.procs").exists())
    group = Path(tempfile.mkdtemp(prefix="larger-", dir=root))
    try:
        (group / name).write_text(limit)
        yield group
    finally:
        group.rmdir()


def forget(folder: Path) -> None:
    """Let the page cache forget the files of a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Measure each way, and print the table."""
    if sys.argv[1:2] == ["--call"]:
        way, folder, *numbers = sys.argv[2:]
        found = measure(Path(folder), way, *map(int, numbers))
        Path(folder).with_name("result.json").write_text(json.dumps(found))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", help="memory of the control group, such as 1G")
    parser.add_argument("--folder", type=Path, help="on which disk; default: that of TMPDIR")
    args = parser.parse_args()
    print(
        "| rows | s to open | its CPU | own memory (MB) | arrays (MB) | thousand rows/s | of CPU |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name) / "folder"
        folder.mkdir()
        write(folder, args.rows)
        if args.limit:
            with limited(args.limit) as group:
                forget(folder)
                row = run(folder, "mapped", WINDOW, args.steps, group)
                print(f"| in {args.limit}, prepared there, in windows | {row}", flush=True)
                forget(folder.parent)
                row = run(folder, "mapped", WINDOW, args.steps, group)
                print(f"| in {args.limit}, in windows | {row}", flush=True)
        else:
            print(f"| prepared, mapped | {run(folder, 'mapped', 0, args.steps)}", flush=True)
        for _ in range(args.rounds):
            for way, window in (("memory", 0), ("mapped", 0), ("mapped", WINDOW)):
                told = f"{way}{', in windows' if window else ''}"
                print(f"| {told} | {run(folder, way, window, args.steps)}", flush=True)


if __name__ == "__main__":
    main()
