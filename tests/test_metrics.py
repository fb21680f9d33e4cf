"""A history records each (key, step) once, and comes back from a file to the last bit."""

import io
import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onward import metrics
from onward.metrics import History, Point, is_wall_clock

points = st.lists(
    st.builds(
        Point,
        st.sampled_from(["train_loss", "val_loss", "lr"]),
        st.integers(0, 10_000),
        st.integers(0, 2**53),  # milliseconds, to the year 287,396
        st.floats(width=64),
    )
)


def bits(history):
    """Return the points with their values as bytes, so that NaN equals itself."""
    return [(*point[:3], struct.pack("d", point.value)) for point in history]


@given(points)
def test_a_step_is_recorded_once(drawn):
    """The first value of a (key, step) stays, and `add` says whether it was taken."""
    history, first = History(), {}
    for point in drawn:
        where = (point.key, point.step)
        assert history.add(point) == (where not in first)
        first.setdefault(where, point)
    assert len(list(history)) == len(first)
    for where, point in first.items():
        assert bits([history.get(*where)]) == bits([point])


@given(points)
def test_history_comes_back_from_a_file_exactly(drawn):
    """Values with NaN and infinities, and times to the millisecond, survive a checkpoint."""
    history, file = History(drawn), io.BytesIO()
    torch.save(history.state_dict(), file)
    file.seek(0)
    loaded = History([Point("old", 1, 1, 1.0)])
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert sorted(bits(loaded)) == sorted(bits(history))
    assert loaded.keys() == history.keys()


@given(points)
def test_points_come_oldest_step_first(drawn):
    """Whatever the order of recording, publishing goes up the steps."""
    steps = [point.step for point in History(drawn)]
    assert steps == sorted(steps)


@given(points, points)
def test_missing_from_is_what_the_other_has_not(drawn, known):
    """What is left to publish is every (key, step) that is not published, in order."""
    history, other = History(drawn), History(known)
    missing = history.missing_from(other)
    expected = [p for p in history if other.get(p.key, p.step) is None]
    assert bits(missing) == bits(expected)
    assert bits(history.missing_from(History())) == bits(history)
    assert history.missing_from(history) == []


def test_values_by_key_and_by_step():
    """Curves and the metrics of one epoch can be read back."""
    history = History([Point("a", 1, 10, 0.1), Point("b", 1, 11, 0.2), Point("a", 2, 20, 0.3)])
    assert history.keys() == ["a", "b"]
    assert history.values("a") == [0.1, 0.3]
    assert history.values("none") == []
    assert history.at(1) == {"a": 0.1, "b": 0.2}
    assert history.at(3) == {}
    assert history.last_timestamp_ms() == 20
    assert History().last_timestamp_ms() == 0


def test_state_is_one_tensor_a_key_and_does_not_change_later():
    """A captured state keeps what it saw while training goes on."""
    history = History([Point("a", 1, 10, math.nan)])
    state = history.state_dict()
    history.add(Point("a", 2, 20, 1.0))
    assert state["a"].dtype == torch.float64
    assert state["a"].shape == (1, 3)
    assert history.state_dict()["a"].shape == (2, 3)


def steps_of(state):
    return {key: rows[:, 0].tolist() for key, rows in state.items()}


def test_a_checkpoint_leaves_out_what_is_old_and_published(monkeypatch):
    """Of each metric the newest stay, what is nowhere else, and the value that was asked for."""
    monkeypatch.setattr(metrics, "MAX_ROWS", 3)
    rows = [Point(key, step, 1000 * step, step / 10) for step in range(8) for key in ("a", "b")]
    history, published = History(rows), History(row for row in rows if row.step < 2)
    assert steps_of(history.state_dict()) == {"a": [*range(8)], "b": [*range(8)]}
    assert steps_of(history.state_dict(published)) == {"a": [*range(2, 8)], "b": [*range(2, 8)]}
    for row in rows[4:]:
        published.add(row)
    found = history.state_dict(published, ("b", 1))
    assert steps_of(found) == {"a": [5, 6, 7], "b": [1, 5, 6, 7]}
    assert found["b"][0].tolist() == [1, 1000, 0.1]
    assert steps_of(history.state_dict(published, ("b", 6))) == {"a": [5, 6, 7], "b": [5, 6, 7]}
    assert steps_of(history.state_dict(published, ("b", 99)))["b"] == [5, 6, 7]


def test_what_was_left_out_is_found_among_what_is_published(monkeypatch):
    """And nothing that is newer, or of another metric."""
    monkeypatch.setattr(metrics, "MAX_ROWS", 3)
    published = History(Point(key, s, 1000 * s, 0.5) for s in range(8) for key in ("a", "system/x"))
    whole = History(Point("a", step, 1000 * step, 0.5) for step in range(6))
    history = History()
    history.load_state_dict(whole.state_dict(published, ("a", 1)))
    assert history.may_be_cut
    assert [(p.key, p.step) for p in history.before(published)] == [("a", 0), ("a", 2)]
    assert history.newest("a") == [0.5] * 3


def test_what_a_checkpoint_takes_does_not_grow_with_the_epochs_before_it():
    """Its size and what is looked at: each row of the past is looked at once."""
    history, published = History(), History()
    looked = 0

    class Counted(dict):
        def __contains__(self, where):
            nonlocal looked
            looked += 1
            return super().__contains__(where)

    sizes = []
    for step in range(3 * metrics.MAX_ROWS):
        point = Point("a", step, step, 0.5)
        history.add(point)
        published.add(point)
        published._row_of = Counted(published._row_of) if not step else published._row_of
        if step % 100 == 99:
            sizes.append(len(history.state_dict(published)["a"]))
    assert max(sizes) == metrics.MAX_ROWS
    assert looked <= 2 * len(published._row_of) + len(sizes)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("epoch_seconds", True),
        ("samples_per_second", True),
        ("checkpoint_seconds", True),
        ("system/epoch_seconds", True),
        ("system/cpu", True),
        ("val_loss", False),
        ("best_epoch", False),
        ("lr", False),
    ],
)
def test_wall_clock_metrics_are_known_by_name(key, expected):
    """Two equal runs may differ in these metrics, and in no other."""
    assert is_wall_clock(key) is expected
