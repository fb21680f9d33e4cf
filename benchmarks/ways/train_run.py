"""`train run`: this project's trainer on the table, with its model and figures at the end.

Its final losses are read from the server.
"""

import sys

from workload import Workload


def main(folder):
    from train.__main__ import console

    sys.argv = ["train", "run", *Workload.load(folder).options(folder)]
    console()
