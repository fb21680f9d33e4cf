"""What a cluster loses by how often it saves, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from onward.cli.planned import share_in_words
from onward.planning.plan import Plan
from onward.planning.waste import MAX_STEPS, Shares, shares
from onward.publish.drawing import (
    FIRST,
    GOOD,
    INK,
    LINE,
    SECOND,
    SOFT,
    Array,
    new_figure,
    picture,
)
from onward.publish.fonts import translated as _

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUM_POINTS = 240
_REACH = 20.0  # how many times the best interval is drawn, and its fraction


def draw(plan: Plan, kind: str) -> bytes:
    """Return the share of time lost by the interval, with the best one marked.

    Args:
        plan: Of the cluster; its interval is marked too, if it is not the best.
        kind: "svg" or "png".
    """
    cluster = plan.cluster
    title = _("What failures cost: {nodes} nodes, one failure in {hours} h")
    hours = _number(1 / cluster.failures_per_second / 3600)
    figure, axes = new_figure(title.format(nodes=f"{cluster.nodes:,}", hours=hours))
    best = plan if plan.is_best else Plan.of(cluster)
    steps = _steps(min(best.steps, plan.steps), max(best.steps, plan.steps))
    minutes = steps * cluster.step_seconds / 60
    found = [shares(cluster, int(number)) for number in steps]
    _draw_shares(axes, minutes, found)
    _draw_limit(axes, cluster.commit / 60, minutes)
    if not plan.is_best:
        _mark(axes, plan, INK, _("chosen: {minutes} min, {lost} lost"))
    _mark(axes, best, GOOD, _("best: {minutes} min, {lost} lost"))
    most = 100 * max(3 * best.shares.lost, 1.2 * plan.shares.lost)
    axes.set(xscale="log", xlim=(minutes[0], minutes[-1]), ylim=(0, min(most, 100)))
    axes.set_xlabel(_("minutes of work between two checkpoints"))
    axes.set_ylabel(_("% of the time"))
    axes.xaxis.set_major_formatter(lambda value, _place: f"{value:,.6g}")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    return picture(figure, kind)


def _steps(low: int, high: int) -> Array:
    """Return the intervals to draw, in steps: whole numbers, evenly on a log axis."""
    ends = max(low / _REACH, 1.0), max(min(high * _REACH, MAX_STEPS), 2.0)
    return np.unique(np.round(np.geomspace(*ends, _NUM_POINTS)))


def _draw_shares(axes: Axes, minutes: Array, found: Sequence[Shares]) -> None:
    """Draw all that is lost, and what it is made of."""
    parts = (
        ("lost", FIRST, 2.5, _("lost in all")),
        ("again", SECOND, 1.2, _("work done again")),
        ("stall", SOFT, 1.2, _("waits for checkpoints")),
        ("restart", LINE, 2.5, _("restarts")),
    )
    for name, color, width, label in parts:
        percent = [100 * float(getattr(each, name)) for each in found]
        axes.plot(minutes, percent, color=color, linewidth=width, label=label)


def _draw_limit(axes: Axes, commit_minutes: float, minutes: Array) -> None:
    """Shade where a checkpoint is due before the one before is committed."""
    if commit_minutes > minutes[0]:
        label = _("commits do not keep up")
        axes.axvspan(minutes[0], commit_minutes, color=LINE, alpha=0.5, zorder=0, label=label)


def _mark(axes: Axes, plan: Plan, color: str, told: str) -> None:
    """Mark an interval, and say what it loses."""
    x, y = plan.interval_seconds / 60, 100 * plan.shares.lost
    label = told.format(minutes=_number(x), lost=share_in_words(plan.shares.lost))
    axes.axvline(x, color=color, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.plot([x], [y], "o", color=color, markersize=9, label=label)


def _number(value: float) -> str:
    """Return a number in digits: words of a unit may have no font.

    >>> _number(15.7333), _number(123456)
    ('15.7', '123,456')
    """
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
