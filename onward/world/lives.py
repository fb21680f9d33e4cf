"""From one life of the ranks to the next: which run they had."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from onward.system.environment import Ranks
from onward.system.files import atomic_write, make_folder

_KEY = "onward/run"
_has_run = False  # whether this process has opened one already


class Lives:
    """What the next life of the ranks needs to know of this one.

    It is in a file, which `onward launch` names, or which goes by torchrun's job; and in torchrun's
    store, where that outlives its workers, since rank 0 may come up on another machine.

    Args:
        ranks: What the environment says of them.

    Attributes:
        store: That of the agent; None: there is none.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._file = Path(ranks.lives_file) if ranks.lives_file else None
        self.store: Any = None

    def run_id(self) -> str | None:
        """Return the run of the life before; None: this is the first, or it got to none."""
        if not (self._ranks.launcher or self._ranks.life):  # a job of that name may have been
            return None
        if _has_run:  # another one that this process opens is of its own
            return None
        if run_id := self._read().get("run_id"):
            return str(run_id)
        if self.store is not None:
            with contextlib.suppress(RuntimeError):
                if self.store.check([_KEY]):
                    return str(self.store.get(_KEY).decode())
        return None

    def remember(self, run_id: str, step: int) -> None:
        """Let the next life know the run; and the launcher, that it goes on: rank 0 alone does."""
        global _has_run
        _has_run = True
        if self._ranks.rank:
            return
        self._write({"run_id": run_id, "step": step})
        if self.store is not None and not step:
            self.store.set(_KEY, run_id)

    def stopped(self, code: int) -> None:
        """Let the launcher know how rank 0 will end: of a traceback Python makes a 1."""
        self._write(self._read() | {"code": code})

    def _read(self) -> dict[str, Any]:
        if self._file is not None:
            with contextlib.suppress(OSError, ValueError):
                return dict(json.loads(self._file.read_text()))
        return {}

    def _write(self, document: dict[str, Any]) -> None:
        if self._file is not None:
            text = json.dumps(document).encode()
            with contextlib.suppress(OSError):
                make_folder(self._file.parent)
                atomic_write(self._file, lambda file: file.write(text))
