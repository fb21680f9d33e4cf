"""Predictions are written as what their file's name says, and nothing is in the way of them."""

import datetime
import io
import logging
import uuid

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from train.tabular.serving import write

NOT_IN_CSV = {
    "list": pa.array([[1], None]),
    "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
    "struct": pa.array([{"a": 1}, None]),
    "uuid": pa.array([uuid.UUID(int=1).bytes, None], pa.uuid()),
    "picture": pa.array([None, b"\xff\xd8"]),
    "bits": pa.array([b"\xff\xd8", None], pa.binary(2)),
}
IN_CSV = {
    "x": pa.array([1.5, None]),
    "word": pa.array(["北京", 'a "b"']),
    "bytes": pa.array([b"ascii", None]),
    "kind": pa.array(["a", None]).dictionary_encode(),
    "spent": pa.array([datetime.timedelta(1), None]),
    "nothing": pa.nulls(2),
    "predicted_y": pa.array([0.25, 0.5]),
}
TABLE = pa.table({**NOT_IN_CSV, **IN_CSV})


@pytest.mark.parametrize("name", ["out.parquet", "OUT.PARQUET"])
def test_parquet_holds_every_column(tmp_path, name):
    """As they were, and the predictions."""
    write(TABLE, tmp_path / name)
    assert pyarrow.parquet.read_table(tmp_path / name).to_pydict() == TABLE.to_pydict()


@pytest.mark.parametrize("as_file", [True, False])
def test_csv_leaves_out_what_it_cannot_hold(tmp_path, caplog, as_file):
    """With one line that names it and what keeps it; an interval has no form in CSV either."""
    interval = pa.array([None, (1, 2, 3)], pa.month_day_nano_interval())
    table, out = TABLE.append_column("interval", interval), io.BytesIO()
    with caplog.at_level(logging.WARNING):
        write(table, tmp_path / "out.csv" if as_file else out)
    content = (tmp_path / "out.csv").read_bytes() if as_file else out.getvalue()
    read = pyarrow.csv.read_csv(io.BytesIO(content))
    assert read.column_names == list(IN_CSV)
    [line] = [record.getMessage() for record in caplog.records]
    assert all(f"'{name}'" in line for name in (*NOT_IN_CSV, "interval"))
    assert "--to <name>.parquet" in line


def test_a_plain_table_is_written_without_a_word(caplog):
    """Also one without rows."""
    for table in (TABLE.select(list(IN_CSV)), TABLE.select(["x"]).slice(0, 0)):
        write(table, out := io.BytesIO())
        assert out.getvalue().startswith(b'"x"')
    assert not caplog.records


def test_an_interval_cannot_be_parquet(tmp_path):
    """One line, and no file."""
    table = pa.table({"interval": pa.array([(1, 2, 3)], pa.month_day_nano_interval())})
    with pytest.raises(Exception, match="the table cannot be written"):
        write(table, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
