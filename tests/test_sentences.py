"""What is told of a table is stored in English, and shown in the language of whoever reads it."""

import ast
import re
import zipfile
from itertools import chain

import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import ROOT

from onward.errors import DataError
from onward.words.language import choose, retold
from train.tabular.data import sentences
from train.tabular.data.dataset import prepare
from train.tabular.options import Config

# What is called the same in every language.
NAMES = {"UTF", "GBK", "GB", "Parquet", "pandas", "keep_index", "true", "list", "element", "int"}


@pytest.fixture(autouse=True)
def english():
    """Speak English again after the test."""
    yield
    choose([])


@pytest.fixture
def reports(tmp_path):
    """Return the reports of tables of which there is everything to say."""
    rows = 4000
    table = {
        "x": [i % 7 for i in range(rows)],
        "best": ["often"] * (rows // 2) + [f"v{i // 2}" for i in range(rows // 2)],
        **{f"same {i}": [1.0] * rows for i in range(7)},
        "key": [f"id-{i}" for i in range(rows)],
        "list": [[1]] * rows,
        "leak": list(range(rows)),
        "y": [None] + [float(10 ** (i % 6)) for i in range(rows - 1)],
    }
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    pq.write_table(pa.table(table), one)
    pq.write_table(pa.table({"x": [1.0, 2.0, 3.0, 4.0], "y": [5.0] * 4}), two)
    configs = [Config(data=str(one), target="y", drop=("leak",)), Config(data=str(two), target="y")]
    tables = [*texts_in(tmp_path), *odd_ones_in(tmp_path), *archives_in(tmp_path)]
    configs += [Config(data=str(path), target="y", odd_values="missing") for path in tables]
    return [sentence for config in configs for sentence in prepare(config).report]


def texts_in(folder):
    """Yield tables of text in each way that is found out."""
    for i, (encoding, separator, comma) in enumerate(
        [
            ("gbk", ";", ","),
            ("gbk", ",", "."),
            ("utf-8-sig", "\t", "."),
            ("utf-16", "|", ","),
            ("utf-8", ";", ","),
            ("utf-8", "\t", "."),
        ]
    ):
        decimals = [[f"{n}{comma}5", f"{n % 3}" + f"{comma}5" * (i % 2), f"{n}"] for n in range(9)]
        rows = [["面积", "x", "y"], *decimals]
        path = folder / f"text {i}.csv"
        path.write_bytes("\n".join(map(separator.join, rows)).encode(encoding))
        yield path


def odd_ones_in(folder):
    """Yield tables with a saved index, dates of two meanings, and a few values that are odd."""
    odd = ["-", "?", "a, b", "…"]
    for number in (1, 2, 4):
        path = folder / f"odd {number}.csv"
        with path.open("w") as file:
            print(",dates,numbers,when,either,y", file=file)
            for i in range(200):
                words = odd[i] if i < number else i, odd[i] if i < number else "2024/1/2"
                day = f"{i % 12 + 1:02}/{i % 9 + 1:02}/2024"
                print(i, f"{i % 7}", *(f'"{word}"' for word in words), day, i, sep=",", file=file)
        yield path


def archives_in(folder):
    """Yield tables with something beside them: a second sheet, other files, a text."""
    book = openpyxl.Workbook()
    for row in [["x", "y"], [1, 2], [2, 3], [3, 4]]:
        book.active.append(row)
    book.create_sheet("notes")
    book.save(folder / "sheets.xlsx")
    for number in (1, 7):
        parts = folder / f"parts {number}"
        parts.mkdir()
        pq.write_table(pa.table({"x": [1.0, 2.0, 3.0], "y": [5.0, 6.0, 7.0]}), parts / "0.parquet")
        for i in range(number):
            (parts / f"note {i}.txt").write_text("by hand")
        yield parts
    np.savez(folder / "arrays.npz", x=np.arange(4), y=np.arange(4))
    with zipfile.ZipFile(folder / "arrays.npz", "a") as archive:
        archive.writestr("README.txt", "by hand")
    yield from (folder / "sheets.xlsx", folder / "arrays.npz")


def worded():
    """Yield (place, pattern) of each string of words in what reads and prepares tables.

    Not of what is translated where it stands, or compared, nor of a docstring.
    """
    for name in (
        "dataset",
        "excel",
        "fitting",
        "parquet",
        "prepare",
        "recognise",
        "source",
        "table",
        "text",
    ):
        tree = ast.parse((ROOT / "train" / "tabular" / "data" / f"{name}.py").read_text())
        aside = set()
        for node in ast.walk(tree):
            is_said = isinstance(node, ast.Call) and ast.unparse(node.func) == "_"
            if is_said or isinstance(node, ast.Compare):
                aside |= set(ast.walk(node))
            elif isinstance(node, ast.Expr):
                aside.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                aside |= set(node.values)
        for node in ast.walk(tree):
            if node in aside or not isinstance(node, ast.Constant | ast.JoinedStr):
                continue
            text, pattern = text_of(node)
            if " " in text and len(re.findall("[A-Za-z]{2,}", text)) > 1:
                yield f"{name}.py:{node.lineno}: {text}", pattern


def text_of(node):
    """Return what a string, or an f-string, says itself, and the pattern of all it may say."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    text = "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in parts)
    return text, ".*".join(map(re.escape, re.split(r"\{\w*\}", text)))


def test_every_sentence_that_there_is_is_told(reports):
    """These reports have each string of words of the code; the next test wants them in Chinese."""
    said, found = "\n".join(reports), list(worded())
    assert len(found) > 20
    assert [place for place, pattern in found if not re.search(pattern, said)] == []


def test_every_entry_is_of_a_sentence_that_there_is(reports):
    """No message is kept for what no table gives any more."""
    choose(["zh"])
    told = [sentences.told(sentence) for sentence in reports]
    for message in [*sentences._SENTENCES, *chain(*sentences._PARTS.values())]:
        messages = [m for m in sentences._SENTENCES if m != message]
        parts = {name: [m for m in of if m != message] for name, of in sentences._PARTS.items()}
        assert [retold(sentence, messages, parts) for sentence in reports] != told, message


def test_every_sentence_is_told_in_chinese(reports):
    """With its numbers and the names of columns as they are, words of the program's included."""
    choose(["zh"])
    assert len(set(map(len, reports))) > 8
    for sentence in reports:
        told = sentences.told(sentence)
        assert set(re.findall("[A-Za-z_]{2,}", re.sub("'[^']*'", "", told))) <= NAMES, told
        quoted = [re.findall("'[^']*'", text) for text in (sentence, told)]
        assert sorted(quoted[0]) == sorted(quoted[1])
        digits = [sorted(re.findall(r"\d+(?:,\d+)*", text)) for text in (sentence, told)]
        assert digits[0] == digits[1]


def test_what_is_stored_is_english_whoever_prepares_it(reports, tmp_path):
    """The fingerprinted files are the same bytes in every language."""
    choose(["zh"])
    config = Config(data=str(tmp_path / "one.parquet"), target="y", drop=("leak",))
    assert list(prepare(config).report) == reports[: len(prepare(config).report)]


def test_in_english_a_sentence_stays_as_it_is(reports):
    """Also one that an older or a newer version has stored, or somebody else, of any length."""
    assert [sentences.told(sentence) for sentence in reports] == reports
    choose(["zh"])
    for other in ("Something else was found.", f"Column '' is numbers: {'x in row 1, ' * 10**5}."):
        assert sentences.told(other) == other


def test_why_nothing_is_left_is_told_in_chinese(tmp_path):
    """The reasons that an error gives are those of the report, the type of a column included."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"list": [[1]] * 4, "same": [1] * 4, "y": [1.0, 2.0, 3.0, 4.0]}), path)
    choose(["zh"])
    with pytest.raises(DataError) as refused:
        prepare(Config(data=str(path), target="y"))
    assert "'list' (类型是 list<element: int64>); 'same' (在所有训练行中都相同)" in str(
        refused.value
    )
