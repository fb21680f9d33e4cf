"""Ranks killed at their durable steps: the run goes on and ends as one that nobody disturbed.

A step of each kind is drawn; with STEPS=all it is every one of them, in a quarter of an hour.
"""

import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import children, client, curves, differences, ended, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0 if "STEPS" in os.environ else 600)]

STEPPED = Path(__file__).parent / "stepped.py"
VARIABLES = {
    "ROWS": "42",
    "EPOCHS": "2",
    "SEEDED": "1",  # one that dies before its first checkpoint begins anew
    "OMP_NUM_THREADS": "1",
    "ONWARD_UPLOAD": "sync",
    "ONWARD_GRACE_SECONDS": "5",  # after the last step nobody misses a rank but its files
}
PRINTED = 2000  # of what the ranks of a job say
# What a step is made on, by what its name has; the rest is the attempt's own or made from others.
OBJECTS = ("manifest", "shard", "rank_1/", "epoch_", "global_step_", "checkpoints/index")


def kind_of(step):
    """Return the call of a step, and what it is made on."""
    call, _space, what = step.partition(" ")
    if call == "set_tags":
        return step
    return call, next((each for each in OBJECTS if each in what), "").replace(
        "global_step", "epoch"
    )


class Jobs:
    """Jobs of two ranks in a folder, of which the first is undisturbed."""

    def __init__(self, folder, database, **variables):
        self.folder, self._variables = folder, VARIABLES | variables
        folder.mkdir()
        shutil.copy(database, folder / "mlflow.db")
        [calm] = self.run("calm")
        assert calm["codes"] == [[0, 0]], calm
        self.steps = [collections.Counter(steps) for steps in calm["steps"]]
        self.end, _runs = self.came_to(self.folder / "calm" / "0")

    def run(self, name, *words):
        """Run a job for each word; return what is known of them."""
        folder = self.folder / name
        folder.mkdir()
        shutil.copy(self.folder / "mlflow.db", folder)
        env = environment(folder, **self._variables)
        command = [sys.executable, str(STEPPED), "jobs.json", *words]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads((folder / "jobs.json").read_text())

    def came_to(self, folder):
        """Return how the run of a job ended, and all that its store has."""
        uri = f"sqlite:///{folder}/mlflow.db"
        runs = client(uri).search_runs(["0"])
        firsts = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        [done] = [run.info.run_id for run in firsts if run.info.status == "FINISHED"]
        assert len(children(uri, done)) <= 1
        for run in firsts:  # of one that was killed before it was there, nothing is left
            assert run.info.run_id == done or not curves(uri, run.info.run_id)
        return ended(uri, done, folder / "read"), len(firsts)

    def check(self, words):
        """Run a job for each word, and see that all ended the same."""
        wrong = {}
        for number, (word, job) in enumerate(zip(words, self.run("killed", *words), strict=True)):
            who, folder = int(word.split(":")[1]), self.folder / "killed" / str(number)
            first, last = job["codes"][0], job["codes"][-1]
            if first[who] != -signal.SIGKILL or last != [0, 0] or len(job["codes"]) > 2:
                wrong[word] = f"{job['codes']}: {(folder / 'output').read_text()[-PRINTED:]}"
            elif found := differences(self.came_to(folder)[0], self.end):
                wrong[word] = found[:3]
        assert not wrong, "\n".join(f"{word}: {found}" for word, found in wrong.items())


def drawn(steps, kinds=lambda kind: True):
    """Return a step of each kind, and for which time it is made; with STEPS=all, every one."""
    each = [(number, step) for step, times in steps.items() for number in range(1, times + 1)]
    by_kind = collections.defaultdict(list)
    for number, step in each:
        if kinds(kind_of(step)):
            by_kind[kind_of(step)].append(f"{number}:{step}")
    if "STEPS" in os.environ:
        return [step for steps in by_kind.values() for step in steps]
    return [random.choice(steps) for steps in by_kind.values()]


def test_rank_0_may_die_at_any_durable_step(tmp_path, empty_database):
    """DDP: rank 0 writes, uploads and tells; also while it does, the other rank may die."""
    jobs = Jobs(tmp_path / "jobs", empty_database)
    of_leader, of_other = jobs.steps
    assert not of_other
    steps = drawn(of_leader)
    others = random.sample(steps, 3)
    jobs.check([*(f"0:0:{step}" for step in steps), *(f"0:1:{step}" for step in others)])


def test_each_rank_may_die_as_it_saves_its_pieces(tmp_path, empty_database):
    """FSDP2: what is new there, each rank's files and how rank 0 takes them into one checkpoint."""
    jobs = Jobs(tmp_path / "jobs", empty_database, FSDP="1")
    steps = [drawn(of_rank, lambda kind: kind[1] in ("shard", "rank_1/")) for of_rank in jobs.steps]
    assert all(steps)
    words = [f"{rank}:{rank}:{step}" for rank, own in enumerate(steps) for step in own]
    others = [f"{rank}:{1 - rank}:{random.choice(own)}" for rank, own in enumerate(steps)]
    jobs.check([*words, *others])
