"""Runs a script as `python` does, and kills the process with SIGKILL after so many optimizer steps.

    dying.py 12 1 my_script.py --epochs 6

0 lets it live. The number after that is where its random numbers begin.
"""

import itertools
import os
import random
import runpy
import signal
import sys

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


def main() -> None:
    """Run the script of the command line."""
    last, seed, sys.argv = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    steps = itertools.count(1)

    def die_if_due(*_: object) -> None:
        if next(steps) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(die_if_due)
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
