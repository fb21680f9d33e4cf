"""Raw tables: every kind of file gives the same columns, and a bad one gives one clear line."""

import datetime
import gzip
import os
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from onward.errors import DataError, DataNotFound
from train.tabular.data.table import raw_sha256, read_raw, read_table

CSV = b"size,shape,when,ok\n1,round,2024-02-03,true\n2.5,,2024-02-04,false\n,flat,,true\n"


def write_rows(path, rows):
    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)


def test_the_shipped_table_is_read_by_its_name():
    """'diamonds' is there wherever the program runs."""
    table = read_table("diamonds")
    assert table.num_rows == 53_940
    assert table.column_names[:4] == ["carat", "cut", "color", "clarity"]


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", CSV), ("a.CSV.gz", gzip.compress(CSV, mtime=0))]
)
def test_csv_has_numbers_dates_text_and_gaps(tmp_path, name, content):
    """CSV columns get their types from their values, and an empty field is a missing one."""
    (tmp_path / name).write_bytes(content)
    assert read_table(name).to_pydict() == {  # a relative path starts in the working folder
        "size": [1.0, 2.5, None],
        "shape": ["round", None, "flat"],
        "when": [datetime.date(2024, 2, 3), datetime.date(2024, 2, 4), None],
        "ok": [True, False, True],
    }


def test_csv_types_are_inferred_from_all_rows(tmp_path):
    """A column of whole numbers for megabytes, with 1.5 after them, is a column of numbers."""
    row = f"1234567,{'x' * 200}\n"
    (tmp_path / "late.csv").write_text("a,b\n" + row * 200_000 + "1.5,y\n")
    column = read_table("late.csv")["a"]
    assert column.type == pa.float64()
    assert column[-1].as_py() == 1.5


def test_a_csv_row_may_be_long(tmp_path):
    """A row of some megabytes, as wide tables have, is read."""
    (tmp_path / "long.csv").write_text(f"a,b\n1,{'x' * 5_000_000}\n2,y\n")
    assert read_table("long.csv")["a"].to_pylist() == [1, 2]


def test_a_folder_of_parquet_files_is_one_table(tmp_path):
    """A Parquet folder gives the rows of its files, in the order of their names."""
    for i in (1, 0, 2):
        write_rows(tmp_path / "parts" / f"{i}.parquet", [{"a": i}, {"a": i + 10}])
    assert read_table("parts")["a"].to_pylist() == [0, 10, 1, 11, 2, 12]
    assert read_table("parts/1.parquet")["a"].to_pylist() == [1, 11]


def test_npz_arrays_become_columns(tmp_path):
    """A 1-D array is a column, a 2-D array as many as it has; any byte order will do."""
    np.savez(tmp_path / "a.npz", y=np.arange(3, dtype=">f4"), x=np.arange(6).reshape(3, 2))
    assert read_table("a.npz").to_pydict() == {"y": [0, 1, 2], "x_0": [0, 2, 4], "x_1": [1, 3, 5]}


def test_a_folder_may_hold_other_files(tmp_path):
    """Those that Spark writes are passed over, others are named; partitions are columns as ever."""
    for i in (1, 0):
        write_rows(tmp_path / "parts" / f"{i}.parquet", [{"a": i}])
    for name in ("_SUCCESS", "._SUCCESS.crc", ".0.parquet.crc"):
        (tmp_path / "parts" / name).write_bytes(b"x")
    raw = read_raw("parts")
    assert (raw.table.to_pydict(), raw.told) == ({"a": [0, 1]}, ())
    (tmp_path / "parts" / "notes.txt").write_text("by hand")
    (tmp_path / "parts" / "more").mkdir()
    (tmp_path / "parts" / "more" / "0.crc").write_text("1")
    (tmp_path / "parts" / "part-00000").write_bytes((tmp_path / "parts" / "1.parquet").read_bytes())
    raw = read_raw("parts")
    assert sorted(raw.table["a"].to_pylist()) == [0, 1, 1]
    assert raw.told == ("No Parquet, not read: 'more/0.crc', 'notes.txt'.",)
    write_rows(tmp_path / "parts" / "kind=b" / "2.parquet", [{"a": 2}])
    for aside in ("notes.txt", "more/0.crc"):
        table = read_raw("parts").table
        assert {"a": 2, "kind": "b"} in table.to_pylist()
        (tmp_path / "parts" / aside).unlink()
    assert {"a": 2, "kind": "b"} in read_raw("parts").table.to_pylist()


def test_a_damaged_file_of_a_folder_is_no_other_file(tmp_path):
    """What is called .parquet is to be Parquet."""
    write_rows(tmp_path / "parts" / "0.parquet", [{"a": 1}])
    (tmp_path / "parts" / "1.parquet").write_bytes(b"junk, and a notes.txt beside it")
    (tmp_path / "parts" / "notes.txt").write_text("by hand")
    with pytest.raises(DataError, match=r"cannot be read as Parquet.*1\.parquet"):
        read_raw("parts")


def test_an_npz_may_hold_text_beside_its_arrays(tmp_path):
    """Such as a README, or what a Mac puts into an archive; a line names it."""
    np.savez(tmp_path / "a.npz", x=np.arange(3), y=np.arange(3))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("README.txt", "by hand")
        archive.writestr("__MACOSX/._x.npy", b"Mac OS X")
    raw = read_raw("a.npz")
    assert raw.table.to_pydict() == {"x": [0, 1, 2], "y": [0, 1, 2]}
    assert raw.told == ("No arrays, not read: 'README.txt', '__MACOSX/._x'.",)


BAD = {
    "empty.csv": (b"", "Empty CSV"),
    "header.csv": (b"a,b\n", "2 columns and no rows"),
    "ragged.csv": (b"a,b\n1,2\n3\n", "Expected 2 columns, got 1"),
    "twice.csv": (b"a,b,a\n1,2,3\n", "more than one column named 'a'"),
    "latin.csv": ("a\né\n".encode("latin1"), "neither UTF-8, UTF-16 nor GBK"),
    "cut.csv.gz": (gzip.compress(os.urandom(9000))[:4000], "Truncated"),
    "no.parquet": (b"nope", "as Parquet"),
    "no.npz": (b"nope", "not an .npz"),
    "book.xlsx": (b"nope", "no Excel workbook"),
    "book.xls": (b"nope", "unknown kind, '.xls'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, name):
    """A file that cannot be used is refused with its path and the reason, in one line."""
    content, reason = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_table(name)
    assert reason in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"a": np.array([{}], dtype=object)}, "allow_pickle=False"),
        ({"a": np.zeros(3), "b": np.zeros(4)}, "'a' has 3, 'b' has 4"),
        ({"a": np.zeros((3, 2, 2))}, "shape [3, 2, 2]"),
        ({"a": np.zeros((3, 2)), "a_1": np.zeros(3)}, "more than one column named 'a_1'"),
        ({}, "0 columns and no rows"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, arrays, reason):
    """Pickled objects are never loaded, and arrays that make no table are named."""
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError) as caught:
        read_table("bad.npz")
    assert reason in str(caught.value)


@pytest.mark.parametrize("read", [read_table, raw_sha256])
def test_a_missing_file_names_the_folder_searched(tmp_path, read):
    """The message says where a relative path was looked for."""
    with pytest.raises(DataNotFound) as caught:
        read("data/mine.csv")
    assert str(tmp_path / "data" / "mine.csv") in str(caught.value)


def test_the_hash_is_of_the_bytes_and_the_names_inside(tmp_path):
    """Moving data does not change its hash; a changed byte or a renamed part of a folder does."""
    for folder in ("a", "b"):
        write_rows(tmp_path / folder / "0.parquet", [{"x": 1}])
    first = raw_sha256("a")
    assert raw_sha256("b") == first
    (tmp_path / "b" / "0.parquet").rename(tmp_path / "b" / "1.parquet")
    assert raw_sha256("b") != first
    write_rows(tmp_path / "a" / "0.parquet", [{"x": 2}])
    assert raw_sha256("a") != first
