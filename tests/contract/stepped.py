"""Trains a loop on two ranks, which are forks of this process, and kills one at a durable step.

    stepped.py jobs.json [RANK:WHO:NUMBER:STEP ...]

Each word is a job of its own, in a folder of that number with a store `mlflow.db` and what its
ranks printed: right before RANK makes STEP for the NUMBER-th time, WHO of the ranks is killed by
SIGKILL. Then both are started anew, as a launcher does it, until they end by themselves. Without
words one job is undisturbed.
`jobs.json` gets for each job the exit codes of its lives, and the durable steps of each rank in
its first one: what it fsyncs, names, removes, uploads, and says to the tracking server.
"""

import collections
import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from multiprocessing import connection
from pathlib import Path

# What a life imports, some of it late.
import alembic.command
import mlflow.store.tracking.sqlalchemy_store
import pygments.formatters.html
import pygments.lexers.python
import ranked
import torch._dynamo
import torch.distributed.fsdp

import onward.opening.together
import onward.script.open
from onward.system import environment
from onward.system.files import atomic_write
from onward.tracking.artifacts import Artifacts
from onward.tracking.client import Tracking

_IMPORTED = (alembic, mlflow, onward, pygments, torch)

RANKS = 2
MAX_LIVES = 4
CALLS = {
    os: ("fsync", "replace", "link", "unlink"),
    Artifacts: ("upload", "delete"),
    Tracking: (
        *("create_run", "claim_attempt", "set_status", "rename", "log_params", "log_points"),
        *("set_tags", "log_dataset"),
    ),
}
# What differs between two equal runs, and between two steps of one kind.
NAMES = [
    (r"/[0-9a-f]{12}-", "/"),
    (r"[0-9a-f]{32}", "*"),
    (r"(?<=epoch_)\d+|(?<=step_)\d+|(?<=sent-)\w+", "N"),
]


def path_of(value, folder=None):
    """Return the path that an argument of a system call stands for."""
    if isinstance(value, int):
        return os.readlink(f"/proc/self/fd/{value}")
    parent = os.readlink(f"/proc/self/fd/{folder}") if folder is not None else os.getcwd()
    return os.path.join(parent, value)


def step_of(owner, call, args, named):
    """Return the name of a durable step; None: it is none of this job's."""
    if owner is os:
        last = args[1] if call in ("replace", "link") else args[0]
        path = path_of(last, named.get("dst_dir_fd", named.get("dir_fd")))
        if not path.startswith(os.getcwd()) or (call == "unlink" and path.endswith(".tmp")):
            return None  # of another's; or what a rename has left of a file that was written
        told = os.path.relpath(path)
    elif owner is Artifacts:
        told = args[1] if call == "delete" else f"{args[2]}/{args[1].name}"
    elif call == "set_tags":
        told = min(args[2], default="")
    else:
        told = ""
    for pattern, shown in NAMES:
        told = re.sub(pattern, shown, told)
    return f"{call} {told}"


def kill(rank):
    """End a rank of the first life, which may just be about to start."""
    file = Path(f"pid-{rank}")
    while not file.exists():
        time.sleep(0.01)
    os.kill(int(file.read_text()), signal.SIGKILL)


def watch(file, killed):
    """Append each durable step of this process to a file; before one, (WHO, NUMBER, STEP), kill."""
    num_made, lock = collections.Counter(), threading.Lock()
    steps = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def watched(owner, call, original):
        def made(*args, **named):
            step = step_of(owner, call, args, named)
            if step is not None:
                with lock:
                    num_made[step] += 1
                    if killed[1:] == (num_made[step], step):
                        kill(killed[0])
                    os.write(steps, f"{step}\n".encode())
            return original(*args, **named)

        return made

    for owner, calls in CALLS.items():
        for call in calls:
            setattr(owner, call, watched(owner, call, getattr(owner, call)))


def train(rank, life, port, killed):
    """Be a rank, in a process of its own."""
    output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    place = {"RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
    place |= {"MASTER_PORT": port, "TORCHELASTIC_RUN_ID": life}
    os.environ.update({name: str(value) for name, value in place.items()})
    if not life:
        atomic_write(Path(f"pid-{rank}"), lambda file: file.write(b"%d" % os.getpid()))
        watch(f"steps-{rank}", killed)
    try:
        ranked.main([])
    except BaseException:
        traceback.print_exc()
        raise


def live(life, killed):
    """Start all ranks, and end them as an agent does once one has failed; return how they ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    ranks = []
    for rank in range(RANKS):
        own = killed[1:] if rank in killed[:1] else ()
        ranks.append(fork.Process(target=train, args=(rank, life, port, own)))
        ranks[-1].start()
    waiting = set(ranks)
    try:
        while waiting:
            ended = connection.wait([rank.sentinel for rank in waiting], 120)
            assert ended, f"{os.getcwd()}: no rank ends"
            for rank in [rank for rank in waiting if rank.sentinel in ended]:
                rank.join()
                waiting.remove(rank)
            if any(rank.exitcode for rank in ranks):
                for rank in waiting:
                    rank.terminate()
    finally:
        for rank in waiting:
            rank.kill()
    return [rank.exitcode for rank in ranks]


def job(killed):
    """Let ranks live until they end by themselves; return the exit codes and their steps."""
    environment.prepare_ranks(RANKS, Path("lives.json").absolute(), "SIGTERM")
    os.environ["TRAIN_HOME"] = os.path.abspath("home")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{os.getcwd()}/mlflow.db"
    codes = []
    while not codes or (any(codes[-1]) and len(codes) < MAX_LIVES):
        codes.append(live(len(codes), killed))
    steps = [Path(f"steps-{rank}") for rank in range(RANKS)]
    steps = [path.read_text().splitlines() if path.exists() else [] for path in steps]
    return {"codes": codes, "steps": steps}


def main(result, *words):
    """Do one job after the other."""
    found, root, store = [], os.getcwd(), os.path.abspath("mlflow.db")
    for number, word in enumerate(words or [""]):
        *numbers, step = word.split(":", 3)
        killed = (*map(int, numbers), step) if word else ()
        folder = os.path.join(root, str(number))
        os.mkdir(folder)
        shutil.copy(store, folder)
        with contextlib.chdir(folder):
            found.append(job(killed))
        Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
