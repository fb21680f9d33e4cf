"""What is told of a table: stored in English with its data, shown in the reader's language."""

from __future__ import annotations

from typing import Final

from onward.words.language import later, retold

_MAX_LENGTH: Final = 2000  # no sentence of ours is longer; of others, so long a one takes no time

# As the modules of this package word them. The first that fits counts: the longer ones first.
_SENTENCES: Final = (
    later("{rows} rows: {train} to train on, {val} to validate on."),
    later("{rows} rows without a value in '{target}' dropped."),
    later(
        "The table is text in {encoding}, separated by {separator}, with decimal commas in "
        "{columns}."
    ),
    later("The table is text in {encoding}, separated by {separator}."),
    later("The table is text separated by {separator}, with decimal commas in {columns}."),
    later("The table is text separated by {separator}."),
    later("The table is text in {encoding}."),
    later("The table is sheet '{name}', the first of {number}."),
    later("No Parquet, not read: {names}."),
    later("No arrays, not read: {names}."),
    later("Column '{name}' is {kind}; what is none counts as missing ({number}): {places}."),
    later(
        "Column '{name}' stays text: in dates such as {example} day and month are not told "
        "apart; write 2024-01-31."
    ),
    later("Features: {numeric} numeric (from {columns} columns), {categorical} categorical."),
    later(
        "Of column '{name}' the {number} most frequent values have a code of their own, {rare} "
        "rare ones share one."
    ),
    later("Left out: {names} (dropped as asked)."),
    later("Left out: {names} (a saved pandas index: keep_index=true takes it)."),
    later("Left out: {names} (the same in all training rows)."),
    later("Left out: {names} (nearly every value different, like an identifier)."),
    later("Left out: {names} (of type {type})."),
    later("Target '{target}' is the same in all training rows."),
    later("Target '{target}' is trained on a logarithmic scale, standardised."),
    later("Target '{target}' is trained on a linear scale, standardised."),
)
_PLACES: Final = (later("{value} in row {row}, {places}"), later("{value} in row {row}"))
_PARTS: Final = {
    "names": (later("{names} and {number} more"),),
    "encoding": (later("UTF-8 with a byte order mark"),),
    "separator": (later("tabs"),),
    "columns": (later("1 column"), later("{number} columns")),
    "kind": (later("numbers"), later("dates")),
    "places": _PLACES,
}


def told(sentence: str) -> str:
    """Return a sentence of `Dataset.report` in the chosen language."""
    return retold(sentence, _SENTENCES, _PARTS) if len(sentence) <= _MAX_LENGTH else sentence
