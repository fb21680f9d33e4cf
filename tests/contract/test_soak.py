"""Training for long, while processes die, the server is restarted and the network fails.

`make soak MINUTES=20` runs it for so long; SEED=… draws other disturbances. Two thirds of the time
processes are killed, too; the last third belongs to one process, so that what grows in it is seen.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from disturbed import Disturber
from flat import FLAT, drawn, rising, told
from support import (
    client,
    differences,
    ended,
    environment,
    mlflow_server,
    only_run,
    start_command,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]

MINUTES, SEED = float(os.environ.get("MINUTES", "0.25")), int(os.environ.get("SEED", "0"))
PLOT = os.environ.get("PLOT")
PACE = 0.25  # seconds of an epoch, at least
EPOCHS = int(60 * MINUTES / PACE)
KILLS_UNTIL = EPOCHS * 2 // 3
MANY_MINUTES = 2  # from which on what a process holds is judged
SOAKED = Path(__file__).parent / "soaked.py"
GOOD = (0, 7, 75, -signal.SIGKILL, -signal.SIGTERM)  # 7: it began while the server was away


def started(folder, env, pace=PACE):
    """Start the training in the background."""
    folder.mkdir(exist_ok=True)
    output = (folder / "output.txt").open("ab")
    words = [sys.executable, str(SOAKED), str(folder.parent / "samples.jsonl"), str(EPOCHS)]
    return start_command([*words, str(pace)], cwd=folder, env=env, stdout=output, stderr=output)


def samples(folder):
    """Return what the processes have noted so far."""
    file = folder / "samples.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def lives(folder, draw, address, request):
    """Train in one process after the other until all epochs are done; return how each ended."""
    codes, home = [], 0
    while not codes or codes[-1] != 0:
        if draw.random() < 0.5:
            home += 1  # another machine, which has nothing of what this one had not uploaded
        options = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
        machine = folder / f"machine_{home}"
        process = started(machine, environment(machine / "home", address, **options))
        begin = len(samples(folder))
        request.addfinalizer(process.kill)  # where the test fails
        lasts, last = (
            draw.randrange(20, max(40, EPOCHS // 10)),
            draw.choice([signal.SIGKILL, signal.SIGTERM]),
        )
        while process.poll() is None:
            done = samples(folder)
            is_due = len(done) - begin >= lasts and done[-1]["epoch"] < KILLS_UNTIL
            if is_due:
                process.send_signal(last)
                process.wait(120)
            time.sleep(0.1)
        codes.append(process.returncode)
        assert process.returncode in GOOD, (machine / "output.txt").read_text()[-4000:]
    return codes


def undisturbed(folder):
    """Train the same alone; return (store, run ID)."""
    uri = f"sqlite:///{folder}/undisturbed.db"
    process = started(folder / "alone", environment(folder / "alone" / "home", uri), pace=0)
    assert process.wait() == 0, (folder / "alone" / "output.txt").read_text()
    return uri, only_run(uri).info.run_id


def test_what_is_disturbed_for_long_ends_the_same(tmp_path, request):
    """Invariants 1, 2, 5, 8, 9, 10: the end is that of an undisturbed run, to the bit, and what a
    process holds does not grow. 45 s."""
    expected = undisturbed(tmp_path)
    with mlflow_server(tmp_path / "server") as server:
        disturber = Disturber(server, random.Random(SEED))
        disturbing = threading.Thread(target=disturber.run)
        disturbing.start()
        try:
            codes = lives(tmp_path, random.Random(SEED + 1), disturber.address, request)
        finally:
            disturber.stop()
            disturbing.join()
        [run] = [
            r
            for r in client(server.address).search_runs(["0"])
            if "mlflow.parentRunId" not in r.data.tags and "train.epoch" in r.data.tags
        ]
        assert run.info.status == "FINISHED"
        found = ended(server.address, run.info.run_id, tmp_path / "found")
    assert differences(ended(*expected, tmp_path / "expected"), found) == []
    noted = samples(tmp_path)
    print(f"\n{EPOCHS} epochs by {len(codes)} processes {codes}; {dict(disturber.done)}")
    print(told(noted))
    if PLOT:
        drawn(noted, Path(PLOT))
    if MINUTES >= MANY_MINUTES:
        assert rising(noted) == [], FLAT
