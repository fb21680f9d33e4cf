"""Commands as a shell takes them: whatever a word holds, it is one word."""

from __future__ import annotations

import shlex


def quoted(*words: object) -> str:
    """Return words as one line of a shell.

    >>> quoted("ls", "my data")
    "ls 'my data'"
    """
    return shlex.join(map(str, words))


def command(name: str, *words: object) -> str:
    """Return a command of this program, ready to paste: `train name words`.

    >>> command("show", "4f1c", "--epoch", 10)
    'train show 4f1c --epoch 10'
    """
    return quoted("train", name, *words)
