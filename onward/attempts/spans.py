"""Which epochs an attempt did: in the words of a run's tags, and read back from them."""

from __future__ import annotations

from collections.abc import Mapping

from onward.metrics import EPOCH, UNITS
from onward.system.untrusted import whole_number
from onward.tracking.names import ATTEMPT_TAG


def first_epochs(tags: Mapping[str, str]) -> dict[int, int]:
    """Return the epoch that each attempt of a run began with, by number, as its tags tell.

    One that did no epoch is left out.

    >>> first_epochs({"train.attempt.1": "epochs 1-3 on a, failed", "train.attempt.2": "no epoch"})
    {1: 1}
    """
    found = {
        number: first
        for key, words in tags.items()
        if key.startswith(ATTEMPT_TAG)
        and (number := whole_number(key.removeprefix(ATTEMPT_TAG))) is not None
        and (first := first_epoch(words)) is not None
    }
    return dict(sorted(found.items()))


def first_epoch(words: str) -> int | None:
    """Return with which epoch an attempt began, of which `words` tell; None if with none."""
    for unit in UNITS:
        words = words.removeprefix(f"{unit}s ")
    return whole_number(words.partition("-")[0])


def epochs_in_words(first: int, last: int | None, unit: str = EPOCH) -> str:
    """Return "epochs 3-7"; `last` is None as long as the attempt runs.

    >>> epochs_in_words(3, 7), epochs_in_words(3, None, "step"), epochs_in_words(3, 2)
    ('epochs 3-7', 'steps 3-…', 'no epoch')
    """
    if last is not None and last < first:
        return f"no {unit}"
    return f"{unit}s {first}-{'…' if last is None else last}"
