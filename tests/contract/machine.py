"""Runs the command line as if on the machine of that name, with short times unless REAL_TIMES.

machine.py other run --resume_run …
"""

import os
import sys

from onward.system import environment, git, processes
from train import cli

if __name__ == "__main__":
    name = sys.argv[1]
    processes.machine = lambda: name
    # Whether a developer has changed something in the meantime is no part of what is tested.
    git.code_version, git.code_diff = (lambda: None), (lambda: b"")
    environment.hostname = lambda: name
    from onward.attempts import heartbeat

    if "REAL_TIMES" not in os.environ:
        heartbeat.BEAT_SECONDS, heartbeat.LEASE_SECONDS, heartbeat.LOOK_SECONDS = 0.5, 3.0, 0.1
    cli.main(sys.argv[2:])
