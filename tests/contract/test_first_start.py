"""Several programs that start at once in an empty folder all get a whole database."""

import subprocess
import sys

import pytest
from support import (
    BIN,
    SMALL,
    client,
    environment,
    group_of,
    start_command,
    start_logged,
    wait_for,
    write_table,
)

pytestmark = pytest.mark.slow

OPEN = """
from onward.system.environment import prepare_process
prepare_process()
from onward.tracking.client import Tracking
tracking = Tracking()
tracking.create_run(tracking.experiment_id(), "a run", {})
"""


@pytest.mark.parametrize("number", range(3))
def test_six_starts_at_once(tmp_path, number):
    """Each makes a run, in one database, and nothing else is left in the folder."""
    home = tmp_path / "home"
    folder = tmp_path / "work"
    folder.mkdir()
    uri = f"sqlite:///{folder}/mlflow.db"
    homes = [home, home, home, home, tmp_path / "other", tmp_path / "third"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    processes = [
        start_command([sys.executable, "-c", OPEN], cwd=folder, env=environment(home, uri), **pipes)
        for home in homes
    ]
    for process in processes:
        _, told = process.communicate(timeout=240)
        assert process.returncode == 0, told
    assert len(client(uri).search_runs(["0"])) == 6
    assert [path.name for path in folder.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize("first", ["ui", "train"])
def test_the_ui_and_a_start_at_once(tmp_path, first):
    """Whoever comes first: the training is whole, and the pages come up."""
    table = write_table(tmp_path / "table.csv")
    env = environment(tmp_path / "home", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    ui = [BIN / "mlflow", "ui", "--port", "0", "--workers", "1"]
    words = (*SMALL, "--data", str(table), "--target", "price", "--epochs", "1")
    run = [sys.executable, "-m", "train", "run", *words]
    commands = {"ui": ui, "train": run}
    order = ["ui", "train"] if first == "ui" else ["train", "ui"]
    started = {}
    for name in order:
        file = tmp_path / f"{name}.log"
        started[name] = start_logged(
            commands[name], file, cwd=tmp_path, env=env, start_new_session=True
        )
        if name == first == "ui":
            wait_for(lambda: (tmp_path / "mlflow.db").exists() or started["ui"].poll() is not None)
    with group_of(started["ui"]), group_of(started["train"]):
        assert started["train"].wait(240) == 0, started["train"].output.read_text()
        wait_for(lambda: "startup complete" in started["ui"].output.read_text()
                 or started["ui"].poll() is not None)  # fmt: skip
        assert started["ui"].poll() is None, started["ui"].output.read_text()
