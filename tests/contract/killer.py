"""Runs the command line and kills its own process with SIGKILL at one durable step.

    killer.py before:part:3@2 run --epochs 6

kills right before the third call of `part` for the checkpoint of epoch 2; `after:` right after
it; `amid:`, where it sends a file to a server, once half of that is sent. Without a number it is
the first call. Whoever makes the call dies: the attempt that trains the epoch, or a resume that
publishes what the attempt before it left. Checkpoints are cut into small parts, so that there are
several, but for `file`. Each checkpoint goes up as soon as it is written, and all that follows is
done for it alone; with `round:` in front, all but the first go up when training is over, share
what follows, and are whole files. Steps are

    write       the files of the checkpoint are written to the spool
    fsync       one of them, or a folder of them, is brought to the disk
    rename      their folder gets its final name
    last_fsync  that name is brought to the disk
    upload      a file of the checkpoint goes to the artifact store
    file        its `checkpoint.pth` does, as one file
    part        a part of it does
    last_part   the last part does
    manifest    its manifest does
    publish     metrics of the epoch go to the tracking server
    tags        the tags that point to the checkpoint do
    index       the list of checkpoints, with this one as the newest, goes to the artifact store
    delete      after that, something is deleted there
    model       the model of the finished run goes to the artifact store; of whatever epoch
"""

import itertools
import json
import os
import re
import signal
import socket
import ssl
import sys
from pathlib import Path

from mlflow import MlflowClient

from onward.checkpoint import format, spooling, uploader
from onward.checkpoint.listed import INDEX_FILE
from onward.checkpoint.manifest import CHECKPOINT_FILE, MANIFEST_FILE
from onward.system import files
from onward.tracking.artifacts import Artifacts
from onward.tracking.client import Tracking
from onward.tracking.names import EPOCH_TAG
from train import cli

PART_BYTES = 8192


def is_file_of(epoch, _, file, folder, *__) -> bool:
    return f"epoch_{epoch}" in folder.split("/")


def is_single_file_of(epoch, _, file, folder, *__) -> bool:
    return is_file_of(epoch, _, file, folder) and file.name == CHECKPOINT_FILE


def is_part_of(epoch, _, file, folder, *__) -> bool:
    return is_file_of(epoch, _, file, folder) and file.name.startswith("part-")


def is_last_part_of(epoch, _, file, folder, *__) -> bool:
    return is_part_of(epoch, _, file, folder) and file == max(file.parent.glob("part-*"))


def is_manifest_of(epoch, _, file, folder, *__) -> bool:
    return is_file_of(epoch, _, file, folder) and file.name == MANIFEST_FILE


def is_index_of(epoch, _, file, folder, *__) -> bool:
    if file.name != INDEX_FILE:
        return False
    return json.loads(file.read_text())["checkpoints"][-1]["epoch"] == epoch


# Step to what makes it, and which of its calls, by their arguments, are for the epoch.
STEPS = {
    "write": (spooling, "write_checkpoint", lambda epoch, folder, *_: is_name(epoch, folder)),
    "fsync": (files.os, "fsync", lambda *_: True),
    "rename": (files.os, "replace", lambda epoch, _, target: is_name(epoch, target)),
    "last_fsync": (files.os, "fsync", lambda *_: True),
    "upload": (Artifacts, "upload", is_file_of),
    "file": (Artifacts, "upload", is_single_file_of),
    "part": (Artifacts, "upload", is_part_of),
    "last_part": (Artifacts, "upload", is_last_part_of),
    "manifest": (Artifacts, "upload", is_manifest_of),
    "publish": (Tracking, "log_points", lambda epoch, *args: epoch in {p.step for p in args[2]}),
    "tags": (Tracking, "set_tags", lambda epoch, *args: args[2].get(EPOCH_TAG) == str(epoch)),
    "index": (Artifacts, "upload", is_index_of),
    "delete": (Artifacts, "delete", lambda *_: True),
    "model": (MlflowClient, "log_model_artifacts", lambda *_: True),
}
# Where the arguments do not tell: from when on the calls are for the epoch.
SINCE = {"fsync": "before:write", "last_fsync": "after:rename", "delete": "after:index"}


def is_name(epoch, path) -> bool:
    return Path(path).name == f"epoch_{epoch}"


def die() -> None:
    """End as if the machine had been switched off."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_after_sending(num_bytes: int) -> None:
    """Let the process die once that much more has gone to whatever server."""
    left = num_bytes

    def make(original):
        def send(self, data, *args):
            nonlocal left
            if len(data) > left:
                original(self, bytes(data)[:left], *args)
                die()
            left -= len(data)
            return original(self, data, *args)

        return send

    for owner, name in (
        (socket.socket, "send"),
        (socket.socket, "sendall"),
        (ssl.SSLSocket, "send"),
    ):
        setattr(owner, name, make(getattr(owner, name)))


def arm(when: str, step: str, number: int, epoch: int) -> None:
    """Let the process die at the `number`-th call of `step` for the checkpoint of `epoch`."""

    def write_in_parts(*args, **options):
        return format.write_checkpoint(*args, **{**options, "part_bytes": PART_BYTES})

    if step != "file":
        spooling.write_checkpoint = write_in_parts
    since = SINCE.get(step, "")
    reached = {""}
    numbers = itertools.count(1)

    def watch(name: str) -> None:
        owner, attribute, concerns = STEPS[name]
        original = getattr(owner, attribute)

        def watched(*args, **kwargs):
            if not concerns(epoch, *args):
                return original(*args, **kwargs)
            is_it = name == step and since in reached and next(numbers) == number
            if is_it and when == "before":
                die()
            if is_it and when == "amid":
                die_after_sending(args[1].stat().st_size // 2)
            reached.add(f"before:{name}")
            result = original(*args, **kwargs)
            reached.add(f"after:{name}")
            if is_it and when == "after":
                die()
            return result

        setattr(owner, attribute, watched)

    for name in {step, since.partition(":")[2] or step}:
        watch(name)
    log_points = Tracking.log_points

    def stored(self, run_id, points, tags=None):
        log_points(self, run_id, points)
        if tags is not None:
            self.set_tags(run_id, tags)

    Tracking.log_points = stored  # one request: a server that stores it one after the other may die


if __name__ == "__main__":
    of_round, when, step, number, epoch = re.fullmatch(
        r"(round:)?(before|amid|after):(\w+)(?::(\d+))?@(\d+)", sys.argv[1]
    ).groups()
    uploader.ROUND_SECONDS = 1e6 if of_round else 0.0
    PART_BYTES = 1 << 28 if of_round else PART_BYTES
    arm(when, step, int(number or 1), int(epoch))
    cli.main(sys.argv[2:])
