"""A table as .npz: what it declares is looked at before it is made."""

import io
import zipfile

import numpy as np
import pytest

from onward.errors import DataError
from train.tabular.data import table as table_module
from train.tabular.data.npz import check_declared
from train.tabular.data.table import read_table


def declaring(shape, content=b"\0" * 80, compression=zipfile.ZIP_STORED):
    """Return an .npz whose one array says that it is of that shape."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("y.npy", header.getvalue() + content)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(10**9,), (10**9, 10**9), (10**30,), (0, 10**9), (-1,), (9,)])
def test_a_table_that_declares_what_it_does_not_hold_is_refused(tmp_path, shape):
    """Eight gigabytes in a file of 300 bytes cost nothing but a line."""
    (tmp_path / "t.npz").write_bytes(declaring(shape, b"" if 0 in shape else b"\0" * 80))
    with pytest.raises(DataError, match=r"t\.npz' cannot be read .*(declares|columns)") as caught:
        read_table("t.npz")
    assert "\n" not in str(caught.value)


def test_a_table_larger_than_the_memory_is_refused(tmp_path, monkeypatch):
    """Compressed zeros may truly be there, and fill the machine all the same."""
    (tmp_path / "t.npz").write_bytes(declaring((1 << 20,), b"\0" * (8 << 20), zipfile.ZIP_DEFLATED))
    assert (tmp_path / "t.npz").stat().st_size < 20_000
    check_declared(tmp_path / "t.npz", 9 << 20)
    monkeypatch.setattr(table_module.hardware, "free_memory_bytes", lambda: 1 << 20)
    with pytest.raises(DataError, match=r"take 8\.4 MB, and there is room for 1\.0 MB"):
        read_table("t.npz")
