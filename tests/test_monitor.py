"""Which metric decides, and which way: never NaN, never infinity, the older of equals."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.errors import UsageError
from onward.monitor import MAX_NAME_CHARS, UNDECLARED, Best, Monitor
from train.tabular.options import Config

HIGHEST, LOWEST = Monitor("acc"), Monitor("loss", "min")
# Also as MLflow gives infinity back.
NOTHING = [math.nan, math.inf, -math.inf, 1.7976931348623157e308, -1.7976931348623157e308]
values = st.floats(-1e6, 1e6) | st.sampled_from([0.0, -0.0, 0.5, *NOTHING])
numbers = st.lists(values, max_size=12).map(lambda drawn: list(enumerate(drawn, start=1)))


@pytest.mark.parametrize(
    ("monitor", "best"),
    [(HIGHEST, Best(0.9, 2)), (LOWEST, Best(-0.5, 4))],
)
def test_the_direction_decides_which_is_best(monitor, best):
    """The highest, or the lowest; a tie keeps the older epoch."""
    assert monitor.best(enumerate([0.5, 0.9, 0.9, -0.5, -0.5], start=1)) == best


@pytest.mark.parametrize("value", NOTHING)
@pytest.mark.parametrize("monitor", [HIGHEST, LOWEST, UNDECLARED])
def test_what_is_not_finite_is_never_best(monitor, value):
    """Not where it would be the highest, nor the lowest; and any number is better than it."""
    assert monitor.score(value) is None
    assert not monitor.is_better(value, None)
    assert not monitor.is_better(value, 0.5)
    assert monitor.is_better(0.5, value)
    assert monitor.best([(1, value)]) is None
    assert monitor.best([(1, value), (2, 0.5), (3, value)]) == Best(0.5, 2)


@pytest.mark.parametrize("monitor", [HIGHEST, LOWEST])
def test_no_value_at_all_is_better_than_nothing(monitor):
    """Where the metric was not reported there is nothing to compare."""
    assert not monitor.is_better(None, None)
    assert not monitor.is_better(None, 0.1)
    assert monitor.is_better(0.0, None)
    assert monitor.best([]) is None


@given(numbers, st.sampled_from([HIGHEST, LOWEST]))
def test_the_best_is_the_oldest_of_the_extreme_finite_values(measured, monitor):
    """As a search through all of them finds it."""
    finite = [(epoch, value) for epoch, value in measured if monitor.score(value) is not None]
    best = monitor.best(measured)
    if not finite:
        assert best is None
        return
    extreme = (max if monitor.direction == "max" else min)(value for _, value in finite)
    assert best == next(Best(value, epoch) for epoch, value in finite if value == extreme)


@given(numbers, st.integers(0, 12), st.sampled_from([HIGHEST, LOWEST]))
def test_what_was_found_before_a_stop_is_what_is_found_after_it(measured, cut, monitor):
    """Going on from the best so far gives what all of them give: nothing else is kept."""
    before = monitor.best(measured[:cut])
    rest = measured[cut:] if before is None else [(before.epoch, before.value), *measured[cut:]]
    assert monitor.best(rest) == monitor.best(measured)


@given(numbers)
def test_to_maximise_is_to_minimise_upside_down(measured):
    """The two directions are one rule."""
    upside_down = [(epoch, -value) for epoch, value in measured]
    one, other = HIGHEST.best(measured), LOWEST.best(upside_down)
    assert (one and (one.epoch, one.value)) == (other and (other.epoch, -other.value))


@given(st.lists(st.floats(-1e6, 1e6)), st.sampled_from([HIGHEST, LOWEST]))
def test_ranks_sort_from_the_best_down(drawn, monitor):
    """What is better has the lower rank."""
    ordered = sorted(drawn, key=monitor.rank)
    assert ordered == sorted(drawn, reverse=monitor.direction == "max")
    for better, worse in itertools.pairwise(ordered):
        assert monitor.is_better(better, worse) == (better != worse)


def test_a_run_that_declares_none_is_judged_by_its_correlation():
    """As those of the first versions: more than 1, but for rounding, is nonsense in a tag."""
    assert Monitor("val_pearson", "max") == UNDECLARED
    assert UNDECLARED.score(1.0000001) == 1.0000001
    assert UNDECLARED.score(-1.0000001) == -1.0000001
    assert UNDECLARED.score(5.0) is None
    assert not UNDECLARED.is_better(5.0, 0.5)
    assert Monitor("val_loss").score(5.0) == 5.0


@pytest.mark.parametrize(
    ("text", "name", "direction"),
    [
        ("loss:min", "loss", "min"),
        ("val/acc:max", "val/acc", "max"),
        ("a:b:min", "a:b", "min"),
        ("Verlust (m²):min", "Verlust (m²)", "min"),
    ],
)
def test_it_is_written_as_name_and_direction_and_read_again(text, name, direction):
    """A name may hold a colon: the last one counts."""
    found = Monitor.parse(text)
    assert (found.name, found.direction, str(found)) == (name, direction, text)


def test_that_of_undeclared_runs_is_itself_when_it_is_read():
    """Its limit is not written, and counts all the same."""
    found = Monitor.parse(str(UNDECLARED))
    assert found is UNDECLARED
    assert Monitor.parse("val_pearson:min").score(5.0) == 5.0


REFUSED = [
    "", ":", "loss", ":min", "loss:", "loss:MIN", "loss:down", "loss: min", " loss:min",
    "loss :min", f"{'x' * (MAX_NAME_CHARS + 1)}:min",
]  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_metric_and_direction_is_refused(text):
    """By the class, and in one line where it is given as an option."""
    with pytest.raises(ValueError):  # noqa: PT011
        Monitor.parse(text)
    with pytest.raises(UsageError, match="not a metric and its direction") as caught:
        Config(monitor=text)
    assert "\n" not in str(caught.value)


def test_a_name_as_long_as_mlflow_takes_it_is_one():
    """And no longer."""
    assert Monitor("x" * MAX_NAME_CHARS).name == "x" * MAX_NAME_CHARS
    with pytest.raises(ValueError, match="no name of a metric"):
        Monitor("x" * (MAX_NAME_CHARS + 1))
    with pytest.raises(ValueError, match="not one of max, min"):
        Monitor("loss", "lowest")
