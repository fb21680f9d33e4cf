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
    from onward.run.parts import Part as Part
    from onward.run.parts import Stateful as Stateful
    from onward.run.run import Run as Run
    from onward.run.seeded import seeded as seeded
    from onward.script.checkpoints import checkpoints as checkpoints
    from onward.script.open import open_run as open_run
    from onward.tracking.models import ServedModel as ServedModel

_PUBLIC = {
    "Monitor": "onward.monitor",
    "OnResume": "onward.options.declare",
    "Part": "onward.run.parts",
    "Run": "onward.run.run",
    "ServedModel": "onward.tracking.models",
    "Stateful": "onward.run.parts",
    "checkpoints": "onward.script.checkpoints",
    "errors": "",
    "open_run": "onward.script.open",
    "option": "onward.options.declare",
    "seeded": "onward.run.seeded",
}
__all__ = [
    "Monitor",
    "OnResume",
    "Part",
    "Run",
    "ServedModel",
    "Stateful",
    "checkpoints",
    "errors",
    "open_run",
    "option",
    "seeded",
]


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
