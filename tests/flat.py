"""Whether what processes hold stays flat over time: by the samples that `soaked.py` notes."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

Sample = dict[str, float]

MB = 1e6
WARM = 40  # samples of a process until it holds what it needs
# Of what is held the later half may be above the first by this factor, and this much.
FLAT = {
    "memory": (1.05, 5 * MB),
    "files": (1.0, 5),
    "threads": (1.0, 3),
    "spool": (1.5, 2 * MB),
    "calls an epoch": (1.2, 2),
}
UNITS = {"memory": MB, "spool": MB}


def longest(samples: Sequence[Sample]) -> list[Sample]:
    """Return those of the process that lived longest, once it is warm; with calls an epoch."""
    by_process: dict[float, list[Sample]] = {}
    for sample in samples:
        by_process.setdefault(sample["process"], []).append(sample)
    life = max(by_process.values(), key=len)
    pairs = itertools.pairwise(life)
    more = [{**b, "calls an epoch": b["calls"] - a["calls"]} for a, b in pairs]
    return more[WARM:]


def halves(samples: Sequence[Sample], what: str) -> tuple[float, float]:
    """Return what is held in the first half of the longest life, and in the later one.

    It is the median; of calls the mean, since they come in bursts.
    """
    values = [sample[what] for sample in longest(samples)]
    middle = statistics.mean if what == "calls an epoch" else statistics.median
    half = len(values) // 2
    return middle(values[:half]), middle(values[half:])


def rising(samples: Sequence[Sample]) -> list[str]:
    """Return in words what the later half has more of than it may."""
    found = []
    for what, (factor, more) in FLAT.items():
        first, later = halves(samples, what)
        if later > factor * first + more:
            found.append(f"{what}: {first:.1f}, then {later:.1f}")
    return found


def told(samples: Sequence[Sample]) -> str:
    """Return a table of both halves."""
    if len(longest(samples)) < 4:
        return "too short to tell what grows"
    rows = ["| | first half | later half | may be |", "| --- | --- | --- | --- |"]
    for what, (factor, more) in FLAT.items():
        unit = UNITS.get(what, 1)
        first, later = (value / unit for value in halves(samples, what))
        may = factor * first + more / unit
        name = f"{what}, MB" if what in UNITS else what
        rows.append(f"| {name} | {first:.1f} | {later:.1f} | {may:.1f} |")
    return "\n".join(rows)


def drawn(samples: Sequence[Sample], path: Path) -> None:
    """Draw what all processes held over time."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    begin = samples[0]["seconds"]
    pieces: dict[float, list[Sample]] = {}
    for sample in samples:
        pieces.setdefault(sample["process"], []).append(sample)
    figure, axes = pyplot.subplots(1, 4, figsize=(10, 2.4))
    for one, what in zip(axes, ("memory", "files", "threads", "spool"), strict=True):
        unit = UNITS.get(what, 1)
        for life in pieces.values():
            minutes = [(s["seconds"] - begin) / 60 for s in life]
            one.plot(minutes, [s[what] / unit for s in life], lw=0.8)
        one.set_title(f"{what}, MB" if what in UNITS else what, fontsize=9)
        one.set_xlabel("minutes", fontsize=8)
        one.set_ylim(bottom=0)
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90, metadata={"Software": None})
