"""The prepared data on disk: what is loaded is what was saved, or it is refused."""

import dataclasses
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import train.files
from train.config import Config
from train.data.cache import JSON_NAME, NPZ_NAME, load, save
from train.data.dataset import prepare
from train.errors import DataError
from train.files import atomic_write


@pytest.fixture
def dataset(tmp_path):
    """Return a small dataset with numbers, gaps and categories."""
    lines = [f"{i},{i % 3 or ''},{'ab'[i % 2]},{i * i}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["x,gap,c,y", *lines]) + "\n")
    return prepare(Config(data="t.csv", target="y"))


def bits(dataset):
    """Return everything of a dataset as comparable values."""
    parts = [dataset.train, dataset.val]
    arrays = [a for p in parts for a in (p.features.numeric, p.features.categorical, p.target)]
    whole = dataclasses.replace(dataset, train=None, val=None)
    return [(a.dtype, a.shape, a.tobytes()) for a in arrays], whole


def test_a_dataset_survives_the_cache(tmp_path, dataset):
    """Arrays, preprocessing, report and fingerprint come back to the bit."""
    save(dataset, tmp_path / "cache")
    assert bits(load(tmp_path / "cache")) == bits(dataset)


def test_the_same_dataset_gives_the_same_bytes(tmp_path, dataset):
    """Two machines that prepare one table can compare their files."""
    one, two = (save(dataset, tmp_path / name) for name in ("a", "b"))
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


@pytest.mark.parametrize("name", [NPZ_NAME, JSON_NAME])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "empty"])
def test_damage_is_found(tmp_path, dataset, name, damage):
    """A file that was cut, changed, emptied or lost is never taken for data."""
    save(dataset, tmp_path)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    content[content.index(b"sha256") + 12 if name == JSON_NAME else 300] ^= 1
    path.write_bytes({"cut": content[:-30], "flip": content}.get(damage, b""))
    if damage == "remove":
        path.unlink()
    with pytest.raises(DataError):
        load(tmp_path)


def test_arrays_of_another_save_are_found(tmp_path, dataset):
    """A writer that died between the two files leaves something that is refused."""
    save(dataset, tmp_path)
    other = dataclasses.replace(dataset, train=dataset.val)
    save(other, tmp_path / "other")
    os.replace(tmp_path / "other" / NPZ_NAME, tmp_path / NPZ_NAME)
    with pytest.raises(DataError, match="damaged"):
        load(tmp_path)


def test_pickled_objects_are_not_loaded(tmp_path, dataset):
    """Arrays that hold pickles are refused, with a matching hash too."""
    npz, record = save(dataset, tmp_path)
    np.savez(npz, train_categorical=np.array([{}], dtype=object))
    document = json.loads(record.read_text())
    document["sha256"] = hashlib.sha256(npz.read_bytes()).hexdigest()
    record.write_text(json.dumps(document))
    with pytest.raises(DataError, match="allow_pickle=False"):
        load(tmp_path)


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    """A full disk costs the new file only, and leaves nothing lying about."""
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half of the new one")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        atomic_write(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


KILLED = """
import os, pathlib, signal, train.files
def write(file):
    file.write(b"half of the new one")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
train.files.atomic_write(pathlib.Path("f"), write)
"""


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_writer_that_is_killed_leaves_the_old_file_or_none(tmp_path, old):
    """SIGKILL in the middle of a write never shows half a file under its name."""
    path = tmp_path / "f"
    if old is not None:
        path.write_bytes(old)
    package_root = os.path.dirname(os.path.dirname(train.files.__file__))
    environment = os.environ | {"PYTHONPATH": package_root}
    child = subprocess.run([sys.executable, "-c", KILLED], env=environment, check=False)
    assert child.returncode == -signal.SIGKILL
    assert (path.read_bytes() if path.exists() else None) == old
