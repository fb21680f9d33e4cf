"""Tables that were read before are read the same for ever: their runs go on with the same data.

The values are written down here; on any machine they are these.
"""

import datetime
import hashlib

import pyarrow as pa
import pyarrow.parquet
import pytest

from train.tabular.data.dataset import prepare, source_fingerprint
from train.tabular.data.table import read_table
from train.tabular.options import Config

CSV = (
    "size,shape,when,code,ok,word,y\n"
    + "".join(
        f"{i}.5,{'round' if i % 3 else 'flat'},2024-02-{i % 28 + 1:02},{i % 7:03},"
        f"{'true' if i % 2 else 'false'},{('NA', 'a;b', '', 'null', 'red')[i % 5]},{i * i}\n"
        for i in range(60)
    )
).encode()
ROWS = [
    {"n": i, "day": datetime.date(2024, 1, i % 28 + 1), "word": "abc"[i % 3], "y": i / 4}
    for i in range(50)
]


def config_of(name):
    """Return the options for a table, which is written first."""
    if name == "diamonds":
        return Config()
    if name == "small.csv":
        with open(name, "wb") as file:
            file.write(CSV)
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), name)
    return Config(data=name, target="y")


def digest(text):
    """Return a short hash."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def outline(preprocessing):
    """Return all that was fitted as text; of sums, the digits that every processor agrees on."""
    numeric = [
        (f.column, f.part, *(f"{v:.9g}" for v in (f.fill, f.mean, f.std)))
        for f in preprocessing.numeric
    ]
    categorical = [(f.column, f.vocabulary, f.num_rare) for f in preprocessing.categorical]
    return repr((numeric, categorical, sorted(preprocessing.left_out.items())))


@pytest.mark.parametrize(
    ("name", "fingerprint", "values", "fitted", "codes"),
    [
        (
            "diamonds",
            "6e55643c25539416",
            "e2b15f929f4bf5e1",
            "d8e3a73496d793a9",
            "f860b8183c1cf7b0",
        ),
        (
            "small.csv",
            "3ab0bbf9ed87c8dc",
            "2f0869a2b04e5c33",
            "fad845c1eafca262",
            "89e88a4a7d110bee",
        ),
        ("small.parquet", "", "0887b2f0c2addde9", "70c5dd9ea52ab9d5", "d93761ac05511f73"),
    ],
)
def test_a_healthy_table_gives_what_it_always_gave(name, fingerprint, values, fitted, codes):
    """The fingerprint, the raw values, what is fitted, and the codes of categories."""
    config = config_of(name)
    if name != "small.parquet":  # whose bytes are pyarrow's affair
        assert source_fingerprint(config)[:16] == fingerprint
    table = read_table(config.data)
    assert digest(f"{table.schema.types}{table.slice(0, 99).to_pydict()}") == values
    dataset = prepare(config)
    assert dataset.fingerprint == source_fingerprint(config)
    assert digest(outline(dataset.preprocessing)) == fitted
    assert digest(str(dataset.val.features.categorical[:99].tolist())) == codes
