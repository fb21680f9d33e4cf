"""A saved index of pandas is a row number: no feature, unless it is asked for."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from support import only_what_was_fitted

from onward.errors import DataError
from train.tabular.data import cache
from train.tabular.data.dataset import is_source_of, prepare, source_fingerprint
from train.tabular.data.prepare import Preprocessing
from train.tabular.data.provide import recover
from train.tabular.data.table import index_columns, read_table
from train.tabular.options import Config
from train.tabular.results import _example


@pytest.fixture
def frame():
    """Return rows with features a and b, and a target y."""
    random = np.random.default_rng(0)
    return pd.DataFrame(random.normal(size=(60, 3)), columns=["a", "b", "y"])


def to_csv(frame):
    frame.to_csv("t.csv")


def to_csv_twice(frame):
    frame.to_csv("t.csv")
    pd.read_csv("t.csv").to_csv("t.csv", index=False)


def to_csv_ever_again(frame):
    frame.to_csv("t.csv")
    pd.read_csv("t.csv").to_csv("t.csv")


def to_csv_of_levels(frame):
    frame.index = pd.MultiIndex.from_product([range(6), range(10)])
    frame.to_csv("t.csv")


def to_excel(frame):
    frame.to_excel("t.xlsx")


def to_parquet_shuffled(frame):
    frame.sample(frac=1, random_state=0).to_parquet("t.parquet")


def to_parquet_named(frame):
    frame.assign(id=[*range(30, 60), *range(30)]).set_index("id").to_parquet("t.parquet")


def to_parquet_of_levels(frame):
    frame.assign(i=range(60), j=0).set_index(["i", "j"]).to_parquet("t.parquet")


def to_parquet_of_periods(frame):
    frame.index = pd.period_range("2020-01", periods=60, freq="M", name="month")
    frame.to_parquet("t.parquet")


KEPT = {
    to_csv: ("t.csv", ["Unnamed: 0"]),
    to_csv_twice: ("t.csv", ["Unnamed: 0"]),
    to_csv_ever_again: ("t.csv", ["Unnamed: 0.1", "Unnamed: 0"]),
    to_csv_of_levels: ("t.csv", ["Unnamed: 0", "Unnamed: 1"]),
    to_excel: ("t.xlsx", ["Unnamed: 0"]),
    to_parquet_shuffled: ("t.parquet", ["__index_level_0__"]),
    to_parquet_named: ("t.parquet", ["id"]),
    to_parquet_of_levels: ("t.parquet", ["i", "j"]),
    to_parquet_of_periods: ("t.parquet", ["month"]),
}


@pytest.mark.parametrize("save", KEPT)
def test_an_index_is_left_out(frame, save):
    """However pandas wrote it; the report says so, and the model's example does not have it."""
    name, index = KEPT[save]
    save(frame)
    assert index_columns(name) == index
    dataset = prepare(Config(data=name, target="y"))
    assert dataset.preprocessing.column_names == ["a", "b"]
    [told] = [line for line in dataset.report if "a saved pandas index" in line]
    assert all(f"'{column}'" in told for column in index)
    assert "keep_index=true" in told
    assert list(_example(dataset.sample).reset_index().columns) == ["index", "a", "b"]


@pytest.mark.parametrize("save", KEPT)
def test_an_index_is_taken_if_asked_for(frame, save):
    """As any column, in the model's example too; that is another data set."""
    name, index = KEPT[save]
    save(frame)
    config = Config(data=name, target="y", keep_index=True)
    dataset = prepare(config)
    varying = [column for column in index if column != "j"]
    assert set(dataset.preprocessing.column_names) == {"a", "b", *varying}
    assert source_fingerprint(config) != source_fingerprint(config.replace(keep_index=False))
    assert dataset.fingerprint == source_fingerprint(config)
    example = _example(dataset.sample)
    assert {*example.columns} == {"a", "b", *varying}
    assert example.index.tolist() == [0, 1, 2, 3, 4]


def test_an_index_that_was_dropped_by_hand_is_the_same_data(frame):
    """Whoever gave drop=… goes on with the data of then."""
    to_parquet_named(frame)
    config = Config(data="t.parquet", target="y")
    assert source_fingerprint(config) == source_fingerprint(config.replace(drop=("id",)))


def test_what_is_to_be_predicted_may_be_the_index(frame):
    """It is the target then."""
    frame.set_index("y").to_parquet("t.parquet")
    assert prepare(Config(data="t.parquet", target="y")).preprocessing.column_names == ["a", "b"]


def test_a_table_of_an_index_alone_says_so(frame):
    """With the way out."""
    frame[["y"]].to_csv("t.csv")
    with pytest.raises(DataError, match=r"'Unnamed: 0' .a saved pandas index.*keep_index=true"):
        prepare(Config(data="t.csv", target="y"))


@pytest.mark.parametrize(
    "content",
    [
        "a,Unnamed: 0,y\n1,2,3\n4,5,6\n",  # not in front: somebody's column
        "a,,y\n1,2,3\n4,5,6\n",
        "index,id,y\n1,2,3\n4,5,6\n",
    ],
)
def test_a_column_that_only_looks_like_one_stays(tmp_path, content):
    """Only what pandas writes counts."""
    (tmp_path / "t.csv").write_text(content)
    assert index_columns("t.csv") == []


@pytest.mark.parametrize("notes", [b"nonsense", b"[]", b'{"index_columns": 5}', b"{}"])
def test_notes_that_are_not_pandas_own_change_nothing(frame, notes):
    """They are others' bytes."""
    table = pyarrow.parquet.read_table(save_plain(frame)).replace_schema_metadata({"pandas": notes})
    pyarrow.parquet.write_table(table, "t.parquet")
    assert index_columns("t.parquet") == []
    dataset = prepare(Config(data="t.parquet", target="y"))
    assert list(_example(dataset.sample).columns) == ["a", "b"]


def save_plain(frame):
    frame.to_parquet("plain.parquet", index=False)
    return "plain.parquet"


@pytest.mark.parametrize("freq", ["M", "D", "Q", "h"])
def test_a_period_is_the_date_of_its_beginning(frame, freq):
    """The same whether pandas has told pyarrow about periods or not, with gaps too."""
    periods = pd.Series(pd.period_range("2020-01", periods=60, freq=freq))
    periods[3] = pd.NaT
    frame.assign(p=periods).to_parquet("t.parquet")
    expected = [None if pd.isna(p) else p.to_timestamp().to_pydatetime() for p in periods]
    assert read_table("t.parquet")["p"].to_pylist() == expected
    dataset = prepare(Config(data="t.parquet", target="y"))
    assert "p" in dataset.preprocessing.column_names
    assert json.loads(_example(dataset.sample).to_json(date_format="iso"))["p"]["3"] is None


def test_a_run_of_a_version_that_kept_the_index_is_resumed_with_it(frame, tmp_path):
    """Its prepared data is made anew, if it is nowhere any more, as it was: bit for bit."""
    to_csv(frame)
    config = Config(data="t.csv", target="y")
    of_then = prepare(config.replace(keep_index=True))
    cache.save(of_then, tmp_path / "run")

    made = recover(
        config, tmp_path, of_then.fingerprint, only_what_was_fitted(tmp_path / "run"), "r1"
    )
    assert made.fingerprint == of_then.fingerprint != source_fingerprint(config)
    assert is_source_of(config, of_then.fingerprint)
    assert not is_source_of(config.replace(split_seed=1), of_then.fingerprint)
    assert made.preprocessing == of_then.preprocessing
    assert made.train.features.numeric.tobytes() == of_then.train.features.numeric.tobytes()


def test_a_model_that_knows_a_column_without_a_name_still_predicts(frame):
    """Its first column was called nothing; now it is called as pandas calls it."""
    to_csv(frame)
    fitted = prepare(Config(data="t.csv", target="y", keep_index=True)).preprocessing
    text = json.dumps(fitted.to_dict()).replace('"Unnamed: 0"', '""')
    of_then, rows = Preprocessing.from_dict(json.loads(text)), read_table("t.csv")
    assert "" in of_then.columns
    expected = fitted.transform(rows).numeric
    np.testing.assert_array_equal(of_then.transform(rows).numeric, expected)


@pytest.mark.parametrize("name", ["other", "t.parquet", "t.xlsx", "t.csv.gz"])
def test_what_cannot_be_read_has_no_index(tmp_path, name):
    """The fingerprint of its bytes is asked for on a resume; reading it says what is wrong."""
    (tmp_path / name).write_bytes(b"no table")
    assert index_columns(name) == []
    assert source_fingerprint(Config(data=name, target="y"))
    with pytest.raises(DataError):
        read_table(name)
