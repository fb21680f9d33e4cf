"""Runs the command line and kills its own process with SIGKILL at one durable step.

    killer.py before:upload:3 run --epochs 6

kills right before the third call of `upload`; `after:` right after it. Steps are

    write       a checkpoint's files are written to the local disk
    upload      one file goes to the artifact store
    publish     metrics go to the tracking server
    tags        tags go to the tracking server
    delete      something is deleted from the artifact store
"""

import os
import signal
import sys

from train import cli
from train.checkpoint import pipeline
from train.tracking import Artifacts, Tracking

OWNERS = {
    "write": (pipeline, "write_checkpoint"),
    "upload": (Artifacts, "upload"),
    "publish": (Tracking, "log_points"),
    "tags": (Tracking, "set_tags"),
    "delete": (Artifacts, "delete"),
}


def arm(when: str, step: str, number: int) -> None:
    """Replace the function of `step` by one that dies at its `number`-th call."""
    owner, name = OWNERS[step]
    original = getattr(owner, name)
    calls = 0

    def dying(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls == number and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, dying)


if __name__ == "__main__":
    when, step, number = sys.argv[1].split(":")
    arm(when, step, int(number))
    cli.main(sys.argv[2:])
