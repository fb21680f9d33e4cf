"""The benchmarks compare like with like, and their guard tells what became slower."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from support import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import bench
import growth
import quick
from table import EpochBatches, Table, ranks
from workload import Workload

from onward.run import rng
from onward.run.order import batches
from train.schedule import Schedule
from train.tabular.data.provide import prepare_cached
from train.tabular.options import Config
from train.tabular.task import TabularTask

NAME = "training phase / bare loop"


@pytest.fixture
def written(tmp_path, one_thread):
    """The folder of a small workload."""
    Workload(rows=500, columns=3, epochs=4, batch_size=64, hidden_size=8).write(
        tmp_path, tmp_path / "home"
    )
    return tmp_path


@pytest.mark.parametrize(("ratio", "is_told"), [(1.11, True), (1.09, False), (0.5, False)])
def test_a_ratio_that_is_11_percent_worse_is_told_with_both_numbers(ratio, is_told):
    """The guard is red beyond 10 %, and says which and by how much."""
    told = quick.slower({NAME: 1.2 * ratio, "another": 1.0}, {NAME: 1.2, "another": 1.0})
    expected = [f"{NAME}: 1.332, recorded is 1.200: 11 % more"]
    assert told == (expected if is_told else [])


def test_the_guard_measures_what_is_recorded(monkeypatch):
    """ratios.json has what `make bench-quick` judges: by the clock if it was recorded in quiet."""

    class Instant:
        def __init__(self, *_):
            pass

        def train(self, _way):
            return bench.Measured(1.0, 1.0, 1.0, 1.0, 3.0, 1, 0.5)

        def command(self, _words):
            return quick.processes.Ended(0.0, 1.0, 1.0, 1)

    monkeypatch.setattr(quick, "Bench", Instant)
    monkeypatch.setattr(quick, "step_ratio", lambda: 1.0)
    monkeypatch.setattr(quick.processes, "server", lambda: pytest.MonkeyPatch.context())
    found = quick.measure(2, Workload())
    assert set(found.values()) == {1.0}
    recorded = json.loads(quick.RECORDED.read_text()).keys()
    assert {name for name in found if name.endswith("CPU")} <= recorded <= found.keys()


def test_the_plain_loop_trains_as_the_table_task_does(written):
    """Weights, order, rates, losses and metrics are the same, so that times can be compared."""
    table = Table(written)
    config = Config(
        data=str(written / "table.npz"), target="y", target_scale="linear", dropout=0.0,
        num_layers=2, hidden_size=8, batch_size=64, epochs=4, schedule_epochs=4,
    )  # fmt: skip
    task = TabularTask(prepare_cached(config, written / "home", None), config, "cpu")
    model, optimizer = table.build()
    rng.seed_all(rng.derive_seed("weights", 0))
    own = task.build_model()
    assert [p.shape for p in own.parameters()] == [p.shape for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), model.parameters(), strict=True))
    for epoch in (1, 2):
        orders = zip(table.batches(epoch), batches(400, 64, 0, epoch), strict=True)
        assert all(torch.equal(a, b) for a, b in orders)
        table.set_lr(optimizer, epoch)
        assert optimizer.param_groups[0]["lr"] == Schedule(config, task.plateau).lr(epoch)
    table.step(model, optimizer, table.batches(1)[0])
    own.load_state_dict(model.state_dict())
    rows = table.batches(1)[1]
    assert torch.equal(task.loss(own, rows), model.loss(table.x[rows], table.y[rows]))
    assert task.evaluate(own) == pytest.approx(table.evaluate(model), rel=1e-12)


def test_a_loader_for_the_peers_has_the_same_batches(written):
    """Each pass is the next epoch."""
    table = Table(written)
    sampler = EpochBatches(table)
    for epoch in (1, 2):
        assert torch.equal(torch.cat(list(sampler)), torch.cat(table.batches(epoch)))


def test_equal_values_share_their_mean_rank():
    """As Spearman's correlation has it."""
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_other_losses_are_no_comparison():
    """Beyond what a float of 32 bits loses."""

    def measured(loss):
        return [bench.Measured(1.0, 1.0, 1.0, 1.0, 3.0, 1, loss)]

    bench.require_same({"bare": measured(0.5), "logged": measured(0.5 + 1e-8)})
    with pytest.raises(RuntimeError, match=r"not the same training.*'other': 0\.50001"):
        bench.require_same({"bare": measured(0.5), "other": measured(0.50001)})


def test_each_table_has_its_place_in_the_page():
    """Every table is written there by the command, and nothing else changes."""
    page = bench.PAGE.read_text()
    for name in ("ways", "commands", "local", "server"):
        assert "new" in bench.put(page, name, "new").split(f"<!-- {name} -->")[1].split("<!--")[0]
    assert bench.put(page, "no such table", "new") == page
    assert bench.PLOT.is_file()


def test_each_way_is_a_file_and_each_file_a_way():
    """What trains is found by its name; Lightning's two ways share their module."""
    files = {path.stem for path in (ROOT / "benchmarks" / "ways").glob("*.py")}
    assert files - {"lightning_net"} == set(bench.WAYS)


def test_the_script_for_a_gpu_is_one_that_bash_can_read():
    """It has not run where there is none; the files that it names are there."""
    script = ROOT / "benchmarks" / "gpu.sh"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    named = re.findall(r"\S+\.py\b", script.read_text())
    assert len(named) == 3
    assert all((ROOT / name).is_file() for name in named)


def test_the_picture_has_all_that_grows():
    """In the order of the page, each at the full sizes."""
    drawn = {name: [p[0] for p in series["seconds"]] for name, series in growth.recorded().items()}
    assert list(drawn.items()) == [(n, list(g.full)) for n, g in growth.GROWTHS.items()]


@pytest.mark.parametrize(
    ("points", "is_bent"),
    [
        ([(1, 5.0), (10, 5.0), (100, 5.1)], False),
        ([(1, 1.0), (10, 10.0), (100, 105.0)], False),
        ([(1, 3.0), (10, 12.0), (100, 140.0)], False),
        ([(1, 1.0), (10, 10.0), (100, 300.0)], True),
        ([(10, 1.0), (100, 100.0), (1000, 10000.0)], True),
    ],
)
def test_what_grows_faster_than_its_size_is_told(points, is_bent):
    """A fixed part and a linear one are as they should be; more than both is a bend."""
    assert (growth.bend(points) is not None) == is_bent
