"""Runs the command line and kills its own process with SIGKILL at one durable step.

    killer.py before:upload:3@2 run --epochs 6

kills right before the third call of `upload` since epoch 2 began to be written; `after:` right
after it. Checkpoints are cut into small parts, so that there are several. Steps are

    write       a checkpoint's files are written to the spool
    fsync       a file or a folder of the spool is brought to the disk
    rename      a file or a folder of the spool gets its final name
    upload      one file goes to the artifact store
    publish     metrics go to the tracking server
    tags        tags go to the tracking server
    delete      something is deleted from the artifact store
"""

import functools
import os
import re
import signal
import sys

from train import cli, files
from train.checkpoint import format, pipeline
from train.tracking import Artifacts, Tracking

OWNERS = {
    "fsync": (files.os, "fsync"),
    "rename": (files.os, "replace"),
    "upload": (Artifacts, "upload"),
    "publish": (Tracking, "log_points"),
    "tags": (Tracking, "set_tags"),
    "delete": (Artifacts, "delete"),
}
PART_BYTES = 4096


def die() -> None:
    """End as if the machine had been switched off."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(when: str, step: str, number: int, epoch: int) -> None:
    """Let the process die at the `number`-th call of `step` for the checkpoint of `epoch`."""
    calls = -1  # not counted yet
    small_parts = functools.partial(format.write_checkpoint, part_bytes=PART_BYTES)

    def write_checkpoint(folder, state, **options):
        nonlocal calls
        if state["epoch"] != epoch:
            return small_parts(folder, state, **options)
        if (when, step) == ("before", "write"):
            die()
        calls = 0
        manifest = small_parts(folder, state, **options)
        if (when, step) == ("after", "write"):
            die()
        return manifest

    pipeline.write_checkpoint = write_checkpoint
    if step == "write":
        return
    owner, name = OWNERS[step]
    original = getattr(owner, name)

    def dying(*args, **kwargs):
        nonlocal calls
        calls += calls >= 0
        this = calls
        if this == number and when == "before":
            die()
        result = original(*args, **kwargs)
        if this == number and when == "after":
            die()
        return result

    setattr(owner, name, dying)


if __name__ == "__main__":
    when, step, number, epoch = re.fullmatch(r"(\w+):(\w+):(\d+)@(\d+)", sys.argv[1]).groups()
    arm(when, step, int(number), int(epoch))
    cli.main(sys.argv[2:])
