"""Checkpoints of every format version that this program ever wrote can be gone on from.

`tests/data/format_N` holds one of each version N, written by the program of that time. For a new
version `python tests/test_versions.py` adds one, to be committed; an old one is never made again.

A version is written only where the one before cannot say it: today that is 3 for a run that chooses
its monitor, and 2 for all others.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from support import SMALL, cli, write_table
from test_state import leaves

from onward.checkpoint import listed
from onward.checkpoint.content import Content
from onward.checkpoint.format import load_checkpoint, write_checkpoint
from onward.checkpoint.hashed import verify
from onward.checkpoint.manifest import (
    CHECKPOINT_FILE,
    FORMAT_VERSION,
    MANIFEST_FILE,
    READABLE_VERSIONS,
    parse_manifest,
)
from onward.checkpoint.store import CheckpointStore
from onward.monitor import UNDECLARED, Monitor
from onward.opening.source import find_source
from onward.run.state import TrainState
from onward.tracking.artifacts import Artifacts
from onward.tracking.names import FINGERPRINT_TAG, MONITOR_TAG, OPTIONS_TAG, TASK_TAG
from train.kind import find_task
from train.schedule import Schedule
from train.script import read_checkpoint_file
from train.tabular.model import TabularMLP
from train.tabular.options import Config
from train.tabular.task import TabularTask

DATA = Path(__file__).parent / "data"
FOLDERS = {
    int(path.parent.name.removeprefix("format_")): path for path in DATA.glob("format_*/*_*")
}
# Of each: epochs, steps, steps of the epoch under way.
COUNTS = {1: (2, 6, 0), 2: (1, 5, 2), 3: (1, 4, 1)}
NEWEST = max(READABLE_VERSIONS)
MONITORS = dict.fromkeys(READABLE_VERSIONS, UNDECLARED) | {3: Monitor("val_rmse", "min")}

every_version = pytest.mark.parametrize("version", READABLE_VERSIONS)


@pytest.fixture
def stored(version, tmp_path):
    """Return a store that holds the checkpoint of that version, as it was written."""
    path = FOLDERS[version]
    shutil.copytree(path, tmp_path / "artifacts" / "checkpoints" / path.name)
    return CheckpointStore(Artifacts(str(tmp_path / "artifacts")), "r1")


def load(version):
    """Return (manifest, content) of the checkpoint of that version."""
    folder = FOLDERS[version]
    manifest = parse_manifest((folder / MANIFEST_FILE).read_bytes(), folder.name)
    return manifest, load_checkpoint(folder, manifest, folder.name)


def new_state(checkpoint):
    """Return the state of a model of the checkpoint's options, drawn from another seed."""
    config, weights = Config.from_dict(checkpoint["config"]), checkpoint["model_state_dict"]
    embeddings = [w for name, w in weights.items() if name.startswith("embeddings.")]
    width = weights["linear.weight"].shape[1]
    torch.manual_seed(99)
    model = TabularMLP(
        width - sum(w.shape[1] for w in embeddings),
        [len(w) for w in embeddings],
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        dropout=config.dropout,
        ridge=0.1,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, fused=True)
    schedule = Schedule(config, Monitor("val_loss", "min"))
    parts = {"model": model, "optimizer": optimizer, "scheduler": schedule}
    return TrainState(parts, Content.from_dict(checkpoint).monitor)


def written_as(version):
    """Return the version that a checkpoint read from a file of `version` is written as today."""
    return max(version, FORMAT_VERSION)


def test_there_is_a_checkpoint_of_every_version_that_can_be_read():
    """Whoever adds a version adds a checkpoint of it, and none is ever taken away."""
    assert sorted(FOLDERS) == sorted(READABLE_VERSIONS) == sorted(COUNTS)
    assert FORMAT_VERSION in READABLE_VERSIONS
    for version, folder in FOLDERS.items():
        written = json.loads((folder / MANIFEST_FILE).read_text())
        assert written["format_version"] == version
        saved = torch.load(folder / CHECKPOINT_FILE, weights_only=True)
        assert saved["format_version"] == version
        assert saved["environment"]["host"] == "somewhere"


@every_version
def test_it_is_read_verified_and_brought_up_to_date(version):
    """Whatever came later has its value for "nothing of that kind"."""
    manifest, content = load(version)
    verify(FOLDERS[version], manifest, manifest.name)
    assert (manifest.epoch, manifest.step, manifest.epoch_step) == COUNTS[version]
    assert content["format_version"] == written_as(version)
    assert (content["epoch"], content["step"], content["epoch_step"]) == COUNTS[version]
    sums = {name.removesuffix("/count") for name in content["epoch_sums"]}
    assert sums == ({"train_loss"} if manifest.epoch_step else set())
    assert (content["epoch_seconds"] > 0) == bool(manifest.epoch_step)
    assert manifest.to_dict()["format_version"] == written_as(version)
    assert manifest.monitor == Content.from_dict(content).monitor == MONITORS[version]
    assert Content.from_dict(content).format_version == written_as(version)


@pytest.mark.parametrize("version", [v for v in READABLE_VERSIONS if v >= FORMAT_VERSION])
def test_its_manifest_is_written_as_it_was(version):
    """Byte for byte, so that its digest, its links and its signature hold for every program."""
    assert load(version)[0].to_json() == (FOLDERS[version] / MANIFEST_FILE).read_bytes()


def test_a_run_that_chooses_nothing_new_is_one_of_version_2(tracking, tmp_path):
    """An older program goes on with it: it finds all that it asks for, and nothing it refuses."""
    table = write_table(tmp_path / "table.csv", num_rows=60)
    words = ("run", "--data", table, "--target", "price", "--epochs", "2", "--upload", "sync")
    # Said, the table's own monitor is no choice either.
    assert cli(*words, *SMALL, "--monitor", "val_pearson:max").exit_code == 0
    [run] = tracking.search_runs("0")
    assert MONITOR_TAG not in run.tags
    assert TASK_TAG not in run.tags
    folder = Path(run.artifact_uri) / "checkpoints"
    path = folder / "epoch_2"
    document = json.loads((path / MANIFEST_FILE).read_bytes())
    of_then = json.loads((FOLDERS[2] / MANIFEST_FILE).read_bytes())
    assert list(document) == [*of_then, "run_id", "previous"]
    assert document["format_version"] == 2
    saved, first = (
        torch.load(one / CHECKPOINT_FILE, weights_only=True) for one in (path, FOLDERS[2])
    )
    assert set(saved) == set(first)
    assert saved["format_version"] == 2
    assert {"task", "monitor"}.isdisjoint({*saved["config"], *saved["data"]})
    assert {"task", "monitor"}.isdisjoint(json.loads(run.tags[OPTIONS_TAG]))
    assert set(saved["data"]) == set(first["data"])
    assert saved["best_corr"] == max(saved["aucs"])
    index = json.loads((folder / "index.json").read_bytes())
    assert index["format_version"] == 2
    assert index["checkpoints"][-1] == document


@every_version
def test_all_of_it_is_restored(version):
    """Weights, moments, schedule, history, best and random numbers are those of the file."""
    _, content = load(version)
    state = new_state(content)
    state.restore(Content.from_dict(content))
    not_its_own = {"format_version", "config", "data", "environment", "timestamp"}
    captured = {k: v for k, v in state.capture().to_dict().items() if k not in not_its_own}
    assert leaves(captured) == leaves({key: content[key] for key in captured})
    extras = {"best_corr", "aucs", "train_losses", "val_losses"}  # made by the task, of the history
    assert set(content) == set(captured) | not_its_own | extras
    assert len(state.history.values("val_pearson")) == state.epoch
    values = state.history.values(state.monitor.name)
    assert state.best == (
        (min if state.monitor.direction == "min" else max)(values), state.best_epoch
    )  # fmt: skip
    model, optimizer = state.parts["model"], state.parts["optimizer"]
    loss = model(torch.randn(4, 3), torch.zeros(4, 1, dtype=torch.int64)).square().mean()
    loss.backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


@every_version
@pytest.mark.parametrize("is_indexed", [True, False])
def test_a_store_lists_it_and_gives_it_back(stored, version, tmp_path, is_indexed):
    """Also by an index that the program of that time wrote."""
    manifest, content = load(version)
    document = json.loads((FOLDERS[version] / MANIFEST_FILE).read_text())
    index = {"format_version": version, "checkpoints": [document]}
    if is_indexed:
        path = tmp_path / "artifacts" / "checkpoints" / "index.json"
        path.write_text(json.dumps(index))
    assert stored.list() == [manifest]
    assert leaves(stored.get(manifest).to_dict()) == leaves(content)
    assert stored.leftovers([]) == []


@every_version
def test_it_can_be_resumed_from(stored, version, tracking, record):
    """Its options are those of a config of today, with the defaults of what came later."""
    tracking.set_tags(record.run_id, {FINGERPRINT_TAG: "f"})
    source = find_source(tracking.get_run(record.run_id), stored, None, find_task())
    assert (source.manifest, source.is_newest) == (load(version)[0], True)
    assert source.options.batch_size == 16
    chosen = set() if MONITORS[version] == UNDECLARED else {"monitor"}
    assert source.options.to_dict().keys() == Config().to_dict().keys() | chosen
    assert source.epochs_begun == 2


@every_version
def test_the_plain_file_starts_a_run(version):
    """`resume_from` takes the file of any version."""
    path = FOLDERS[version] / CHECKPOINT_FILE
    config, content = read_checkpoint_file(path, {"epochs": 9}, Config)
    assert (config.epochs, config.batch_size) == (9, 16)
    assert leaves(content.to_dict()) == leaves(load(version)[1])


@pytest.mark.parametrize("version", [v for v, (*_, inside) in COUNTS.items() if inside])
def test_the_rest_of_an_epoch_is_trained_from_a_plain_file(version, tracking, tmp_path):
    """With the rows, the batches and the seed of the file; with others it is refused."""
    path = FOLDERS[version] / CHECKPOINT_FILE
    table = write_table(tmp_path / "table.csv", num_rows=60)
    words = ("run", "--resume_from", path, "--data", table, "--upload", "sync")
    refused = cli(*words, "--batch_size", "8")
    assert refused.exit_code == 2
    assert "lies inside epoch 2, and with another batch_size" in refused.stderr
    assert cli(*words).exit_code == 0
    [run] = tracking.search_runs("0")
    store = CheckpointStore(tracking.artifacts(run), run.run_id)
    newest = store.list()[-1]
    assert (newest.name, newest.step) == ("epoch_2", 6), "a step was made twice, or left out"
    assert newest.monitor == MONITORS[version]
    assert newest.format_version == written_as(version)


@every_version
def test_a_fork_of_it_is_of_the_version_that_it_needs(version, tmp_path):
    """What is written anew is written as today, in no newer version than it needs, and holds the
    same."""
    manifest, content = load(version)
    folder = tmp_path / manifest.name
    again = write_checkpoint(folder, content, attempt=1, kept=True, metrics={})
    assert again.name == manifest.name
    document = json.loads((folder / MANIFEST_FILE).read_text())
    assert document["format_version"] == written_as(version)
    assert again.monitor == manifest.monitor
    assert leaves(load_checkpoint(folder, again, "x")) == leaves(content)


def test_versions_can_lie_side_by_side_in_one_store(tmp_path):
    """A run that was begun by an older version goes on, and is listed as one."""
    checkpoints = tmp_path / "artifacts" / "checkpoints"
    for folder in FOLDERS.values():
        shutil.copytree(folder, checkpoints / folder.name)
    store = CheckpointStore(Artifacts(str(tmp_path / "artifacts")), "r1")
    in_order = sorted(COUNTS.values(), key=lambda counts: (counts[1], counts[0]))
    for _ in range(2):
        found = [(m.epoch, m.step, m.epoch_step) for m in store.list()]
        assert found == in_order
        store.write_index(listed.to_text(store.list()), tmp_path)


def write_of_today(folder: Path) -> None:
    """Write a small checkpoint of the newest version into `folder`, as a stop leaves it."""
    _epochs, step, _inside = COUNTS[NEWEST]
    calls, loss = [], TabularTask.loss

    def stopped(task, model, indices):
        calls.append(indices)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(task, model, indices)

    TabularTask.loss = stopped
    with tempfile.TemporaryDirectory() as work:
        os.environ |= {"TRAIN_HOME": f"{work}/home", "MLFLOW_TRACKING_URI": f"sqlite:///{work}/db"}
        os.chdir(work)
        write_table(Path("table.csv"), num_rows=60)
        options = {"data": "table.csv", "target": "price", "epochs": 2, "batch_size": 16}
        model = {"hidden_size": 2, "num_layers": 1, "upload": "off"}
        model |= {"monitor": str(MONITORS[NEWEST])}  # what needs it
        words = [w for k, v in {**options, **model}.items() for w in (f"--{k}", v)]
        assert cli("run", *words).exit_code == 75
        [path] = Path(work).glob(f"home/runs/*/artifacts/checkpoints/global_step_{step}")
        manifest = parse_manifest((path / MANIFEST_FILE).read_bytes(), path.name)
        content = load_checkpoint(path, manifest, path.name)
    versions = {k: content["environment"]["versions"][k] for k in ("python", "torch")}
    known = {"host": "somewhere", "platform": "Linux", "device": "cpu", "code": None}
    content["environment"] = {**content["environment"], **known, "versions": versions}
    write_checkpoint(folder / path.name, content, attempt=1, kept=False, metrics={})


if __name__ == "__main__":
    if NEWEST in FOLDERS:
        sys.exit(f"{FOLDERS[NEWEST]} is there already")
    write_of_today(DATA / f"format_{NEWEST}")
