"""The learning rate of each epoch."""

from __future__ import annotations

import math
from typing import Any

from onward.monitor import Monitor
from train.loop_options import LoopOptions

FLOOR = 0.01  # the cosine ends at this part of lr, and stays there
PLATEAU_FACTOR = 1 / 3
PLATEAU_EPOCHS = 3
_FIRST_WATCHED = Monitor("val_loss", "min")  # where the state does not tell, as at first


class Schedule:
    """The learning rate as a function of the options, the epoch and, for plateau, of a metric.

    The optimizer's own lr is set from it at every epoch, so that a fork with another lr needs
    no surgery on a saved state.

    Args:
        options: Those of the loop, `schedule_epochs` among them.
        watched: The metric of plateau.
    """

    def __init__(self, options: LoopOptions, watched: Monitor) -> None:
        assert options.schedule_epochs is not None, "chosen when the task was opened"
        self._kind, self._lr, self._watched = options.schedule, options.lr, watched
        self.horizon_epochs = options.schedule_epochs
        self._factor = 1.0
        self._best: float | None = None
        self._num_bad_epochs = 0

    def lr(self, epoch: int) -> float:
        """Return the rate of `epoch`, counted from 1; past the horizon it stays at the floor."""
        if self._kind == "cosine":
            progress = min((epoch - 1) / self.horizon_epochs, 1.0)
            return self._lr * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2)
        return self._lr * self._factor

    def is_past_horizon(self, epoch: int) -> bool:
        """Tell whether the cosine has ended before `epoch`."""
        return self._kind == "cosine" and epoch > self.horizon_epochs

    def observe(self, value: float) -> None:
        """Note the watched metric of an epoch; on a plateau the rate falls to a third."""
        if self._kind != "plateau":
            return
        if self._watched.is_better(value, self._best):
            self._best, self._num_bad_epochs = value, 0
            return
        self._num_bad_epochs += 1
        if self._num_bad_epochs >= PLATEAU_EPOCHS:
            self._factor *= PLATEAU_FACTOR
            self._num_bad_epochs = 0

    is_checked = False  # a fork that is judged by another metric leaves some of its state
    KEYS = frozenset({"factor", "best", "num_bad_epochs"})  # of its state, and `watched`

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as builtins."""
        watched = {} if self._watched == _FIRST_WATCHED else {"watched": str(self._watched)}
        return {
            "factor": self._factor,
            "best": self._best,
            "num_bad_epochs": self._num_bad_epochs,
            **watched,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to a state that `state_dict` returned."""
        self._factor = state_dict["factor"]
        self._best = state_dict["best"]
        self._num_bad_epochs = state_dict["num_bad_epochs"]
        if state_dict.get("watched", str(_FIRST_WATCHED)) != str(self._watched):  # after a fork
            self._best, self._num_bad_epochs = None, 0
