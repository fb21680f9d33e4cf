"""Preprocessing: fitted on training rows, the same for all rows after, nothing lost silently."""

import datetime
import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from onward.errors import DataError, UsageError
from train.tabular.data import fitting
from train.tabular.data.dataset import prepare, source_fingerprint, split
from train.tabular.data.fitting import Work, target_values
from train.tabular.data.prepare import Preprocessing
from train.tabular.data.scale import TargetScale
from train.tabular.data.scratch import Scratch
from train.tabular.data.source import InMemory
from train.tabular.options import Config

LIMIT = 3.0


def fit(columns, **options):
    columns = {"y": range(len(next(iter(columns.values()))))} | columns
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    source = InMemory(table)
    targets = target_values(source, "y", Scratch())
    work = Work(source, targets, np.arange(len(targets)))
    return fitting.fit(work, target="y", **options)[0], table


def csv(path, columns):
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_numbers_are_standardised_with_the_training_rows():
    """Mean and spread come from the rows that were fitted, and unseen rows do not change them."""
    fitted, _ = fit({"x": [1.0, 2.0, 3.0]})
    assert (fitted.numeric[0].mean, fitted.numeric[0].std) == (2.0, math.sqrt(2 / 3))
    rows = pa.table({"x": [2.0, 2.0 + math.sqrt(2 / 3), 1.7e308]})
    numeric = fitted.transform(rows).numeric[:, 0]
    expected = [0.0, 1 / math.sqrt(1 + 1 / LIMIT**2), LIMIT]
    np.testing.assert_allclose(numeric, expected, rtol=1e-6)


@given(arrays.arrays(np.float64, st.integers(1, 20)))
@example(np.array([1.0, np.inf, 2.0, -np.inf]))
@example(np.array([1e-300, 2e-300, 1.7e308, -1.7e308]))
def test_any_numbers_give_finite_features(values):
    """NaN, infinities, subnormal and huge numbers all end within the limit, order kept."""
    try:
        fitted, table = fit({"x": values, "z": range(len(values)), "w": values < 0})
    except DataError:
        assert len(values) == 1  # nothing varies in a single row
        return
    features = fitted.transform(table).numeric
    assert np.isfinite(features).all()
    assert np.abs(features).max(initial=0.0) <= LIMIT
    for column, feature in zip(features.T, fitted.numeric, strict=True):
        if (feature.column, feature.part) == ("x", "value"):
            known = np.isfinite(values)
            assert (np.diff(column[known][np.argsort(values[known])]) >= 0).all()


def test_missing_numbers_get_the_median_and_an_indicator():
    """A gap becomes the training median, told apart by a second column; no gaps, no such column."""
    fitted, table = fit({"x": [1.0, None, 3.0, math.nan, 100.0], "full": [1, 2, 3, 4, 5]})
    assert [(f.column, f.part) for f in fitted.numeric] == [
        ("x", "value"),
        ("x", "missing"),
        ("full", "value"),
    ]
    assert fitted.numeric[0].fill == 3.0
    numeric = fitted.transform(table).numeric
    assert numeric[1, 0] == numeric[2, 0] == numeric[3, 0]
    assert numeric[:, 1].round(6).tolist() == [
        0,
        numeric[1, 1].round(6),
        0,
        numeric[1, 1].round(6),
        0,
    ]


def test_unknown_categories_have_code_0():
    """Frequent values have codes of their own; rare, unseen and missing ones share code 0."""
    fitted, _ = fit({"c": ["b", "a", "b", "a", "b", "once"]})
    (feature,) = fitted.categorical
    assert (feature.vocabulary, feature.num_rare) == (("b", "a"), 1)
    codes = fitted.transform(pa.table({"c": ["a", "b", "once", "new", None]})).categorical
    assert codes[:, 0].tolist() == [2, 1, 0, 0, 0]


def test_missing_categories_that_are_frequent_have_their_own_code():
    """That a category is missing can be learned, apart from unknown ones."""
    fitted, _ = fit({"c": ["a", None, "a", None, "a"]})
    assert fitted.categorical[0].vocabulary == ("a", None)
    codes = fitted.transform(pa.table({"c": ["a", None, "new"]})).categorical
    assert codes[:, 0].tolist() == [1, 2, 0]


def test_high_cardinality_is_capped_by_frequency():
    """However many categories there are, the model's table of them stays small."""
    values = [f"v{i}" for i in range(5000) for _ in range(3)] + ["often"] * 4
    fitted, table = fit({"c": values})
    (feature,) = fitted.categorical
    assert feature.vocabulary[0] == "often"
    assert (feature.num_codes, feature.num_rare) == (1001, 4001)
    assert fitted.transform(table).categorical.max() == 1000


def test_dates_become_the_calendar_parts_that_vary():
    """A date gives numbers for year, month, …, without those that are the same in all rows."""
    days = [datetime.datetime(2024, 1, 1, hour) for hour in (0, 6, 12)]
    fitted, table = fit({"t": [*days, datetime.datetime(2024, 3, 1, 0), None]})
    assert [f.part for f in fitted.numeric] == ["month", "weekday", "hour", "missing"]
    hours = fitted.transform(table).numeric[:3, 2]
    assert hours[0] < hours[1] < hours[2]


def test_what_is_left_out_is_reported():
    """Constant columns, identifiers, and types that are no use are named with the reason."""
    columns = {
        "x": range(20),
        "same": [1.0] * 20,
        "key": [f"id-{i}" for i in range(20)],
        "empty": pa.nulls(20),
        "list": [[1]] * 20,
        "leak": range(20),
    }
    fitted, _ = fit(columns, drop=["leak"])
    assert fitted.columns == {"x"}
    report = "\n".join(fitted.report())
    assert "'same', 'empty' (the same in all training rows)" in report
    assert "'key' (nearly every value different, like an identifier)" in report
    assert "'list' (of type list<item: int64>)" in report
    assert "'leak' (dropped as asked)" in report


def test_it_survives_json():
    """What was fitted can be stored as JSON and does the same afterwards, to the bit."""
    columns = {
        "x": [0.1, None, 3.0],
        "c": ["ü", "ü", None],
        "d": [datetime.date(2020, 1, i) for i in (1, 2, 3)],
    }
    fitted, table = fit(columns)
    again = Preprocessing.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again == fitted
    before, after = fitted.transform(table), again.transform(table)
    assert before.numeric.tobytes() == after.numeric.tobytes()
    assert before.categorical.tobytes() == after.categorical.tobytes()


def test_rows_that_do_not_fit_are_refused():
    """A column that is missing, or text where numbers were, is an error that names it."""
    fitted, _ = fit({"x": [1.0, 2.0], "z": [1, 2]})
    with pytest.raises(DataError, match="lacks 'x'"):
        fitted.transform(pa.table({"z": [1]}))
    with pytest.raises(DataError, match=r"column 'x' is not what it was.*'abc'"):
        fitted.transform(pa.table({"x": ["abc"], "z": [1]}))


positive = arrays.arrays(np.float64, st.integers(1, 30), elements=st.floats(1e-30, 1e30))


@given(positive, st.sampled_from(["linear", "log", "auto"]))
def test_the_target_comes_back_from_its_scale(values, kind):
    """Decoding undoes encoding, whatever scale was chosen."""
    scale = TargetScale.fit(values, kind)
    back = scale.decode(scale.encode(values))
    np.testing.assert_allclose(back, values, rtol=1e-6, atol=1e-9 * np.abs(values).max())


def test_a_wild_prediction_does_not_overflow():
    """On the log scale predictions stay within a factor of e of the training rows' range."""
    scale = TargetScale.fit([1.0, 10.0, 1e4], "log")
    np.testing.assert_allclose(scale.decode([-1e9, 1e9]), [1 / math.e, 1e4 * math.e])
    assert np.isfinite(scale.encode([0.0, -5.0])).all()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.exp(np.linspace(0, 8, 50)), "log"),
        (np.exp(np.linspace(0, 8, 50)) - 1, "linear"),  # 0 has no logarithm
        (np.linspace(1, 2, 50), "linear"),
        ([5.0, 5.0], "linear"),
    ],
)
def test_auto_takes_the_logarithm_of_skewed_positive_targets(values, kind):
    """The scale follows from the training targets."""
    assert TargetScale.fit(values).kind == kind


@given(st.integers(2, 300), st.floats(0.01, 0.9), st.integers(0, 2**63 - 1))
def test_the_split_is_a_partition(num_rows, val_fraction, seed):
    """Each row is on one side, both sides have some, and the seed decides."""
    train, val = split(num_rows, val_fraction, seed)
    assert sorted([*train, *val]) == list(range(num_rows))
    assert min(len(train), len(val)) >= 1
    assert abs(len(val) - num_rows * val_fraction) <= 1
    assert np.array_equal(split(num_rows, val_fraction, seed)[0], train)


def test_the_split_never_changes():
    """The split of a seed is the same in every version: it is written down here."""
    assert split(10, 0.3, 0)[1].tolist() == [3, 2, 1]


def test_nothing_of_the_validation_rows_is_learned(tmp_path):
    """Other values in the validation rows leave the preprocessing as it was."""
    _, val = split(40, 0.2, 0)
    x = np.arange(40.0)
    one = prepare(Config(data=csv(tmp_path / "a.csv", {"x": x, "y": x}), target="y"))
    x[val] = 1e6
    two = prepare(Config(data=csv(tmp_path / "b.csv", {"x": x, "y": x}), target="y"))
    assert one.preprocessing == two.preprocessing
    assert one.train.features.numeric.tobytes() == two.train.features.numeric.tobytes()
    assert len(two.val) == len(val) == 8


def test_rows_without_target_are_dropped_and_counted(tmp_path):
    """A row that has no target, or an infinite one, is no row; the report says how many."""
    data = csv(tmp_path / "a.csv", {"x": range(6), "y": [1, "", 3, "inf", 5, "nan"]})
    dataset = prepare(Config(data=data, target="y"))
    assert sorted([*dataset.train.target, *dataset.val.target]) == [1, 3, 5]
    assert "3 rows without a value in 'y' dropped." in dataset.report


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "needs a target: pass target=<column>, one of 'size', 'shape', 'y'"),
        ({"target": "sise"}, "did you mean 'size'?"),
        ({"target": "shape"}, "target 'shape' is not a number: it holds string, such as 'round'"),
        (
            {"target": "y", "drop": ("shap",)},
            "drop: there is no column 'shap'; did you mean 'shape'?",
        ),
        ({"target": "y", "drop": ("size", "shape")}, "nothing is left to predict 'y' from"),
        ({"target": "y", "target_scale": "log"}, "target_scale=log needs positive targets"),
        ({"target": "gone"}, "0 rows with a value in target 'gone'"),
    ],
)
def test_options_that_do_not_fit_the_table_are_explained(tmp_path, options, reason):
    """The message names the value, what there is, and what to pass."""
    columns = {
        "size": range(8),
        "shape": ["round", "flat"] * 4,
        "y": range(-4, 4),
        "gone": [""] * 8,
    }
    if not options:
        del columns["gone"]
    with pytest.raises(DataError) as caught:
        prepare(Config(data=csv(tmp_path / "a.csv", columns), **options))
    assert reason in str(caught.value)


def test_a_fork_uses_the_fitted_preprocessing(tmp_path):
    """Another table with the same columns goes through what the first one's rows taught."""
    one = Config(data=csv(tmp_path / "a.csv", {"x": range(10), "y": range(10)}), target="y")
    two = Config(data=csv(tmp_path / "b.csv", {"x": range(100), "y": range(100)}), target="y")
    fitted = prepare(one).preprocessing
    forked = prepare(two, fitted)
    assert forked.preprocessing is fitted
    assert forked.fingerprint == source_fingerprint(two, fitted) != source_fingerprint(two)
    with pytest.raises(UsageError, match="its scale is linear"):
        prepare(two.replace(target_scale="log"), fitted)


def test_the_fingerprint_is_of_what_decides_the_arrays(tmp_path):
    """The same bytes elsewhere have the same fingerprint; other options or bytes another one."""
    config = Config(data=csv(tmp_path / "a.csv", {"x": range(9), "y": range(9)}), target="y")
    moved = config.replace(data=csv(tmp_path / "b.csv", {"x": range(9), "y": range(9)}))
    first = source_fingerprint(config)
    assert source_fingerprint(moved.replace(lr=1.0, seed=5)) == first
    others = [{"split_seed": 1}, {"val_fraction": 0.5}, {"target": "x"}, {"target_scale": "log"}]
    others += [{"drop": ("x",)}, {"data": csv(tmp_path / "c.csv", {"x": range(9), "y": [1] * 9})}]
    assert len({first, *(source_fingerprint(config.replace(**o)) for o in others)}) == 7
