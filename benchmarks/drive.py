"""Trains the workload 'table' in one way, in a process of its own: `drive.py WAY FOLDER`."""

import importlib
import sys
from pathlib import Path

import marks

if __name__ == "__main__":
    marks.install()
    way, folder = sys.argv[1:]
    importlib.import_module(f"ways.{way}").main(Path(folder))
