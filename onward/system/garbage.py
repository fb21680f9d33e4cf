"""Python's search for garbage, kept from where it finds none: imports, and the end of a process.

Importing torch and MLflow makes a million objects that all stay. To search them again and again
meanwhile takes 0.7 s of 2.9, and once more 1 s when the interpreter ends.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

_SELDOM = (50_000, 20, 100)  # objects more than before, then searches of the younger generation
_is_own = False


@contextlib.contextmanager
def seldom_searched() -> Iterator[None]:
    """Search seldom, while the block imports; what it has made counts as old from then on."""
    before = gc.get_threshold()
    gc.set_threshold(*_SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        if not gc.get_freeze_count():  # else somebody else has frozen what is to stay so
            gc.freeze()  # into the oldest generation, where no search for the young ones goes
            gc.unfreeze()


def own_process() -> None:
    """Say that all of this process is ours: a command, not a program that has imported us."""
    global _is_own
    _is_own = True


def stop_searching() -> None:
    """Search what is there by now never again, in a process of which all is ours.

    In another one it would keep what its owner lets go, and leave his files in cycles unflushed.
    """
    if _is_own:
        gc.freeze()
