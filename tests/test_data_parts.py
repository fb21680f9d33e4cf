"""Prepared data goes up in parts where a gateway takes no request of its size."""

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from onward.errors import DataError, RequestTooLarge, StoreUnavailable
from onward.opening.identity import data_files
from onward.system.files import MIN_PART_BYTES
from onward.tracking.artifacts import Artifacts, is_of_a_run
from train.tabular.data import cache
from train.tabular.data.cache import JSON_NAME, NPZ_NAME
from train.tabular.data.dataset import prepare
from train.tabular.data.provide import recover
from train.tabular.data.stored import upload
from train.tabular.options import Config

MIB = 1 << 20


class Gateway(LocalArtifactRepository):
    """Takes files up to a size, until it dies."""

    def __init__(self, uri, limit):
        super().__init__(uri)
        self.limit, self.taken, self.lives = limit, [], 99

    def log_artifact(self, local_file, artifact_path=None):
        size = Path(local_file).stat().st_size
        if size > self.limit:
            raise OSError("413 Client Error: Request Entity Too Large for url: http://x")
        self.lives -= 1
        if self.lives < 0:
            raise OSError("gone")
        self.taken.append(f"{artifact_path}/{Path(local_file).name}")
        super().log_artifact(local_file, artifact_path)


class Store:
    """A run's files behind a gateway."""

    def __init__(self, folder, limit=MIB):
        self.folder = folder / "data"
        self.artifacts = Artifacts(str(folder))
        self.artifacts.folder = None
        self.gateway = self.artifacts._repository = Gateway(str(folder), limit)
        self.files = data_files(self.artifacts)
        self.download = self.files.download

    def parts(self):
        """Return the sizes of the parts."""
        return [p.stat().st_size for p in sorted((self.folder / NPZ_NAME).iterdir())]

    def change(self, **changes):
        """Change what the record says."""
        record = self.folder / JSON_NAME
        record.write_text(json.dumps({**json.loads(record.read_text()), **changes}))


@pytest.fixture
def data(tmp_path):
    """Return (options, dataset) of about 3 MB, the files of which lie in its folder."""
    draw = np.random.default_rng(0)
    table = tmp_path / "t.npz"
    np.savez(table, X=draw.normal(size=(8000, 90)).astype(np.float32), y=draw.normal(size=8000))
    config = Config(data=str(table), target="y")
    dataset = prepare(config)
    cache.save(dataset, tmp_path / "cache")
    table.unlink()  # what comes back is of the store
    return config, dataclasses.replace(dataset, folder=tmp_path / "cache")


def equal(one, other):
    """Tell whether two datasets hold the same arrays."""
    return all(
        np.array_equal(a.features.numeric, b.features.numeric)
        and np.array_equal(a.features.categorical, b.features.categorical)
        and np.array_equal(a.target, b.target)
        for a, b in ((one.train, other.train), (one.val, other.val))
    )


def test_data_that_is_refused_comes_back_from_its_parts(data, tmp_path, caplog):
    """Of a size that goes through; the record is last, and the rest of it is as it was."""
    config, dataset = data
    store = Store(tmp_path / "store")
    upload(dataset.folder, "auto", store.files)
    num_bytes = (dataset.folder / NPZ_NAME).stat().st_size
    assert num_bytes > 2 * MIB
    assert store.parts() == [MIB] * (num_bytes // MIB) + [num_bytes % MIB]
    assert store.gateway.taken[-1] == f"data/{JSON_NAME}"
    assert all(is_of_a_run(name) for name in store.gateway.taken)
    own = json.loads((dataset.folder / JSON_NAME).read_text())
    assert json.loads((store.folder / JSON_NAME).read_text()) == {**own, "part_bytes": MIB}
    assert [r.levelno for r in caplog.records].count(logging.WARNING) == 1
    assert "client_max_body_size" in caplog.text
    found = recover(config, tmp_path / "home", dataset.fingerprint, store.download, "r1")
    assert equal(found, dataset)
    names = {NPZ_NAME, JSON_NAME}
    assert {p.name for p in found.folder.iterdir()} == names
    assert {p.name for p in dataset.folder.iterdir()} == names


def test_data_that_fits_is_one_file_and_not_a_byte_differs(data, tmp_path):
    """Also what was fetched from parts, and now goes to another run."""
    config, dataset = data
    first, second = Store(tmp_path / "first"), Store(tmp_path / "second", limit=99 * MIB)
    upload(dataset.folder, "auto", first.files)
    fetched = recover(config, tmp_path / "home", dataset.fingerprint, first.download, "r1")
    upload(fetched.folder, "auto", second.files)
    assert second.gateway.taken == [f"data/{NPZ_NAME}", f"data/{JSON_NAME}"]
    for name in (NPZ_NAME, JSON_NAME):
        assert (second.folder / name).read_bytes() == (dataset.folder / name).read_bytes()


def test_data_that_is_stored_in_parts_is_not_sent_again(data, tmp_path):
    """Whatever the way takes now; so no process that dies there leaves less than there was."""
    config, dataset = data
    store = Store(tmp_path / "store")
    upload(dataset.folder, "auto", store.files)
    stored = store.parts()
    for limit, wanted in ((MIB // 2, "yes"), (99 * MIB, "yes"), (MIB, "no")):
        store.gateway.limit = limit
        store.gateway.taken.clear()
        upload(dataset.folder, wanted, store.files)
        assert store.gateway.taken == [f"data/{JSON_NAME}"]
    assert store.parts() == stored
    found = recover(config, tmp_path / "home", dataset.fingerprint, store.download, "r1")
    assert equal(found, dataset)


@pytest.mark.parametrize(("limit", "left"), [(MIB, 3), (99 * MIB, 1)])
def test_parts_without_a_record_are_no_data_and_later_ones_take_their_place(
    data, tmp_path, limit, left
):
    """What a killed upload left in small parts is not mixed into the larger ones."""
    config, dataset = data
    store = Store(tmp_path / "store", limit=MIB // 2)
    store.gateway.lives = 5
    with pytest.raises(StoreUnavailable):
        upload(dataset.folder, "auto", store.files)
    assert len(store.parts()) == 5
    with pytest.raises(DataError, match="was not uploaded"):
        recover(config, tmp_path / "home", dataset.fingerprint, store.download, "r1")
    later = Store(tmp_path / "store", limit)
    upload(dataset.folder, "auto", later.files)
    assert later.parts()[left:] == [MIB // 2] * (5 - left), "of the earlier, which nobody reads"
    found = recover(config, tmp_path / "home", dataset.fingerprint, later.download, "r1")
    assert equal(found, dataset)


def test_a_record_that_tells_of_no_parts_is_of_the_single_file(data, tmp_path):
    """Parts beside it are no data, also where the file is not there at all."""
    config, dataset = data
    store = Store(tmp_path / "store")
    upload(dataset.folder, "auto", store.files)
    store.change(part_bytes=0)
    for artifacts in (store.artifacts, Artifacts(str(tmp_path / "store"))):

        def download(name, to, max_bytes, artifacts=artifacts):
            return artifacts.download(f"data/{name}", to, max_bytes)

        with pytest.raises(DataError, match="was not uploaded"):
            recover(config, tmp_path / "home", dataset.fingerprint, download, "r1")


def test_data_below_every_gateway_s_limit_does_not_keep_a_run_from_starting(data, tmp_path, caplog):
    """The record goes up all the same; that another machine will need the raw table is told."""
    _config, dataset = data
    store = Store(tmp_path / "store")

    def put(path, folder):
        if path.name != JSON_NAME:
            raise RequestTooLarge("refused: client_max_body_size is the setting")
        store.files.put(path, folder)

    upload(dataset.folder, "auto", dataclasses.replace(store.files, put=put))
    own = (dataset.folder / JSON_NAME).read_bytes()
    assert (store.folder / JSON_NAME).read_bytes() == own
    assert "client_max_body_size" in caplog.text
    assert "will need the raw table" in caplog.text


def test_a_file_that_is_there_is_not_made_a_folder(data, tmp_path, caplog):
    """A server that keeps files has no room for both under one name."""
    _config, dataset = data
    store = Store(tmp_path / "store", limit=99 * MIB)
    upload(dataset.folder, "auto", store.files)
    store.gateway.limit = MIB
    upload(dataset.folder, "yes", store.files)
    assert "is not uploaded" in caplog.text
    for name in (NPZ_NAME, JSON_NAME):
        assert (store.folder / name).read_bytes() == (dataset.folder / name).read_bytes()


@pytest.mark.parametrize(
    ("part_bytes", "told"),
    [
        (1, "parts of 1 bytes"),
        (-MIB, "parts of -1048576 bytes"),
        (MIN_PART_BYTES - 1, "parts of"),
        (True, "parts of True bytes"),
        (1e300, "parts of"),
        ("9" * 5000, "parts of"),
        (None, "parts of None bytes"),
        (MIN_PART_BYTES, "has more than 262,144 bytes"),
        (2 * MIB, "has 1,048,576 bytes, and 2,097,152 by its record"),
    ],
)
def test_a_record_of_other_parts_is_told(data, tmp_path, part_bytes, told):
    """Parts without number, or of another size than is there, are not joined."""
    config, dataset = data
    store = Store(tmp_path / "store")
    upload(dataset.folder, "auto", store.files)
    store.change(part_bytes=part_bytes)
    with pytest.raises(DataError, match="the run's data is not used") as caught:
        recover(config, tmp_path / "home", dataset.fingerprint, store.download, "r1")
    assert told in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("number", "size", "told"),
    [
        (0, 1 << 34, "has more than"),
        (1, MIB + 1, "has more than 1,048,576 bytes"),
        (2, 0, "has 0 bytes, and"),
        (0, None, "was not uploaded"),
    ],
)
def test_of_hostile_parts_no_more_comes_than_was_said(data, tmp_path, number, size, told):
    """One without end, one too long, an empty one, one that is missing."""
    config, dataset = data
    store = Store(tmp_path / "store")
    upload(dataset.folder, "auto", store.files)
    part = store.folder / NPZ_NAME / f"part-{number:05d}"
    if size is None:
        part.unlink()
    else:
        with part.open("ab") as file:
            file.truncate(size)
    with pytest.raises(DataError, match=told):
        recover(config, tmp_path / "home", dataset.fingerprint, store.download, "r1")
    left = [p.name for p in (tmp_path / "home").rglob("*") if p.is_file()]
    assert left == [JSON_NAME]


def test_parts_of_another_content_are_not_used(data, tmp_path):
    """Each has its size, and all of them not the hash of the record."""
    config, dataset = data
    store = Store(tmp_path / "store")
    upload(dataset.folder, "auto", store.files)
    first, second = (store.folder / NPZ_NAME / f"part-0000{i}" for i in (0, 1))
    second.write_bytes(first.read_bytes())
    with pytest.raises(DataError, match="is damaged"):
        recover(config, tmp_path / "home", dataset.fingerprint, store.download, "r1")
