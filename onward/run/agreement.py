"""What all ranks do next: one small collective at each step; alone nothing is exchanged."""

from __future__ import annotations

import math

from onward.checkpoint.handover import Saver
from onward.errors import RankStopped
from onward.monitor import Best
from onward.run.signals import StopRequest
from onward.run.state import TrainState
from onward.world import World


class Agreement:
    """The word of all ranks on whether to save and to stop.

    What only one of them knows, such as a signal or the time, none of them acts on alone: the
    others would wait for it for ever.

    Args:
        world: The ranks.
        stop: What this one is asked.
        pipeline: What may have ended saving on this one.
    """

    def __init__(self, world: World, stop: StopRequest, pipeline: Saver) -> None:
        self._world, self._stop, self._pipeline = world, stop, pipeline
        self._is_stopping = False  # as agreed

    @property
    def is_stopping(self) -> bool:
        """Whether to save and stop, as soon as nothing is half done."""
        if self._world.is_alone:
            return self._stop.received is not None
        return self._is_stopping

    def look(self, is_due: bool = False, state: TrainState | None = None) -> bool:
        """Hear what the others say, at the same step on all ranks.

        Args:
            is_due: Whether to save; rank 0's word counts.
            state: Takes over which unit is best, of rank 0.

        Returns:
            Whether to save.

        Raises:
            BaseException: What ended saving on this rank.
            RankStopped: It was on another.
            RankLost: One of them is gone.
        """
        if self._world.is_alone:
            return is_due
        leads, error = self._world.is_leader, self._error()
        best = state.best if leads and state is not None else None
        asked, due, code, value, epoch = self._world.agree([
            float(self._stop.received or 0),
            float(is_due and leads),
            0.0 if error is None else float(getattr(error, "exit_code", 1)),
            -math.inf if best is None else best.value,
            -1.0 if best is None else float(best.epoch),
        ])  # fmt: skip
        if error is not None:
            raise error
        if code:
            raise RankStopped(0, "", int(code))
        if asked:
            self._stop.take(int(asked))
            self._is_stopping = True
        if state is not None and epoch >= 0:
            state.best = Best(value, int(epoch))
        return bool(due)

    def _error(self) -> BaseException | None:
        try:
            self._pipeline.check()
        except BaseException as error:  # raised again, once the others know
            return error
        return None

    def is_needed(self, is_needed: bool) -> bool:
        """Return rank 0's word on it."""
        return bool(self._world.agree([float(is_needed and self._world.is_leader)])[0])
