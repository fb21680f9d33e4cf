"""The commands that messages tell the user to run, in the form the user came by."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from train import environment
from train.config import to_text


def train_command(options: Mapping[str, Any]) -> str:
    """Return the full command that starts the program with `options`, ready to paste."""
    words = {name: shlex.quote(to_text(value)) for name, value in options.items()}
    if environment.launched_run_id() is None:
        return " ".join(["python -m train run", *(f"--{k} {v}" for k, v in words.items())])
    start = "mlflow run . --env-manager local"
    return " ".join([start, *(f"-P {k}={v}" for k, v in words.items())])
