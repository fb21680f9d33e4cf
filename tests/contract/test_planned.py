"""What `onward plan` expects of failures is what they do to a real run."""

import json
import math
import os
import random
import statistics
import sys
from pathlib import Path

import pytest
from support import environment, run_command

from onward.planning.cluster import Cluster
from onward.planning.simulation import lives, simulate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a life takes one second to three

MORTAL = Path(__file__).parent / "mortal.py"
EVERY = 10  # steps between two checkpoints
MEAN = 30  # steps of a life
LIVES = int(os.environ.get("KILLS", "10"))


@pytest.mark.parametrize("commit_steps", [0, 4])
def test_as_many_steps_are_lost_as_the_simulation_says(commit_steps, tracking_uri, tmp_path):
    """A run whose processes die at random loses, in each life, exactly the steps that a simulated
    one does; and in the mean what others do, within 4 standard errors."""
    draw = random.Random(int(os.environ.get("SEED", "0")))
    lengths = [math.floor(draw.expovariate(1 / MEAN)) for _ in range(LIVES)]
    words = [MORTAL, tmp_path / "lives.json", EVERY, commit_steps, *lengths]
    env = environment(tmp_path / "home", tracking_uri, OMP_NUM_THREADS="1")
    done = run_command([sys.executable, *words], cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    began = json.loads((tmp_path / "lives.json").read_text())

    # A step takes a second of the simulation.
    cluster = Cluster(
        nodes=1, mtbf_hours=MEAN / 3600, step_seconds=1.0, state_bytes=1.0,
        commit_seconds=commit_steps, restart_seconds=0, load_seconds=0, stall_seconds=0,
    )  # fmt: skip
    predicted = list(lives(cluster, EVERY, (num + 0.5 for num in lengths)))
    assert began == [life.began for life in predicted]

    reached = [start + num for start, num in zip(began, lengths, strict=True)]
    lost = [end - start for end, start in zip(reached[:-1], began[1:], strict=True)]
    others = [life.num_lost for life in simulate(cluster, EVERY, 50_000, seed=1).lives]
    error = statistics.stdev(others) / math.sqrt(len(lost))
    print(f"{statistics.mean(lost):.2f} steps lost, {statistics.mean(others):.2f} ± {error:.2f}")
    assert abs(statistics.mean(lost) - statistics.mean(others)) < 4 * error
