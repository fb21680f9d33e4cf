"""The logger of a run for Lightning: an epoch's values wait until the epoch is saved."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger

from onward.run.run import Run

_EPOCH = "epoch"  # what Lightning adds to all that `self.log` has logged


class EpochLogger(Logger):
    """Takes what `self.log` logs: by epoch, or by step under the names that Lightning gives.

    Attributes:
        run: The run, while it is open.
        trainer: The Trainer, while it fits.
        values: Those of the epoch under way, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.run: Run | None = None
        self.trainer: Trainer | None = None
        self.values: dict[str, float] = {}
        self._is_ending = False  # the epoch under way
        self._logged: set[tuple[str, int]] = set()  # by step, in the epoch under way

    @property
    def name(self) -> str:
        """A folder's name for what others write."""
        return "onward"

    @property
    def version(self) -> str:
        """The run ID."""
        return self.run.run_id if self.run is not None else ""

    def begin_epoch(self) -> None:
        """Begin an epoch."""
        self._is_ending = False
        self._logged.clear()

    def end_epoch(self, sums: Mapping[str, Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Take what comes next as the values of the whole epoch.

        Args:
            sums: Of what was logged only before a stop inside the epoch, by Lightning's key.

        Returns:
            The values of these, by name.
        """
        self._is_ending = True
        found = {key.partition(".")[2]: s["value"] / s["num"] for key, s in sums.items()}
        self.values |= {name: float(value) for name, value in found.items()}
        return found

    def take(self) -> dict[str, float]:
        """Return the values of the epoch, and forget them."""
        values, self.values = self.values, {}
        return values

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Take values; those of an epoch replace earlier ones of it."""
        run, trainer = self.run, self.trainer
        if run is None or trainer is None or trainer.sanity_checking:
            return
        is_of_epoch = step is None or (
            _EPOCH in metrics and (self._is_ending or bool(trainer.validating))
        )
        where = trainer.global_step if step is None else step
        for name, value in metrics.items():
            if name == _EPOCH:
                continue
            if name == run.monitor.name or self._is_by_epoch(run, name, is_of_epoch):
                self.values[name] = value
            elif (name, where) not in self._logged:
                self._logged.add((name, where))
                run.log(step=where, **{name: value})

    def _is_by_epoch(self, run: Run, name: str, is_of_epoch: bool) -> bool:
        """Tell on which axis a metric lies: that on which it was first."""
        if name in run.state.axes:
            return False
        return is_of_epoch or name in self.values or bool(run.state.history.values(name))

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *_args: Any, **_more: Any
    ) -> None:
        """Take none: the config of the run is what is recorded."""
