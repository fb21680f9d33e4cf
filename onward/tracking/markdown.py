"""Markdown around values that are none: names, hosts, columns, commands.

Descriptions of runs and models are Markdown, which MLflow's pages show. A value in one is text and
stays text: no link, no picture that a reader's browser would fetch, no column or row of a table.
"""

from __future__ import annotations

import re

from onward.system.untrusted import shown
from onward.words.redact import redact

# MLflow's pages make a link of what looks like one: hence the colon, and the last two of these, as
# no backslash escapes them.
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;", "www.": "www&#46;"}
_NAMED = re.compile("|".join(map(re.escape, _ENTITIES)), re.IGNORECASE)
_SPECIAL = re.compile(r"[\\`*_{}\[\]()#!|~:]")


def plain(value: object) -> str:
    r"""Return text that reads in Markdown as it is written.

    >>> plain("my_run ![x](http://host/x.png) <b>")
    'my\\_run \\!\\[x\\]\\(http\\://host/x.png\\) &lt;b&gt;'
    """
    escaped = _SPECIAL.sub(r"\\\g<0>", _line(value))
    return _NAMED.sub(lambda found: _ENTITIES[found[0].lower()], escaped)


def code(value: object) -> str:
    """Return text as code in a line.

    >>> code("price"), code("a`b")
    ('`price`', '``a`b``')
    """
    text = _line(value)
    ticks = _longer_than_in(text, 1)
    space = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def block(*commands: str) -> list[str]:
    """Return the lines of a block of code."""
    lines = [_line(command) for command in commands]
    ticks = _longer_than_in("".join(lines), 3)
    return [ticks, *lines, ticks]


def link(text: object, address: str) -> str:
    """Return a link; what would end its address early is encoded.

    >>> link("my run", "#/experiments/0/runs/4f1c")
    '[my run](#/experiments/0/runs/4f1c)'
    """
    encoded = re.sub(r"[\s()<>\"\\]", lambda found: f"%{ord(found[0]):02X}", redact(address))
    return f"[{plain(text)}]({encoded})"


def _line(value: object) -> str:
    return shown(redact(str(value)))


def _longer_than_in(text: str, least: int) -> str:
    """Return more backticks than follow one another in `text`."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * max(least, longest + 1)
