"""A run that is killed again and again, each time on another machine, until it has all its epochs.

`make chaos KILLS=300` runs it longer; SEED=… draws other moments.
"""

import math
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import (
    SMALL,
    checkpoint,
    children,
    client,
    comparable,
    curves,
    differences,
    environment,
    index,
    launch,
    mlflow_server,
    only_run,
    start_command,
    write_table,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]

KILLS, SEED = int(os.environ.get("KILLS", "20")), int(os.environ.get("SEED", "0"))
STEPS = 50  # of an epoch: 3,200 rows to train on, 64 at a time
EVERY = 20  # steps between two checkpoints
EPOCHS = 5 * KILLS // 3  # more than so many attempts can train, however fast the machine
COUNTED = Path(__file__).parent / "counted.py"


@dataclass
class Attempt:
    """A process that was started: how it ended, and how many steps it began."""

    sent: signal.Signals | None
    code: int
    num_steps: int


def attempt(folder: Path, draw: random.Random, options: tuple[str, ...], env) -> Attempt:
    """Start a process in the empty `folder`, and kill it at a random moment.

    The moment is drawn in steps, not in seconds, so that it falls alike on any machine; a third
    of the time it is in the start of the process, or in a commit.
    """
    folder.mkdir()
    steps_file = folder / "steps.txt"
    steps_file.touch()
    target, delay, most = draw.randrange(1, 2 * STEPS), draw.uniform(0, 0.05), math.inf
    if draw.random() < 0.2:
        target, delay, most = 0, draw.uniform(0, 6), STEPS  # before, at, or after the first step
    sent = draw.choice([signal.SIGKILL, signal.SIGTERM])
    with open(folder / "output.txt", "wb") as output:
        process = start_command(
            [sys.executable, str(COUNTED), str(steps_file), "run", *options],
            cwd=folder, env=env, stdout=output, stderr=output,
        )  # fmt: skip
        while process.poll() is None and steps_file.stat().st_size < target:
            time.sleep(0.002)
        ends = time.monotonic() + delay
        while process.poll() is None and time.monotonic() < ends:
            if steps_file.stat().st_size >= most:
                break
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(sent)
        else:
            sent = None
        code = process.wait(120)
    return Attempt(sent, code, steps_file.stat().st_size)


def test_killed_at_random_until_it_is_finished(tmp_path):
    """Invariants 1, 2, 5, 8, 9: one command line, killed at random moments and started again in an
    empty directory, ends with the run of an undisturbed machine, and computes little twice."""
    draw = random.Random(SEED)
    table = str(write_table(tmp_path / "table.csv", num_rows=4000))
    options = (*SMALL, "--data", table, "--target", "price", "--epochs", str(EPOCHS),
               "--checkpoint_freq", "10", "--checkpoint_steps", str(EVERY), "--dropout", "0.1",
               "--upload", "sync")  # fmt: skip
    undisturbed = f"sqlite:///{tmp_path}/undisturbed.db"
    done = launch(*options, cwd=tmp_path, env=environment(tmp_path / "home", undisturbed))
    assert done.returncode == 0, done.stderr
    undisturbed_id = only_run(undisturbed).info.run_id

    attempts: list[Attempt] = []
    with mlflow_server(tmp_path / "server") as server:
        # It may be killed when all is done, before it can say so by its exit code.
        while not attempts or (attempts[-1].code and not is_finished(server.address)):
            folder = tmp_path / f"machine_{len(attempts) + 1}"
            env = environment(folder / "home", server.address)
            attempts.append(attempt(folder, draw, (*options, "--resume_run", "auto"), env))
            assert attempts[-1].code in (0, 75, -signal.SIGKILL, -signal.SIGTERM), (
                folder / "output.txt"
            ).read_text()
        [run] = trained_runs(server.address)
        run_id = run.info.run_id
        saved = comparable(checkpoint(server.address, run_id, tmp_path / "got"))
        assert (
            differences(comparable(checkpoint(undisturbed, undisturbed_id, tmp_path)), saved) == []
        )
        assert curves(server.address, run_id) == curves(undisturbed, undisturbed_id)
        assert index(server.address, run_id, tmp_path / "a") == index(
            undisturbed, undisturbed_id, tmp_path / "b"
        )
        assert_attempts_tell_the_truth(server.address, run_id)
    killed = [a for a in attempts if a.sent == signal.SIGKILL]
    assert sum(a.sent is not None for a in attempts) >= KILLS
    twice = sum(a.num_steps for a in attempts) - EPOCHS * STEPS
    print(
        f"{len(attempts)} attempts, {len(killed)} SIGKILL; {twice} of {EPOCHS * STEPS} steps twice"
    )
    # A step that was under way, and those since the last checkpoint; after a SIGTERM none.
    assert 0 <= twice <= len(killed) * (EVERY + 1)


def trained_runs(uri: str) -> list:
    """Return the runs that were trained; others were begun and died before they were anything."""
    return [
        r
        for r in client(uri).search_runs(["0"])
        if "mlflow.parentRunId" not in r.data.tags and "train.epoch" in r.data.tags
    ]


def is_finished(uri: str) -> bool:
    """Tell whether all epochs are trained."""
    return [r.info.status for r in trained_runs(uri)] == ["FINISHED"]


def assert_attempts_tell_the_truth(uri: str, run_id: str) -> None:
    """The run is FINISHED by its last attempt; the others were preempted, or vanished."""
    run, tried = client(uri).get_run(run_id), children(uri, run_id)
    assert run.info.status == "FINISHED"
    number = int(run.data.tags["train.attempt"])
    claimed = {run.data.params[f"train.attempt.{n}"] for n in range(2, number + 1)}
    assert claimed <= {child.info.run_id for child in tried}
    told = [run.data.tags[f"train.attempt.{n}"] for n in range(1, number + 1)]
    assert told[-1].endswith(", finished")
    assert [words for words in told[:-1] if not words.endswith((", preempted", ", vanished"))] == []
    for child in tried:
        ended = child.data.tags.get("train.ended")
        expected = {"finished": "FINISHED", "preempted": "KILLED", "vanished": "KILLED"}
        if child.info.run_id in claimed:
            assert child.info.status == expected[ended], (child.info.run_name, ended)
