"""What a picture can be written with: fonts of this system, or ASCII."""

from __future__ import annotations

import contextlib
import functools
import logging
import unicodedata
from typing import Final

from onward.words import language
from onward.words.language import _

log = logging.getLogger(__name__)

# Families with Chinese characters, by how often they are there: Linux, Windows, macOS.
_FAMILIES: Final = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC",
    "Source Han Sans CN", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback",
    "Noto Serif CJK SC", "AR PL UMing CN", "Microsoft YaHei", "SimHei", "SimSun", "DengXian",
    "PingFang SC", "Heiti SC", "Heiti TC", "STHeiti", "Songti SC", "Hiragino Sans GB",
    "Arial Unicode MS",
)  # fmt: skip


def translated(message: str) -> str:
    """Return `message` in the chosen language, if a font of this system has its characters."""
    say = language._  # the message is a literal where this is called
    text = say(message)
    return message if text != message and _families(text)[1] else text


def drawable(text: str, max_width: int) -> str:
    r"""Return a text as one line that can be drawn with the fonts of `families`.

    What no font of this system has is escaped, such as \u4ef7, with a warning, once.

    Args:
        text: Any text.
        max_width: So many letters at most; a Chinese character is as wide as two.
    """
    line = _cut(" ".join(text.split()), max_width)
    lacking = _families(line)[1]
    if any(c.isprintable() for c in lacking):
        _warn()
    escaped = [c.encode("unicode_escape").decode() if c in lacking else c for c in line]
    return _cut("".join(escaped), max_width)


def families(text: str) -> list[str]:
    """Return the families of fonts to draw a text with, the default one first."""
    return _families(text)[0]


def _families(text: str) -> tuple[list[str], set[str]]:
    """Return the families of fonts that a text needs, and the characters that none has."""
    found = [_default_family()]
    lacking = set(text) - _characters_of(found[0])
    printable = {c for c in lacking if c.isprintable()}
    for family in _installed() if printable else ():
        if has := printable & _characters_of(family):
            found.append(family)
            printable, lacking = printable - has, lacking - has
    return found, lacking


def _cut(line: str, max_width: int) -> str:
    widths = [2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line]
    if sum(widths) <= max_width:
        return line
    while sum(widths) > max_width - 1:
        widths.pop()
    return f"{line[: len(widths)]}…"


def _default_family() -> str:
    from matplotlib.font_manager import FontProperties

    return str(FontProperties().get_name())


@functools.cache
def _characters_of(family: str) -> frozenset[str]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(map(chr, get_font(findfont(FontProperties(family=family))).get_charmap()))


@functools.cache
def _installed() -> tuple[str, ...]:
    """Return those of `_FAMILIES` that are there, also what matplotlib's own list lacks."""
    from matplotlib import font_manager

    listed = font_manager.fontManager.ttflist
    if not {font.name for font in listed} & set(_FAMILIES):
        for path in set(font_manager.findSystemFonts()) - {font.fname for font in listed}:
            with contextlib.suppress(Exception):  # of FreeType: such a file is no font for us
                font_manager.fontManager.addfont(path)
    names = {font.name for font in font_manager.fontManager.ttflist}
    return tuple(family for family in _FAMILIES if family in names)


@functools.cache
def _warn() -> None:
    log.warning(
        _(
            "No font of this system has the characters of a figure's title: they are written as "
            "\\uXXXX there. Install one, such as the package fonts-noto-cjk"
        )
    )
