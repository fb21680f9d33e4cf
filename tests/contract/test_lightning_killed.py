"""Lightning in processes of its own: killed anywhere, it goes on on an empty disk, to the bit."""

import difflib
import signal
import sys
from pathlib import Path

import pytest
from support import (
    ROOT,
    checkpoint,
    client,
    curves,
    differences,
    environment,
    group_of,
    only_run,
    run_command,
    start_logged,
    wait_for,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # processes that import torch

TESTS = Path(__file__).parents[1]
SCRIPT = f"""
import os, signal, sys
sys.path.insert(0, {str(TESTS)!r})
import lightning as L
from lightning_net import Net, loaders, scramble, trainer_of
from onward.lightning import Resumable

kill_at, wait_at = int(sys.argv[1]), int(sys.argv[2])

class At(L.Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        done = trainer.fit_loop.total_batch_idx
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if done == wait_at:
            open("here", "w").close()
            signal.pause()

scramble()
L.seed_everything(7, verbose=False)
resumable = Resumable(
    minimize="val_loss", resume_run="auto", checkpoint_steps=2, log_model=False, upload="sync"
)
trainer = trainer_of(3, [At(), resumable], logger=resumable.logger)
trainer.fit(Net("onecycle"), *loaders(), ckpt_path=resumable.ckpt_path, weights_only=True)
"""


@pytest.fixture
def script(tmp_path):
    """Return the script, as a file outside of the folders that it runs in."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def start(script, folder, uri, kill_at=-1, wait_at=-1):
    """Start the script in an empty folder, as on a machine of its own."""
    folder.mkdir()
    command = [sys.executable, str(script), str(kill_at), str(wait_at)]
    env = environment(folder / "home", uri)
    return start_logged(command, folder / "output", cwd=folder, env=env, start_new_session=True)


def run(script, folder, uri, **where):
    """Run the script to its end; return its exit code."""
    with group_of(start(script, folder, uri, **where)) as process:
        return process.wait(240)


def left(uri, folder):
    """Return what a training leaves in the store."""
    run = only_run(uri)
    saved = checkpoint(uri, run.info.run_id, folder)
    state = {key: saved[key] for key in ("trainer_state_dict", "rng", "epoch", "step")}
    return {"status": run.info.status, "curves": curves(uri, run.info.run_id), "state": state}


def store(folder):
    """Return the address of a fresh store."""
    folder.mkdir()
    return f"sqlite:///{folder}/mlflow.db"


def test_killed_again_and_again_it_is_the_same_training(script, tmp_path):
    """SIGKILL inside three epochs, each time on an empty disk: nothing differs, each value once."""
    whole, killed = store(tmp_path / "whole"), store(tmp_path / "killed")
    assert run(script, tmp_path / "w", whole) == 0
    for number, kill_at in enumerate((3, 5, 8, 14)):
        assert run(script, tmp_path / f"k{number}", killed, kill_at=kill_at) == -signal.SIGKILL
    assert run(script, tmp_path / "last", killed) == 0
    expected, found = left(whole, tmp_path / "1"), left(killed, tmp_path / "2")
    assert differences(expected, found) == []
    assert found["status"] == "FINISHED"
    for points in found["curves"].values():
        steps = [step for step, _value in points]
        assert steps == sorted(set(steps))


def test_a_signal_ends_it_with_the_code_of_a_preemption(script, tmp_path):
    """SIGTERM: exit code 75, the run KILLED, and the next start is to the bit the rest."""
    whole, stopped = store(tmp_path / "whole"), store(tmp_path / "stopped")
    assert run(script, tmp_path / "w", whole) == 0
    with group_of(start(script, tmp_path / "s", stopped, wait_at=6)) as process:
        wait_for((tmp_path / "s" / "here").exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 75, process.output.read_text()
    assert "Traceback" not in process.output.read_text()
    assert only_run(stopped).info.status == "KILLED"
    assert run(script, tmp_path / "rest", stopped) == 0
    assert differences(left(whole, tmp_path / "1"), left(stopped, tmp_path / "2")) == []


def test_a_process_that_never_fits_leaves_no_run_open(script, tmp_path):
    """The run that reading `ckpt_path` opens is KILLED when the process ends."""
    uri = store(tmp_path / "store")
    code = "from onward.lightning import Resumable; print(Resumable().ckpt_path)"
    env = environment(tmp_path / "home", uri)
    done = run_command([sys.executable, "-c", code], cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert client(uri).get_run(only_run(uri).info.run_id).info.status == "KILLED"


def test_the_example_is_a_few_lines_more_and_goes_on(tmp_path):
    """after.py is before.py with at most 15 lines changed; it trains, and is trained longer."""
    before, after = (ROOT / "examples" / "lightning" / f"{name}.py" for name in ("before", "after"))
    lines = difflib.ndiff(before.read_text().splitlines(), after.read_text().splitlines())
    assert 0 < sum(line.startswith(("+ ", "- ")) for line in lines) <= 15
    uri, run_id = store(tmp_path / "store"), None
    for number, epochs in enumerate((1, 2)):
        more = {"ONWARD_RESUME_RUN": run_id} if run_id else {}
        env = environment(tmp_path / f"home {number}", uri, **more)
        done = run_command([sys.executable, after, "--epochs", epochs], cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        run_id = only_run(uri).info.run_id
    assert [step for step, _value in curves(uri, run_id)["val_accuracy"]] == [1, 2]
