"""The curves of a run as PNG: its losses, and the metric that decides which epoch is best.

Names of metrics are what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onward.metrics import EPOCH, STEP, History, in_words
from onward.monitor import Best
from onward.publish.drawing import (
    FIRST,
    GOOD,
    LARGEST,
    SECOND,
    SOFT,
    Array,
    new_figure,
    padded,
    png,
)
from onward.publish.fonts import drawable
from onward.publish.fonts import translated as _
from onward.publish.svg import LOG_RANGE

_NAME_LENGTH = 40  # of a metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def loss_curves(history: History, first_epochs: Mapping[int, int], best_epoch: int | None) -> bytes:
    """Return the losses by epoch, as PNG.

    Args:
        history: What was measured.
        first_epochs: Number of each attempt to the epoch it began with, the first one included.
        best_epoch: The epoch that is best; None if there is none.
    """
    return png(_loss_figure(history, first_epochs, best_epoch))


def metric_curve(
    history: History,
    first_epochs: Mapping[int, int],
    key: str,
    best: Best | None = None,
    unit: str = EPOCH,
) -> bytes:
    """Return a metric by epoch, or by what `unit` says, as PNG.

    Args:
        history: What was measured.
        first_epochs: See `loss_curves`.
        key: The metric.
        best: Its best value, if it decides which epoch is best.
        unit: What its steps are.
    """
    return png(_metric_figure(history, first_epochs, key, best, unit))


def _loss_figure(
    history: History, first_epochs: Mapping[int, int], best_epoch: int | None
) -> Figure:
    figure, axes = new_figure(_("Loss"))
    curves = [_curve(history, "train_loss"), _curve(history, "val_loss")]
    _draw_curve(axes, *curves[0], "train_loss", FIRST)
    _draw_curve(axes, *curves[1], "val_loss", SECOND)
    drawn = np.concatenate([values[np.isfinite(values)] for _, values in curves])
    if drawn.size and drawn.min() > 1 / LARGEST and drawn.max() > LOG_RANGE * drawn.min():
        axes.set_yscale("log")
    if best_epoch is not None:
        label = _("best: epoch {epoch}").format(epoch=best_epoch)
        axes.axvline(best_epoch, color=GOOD, linewidth=1.2, label=label)
    axes.set_ylabel(_("loss"))
    _finish_curves(axes, curves, first_epochs)
    return figure


def _metric_figure(
    history: History,
    first_epochs: Mapping[int, int],
    key: str,
    best: Best | None = None,
    unit: str = EPOCH,
) -> Figure:
    figure, axes = new_figure(key)
    epochs, values = _curve(history, key)
    name = drawable(key, _NAME_LENGTH)
    _draw_curve(axes, epochs, values, name, FIRST)
    if best is not None and abs(best.value) <= LARGEST:
        score = in_words(best.value)
        label = _("best: {score} (epoch {epoch})")
        if unit == STEP:
            label = _("best: {score} (step {epoch})")
        label = label.format(score=score, epoch=best.epoch)
        axes.plot([best.epoch], [best.value], "o", color=GOOD, markersize=9, label=label)
    axes.set_ylabel(name, parse_math=False)
    _finish_curves(axes, [(epochs, values)], first_epochs)
    axes.set_xlabel(_units()[unit])
    return figure


def _units() -> dict[str, str]:
    return {EPOCH: _("epoch"), STEP: _("step")}


def _curve(history: History, key: str) -> tuple[Array, Array]:
    """Return the epochs and values of a metric; NaN for a value that cannot be drawn."""
    points = [(point.step, point.value) for point in history if point.key == key]
    epochs, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    values[~(np.abs(values) <= LARGEST)] = np.nan
    return epochs, values


def _draw_curve(axes: Axes, epochs: Array, values: Array, key: str, color: str) -> None:
    """Draw a line that is broken at NaN, with a dot for a value that stands alone."""
    finite = np.isfinite(values)
    if not finite.any():
        return
    axes.plot(epochs, values, color=color, linewidth=2, label=key)
    beside = np.pad(finite, 1)
    alone = finite & ~beside[:-2] & ~beside[2:]
    axes.plot(epochs[alone], values[alone], "o", color=color, markersize=5)


def _finish_curves(
    axes: Axes, curves: Sequence[tuple[Array, Array]], first_epochs: Mapping[int, int]
) -> None:
    """Mark the attempts, and say what is drawn and what is not."""
    from matplotlib.ticker import MaxNLocator

    # Before the attempts' lines: whoever trains on wants to see the curve as wide as it was.
    axes.set(xlabel=_("epoch"), xlim=padded(np.concatenate([curve[0] for curve in curves])))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _mark_attempts(axes, first_epochs)
    if axes.get_legend_handles_labels()[1]:
        legend = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3, "frameon": False}
        for text in axes.legend(**legend).get_texts():
            text.set_parse_math(False)
    num_missing = sum(int(np.isnan(curve[1]).sum()) for curve in curves)
    left_out = _("values not finite, left out: {number:,}").format(number=num_missing)
    notes = [left_out] if num_missing else []
    if not any(np.isfinite(curve[1]).any() for curve in curves):
        notes.append(_("nothing to draw"))
    place: dict[str, Any] = {"ha": "right", "va": "bottom", "transform": axes.transAxes}
    axes.text(1, 1.01, ", ".join(notes), color=SOFT, **place)


def _mark_attempts(axes: Axes, first_epochs: Mapping[int, int]) -> None:
    """Draw a thin line where each attempt but the first began, labelled where there is room."""
    numbers: dict[int, list[int]] = {}
    for number, epoch in first_epochs.items():
        numbers.setdefault(epoch, []).append(number)
    low, high = axes.get_xlim()
    room = (high - low) / 60
    last = low - room
    for epoch, those in sorted(numbers.items()):
        began = [number for number in those if number > 1]
        if not began or not low <= epoch <= high:
            continue
        axes.axvline(epoch, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        if epoch - last < room:
            continue
        several = _("attempts {first} to {last}") if len(began) > 1 else _("attempt {first}")
        label = several.format(first=began[0], last=began[-1])
        # In the middle: a correlation curve is at the top for long, a loss curve at the bottom.
        place: dict[str, Any] = {
            "rotation": 90,
            "ha": "right",
            "transform": axes.get_xaxis_transform(),
        }
        axes.text(epoch, 0.5, label, va="center", color=SOFT, fontsize=11, **place)
        last = epoch
