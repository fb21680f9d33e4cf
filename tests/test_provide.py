"""Prepared data from a run's artifacts: never more of it than was said, and never another's."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from onward.errors import DataError
from onward.tracking.artifacts import Artifacts
from train.tabular.data.cache import JSON_NAME, NPZ_NAME, save
from train.tabular.data.dataset import prepare
from train.tabular.data.provide import cache_folder, prepare_cached, recover, recover_preprocessing
from train.tabular.options import Config


@pytest.fixture
def stored(tmp_path):
    """Return (options, dataset, folder in the store, function that fetches from it)."""
    lines = [f"{i},{i % 3 or ''},{'ab'[i % 2]},{i * i}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["x,gap,c,y", *lines]) + "\n")
    config = Config(data=str(tmp_path / "t.csv"), target="y")
    dataset = prepare(config)
    save(dataset, tmp_path / "store" / "data")
    artifacts = Artifacts(str(tmp_path / "store"))

    def download(name, to, max_bytes):
        return artifacts.download(f"data/{name}", to, max_bytes)

    return config, dataset, tmp_path / "store" / "data", download


def test_data_comes_back_from_the_artifacts(stored, tmp_path):
    """A machine without the table goes on with the arrays of the run."""
    config, dataset, _folder, download = stored
    found = recover(config, tmp_path / "home", dataset.fingerprint, download, "r1")
    assert np.array_equal(found.train.target, dataset.train.target)


def test_what_a_run_calls_its_data_is_believed_of_that_run_alone(stored, tmp_path):
    """Other arrays under the right fingerprint are used by no other run, nor by a fresh one."""
    config, dataset, folder, download = stored
    target = dataset.train.target + 1
    forged = dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, target=target))
    honest = tmp_path / "honest"
    shutil.copytree(folder, honest)
    save(forged, folder)
    home = tmp_path / "home"
    found = recover(config, home, dataset.fingerprint, download, "hostile")
    assert np.array_equal(found.train.target, target)
    shutil.rmtree(folder)
    honest.rename(folder)
    for other in (
        recover(config, home, dataset.fingerprint, download, "r1"),
        prepare_cached(config, home, None),
        recover(config, home, dataset.fingerprint, download, "r2"),
    ):
        assert np.array_equal(other.train.target, dataset.train.target)


@pytest.mark.parametrize("name", [JSON_NAME, NPZ_NAME])
def test_of_data_without_end_no_more_comes_than_was_said(stored, tmp_path, name):
    """The record has a limit, and says that of the arrays."""
    config, dataset, folder, download = stored
    with open(folder / name, "ab") as file:
        file.truncate(1 << 34)
    with pytest.raises(DataError, match=rf"not used: 'data/{name}' has more than"):
        recover(config, tmp_path / "home", dataset.fingerprint, download, "r1")
    cached = cache_folder(tmp_path / "home", dataset.fingerprint, "r1")
    assert not (cached / name).exists()
    if name == JSON_NAME:
        with pytest.raises(DataError, match="has more than"):
            recover_preprocessing(tmp_path / "home", dataset.fingerprint, download)


@pytest.mark.parametrize("num_bytes", [1 << 60, -1, None, "9" * 5000, 1e300, True])
def test_a_record_that_says_any_size_is_not_believed(stored, tmp_path, num_bytes):
    """What the disk has no room for, or is no size, is not begun."""
    config, dataset, folder, download = stored
    document = json.loads((folder / JSON_NAME).read_text())
    (folder / JSON_NAME).write_text(json.dumps({**document, "bytes": num_bytes}))
    with pytest.raises(DataError, match="the run's data is not used") as caught:
        recover(config, tmp_path / "home", dataset.fingerprint, download, "r1")
    assert len(str(caught.value)) < 400


def test_a_table_that_is_here_is_prepared_again_where_the_store_has_none(stored, tmp_path):
    """Data that was not uploaded is made anew from the same table."""
    config, dataset, folder, download = stored
    shutil.rmtree(folder)
    found = recover(config, tmp_path / "home", dataset.fingerprint, download, "r1")
    assert found.fingerprint == dataset.fingerprint
