"""Raw rows in, predictions out: whatever they are kept in, and however many at a time."""

import datetime
import json
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from mlflow.exceptions import MlflowException

from onward.errors import CheckpointDamaged, DataError
from train.tabular.data import cache
from train.tabular.data.dataset import prepare, split
from train.tabular.options import Config
from train.tabular.predictor import RECIPE_FILE, WEIGHTS_FILE, Predictor
from train.tabular.pyfunc import _load_pyfunc
from train.tabular.task import TabularTask

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_ROWS = 300
EPOCH = datetime.date(2020, 1, 1)
NAMES = ("whole", "part", "flag", "day", "moment", "word", "kind")


def some_missing(values, draw):
    return [None if gone else value for value, gone in zip(values, draw, strict=True)]


def raw_table(num_rows=NUM_ROWS, seed=0):
    """Return rows with a column of every kind, each of some with values missing."""
    random = np.random.default_rng(seed)
    days = random.integers(0, 900, num_rows).tolist()
    dates = [EPOCH + datetime.timedelta(days=n) for n in days]
    times = [datetime.datetime.combine(d, datetime.time(d.day % 24, 7)) for d in dates]
    part = random.normal(size=num_rows)
    words = [["red", "green", "blue"][n] for n in random.integers(0, 3, num_rows)]
    gone = random.random((num_rows, 4)) < 0.1
    columns = {
        "whole": random.integers(-50, 50, num_rows),
        "part": some_missing(part.tolist(), gone[:, 0]),
        "flag": some_missing((part > 0).tolist(), gone[:, 1]),
        "day": pa.array(dates, pa.date32()),
        "moment": pa.array(some_missing(times, gone[:, 2]), pa.timestamp("us")),
        "word": some_missing(words, gone[:, 3]),
        "kind": pa.array([word[0] for word in words]).dictionary_encode(),
        "price": np.exp(2 + part / 2 + 0.1 * random.normal(size=num_rows)),
    }
    return pa.table(columns)


def make_task(tmp_path, table=None, **options):
    path = tmp_path / "table.parquet"
    pyarrow.parquet.write_table(raw_table() if table is None else table, path)
    config = Config(data=str(path), target="price", hidden_size=16, num_layers=2, **options)
    return TabularTask(prepare(config), config, "cpu")


def train(task, steps=8):
    """Return a model after a few steps on all rows."""
    torch.manual_seed(0)
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(model, torch.arange(task.num_samples)).backward()
        optimizer.step()
    return model


def predictor_of(task, model):
    return Predictor(task.dataset.preprocessing, task.options, model.state_dict())


@pytest.fixture
def predictor(tmp_path):
    """Return what predicts by a model that was trained for a few steps."""
    task = make_task(tmp_path)
    return predictor_of(task, train(task))


def nullable(table):
    return table.to_pandas().convert_dtypes()


def of_arrow(table):
    return table.to_pandas(types_mapper=pd.ArrowDtype)


def through_csv(table):
    """Return the rows as a CSV leaves them: dates and all are text."""
    frame = table.to_pandas()
    return frame.astype({"day": str, "moment": object}).assign(
        moment=[None if pd.isna(m) else m.isoformat() for m in frame["moment"]]
    )


def with_offsets(table):
    """Return the rows as JSON has dates of a time zone, here two hours east of Greenwich."""
    frame = table.to_pandas()
    zone = datetime.timezone(datetime.timedelta(hours=2))
    moments = [
        None if pd.isna(m) else m.tz_localize("UTC").astimezone(zone).isoformat()
        for m in frame["moment"]
    ]
    return frame.assign(moment=moments)


def as_floats(table):
    """Return the rows as MLflow's signature leaves them: numbers are doubles."""
    return table.to_pandas().astype({"whole": float})


def of_categories(table):
    return table.to_pandas().astype({"word": "category", "kind": "category"})


def moments_for_days(table):
    return table.to_pandas().astype({"day": "datetime64[ns]"})


def shuffled(table):
    return table.append_column("more", [["?"] * len(table)]).select(
        ["more", *reversed(table.column_names)]
    )


def in_chunks(table):
    return pa.concat_tables([table.slice(0, 7), table.slice(7)])


def of_large_strings(table):
    fields = {"word": pa.large_string(), "kind": pa.large_string(), "whole": pa.int8()}
    types = [(f.name, fields.get(f.name, f.type)) for f in table.schema]
    return table.cast(pa.schema(types))


@pytest.mark.parametrize(
    "kept",
    [pa.Table.to_pandas, nullable, of_arrow, through_csv, with_offsets, as_floats, of_categories,
     moments_for_days, shuffled, in_chunks, of_large_strings,
     lambda table: shuffled(table).to_pandas().set_index("more")],
)  # fmt: skip
def test_the_same_rows_give_the_same_numbers(predictor, kept):
    """Of pandas or of pyarrow, with nulls or NaN, in any order and beside others: bit for bit."""
    rows = raw_table(50, seed=1).drop_columns("price")
    expected = predictor.predict(rows)
    assert expected.dtype == np.float64
    assert len(np.unique(expected)) > 40
    np.testing.assert_array_equal(predictor.predict(kept(rows)), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("nothing", [None, np.nan, pd.NaT, pd.NA, float])
def test_a_column_without_values_is_one_of_missing_values(predictor, name, nothing):
    """Whichever nothing it holds, and whatever the column held in training."""
    rows = raw_table(20, seed=1)
    at = rows.column_names.index(name)
    gone = rows.set_column(at, name, pa.nulls(20).cast(rows[name].type))
    if nothing is float:
        given = rows.set_column(at, name, pa.nulls(20, pa.float64()))
    else:
        given = rows.to_pandas().assign(**{name: pd.Series([nothing] * 20)})
    np.testing.assert_array_equal(predictor.predict(given), predictor.predict(gone))


def test_categories_that_training_did_not_have_are_alike(predictor):
    """They are no error, and which of them it is makes no difference."""
    rows = raw_table(20, seed=1).to_pandas()
    first, second = (predictor.predict(rows.assign(word=w, kind=w)) for w in ("mauve", "12"))
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(first).all()
    assert (first != predictor.predict(rows)).any()


@pytest.mark.parametrize("options", [{"precision": "fp32"}, {"precision": "bf16"}])
@pytest.mark.parametrize("batch_size", [1, 7, 299])
def test_a_prediction_does_not_depend_on_its_company(tmp_path, options, batch_size):
    """Row by row or all at once: the numbers agree to the last digits of float32."""
    task = make_task(tmp_path, **options)
    predictor, rows = predictor_of(task, train(task)), raw_table(seed=1)
    parts = [rows.slice(at, batch_size) for at in range(0, len(rows), batch_size)]
    apart = np.concatenate([predictor.predict(part) for part in parts])
    np.testing.assert_allclose(apart, predictor.predict(rows), rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("target_scale", ["linear", "log"])
@pytest.mark.parametrize("num_rows", [300, 50_000])
def test_validation_rows_give_what_validated(tmp_path, precision, target_scale, num_rows):
    """Raw, in their order: the metrics of the training come out, bit for bit."""
    table = raw_table(num_rows)
    task = make_task(tmp_path, table, precision=precision, target_scale=target_scale)
    model = train(task, steps=3)
    _, val = split(num_rows, task.options.val_fraction, task.options.split_seed)
    predicted = predictor_of(task, model).predict(table.take(pa.array(val)))
    error, metrics = predicted - task.dataset.val.target, task.evaluate(model)
    assert task.dataset.preprocessing.scale.kind == target_scale
    assert metrics["val_rmse"] == np.sqrt(np.mean(error**2))
    assert metrics["val_mae"] == np.mean(np.abs(error))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_was_saved_predicts_the_same(predictor, tmp_path, precision):
    """Through the folder, as MLflow begins to load it: the same bits."""
    task = make_task(tmp_path, precision=precision)
    predictor, rows = predictor_of(task, train(task)), raw_table(50, seed=1)
    predictor.save(tmp_path / "new" / "saved")
    served = _load_pyfunc(f"{tmp_path}/new/saved")
    for loaded in (Predictor.load(tmp_path / "new" / "saved"), served):
        np.testing.assert_array_equal(loaded.predict(rows), predictor.predict(rows))
    with pytest.raises(MlflowException, match="lacks 'whole'") as refused:
        served.predict(rows.to_pandas().drop(columns="whole"))
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"


class Code:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_weights_with_code_in_them_are_refused(predictor, tmp_path):
    """Nothing is unpickled but tensors, so nothing of a stranger's model runs by being read."""
    predictor.save(tmp_path / "saved")
    torch.save({"linear.weight": Code()}, tmp_path / "saved" / WEIGHTS_FILE)
    with pytest.raises(CheckpointDamaged) as refused:
        Predictor.load(tmp_path / "saved")
    assert not (tmp_path / "executed").exists()
    assert "it holds code (posix.mkdir)" in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"no weights", None])
def test_weights_that_cannot_be_read_are_damaged(predictor, tmp_path, content):
    """Cut short, or something else: one error says it."""
    predictor.save(tmp_path / "saved")
    file = tmp_path / "saved" / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    with pytest.raises(CheckpointDamaged, match=WEIGHTS_FILE):
        Predictor.load(tmp_path / "saved")


def test_weights_that_would_grow_are_refused(predictor, tmp_path):
    """A small file of weights that are huge as soon as they are copied is not loaded."""
    predictor.save(tmp_path)
    weights = torch.load(tmp_path / WEIGHTS_FILE)
    bomb = {name: weight.flatten()[:1].expand(1 << 30) for name, weight in weights.items()}
    torch.save(bomb, tmp_path / WEIGHTS_FILE)
    with pytest.raises(CheckpointDamaged, match="a tensor of 4,294,967,296 bytes"):
        Predictor.load(tmp_path)


def test_weights_are_not_those_of_the_file_any_more(predictor, tmp_path):
    """What happens to the file after it was read changes, and ends, nothing."""
    predictor.save(tmp_path)
    loaded = Predictor.load(tmp_path)
    with open(tmp_path / WEIGHTS_FILE, "r+b") as file:
        file.truncate(0)
    rows = raw_table(20, seed=1)
    assert np.array_equal(loaded.predict(rows), predictor.predict(rows))


@pytest.mark.parametrize(
    "recipe", ["[" * 20_000 + "]" * 20_000, "[]", "{}", '{"format_version": 1}', "{", "1e999"]
)
def test_a_recipe_that_is_none_is_refused_in_one_line(predictor, tmp_path, recipe):
    """A folder of a model comes from a store that others may write to."""
    predictor.save(tmp_path)
    (tmp_path / "recipe.json").write_text(recipe)
    with pytest.raises(CheckpointDamaged, match=r"recipe\.json cannot be read") as caught:
        Predictor.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_recipe_of_a_huge_model_is_refused_before_it_is_made(predictor, tmp_path):
    """The weights are small, so the model that is made for them is."""
    predictor.save(tmp_path)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    recipe["config"]["hidden_size"] = 1 << 24
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(CheckpointDamaged, match="does not fit its options"):
        Predictor.load(tmp_path)


def test_a_folder_of_a_newer_version_is_refused(predictor, tmp_path):
    """What it means is not known here."""
    predictor.save(tmp_path / "saved")
    recipe = tmp_path / "saved" / RECIPE_FILE
    recipe.write_text(json.dumps(json.loads(recipe.read_text()) | {"format_version": 2}))
    with pytest.raises(CheckpointDamaged, match="format version 2, not 1"):
        Predictor.load(tmp_path / "saved")


@pytest.mark.parametrize(
    "change",
    [lambda w: w.pop("linear.bias"),
     lambda w: w.update(more=torch.zeros(1)),
     lambda w: w.update({"linear.bias": torch.zeros(2)}),
     lambda w: w.update({"linear.bias": "text"})],
)  # fmt: skip
def test_weights_of_another_model_are_refused(tmp_path, change):
    """Too few, too many, of another shape, of another kind."""
    task = make_task(tmp_path)
    weights = dict(task.build_model().state_dict())
    change(weights)
    with pytest.raises(CheckpointDamaged, match="does not fit its options"):
        Predictor(task.dataset.preprocessing, task.options, weights)


@pytest.mark.parametrize("as_frame", [False, True])
def test_missing_columns_are_named(predictor, as_frame):
    """All of them, whatever the rows are kept in."""
    rows = raw_table(5).drop_columns(["word", "whole"])
    with pytest.raises(DataError, match="lacks 'whole', 'word'"):
        predictor.predict(rows.to_pandas() if as_frame else rows)
    with pytest.raises(DataError, match="lacks 'day', 'flag'"):
        predictor.predict(pd.DataFrame(index=range(3)))


@pytest.mark.parametrize("name", ["whole", "part", "flag", "day", "moment"])
def test_a_column_of_another_kind_is_named(predictor, name):
    """Words, or dates for numbers and numbers for dates, or values of several kinds."""
    rows = raw_table(2).to_pandas()
    wrong = [["many", "few"], [b"1", 2.5], [[1], [2]]]
    since_1970 = [[1_600_000_000, None], [1_600_000_000, 1_600_000_001]]  # in seconds, or in what?
    moments = [[pd.Timestamp("2020-09-13"), None], [datetime.date(2020, 9, 13), None]]
    for values in wrong + (since_1970 if name in ("day", "moment") else moments):
        with pytest.raises(DataError, match=f"column '{name}'"):
            predictor.predict(rows.assign(**{name: values}))
    assert predictor.predict(rows.assign(**{name: [pd.NaT, pd.NaT]})).shape == (2,)


def test_a_blank_is_a_missing_number(predictor):
    """As in CSV: forms send an empty text for what was not filled in."""
    rows = raw_table(2).to_pandas().astype({"part": object})
    missing, blank = rows.assign(part=[None, 2.5]), rows.assign(part=["", "2.5"])
    expected = predictor.predict(missing)
    np.testing.assert_array_equal(predictor.predict(blank), expected)
    np.testing.assert_array_equal(predictor.predict(rows.assign(part=[" ", "2.5"])), expected)


def test_a_sample_of_raw_rows_is_kept_with_what_was_fitted(tmp_path):
    """The first few, of the columns that are used, with their types; without the arrays too."""
    table = raw_table().append_column("same", [["x"] * NUM_ROWS])
    dataset = make_task(tmp_path, table).dataset
    assert dataset.sample.equals(raw_table().drop_columns("price").slice(0, 5))
    arrays, record = cache.save(dataset, tmp_path / "cache")
    assert cache.load(tmp_path / "cache").sample.equals(dataset.sample)
    arrays.unlink()
    assert cache.load_preprocessing(record)[0] == dataset.preprocessing
    assert cache.load_preprocessing(record)[1].equals(dataset.sample)
    record.write_text("{}")
    with pytest.raises(DataError, match=record.name):
        cache.load_preprocessing(record)


def test_no_rows_give_no_numbers(predictor):
    """An empty table is no error."""
    rows = raw_table(5).slice(0, 0)
    for empty in (rows, rows.to_pandas(), pd.DataFrame({name: [] for name in NAMES})):
        found = predictor.predict(empty)
        assert (found.shape, found.dtype) == ((0,), np.float64)
