"""What all contract tests need."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # for support.py


@pytest.fixture
def tracking_uri(tracking):
    """A fresh SQLite store, chosen by MLflow's variable."""
    return tracking.uri


@pytest.fixture
def table(tmp_path):
    """A small table."""
    from support import write_table

    return write_table(tmp_path / "table.csv")
