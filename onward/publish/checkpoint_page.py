"""The page of a run's checkpoints: which there are, how good, and how to go on from each.

It is in the language of whoever trains; names of metrics and commands are what they are.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from itertools import pairwise
from typing import NamedTuple

from onward.checkpoint.manifest import Manifest
from onward.checkpoint.policy import find_best
from onward.metrics import MONITOR, History
from onward.options.command import Standing, train_command
from onward.system.files import size_in_words
from onward.system.untrusted import told
from onward.words.language import _, spoken

MAX_POINTS = 400  # of one curve, and of its marks
LOG_RANGE = 20  # losses that range wider are drawn on a log scale

_LOSSES = ("train_loss", "val_loss")
_COLUMNS = (
    "checkpoint", "epoch", "marks", MONITOR, "go on", *_LOSSES, "step", "size", "attempt",
    "created (UTC)",
)  # fmt: skip
_NUMBERS = ("epoch", "step", *_LOSSES, MONITOR, "size", "attempt")  # set to the right

# The drawing's own units; the page scales it to its width.
_WIDTH, _HEIGHT = 400, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 388, 14, 160

# No script, font, style or picture is fetched, nor could it be: MLflow shows the page in a frame
# with no origin. Colours are set for both schemes, since the frame's own may not be MLflow's.
_STYLE = """
:root { color-scheme: light dark; --page: #fcfcfb; --ink: #0b0b0b; --soft: #52514e;
  --line: #dcdbd6; --fill: #f1f0ec; --first: #2a78d6; --second: #c8501e; --good: #006300; }
@media (prefers-color-scheme: dark) { :root { --page: #1a1a19; --ink: #ffffff; --soft: #c3c2b7;
  --line: #3f3e3b; --fill: #2a2a28; --first: #5598e7; --second: #e8794a; --good: #4fc24f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 16px; max-width: 1280px; background: var(--page);
  color: var(--ink); font: 14px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 20px; line-height: 1.3; overflow-wrap: anywhere; }
p { margin: 4px 0 0; color: var(--soft); overflow-wrap: anywhere; }
p b { color: var(--ink); font-weight: 600; }
code { font: 12px/1.5 ui-monospace, monospace; background: var(--fill); border-radius: 4px;
  padding: 2px 6px; -webkit-user-select: all; user-select: all; }
td code { display: block; white-space: normal; }
code span { white-space: nowrap; }
.charts { display: grid; gap: 8px 24px; margin: 16px 0;
  grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); }
figure { margin: 0; max-width: 620px; }
figcaption { display: flex; flex-wrap: wrap; gap: 0 14px; color: var(--soft); font-size: 12px; }
figcaption b { color: var(--ink); font-size: 14px; font-weight: 600; }
figcaption svg { width: 12px; height: 12px; margin-right: 4px; vertical-align: -1px; }
figure > svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.axis { stroke: var(--line); stroke-width: 1; }
.curve { fill: none; stroke-width: 1.8; stroke-linecap: round; stroke-linejoin: round; }
.dots { stroke-width: 4.5; }
.first { stroke: var(--first); } .second { stroke: var(--second); }
.saved { fill: var(--page); stroke: var(--first); stroke-width: 1.4; }
.best { fill: var(--good); stroke: var(--page); stroke-width: 1.4; }
.table { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; white-space: nowrap; }
th, td { padding: 6px 10px; text-align: left; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-size: 12px; font-weight: 600; background: var(--fill); }
tr:last-child td { border-bottom: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.mark { display: inline-block; margin-right: 4px; padding: 0 7px; border-radius: 9px;
  border: 1px solid var(--line); color: var(--soft); font-size: 12px; }
.mark.best { border-color: var(--good); color: var(--good); background: none; font-weight: 600; }
"""

_KEY = '<svg viewBox="0 0 12 12" aria-hidden="true">{}</svg>'
_LINE_KEY = _KEY.format('<path class="curve {}" d="M1 6H11"/>')
_SAVED_KEY = _KEY.format('<circle class="saved" cx="6" cy="6" r="3.5"/>')
_BEST_KEY = _KEY.format('<circle class="best" cx="6" cy="6" r="5"/>')


def checkpoint_page(
    run: Standing, name: str, state: str, manifests: Sequence[Manifest], history: History
) -> str:
    """Return the page of a run's checkpoints: one HTML file that needs no other.

    Args:
        run: How the run stands.
        name: Its name.
        state: How it stands: RUNNING, FINISHED, FAILED, KILLED.
        manifests: Its checkpoints, oldest first.
        history: What was measured, by epoch.
    """
    best = find_best(manifests)
    commands = {m.name: _command(run, m, manifests) for m in manifests}
    rows = [_row(m, manifests, best, commands[m.name]) for m in reversed(manifests)]
    headings, go_on = _headings(), _("Go on: {command}")
    heads = [f"<th{_number_class(c)}>{headings.get(c, c)}</th>" for c in _COLUMNS]
    table = [
        '<div class="table" tabindex="0"><table>',
        f"<thead><tr>{''.join(heads)}</tr></thead>",
        *["<tbody>", *rows, "</tbody>"],
        "</table></div>",
    ]
    lines = [
        f'<!DOCTYPE html>\n<html lang="{spoken()}"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{_('{name}: checkpoints').format(name=escape(told(name)))}</title>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(told(name))}</h1>",
        f"<p><b>{escape(state)}</b> · {_('run')} <code>{escape(run.run_id)}</code></p>",
        f"<p>{_newest_and_best(manifests, best)}</p>",
        *(f"<p>{go_on.format(command=commands[m.name])}</p>" for m in manifests[-1:]),
        *_charts(manifests, best, history),
        *(table if manifests else []),
        "</body></html>",
    ]
    return "\n".join(lines) + "\n"


def _newest_and_best(manifests: Sequence[Manifest], best: Manifest | None) -> str:
    if not manifests:
        return _("No checkpoint yet.")
    text = _("No checkpoint has a correlation yet")
    if best is not None:
        score = f"{MONITOR} {_correlation(best.score)}"
        text = _("Best: {name} ({score})").format(name=_bold(best.name), score=score)
    latest = manifests[-1]
    newest = _("Latest: {name} (step {step})").format(name=_bold(latest.name), step=latest.step)
    return f"{text} · {newest}"


def _bold(text: str) -> str:
    return f"<b>{escape(text)}</b>"


def _headings() -> dict[str, str]:
    """Return the columns' names in the language of the page; metrics are called what they are."""
    return {
        "checkpoint": _("checkpoint"),
        "epoch": _("epoch"),
        "marks": _("marks"),
        "go on": _("go on"),
        "step": _("step"),
        "size": _("size"),
        "attempt": _("attempt"),
        "created (UTC)": _("created (UTC)"),
    }


def _mark_names() -> dict[str, str]:
    return {"best": _("best"), "latest": _("latest"), "kept": _("kept")}


def _row(
    manifest: Manifest, manifests: Sequence[Manifest], best: Manifest | None, command: str
) -> str:
    """Return the table's row of one checkpoint."""
    latest = manifest == manifests[-1]
    marks = {"best": manifest == best, "latest": latest, "kept": manifest.kept}
    inside = _("{epoch} + {epoch_step} steps") if manifest.epoch_step else "{epoch}"
    names = _mark_names()
    shown = [f'<span class="mark {m}">{names[m]}</span>' for m, on in marks.items() if on]
    cells = {
        "checkpoint": escape(manifest.name),
        "epoch": inside.format(epoch=manifest.epoch, epoch_step=manifest.epoch_step),
        "marks": "".join(shown),
        MONITOR: _correlation(manifest.score),
        "go on": command,
        **{key: _loss(manifest.metrics.get(key)) for key in _LOSSES},
        "step": str(manifest.step),
        "size": size_in_words(manifest.bytes),
        "attempt": str(manifest.attempt),
        "created (UTC)": escape(_utc(manifest.created)),
    }
    return f"<tr>{''.join(f'<td{_number_class(c)}>{text}</td>' for c, text in cells.items())}</tr>"


def _number_class(column: str) -> str:
    return ' class="number"' if column in _NUMBERS else ""


def _command(run: Standing, manifest: Manifest, manifests: Sequence[Manifest]) -> str:
    """Return what goes on from a checkpoint; from an older one as a run of its own."""
    options = run.go_on() if manifest == manifests[-1] else run.fork_from(manifest.key)
    # A line may end before an option, not inside one: browsers break after each hyphen.
    words = re.split(r" (?=-)", train_command(options, "."))
    return f"<code>{' '.join(f'<span>{escape(word)}</span>' for word in words)}</code>"


def _utc(created: str) -> str:
    """Return when it was, in UTC, to the minute.

    >>> _utc("2026-01-02T03:04:05+02:00"), _utc("0001-01-01T00:00+02:00")
    ('2026-01-02 01:04', '0001-01-01T00:00+02:00')
    """
    try:
        return f"{datetime.fromisoformat(created).astimezone(UTC):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError):  # no time, or one that in UTC has no year
        return created


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _loss(value: float | None) -> str:
    return f"{value:.5g}" if _is_finite(value) else "-"


def _correlation(value: float | None) -> str:
    return f"{value:.5f}" if _is_finite(value) else "-"


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


class _Curve:
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


def _charts(
    manifests: Sequence[Manifest], best: Manifest | None, history: History
) -> Iterable[str]:
    """Yield the drawings of the run's curves, if there is anything to draw."""
    curves = {MONITOR: _Curve(MONITOR, "first"), "train_loss": _Curve("train_loss", "first")}
    curves["val_loss"] = _Curve("val_loss", "second")
    for point in history:
        if point.key in curves:
            curves[point.key].add(point.step, point.value)
    for manifest in manifests:  # what the history lacks, their own metrics may have
        for key in curves if not manifest.epoch_step else ():
            if key in manifest.metrics:
                curves[key].add(manifest.epoch, manifest.metrics[key])
    for curve in curves.values():
        curve.gaps.sort()
    charts = [
        (_("Correlation"), [curves[MONITOR]], manifests, best),
        (_("Loss"), [curves[key] for key in _LOSSES], (), None),
    ]
    drawn = [_chart(*chart) for chart in charts if any(curve.values for curve in chart[1])]
    if drawn:
        yield from ('<div class="charts">', *drawn, "</div>")


def _chart(
    title: str, curves: Sequence[_Curve], manifests: Sequence[Manifest], best: Manifest | None
) -> str:
    """Return a drawing of the curves, with the checkpoints marked on the first one."""
    values = [value for curve in curves for value in curve.values.values()]
    epochs = [*(epoch for curve in curves for epoch in curve.values), *(m.epoch for m in manifests)]
    low, high = min(values), max(values)
    log = curves[0].key in _LOSSES and low > 0 and high / LOG_RANGE > low
    across = _Scale(min(epochs), max(epochs), _LEFT, _RIGHT)
    up = _Scale(low, high, _BOTTOM, _TOP, log)
    keys = [_LINE_KEY.format(curve.style) + curve.key for curve in curves]
    if manifests:
        keys.append(f"{_SAVED_KEY}{_('checkpoint')}")
        keys += [f"{_BEST_KEY}{_('best')}"] * (best is not None)
    words = [f"<b>{title}</b>", *(f"<span>{key}</span>" for key in keys)]
    if log:
        words.append(f"<span>{_('log scale')}</span>")
    label = _("{title} by epoch, from {low:.5g} to {high:.5g}").format(
        title=title, low=low, high=high
    )
    return "\n".join(
        [
            f"<figure><figcaption>{''.join(words)}</figcaption>",
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">',
            _axes(across, up),
            *(_path(curve, across, up) for curve in curves),
            *_marks(curves[0], manifests, best, across, up),
            "</svg></figure>",
        ]
    )


def _axes(across: _Scale, up: _Scale) -> str:
    """Return two lines, and the least and greatest value and epoch beside them."""
    parts = [f'<path class="axis" fill="none" d="M{_LEFT - 6} {_TOP}V{_BOTTOM + 6}H{_RIGHT}"/>']
    for value in sorted({up.low, up.high}):
        parts.append(f'<text x="{_LEFT - 10}" y="{up(value) + 4:.1f}" text-anchor="end">')
        parts.append(f"{value:.4g}</text>")
    for epoch in sorted({across.low, across.high}):
        side = "start" if epoch < across.high else "end"
        anchor = side if across.low < across.high else "middle"
        parts.append(f'<text x="{across(epoch):.1f}" y="{_BOTTOM + 20}" text-anchor="{anchor}">')
        parts.append(f"epoch {epoch:.0f}</text>")
    return "".join(parts)


def _path(curve: _Curve, across: _Scale, up: _Scale) -> str:
    """Return the line of a curve; it is broken where an epoch had no value."""
    stretches: dict[int, list[str]] = {}  # by the number of gaps before
    for epoch, value in _thinned(sorted(curve.values.items())):
        place = f"{across(epoch):.1f} {up(value):.1f}"
        stretches.setdefault(bisect_right(curve.gaps, epoch), []).append(place)
    lines = "".join(f"M{'L'.join(places)}" for places in stretches.values() if len(places) > 1)
    # A line of no length with round ends is a dot.
    dots = "".join(f"M{places[0]}h0" for places in stretches.values() if len(places) == 1)
    title = f"<title>{curve.key}</title>"
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
    curve: _Curve,
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
        title = f"{', '.join(words)}: {curve.key} {_correlation(value)}"
        place = f'cx="{across(manifest.epoch):.1f}" cy="{y:.1f}" r="{radius}"'
        yield f'<circle class="{kind}" {place}><title>{escape(title)}</title></circle>'
