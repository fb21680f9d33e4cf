"""Drawings of curves as SVG, for a page that needs no other file."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

from onward.checkpoint.manifest import Manifest
from onward.metrics import EPOCH, STEP, in_words
from onward.words.language import _

MAX_POINTS = 400  # of one curve, and of its marks
LOG_RANGE = 20  # losses that range wider are drawn on a log scale
LOSSES = ("train_loss", "val_loss")

# The drawing's own units; the page scales it to its width.
_WIDTH, _HEIGHT = 400, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 388, 14, 160

_KEY = '<svg viewBox="0 0 12 12" aria-hidden="true">{}</svg>'
_LINE_KEY = _KEY.format('<path class="curve {}" d="M1 6H11"/>')
_SAVED_KEY = _KEY.format('<circle class="saved" cx="6" cy="6" r="3.5"/>')
_BEST_KEY = _KEY.format('<circle class="best" cx="6" cy="6" r="5"/>')


class _Scale(NamedTuple):
    """Where a value lies in a drawing.

    Args:
        low: The least value drawn.
        high: The greatest.
        start: Where the least lies.
        end: Where the greatest lies.
        log: Whether equal factors have equal lengths.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of `value`; the middle where all values are one."""
        # Halves, since the span of two doubles can be beyond the largest one.
        numbers = (self.low, value, self.high)
        low, at, high = (math.log(v) if self.log else v / 2 for v in numbers)
        part = (at - low) / (high - low) if high > low else 0.5
        return self.start + part * (self.end - self.start)


class Curve:
    """The values of one metric by epoch, and the epochs where it had none that can be drawn."""

    def __init__(self, key: str, style: str) -> None:
        self.key, self.style = key, style
        self.values: dict[int, float] = {}
        self.gaps: list[int] = []

    def add(self, epoch: int, value: float | None) -> None:
        """Take the value of an epoch; the first one of an epoch stays."""
        if epoch in self.values:
            return
        if value is None or not math.isfinite(value):
            self.gaps.append(epoch)
        else:
            self.values[epoch] = float(value)


def chart(
    title: str,
    curves: Sequence[Curve],
    manifests: Sequence[Manifest],
    best: Manifest | None,
    unit: str = EPOCH,
) -> str:
    """Return a drawing of the curves by `unit`, with the checkpoints marked on the first one."""
    values = [value for curve in curves for value in curve.values.values()]
    epochs = [*(epoch for curve in curves for epoch in curve.values), *(m.epoch for m in manifests)]
    low, high = min(values), max(values)
    log = curves[0].key in LOSSES and low > 0 and high / LOG_RANGE > low
    across = _Scale(min(epochs), max(epochs), _LEFT, _RIGHT)
    up = _Scale(low, high, _BOTTOM, _TOP, log)
    keys = [_LINE_KEY.format(curve.style) + escape(curve.key) for curve in curves]
    if manifests:
        keys.append(f"{_SAVED_KEY}{_('checkpoint')}")
        keys += [f"{_BEST_KEY}{_('best')}"] * (best is not None)
    words = [f"<b>{title}</b>", *(f"<span>{key}</span>" for key in keys)]
    if log:
        words.append(f"<span>{_('log scale')}</span>")
    label = _("{title} by epoch, from {low:.5g} to {high:.5g}")
    if unit == STEP:
        label = _("{title} by step, from {low:.5g} to {high:.5g}")
    label = label.format(title=title, low=low, high=high)
    return "\n".join(
        [
            f"<figure><figcaption>{''.join(words)}</figcaption>",
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">',
            _axes(across, up, unit),
            *(_path(curve, across, up) for curve in curves),
            *_marks(curves[0], manifests, best, across, up),
            "</svg></figure>",
        ]
    )


def _axes(across: _Scale, up: _Scale, unit: str) -> str:
    """Return two lines, and the least and greatest value and epoch beside them."""
    parts = [f'<path class="axis" fill="none" d="M{_LEFT - 6} {_TOP}V{_BOTTOM + 6}H{_RIGHT}"/>']
    for value in sorted({up.low, up.high}):
        parts.append(f'<text x="{_LEFT - 10}" y="{up(value) + 4:.1f}" text-anchor="end">')
        parts.append(f"{value:.4g}</text>")
    for epoch in sorted({across.low, across.high}):
        side = "start" if epoch < across.high else "end"
        anchor = side if across.low < across.high else "middle"
        parts.append(f'<text x="{across(epoch):.1f}" y="{_BOTTOM + 20}" text-anchor="{anchor}">')
        parts.append(f"{unit} {epoch:.0f}</text>")
    return "".join(parts)


def _path(curve: Curve, across: _Scale, up: _Scale) -> str:
    """Return the line of a curve; it is broken where an epoch had no value."""
    stretches: dict[int, list[str]] = {}  # by the number of gaps before
    for epoch, value in _thinned(sorted(curve.values.items())):
        place = f"{across(epoch):.1f} {up(value):.1f}"
        stretches.setdefault(bisect_right(curve.gaps, epoch), []).append(place)
    lines = "".join(f"M{'L'.join(places)}" for places in stretches.values() if len(places) > 1)
    # A line of no length with round ends is a dot.
    dots = "".join(f"M{places[0]}h0" for places in stretches.values() if len(places) == 1)
    title = f"<title>{escape(curve.key)}</title>"
    kinds = {"curve": lines, "curve dots": dots}
    return "".join(
        f'<path class="{kind} {curve.style}" d="{path}">{title}</path>'
        for kind, path in kinds.items()
        if path
    )


def _thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """Return at most MAX_POINTS: the ends, and between them each stretch's least and greatest.

    >>> _thinned([(1, 0.5), (2, 0.25)])
    [(1, 0.5), (2, 0.25)]
    >>> thinned = _thinned([(epoch, float(epoch == 777)) for epoch in range(5000)])
    >>> len(thinned), (777, 1.0) in thinned, thinned[-1]
    (400, True, (4999, 0.0))
    """
    if len(points) <= MAX_POINTS:
        return points
    stretches = MAX_POINTS // 2 - 1
    bounds = [1 + i * (len(points) - 2) // stretches for i in range(stretches + 1)]
    thinned = [points[0]]
    for start, end in pairwise(bounds):
        stretch = points[start:end]
        least = min(stretch, key=lambda point: point[1])
        # The last of the greatest: where all are equal, that is another than the least.
        thinned += sorted((least, max(reversed(stretch), key=lambda point: point[1])))
    return [*thinned, points[-1]]


def _marks(
    curve: Curve,
    manifests: Sequence[Manifest],
    best: Manifest | None,
    across: _Scale,
    up: _Scale,
) -> Iterable[str]:
    """Yield a circle for each checkpoint, the best last; one without a value is on the axis."""
    every = -(-len(manifests) // MAX_POINTS) or 1
    shown = [m for m in manifests[::-1][::every][::-1] if m != best]  # with the latest
    for manifest in [*shown, *([best] if best else [])]:
        value = None if manifest.epoch_step else curve.values.get(manifest.epoch)
        y = _BOTTOM + 6 if value is None else up(value)
        kind, radius = ("best", 5) if manifest == best else ("saved", 3.5)
        words = [manifest.name, *([_("best")] if manifest == best else [])]
        words += [_("latest")] if manifest == manifests[-1] else []
        title = f"{', '.join(words)}: {curve.key} {_said(value)}"
        place = f'cx="{across(manifest.epoch):.1f}" cy="{y:.1f}" r="{radius}"'
        yield f'<circle class="{kind}" {place}><title>{escape(title)}</title></circle>'


def _said(value: float | None) -> str:
    return in_words(value)
