"""What is told of a table is stored in English, and shown in the language of whoever reads it."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from train.config import Config
from train.data import sentences
from train.data.dataset import prepare
from train.language import choose


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
    return [sentence for config in configs for sentence in prepare(config).report]


def test_every_sentence_is_told_in_chinese(reports):
    """With its numbers and the names of columns as they are, words of the program's included."""
    choose(["zh"])
    assert len(set(map(len, reports))) > 8
    for sentence in reports:
        told = sentences.told(sentence)
        assert not re.search("[A-Za-z]{3,} [a-z]", re.sub("'[^']*'", "", told)), told
        quoted = [re.findall("'[^']*'", text) for text in (sentence, told)]
        assert sorted(quoted[0]) == sorted(quoted[1])
        digits = [sorted(re.findall(r"\d[\d,]*", text)) for text in (sentence, told)]
        assert digits[0] == digits[1]


def test_what_is_stored_is_english_whoever_prepares_it(reports, tmp_path):
    """The fingerprinted files are the same bytes in every language."""
    choose(["zh"])
    config = Config(data=str(tmp_path / "one.parquet"), target="y", drop=("leak",))
    assert list(prepare(config).report) == reports[: len(prepare(config).report)]


def test_in_english_a_sentence_stays_as_it_is(reports):
    """Also one that an older or a newer version has stored."""
    assert [sentences.told(sentence) for sentence in reports] == reports
    choose(["zh"])
    assert sentences.told("Something else was found.") == "Something else was found."
