"""Pictures of a run as PNG: its curves, and how its predictions compare with the truth.

They are in the language of whoever trains, if a font of this system has its characters; names of
metrics are what they are.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from onward.metrics import MONITOR, History
from onward.publish.checkpoint_page import LOG_RANGE
from onward.publish.fonts import drawable, families
from onward.publish.fonts import translated as _

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

WIDE_TARGET = 100  # targets that range wider are drawn on log axes
MAX_DOTS = 2000  # rows drawn one by one; of more, it is counted how many lie in a place

_SIZE = (12.0, 8.0)  # inches of 100 dots
_LARGEST = 1e100  # beyond, squares and the margins of an axis are no doubles any more
_EDGE = 10  # how far a log axis goes beyond the targets, as a factor
_TITLE_LENGTH = 80
_BINS = 45

_INK, _SOFT, _LINE = "#0b0b0b", "#52514e", "#dcdbd6"
_FIRST, _SECOND, _GOOD = "#2a78d6", "#c8501e", "#006300"
_COUNTS = ("#b7d3f6", "#3987e5", "#0d366b")  # few to many


def loss_curves(history: History, first_epochs: Mapping[int, int], best_epoch: int | None) -> bytes:
    """Return the losses by epoch, as PNG.

    Args:
        history: What was measured.
        first_epochs: Number of each attempt to the epoch it began with, the first one included.
        best_epoch: The epoch that is best; None if there is none.
    """
    return _png(_loss_figure(history, first_epochs, best_epoch))


def correlation_curve(
    history: History, first_epochs: Mapping[int, int], best_epoch: int | None
) -> bytes:
    """Return the correlation by epoch, as PNG; see `loss_curves` for the arguments."""
    return _png(_correlation_figure(history, first_epochs, best_epoch))


def predicted_against_true(predicted: Array, target: Array, title: str) -> bytes:
    """Return the predictions over the true values, as PNG.

    Args:
        predicted: The model's output, [N], in the target's unit.
        target: The truth, [N].
        title: What the rows are.
    """
    return _png(_predicted_figure(predicted, target, title))


def residuals(predicted: Array, target: Array, title: str) -> bytes:
    """Return what the predictions miss, as PNG; see `predicted_against_true` for the arguments."""
    return _png(_residual_figure(predicted, target, title))


def title_of(target: str, num_rows: int, epoch: int, is_best: bool) -> str:
    """Return what the rows of a validation are.

    Args:
        target: What is predicted.
        num_rows: How many rows there are.
        epoch: Whose model predicts.
        is_best: Whether that is the best one; else it is the last.
    """
    best = _("{target}, {rows:,} validation rows, best epoch {epoch}")
    last = _("{target}, {rows:,} validation rows, last epoch {epoch}")
    return (best if is_best else last).format(target=target, rows=num_rows, epoch=epoch)


def _loss_figure(
    history: History, first_epochs: Mapping[int, int], best_epoch: int | None
) -> Figure:
    figure, axes = _new_figure(_("Loss"))
    curves = [_curve(history, "train_loss"), _curve(history, "val_loss")]
    _draw_curve(axes, *curves[0], "train_loss", _FIRST)
    _draw_curve(axes, *curves[1], "val_loss", _SECOND)
    drawn = np.concatenate([values[np.isfinite(values)] for _, values in curves])
    if drawn.size and drawn.min() > 1 / _LARGEST and drawn.max() > LOG_RANGE * drawn.min():
        axes.set_yscale("log")
    if best_epoch is not None:
        label = _("best: epoch {epoch}").format(epoch=best_epoch)
        axes.axvline(best_epoch, color=_GOOD, linewidth=1.2, label=label)
    axes.set_ylabel(_("loss"))
    _finish_curves(axes, curves, first_epochs)
    return figure


def _correlation_figure(
    history: History, first_epochs: Mapping[int, int], best_epoch: int | None
) -> Figure:
    figure, axes = _new_figure(_("Correlation"))
    epochs, values = _curve(history, MONITOR)
    _draw_curve(axes, epochs, values, MONITOR, _FIRST)
    best = values[epochs == best_epoch]
    if best.size and np.isfinite(best[0]):
        label = _("best: {score:.5f} (epoch {epoch})").format(score=best[0], epoch=best_epoch)
        axes.plot(epochs[epochs == best_epoch], best, "o", color=_GOOD, markersize=9, label=label)
    axes.set_ylabel(MONITOR)
    _finish_curves(axes, [(epochs, values)], first_epochs)
    return figure


def _curve(history: History, key: str) -> tuple[Array, Array]:
    """Return the epochs and values of a metric; NaN for a value that cannot be drawn."""
    points = [(point.step, point.value) for point in history if point.key == key]
    epochs, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    values[~(np.abs(values) <= _LARGEST)] = np.nan
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
    axes.set(xlabel=_("epoch"), xlim=_padded(np.concatenate([curve[0] for curve in curves])))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _mark_attempts(axes, first_epochs)
    if axes.get_legend_handles_labels()[1]:
        legend = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3, "frameon": False}
        axes.legend(**legend)
    num_missing = sum(int(np.isnan(curve[1]).sum()) for curve in curves)
    left_out = _("values not finite, left out: {number:,}").format(number=num_missing)
    notes = [left_out] if num_missing else []
    if not any(np.isfinite(curve[1]).any() for curve in curves):
        notes.append(_("nothing to draw"))
    place: dict[str, Any] = {"ha": "right", "va": "bottom", "transform": axes.transAxes}
    axes.text(1, 1.01, ", ".join(notes), color=_SOFT, **place)


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
        axes.axvline(epoch, color=_SOFT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
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
        axes.text(epoch, 0.5, label, va="center", color=_SOFT, fontsize=11, **place)
        last = epoch


def _predicted_figure(predicted: Array, target: Array, title: str) -> Figure:
    figure, axes = _new_figure(title)
    predicted, target, notes = _usable(predicted, target)
    wide = _is_wide(target)
    limits = _log_limits(predicted, target) if wide else _padded(np.append(predicted, target))
    scale = "log" if wide else "linear"
    axes.set(xscale=scale, yscale=scale, xlabel=_("true"), ylabel=_("predicted"))
    axes.set(xlim=limits, ylim=limits)
    axes.plot(limits, limits, color=_SOFT, linewidth=1, zorder=3)
    counts = _draw_rows(axes, target, _clipped(predicted, limits, notes))
    if counts is not None:
        figure.colorbar(counts, ax=axes, label=_("rows"))
    _say(axes, [*_quality(predicted, target), *notes])
    return figure


def _residual_figure(predicted: Array, target: Array, title: str) -> Figure:
    figure, axes = _new_figure(title, columns=(5, 1))
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
        across = _padded(predicted)
        missed, none, scale = target - predicted, 0, "linear"
        what = _("residual (true - predicted)")
        up = _padded(missed)
        edges = np.linspace(*up, _BINS + 1)
    axes.set(xscale=scale, yscale=scale, xlim=across, ylim=up)
    axes.set(xlabel=_("predicted"), ylabel=what)
    counts = _draw_rows(axes, predicted, missed)
    if counts is not None:
        figure.colorbar(counts, ax=[axes, side], label=_("rows"))
    side.hist(missed, bins=list(edges), orientation="horizontal", color=_FIRST)
    side.set(yscale=scale, ylim=up, xlabel=_("rows"))
    side.set_xlim(left=0)
    side.tick_params(which="both", labelleft=False)
    for one in (axes, side):
        one.axhline(none, color=_SOFT, linewidth=1, zorder=3)
    _say(axes, [*quality, *notes])
    return figure


def _usable(predicted: Array, target: Array) -> tuple[Array, Array, list[str]]:
    """Return the rows that can be drawn, and what to say of the others."""
    rows = np.column_stack([predicted, target]).astype(np.float64)
    usable = (np.abs(rows) <= _LARGEST).all(axis=1)  # NaN is not, either
    num_left = len(rows) - int(usable.sum())
    left_out = _("rows not finite, left out: {number:,}").format(number=num_left)
    notes = [left_out] if num_left else []
    return rows[usable, 0], rows[usable, 1], notes


def _is_wide(target: Array) -> bool:
    if not target.size or target.min() <= 1 / _LARGEST:
        return False
    return bool(target.max() > WIDE_TARGET * target.min())


def _log_limits(predicted: Array, target: Array) -> tuple[float, float]:
    """Return the ends of a log axis that all targets fit on; a prediction may lie beyond."""
    both = np.append(target, predicted[predicted > 0])
    low = max(both.min(), target.min() / _EDGE)
    high = min(both.max(), target.max() * _EDGE)
    return float(low / 1.2), float(high * 1.2)


def _padded(values: Array) -> tuple[float, float]:
    """Return the ends of a linear axis that the values fit on.

    >>> _padded(np.array([0.0, 100.0])), _padded(np.array([20.0])), _padded(np.array([]))
    ((-5.0, 105.0), (19.0, 21.0), (0.0, 1.0))
    """
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    pad = 0.05 * (high - low)
    if pad <= 1e-9 * abs(high):  # as good as one value: too near each other for an axis
        pad = 0.05 * abs(high)
    pad = pad if pad > 1 / _LARGEST else 1.0
    return low - pad, high + pad


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
        axes.scatter(x, y, s=16, color=_FIRST, alpha=0.5, linewidths=0)
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
    box = {"facecolor": "white", "edgecolor": _LINE, "alpha": 0.85, "boxstyle": "round"}
    place: dict[str, Any] = {"ha": "left", "va": "top", "transform": axes.transAxes, "zorder": 5}
    axes.text(0.015, 0.98, "\n".join(lines), color=_INK, linespacing=1.4, bbox=box, **place)


def _new_figure(title: str, columns: Sequence[int] = (1,)) -> tuple[Figure, Axes]:
    """Return an empty figure, which pyplot does not know of, and its first axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=_SIZE, dpi=100, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    place: dict[str, Any] = {"x": 0.01, "ha": "left", "color": _INK, "fontsize": 16}
    figure.suptitle(drawable(title, _TITLE_LENGTH), parse_math=False, **place)
    grid = figure.subplots(1, len(columns), squeeze=False, width_ratios=columns)
    for axes in grid[0]:
        axes.set_facecolor("white")
        axes.grid(color=_LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_LINE)
        axes.tick_params(which="both", color=_LINE, labelcolor=_SOFT, labelsize=11)
        axes.xaxis.label.set(color=_INK, fontsize=13)
        axes.yaxis.label.set(color=_INK, fontsize=13)
    return figure, grid[0][0]


def _png(figure: Figure) -> bytes:
    from matplotlib.text import Text

    for text in cast(list[Text], figure.findobj(Text)):
        needed = families(text.get_text())
        if len(needed) > 1:
            text.set_fontfamily(needed)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100, metadata={"Software": None})
    return file.getvalue()
