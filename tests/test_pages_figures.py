"""The pictures of a run: what they show, and that no odd number costs one."""

import math
import re
import struct
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from babel.messages.pofile import read_po
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import font_manager
from matplotlib.colors import LogNorm, to_hex
from matplotlib.font_manager import fontManager
from support import ROOT

from onward.metrics import History, Point
from onward.monitor import UNDECLARED, Best, Monitor
from onward.publish import curves, drawing, fonts
from onward.words.language import choose
from train.tabular import figures

MAX_BYTES = 200_000
odd = st.floats() | st.sampled_from([math.nan, math.inf, 1e308, -1e308, 5e-324, 0.0])


def history(**values):
    """Return a history of metrics whose values are those of epochs 1, 2, …"""
    return History(
        Point(key, epoch, epoch, value)
        for key, of_key in values.items()
        for epoch, value in enumerate(of_key, start=1)
    )


def rows(num_rows, spread=0.5, seed=0):
    """Return (predicted, target) of a model that errs a little."""
    rng = np.random.default_rng(seed)
    target = rng.lognormal(8, spread, num_rows)
    return target * np.exp(0.1 * rng.normal(size=num_rows)), target


def best_of(measured, epoch, monitor):
    """Return that epoch as the best one; None where it has no value that could be."""
    score = monitor.score(dict(measured.series(monitor.name)).get(epoch))
    return None if score is None else Best(score, epoch)


def monitor_figure(measured, first_epochs, best_epoch, monitor=UNDECLARED):
    best = best_of(measured, best_epoch, monitor)
    return curves._metric_figure(measured, first_epochs, monitor.name, best)


def monitor_curve(measured, first_epochs, best_epoch, monitor=UNDECLARED):
    best = best_of(measured, best_epoch, monitor)
    return curves.metric_curve(measured, first_epochs, monitor.name, best)


def expect_png(png):
    """Fail unless it is a picture of 1200 x 800 of a size that a server takes without a thought."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", png[16:24]) == (1200, 800)
    assert len(png) < MAX_BYTES


def texts(figure):
    """Return everything that is written in a figure, ticks left out."""
    found = [figure.get_suptitle()]
    for axes in figure.axes:
        found += [axes.get_xlabel(), axes.get_ylabel(), *(text.get_text() for text in axes.texts)]
        legend = axes.get_legend()
        found += [text.get_text() for text in legend.get_texts()] if legend else []
    return "\n".join(found)


def lines(axes, color):
    """Return (x, y) of each line of a colour that has points."""
    found = [line for line in axes.lines if to_hex(line.get_color()) == color]
    return [tuple(map(list, line.get_data())) for line in found if len(line.get_xdata())]


def verticals(axes, color):
    """Return where vertical lines of a colour stand."""
    return [x[0] for x, y in lines(axes, color) if list(y) == [0, 1]]


def test_losses_are_drawn_by_epoch():
    """Both losses are curves with a name, over the epochs at whose end they were measured."""
    measured = history(train_loss=[3.0, 2.0, 1.0], val_loss=[4.0, 3.0, 2.0], other=[1.0])
    figure = curves._loss_figure(measured, {1: 1}, 3)
    axes = figure.axes[0]
    assert lines(axes, drawing.FIRST) == [([1, 2, 3], [3, 2, 1])]
    assert lines(axes, drawing.SECOND) == [([1, 2, 3], [4, 3, 2])]
    assert verticals(axes, drawing.GOOD) == [3]
    for text in ("train_loss", "val_loss", "best: epoch 3", "epoch", "loss"):
        assert text in texts(figure)
    expect_png(curves.loss_curves(measured, {1: 1}, 3))


@pytest.mark.parametrize(
    ("losses", "scale"),
    [
        ([100.0, 1.0], "log"),
        ([20.0, 1.0], "linear"),
        ([100.0, 0.0], "linear"),
        ([100.0, -1.0], "linear"),
        ([100.0, math.nan, 1.0], "log"),
        ([math.nan], "linear"),
        ([], "linear"),
    ],
)
def test_losses_that_range_wide_are_on_a_log_scale(losses, scale):
    """A log scale is for positive losses more than 20 times apart."""
    measured = history(train_loss=losses[:1], val_loss=losses)
    assert curves._loss_figure(measured, {1: 1}, None).axes[0].get_yscale() == scale
    expect_png(curves.loss_curves(measured, {1: 1}, None))


def test_the_best_epoch_is_marked():
    """A dot lies on the curve where the correlation was best, and the legend tells it."""
    measured = history(val_pearson=[0.5, 0.75, 0.6])
    figure = monitor_figure(measured, {1: 1}, 2)
    assert lines(figure.axes[0], drawing.GOOD) == [([2], [0.75])]
    assert "best: 0.75000 (epoch 2)" in texts(figure)
    for best_epoch in (None, 9):
        figure = monitor_figure(measured, {1: 1}, best_epoch)
        assert lines(figure.axes[0], drawing.GOOD) == []
    expect_png(monitor_curve(measured, {1: 1}, 2))


def test_another_metric_is_drawn_as_the_correlation_is():
    """The title, the axis and the legend name it, and the dot lies where it was least."""
    rmse = Monitor("val_rmse", "min")
    measured = history(val_rmse=[0.5, 0.25, 0.75], val_pearson=[0.5, 0.6, 0.7])
    best = rmse.best(measured.series("val_rmse"))
    figure = curves._metric_figure(measured, {1: 1}, rmse.name, best)
    assert lines(figure.axes[0], drawing.GOOD) == [([2], [0.25])]
    assert lines(figure.axes[0], drawing.FIRST) == [([1, 2, 3], [0.5, 0.25, 0.75])]
    assert "best: 0.25000 (epoch 2)" in texts(figure)
    assert (figure.get_suptitle(), figure.axes[0].get_ylabel()) == ("val_rmse", "val_rmse")
    assert "val_pearson" not in texts(figure)
    expect_png(curves.metric_curve(measured, {1: 1}, rmse.name, best))


@pytest.mark.parametrize(
    "name", ["a $x^2$ and \\frac", "a $\\frac$ b", "a_{b", "_a", "<b>", "价格", "x" * 200]
)
def test_any_name_of_a_metric_makes_a_picture(name, no_fonts):
    """It is no formula, and what cannot be drawn is escaped; it is a task's own."""
    measured, monitor = history(**{name: [0.5, 0.25]}), Monitor(name, "min")
    expect_png(curves.metric_curve(measured, {1: 1}, monitor.name, Best(0.25, 2)))


@settings(max_examples=15, deadline=None)
@given(st.lists(odd, max_size=5), st.sampled_from(["min", "max"]))
def test_odd_values_of_any_metric_break_nothing(values, direction):
    """Whatever was measured, there is a picture, and the legend stays short."""
    monitor, measured = Monitor("val_rmse", direction), history(val_rmse=values)
    best = monitor.best(measured.series("val_rmse"))
    expect_png(curves.metric_curve(measured, {1: 1, 2: 2}, monitor.name, best))


@pytest.mark.parametrize("draw", [monitor_figure, curves._loss_figure])
def test_later_attempts_are_marked_where_they_began(draw):
    """A thin line stands for every attempt but the first; several at one epoch share it.

    It has their own numbers: one that did no epoch is not there.
    """
    measured = history(val_pearson=[0.5] * 60, val_loss=[0.5] * 60)
    figure = draw(measured, {1: 1, 3: 10, 4: 30, 5: 30, 9: 50}, None)
    assert verticals(figure.axes[0], drawing.SOFT) == [10, 30, 50]
    assert [text.get_text() for text in figure.axes[0].texts][:3] == [
        *("attempt 3", "attempts 4 to 5", "attempt 9")
    ]


def test_a_run_of_one_attempt_has_no_such_line():
    """What never was interrupted shows nothing of the kind, and no attempt makes no error."""
    measured = history(val_pearson=[0.5, 0.6])
    for first_epochs in ({}, {1: 1}):
        figure = monitor_figure(measured, first_epochs, None)
        assert verticals(figure.axes[0], drawing.SOFT) == []
        assert "attempt" not in texts(figure)


def test_labels_of_many_attempts_do_not_lie_on_each_other():
    """Each attempt has its line; labels are left out where there is no room for them."""
    measured = history(val_pearson=[0.5] * 1000)
    figure = monitor_figure(measured, dict(enumerate(range(1, 1000, 2), 1)), None)
    assert len(verticals(figure.axes[0], drawing.SOFT)) == 499
    labelled = [text for text in figure.axes[0].texts if "attempt" in text.get_text()]
    assert 10 < len(labelled) < 60


def test_a_value_that_is_not_finite_is_left_out_of_a_curve():
    """The line is broken there, one alone is a dot, and the figure tells how many are missing."""
    nan, inf = math.nan, math.inf
    measured = history(val_pearson=[0.1, 0.2, nan, 0.3, inf, 0.4, 0.5])
    figure = monitor_figure(measured, {1: 1}, None)
    curve, dots = lines(figure.axes[0], drawing.FIRST)
    np.testing.assert_equal(curve[1], [0.1, 0.2, nan, 0.3, nan, 0.4, 0.5])
    assert dots == ([4], [0.3])
    assert "values not finite, left out: 2" in texts(figure)


@settings(max_examples=15, deadline=None)
@given(st.lists(odd, max_size=5), st.lists(odd, max_size=5))
def test_odd_histories_break_nothing(train_loss, others):
    """Whatever was measured, and however little, there is a picture."""
    measured = history(train_loss=train_loss, val_loss=others, val_pearson=others)
    expect_png(curves.loss_curves(measured, {1: 1, 2: 2, 3: 2, 4: 9}, 1))
    expect_png(monitor_curve(measured, {1: 1, 2: 2, 3: 2, 4: 9}, 1))


def test_few_rows_are_drawn_one_by_one():
    """Up to 2000 rows each one is a dot at (true, predicted), with the line of equals."""
    predicted, target = rows(2000)
    figure = figures._predicted_figure(predicted, target, "Validation")
    [axes] = figure.axes
    [dots] = axes.collections
    np.testing.assert_array_equal(dots.get_offsets(), np.column_stack([target, predicted]))
    [(x, y)] = lines(axes, drawing.SOFT)
    assert x == y == list(axes.get_xlim()) == list(axes.get_ylim())


@pytest.mark.parametrize("draw", [figures._predicted_figure, figures._residual_figure])
def test_many_rows_are_counted(draw):
    """Above 2000 rows a colour tells on a log scale how many lie in a place: all of them."""
    figure = draw(*rows(2001), "Validation")
    [counts] = figure.axes[0].collections
    assert isinstance(counts.norm, LogNorm)
    assert counts.get_array().sum() == 2001
    assert figure.axes[-1].get_ylabel() == "rows"


@pytest.mark.parametrize("draw", [figures._predicted_figure, figures._residual_figure])
def test_the_corner_tells_how_good(draw):
    """Number of rows, correlation and RMSE are those of the rows drawn."""
    predicted, target = rows(1000)
    written = texts(draw(predicted, target, "Validation"))
    assert written.startswith("Validation\n")
    rmse = math.sqrt(np.mean((predicted - target) ** 2))
    r = np.corrcoef(predicted, target)[0, 1]
    assert f"1,000 rows\nr {r:.5f}\nRMSE {rmse:.5g}" in written


def test_residuals_lie_over_the_predictions():
    """A dot is (predicted, true - predicted); beside them stands how many there are of each."""
    predicted, target = rows(500)
    figure = figures._residual_figure(predicted, target, "Validation")
    axes, side = figure.axes
    [dots] = axes.collections
    np.testing.assert_allclose(dots.get_offsets(), np.column_stack([predicted, target - predicted]))
    assert axes.get_ylabel() == "residual (true - predicted)"
    assert sum(bars.get_data().values.sum() for bars in side.patches) == 500
    assert side.get_ylim() == axes.get_ylim()


@pytest.mark.parametrize("num_rows", [300, 3000])
def test_wide_positive_targets_are_on_log_axes(num_rows):
    """Targets more than 100 times apart are shown by their factors, the residual too."""
    predicted, target = rows(num_rows, spread=3)
    [axes, *_] = figures._predicted_figure(predicted, target, "Validation").axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    [axes, side, *_] = figures._residual_figure(predicted, target, "Validation").axes
    assert (axes.get_xscale(), axes.get_yscale(), side.get_yscale()) == ("log", "log", "log")
    assert axes.get_ylabel() == "residual (true / predicted)"
    assert sum(bars.get_data().values.sum() for bars in side.patches) == num_rows
    target[0] = 0.0
    [axes, *_] = figures._predicted_figure(predicted, target, "Validation").axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")


@pytest.mark.parametrize("num_rows", [300, 3000])
def test_a_prediction_that_a_log_axis_lacks_lies_at_its_edge(num_rows):
    """One that is not positive does not vanish, nor does it count for less."""
    predicted, target = rows(num_rows, spread=3)
    predicted[:3] = 0, -5, 1e-30
    for draw in (figures._predicted_figure, figures._residual_figure):
        figure = draw(predicted, target, "Validation")
        assert "predictions beyond the axis, drawn at its edge: 3" in texts(figure)
        assert f"{np.corrcoef(predicted, target)[0, 1]:.5f}" in texts(figure)
        [drawn] = figure.axes[0].collections
        shown = drawn.get_array().sum() if num_rows > 2000 else len(drawn.get_offsets())
        assert shown == num_rows


@pytest.mark.parametrize("draw", [figures._predicted_figure, figures._residual_figure])
def test_rows_that_are_not_finite_are_left_out_and_told(draw):
    """A NaN or infinity on either side costs its row, not the figure."""
    predicted, target = rows(100)
    predicted[:3] = math.nan, math.inf, -math.inf
    target[2:5] = math.nan, math.inf, math.nan
    written = texts(draw(predicted, target, "Validation"))
    assert "95 rows" in written
    assert "rows not finite, left out: 5" in written


values = st.lists(odd, min_size=6, max_size=6)


@settings(max_examples=15, deadline=None)
@given(values, values, st.sampled_from([0, 1, 2, 6]), st.sampled_from([1, 500]))
def test_odd_rows_break_nothing(predicted, target, num_rows, repeats):
    """Whatever is predicted, of however few rows, there is a picture."""
    arrays = [np.tile(np.array(some[:num_rows], float), repeats) for some in (predicted, target)]
    expect_png(figures.predicted_against_true(*arrays, "Validation"))
    expect_png(figures.residuals(*arrays, "Validation"))


@pytest.mark.parametrize("num_rows", [1, 5, 3000])
@pytest.mark.parametrize("value", [0.0, 7.0, -1e30, 1e-200])
def test_constant_arrays_have_no_correlation(num_rows, value):
    """Where either side is constant, r is undefined and shown as a dash."""
    constant, other = np.full(num_rows, value), rows(num_rows)[0]
    for predicted, target in ((constant, constant), (constant, other), (other, constant)):
        assert "\nr -\n" in texts(figures._predicted_figure(predicted, target, "constant"))
        expect_png(figures.predicted_against_true(predicted, target, "constant"))
        expect_png(figures.residuals(predicted, target, "constant"))


@pytest.mark.parametrize("num_rows", [2000, 6000, 100_000])
def test_pictures_of_many_rows_stay_small(num_rows):
    """Rows spread over the whole picture do not make it large."""
    first, second = np.random.default_rng(0).uniform(size=(2, num_rows))
    expect_png(figures.predicted_against_true(first, second, "Validation"))
    expect_png(figures.residuals(first, first + second, "Validation"))


def test_pictures_of_many_epochs_stay_small():
    """Thousands of noisy epochs with hundreds of attempts make no large picture."""
    noise = np.random.default_rng(0).normal(size=5000).tolist()
    measured = history(train_loss=noise, val_loss=noise[::-1], val_pearson=noise)
    expect_png(curves.loss_curves(measured, dict(enumerate(range(1, 5000, 30), 1)), 7))
    expect_png(monitor_curve(measured, dict(enumerate(range(1, 5000, 30), 1)), 7))


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("price ($), $x^2$ and \\frac", "price ($), $x^2$ and \\frac"),
        ("two\nlines\tof it", "two lines of it"),
        ("a\udcff\x00", "a\\udcff\\x00"),
        ("a" * 100, "a" * 79 + "…"),
        ("", ""),
    ],
)
def test_a_title_is_shown_as_it_is_written(title, shown):
    """It is no formula, it is one line, and what cannot be drawn is escaped without a warning."""
    figure = figures._predicted_figure(*rows(3), title)
    assert figure.get_suptitle() == shown
    assert not figure._suptitle.get_parse_math()
    expect_png(figures.predicted_against_true(*rows(3), title))


@pytest.fixture
def no_fonts(monkeypatch):
    """Let there be no fonts but matplotlib's own, and nothing be known of them."""
    bundled = [f for f in fontManager.ttflist if "mpl-data" in f.fname]
    monkeypatch.setattr(fontManager, "ttflist", bundled)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    caches = [fonts._installed, fonts._warn, fonts._characters_of]
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def system_font(tmp_path, no_fonts, monkeypatch):
    """Install a font that has the characters of 价格 and no others, called SimHei."""
    install("价格", tmp_path, monkeypatch)


@pytest.fixture
def chinese_font(tmp_path, no_fonts, monkeypatch):
    """Install a font that has all characters that the program says in Chinese."""
    with (ROOT / "onward" / "words" / "locale" / "zh.po").open("rb") as file:
        said = "".join(message.string for message in read_po(file))
    install({c for c in said if not c.isascii()}, tmp_path, monkeypatch)


@pytest.fixture
def chinese():
    """Speak Chinese, and English again after the test."""
    choose(["zh"])
    yield
    choose([])


def install(characters, tmp_path, monkeypatch):
    """Let the system have one font, SimHei, that draws these characters and no others."""
    builder = FontBuilder(1000)
    pen = TTGlyphPen(None)
    for point in [(0, 0), (0, 800), (800, 800), (800, 0)]:
        (pen.lineTo if point != (0, 0) else pen.moveTo)(point)
    pen.closePath()
    square = pen.glyph()
    names = {ord(character): f"u{ord(character):x}" for character in characters}
    glyphs = [".notdef", *names.values()]
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap(names)
    builder.setupGlyf(dict.fromkeys(glyphs, square))
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "SimHei", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "simhei.ttf")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "simhei.ttf")])


def test_a_chinese_title_is_drawn_with_a_font_of_the_system(system_font, caplog, recwarn):
    """Also with one that matplotlib's list does not have yet; as it is written."""
    title = "价格, 5 validation rows"
    figure = figures._predicted_figure(*rows(3), title)
    assert figure.get_suptitle() == title
    expect_png(drawing.png(figure))
    assert figure._suptitle.get_fontfamily()[-1] == "SimHei"
    assert not caplog.records
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_without_a_font_a_chinese_title_is_escaped(no_fonts, caplog, recwarn):
    """No boxes; one warning for all figures says what to install."""
    for draw in (figures.residuals, figures.predicted_against_true, figures.residuals):
        expect_png(draw(*rows(3), "价格, 5 validation rows"))
    figure = figures._predicted_figure(*rows(3), "价格, 5 validation rows")
    assert figure.get_suptitle() == r"\u4ef7\u683c, 5 validation rows"
    [line] = [record.getMessage() for record in caplog.records]
    assert "fonts-noto-cjk" in line
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def every_figure():
    """Return figures that say everything there is to say in one, a title of one's own included."""
    nan = math.nan
    measured = history(train_loss=[3.0, nan, 1.0], val_loss=[2.0] * 3, val_pearson=[0.1, 0.2, 0.3])
    narrow, wide = rows(2001), rows(2001, spread=3)
    wide[0][:2], wide[1][2] = -1, nan
    title = figures.title_of("price", 2001, 3)
    return [
        curves._loss_figure(measured, {1: 1, 2: 2}, 3),
        curves._loss_figure(measured, {1: 1, 2: 2, 3: 2}, None),
        monitor_figure(measured, {1: 1}, 3),
        monitor_figure(History(), {}, None),
        *(draw(*narrow, title) for draw in (figures._predicted_figure, figures._residual_figure)),
        *(draw(*wide, title) for draw in (figures._predicted_figure, figures._residual_figure)),
        figures._predicted_figure(*rows(0), figures.title_of("price", 0, 3)),
    ]


def test_figures_are_in_chinese_where_a_font_has_it(chinese_font, chinese, caplog, recwarn):
    """Titles, labels and legends are; metrics and what the user named are what they are."""
    drawn = every_figure()
    names = {"train_loss", "val_loss", "val_pearson", "price", "epoch", "RMSE"}
    for figure in drawn:
        assert set(re.findall(r"[A-Za-z_]{2,}", texts(figure))) <= names
        expect_png(drawing.png(figure))
    said = "\n".join(map(texts, drawn))
    for text in ("损失", "val_pearson", "最佳：第 3 轮", "最佳：0.30000（第 3 轮）", "第 2 次尝试"):
        assert text in said
    for text in ("第 2 到第 3 次尝试", "真实值", "price，2,001 行验证数据，第 3 轮", "行数"):
        assert text in said
    assert not caplog.records
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_without_a_font_figures_stay_english(no_fonts, chinese, caplog, recwarn):
    """No boxes, nothing escaped, and no warning: whoever named nothing in Chinese reads on."""
    drawn = every_figure()
    choose([])
    assert [texts(figure) for figure in drawn] == [texts(figure) for figure in every_figure()]
    for figure in drawn:
        expect_png(drawing.png(figure))
    assert not caplog.records
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_without_a_font_only_the_name_of_a_target_is_escaped(no_fonts, chinese, caplog):
    """Of the title around it nothing is, and it is warned of once."""
    title = figures.title_of("价格", 5, 3)
    for draw in (figures._residual_figure, figures._predicted_figure):
        shown = draw(*rows(5), title).get_suptitle()
        assert shown == r"\u4ef7\u683c, 5 validation rows, epoch 3"
    assert len(caplog.records) == 1


def test_a_character_that_no_font_has_costs_no_other(system_font, caplog):
    """Of a title what can be drawn is drawn."""
    assert fonts.drawable("价格 한", 80) == r"价格 \ud55c"
    assert len(caplog.records) == 1


@pytest.mark.parametrize("title", ["价" * 100, "格" * 39 + "a" * 50])
def test_a_wide_title_is_cut_by_its_width(system_font, title):
    """A Chinese character is as wide as two letters."""
    shown = fonts.drawable(title, 80)
    assert 39 <= len(shown) <= 42
    assert shown.endswith("…")


def test_drawing_leaves_matplotlib_as_it_was():
    """A training script that draws its own figures sees nothing of these."""
    before = dict(matplotlib.rcParams)
    figures.residuals(*rows(3000, spread=3), "Validation")
    curves.loss_curves(history(val_loss=[1.0]), {1: 1}, 1)
    assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_loaded_when_something_is_drawn_and_pyplot_never():
    """A run that draws nothing does not wait for it."""
    code = (
        "import sys; from onward.publish import curves; from onward.metrics import History\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import train.tabular.figures\n"
        "curves.loss_curves(History(), {}, None)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_equal_inputs_give_an_equal_picture():
    """Nothing in the file depends on when it is made."""
    assert figures.residuals(*rows(50), "a") == figures.residuals(*rows(50), "a")
