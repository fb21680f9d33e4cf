"""What a loop of somebody else's logs, sorted by the axis on which each metric is published."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from onward.run.run import Run
from onward.words.language import _

log = logging.getLogger(__name__)

_NO_NAME = re.compile(r"[^\w./: \-]")  # in the name of a metric


class Logs:
    """What is logged in the epoch under way, until it is recorded.

    By epoch, the last value of it counts. The metric that decides which epoch is best is always
    logged by epoch; where it comes by steps, each of its values is one of `<name>_step` too.

    Args:
        run: Records it.
        is_by_step: Tells whether a metric that the run does not have yet goes by steps.

    Attributes:
        by_epoch: What goes by epoch: a part of the state, as a stop inside the epoch must keep it.
    """

    def __init__(self, run: Run, is_by_step: Callable[[str], bool]) -> None:
        self._run, self._is_new_by_step = run, is_by_step
        self.by_epoch: dict[str, Any] = {}
        self._by_step: dict[int, dict[str, Any]] = {}
        self._has_told = False

    def add(self, values: Mapping[str, Any], step: int) -> None:
        """Take what was measured after so many steps."""
        for key, value in values.items():
            if not self._is_number(key, value):
                continue
            name = _NO_NAME.sub("_", key)[:240].lstrip("/")
            is_monitored = name == self._run.monitor.name
            is_by_step = self._is_by_step(name)
            if is_monitored or not is_by_step:
                self.by_epoch[name] = value
            if is_by_step:
                name = f"{name}_step" if is_monitored else name
                self._by_step.setdefault(step, {})[name] = value

    def record_steps(self) -> None:
        """Record what goes by steps."""
        values, self._by_step = self._by_step, {}
        for step, metrics in values.items():
            self._run.log(step=step, **metrics)

    def record(self) -> None:
        """Record everything, at the end of an epoch."""
        self.record_steps()
        values, self.by_epoch = self.by_epoch, {}
        self._run.log(**values)

    def _is_by_step(self, name: str) -> bool:
        """Tell the axis of a metric, which stays what it was in the run."""
        state = self._run.state
        if name in state.axes or f"{name}_step" in state.axes:
            return True
        if state.history.values(name) and name != self._run.monitor.name:
            return False
        return self._is_new_by_step(name)

    def _is_number(self, key: str, value: Any) -> bool:
        if isinstance(value, torch.Tensor):
            is_number = value.numel() == 1
        else:
            is_number = isinstance(value, int | float | np.number)
        if not (is_number or self._has_told):
            self._has_told = True
            log.warning(
                _("%s is no number but a %s: it is not recorded"), key, type(value).__name__
            )
        return is_number
