"""What the program says, in the language of whoever reads it.

English is the original. A translation is a gettext catalog, `locale/<language>.po`, which is
compiled when the program starts: nothing generated lies in the source tree.
"""

from __future__ import annotations

import gettext
import io
import re
from collections.abc import Iterable
from pathlib import Path

_FOLDER = Path(__file__).with_name("locale")
_ORIGINAL = ("en", "c", "posix")
_translations = gettext.NullTranslations()


def choose(languages: Iterable[str]) -> None:
    """Speak the first of `languages` that there is, such as "zh_CN.UTF-8"; else English."""
    global _translations
    _translations = gettext.NullTranslations()
    for language in languages:
        # Without country, encoding and variant: `zh_TW@x` is better read in Chinese than not.
        name = re.split(r"[^a-z]", language.lower())[0]
        if name in _ORIGINAL:
            return
        file = _FOLDER / f"{name}.po"
        if name and file.exists():
            _translations = _compiled(file)
            return


def _(message: str) -> str:
    """Return `message` in the chosen language; {names} in it are for `str.format`."""
    return _translations.gettext(message)


def _compiled(file: Path) -> gettext.GNUTranslations:
    # Late: whoever reads English does not wait for it.
    from babel.messages.mofile import write_mo
    from babel.messages.pofile import read_po

    compiled = io.BytesIO()
    with file.open("rb") as source:
        write_mo(compiled, read_po(source))
    compiled.seek(0)
    return gettext.GNUTranslations(compiled)
