"""From a table on disk to arrays that can be trained on: ours, and pandas with scikit-learn.

    python benchmarks/preprocess.py                  300,000 rows of 19 columns, Parquet and CSV
    python benchmarks/preprocess.py --rounds 1 --rows 30000

A table of numbers, categories, dates and missing values is read, split, fitted on its training
rows and transformed. Ours also hashes the table, and keeps the arrays on disk, hashed and synced.
Each is a process of its own with one thread; the ways take turns; what is told begins after its
imports. The CPU seconds are those of the process, which other work on the machine disturbs less
than the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import processes

NAMES = ("ours", "one-hot", "ordinal")
RESULT = "result.json"
VALUES = 11  # columns of numbers, of which the first three have gaps
CATEGORIES = (3, 7, 25, 120, 800)  # distinct values of each
DATES = 2  # the second has gaps
PARTS = ("year", "month", "day", "weekday", "hour", "minute")


def write(path: Path, rows: int) -> None:
    """Write the table: 11 columns of numbers, 5 of categories, 2 of times, and the target."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    random = np.random.default_rng(0)
    columns = {}
    for i in range(VALUES):
        values = random.normal(size=rows) * 10**i if i < 8 else random.integers(0, 10**i, rows)
        gaps = random.random(rows) < 0.05 if i < 3 else None
        columns[f"x{i}"] = pa.array(values, mask=gaps)
    for i, number in enumerate(CATEGORIES):
        words = pa.array([f"value {j} of {number}" for j in range(number)])
        codes = np.minimum(random.geometric(3 / number, rows), number) - 1
        gaps = random.random(rows) < 0.05 if i % 2 else None
        columns[f"c{i}"] = words.take(pa.array(codes, mask=gaps))
    for i in range(DATES):
        seconds = random.integers(1_500_000_000, 1_700_000_000, rows)
        gaps = random.random(rows) < 0.05 if i else None
        columns[f"t{i}"] = pa.array(seconds, mask=gaps).cast(pa.timestamp("s"))
    columns["y"] = pa.array(np.exp(random.normal(size=rows)))
    table = pa.table(columns)
    writer = pyarrow.csv.write_csv if path.suffix == ".csv" else pyarrow.parquet.write_table
    writer(table, path)


def ours(path: Path) -> Callable[[], int]:
    """Prepare a table as `train run` does; return how many bytes the arrays have."""
    from train.tabular.data.provide import prepare_cached
    from train.tabular.options import Config

    def act() -> int:
        dataset = prepare_cached(Config(data=str(path), target="y"), path.parent / "home", None)
        return dataset.train.num_bytes + dataset.val.num_bytes

    return act


def with_sklearn(path: Path, encoder: str) -> Callable[[], int]:
    """Do the same with pandas and scikit-learn."""
    import numpy as np
    import pandas
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

    def act() -> int:
        times = [f"t{i}" for i in range(DATES)]
        if path.suffix == ".csv":
            table = pandas.read_csv(path, parse_dates=times)
        else:
            table = pandas.read_parquet(path)
        for name in times:
            for part in PARTS:
                table[f"{name}_{part}"] = getattr(table[name].dt, part)
        y = table["y"].to_numpy()
        words = [f"c{i}" for i in range(len(CATEGORIES))]
        table = table.drop(columns=["y", *times])
        numbers = [name for name in table.columns if name not in words]
        shared = {"min_frequency": 2, "max_categories": 1001, "dtype": np.float32}
        if encoder == "one-hot":
            codes = OneHotEncoder(handle_unknown="infrequent_if_exist", **shared)
        else:
            codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, **shared)
        scaled = make_pipeline(
            SimpleImputer(strategy="median", add_indicator=True), StandardScaler()
        )
        both = ColumnTransformer([("numbers", scaled, numbers), ("words", codes, words)])
        train, val, train_y, val_y = train_test_split(table, y, test_size=0.2, random_state=0)
        scale = StandardScaler().fit(np.log(train_y)[:, None])
        targets = [scale.transform(np.log(part)[:, None]) for part in (train_y, val_y)]
        arrays = [both.fit_transform(train), both.transform(val)]
        dense = [a.astype(np.float32) for a in arrays]
        return sum(getattr(a, "data", a).nbytes for a in dense) + sum(t.nbytes for t in targets)

    return act


def measure(name: str, path: Path) -> None:
    """Prepare the table in this process, and write down what it took."""
    act = ours(path) if name == "ours" else with_sklearn(path, name)
    before = sum(processes.memory_bytes(os.getpid()))
    started, cpu = time.perf_counter(), time.process_time()
    num_bytes = act()
    taken = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    taken |= {"before": before, "arrays": num_bytes}
    path.with_name(RESULT).write_text(json.dumps(taken))


def run(name: str, table: Path) -> dict[str, float]:
    """Measure one way in a process of its own, and its memory from outside."""
    with tempfile.TemporaryDirectory(dir=table.parent) as folder:
        path = Path(folder) / table.name
        os.link(table, path)
        env = processes.environment(Path(folder) / "home", "", ARROW_NUM_THREADS="1")
        words = [sys.executable, __file__, "--call", name, "--table", str(path)]
        ended = processes.run(words, Path(folder), env)
        found = json.loads(path.with_name(RESULT).read_text())
    found["memory"] = ended.peak_bytes - found.pop("before")
    return found


def main() -> None:
    """Measure each way in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--kinds", nargs="+", choices=("parquet", "csv"), default=["parquet", "csv"]
    )
    parser.add_argument("--call", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--table", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.call:
        measure(args.call, args.table)
        return
    print("| table | way | seconds | ratio | CPU (s) | ratio | peak memory (MB) | of its arrays |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for kind in args.kinds:
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / f"table.{kind}"
            write(table, args.rows)
            rounds = [{name: run(name, table) for name in NAMES} for _ in range(args.rounds)]
        for name in NAMES:
            print(in_words(kind, name, rounds))


def in_words(kind: str, name: str, rounds: list[dict[str, dict[str, float]]]) -> str:
    """Return a row of the table: medians, and medians of each round's ratio to ours."""

    def median(key: str) -> float:
        return statistics.median(r[name][key] for r in rounds)

    def ratio(key: str) -> float:
        return statistics.median(r[name][key] / r["ours"][key] for r in rounds)

    costs = " | ".join(f"{median(key):.2f} | {ratio(key):.2f}" for key in ("seconds", "cpu"))
    memory, arrays = median("memory") / 1e6, median("arrays") / 1e6
    return f"| {kind} | {name} | {costs} | {memory:.0f} | {memory / arrays:.2f} × {arrays:.0f} MB |"


if __name__ == "__main__":
    main()
