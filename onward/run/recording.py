"""What a loop measures: checked, recorded once, and published when it is committed."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch

from onward.checkpoint.content import Content
from onward.checkpoint.handover import Noting
from onward.errors import UsageError
from onward.metrics import History, Point, is_wall_clock, same_value
from onward.options.run_options import RunOptions
from onward.run.state import TrainState
from onward.run.summary import tell_difference
from onward.tracking.client import now_ms
from onward.words.language import _
from onward.words.units import in_unit

log = logging.getLogger(__name__)

_NAME = re.compile(r"[\w./: \-]{1,245}")  # what MLflow takes on every system
_OWN = "own"  # the axis of a metric that is logged with a step of the loop's


class Recorder:
    """The metrics of a run.

    Args:
        run_id: The run.
        options: Its options.
        published: The values that MLflow has of the run already.
        publisher: Publishes the others.
    """

    def __init__(
        self, run_id: str, options: RunOptions, published: History, publisher: Noting
    ) -> None:
        self._run_id, self._options = run_id, options
        self._published, self._publisher = published, publisher
        self._measured_ms = 0  # when the metrics of the unit under way were logged first
        self._logged: set[tuple[str, int]] = set()  # by the loop, in the unit under way
        self._has_differed = self._has_waited = False
        self._has_told_monitor = self._has_told_again = False

    def begin_unit(self) -> None:
        """Begin an epoch, or a step where there are no epochs."""
        self._measured_ms = 0
        self._logged.clear()

    @property
    def has_logged(self) -> bool:
        """Whether the loop has logged anything in the unit under way."""
        return bool(self._logged)

    def tell_monitor(self, state: TrainState) -> None:
        """Tell once, as something is saved, if the metric that decides is not logged so far."""
        name, logged = state.monitor.name, state.history.keys()
        if name and self._logged and not (self._has_told_monitor or name in logged):
            self._has_told_monitor = True
            own = ", ".join(sorted({key for key, _step in self._logged})[:10])
            log.warning(
                _("%s is to decide which %s is best, and is not logged so far; logged are: %s"),
                name, in_unit(state.unit), own,
            )  # fmt: skip

    def log(
        self, state: TrainState, metrics: Mapping[str, Any], step: float | None
    ) -> dict[str, float]:
        """Record what the loop measured in the unit under way; return it as numbers.

        Raises:
            UsageError: A name or a value is none, a value is logged twice, or on two axes.
        """
        values = {key: self._number(key, value) for key, value in metrics.items()}
        number = None if step is None else _whole(step)
        places = [(key, state.epoch + 1 if number is None else number) for key in values]
        for key, where in zip(values, places, strict=True):
            self._require_axis(state, key, number)
            if where in self._logged:
                raise UsageError(
                    _("{key} is logged already for {unit} {number}: a metric has one value there, "
                      "so log it once, or a mean of it (run.mean)")
                    .format(key=key, unit=state.unit if number is None else "step", number=where[1])
                )  # fmt: skip
        self._logged.update(places)
        if number is not None:
            self._tell_again(state.history, values, number)
        self.record(state, values, number)
        return values

    def record(
        self, state: TrainState, values: Mapping[str, float], step: int | None = None
    ) -> None:
        """Record values; one that is published already stays, and a difference is told once."""
        unit, history = state.epoch + 1, state.history
        if not self._measured_ms:  # all values of a unit have one time
            self._measured_ms = max(now_ms(), history.last_timestamp_ms() + 1)
        order = None if step is None else (state.step, unit)
        for key, value in values.items():
            point = Point(key, unit if step is None else step, self._measured_ms, value)
            published = self._published.get(key, point.step)
            if published is None:
                if history.get(key, point.step) is None:  # the first value stays
                    self._publisher.add([point], order)
            elif not (is_wall_clock(key) or same_value(published.value, value)):
                self._tell_difference(published, point)
            history.add(published or point)

    def record_best(self, state: TrainState) -> None:
        """Record which unit is the best so far, if one is."""
        best = state.best
        if best is not None:
            values = {f"best_{state.monitor.name}": best.value, "best_epoch": float(best.epoch)}
            self.record(state, values)

    def publish_missing(self, content: Content) -> None:
        """Publish what a checkpoint holds that was committed when the attempt before died."""
        self._publisher.add_held(content)

    def _tell_difference(self, published: Point, point: Point) -> None:
        if not self._has_differed:
            self._has_differed = True
            tell_difference(self._run_id, self._options, published, point)

    def _tell_again(self, history: History, values: Mapping[str, float], step: int) -> None:
        """Tell once of a value where there is another already, on an axis of the loop's own."""
        for key, value in values.items():
            point = history.get(key, step)
            if point and not (self._has_told_again or same_value(point.value, value)):
                self._has_told_again = True
                log.warning(
                    _("%s has a value at step %d already, and that stays: let the steps of a "
                      "metric go on over epochs"), key, step,
                )  # fmt: skip

    def _require_axis(self, state: TrainState, key: str, step: int | None) -> None:
        """Give each metric one axis: the run's units, or steps of the loop's own."""
        if step is not None and key == state.monitor.name:
            raise UsageError(
                _("{key} decides which {unit} is best, so it is logged by {unit}: leave step out")
                .format(key=key, unit=state.unit)
            )  # fmt: skip
        is_own = key in state.axes
        if is_own == (step is not None):
            return
        if is_own or state.history.values(key):
            raise UsageError(
                _("{key} is logged both with a step and without: that is two axes for one curve. "
                  "Give one of them another name").format(key=key)
            )  # fmt: skip
        state.axes[key] = _OWN

    def _number(self, key: Any, value: Any) -> float:
        if not isinstance(key, str) or _NAME.fullmatch(key) is None or key.startswith("/"):
            raise UsageError(
                _("{key!r} cannot be the name of a metric: letters, digits, spaces and _ . - / : "
                  "are taken").format(key=key)
            )  # fmt: skip
        if isinstance(value, torch.Tensor):
            if value.numel() != 1:
                raise UsageError(
                    _("{key} is a tensor of shape {shape}, and a metric is one number: log its "
                      "mean, or an item of it").format(key=key, shape=list(value.shape))
                )  # fmt: skip
            if value.device.type != "cpu" and not self._has_waited:
                self._has_waited = True
                log.warning(
                    _("%s is a tensor on %s: to take its value training waits for the device. "
                      "run.mean(name).add(value) does not wait"),
                    key, value.device,
                )  # fmt: skip
            return float(value.detach())
        try:
            if isinstance(value, str | bytes):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError):
            raise UsageError(
                _("{key} is {value!r:.60}, of type {kind}, and a metric is one number")
                .format(key=key, value=value, kind=type(value).__name__)
            ) from None  # fmt: skip
        return number


def _whole(step: float) -> int:
    try:
        if 0 <= step < 2**63 and int(step) == step:
            return int(step)
    except (TypeError, ValueError, OverflowError):
        pass
    raise UsageError(_("step={step!r:.40} is no whole number, 0 or more").format(step=step))
