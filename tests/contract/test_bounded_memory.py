"""A table that does not fit into memory is prepared, and trained on."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from support import ROOT

pytestmark = pytest.mark.slow

PREPARED = """
import json, sys, threading, time
from pathlib import Path
import torch
from onward.run.order import batches
from train.tabular.data import scratch
from train.tabular.data.provide import prepare_cached
from train.tabular.options import Config
from train.tabular.task import TabularTask

def own_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

def watch():
    while True:
        peak[0] = max(peak[0], own_bytes())
        time.sleep(0.002)

scratch._IN_MEMORY_BYTES, scratch._PART_BYTES = 1 << 20, 1 << 22
torch.set_num_threads(1)
weight = torch.zeros(1, requires_grad=True)
weight.sum().backward()
torch.optim.SGD([weight]).step()  # which imports torch's compiler
config = Config(data="folder", target="y", hidden_size=8, num_layers=1, dropout=0.0)
before, peak = own_bytes(), [0]
threading.Thread(target=watch, daemon=True).start()
dataset = prepare_cached(config, Path("home"), None)
prepared, peak[0] = peak[0] - before, 0
task = TabularTask(dataset, config, "cpu")
model = task.build_model()
optimizer = torch.optim.SGD(model.parameters(), 0.01)
for rows in batches(task.num_samples, 4096, 0, 1):
    optimizer.zero_grad()
    task.loss(model, rows).backward()
    optimizer.step()
task.evaluate(model)
arrays = dataset.train.num_bytes + dataset.val.num_bytes
print(json.dumps({"arrays": arrays, "prepared": prepared, "trained": peak[0] - before}))
"""


def test_memory_is_bounded(tmp_path):
    """Of the arrays next to nothing is held: not while they are made, nor while they are used."""
    random = np.random.default_rng(0)
    folder = tmp_path / "folder"
    folder.mkdir()
    for i in range(5):
        columns = {f"x{j}": random.normal(size=100_000) for j in range(48)}
        table = pa.table({**columns, "y": sum(columns.values())})
        pyarrow.parquet.write_table(table, folder / f"{i}.parquet", row_group_size=50_000)
    child = subprocess.run(
        [sys.executable, "-c", PREPARED], cwd=tmp_path, check=True, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = json.loads(child.stdout)
    assert found["arrays"] == 500_000 * (48 * 4 + 8)
    assert found["prepared"] < 0.6 * found["arrays"], found
    assert found["trained"] < 0.6 * found["arrays"], found
