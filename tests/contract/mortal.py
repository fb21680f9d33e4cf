"""Trains a loop by steps in one process after another, each killed by SIGKILL after so many steps.

    mortal.py lives.json 10 4 37 12 80

Here a checkpoint is due every 10 steps, its manifest goes up when 4 more are done, and the first
process dies in its 38th step, the second in its 13th. Each has an empty disk of its own. They are
forks of this process, which has imported all, so that a life takes a second. `lives.json` gets a
list with the step that each went on from.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path

import mlflow
import torch

import onward
from onward.checkpoint.manifest import MANIFEST_FILE
from onward.script import open as _loaded  # noqa: F401
from onward.tracking.artifacts import Artifacts
from onward.tracking.client import Tracking as _too  # noqa: F401

assert mlflow


class Clock:
    """Counts steps, and lets a checkpoint be committed when it says so."""

    def __init__(self, commit_steps):
        self.commit_steps, self.done = commit_steps, 0
        self.committed, self.changed = set(), threading.Condition()
        upload = Artifacts.upload

        def in_time(artifacts, file, folder, *rest, **more):
            if file.name != MANIFEST_FILE:
                return upload(artifacts, file, folder, *rest, **more)
            step = int(folder.rpartition("_")[2])
            with self.changed:
                self.changed.wait_for(lambda: self.done >= step + commit_steps)
            upload(artifacts, file, folder, *rest, **more)
            with self.changed:
                self.committed.add(step)
                self.changed.notify_all()

        Artifacts.upload = in_time

    def tell(self, done, began, every):
        """So many steps are done: wait for the checkpoint that is committed now, if any is."""
        saved = done - self.commit_steps
        with self.changed:
            self.done = done
            self.changed.notify_all()
            if saved > began and saved % every == 0:
                self.changed.wait_for(lambda: saved in self.committed)


def live(began_file, every, commit_steps, num_steps):
    """Train, and die in the step after `num_steps`."""
    clock = Clock(commit_steps)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    state = {"model": model, "optimizer": optimizer}
    options = {"checkpoint_steps": every, "checkpoint_minutes": 0, "checkpoint_freq": 10**6}
    with onward.open_run(state, task="mortal", resume_run="auto", **options) as run:
        began = None
        for step in run.steps(range(10**9)):
            if began is None:
                began = step
                began_file.write_text(str(began))
            clock.tell(step, began, every)
            if step - began == num_steps:
                os.kill(os.getpid(), signal.SIGKILL)
            optimizer.zero_grad()
            model(torch.ones(3)).sum().backward()
            optimizer.step()


def main():
    """Let one live after the other."""
    result, (every, commit_steps, *lengths) = Path(sys.argv[1]).resolve(), map(int, sys.argv[2:])
    torch.set_num_threads(1)
    began = []
    for number, num_steps in enumerate(lengths):
        folder = result.with_name(f"machine_{number}")
        folder.mkdir()
        child = os.fork()
        if not child:
            os.chdir(folder)
            os.environ["TRAIN_HOME"] = str(folder / "home")
            live(folder / "began.txt", every, commit_steps, num_steps)
            os._exit(1)
        _pid, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, folder
        began.append(int((folder / "began.txt").read_text()))
    result.write_text(json.dumps(began))


if __name__ == "__main__":
    main()
