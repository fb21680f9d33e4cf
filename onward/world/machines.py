"""What the machines beside rank 0's do while they train: told on the board, published by rank 0.

machines       how many there are
machine/K      what the K-th does: number of the sample, the rank that took it, name to value
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping

from onward.errors import RankLost
from onward.metrics import SYSTEM
from onward.system.untrusted import parse_json
from onward.world.world import World

ANSWER_SECONDS = 1.0  # in which the board answers: a heartbeat waits for it
NUM_QUIET = 9  # heartbeats before a board is asked again that did not answer
_MALFORMED = (ValueError, TypeError, AttributeError, OverflowError)

Found = Mapping[str, float]


class Machine:
    """Another machine, by the first rank on it.

    Args:
        world: The ranks.
        open_sampler: Returns what returns what the machine does, by names that begin with
            `system/`; called where there is something to tell alone.
        seconds: Between two samples.
    """

    def __init__(
        self, world: World, open_sampler: Callable[[], Callable[[], Found]], seconds: float
    ) -> None:
        self._world, self._open_sampler, self._seconds = world, open_sampler, seconds
        self._over = threading.Event()

    def open(self) -> None:
        """Begin to tell, in a thread of its own, if this rank is the first on another machine."""
        if self._world.leads_host and not self._world.is_leader:
            threading.Thread(target=self._tell_on, name="machine", daemon=True).start()

    def close(self) -> None:
        """Tell no more."""
        self._over.set()

    def _tell_on(self) -> None:
        board, number, sample = self._world.board, 0, self._open_sampler()
        with contextlib.suppress(RankLost):
            name = f"machine/{board.count('machines', 1)}"
            while not self._over.wait(self._seconds if number else 0.0):
                number += 1
                board.post(name, json.dumps([number, self._world.rank, dict(sample())]))


class OtherMachines:
    """All of them, as rank 0 hears of them.

    Args:
        world: The ranks.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._heard: dict[int, int] = {}  # machine to the number of its newest sample
        self._num_quiet = 0  # times that are passed over

    def sample(self) -> dict[str, float]:
        """Return what is new: `system/rank_R/…`, where R is the first rank on the machine."""
        found: dict[str, float] = {}
        if self._world.is_alone:
            return found
        if self._num_quiet:
            self._num_quiet -= 1
            return found
        board = self._world.board.within(ANSWER_SECONDS)
        try:
            for machine in range(1, board.count("machines") + 1):
                note = board.read(f"machine/{machine}")
                if note is not None:
                    with contextlib.suppress(*_MALFORMED):
                        found |= self._read(machine, note)
        except RankLost:
            self._num_quiet = NUM_QUIET
        return found

    def _read(self, machine: int, note: str) -> dict[str, float]:
        """Return what a machine does; nothing where that is known.

        Raises: One of `_MALFORMED`: it is no such note.
        """
        number, rank, told = parse_json(note)
        if number == self._heard.get(machine, 0):
            return {}
        own = f"{SYSTEM}rank_{int(rank)}/"
        found = {own + key.removeprefix(SYSTEM): float(value) for key, value in told.items()}
        self._heard[machine] = number
        return found
