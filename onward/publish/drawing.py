"""Drawing pictures as PNG, in the language of whoever trains, if a font here has its characters."""

from __future__ import annotations

import contextlib
import importlib
import io
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from onward.publish.fonts import drawable, families

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

LARGEST = 1e100  # beyond, squares and the margins of an axis are no doubles any more
INK, SOFT, LINE = "#0b0b0b", "#52514e", "#dcdbd6"
FIRST, SECOND, GOOD = "#2a78d6", "#c8501e", "#006300"
_SIZE = (12.0, 8.0)  # inches of 100 dots
_TITLE_LENGTH = 80


def import_ahead() -> None:
    """Import what draws, half a second's work, in a thread, while a server is waited for."""

    def load() -> None:
        with contextlib.suppress(Exception):  # it is raised where something is drawn
            for name in ("figure", "backends.backend_agg", "layout_engine"):
                importlib.import_module(f"matplotlib.{name}")

    with contextlib.suppress(RuntimeError):  # while the interpreter ends there are no new threads
        threading.Thread(target=load, daemon=True).start()


def new_figure(title: str, columns: Sequence[int] = (1,)) -> tuple[Figure, Axes]:
    """Return an empty figure, which pyplot does not know of, and its first axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=_SIZE, dpi=100, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    place: dict[str, Any] = {"x": 0.01, "ha": "left", "color": INK, "fontsize": 16}
    figure.suptitle(drawable(title, _TITLE_LENGTH), parse_math=False, **place)
    grid = figure.subplots(1, len(columns), squeeze=False, width_ratios=columns)
    for axes in grid[0]:
        axes.set_facecolor("white")
        axes.grid(color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(LINE)
        axes.tick_params(which="both", color=LINE, labelcolor=SOFT, labelsize=11)
        axes.xaxis.label.set(color=INK, fontsize=13)
        axes.yaxis.label.set(color=INK, fontsize=13)
    return figure, grid[0][0]


def padded(values: Array) -> tuple[float, float]:
    """Return the ends of a linear axis that the values fit on.

    >>> padded(np.array([0.0, 100.0])), padded(np.array([20.0])), padded(np.array([]))
    ((-5.0, 105.0), (19.0, 21.0), (0.0, 1.0))
    """
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    pad = 0.05 * (high - low)
    if pad <= 1e-9 * abs(high):  # as good as one value: too near each other for an axis
        pad = 0.05 * abs(high)
    pad = pad if pad > 1 / LARGEST else 1.0
    return low - pad, high + pad


def png(figure: Figure) -> bytes:
    """Return the figure as PNG; a text gets the fonts that have its characters."""
    return picture(figure, "png")


def picture(figure: Figure, kind: str) -> bytes:
    """Return the figure as "png" or "svg"; the same figure gives the same bytes."""
    from matplotlib import rc_context
    from matplotlib.text import Text

    for text in cast(list[Text], figure.findobj(Text)):
        needed = families(text.get_text())
        if len(needed) > 1:
            text.set_fontfamily(needed)
    file = io.BytesIO()
    if kind == "png":  # not by `savefig`, which draws all a first time to find the layout
        canvas: Any = figure.canvas
        canvas.print_png(file, metadata={"Software": None})
    else:
        with rc_context({"svg.hashsalt": "onward"}):
            figure.savefig(file, format="svg", dpi=100, metadata={"Date": None})
    return file.getvalue()
