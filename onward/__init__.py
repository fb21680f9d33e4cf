"""A run that goes on, on any machine: checkpoints and metrics in MLflow, resumed by run ID.

What is public is here, and imported when it is first used: `import onward` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onward import errors as errors
    from onward.monitor import Monitor as Monitor
    from onward.options.declare import OnResume as OnResume
    from onward.options.declare import option as option
    from onward.run.run import Run as Run
    from onward.run.state import Stateful as Stateful
    from onward.tracking.models import ServedModel as ServedModel

_PUBLIC = {
    "Monitor": "onward.monitor",
    "OnResume": "onward.options.declare",
    "Run": "onward.run.run",
    "ServedModel": "onward.tracking.models",
    "Stateful": "onward.run.state",
    "errors": "",
    "option": "onward.options.declare",
}
__all__ = ["Monitor", "OnResume", "Run", "ServedModel", "Stateful", "errors", "option"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'onward' has no attribute {name!r}")
    module = _PUBLIC[name]
    if not module:
        return importlib.import_module(f"onward.{name}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
