"""What others wrote — IDs, names, tags, documents — checked before anything is done with it.

Whoever may write to the server, the store or a shared disk can write anything there. What becomes
part of a path passes `path_part`, what is a document `parse_json`, what is shown `told`.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from onward.errors import UnsafeValue
from onward.words.redact import redact

MAX_JSON_DEPTH = 64  # no document of this program is a quarter as deep
MAX_LINE_CHARS = 16_000  # of what is told; no line of ours is so long

_PATH_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,127}")
_WHOLE = re.compile(r"[0-9]{1,15}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_RUN_ADDRESS = re.compile(r"(?:^runs:/+|/runs/)([A-Za-z0-9_\-]+)")
# Control characters, C1 included; what turns the direction of a line; what breaks one; halves of
# a pair that no encoding can write.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def path_part(value: object, what: str) -> str:
    """Return an ID that may become one part of a path: letters, digits, `_` and `-`.

    Args:
        value: What the store or the server said.
        what: What it should be, for the message: "run ID".

    Raises:
        UnsafeValue: It is anything else: no text, empty, longer than 128 characters, a path.

    >>> path_part("4f1c_2", "run ID")
    '4f1c_2'
    >>> path_part("../4f1c", "run ID")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    onward.errors.UnsafeValue: run ID '../4f1c' is not used: ...
    """
    if not is_path_part(value):
        raise UnsafeValue(what, shown(str(value)))
    return str(value)


def is_path_part(value: object) -> bool:
    """Tell whether it is an ID as `path_part` takes them."""
    return isinstance(value, str) and _PATH_PART.fullmatch(value) is not None


def run_id_in(text: str) -> str:
    """Return the run ID in the address of a run's page, or in `runs:/…`; else the text itself.

    >>> run_id_in("http://127.0.0.1:5000/#/experiments/0/runs/4f1c/artifacts?o=1")
    '4f1c'
    >>> run_id_in("runs:/4f1c/model"), run_id_in(" 4f1c "), run_id_in("latest")
    ('4f1c', '4f1c', 'latest')
    """
    found = _RUN_ADDRESS.search(text.strip())
    return found[1] if found else text.strip()


def fingerprint(value: object, what: str) -> str:
    """Return a SHA-256 in hexadecimal digits, as all fingerprints are.

    Raises:
        UnsafeValue: It is anything else.
    """
    if not is_fingerprint(value):
        raise UnsafeValue(what, shown(str(value)))
    return str(value)


def is_fingerprint(value: object) -> bool:
    """Tell whether `fingerprint` takes it."""
    return isinstance(value, str) and _FINGERPRINT.fullmatch(value) is not None


def whole_number(text: object) -> int | None:
    """Return the number that `text` writes in up to 15 digits, None if it is anything else.

    >>> whole_number("12"), whole_number("1e3"), whole_number("9" * 5000), whole_number("\u0663")
    (12, None, None, None)
    """
    return int(text) if isinstance(text, str) and _WHOLE.fullmatch(text) else None


def parse_json(text: bytes | str) -> Any:
    """Read a JSON document of which nothing is known but its size, which the caller has limited.

    Raises:
        ValueError: It is no JSON; or nested deeper than MAX_JSON_DEPTH; or a number in it is not
            finite, or has more digits than Python takes.
    """
    try:
        document = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level: list[Any] = [document]
    for _depth in range(MAX_JSON_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    if level:
        raise ValueError("it is nested too deeply")
    return document


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def shown(text: str, max_chars: int = 4_000) -> str:
    r"""Return text as one line that a terminal or a log file shows as it is written.

    Control characters, line breaks and what turns the direction of writing are escaped.

    >>> shown("my run\n2026-01-01 INFO forged \x1b[2J")
    'my run\\n2026-01-01 INFO forged \\x1b[2J'
    """
    cut = text if len(text) <= max_chars else f"{text[:max_chars]}…"
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), cut)


def told(text: object) -> str:
    """Return what a terminal or a log is to show of `text`: one line, without secrets."""
    return shown(redact(str(text)[: 2 * MAX_LINE_CHARS]), MAX_LINE_CHARS)
