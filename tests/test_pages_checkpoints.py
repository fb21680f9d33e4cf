"""The page of checkpoints: whole in itself, whatever the run is called and whatever it measured."""

import dataclasses
import math
import re
import shlex
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.checkpoint.manifest import FileEntry, Manifest
from onward.metrics import History, Point
from onward.monitor import UNDECLARED, Monitor
from onward.options.command import Standing
from onward.publish import checkpoint_page as pages
from onward.publish import svg
from onward.publish.svg import MAX_POINTS
from onward.system import environment
from onward.words.language import choose

RUN_ID = "0123456789abcdef0123456789abcdef"
NASTY = "<script>alert(1)</script> & \"'><img src=x onerror=y>"
VOID = {"meta", "link", "img", "br", "hr", "input", "base"}


def checkpoint_page(run, name, state, manifests, of, monitor=UNDECLARED):
    """Return the page of a run that is judged by its correlation, or by `monitor`."""
    return pages.checkpoint_page(run, name, state, manifests, of, monitor)


def manifest(epoch, score=None, **changes):
    """Return the manifest of an epoch's end."""
    given = {
        "epoch": epoch,
        "step": 10 * epoch + changes.get("epoch_step", 0),
        "attempt": 1,
        "created": "2026-01-02T05:04:05+02:00",
        "kept": False,
        "metrics": {"train_loss": 0.25, "val_loss": 0.5, "val_pearson": score},
        "files": (FileEntry("checkpoint.pth", 31_400_000, "a" * 64),),
    }
    return Manifest(**given | changes)


def history(**values):
    """Return a history of metrics whose values are those of epochs 1, 2, …"""
    return History(
        Point(key, epoch, epoch, value)
        for key, of_key in values.items()
        for epoch, value in enumerate(of_key, start=1)
    )


MANIFESTS = [
    manifest(1, 0.5, kept=True),
    manifest(2, 0.75, attempt=2),
    manifest(3, 0.6, files=(FileEntry("checkpoint.pth", 2_500_000_000, "a" * 64),)),
    manifest(3, epoch_step=4, metrics={}),
    manifest(4, 0.7),
]
HISTORY = history(
    train_loss=[0.9, 0.8, 0.7, 0.6], val_loss=[1, 0.9, 0.8, 0.7], val_pearson=[0.5, 0.75, 0.6, 0.7]
)


class Page(HTMLParser):
    """What a page says, by element; fails on one that is not closed where it should be.

    Attributes:
        elements: (tag, attributes, text in it) in the order in which they are opened.
        rows: Texts of the cells of the table's rows, the heading first.
    """

    def __init__(self, html):
        super().__init__()
        self.elements, self.rows, self._open = [], [], []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])
        if tag not in VOID:
            self._open.append(self.elements[-1])

    def handle_startendtag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])

    def handle_endtag(self, tag):
        closed = self._open.pop()
        assert closed[0] == tag
        if tag == "tr":
            self.rows.append([])
            start = next(i for i, element in enumerate(self.elements) if element is closed)
            self.rows[-1] = [
                text for kind, _, text in self.elements[start:] if kind in ("td", "th")
            ]

    def handle_data(self, data):
        for element in self._open:
            element[2] += data

    def all(self, tag, style=None):
        """Return (attributes, text) of each such element, or of those of one class."""
        return [
            (attributes, text)
            for kind, attributes, text in self.elements
            if kind == tag and (style is None or style in attributes.get("class", "").split())
        ]

    def text(self, tag):
        """Return the text of the only such element."""
        [(_, text)] = self.all(tag)
        return text

    def cells(self):
        """Return one dict of column to text for each checkpoint."""
        return [dict(zip(self.rows[0], row, strict=True)) for row in self.rows[1:]]


def page(
    manifests=MANIFESTS,
    of=HISTORY,
    run_id=RUN_ID,
    name="a run",
    state="RUNNING",
    monitor=UNDECLARED,
):
    is_finished = state == "FINISHED"
    run = Standing(run_id, is_finished, MANIFESTS[-1].epoch, 4 if is_finished else 20)
    return Page(checkpoint_page(run, name, state, manifests, of, monitor))


def places(path):
    """Return the points (x, y) of a drawn line."""
    return [tuple(map(float, pair)) for pair in re.findall(r"[ML](\S+) ([^MLh]+)", path["d"])]


def test_the_page_is_in_the_language_of_whoever_trains():
    """Names of metrics and checkpoints, states and commands are what they are."""
    choose(["zh"])
    try:
        html = checkpoint_page(
            Standing(RUN_ID, False, 4, 20), "a run", "RUNNING", MANIFESTS, HISTORY
        )
    finally:
        choose([])
    assert '<html lang="zh">' in html
    shown = Page(html)
    assert shown.all("title")[0][1] == "a run：检查点"
    assert (
        shown.all("p")[1][1] == "最佳：epoch_2（val_pearson 0.75000） · 最新：epoch_4（第 40 步）"
    )
    assert [row["标记"] for row in shown.cells()] == ["最新", "", "", "最佳", "保留"]
    assert [row["接着训练"] for row in shown.cells()] == [row["go on"] for row in page().cells()]
    words = re.sub(r"<style>.*?</style>|<code>.*?</code>|<[^>]*>", " ", html, flags=re.DOTALL)
    known = (
        r"a run|RUNNING|epoch|(?:epoch|global_step)_\d+|val_pearson|train_loss|val_loss|UTC|[kMG]?B"
    )
    assert not re.search(r"[A-Za-z_]{2,}", re.sub(rf"\b(?:{known})\b", "", words))


def test_the_lines_of_a_command_end_before_an_option():
    """A browser breaks a long one after each hyphen, if it may; copied, it is one line."""
    words = [text for _, text in page().all("span") if text.startswith("-")]
    assert f"--resume_run {RUN_ID}" in words
    assert {"--resume_epoch 2", "--fork true"} <= set(words)


def test_the_title_tells_the_run_and_how_it_stands():
    """Name, state and run ID come first, then which checkpoint is best and which latest."""
    shown = page()
    assert shown.text("h1") == "a run"
    assert shown.all("title")[0][1] == "a run: checkpoints"
    lines = [text for _, text in shown.all("p")]
    assert lines[0] == f"RUNNING · run {RUN_ID}"
    assert lines[1] == "Best: epoch_2 (val_pearson 0.75000) · Latest: epoch_4 (step 40)"
    assert lines[2] == f"Go on: train run --resume_run {RUN_ID}"


def test_checkpoints_are_listed_newest_first():
    """Each row tells where in training, how good, how large, by which attempt and when (UTC)."""
    rows = page().cells()
    assert [row["checkpoint"] for row in rows] == [
        *("epoch_4", "global_step_34", "epoch_3", "epoch_2", "epoch_1")
    ]
    assert [row["epoch"] for row in rows] == ["4", "3 + 4 steps", "3", "2", "1"]
    assert [row["step"] for row in rows] == ["40", "34", "30", "20", "10"]
    assert [row["train_loss"] for row in rows] == ["0.25", "-", "0.25", "0.25", "0.25"]
    assert [row["val_loss"] for row in rows] == ["0.5", "-", "0.5", "0.5", "0.5"]
    assert [row["val_pearson"] for row in rows] == ["0.70000", "-", "0.60000", "0.75000", "0.50000"]
    assert [row["size"] for row in rows] == ["31.4 MB", "31.4 MB", "2.5 GB", "31.4 MB", "31.4 MB"]
    assert [row["attempt"] for row in rows] == ["1", "1", "1", "2", "1"]
    assert {row["created (UTC)"] for row in rows} == {"2026-01-02 03:04"}


def test_best_latest_and_kept_are_marked():
    """The best one, the latest one and those kept for good bear a mark, the others none."""
    assert [row["marks"] for row in page().cells()] == ["latest", "", "", "best", "kept"]
    [row] = page([manifest(1, 0.5, kept=True)]).cells()
    assert row["marks"] == "bestlatestkept"


@pytest.mark.parametrize("launched", [True, False])
def test_each_checkpoint_has_the_command_that_goes_on_from_it(monkeypatch, launched):
    """The latest goes on as the run; another as a fork, asked for by epoch or inside one by name.

    The command is in the form the user came by.
    """
    monkeypatch.setattr(environment, "launched_run_id", lambda: RUN_ID if launched else None)
    commands = [shlex.split(row["go on"]) for row in page().cells()]
    if launched:
        start, form = "mlflow run . --env-manager local", "-P {}={}"
    else:
        start, form = "train run", "--{} {}"
    expected = [
        {"resume_run": RUN_ID},
        *(
            {"resume_run": RUN_ID, "resume_epoch": key, "fork": "true"}
            for key in ("global_step_34", "3", "2", "1")
        ),
    ]
    assert commands == [
        shlex.split(" ".join([start, *(form.format(*item) for item in options.items())]))
        for options in expected
    ]


def test_commands_and_ids_are_selected_whole():
    """One click marks all of a command, so that none is pasted in part."""
    shown = page()
    codes = [text for _, text in shown.all("code")]
    assert all(row["go on"] in codes for row in shown.cells())
    [rule] = re.findall(r"\ncode \{(.*?)\}", shown.text("style"), re.DOTALL)
    assert re.search(r"[^-]user-select: all;", rule)


@pytest.mark.parametrize("manifests", [[], MANIFESTS])
def test_nothing_is_fetched_or_run(manifests):
    """No script, no link, no picture and no address: the page works in a frame without rights."""
    html = checkpoint_page(Standing(RUN_ID, False, 4), "a run", "RUNNING", manifests, HISTORY)
    shown = Page(html)
    fetching = {"script", "link", "img", "iframe", "object", "base", "a", "form"}
    assert not fetching & {tag for tag, _, _ in shown.elements}
    assert not re.search(r"https?:|//|url\(|@import|javascript:", html)
    for _, attributes, _ in shown.elements:
        assert not {"src", "href", "style"} & set(attributes)
        assert not [key for key in attributes if key.startswith("on")]


def test_the_page_is_for_light_dark_and_narrow_screens():
    """Both schemes have their colours, the width is the screen's, and only the table scrolls."""
    shown = page()
    metas = {a.get("name"): a.get("content") for a, _ in shown.all("meta")}
    assert metas["color-scheme"] == "light dark"
    assert metas["viewport"] == "width=device-width, initial-scale=1"
    style = shown.text("style")
    light, dark = re.search(r":root \{(.*?)\}.*?dark\) \{ :root \{(.*?)\}", style, re.S).groups()
    colours = re.compile(r"(--\w+): #")
    assert set(colours.findall(light)) == set(colours.findall(dark))
    assert set(colours.findall(light)) >= set(re.findall(r"var\((--\w+)\)", style))
    assert ".table { overflow-x: auto;" in style
    assert len(shown.all("div", "table")) == 1


@pytest.mark.parametrize("where", ["run_id", "name", "state"])
def test_what_comes_from_outside_is_escaped(where):
    """Markup in a name is shown as it is written and makes no element."""
    plain, shown = page(), page(**{where: NASTY})
    assert [tag for tag, _, _ in shown.elements] == [tag for tag, _, _ in plain.elements]
    assert any(NASTY in text for _, _, text in shown.elements)
    assert [set(a) for _, a, _ in shown.elements] == [set(a) for _, a, _ in plain.elements]


def test_a_finished_run_goes_on_to_more_epochs():
    """The command of the newest one is not refused: a finished run needs a larger `epochs`."""
    newest, *older = (row["go on"] for row in page(state="FINISHED").cells())
    assert newest.endswith(f"{RUN_ID} --epochs {2 * MANIFESTS[-1].epoch}")
    assert all(f"--fork true --epochs {2 * MANIFESTS[-1].epoch}" in row for row in older)


def test_a_run_id_that_is_no_word_stays_one_in_the_command():
    """What is pasted into a shell is quoted for it."""
    [row] = page([manifest(1, 0.5)], run_id=NASTY).cells()
    assert shlex.split(row["go on"])[-1] == NASTY


def test_the_curve_marks_best_and_checkpoints():
    """Each checkpoint is a circle on the curve with its name; the best is another, and on top."""
    shown = page()
    labels = [a["aria-label"] for a, _ in shown.all("svg") if "aria-label" in a]
    assert labels == ["val_pearson by epoch, from 0.5 to 0.75", "Loss by epoch, from 0.6 to 1"]
    circles = [(a, text) for a, text in shown.all("circle") if text]
    assert [(a["class"], text) for a, text in circles] == [
        ("saved", "epoch_1: val_pearson 0.50000"),
        ("saved", "epoch_3: val_pearson 0.60000"),
        ("saved", "global_step_34: val_pearson -"),
        ("saved", "epoch_4, latest: val_pearson 0.70000"),
        ("best", "epoch_2, best: val_pearson 0.75000"),
    ]
    [path] = [a for a, text in shown.all("path", "curve") if text == "val_pearson"]
    on_curve = {(float(a["cx"]), float(a["cy"])) for a, text in circles if "global" not in text}
    assert on_curve == set(places(path))


def test_axes_tell_the_least_and_the_greatest():
    """The ends of the values and of the epochs are written beside each drawing."""
    texts = [text for _, text in page().all("text")]
    assert texts == ["0.5", "0.75", "epoch 1", "epoch 4", "0.6", "1", "epoch 1", "epoch 4"]


def test_higher_is_drawn_higher():
    """The greatest correlation is at the top of the drawing, the newest epoch at the right."""
    [path] = [a for a, text in page().all("path", "curve") if text == "val_pearson"]
    points = places(path)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert min(points, key=lambda point: point[1]) == points[1]
    assert max(points, key=lambda point: point[1]) == points[0]


def test_losses_that_range_wide_are_drawn_on_a_log_scale():
    """An early loss far above the others does not flatten the rest; the page says so."""
    wide = page([], history(val_loss=[100.0, 10.0, 1.0]))
    [path] = [a for a, text in wide.all("path", "curve") if text == "val_loss"]
    (_, first), (_, second), (_, third) = places(path)
    assert second - first == pytest.approx(third - second, abs=0.2)
    assert "log scale" in wide.text("figcaption")
    for losses in ([2.0, 1.0], [100.0, 0.0], [100.0, -1.0]):
        assert "log scale" not in page([], history(val_loss=losses)).text("figcaption")


def test_a_value_that_is_not_finite_breaks_the_line():
    """A gap is shown as one, and a value that stands alone between two is a dot."""
    nan = math.nan
    shown = page([], history(val_pearson=[0.1, 0.2, nan, 0.3, math.inf, 0.4, 0.5]))
    [line] = [a["d"] for a, text in shown.all("path", "curve") if text and "dots" not in a["class"]]
    [dots] = [a["d"] for a, _ in shown.all("path", "dots")]
    assert re.sub(r"[^MLh]", "", line) == "MLML"
    assert re.sub(r"[^MLh]", "", dots) == "Mh"


def test_nothing_yet_is_said():
    """Without a checkpoint there is a sentence and no table, without a value no drawing."""
    shown = page([], History())
    assert "No checkpoint yet." in [text for _, text in shown.all("p")]
    assert not shown.all("table")
    assert not shown.all("svg")
    nan = history(val_pearson=[math.nan], train_loss=[math.inf])
    assert not page([], nan).all("svg")


def test_checkpoints_without_a_correlation_have_no_best():
    """The latest is told all the same."""
    shown = page([manifest(1), manifest(2)], History())
    line = shown.all("p")[1][1]
    assert line == "No checkpoint has a value of val_pearson yet · Latest: epoch_2 (step 20)"
    assert [row["marks"] for row in shown.cells()] == ["latest", ""]


def test_a_single_epoch_is_a_dot():
    """One value has no range; it is drawn in the middle, and named once."""
    shown = page([manifest(1, 0.5)], history(val_pearson=[0.5]))
    [mark] = [a for a, text in shown.all("circle") if text]
    [dots] = [a for a, text in shown.all("path", "dots") if text == "val_pearson"]
    assert places(dots) == [(float(mark["cx"]), float(mark["cy"]))]
    assert places(dots) == [
        (
            (svg._LEFT + svg._RIGHT) / 2,
            (svg._TOP + svg._BOTTOM) / 2,
        )
    ]
    assert [text for _, text in shown.all("text")][:2] == ["0.5", "epoch 1"]


def test_what_the_history_lacks_is_drawn_from_the_checkpoints():
    """A run whose history is not at hand has a curve through its checkpoints."""
    shown = page(of=History())
    [path] = [a for a, text in shown.all("path", "curve") if text == "val_pearson"]
    assert len(places(path)) == 4


def test_a_checkpoint_without_a_value_breaks_the_line_only_where_the_history_has_none():
    """What the history tells of an epoch counts more than what its checkpoint does not."""
    odd = [manifest(2), manifest(4)]
    scores = History(Point("val_pearson", epoch, 1, 0.1 * epoch) for epoch in (1, 2, 3, 5, 6))
    scores.add(Point("val_pearson", 7, 1, math.nan))
    scores.add(Point("val_pearson", 8, 1, 0.1))
    scores.add(Point("val_pearson", 9, 1, 0.1))
    shown = page(odd, scores)
    [path] = [a for a, text in shown.all("path", "curve") if text == "val_pearson"]
    assert re.sub(r"[^ML]", "", path["d"]) == "MLLMLML"


def test_the_largest_numbers_keep_their_places():
    """A range beyond the largest double is drawn from end to end like any other."""
    shown = page([], history(val_loss=[1.5e308, 0.0, -1.5e308]))
    [path] = [a for a, text in shown.all("path", "curve") if text == "val_loss"]
    ends = (svg._TOP, svg._BOTTOM)
    assert [y for _, y in places(path)] == [ends[0], sum(ends) / 2, ends[1]]


numbers = st.none() | st.floats() | st.sampled_from([math.nan, math.inf, 1e308, -1e308, 5e-324])
metrics = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("train_loss", "val_loss", "val_pearson"), numbers)
)


@given(
    st.lists(st.tuples(st.integers(0, 50), metrics)), st.dictionaries(st.integers(0, 50), metrics)
)
def test_odd_values_break_nothing(measured, saved):
    """Whatever was measured, the page is whole and every place in it is a number in the drawing."""
    points = History(
        Point(key, epoch, 1, value)
        for epoch, values in measured
        for key, value in values.items()
        if value is not None
    )
    shown = page([manifest(epoch, metrics=saved[epoch]) for epoch in sorted(saved)], points)
    assert len(shown.cells() if saved else []) == len(saved)
    for attributes, _ in shown.all("path", "curve"):
        if attributes["d"] == "M1 6H11":  # of the caption
            continue
        for x, y in places(attributes):
            assert 0 <= x <= svg._WIDTH
            assert 0 <= y <= svg._HEIGHT
    for attributes, _ in shown.all("circle"):
        assert math.isfinite(float(attributes["cx"]) + float(attributes["cy"]))


@pytest.mark.parametrize("created", ["0001-01-01T00:00:00+10:00", "yesterday <b>"])
def test_an_odd_time_is_shown_as_it_is(created):
    """A time that cannot be told in UTC does not cost the page."""
    [row] = page([manifest(1, 0.5, created=created)]).cells()
    assert row["created (UTC)"] == created


def test_thousands_of_epochs_stay_small():
    """A curve has MAX_POINTS at most, and its peak, first and last epoch are among them."""
    scores = [0.5 + 0.1 * math.sin(epoch) for epoch in range(10_000)]
    scores[7_777] = 0.9
    many = history(train_loss=scores, val_loss=scores, val_pearson=scores)
    shown = [manifest(epoch, scores[epoch - 1]) for epoch in (5_000, 7_778, 10_000)]
    html = checkpoint_page(Standing(RUN_ID, False, 4), "a run", "RUNNING", shown, many)
    assert len(html) < 40_000
    [path] = [a for a, text in Page(html).all("path", "curve") if text == "val_pearson"]
    points = places(path)
    assert 100 < len(points) <= MAX_POINTS
    assert min(y for _, y in points) == svg._TOP
    assert (points[0][0], points[-1][0]) == (svg._LEFT, svg._RIGHT)


def test_thousands_of_checkpoints_are_not_all_marked():
    """The table has every one; the drawing has some, and always the best and the latest."""
    many = [manifest(epoch, 0.9 if epoch == 2 else 0.5) for epoch in range(1, 2_001)]
    shown = page(many, History())
    titles = [text for _, text in shown.all("circle") if text]
    assert len(shown.cells()) == 2_000
    assert len(titles) <= MAX_POINTS + 1
    assert titles[-1].startswith("epoch_2, best")
    assert titles[-2].startswith("epoch_2000, latest")


def test_equal_inputs_give_an_equal_page():
    """Nothing of the page depends on when it is made, so it need not be sent again."""
    again = [dataclasses.replace(one) for one in MANIFESTS]
    run = Standing(RUN_ID, False, 4)
    assert checkpoint_page(run, "a", "b", MANIFESTS, HISTORY) == checkpoint_page(
        run, "a", "b", again, HISTORY
    )


RMSE = Monitor("val_rmse", "min")
ERRORS = [0.5, 0.25, 0.75]


def judged(monitor, values=ERRORS):
    """Return checkpoints of a run that is judged by another metric."""
    return [
        manifest(epoch, metrics={"val_loss": 0.5, monitor.name: value}, monitor=monitor)
        for epoch, value in enumerate(values, 1)
    ]


def test_of_a_run_that_minimises_the_least_is_best():
    """In the line, in the table, and in the drawing, which is of that metric."""
    shown = page(judged(RMSE), history(val_loss=[1, 2, 3], val_rmse=ERRORS), monitor=RMSE)
    line = shown.all("p")[1][1]
    assert line == "Best: epoch_2 (val_rmse 0.25000) · Latest: epoch_3 (step 30)"
    assert [row["val_rmse"] for row in shown.cells()] == ["0.75000", "0.25000", "0.50000"]
    assert [row["marks"] for row in shown.cells()] == ["latest", "best", ""]
    assert "val_pearson" not in shown.cells()[0]
    labels = [a["aria-label"] for a, _ in shown.all("svg") if "aria-label" in a]
    assert labels == ["val_rmse by epoch, from 0.25 to 0.75", "Loss by epoch, from 1 to 3"]
    assert [text for a, text in shown.all("circle") if text and a["class"] == "best"] == [
        "epoch_2, best: val_rmse 0.25000"
    ]


def test_a_run_that_is_judged_by_its_loss_has_one_column_of_it():
    """It is the metric that decides, beside the other loss."""
    loss = Monitor("val_loss", "min")
    shown = page(judged(loss), history(train_loss=[3, 2, 1], val_loss=ERRORS), monitor=loss)
    assert shown.rows[0].count("val_loss") == 1
    assert [row["val_loss"] for row in shown.cells()] == ["0.75000", "0.25000", "0.50000"]
    assert shown.all("p")[1][1].startswith("Best: epoch_2 (val_loss 0.25000)")


def test_a_name_of_a_metric_is_escaped():
    """It is of a task of somebody's own, or what a store says."""
    plain = page(judged(RMSE), history(val_rmse=ERRORS), monitor=RMSE)
    nasty = Monitor(NASTY, "min")
    shown = page(judged(nasty), history(**{NASTY: ERRORS}), monitor=nasty)
    assert [tag for tag, _, _ in shown.elements] == [tag for tag, _, _ in plain.elements]
    assert [set(a) for _, a, _ in shown.elements] == [set(a) for _, a, _ in plain.elements]
    assert NASTY in shown.rows[0]
    labels = [a["aria-label"] for a, _ in shown.all("svg") if "aria-label" in a]
    assert labels[0] == f"{NASTY} by epoch, from 0.25 to 0.75"


def test_a_large_value_of_a_metric_stays_short():
    """A loss may be anything; hundreds of digits tell nobody more."""
    shown = page(judged(RMSE, [1e300, 2e9]), history(val_rmse=[1e300, 2e9]), monitor=RMSE)
    assert [row["val_rmse"] for row in shown.cells()] == ["2e+09", "1e+300"]
    assert max(len(text) for _, text in shown.all("title")) < 80
    assert "(val_rmse 2e+09)" in shown.all("p")[1][1]
