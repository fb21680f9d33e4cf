"""One suite for every way in: whatever loop trains, killed and resumed it ends as if it was not.

Each attempt is a process in an empty folder with its own TRAIN_HOME, its random numbers are its
own, and all that is known of the run comes through a real server.
"""

import functools
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from support import (
    checkpoint,
    client,
    comparable,
    curves,
    differences,
    environment,
    index,
    mlflow_server,
    run_command,
    start_command,
    wait_for,
    write_table,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # processes that import torch

WAY = Path(__file__).with_name("way.py")
# Steps of an epoch, in a loop by steps of a fourth of it, and of the whole run; and how to save
# inside an epoch.
WAYS = {
    "table": (5, 20, {"checkpoint_steps": "3"}),
    "own_task": (6, 24, {"checkpoint_steps": "3"}),
    "epochs": (6, 24, {"checkpoint_steps": "2"}),
    "steps": (6, 24, {"checkpoint_steps": "4"}),
    "lightning": (5, 20, {"checkpoint_steps": "2"}),
    "transformers": (8, 24, {"checkpoint_steps": "3"}),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Return the address of one server for all."""
    with mlflow_server(tmp_path_factory.mktemp("server")) as server:
        yield server


class Machines:
    """Machines on which a way trains: each an empty folder, with nothing on its disk."""

    def __init__(self, server, folder):
        self._server, self._folder, self._number = server, folder, 0
        write_table(folder / "table.csv")

    def _process(self, way, step, sign, resume_run, options, folder=None):
        self._number += 1
        folder = folder or self._folder / f"machine{self._number}"
        folder.mkdir(exist_ok=True)
        env = environment(
            folder / "home", self._server.address, TABLE=str(self._folder / "table.csv"),
            MLFLOW_EXPERIMENT_NAME=f"{way} {self._folder.name}", MACHINE=folder.name,
        )  # fmt: skip
        env |= {"ONWARD_RESUME_RUN": resume_run} if resume_run else {}
        words = [f"{k}={v}" for k, v in {"upload": "sync", **options}.items()]
        return {
            "command": [sys.executable, WAY, way, str(step), sign, *words],
            "cwd": folder, "env": env, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT,
        }  # fmt: skip

    def train(self, way, step=0, sign="SIGKILL", *, code=0, resume_run=None, **options):
        """Train to the end of the process, which is to have that exit code."""
        made = self._process(way, step, sign, resume_run, options)
        done = run_command(**made)
        assert done.returncode == code, done.stdout
        return done.stdout

    def begin(self, way, step, **options):
        """Train in the background up to a step, where it waits for a file `go`."""
        made = self._process(way, step, "PAUSE", None, options)
        process = start_command(**made)
        wait_for(lambda: (made["cwd"] / "paused").exists() or process.poll() is not None)
        assert process.poll() is None, process.communicate()[0]
        return process, made


@pytest.fixture
def machines(server, tmp_path):
    """Return machines that know the server."""
    return Machines(server, tmp_path)


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """Return what tells all that a run of a way comes to, which nothing has disturbed."""

    @functools.cache
    def train(way):
        folder = tmp_path_factory.mktemp("whole")
        Machines(server, folder).train(way, **WAYS[way][2])
        run_id = newest_run(server, way, folder)
        return ended(server, run_id, folder / "ended")

    return train


def newest_run(server, way, folder):
    found = client(server.address)
    experiment = found.get_experiment_by_name(f"{way} {folder.name}")
    runs = found.search_runs(
        [experiment.experiment_id],
        filter_string="tags.`train.fingerprint` != ''",
        order_by=["start_time DESC"],
    )
    return runs[0].info.run_id


def ended(server, run_id, folder):
    """Return all that a run has come to: the newest checkpoint, the curves, the checkpoints."""
    kept = index(server.address, run_id, folder)
    drawn = {key: sorted(rows) for key, rows in curves(server.address, run_id).items()}
    return newest(server, run_id, folder), drawn, kept


def newest_step(uri, run_id, folder):
    """Return the step of the newest checkpoint that was committed, whatever is said of it yet."""
    folder.mkdir()
    local = Path(client(uri).download_artifacts(run_id, "checkpoints", str(folder)))
    return max(json.loads(file.read_text())["step"] for file in local.glob("*/manifest.json"))


def newest(server, run_id, folder):
    """Return the newest checkpoint, without what is of the clock."""
    saved = comparable(checkpoint(server.address, run_id, folder))
    state = saved.get("trainer_state_dict", {}).get("state")
    if state is not None:  # of Hugging Face's: it keeps what it has logged
        told = json.loads(state)
        for row in told["log_history"]:
            for key in [k for k in row if k.endswith(("_runtime", "_per_second"))]:
                del row[key]
        saved["trainer_state_dict"]["state"] = told
    return saved


def expect_equal(server, run_id, whole, folder):
    saved, drawn, kept = ended(server, run_id, folder / "resumed")
    expected, expected_curves, expected_kept = whole
    assert differences(saved, expected) == []
    assert drawn == expected_curves
    assert kept == expected_kept
    assert client(server.address).get_run(run_id).info.status == "FINISHED"


def moments_of_death(way):
    """Return after which step to kill: in each epoch at a random one, in one of them at its end.

    The first is after the first checkpoint: a run that has none begins anew, and by the random
    numbers that the process has then. pytest-randomly seeds what is drawn from, and tells the seed.
    """
    per_unit, total, options = WAYS[way]
    first = int(options["checkpoint_steps"]) + 1
    units = [range(max(end - per_unit + 1, first), end + 1)
             for end in range(per_unit, total + 1, per_unit)]  # fmt: skip
    at_its_end = random.choice(units)
    return [unit[-1] if unit is at_its_end else random.choice(unit) for unit in units]


@pytest.mark.parametrize("way", WAYS)
def test_killed_in_every_epoch_at_a_random_step_is_as_if_it_was_not(
    server, machines, way, tmp_path, whole
):
    _per_unit, _total, options = WAYS[way]
    moments = moments_of_death(way)
    print("killed after the steps", moments)
    machines.train(way, moments[0], code=-9, **options)
    run_id = newest_run(server, way, tmp_path)
    options = options | {"take_over": "true"}
    for number, moment in enumerate(moments[1:]):
        done = newest_step(server.address, run_id, tmp_path / f"manifests{number}")
        assert 0 < done <= moments[number]
        machines.train(way, moment - done, code=-9, resume_run=run_id, **options)
    machines.train(way, resume_run=run_id, **options)
    expect_equal(server, run_id, whole(way), tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_a_signal_saves_and_tells_and_a_fork_leaves_it_alone(
    server, machines, way, tmp_path, whole
):
    _per_unit, total, options = WAYS[way]
    told = machines.train(way, total // 2, "SIGTERM", code=75, **options)
    assert "Traceback" not in told
    run_id = newest_run(server, way, tmp_path)
    assert client(server.address).get_run(run_id).info.status == "KILLED"
    before = ended(server, run_id, tmp_path / "before")
    for points in before[1].values():
        steps = [step for step, _value in points]
        assert steps == sorted(set(steps))  # each once
    machines.train(way, resume_run=run_id, fork="true", **options)
    fork_id = newest_run(server, way, tmp_path)
    assert fork_id != run_id
    after = ended(server, run_id, tmp_path / "after")
    assert differences(before[0], after[0]) == []
    assert before[1:] == after[1:]
    saved = newest(server, fork_id, tmp_path / "fork")
    assert differences(saved, whole(way)[0]) == []
    machines.train(way, resume_run=run_id, **options)
    expect_equal(server, run_id, whole(way), tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_is_away_and_a_second_process_change_nothing(
    server, machines, way, tmp_path, whole
):
    _per_unit, total, options = WAYS[way]
    process, made = machines.begin(way, total // 2, drain_seconds="0", **options)
    run_id = newest_run(server, way, tmp_path)
    # On the same machine another process is refused at once.
    again = made | {"env": made["env"] | {"ONWARD_RESUME_RUN": run_id}}
    again["command"] = [sys.executable, WAY, way, "0", "SIGKILL"]
    refused = run_command(**again)
    assert refused.returncode in (1, 6), refused.stdout
    assert "is being trained by another process on this machine" in refused.stdout
    server.stop()
    (made["cwd"] / "go").touch()
    told, _nothing = process.communicate(timeout=240)
    assert process.returncode == 0, told
    assert "publishes them" in told
    server.start()
    command = [Path(sys.executable).with_name("onward"), "sync", run_id]
    done = run_command(**(made | {"command": command}))
    assert done.returncode == 0, done.stdout
    expect_equal(server, run_id, whole(way), tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_whoever_is_overtaken_stops_and_the_other_goes_on(server, machines, way, tmp_path, whole):
    _per_unit, total, options = WAYS[way]
    process, made = machines.begin(way, total // 2, **options)
    run_id = newest_run(server, way, tmp_path)
    machines.train(way, resume_run=run_id, take_over="true", **options)
    (made["cwd"] / "go").touch()
    told, _nothing = process.communicate(timeout=240)
    assert process.returncode == 8, told
    assert "Traceback" not in told
    expect_equal(server, run_id, whole(way), tmp_path)
