"""A Trainer that is killed, in real processes: the next one goes on, in an empty folder."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import (
    ROOT,
    checkpoint,
    children,
    client,
    curves,
    differences,
    environment,
    only_run,
    run_command,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # six processes that import torch

EXAMPLES = ROOT / "examples" / "transformers"


def start(file, *arguments, folder, uri):
    """Run a script as on a machine of its own; return what it left."""
    folder.mkdir(parents=True)
    env = environment(folder / "home", uri, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    return run_command([sys.executable, file, *arguments], cwd=folder, env=env)


@pytest.fixture
def stores(tmp_path):
    """Return two stores: of the run that is killed, and of the one that is not."""
    return {name: f"sqlite:///{tmp_path}/{name}.db" for name in ("killed", "undisturbed")}


def test_it_is_killed_at_several_steps_and_stopped_by_a_scheduler(tmp_path, stores):
    """What comes out, and each point of the curve, is that of a run that nobody has killed."""
    file = Path(__file__).parent / "trainer_run.py"
    ends = [("SIGKILL", 1), ("SIGKILL", 5), ("SIGTERM", 6), ("SIGKILL", 13)]
    for number, end in enumerate(ends):
        done = start(file, *end, folder=tmp_path / f"machine_{number}", uri=stores["killed"])
        expected = 75 if end[0] == "SIGTERM" else -signal.SIGKILL
        assert done.returncode == expected, done.stdout + done.stderr
        if end[0] == "SIGTERM":
            assert "Traceback" not in done.stderr
    found = {}
    for name, uri in stores.items():
        done = start(file, folder=tmp_path / name, uri=uri)
        assert done.returncode == 0, done.stdout + done.stderr
        run_id = only_run(uri).info.run_id
        found[name] = (
            {k: v for k, v in checkpoint(uri, run_id, tmp_path / f"{name}.files").items()
             if k in ("model_state_dict", "optimizer_state_dict", "scheduler_state_dict")},
            curves(uri, run_id),
        )  # fmt: skip
        assert client(uri).get_run(run_id).info.status == "FINISHED"
    run_id = only_run(stores["killed"]).info.run_id
    assert len(children(stores["killed"], run_id)) >= len(ends)
    assert differences(found["killed"][0], found["undisturbed"][0]) == []
    assert len(found["killed"][0]) == 3
    assert sorted_curves(found["killed"][1]) == sorted_curves(found["undisturbed"][1])


def sorted_curves(found):
    return {key: sorted(rows) for key, rows in found.items()}


def test_one_that_is_never_trained_does_not_stay_running(tmp_path, stores):
    """Whatever ends the process before it trains: the run is KILLED."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "import trainers\n"
        "r = trainers.Resumable()\n"
        "r.attach(trainers.trainer())\n"
        "print(r.folder)\n"
        "raise ValueError('not today')\n"
    )
    done = start(script, folder=tmp_path / "machine", uri=stores["killed"])
    assert done.returncode == 1
    assert "not today" in done.stderr
    assert only_run(stores["killed"]).info.status == "KILLED"


def test_the_example_goes_on_where_it_was_stopped(tmp_path, stores):
    """It differs from the script without a run in a few lines, and prints the same loss."""
    before, after = ((EXAMPLES / f"{name}.py") for name in ("before", "after"))
    changed = subprocess.run(["diff", before, after], capture_output=True, text=True).stdout
    assert sum(line[0] in "<>" for line in changed.splitlines()) <= 15
    straight = start(before, folder=tmp_path / "before", uri=stores["undisturbed"])
    assert straight.returncode == 0, straight.stderr
    killed = tmp_path / "killed.py"
    killed.write_text(
        f"import os, runpy, signal, transformers\n"
        f"class Kill(transformers.TrainerCallback):\n"
        f"    def on_step_end(self, args, state, control, **kwargs):\n"
        f"        if state.global_step == 70: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"made = transformers.Trainer.__init__\n"
        f"def make(self, *args, **kwargs):\n"
        f"    made(self, *args, callbacks=[Kill()], **kwargs)\n"
        f"transformers.Trainer.__init__ = make\n"
        f"runpy.run_path({str(after)!r}, run_name='__main__')\n"
    )
    once = tmp_path / "after.py"
    once.write_text(killed.read_text())
    done = start(once, folder=tmp_path / "one", uri=stores["killed"])
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    once.write_text(after.read_text())
    done = start(once, folder=tmp_path / "two", uri=stores["killed"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Resuming training from epoch" in done.stdout
    assert done.stdout.splitlines()[-1] == straight.stdout.splitlines()[-1]
