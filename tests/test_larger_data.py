"""Tables that do not fit into memory: the same numbers as of those that do."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from train.tabular.data import cache, fitting, parquet, scratch
from train.tabular.data.dataset import prepare
from train.tabular.data.provide import prepare_cached
from train.tabular.data.scale import mean_and_std, skewness
from train.tabular.data.scratch import Arranged, Scratch
from train.tabular.options import Config

ROWS = 3000


@pytest.fixture
def table():
    """Return a table of all kinds of columns, with gaps, in which nothing is sorted."""
    random = np.random.default_rng(0)

    def gaps():
        return random.random(ROWS) < 0.1

    words = pa.array(["NA", "red", "blue", "", *(f"word {i}" for i in range(60))])
    return pa.table({
        "x": pa.array(random.normal(size=ROWS), mask=gaps()),
        "n": random.integers(-5, 1000, ROWS).astype("i2"),
        "c": words.take(pa.array(random.integers(0, 64, ROWS), mask=gaps())),
        "d": words.take(pa.array(random.integers(0, 9, ROWS))).dictionary_encode(),
        "t": pa.array(random.integers(-(10**9), 2 * 10**9, ROWS), mask=gaps())
        .cast(pa.timestamp("s")),
        "day": pa.array(random.integers(-90_000, 90_000, ROWS).astype("i4")).cast(pa.date32()),
        "id": [f"row {i}" for i in range(ROWS)],
        "y": pa.array(random.normal(size=ROWS), mask=gaps()),
    })  # fmt: skip


def bits(dataset):
    """Return all that a model is trained with."""
    arrays = [
        array
        for rows in (dataset.train, dataset.val)
        for array in (rows.features.numeric, rows.features.categorical, rows.target)
    ]
    told = dataset.preprocessing.to_dict(), dataset.report, dataset.sample
    return [(a.dtype, a.shape, a.tobytes()) for a in arrays], told


def write_folder(folder, table, sizes):
    """Write a table as files of so many rows, in groups of other sizes."""
    folder.mkdir()
    start = 0
    for i, size in enumerate(sizes):
        part = table.slice(start, size)
        pyarrow.parquet.write_table(part, folder / f"{i}.parquet", row_group_size=size // 3 + 1)
        start += size
    return str(folder)


def test_the_bits_do_not_depend_on_what_is_in_memory(table, tmp_path, monkeypatch):
    """One file in memory, or many of which nothing stays there: every number is the same."""
    pyarrow.parquet.write_table(table, "one.parquet")
    expected = bits(prepare(Config(data="one.parquet", target="y")))
    many = Config(data=write_folder(tmp_path / "many", table, (7, 1000, 900, 1093)), target="y")
    monkeypatch.setattr(scratch, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(scratch, "_PART_BYTES", 5000)
    monkeypatch.setattr(parquet, "BLOCK_ROWS", 100)
    monkeypatch.setattr(fitting, "_MAX_TEXTS", 100)
    in_files = prepare(many)
    assert bits(in_files) == expected
    cached = prepare_cached(many, tmp_path / "home", None)
    assert bits(cached) == expected
    again = prepare_cached(many.replace(split_seed=3), tmp_path / "home", cached.preprocessing)
    assert again.preprocessing == cached.preprocessing


def test_what_is_cached_is_mapped(table, tmp_path):
    """The arrays are the file's own pages; what is written to them stays in memory."""
    pyarrow.parquet.write_table(table, "t.parquet")
    dataset = prepare_cached(Config(data="t.parquet", target="y"), tmp_path / "home", None)
    before = (dataset.folder / cache.NPZ_NAME).read_bytes()
    for rows in (dataset.train, dataset.val):
        for array in (rows.features.numeric, rows.features.categorical, rows.target):
            assert not array.flags.owndata
            assert array.flags.aligned
            assert array.ctypes.data % 64 == 0
    dataset.train.target[:] = 0
    assert (dataset.folder / cache.NPZ_NAME).read_bytes() == before
    with np.load(dataset.folder / cache.NPZ_NAME, allow_pickle=False) as arrays:
        assert np.array_equal(arrays["val_target"], dataset.val.target)


def test_an_older_cache_is_read(table, tmp_path):
    """What NumPy itself wrote, with codes of a type that torch has no arithmetic for."""
    pyarrow.parquet.write_table(table, "t.parquet")
    dataset = prepare_cached(Config(data="t.parquet", target="y"), tmp_path / "home", None)
    npz = dataset.folder / cache.NPZ_NAME
    with np.load(npz) as found:
        arrays = {k: v.astype("u2") if "categorical" in k else v for k, v in found.items()}
    expected = bits(dataset)
    del dataset
    np.savez(npz, **arrays)
    record = npz.with_name(cache.JSON_NAME)
    document = cache.read_record(record)
    document["sha256"] = cache._sha256(npz)
    record.write_bytes(cache.record_to_bytes(document))
    assert bits(cache.load(npz.parent)) == expected


@pytest.mark.parametrize("length", [1, 7, 129, 32_768, 32_769, 100_003])
def test_sums_are_those_of_numpy(length):
    """Made in blocks, mean and spread have the bits that they always had."""
    random = np.random.default_rng(length)
    for values in (random.normal(size=length), np.exp(4 * random.normal(size=length))):
        scaled = values / np.abs(values).max()
        largest = float(np.abs(values).max())
        std = float(scaled.std())
        mean, found = mean_and_std(values)
        assert (mean, found) == (float(scaled.mean()) * largest, std * largest * (std > 1e-12))
        if found:
            assert skewness(values) == float(np.mean(((values - mean) / found) ** 3))


@pytest.mark.parametrize("part_bytes", [1, 100, 4000])
def test_rows_are_put_in_order(monkeypatch, part_bytes):
    """Whatever the size of the parts, each row ends where it belongs."""
    monkeypatch.setattr(scratch, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(scratch, "_PART_BYTES", part_bytes)
    random = np.random.default_rng(0)
    order = random.permutation(300)
    one, two = random.random((300, 2)), random.integers(0, 99, (300, 1))
    arranged = Arranged(order, [(2, np.float64), (1, np.int64)], Scratch())
    for start in range(0, 300, 70):
        arranged.add(one[start : start + 70], two[start : start + 70])
    found = arranged.finish()
    assert np.array_equal(found[0], one[order])
    assert np.array_equal(found[1], two[order])


def test_a_full_disk_is_an_error_and_no_signal(monkeypatch):
    """The place of a file is taken before it is mapped: a hole in it could kill the process."""
    monkeypatch.setattr(scratch, "_IN_MEMORY_BYTES", 0)
    with pytest.raises(OSError, match=r"No space|too large"):
        Scratch().array(1 << 50, np.uint8)
