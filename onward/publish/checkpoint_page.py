"""The page of a run's checkpoints: which there are, how good, and how to go on from each.

It is in the language of whoever trains; names of metrics and commands are what they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape

from onward.checkpoint.manifest import Manifest
from onward.checkpoint.policy import find_best
from onward.metrics import EPOCH, STEP, History, Point, in_words, logged_keys
from onward.monitor import Monitor
from onward.options.command import Standing, train_command
from onward.publish.svg import LOSSES, Curve, chart
from onward.system.files import size_in_words
from onward.system.untrusted import told
from onward.words.language import _, spoken

_MAX_METRICS = 8  # of a loop that logs what it likes
_OTHERS = ("checkpoint", "marks", "go on", "created (UTC)")  # all else is a number

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


def checkpoint_page(
    run: Standing,
    name: str,
    state: str,
    manifests: Sequence[Manifest],
    history: History,
    monitor: Monitor,
) -> str:
    """Return the page of a run's checkpoints: one HTML file that needs no other.

    Args:
        run: How the run stands.
        name: Its name.
        state: How it stands: RUNNING, FINISHED, FAILED, KILLED.
        manifests: Its checkpoints, oldest first.
        history: What was measured, by epoch.
        monitor: The metric that decides which checkpoint is best.
    """
    best = find_best(manifests)
    commands = {m.name: _command(run, m, manifests) for m in manifests}
    cells = [_cells(m, manifests, best, commands[m.name], monitor) for m in reversed(manifests)]
    columns = _columns(run, manifests, monitor)
    rows = [_row(columns, one) for one in cells]
    headings, go_on = _headings(), _("Go on: {command}")
    heads = [f"<th{_number_class(c)}>{headings.get(c, escape(c))}</th>" for c in columns]
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
        f"<p>{_newest_and_best(manifests, best, monitor)}</p>",
        *(f"<p>{go_on.format(command=commands[m.name])}</p>" for m in manifests[-1:]),
        *_charts(run, manifests, best, history, monitor),
        *(table if manifests else []),
        "</body></html>",
    ]
    return "\n".join(lines) + "\n"


def _newest_and_best(manifests: Sequence[Manifest], best: Manifest | None, monitor: Monitor) -> str:
    if not manifests:
        return _("No checkpoint yet.")
    latest = manifests[-1]
    newest = _("Latest: {name} (step {step})").format(name=_bold(latest.name), step=latest.step)
    metric = escape(monitor.name)
    if not metric:
        return newest
    text = _("No checkpoint has a value of {metric} yet").format(metric=metric)
    if best is not None:
        score = f"{metric} {_score(best.score)}"
        text = _("Best: {name} ({score})").format(name=_bold(best.name), score=score)
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


def _columns(run: Standing, manifests: Sequence[Manifest], monitor: Monitor) -> list[str]:
    monitored = [monitor.name] if monitor.name else []
    others = [name for name in _metrics(run, manifests) if name not in monitored]
    is_by_step = any(manifest.unit == STEP for manifest in manifests)
    return ["checkpoint", *([] if is_by_step else ["epoch"]), "marks", *monitored, "go on", *others,
            "step", "size", "attempt", "created (UTC)"]  # fmt: skip


def _metrics(run: Standing, manifests: Sequence[Manifest]) -> list[str]:
    """Return the metrics to be shown: the losses, or of a loop of one's own what it logs."""
    if run.script is None:
        return list(LOSSES)
    keys = dict.fromkeys(key for manifest in manifests for key in manifest.metrics)
    return logged_keys(History(Point(key, 0, 0, 0.0) for key in keys))[:_MAX_METRICS]


def _row(columns: Sequence[str], cells: Mapping[str, str]) -> str:
    """Return the table's row of one checkpoint."""
    shown = (f"<td{_number_class(c)}>{cells.get(c, '-')}</td>" for c in columns)
    return f"<tr>{''.join(shown)}</tr>"


def _cells(
    manifest: Manifest,
    manifests: Sequence[Manifest],
    best: Manifest | None,
    command: str,
    monitor: Monitor,
) -> dict[str, str]:
    """Return what the table says of one checkpoint, by column."""
    latest = manifest == manifests[-1]
    marks = {"best": manifest == best, "latest": latest, "kept": manifest.kept}
    inside = _("{epoch} + {epoch_step} steps") if manifest.epoch_step else "{epoch}"
    names = _mark_names()
    shown = [f'<span class="mark {m}">{names[m]}</span>' for m, on in marks.items() if on]
    return {
        "checkpoint": escape(manifest.name),
        "epoch": inside.format(epoch=manifest.epoch, epoch_step=manifest.epoch_step),
        "marks": "".join(shown),
        "go on": command,
        **{key: _loss(manifest.metrics.get(key)) for key in (*LOSSES, *manifest.metrics)},
        monitor.name: _score(manifest.score),
        "step": str(manifest.step),
        "size": size_in_words(manifest.bytes),
        "attempt": str(manifest.attempt),
        "created (UTC)": escape(_utc(manifest.created)),
    }


def _number_class(column: str) -> str:
    return "" if column in _OTHERS else ' class="number"'


def _command(run: Standing, manifest: Manifest, manifests: Sequence[Manifest]) -> str:
    """Return what goes on from a checkpoint; from an older one as a run of its own."""
    options = run.go_on() if manifest == manifests[-1] else run.fork_from(manifest.key)
    # A line may end before an option, not inside one: browsers break after each hyphen.
    words = re.split(r" (?=-|ONWARD_|python)", train_command(options, "."))
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


def _score(value: float | None) -> str:
    return in_words(value)


def _charts(
    run: Standing,
    manifests: Sequence[Manifest],
    best: Manifest | None,
    history: History,
    monitor: Monitor,
) -> Iterable[str]:
    """Yield the drawings of the run's curves, if there is anything to draw."""
    losses = [Curve(key, style) for key, style in zip(LOSSES, ("first", "second"), strict=True)]
    monitored = [Curve(monitor.name, "first")] if monitor.name else []
    counted = manifests[-1].unit if manifests else EPOCH
    charts: list[tuple[str, list[Curve], Sequence[Manifest], Manifest | None, str]]
    charts = [(escape(c.key), [c], manifests, best, counted) for c in monitored]
    if run.script is None:
        charts.append((_("Loss"), losses, (), None, counted))
    else:
        others = [k for k in logged_keys(history) if k != monitor.name][:_MAX_METRICS]
        by_unit = {key for manifest in manifests for key in manifest.metrics}
        charts += [
            (escape(k), [Curve(k, "first")], (), None, counted if k in by_unit else STEP)
            for k in others
        ]
    for curve in (curve for chart_ in charts for curve in chart_[1]):
        for step, value in history.series(curve.key):
            curve.add(step, value)
        for manifest in manifests:  # what the history lacks, their own metrics may have
            if not manifest.epoch_step and curve.key in manifest.metrics:
                curve.add(manifest.epoch, manifest.metrics[curve.key])
        curve.gaps.sort()
    drawn = [chart(*one) for one in charts if any(curve.values for curve in one[1])]
    if drawn:
        yield from ('<div class="charts">', *drawn, "</div>")
