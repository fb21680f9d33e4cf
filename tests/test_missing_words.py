"""What stands for a missing value means the same wherever rows come from."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from mlflow.pyfunc.scoring_server import infer_and_parse_data

from train.tabular.data.columns import MISSING_WORDS
from train.tabular.data.dataset import prepare
from train.tabular.data.features import CategoricalFeature
from train.tabular.data.table import read_table
from train.tabular.options import Config
from train.tabular.predictor import Predictor
from train.tabular.task import TabularTask
from train.tracking.pyfunc import _load_pyfunc

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ["NA", "N/A", "NULL", "nan", "null", "", "#N/A"]


def write(name, num_rows=60):
    """Write a table whose category and number are missing in some rows, in several words."""
    regions = ["EU", "AS", *WORDS]
    region = [regions[i % len(regions)] for i in range(num_rows)]
    x = [WORDS[i % 7] if i % 4 == 0 else str(i % 5) for i in range(num_rows)]
    y = [100.0 if r in WORDS else float(len(r)) + i % 5 for i, r in enumerate(region)]
    if name.endswith(".csv"):
        lines = [f"{r},{v},{t}" for r, v, t in zip(region, x, y, strict=True)]
        with open(name, "w") as file:
            file.write("\n".join(["region,x,y", *lines]) + "\n")
    else:
        numbers = [None if v in WORDS else float(v) for v in x]
        pyarrow.parquet.write_table(pa.table({"region": region, "x": numbers, "y": y}), name)
    return name


def train(data):
    """Return what predicts after some steps."""
    config = Config(data=data, target="y", hidden_size=8, num_layers=1)
    task = TabularTask(prepare(config), config, "cpu")
    torch.manual_seed(0)
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        task.loss(model, torch.arange(task.num_samples)).backward()
        optimizer.step()
    return Predictor(task.dataset.preprocessing, task.options, model.state_dict())


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_word_for_missing_gives_one_number_in_every_way(tmp_path, name):
    """From a file, a DataFrame, by the logged model and as JSON over HTTP, however it is stored."""
    predictor = train(write(name))
    assert None in predictor.preprocessing.categorical[0].vocabulary
    predictor.save(tmp_path / "model")
    served = _load_pyfunc(str(tmp_path / "model"))
    rows = [{"region": w, "x": v} for w in ("EU", *WORDS) for v in ("1", *WORDS)]
    lines = "".join(f"{r['region']},{r['x']}\n" for r in rows)
    (tmp_path / "rows.csv").write_text("region,x\n" + lines)
    expected = predictor.predict(read_table("rows.csv", ["region"]))
    assert len({round(v, 4) for v in expected}) == 4
    frame, body = pd.DataFrame(rows), {"dataframe_records": rows}
    np.testing.assert_array_equal(predictor.predict(pa.Table.from_pylist(rows)), expected)
    np.testing.assert_array_equal(served.predict(frame), expected)
    np.testing.assert_array_equal(served.predict(frame.astype("category")), expected)
    np.testing.assert_array_equal(served.predict(infer_and_parse_data(body)), expected)
    np.testing.assert_array_equal(served.predict(pd.read_csv("rows.csv")), expected)
    mixed = [{**row, "x": 1.0 if row["x"] == "1" else row["x"]} for row in rows]
    found = served.predict(infer_and_parse_data({"dataframe_records": mixed}))
    np.testing.assert_array_equal(found, expected)


def test_the_words_are_those_that_csv_always_had():
    """Whichever pyarrow reads, no table changes."""
    assert list(MISSING_WORDS) == pyarrow.csv.ConvertOptions().null_values


def test_a_word_that_an_older_version_learned_stays_a_word():
    """Its models predict what they did."""
    feature = CategoricalFeature("region", ("NA", "EU", None), num_rare=0)
    assert feature.transform(pa.chunked_array([["NA", "EU", None, "null"]])).tolist() == [
        1, 2, 3, 3,
    ]  # fmt: skip


@pytest.mark.parametrize("nothing", [*WORDS, " NA "])
def test_a_date_that_is_missing_may_be_a_word(tmp_path, nothing):
    """As a form or JSON sends it."""
    lines = [f"2024-01-{i % 28 + 1:02},{i % 28}\n" for i in range(50)] + [",3\n", ",4\n"]
    (tmp_path / "d.csv").write_text("day,y\n" + "".join(lines))
    predictor = train("d.csv")
    expected = predictor.predict(pd.DataFrame({"day": ["2024-01-07", None]}))
    found = predictor.predict(pd.DataFrame({"day": ["2024-01-07", nothing]}))
    np.testing.assert_array_equal(found, expected)
