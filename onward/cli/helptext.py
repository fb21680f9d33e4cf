"""How the help of the commands is shown: in the language of whoever reads it, wrapped for it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import click

from onward.system.untrusted import run_id_in
from onward.words import language
from onward.words.language import _

# The texts of the help stand where each command and option is declared, and are looked up here.
_found = language._

# What a line is not broken inside of: a word, or a wide character with the punctuation after it.
_WIDE = r"\u2e80-\uffff"
_UNBROKEN = re.compile(rf"\s*(?:[（]*[{_WIDE}]|[^\s{_WIDE}]+)[，。、；：）…]*")


class RunParameter(click.ParamType[str]):
    """A run: its ID, or the address of its page, of which the ID is taken."""

    name = "text"

    def convert(self, value: str, param: object, ctx: object) -> str:
        """Return the ID."""
        return run_id_in(value)


class _Formatter(click.HelpFormatter):
    """Translates headings, texts, and what stands beside an option."""

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        super().write_usage(prog, args, prefix or f"{_('Usage')}: ")

    def write_heading(self, heading: str) -> None:
        super().write_heading(_found(heading))

    def write_text(self, text: str) -> None:
        whole = _found(text)
        if whole == text:  # such as the lines of an epilog
            whole = "\n".join(line and _found(line) for line in text.splitlines())
        super().write_text(_wrapped(whole, self.width - self.current_indent))

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        rows = list(rows)
        width = self.width - min(max(len(name) for name, _text in rows), col_max) - col_spacing - 2
        shown = [(name, _wrapped(_beside(text), width)) for name, text in rows]
        super().write_dl(shown, col_max, col_spacing)


class Context(click.Context):
    """A context whose help is translated."""

    formatter_class = _Formatter


class Command(click.Command):
    """A command whose help is translated."""

    context_class = Context

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return what stands in the list of commands: all of it."""
        return _found(self.help or " ")


def _beside(text: str) -> str:
    """Translate what is said of an option, but for what follows in brackets, such as a default."""
    head, rest = text, ""
    while head:
        if _found(head) != head:
            return _found(head) + rest
        head, bracket, last = head.rpartition("  [")
        rest = bracket + last + rest
    return text


def _wrapped(text: str, width: int) -> str:
    r"""Return a text with wide characters in lines that click leaves as they are.

    Click breaks lines at spaces only, and takes each character for one column wide.

    >>> _wrapped("Seed of the split.", 8)
    'Seed of the split.'
    >>> _wrapped("留作 lr 验证的行，比例。", 12)
    '\x08\n留作 lr 验证\n的行，比例。'
    """
    if text.startswith("\b") or not re.search(f"[{_WIDE}]", text):
        return text
    lines = [""]
    for part in _UNBROKEN.findall(text):
        if _columns(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part if lines[-1] else part.lstrip()
    return "\n".join(["\b", *lines])


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes.

    >>> _columns("lr：学习率")
    10
    """
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
