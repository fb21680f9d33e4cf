"""What the program says, in the language of whoever reads it.

English is the original. A translation is a gettext catalog, `locale/<language>.po`, which is
compiled when the program starts: nothing generated lies in the source tree.
"""

from __future__ import annotations

import gettext
import io
import re
import string
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_ORIGINAL = ("en", "c", "posix")
_translations = gettext.NullTranslations()
_spoken = "en"


def choose(languages: Iterable[str]) -> None:
    """Speak the first of `languages` that there is, such as "zh_CN.UTF-8"; else English."""
    global _spoken, _translations
    _spoken, _translations = "en", gettext.NullTranslations()
    for language in languages:
        # Without country, encoding and variant: `zh_TW@x` is better read in Chinese than not.
        name = re.split(r"[^a-z]", language.lower())[0]
        if name in _ORIGINAL:
            return
        file = _catalog(name)
        if name and file.is_file():
            _spoken, _translations = name, _compiled(file)
            return


def spoken() -> str:
    """Return the code of the chosen language: "en" or "zh"."""
    return _spoken


def _(message: str) -> str:
    """Return `message` in the chosen language; {names} in it are for `str.format`."""
    return _translations.gettext(message)


def later(message: str) -> str:
    """Return `message` as it is: what is made of it is stored, and shown by `retold`."""
    return message


def retold(sentence: str, messages: Iterable[str], parts: Mapping[str, Iterable[str]]) -> str:
    """Return a stored English sentence in the chosen language; as it is if it is not known.

    Args:
        sentence: What was stored.
        messages: What it may have been made from, with {names} in them.
        parts: Those of the {names} whose values are words of the program, to what these may have
            been made from; the other values stay as they are.

    >>> retold("1 of 'a'", ["{number} of '{name}'"], {})
    "1 of 'a'"
    """
    for message in messages:
        fields = string.Formatter().parse(message)
        pattern = "".join(
            re.escape(text) + (f"(?P<{name}>.+?)" if name else "") for text, name, *_rest in fields
        )
        if found := re.fullmatch(pattern, sentence, re.DOTALL):
            values = {
                name: retold(value, parts.get(name, ()), parts)
                for name, value in found.groupdict().items()
            }
            return _translations.gettext(message).format(**values)
    return sentence


def _catalog(name: str) -> Traversable:
    from importlib.resources import files  # also where the package is an archive, as in a model

    return files(__package__) / "locale" / f"{name}.po"


def _compiled(file: Traversable) -> gettext.GNUTranslations:
    # Late: whoever reads English does not wait for it.
    from babel.messages.mofile import write_mo
    from babel.messages.pofile import read_po

    compiled = io.BytesIO()
    with file.open("rb") as source:
        write_mo(compiled, read_po(source))
    compiled.seek(0)
    return gettext.GNUTranslations(compiled)
