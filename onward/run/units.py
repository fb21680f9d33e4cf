"""What a loop may ask of its units, epochs or steps: one range over all of them, in a run open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onward.errors import UsageError
from onward.words.language import _


def require_range(numbers: Any, unit: str) -> Sequence[int]:
    """Return the numbers of all units of a loop.

    Raises:
        UsageError: They have no length.
    """
    if not isinstance(numbers, Sequence):
        told = _("run.{unit}s takes a range of all its {unit}s, such as range(50)")
        raise UsageError(told.format(unit=unit))
    return numbers


def require_expected(
    number: int, unit: str, done: int, is_entered: bool, is_expecting: bool
) -> None:
    """Make sure that a loop of so many units can begin.

    Args:
        number: Of all units.
        unit: What they are.
        done: How many of them the run has behind it.
        is_entered: Whether the run is open.
        is_expecting: Whether such a loop has begun before.

    Raises:
        UsageError: It cannot.
    """
    if not is_entered:
        told = _("the run is not entered: write `with onward.open_run(...) as run:`")
        raise UsageError(told)
    if is_expecting:
        raise UsageError(
            _("run.{unit}s is iterated already, and a run has one such loop: give it one range "
              "over everything").format(unit=unit)
        )  # fmt: skip
    if number < done:
        raise UsageError(
            _("run.{unit}s got {number}, and the run has {done} behind it: give it the whole "
              "range, as long as before or longer")
            .format(unit=unit, number=number, done=done)
        )  # fmt: skip
