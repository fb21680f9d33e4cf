"""Commands as a shell takes them: whatever a word holds, it is one word."""

from __future__ import annotations

import shlex


def quoted(*words: object) -> str:
    """Return words as one line of a shell.

    >>> quoted("ls", "my data")
    "ls 'my data'"
    """
    return shlex.join(map(str, words))


OF_TASK = {"publish", "sync"}  # what has to know what is trained, if it is not the table
# What both programs do; the rest only the trainer.
OF_BOTH = {"list", "verify", "prune", "export", "show", "ui", "sync", "launch", "plan"}

_program = "onward"  # the one of the two that this process is of
_task = ""  # what it trains, as it was named


def set_program(name: str) -> None:
    """Know which program's commands are told: "onward", as it is from the start, or "train"."""
    global _program
    _program = name


def set_task(task: str) -> None:
    """Know which task the commands are told for that have to know it; "" is the table."""
    global _task
    _task = task


def command(name: str, *words: object) -> str:
    """Return a command, ready to paste, of the program that the user came by, if it has that.

    >>> command("show", "4f1c", "--epoch", 10)
    'onward show 4f1c --epoch 10'
    >>> command("publish", "4f1c")
    'train publish 4f1c'
    """
    has_it = name in OF_BOTH and "--as_fork" not in words
    if _task and name in OF_TASK:
        words = (*words, "--task", _task)
    return quoted(_program if has_it else "train", name, *words)
