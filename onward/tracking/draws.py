"""Random numbers of the clients of servers and stores: their own, not training's.

Google's client draws the border between the parts of each upload, others how long they wait before
they ask again, MLflow a run's name: all by the functions of `random`, which a training loop draws
from too. What that draws would be another thing for each upload, and for each answer that was late.
"""

from __future__ import annotations

import importlib.util
import random
import sys
from types import ModuleType

_CLIENTS = frozenset(
    (
        *("azure", "boto3", "botocore", "google", "mlflow", "paramiko", "psycopg", "psycopg2"),
        *("pymysql", "pysftp", "requests", "s3transfer", "sqlalchemy", "urllib3"),
    )
)


def _copy_of_random() -> ModuleType:
    """Return the module `random` anew, with a generator of its own behind its functions."""
    spec = importlib.util.find_spec("random")
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


_own = _copy_of_random()


def draw_apart() -> None:
    """Let all clients that are imported by now draw from a generator that nobody else has."""
    generator = random.random.__self__  # type: ignore[attr-defined] # that of its functions
    taken = {
        id(value): name
        for name, value in vars(random).items()
        if getattr(value, "__self__", None) is generator
    }
    for package, module in sys.modules.copy().items():  # others import meanwhile
        if package.partition(".")[0] not in _CLIENTS or not isinstance(module, ModuleType):
            continue
        for attribute, value in vars(module).copy().items():
            if value is random:
                setattr(module, attribute, _own)
            elif id(value) in taken:  # from random import randint
                setattr(module, attribute, getattr(_own, taken[id(value)]))
