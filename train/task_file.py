"""The file of a task of somebody's own: loaded to be trained, and kept with the model it made.

MLflow runs it where the model is loaded, as any code of a model; nothing is unpickled.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from onward.errors import UsageError
from onward.words.language import _

CODE_FILE = "task.py"  # in the model's folder, beside what the task wrote


def load_file(path: Path) -> ModuleType:
    """Return a Python file as a module of a private name; what lies beside it can be imported.

    Raises:
        UsageError: It cannot be run; the error says where.
    """
    name = f"task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    folder = str(path.absolute().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last: nothing of ours is hidden by what lies there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # of whoever wrote the task, and any there is
        del sys.modules[name]
        told = _("'{path}' cannot be run: {kind}: {reason} (--debug shows where)")
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            told.format(path=path, kind=type(error).__name__, reason=reason)
        ) from error
    return module


def pack(file: Path, folder: Path) -> str:
    """Put a task's file into the folder of its model; return the module that loads it."""
    shutil.copyfile(file, folder / CODE_FILE)
    return __name__


def _load_pyfunc(path: str) -> Any:
    """Load a model that MLflow has downloaded; MLflow calls this by its name."""
    return load_file(Path(path) / CODE_FILE).load_model(Path(path))
