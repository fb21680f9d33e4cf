"""How this process was started, where it is a script of somebody's own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

_script: tuple[str, ...] | None = None


def set_script(launcher: Sequence[str] = ()) -> None:
    """Know this process as a script of somebody's own, for the commands that go on with its run.

    Args:
        launcher: What is before the script where it is started as several ranks.
    """
    global _script
    words = [Path(sys.executable).name if sys.executable else "python", *sys.argv]
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and spec.name:  # python -m
        words[1:2] = ["-m", spec.name.removesuffix(".__main__")]
    if launcher:
        words[:1] = launcher
    _script = tuple(words) if script_path() is not None else ("python", "<notebook>")


def script() -> tuple[str, ...] | None:
    """Return the words by which this process was started, if it is a script of somebody's own."""
    return _script


def script_path() -> Path | None:
    """Return the file of the program that this process runs; None in a notebook."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return None if file is None else Path(file).absolute()


def name() -> str:
    """Return what the program of this process is called: a script, "notebook", or "train"."""
    path = script_path()
    if _script is None:
        return "train"
    return "notebook" if path is None else path.name
