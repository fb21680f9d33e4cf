"""`make soak` fails where what a process holds grows, and not where it goes up and down."""

import random

import pytest
from flat import FLAT, rising, told

HELD = {"memory": 300e6, "files": 12, "threads": 7, "spool": 1e6}


def life(process=1, length=400, grows=None, **more):
    """Return the samples of a process; of `grows` it holds half as much again in the end."""
    draw, found, calls = random.Random(0), [], 0
    for epoch in range(length):
        share = epoch / length
        calls += round(20 * (1 + share)) if grows == "calls an epoch" else draw.randrange(18, 23)
        held = {
            k: v * (1 + (share if k == grows else 0.02 * draw.random())) for k, v in HELD.items()
        }
        if grows == "spool":
            held["spool"] *= 1 + 9 * share
        found.append({"seconds": epoch, "process": process, "epoch": epoch, "calls": calls, **held})
    return found


@pytest.mark.parametrize("grows", FLAT)
def test_what_grows_is_told(grows):
    """Each of what is looked at, by itself."""
    assert [words.partition(":")[0] for words in rising(life(grows=grows))] == [grows]


def test_what_stays_is_not_told():
    """Nor what others held, that did not live so long."""
    assert rising([*life(2, 100, grows="memory"), *life()]) == []
    assert "| memory, MB | 303" in told(life())
    assert told(life(length=20)) == "too short to tell what grows"
