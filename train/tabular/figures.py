"""Pictures of how a model's predictions compare with the truth, as PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from onward.publish.drawing import FIRST, INK, LARGEST, LINE, SOFT, Array, new_figure, padded, png
from onward.publish.fonts import translated as _

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

WIDE_TARGET = 100  # targets that range wider are drawn on log axes
MAX_DOTS = 2000  # rows drawn one by one; of more, it is counted how many lie in a place

_EDGE = 10  # how far a log axis goes beyond the targets, as a factor
_BINS = 45
_COUNTS = ("#b7d3f6", "#3987e5", "#0d366b")  # few to many


def predicted_against_true(predicted: Array, target: Array, title: str) -> bytes:
    """Return the predictions over the true values, as PNG.

    Args:
        predicted: The model's output, [N], in the target's unit.
        target: The truth, [N].
        title: What the rows are.
    """
    return png(_predicted_figure(predicted, target, title))


def residuals(predicted: Array, target: Array, title: str) -> bytes:
    """Return what the predictions miss, as PNG; see `predicted_against_true` for the arguments."""
    return png(_residual_figure(predicted, target, title))


def title_of(target: str, num_rows: int, epoch: int) -> str:
    """Return what the rows of a validation are.

    Args:
        target: What is predicted.
        num_rows: How many rows there are.
        epoch: Whose model predicts.
    """
    title = _("{target}, {rows:,} validation rows, epoch {epoch}")
    return title.format(target=target, rows=num_rows, epoch=epoch)


def _predicted_figure(predicted: Array, target: Array, title: str) -> Figure:
    figure, axes = new_figure(title)
    predicted, target, notes = _usable(predicted, target)
    wide = _is_wide(target)
    limits = _log_limits(predicted, target) if wide else padded(np.append(predicted, target))
    scale = "log" if wide else "linear"
    axes.set(xscale=scale, yscale=scale, xlabel=_("true"), ylabel=_("predicted"))
    axes.set(xlim=limits, ylim=limits)
    axes.plot(limits, limits, color=SOFT, linewidth=1, zorder=3)
    counts = _draw_rows(axes, target, _clipped(predicted, limits, notes))
    if counts is not None:
        figure.colorbar(counts, ax=axes, label=_("rows"))
    _say(axes, [*_quality(predicted, target), *notes])
    return figure


def _residual_figure(predicted: Array, target: Array, title: str) -> Figure:
    figure, axes = new_figure(title, columns=(5, 1))
    side = figure.axes[1]
    predicted, target, notes = _usable(predicted, target)
    quality = _quality(predicted, target)
    if _is_wide(target):
        # A difference shows the largest targets alone; what tells of all is the factor.
        across = _log_limits(predicted, target)
        predicted = _clipped(predicted, across, notes)
        missed, none, scale, what = target / predicted, 1, "log", _("residual (true / predicted)")
        up = _log_limits(missed, missed)
        edges = np.geomspace(*up, _BINS + 1)
    else:
        across = padded(predicted)
        missed, none, scale = target - predicted, 0, "linear"
        what = _("residual (true - predicted)")
        up = padded(missed)
        edges = np.linspace(*up, _BINS + 1)
    axes.set(xscale=scale, yscale=scale, xlim=across, ylim=up)
    axes.set(xlabel=_("predicted"), ylabel=what)
    counts = _draw_rows(axes, predicted, missed)
    if counts is not None:
        figure.colorbar(counts, ax=[axes, side], label=_("rows"))
    in_bins, _edges = np.histogram(missed, edges)
    side.stairs(in_bins, edges, orientation="horizontal", fill=True, color=FIRST)
    side.set(yscale=scale, ylim=up, xlabel=_("rows"))
    side.set_xlim(left=0)
    side.tick_params(which="both", labelleft=False)
    for one in (axes, side):
        one.axhline(none, color=SOFT, linewidth=1, zorder=3)
    _say(axes, [*quality, *notes])
    return figure


def _usable(predicted: Array, target: Array) -> tuple[Array, Array, list[str]]:
    """Return the rows that can be drawn, and what to say of the others."""
    rows = np.column_stack([predicted, target]).astype(np.float64)
    usable = (np.abs(rows) <= LARGEST).all(axis=1)  # NaN is not, either
    num_left = len(rows) - int(usable.sum())
    left_out = _("rows not finite, left out: {number:,}").format(number=num_left)
    notes = [left_out] if num_left else []
    return rows[usable, 0], rows[usable, 1], notes


def _is_wide(target: Array) -> bool:
    if not target.size or target.min() <= 1 / LARGEST:
        return False
    return bool(target.max() > WIDE_TARGET * target.min())


def _log_limits(predicted: Array, target: Array) -> tuple[float, float]:
    """Return the ends of a log axis that all targets fit on; a prediction may lie beyond."""
    both = np.append(target, predicted[predicted > 0])
    low = max(both.min(), target.min() / _EDGE)
    high = min(both.max(), target.max() * _EDGE)
    return float(low / 1.2), float(high * 1.2)


def _clipped(values: Array, limits: tuple[float, float], notes: list[str]) -> Array:
    """Return the values with those beyond the axis at its edge, of which a note is added."""
    clipped = np.clip(values, *limits)
    if num_moved := int((clipped != values).sum()):
        moved = _("predictions beyond the axis, drawn at its edge: {number:,}")
        notes.append(moved.format(number=num_moved))
    return clipped


def _draw_rows(axes: Axes, x: Array, y: Array) -> PolyCollection | None:
    """Draw each row as a dot, or of many how many lie in a place; these are returned."""
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    if x.size <= MAX_DOTS:
        axes.scatter(x, y, s=16, color=FIRST, alpha=0.5, linewidths=0)
        return None
    xscale, yscale = (
        cast(Literal["linear", "log"], scale) for scale in (axes.get_xscale(), axes.get_yscale())
    )
    left, right = _bin_ends(axes.get_xlim(), xscale)
    bottom, top = _bin_ends(axes.get_ylim(), yscale)
    counts = axes.hexbin(
        x,
        y,
        gridsize=_BINS,
        extent=(left, right, bottom, top),
        xscale=xscale,
        yscale=yscale,
        mincnt=1,
        norm=LogNorm(),
        cmap=LinearSegmentedColormap.from_list("counts", _COUNTS),
        linewidths=0.2,
    )
    counts.set_clim(1, max(2, float(np.max(np.asarray(counts.get_array())))))
    return counts


def _bin_ends(limits: tuple[float, float], scale: str) -> tuple[float, float]:
    """Return the ends of an axis as `hexbin` takes them: of a log axis, the exponents."""
    return (math.log10(limits[0]), math.log10(limits[1])) if scale == "log" else limits


def _quality(predicted: Array, target: Array) -> list[str]:
    """Return how many rows there are and how good the predictions.

    >>> _quality(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))
    ['3 rows', 'r 0.98198', 'RMSE 0.57735']
    >>> _quality(np.array([1.0, 1.0]), np.array([1.0, 3.0])), _quality(np.array([]), np.array([]))
    (['2 rows', 'r -', 'RMSE 1.4142'], ['nothing to draw'])
    """
    if not target.size:
        return [_("nothing to draw")]
    rmse = np.sqrt(np.mean((target - predicted) ** 2))
    correlation = "-"  # undefined where either is constant
    if np.ptp(predicted) > 0 and np.ptp(target) > 0:
        # Each by its own range, so that no square vanishes or overflows.
        scaled = [(v - v.mean()) / np.ptp(v) for v in (predicted, target)]
        norms = [np.sqrt(np.sum(v * v)) for v in scaled]
        correlation = f"{np.sum(scaled[0] * scaled[1]) / (norms[0] * norms[1]):.5f}"
    num_rows = _("{number:,} rows").format(number=target.size)
    return [num_rows, f"r {correlation}", f"RMSE {rmse:.5g}"]


def _say(axes: Axes, lines: Sequence[str]) -> None:
    """Write the lines into the upper left corner."""
    box = {"facecolor": "white", "edgecolor": LINE, "alpha": 0.85, "boxstyle": "round"}
    place: dict[str, Any] = {"ha": "left", "va": "top", "transform": axes.transAxes, "zorder": 5}
    axes.text(0.015, 0.98, "\n".join(lines), color=INK, linespacing=1.4, bbox=box, **place)
