"""An SQLite store is opened whole, or what is wrong with it is told in one line."""

import os
import sqlite3
import subprocess
import sys
import threading

import pytest

from onward.errors import StoreRefused, StoreUnavailable
from onward.system.files import exclusively, name_if_free
from onward.tracking import database
from onward.tracking.client import Tracking


@pytest.mark.parametrize(
    "uri",
    ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true", "sqlite:///"],
)
def test_a_database_in_memory_is_refused(uri):
    """It would be gone with the process, and everything trained with it."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    with pytest.raises(StoreRefused, match=r"MLFLOW_TRACKING_URI=sqlite:///mlflow\.db"):
        Tracking()


def test_a_database_is_made_whole_and_alone(tmp_path):
    """Its folder too; its Default experiment keeps its files beside it, as MLflow's own does."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path}/a folder/mlflow.db"
    tracking = Tracking()
    assert [path.name for path in (tmp_path / "a folder").iterdir()] == ["mlflow.db"]
    assert tracking.client.get_experiment("0").artifact_location == f"{tmp_path}/mlruns/0"


@pytest.fixture
def half_made(empty_database, tmp_path, monkeypatch):
    """Return a database as two programs leave it that made it at once, long ago."""
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(empty_database) as whole, sqlite3.connect(path) as half:
        whole.backup(half)
    whole.close()
    with half:
        half.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        half.execute("DROP TABLE jobs")
    half.close()
    os.utime(path, (1, 1))
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{path}"
    return path


def test_a_half_made_database_is_told_with_the_way_out(half_made):
    """Nothing of it is deleted: it may be an old one, with runs."""
    with pytest.raises(StoreRefused, match=r"is half made.*mv .*mlflow\.db ") as caught:
        Tracking()
    assert "\n" not in str(caught.value)
    with sqlite3.connect(half_made) as database:
        assert database.execute("SELECT name FROM experiments").fetchall() == [("Default",)]
    database.close()


def test_a_database_that_is_being_made_is_waited_for(half_made, empty_database, monkeypatch):
    """It was changed a moment ago: whoever does it is not disturbed, and told of."""
    os.utime(half_made)
    looks = []

    def finish(_seconds):
        looks.append(1)
        half_made.write_bytes(empty_database.read_bytes())

    monkeypatch.setattr(database.time, "sleep", finish)
    Tracking().probe()
    assert looks == [1]


def test_a_name_that_is_taken_is_left_alone(tmp_path, monkeypatch):
    """With second names on the file system and without, the first file stays."""

    def no_links(*_):
        raise OSError(95, "not supported")

    for number in range(2):
        first, second = tmp_path / f"first{number}", tmp_path / "second"
        name = tmp_path / f"name{number}"
        first.write_text("first")
        second.write_text("second")
        assert name_if_free(first, name)
        assert not name_if_free(second, name)
        assert name.read_text() == "first"
        monkeypatch.setattr(os, "link", no_links)


def test_one_at_a_time_is_in_the_block(tmp_path):
    """The second waits until the first has left; without a folder for the lock nobody waits."""
    entered = threading.Event()

    def enter():
        with exclusively(tmp_path / "locks" / "a"):
            entered.set()

    with exclusively(tmp_path / "locks" / "a"):
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.05)
    assert entered.wait(60)
    thread.join()
    assert (tmp_path / "locks").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_text("")
    with exclusively(tmp_path / "file" / "a"):
        pass


def test_a_locked_database_is_told_in_one_line(tracking, capfd, monkeypatch):
    """Not by the traceback of a library."""
    from mlflow.store.db import utils

    path = tracking.uri.removeprefix("sqlite:///")
    monkeypatch.setattr(utils.sql, "text", lambda text, of=utils.sql.text: of(
        text.replace("20000", "1")))  # fmt: skip
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(StoreUnavailable, match="another program has locked the database"):
            tracking.create_run("0", "a run", {})
    finally:
        holder.close()
    assert "Traceback" not in "".join(capfd.readouterr())


def test_for_a_server_no_database_is_imported():
    """Which would take a quarter of a second of each command."""
    code = (
        "import sys; from onward.tracking.client import Tracking; Tracking()\n"
        "assert 'mlflow' in sys.modules and 'sqlalchemy' not in sys.modules\n"
    )
    env = {**os.environ, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
