"""Puts `support.py` on the path of the contract tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
