"""Runs the command line, and appends a byte to a file for each optimizer step begun.

counted.py steps.txt run --epochs 6
"""

import os
import sys

from train import cli


def count_steps(path: str) -> None:
    """Let each loss that is computed be counted in the file `path`; there is one a step."""
    steps_file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    from train.tabular.task import TabularTask

    loss = TabularTask.loss

    def counted(self, model, indices):
        os.write(steps_file, b".")
        return loss(self, model, indices)

    TabularTask.loss = counted


if __name__ == "__main__":
    count_steps(sys.argv[1])
    cli.main(sys.argv[2:])
