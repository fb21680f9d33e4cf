"""From one life of the ranks to the next: which run they had, and how one ended."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from pathlib import Path
from typing import Any

from onward.errors import Interrupted, TrainError
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
        """Return the run of the life before; None: this is the first, or it got to none.

        The first life removes what an earlier job of the same name has left.
        """
        if not (self._ranks.launcher or self._ranks.life):
            if self._file is not None and not self._ranks.rank:
                with contextlib.suppress(OSError):
                    self._file.unlink()
            return None
        if _has_run:  # another one that this process opens is of its own
            return None
        if self.store is not None:
            with contextlib.suppress(RuntimeError):
                if self.store.check([_KEY]):
                    return str(self.store.get(_KEY).decode())
        if self._file is not None:
            with contextlib.suppress(OSError, ValueError, KeyError):
                return str(json.loads(self._file.read_text())["run_id"])
        return None

    def remember(self, run_id: str, step: int) -> None:
        """Let the next life know the run; and the launcher, that it goes on: rank 0 alone does."""
        global _has_run
        _has_run = True
        if self._ranks.rank:
            return
        if self._file is not None:
            text = json.dumps({"run_id": run_id, "step": step}).encode()
            with contextlib.suppress(OSError):
                make_folder(self._file.parent)
                atomic_write(self._file, lambda file: file.write(text))
        if self.store is not None and not step:
            self.store.set(_KEY, run_id)


def code_file(lives_file: Path, rank: int) -> Path:
    """Return where a rank leaves the exit code of the error that ends it, for the launcher."""
    return lives_file.with_name(f"code_{rank}")


@functools.cache
def tell_launcher(ranks: Ranks) -> None:
    """Let `onward launch` know by which code this process ends: of any traceback Python makes a 1.

    Args:
        ranks: What the environment says of the process.
    """
    if not (ranks.launcher and ranks.lives_file):
        return
    file, show = code_file(Path(ranks.lives_file), ranks.rank), sys.excepthook

    def tell(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        code = error.exit_code if isinstance(error, TrainError) else 1
        if isinstance(error, KeyboardInterrupt):
            code = Interrupted.exit_code
        with contextlib.suppress(OSError):
            file.write_text(str(code))
        show(kind, error, traceback)

    sys.excepthook = tell
