"""Loops of one's own, killed twice and resumed elsewhere, end as if nothing had happened."""

import random
import signal
import sys
from pathlib import Path

import pytest
import torch
from support import ROOT, checkpoint, client, curves, differences, environment, run_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # processes that import torch

# The options of each, and how many optimizer steps that is.
EXAMPLES = {
    "classifier": ("--epochs 4 --batch-size 128", 4 * 12),
    "language_model": ("--max-iters 30 --eval-interval 10 --eval-iters 2 --batch-size 4", 31),
    "gan": ("--epochs 3 --batch-size 128", 3 * 2 * 14),
    "diffusion": ("--steps 60 --milestone 20", 60),
    "ppo": ("--num-iterations 12 --num-steps 32", 12 * 16),
}


class Machine:
    """Where an example is run: in an empty folder each time, with random numbers of its own."""

    def __init__(self, name, folder, uri):
        self.name, self.folder, self.uri = name, folder, uri
        self.number = 0  # of processes so far

    def run(self, die_after=0, resume_run=""):
        """Run it to its end, or until it dies after so many steps; return what it printed."""
        self.number += 1
        folder = self.folder / str(self.number)
        folder.mkdir(parents=True)
        options = {"LOG_MODEL": "false", "UPLOAD": "sync", "CHECKPOINT_STEPS": "3"}
        if resume_run:
            options["RESUME_RUN"] = resume_run
        given = {f"ONWARD_{name}": value for name, value in options.items()}
        env = environment(folder / "home", self.uri, OMP_NUM_THREADS="1", **given)
        done = run_command(
            [
                *(sys.executable, Path(__file__).parent / "dying.py"),
                *(str(die_after), str(self.number)),
                *(ROOT / "examples" / self.name / "after.py", *EXAMPLES[self.name][0].split()),
            ],
            cwd=folder, env=env,
        )  # fmt: skip
        assert done.returncode == (-signal.SIGKILL if die_after else 0), done.stdout + done.stderr
        return done.stdout

    def weights(self):
        """Return what the last process saved."""
        return torch.load(self.folder / str(self.number) / f"{self.name}.pt", weights_only=True)

    def run_id(self):
        """Return the ID of the run that was begun last."""
        query = "tags.`train.fingerprint` != ''"
        [run, *_] = client(self.uri).search_runs(
            ["0"], query, order_by=["attributes.start_time DESC"]
        )
        return run.info.run_id


@pytest.mark.parametrize("name", EXAMPLES)
def test_killed_and_resumed_it_ends_the_same(name, tracking_uri, tmp_path):
    """Weights, moments, random state and curves are those of a run that nobody disturbed."""
    calm, wild = (Machine(name, tmp_path / which, tracking_uri) for which in ("calm", "wild"))
    calm.run()
    undisturbed, num_steps = calm.run_id(), EXAMPLES[name][1]
    first = random.randint(num_steps * 3 // 10, num_steps // 2)
    second = random.randint(num_steps // 10, num_steps * 4 // 10)
    wild.run(first)
    killed = wild.run_id()
    wild.run(second, killed)
    assert "Resuming training from " in wild.run(resume_run=killed)
    assert client(tracking_uri).get_run(killed).info.status == "FINISHED"
    ends = [
        {
            key: value
            for key, value in checkpoint(tracking_uri, run_id, tmp_path / run_id).items()
            if key.endswith("state_dict") or key in ("epoch", "step", "rng")
        }
        for run_id in (undisturbed, killed)
    ]
    assert differences(*ends) == [], (first, second)
    assert curves(tracking_uri, killed) == curves(tracking_uri, undisturbed), (first, second)
    assert differences(calm.weights(), wild.weights()) == []
