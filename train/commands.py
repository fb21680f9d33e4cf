"""The commands that messages tell the user to run, in the form the user came by."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train import environment
from train.declare import to_text
from train.shell import command as command  # the rest of them
from train.shell import quoted


def train_command(options: Mapping[str, Any], project: str | None = None) -> str:
    """Return the full command that starts the program with `options`, ready to paste.

    Args:
        options: Name to value.
        project: What `mlflow run` is given; default: this project by its full path, which is
            right in every folder.
    """
    words = {name: quoted(to_text(value)) for name, value in options.items()}
    if environment.launched_run_id() is None:
        return " ".join(["train run", *(f"--{k} {v}" for k, v in words.items())])
    start = f"mlflow run {project or _project()} --env-manager local"
    return " ".join([start, *(f"-P {k}={v}" for k, v in words.items())])


def _project() -> str:
    """Return where `mlflow run` finds this project; it works in the project's folder."""
    here = Path.cwd()
    if here.is_relative_to(tempfile.gettempdir()) and here.name.startswith("tmp"):
        return "<project>"  # a temporary copy of a zip or a git repository
    return quoted(str(here))
