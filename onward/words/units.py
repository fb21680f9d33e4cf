"""What a run counts, in the language of whoever reads it."""

from __future__ import annotations

from onward.words.language import _


def in_unit(unit: str) -> str:
    """Return the word for an epoch, or for a step.

    >>> in_unit("step")
    'step'
    """
    return {"epoch": _("epoch"), "step": _("step")}[unit]


def counted(unit: str, number: int) -> str:
    """Return an epoch, or a step, by its number.

    >>> counted("epoch", 3)
    'epoch 3'
    """
    told = {"epoch": _("epoch {number}"), "step": _("step {number}")}[unit]
    return told.format(number=number)
