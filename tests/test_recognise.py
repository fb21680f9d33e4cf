"""A few odd values among numbers or dates are told, and never cost the column in silence."""

import dataclasses
import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from support import only_what_was_fitted

from onward.errors import DataError
from train.tabular.data import cache
from train.tabular.data.dataset import prepare, source_fingerprint
from train.tabular.data.provide import recover
from train.tabular.data.recognise import as_dates, is_nearly_all, recognise
from train.tabular.options import Config
from train.tabular.predictor import Predictor
from train.tabular.task import TabularTask

ODD = ["-", "?", "缺失", "n.d.", "<0.1", "1,234", "--", "#DIV/0!", "12a"]


def write(name="t.csv", num_rows=60, **columns):
    """Write columns, each a function of the row number, beside x and y; return the name."""
    columns = {"x": lambda i: i % 7 + 0.5, "y": lambda i: i % 5, **columns}
    rows = [[f'"{of(i)}"' for of in columns.values()] for i in range(num_rows)]
    with open(name, "w", encoding="utf-8") as file:
        file.write("\n".join(map(",".join, [list(columns), *rows])) + "\n")
    return name


def among_numbers(odd, row=41):
    return lambda i: odd if i == row - 1 else i % 9 + 0.25


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["size", "y"])
def test_an_odd_value_among_numbers_is_refused(odd, name):
    """Named with its row, and with the ways out; in the target too."""
    config = Config(data=write(**{name: among_numbers(odd)}), target="y")
    with pytest.raises(DataError) as refused:
        prepare(config)
    told = str(refused.value)
    which = "target" if name == "y" else "column"
    assert f"{which} '{name}' is numbers but for 1 of its values" in told
    assert f"{odd!r} in row 41." in told
    assert "odd_values=missing" in told
    assert ("drop=size" in told) == ("odd_values=text" in told) == (name == "size")
    assert "\n" not in told


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_value_may_count_as_missing(odd):
    """As if the field were empty, and the report says which."""
    odd_values = {"odd_values": "missing"}
    found = prepare(Config(data=write(size=among_numbers(odd)), target="y", **odd_values))
    expected = prepare(Config(data=write("g.csv", size=among_numbers("")), target="y"))
    assert found.preprocessing == expected.preprocessing
    assert found.train.features.numeric.tobytes() == expected.train.features.numeric.tobytes()
    told = f"Column 'size' is numbers; what is none counts as missing (1): {odd!r} in row 41."
    assert told in found.report


def test_an_odd_value_in_the_target_may_leave_its_row_out():
    """As a row without a target."""
    config = Config(data=write(y=among_numbers("-")), target="y", odd_values="missing")
    assert "1 rows without a value in 'y' dropped." in prepare(config).report


def test_a_column_with_odd_values_may_stay_text():
    """Then it is categories, or left out as an identifier, as it says in the report."""
    config = Config(data=write(size=among_numbers("-")), target="y", odd_values="text")
    assert "size" in {f.column for f in prepare(config).preprocessing.categorical}


@pytest.mark.parametrize("options", [{"drop": ("size",)}, {"odd_values": "text"}])
def test_what_is_not_used_is_not_refused(options):
    """A column that is left out may hold anything."""
    prepare(Config(data=write(size=among_numbers("-")), target="y", **options))


@pytest.mark.parametrize(
    ("count", "total", "nearly"),
    [(0, 0, False), (1, 1, True), (8, 9, False), (9, 10, True), (94, 100, False), (95, 100, True)],
)
def test_nearly_all_is_nineteen_of_twenty_or_all_but_one(count, total, nearly):
    """Of ten values one may be odd; of nine, it is a text."""
    assert is_nearly_all(count, total) == nearly


@pytest.mark.parametrize(
    "values",
    [
        ["a1", "b2"] * 30,
        ["1", "2", "3", "other"] * 20,
        ["12-3", "4-5"] * 20,
        ["1.2.3.4", "10.20.30.40"] * 20,
        ["05/06", "07/08"] * 20,
        [None] * 20,
    ],
)
def test_text_stays_text(values):
    """Codes, versions, and what has numbers in a good part of its values only."""
    column = pa.chunked_array([pa.array(values, pa.string())])
    found, odd = recognise(column)
    assert (found.to_pylist(), odd) == (values, None)


@pytest.mark.parametrize(("kind", "value"), [("numbers", "1.5"), ("dates", "2024/1/5")])
@pytest.mark.parametrize(
    ("odd_values", "is_of_kind"), [(["word"] * 45, True), (["-"] * 300, True), (["w"] * 55, False)]
)
def test_what_is_odd_may_all_be_in_front(kind, value, odd_values, is_of_kind):
    """Words are told by the first rows, but no column that is of a kind but for a few of them."""
    values = [None, *odd_values, *[value] * (1000 - len(odd_values))]
    _column, odd = recognise(pa.chunked_array([values]))
    assert (odd and (odd.kind, odd.count)) == ((kind, len(odd_values)) if is_of_kind else None)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024/01/05", (2024, 1, 5)),
        ("2024/1/5", (2024, 1, 5)),
        ("2024-1-5", (2024, 1, 5)),
        ("2024.01.05", (2024, 1, 5)),
        ("05.01.2024", (2024, 1, 5)),
        ("5.1.2024", (2024, 1, 5)),
        ("2024年1月5日", (2024, 1, 5)),
        ("2024年01月05", (2024, 1, 5)),
        (" 2024/1/5 7:30 ", (2024, 1, 5, 7, 30)),
        ("2024-01-05T07:30:15.25", (2024, 1, 5, 7, 30, 15, 250_000)),
        ("2024年1月5日 7:30", (2024, 1, 5, 7, 30)),
        ("2024/2/31", None),
        ("2024/13/1", None),
        ("31.31.2024", None),
        ("2024/1.5", None),
        ("24/1/5", None),
        ("2024/1/5 25:00", None),
        ("today", None),
    ],
)
def test_common_forms_of_dates_are_read(text, moment):
    """With slashes, dots and Chinese characters, with a time or without; none that is no day."""
    found = as_dates(pa.chunked_array([[text, None, "2023-12-31 01:00"]])).to_pylist()
    assert found == [
        moment and datetime.datetime(*moment),
        None,
        datetime.datetime(2023, 12, 31, 1),
    ]


@pytest.mark.parametrize(
    "form", ["{y}/{m:02}/{d:02}", "{y}-{m}-{d}", "{d}.{m}.{y}", "{y}年{m}月{d}日"]
)
def test_a_column_of_dates_is_used_as_dates(form):
    """The same arrays as of ISO dates; nothing is left out."""

    def day(i):
        return datetime.date(2023, 1, 1) + datetime.timedelta(days=7 * i)

    def shown(i):
        return "" if i == 5 else form.format(y=day(i).year, m=day(i).month, d=day(i).day)

    found = prepare(Config(data=write(when=shown), target="y"))
    iso = prepare(
        Config(data=write("iso.csv", when=lambda i: "" if i == 5 else day(i)), target="y")
    )
    assert found.preprocessing == iso.preprocessing
    assert found.train.features.numeric.tobytes() == iso.train.features.numeric.tobytes()
    assert "when" in found.preprocessing.column_names


def test_an_odd_value_among_dates_is_refused():
    """As among numbers."""

    def odd(i):
        return "soon" if i == 8 else f"2024/1/{i % 28 + 1}"

    with pytest.raises(
        DataError, match=r"'when' is dates but for 1 of its values.*'soon' in row 9"
    ):
        prepare(Config(data=write(when=odd), target="y"))
    dataset = prepare(Config(data=write(when=odd), target="y", odd_values="missing"))
    assert "Column 'when' is dates; what is none counts as missing (1)" in "".join(dataset.report)


def test_dates_that_could_be_two_days_stay_text():
    """With a line that says so."""
    data = write(when=lambda i: f"{i % 12 + 1:02}/{i % 9 + 1:02}/2024")
    [told] = [
        line for line in prepare(Config(data=data, target="y")).report if "stays text" in line
    ]
    assert "'01/01/2024'" in told
    assert "2024-01-31" in told


@pytest.mark.parametrize("nothing", ["-", "?", "缺失", "None", "n.d.", "—"])
def test_what_stands_for_nothing_may_be_often(nothing):
    """Up to every second value: nobody takes it for a word."""
    numbers = write(size=lambda i: nothing if i % 3 == 0 else i)
    with pytest.raises(
        DataError, match=r"is numbers but for 20 of its values, first .* in row 1\."
    ):
        prepare(Config(data=numbers, target="y"))
    assert prepare(Config(data=numbers, target="y", odd_values="missing")).preprocessing.numeric
    words = write(size=lambda i: nothing if i % 3 else i % 2)
    assert prepare(Config(data=words, target="y")).preprocessing.categorical


def test_a_target_of_words_shows_one_of_them():
    """Not a value that is fine; also of a file that says of which types its columns are."""
    words = [str(i) for i in range(6)] + ["high", "low"] * 3
    pyarrow.parquet.write_table(pa.table({"x": range(12), "y": words}), "t.parquet")
    for data in ("t.parquet", write(num_rows=12, y=lambda i: words[i])):
        with pytest.raises(DataError, match=r"target 'y' is not a number.*'high' in row 7"):
            prepare(Config(data=data, target="y"))


def test_types_that_a_file_states_are_believed():
    """Text in Parquet is text, unless it is said that odd values count as missing."""
    size = [among_numbers("-")(i) for i in range(60)]
    table = pa.table({"size": list(map(str, size)), "x": range(60), "y": range(60)})
    pyarrow.parquet.write_table(table, "t.parquet")
    config = Config(data="t.parquet", target="y")
    assert prepare(config).preprocessing.categorical
    assert not prepare(config.replace(odd_values="missing")).preprocessing.categorical


def test_the_default_has_no_part_in_the_fingerprint():
    """What older versions prepared is found again; another choice is another data set."""
    config = Config(data=write(), target="y")
    others = [config.replace(odd_values=choice) for choice in ("missing", "text")]
    assert len({source_fingerprint(c) for c in (config, *others)}) == 3


@pytest.mark.usefixtures("one_thread")
def test_the_model_takes_odd_values_as_the_training_did():
    """From a DataFrame or JSON as from the file: the same numbers as for a missing value."""
    columns = {"size": among_numbers("-"), "when": lambda i: f"2024/{i % 12 + 1}/5" if i else "?"}
    config = Config(
        data=write(**columns), target="y", odd_values="missing", hidden_size=8, num_layers=1
    )
    task = TabularTask(prepare(config), config, "cpu")
    torch.manual_seed(0)
    model = task.build_model()
    torch.nn.init.normal_(model.linear.weight)
    predictor = Predictor(task.dataset.preprocessing, task.options, model.state_dict())
    missing = pd.DataFrame({"x": [1, 2], "size": [None, 3.5], "when": ["2024-03-05", None]})
    odd = pd.DataFrame({"x": [1, "2"], "size": ["缺失", 3.5], "when": ["2024/3/5", "?"]})
    expected = predictor.predict(missing)
    assert expected[0] != expected[1]
    np.testing.assert_array_equal(predictor.predict(odd), expected)
    np.testing.assert_array_equal(
        predictor.predict(
            pa.table({"x": [1, 2], "size": ["-", "3.5"], "when": ["2024年3月5日", "-"]})
        ),
        expected,
    )
    strict = Predictor(
        task.dataset.preprocessing, task.options.replace(odd_values="refuse"), model.state_dict()
    )
    with pytest.raises(DataError, match=r"column 'size'.*row 1 holds '缺失'"):
        strict.predict(odd)


def test_a_run_of_a_version_that_took_such_a_column_for_text_is_resumed_with_it(tmp_path):
    """Its prepared data is made anew as it was fitted then, and nothing is refused."""
    config = Config(data=write(size=among_numbers("-")), target="y")
    of_then = prepare(config.replace(odd_values="text"))
    of_then = dataclasses.replace(of_then, fingerprint=source_fingerprint(config))
    cache.save(of_then, tmp_path / "run")

    made = recover(
        config, tmp_path, of_then.fingerprint, only_what_was_fitted(tmp_path / "run"), "r1"
    )
    assert made.preprocessing == of_then.preprocessing
    codes = made.train.features.categorical
    assert codes.tobytes() == of_then.train.features.categorical.tobytes()
