"""The prepared data on disk: what is loaded is what was saved, or it is refused."""

import base64
import dataclasses
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from support import ROOT

from onward.errors import DataError
from onward.system.files import atomic_write
from train.tabular.data.cache import JSON_NAME, NPZ_NAME, load, load_preprocessing, save
from train.tabular.data.dataset import prepare
from train.tabular.options import Config


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
    np.savez(npz, train_numeric=np.array([{}], dtype=object))
    document = json.loads(record.read_text())
    document["sha256"] = hashlib.sha256(npz.read_bytes()).hexdigest()
    record.write_text(json.dumps(document))
    with pytest.raises(DataError, match="allow_pickle=False"):
        load(tmp_path)


def forge(folder, **changes):
    """Write a record whose hash is right, with `changes`."""
    document = json.loads((folder / JSON_NAME).read_text())
    document["sha256"] = hashlib.sha256((folder / NPZ_NAME).read_bytes()).hexdigest()
    (folder / JSON_NAME).write_text(json.dumps({**document, **changes}))


def declare(path, member, shape):
    """Let an array of an archive say that it is of another shape."""
    content = path.read_bytes()
    start = content.index(member.encode() + b".npy")
    at = content.index(b"'shape': (", start) + len(b"'shape': (")
    end = content.index(b"}", at)
    told = f"{shape[0]}, {shape[1]}), ".encode() if shape[1:] else f"{shape[0]},), ".encode()
    room = content.index(b"\n", end) - at
    path.write_bytes(content[:at] + (told + b"}").ljust(room) + content[at + room :])


@pytest.mark.parametrize("shape", [(1 << 30,), (1 << 62,), (-1,), (0, 1 << 40)])
def test_arrays_that_declare_more_than_they_hold_are_refused(tmp_path, dataset, shape):
    """Of an array no more is allocated than the file has bytes for, also with a right hash."""
    save(dataset, tmp_path)
    declare(tmp_path / NPZ_NAME, "train_target", shape)
    forge(tmp_path)
    with pytest.raises(DataError, match=r"declares|its arrays are not those|Bad CRC"):
        load(tmp_path)


@pytest.mark.parametrize("part", ["numeric", "categorical", "target"])
def test_arrays_of_another_shape_than_their_columns_are_refused(tmp_path, dataset, part):
    """A model is made for the columns: arrays that differ, or unknown codes, end here."""
    save(dataset, tmp_path)
    with np.load(tmp_path / NPZ_NAME) as found:
        arrays = dict(found)
    arrays[f"val_{part}"] = {
        "numeric": arrays["val_numeric"][:, :1],
        "categorical": arrays["val_categorical"] + 99,
        "target": arrays["val_target"][1:],
    }[part]
    np.savez(tmp_path / NPZ_NAME, **arrays)
    forge(tmp_path)
    with pytest.raises(DataError, match="its arrays are not those of its columns"):
        load(tmp_path)


def test_compressed_arrays_are_refused(tmp_path, dataset):
    """`save` compresses nothing; a small file could unfold to any size."""
    save(dataset, tmp_path)
    np.savez_compressed(tmp_path / NPZ_NAME, train_target=np.zeros(1 << 20))
    forge(tmp_path)
    with pytest.raises(DataError, match="there is room for"):
        load(tmp_path)


def test_arrays_are_made_of_what_was_hashed(tmp_path, dataset, monkeypatch):
    """What takes the file's name in between is another file, which is not looked at."""
    save(dataset, tmp_path)
    save(dataclasses.replace(dataset, train=dataset.val), tmp_path / "other")
    read = np.load

    def replace_and_read(*arguments, **more):
        os.replace(tmp_path / "other" / NPZ_NAME, tmp_path / NPZ_NAME)
        return read(*arguments, **more)

    monkeypatch.setattr(np, "load", replace_and_read)
    assert bits(load(tmp_path)) == bits(dataset)


@pytest.mark.parametrize(
    "content",
    ["[" * 20_000 + "]" * 20_000, "[]", '{"format_version": 1}', "null", '{"sha256": 1e999}'],
    ids=lambda text: text[:20],
)
def test_a_record_that_is_none_is_refused(tmp_path, dataset, content):
    """It comes from a store that others may write to."""
    save(dataset, tmp_path)
    (tmp_path / JSON_NAME).write_text(content)
    for read in (load, lambda folder: load_preprocessing(folder / JSON_NAME)):
        with pytest.raises(DataError):
            read(tmp_path)


def test_a_record_without_end_is_not_read(tmp_path, dataset):
    """Its size is looked at before its content."""
    save(dataset, tmp_path)
    with open(tmp_path / JSON_NAME, "ab") as file:
        file.truncate(1 << 32)
    with pytest.raises(DataError, match="more than 67,108,864 bytes"):
        load(tmp_path)


def test_a_compressed_sample_is_not_unfolded(tmp_path, dataset):
    """The sample of rows is small as it is, and `save` compresses nothing."""
    save(dataset, tmp_path)
    bomb = pa.table({"a": np.zeros(1 << 22)})
    for codec in ("zstd", "lz4"):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(
            sink, bomb.schema, options=pa.ipc.IpcWriteOptions(compression=codec)
        ) as writer:
            writer.write_table(bomb)
        assert len(sink.getvalue()) < 300_000
        forge(tmp_path, sample=base64.b64encode(sink.getvalue()).decode())
        assert load(tmp_path).sample.num_columns == 0


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
import os, pathlib, signal
from onward.system.files import atomic_write
def write(file):
    file.write(b"half of the new one")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
atomic_write(pathlib.Path("f"), write)
"""


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_writer_that_is_killed_leaves_the_old_file_or_none(tmp_path, old):
    """SIGKILL in the middle of a write never shows half a file under its name."""
    path = tmp_path / "f"
    if old is not None:
        path.write_bytes(old)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.run([sys.executable, "-c", KILLED], env=environment, check=False)
    assert child.returncode == -signal.SIGKILL
    assert (path.read_bytes() if path.exists() else None) == old
