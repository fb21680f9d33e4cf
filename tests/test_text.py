"""Tables as people have them: how a text or a workbook is written is found out, and told."""

import datetime
import gzip
import os
import random
import signal
import tempfile
import threading
import zipfile

import openpyxl
import pyarrow
import pytest
from support import wait_for

from onward.errors import DataError
from train.tabular.data import scratch as scratch_module
from train.tabular.data import text
from train.tabular.data.dataset import prepare, source_fingerprint
from train.tabular.data.scratch import Scratch
from train.tabular.data.table import index_columns, read_raw, read_table
from train.tabular.data.text import read_text
from train.tabular.options import Config

ROWS = {"面积": [1.5, 2.0, -3.25], "城市": ["北京", "上海", "北京"], "价格": [10, 20, 30]}
TEXT = "面积,城市,价格\n1.5,北京,10\n2.0,上海,20\n-3.25,北京,30\n"
ENCODINGS = [
    ("gbk", "GBK"),
    ("gb18030", "GBK"),
    ("utf-16", "UTF-16"),
    ("utf-16-le", "UTF-16"),
    ("utf-16-be", "UTF-16"),
    ("utf-8-sig", "UTF-8 with a byte order mark"),
]


@pytest.mark.parametrize(("encoding", "told"), ENCODINGS)
@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "CSV.GZ"])
def test_the_encoding_is_found_out(tmp_path, encoding, told, suffix):
    """As Excel writes it in China, and as UTF-16, packed or not."""
    content = TEXT.encode(encoding)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.lower().endswith("gz") else content)
    raw = read_raw(str(path))
    assert raw.table.to_pydict() == ROWS
    [sentence] = raw.told
    assert told in sentence


def test_a_signal_that_comes_while_a_table_is_read_is_handled(tmp_path):
    """In the main thread pyarrow takes them over, and loses those that come near its end."""
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "1.5,x\n" * 4000)
    handled, draw = [], random.Random(0)
    pyarrow.enable_signal_handlers(True)  # which a run that was trained here has switched off
    before = signal.signal(signal.SIGTERM, lambda number, _frame: handled.append(number))
    try:
        for number in range(1, 41):
            send = threading.Timer(draw.uniform(0, 0.004), os.kill, (os.getpid(), signal.SIGTERM))
            send.start()
            while send.is_alive():
                assert len(read_text(path, path)[0]) == 4000
            wait_for(lambda number=number: len(handled) == number)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("encoding", ["gbk", "utf-16"])
@pytest.mark.parametrize("num_rows", [3, 200_000])
def test_names_alone_may_be_chinese(tmp_path, encoding, num_rows):
    """Over values of ASCII; however long the table is."""
    (tmp_path / "a.csv").write_bytes(("面积,价格\n" + "1.5,2\n" * num_rows).encode(encoding))
    table = read_table("a.csv", ["价格"])
    assert (table.column_names, table.num_rows) == (["面积", "价格"], num_rows)
    assert table["价格"][0].as_py() == "2"


def test_values_alone_may_be_chinese(tmp_path):
    """Below names of ASCII, also where the first of them comes late, and for a column of text."""
    (tmp_path / "a.csv").write_bytes(("a,b\n" + "1,x\n" * 200_000 + "2,北京\n").encode("gbk"))
    for text_columns in ([], ["b"]):
        assert read_table("a.csv", text_columns)["b"][-1].as_py() == "北京"


@pytest.mark.parametrize(
    "content",
    [
        "größe,straße\n1,süß\n2,Köln\n".encode("latin1"),
        "prix,âge\n1,été\n".encode("cp1252"),
        "価格,都市\n1,東京\n".encode("shift_jis"),
        "價格,城市\n1,臺北\n".encode("big5"),
        b"a,b\n1,\xff\xfe\xfd\n",
    ],
)
def test_another_encoding_is_refused_without_a_guess(tmp_path, content):
    """What it is nobody can tell, so the way out names no encoding that could garble it."""
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError) as refused:
        read_table("a.csv")
    assert "neither UTF-8, UTF-16 nor GBK" in str(refused.value)
    assert "iconv" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "x;word;y\n1.5;a,b;2\n-2.0;c;3\n", "';'"),
        ("a.csv", "x\tword\ty\n1.5\ta,b\t2\n-2.0\tc\t3\n", "tabs"),
        ("a.csv", "x|word|y\n1.5|a,b|2\n-2.0|c|3\n", "'|'"),
        ("a.csv", "sep=;\r\nx;word;y\r\n1,5;a,b;2\r\n-2,0;c;3\r\n", "';'"),
        ("a.tsv", "x\tword\ty\n1.5\ta,b\t2\n-2.0\tc\t3\n", "tabs"),
        ("a.TSV", "x\tword\ty\n1.5\ta,b\t2\n-2.0\tc\t3\n", "tabs"),
        ("a.csv", "x;word;y\n1,5;a,b;2\n-2,0;c;3\n", "decimal commas in 1 column"),
        ("a.csv", '"x";"word";"y"\n"1,5";"a,b";2\n"-2,0";c;3\n', "decimal commas in 1 column"),
    ],
)
def test_the_separator_is_found_out(tmp_path, name, content, told):
    """Semicolons and tabs, with decimal commas or without."""
    (tmp_path / name).write_text(content)
    raw = read_raw(name)
    rows = {"x": [1.5, -2.0], "word": ["a,b", "c"], "y": [2, 3]}
    assert raw.table.to_pydict() == rows
    assert told in raw.told[0]
    assert index_columns(name) == []


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("a,b;c\n1,2\n", ["a", "b;c"]),
        ("a,b\n1;2,3\n", ["a", "b"]),
        ('"a;x","b;y"\n1,2\n', ["a;x", "b;y"]),
        ("a\n1;2\n", ["a"]),
        ("a,b\n" + "1,2\n" * 5, ["a", "b"]),
    ],
)
def test_a_table_with_commas_stays_one(tmp_path, content, names):
    """Whatever stands in its fields; nothing is told of it."""
    (tmp_path / "a.csv").write_text(content)
    raw = read_raw("a.csv")
    assert (raw.table.column_names, raw.told) == (names, ())


def test_dots_between_thousands(tmp_path):
    """Where a column has decimal commas, a dot in it stands between thousands."""
    (tmp_path / "a.csv").write_text("x;y\n1.234,5;1\n12;2\n1.000.000;3\n-0,25;4\n;5\n")
    assert read_table("a.csv")["x"].to_pylist() == [1234.5, 12.0, 1e6, -0.25, None]


def workbook(path, sheets):
    """Write a workbook with these rows in its sheets."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)


def test_a_sheet_of_excel_is_a_table(tmp_path):
    """The first one; numbers, dates, words, booleans and gaps as they are in a CSV."""
    day = datetime.datetime(2024, 2, 3)
    rows = [
        ["面积", "when", "seen", "word", "ok", None],
        [1.5, day, day, 'a "b", c', True, None],
        [None, day, day.replace(hour=7), "北京\nx", False],
        [],
        [0.1, day, day, "NA", True],
        [],
    ]
    workbook(tmp_path / "a.xlsx", {"prices": rows, "notes": [["x"]]})
    raw = read_raw("a.xlsx")
    assert raw.table.to_pydict() == {
        "面积": [1.5, None, 0.1],
        "when": [day.date()] * 3,
        "seen": [day, day.replace(hour=7), day],
        "word": ['a "b", c', "北京\nx", None],
        "ok": [True, False, True],
    }
    assert raw.told == ("The table is sheet 'prices', the first of 2.",)


@pytest.mark.parametrize(
    ("sheets", "reason"),
    [({"a": []}, "Empty CSV"), ({"a": [["x", "x"], [1, 2]]}, "more than one column named 'x'")],
)
def test_a_sheet_that_is_no_table_is_refused(tmp_path, sheets, reason):
    """In one line."""
    workbook(tmp_path / "a.xlsx", sheets)
    with pytest.raises(DataError, match=reason):
        read_table("a.xlsx")


@pytest.mark.parametrize("part", ["xl/worksheets/sheet1.xml", "xl/workbook.xml"])
@pytest.mark.parametrize("content", [b"<worksheet><cut", None])
def test_a_damaged_workbook_is_refused(tmp_path, part, content):
    """A part that is cut, or that is missing, is one line."""
    workbook(tmp_path / "whole.xlsx", {"a": [["x", "y"], [1, 2]]})
    with zipfile.ZipFile("whole.xlsx") as whole, zipfile.ZipFile("a.xlsx", "w") as damaged:
        for name in whole.namelist():
            if name != part or content is not None:
                damaged.writestr(name, content if name == part else whole.read(name))
    with pytest.raises(DataError, match=r"no Excel workbook|no sheet") as refused:
        read_table("a.xlsx")
    assert "\n" not in str(refused.value)


def test_empty_rows_above_a_sheet_are_passed_over(tmp_path):
    """Also where only the names are asked for."""
    workbook(tmp_path / "a.xlsx", {"a": [[], [], [None, "x", "y"], [0, 1, 2], [1, 5, 6]]})
    assert read_table("a.xlsx").to_pydict() == {"Unnamed: 0": [0, 1], "x": [1, 5], "y": [2, 6]}
    assert index_columns("a.xlsx") == ["Unnamed: 0"]


def test_the_same_rows_train_the_same_however_they_are_written(tmp_path):
    """The arrays of GBK, of semicolons with decimal commas and of Excel are those of plain CSV."""
    lines = [["x", "城市", "y"]]
    lines += [[i + 0.5, "北京" if i % 3 else "上海", i * i] for i in range(40)]
    plain = "".join(",".join(map(str, line)) + "\n" for line in lines)
    commas = "".join(";".join(str(v).replace(".", ",") for v in line) + "\n" for line in lines)
    files = {
        "a.csv": plain.encode(),
        "b.csv": plain.encode("gbk"),
        "c.tsv": plain.replace(",", "\t").encode("utf-16"),
        "d.csv": commas.encode("gbk"),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    workbook(tmp_path / "e.xlsx", {"a": lines})
    first, *others = (prepare(Config(data=name, target="y")) for name in (*files, "e.xlsx"))
    assert not [line for line in first.report if "The table is" in line]
    for other in others:
        assert other.preprocessing == first.preprocessing
        features = other.train.features
        assert features.numeric.tobytes() == first.train.features.numeric.tobytes()
        assert features.categorical.tobytes() == first.train.features.categorical.tobytes()
    assert "The table is text in GBK (GB18030), separated by ';'" in others[2].report[1]
    assert source_fingerprint(Config(data="e.xlsx", target="y"))


LONG = {
    "of one type each": "a,b,c,d\n" + "1,2.5,x,2024-01-05\n,-1e3,NA,2024-01-06 10:00\n" * 300,
    "whole numbers, then others": "a,b\n" + "1,2\n" * 300 + "1.5,2\n" * 3,
    "nothing, then numbers": "a,b\n" + ",2\n" * 300 + "7,2\n",
    "numbers, then words": "a,b\n" + "1,2\n" * 300 + "x,2\n",
    "days, then times": "a\n" + "2024-01-05\n" * 300 + "2024-01-06 10:00:00\n",
    "lines in quotes": "a,b\n" + '"x\ny, ""z""\n",2\n' * 300,
    "a row longer than a block": "a,b\n" + "1,x\n" * 300 + f"1,{'long ' * 1000}\n",
    "names alone": "a,b\n",
    "semicolons and commas": "a;b\n" + "1,5;北京\n1.234,5;上海\n" * 300,
    "whole numbers, then what sounds like an error": "a,b\n" + "1,2\n" * 300 + "invalid UTF8,2\n",
    "two rows of other lengths": "a,b\n" + "1,2\n" * 300 + "1,2,3\n",
}


@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "utf-16"])
@pytest.mark.parametrize("name", LONG)
def test_a_text_that_is_read_block_by_block_is_the_same(tmp_path, monkeypatch, name, encoding):
    """Types are those of all rows, and so is what is wrong with it."""
    path = tmp_path / "a.csv"
    path.write_bytes(LONG[name].encode(encoding))

    def read(scratch):
        try:
            return read_text(path, path, ["b"], scratch)
        except (DataError, pyarrow.ArrowException) as error:
            return str(error)

    whole = read(None)
    monkeypatch.setattr(text, "_WHOLE_BYTES", 0)
    monkeypatch.setattr(text, "_STREAMED_BYTES", 1000)
    monkeypatch.setattr(scratch_module, "_JOINED_ROWS", 100)
    found = read(Scratch(tmp_path))
    assert found == whole
    if not isinstance(whole, str):
        assert found[0].schema == whole[0].schema


def test_a_large_text_is_not_held_in_memory(tmp_path):
    """Its rows are pages of a file without a name, in the folder where there is room for them."""
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "0.123456789,a word of some length\n" * 1_200_000)
    before = pyarrow.total_allocated_bytes()
    table = read_raw(str(path), scratch=Scratch(tmp_path)).table
    assert len(table) == 1_200_000
    assert pyarrow.total_allocated_bytes() - before < table.nbytes / 10
    assert os.listdir(tmp_path) == ["a.csv"]


def test_a_disk_that_is_full_is_no_damage_of_the_table(tmp_path, monkeypatch):
    """It is told as what it is: the file is complete. One that is damaged is told as that."""
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "1,2\n" * 1000)
    monkeypatch.setattr(text, "_WHOLE_BYTES", 0)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_raw(str(path), scratch=Scratch(tmp_path / "no such folder"))
    packed = tmp_path / "a.csv.gz"
    packed.write_bytes(gzip.compress(random.Random(0).randbytes(10_000).hex().encode())[:-2000])
    with pytest.raises(DataError, match="cannot be read as CSV"):
        read_raw(str(packed), scratch=Scratch(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "r+b"))  # noqa: SIM115
    with pytest.raises(OSError, match="No space left"):
        read_raw(str(path), scratch=Scratch(tmp_path))
