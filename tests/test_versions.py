"""Checkpoints of every format version that this program ever wrote can be gone on from.

`tests/data/format_N` holds one of each version N, written by the program of that time. For a new
version `python tests/test_versions.py` adds one, to be committed; an old one is never made again.
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
from support import cli, write_table
from test_state import leaves

from onward.checkpoint.format import load_checkpoint, verify, write_checkpoint
from onward.checkpoint.manifest import (
    CHECKPOINT_FILE,
    FORMAT_VERSION,
    MANIFEST_FILE,
    READABLE_VERSIONS,
    parse_manifest,
)
from onward.checkpoint.store import CheckpointStore
from onward.opening.source import find_source
from onward.options.run_options import Config
from onward.run.state import TrainState
from onward.tracking.artifacts import Artifacts
from onward.tracking.record import FINGERPRINT_TAG
from train.schedule import Schedule
from train.script import read_checkpoint_file
from train.tabular.task import TabularMLP, TabularTask

DATA = Path(__file__).parent / "data"
FOLDERS = {
    int(path.parent.name.removeprefix("format_")): path for path in DATA.glob("format_*/*_*")
}
# Of each: epochs, steps, steps of the epoch under way.
COUNTS = {1: (2, 6, 0), 2: (1, 5, 2)}

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
    return TrainState(model, optimizer, Schedule(config))


def test_there_is_a_checkpoint_of_every_version_that_can_be_read():
    """Whoever adds a version adds a checkpoint of it, and none is ever taken away."""
    assert sorted(FOLDERS) == sorted(READABLE_VERSIONS) == sorted(COUNTS)
    assert max(READABLE_VERSIONS) == FORMAT_VERSION
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
    assert content["format_version"] == FORMAT_VERSION
    assert (content["epoch"], content["step"], content["epoch_step"]) == COUNTS[version]
    assert set(content["epoch_sums"]) == ({"train_loss"} if manifest.epoch_step else set())
    assert (content["epoch_seconds"] > 0) == bool(manifest.epoch_step)
    assert manifest.to_dict()["format_version"] == FORMAT_VERSION


@every_version
def test_all_of_it_is_restored(version):
    """Weights, moments, schedule, history, best and random numbers are those of the file."""
    _, content = load(version)
    state = new_state(content)
    state.restore(content)
    captured = state.capture()
    assert leaves(captured) == leaves({key: content[key] for key in captured})
    assert len(state.history.values("val_pearson")) == state.epoch
    loss = state.model(torch.randn(4, 3), torch.zeros(4, 1, dtype=torch.int64)).square().mean()
    loss.backward()
    state.optimizer.step()
    assert all(p.isfinite().all() for p in state.model.parameters())


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
    assert leaves(stored.get(manifest, tmp_path / "got")) == leaves(content)
    assert stored.leftovers([]) == []


@every_version
def test_it_can_be_resumed_from(stored, version, tracking, record):
    """Its options are those of a config of today, with the defaults of what came later."""
    tracking.set_tags(record.run_id, {FINGERPRINT_TAG: "f"})
    source = find_source(tracking.get_run(record.run_id), stored, None)
    assert (source.manifest, source.is_newest) == (load(version)[0], True)
    assert source.config.batch_size == 16
    assert source.config.to_dict().keys() == Config().to_dict().keys()
    assert source.epochs_begun == 2


@every_version
def test_the_plain_file_starts_a_run(version):
    """`resume_from` takes the file of any version."""
    path = FOLDERS[version] / CHECKPOINT_FILE
    config, content = read_checkpoint_file(path, {"epochs": 9})
    assert (config.epochs, config.batch_size) == (9, 16)
    assert leaves(content) == leaves(load(version)[1])


def test_the_rest_of_an_epoch_is_trained_from_a_plain_file(tracking, tmp_path):
    """With the rows, the batches and the seed of the file; with others it is refused."""
    path = FOLDERS[2] / CHECKPOINT_FILE
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


@every_version
def test_a_fork_of_it_is_of_todays_version(version, tmp_path):
    """What is written anew is written as today, and holds the same."""
    manifest, content = load(version)
    folder = tmp_path / manifest.name
    again = write_checkpoint(folder, content, attempt=1, kept=True, metrics={})
    assert again.name == manifest.name
    assert json.loads((folder / MANIFEST_FILE).read_text())["format_version"] == FORMAT_VERSION
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
        store.write_index(store.list(), tmp_path)


def write_of_today(folder: Path) -> None:
    """Write a small checkpoint of today's version into `folder`, as a stop at step 5 leaves it."""
    calls, loss = [], TabularTask.loss

    def stopped(task, model, indices):
        calls.append(indices)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(task, model, indices)

    TabularTask.loss = stopped
    with tempfile.TemporaryDirectory() as work:
        os.environ |= {"TRAIN_HOME": f"{work}/home", "MLFLOW_TRACKING_URI": f"sqlite:///{work}/db"}
        os.chdir(work)
        write_table(Path("table.csv"), num_rows=60)
        options = {"data": "table.csv", "target": "price", "epochs": 2, "batch_size": 16}
        model = {"hidden_size": 2, "num_layers": 1, "upload": "off"}
        words = [w for k, v in {**options, **model}.items() for w in (f"--{k}", v)]
        assert cli("run", *words).exit_code == 75
        [path] = Path(work).glob("home/runs/*/artifacts/checkpoints/global_step_5")
        manifest = parse_manifest((path / MANIFEST_FILE).read_bytes(), path.name)
        content = load_checkpoint(path, manifest, path.name)
    versions = {k: content["environment"]["versions"][k] for k in ("python", "torch")}
    known = {"host": "somewhere", "platform": "Linux", "device": "cpu", "code": None}
    content["environment"] = {**content["environment"], **known, "versions": versions}
    write_checkpoint(folder / path.name, content, attempt=1, kept=False, metrics={})


if __name__ == "__main__":
    if FORMAT_VERSION in FOLDERS:
        sys.exit(f"{FOLDERS[FORMAT_VERSION]} is there already")
    write_of_today(DATA / f"format_{FORMAT_VERSION}")
