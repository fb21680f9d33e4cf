"""What is told of a table: stored in English with its data, shown in the reader's language."""

from __future__ import annotations

from train.language import later, retold

# As `Preprocessing.report` and `prepare` word them.
_SENTENCES = (
    later("{rows} rows: {train} to train on, {val} to validate on."),
    later("{rows} rows without a value in '{target}' dropped."),
    later("Features: {numeric} numeric (from {columns} columns), {categorical} categorical."),
    later(
        "Of column '{name}' the {number} most frequent values have a code of their own, {rare} "
        "rare ones share one."
    ),
    later("Left out: {names} (dropped as asked)."),
    later("Left out: {names} (the same in all training rows)."),
    later("Left out: {names} (nearly every value different, like an identifier)."),
    later("Left out: {names} (of type {kind})."),
    later("Target '{target}' is the same in all training rows."),
    later("Target '{target}' is trained on a logarithmic scale, standardised."),
    later("Target '{target}' is trained on a linear scale, standardised."),
    later("{names} and {number} more"),
)


def told(sentence: str) -> str:
    """Return a sentence of `Dataset.report` in the chosen language."""
    return retold(sentence, _SENTENCES)
