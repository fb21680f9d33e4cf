"""What others wrote is checked in one place: paths, documents, what is shown."""

import json

import pytest

from onward.errors import UnsafeValue
from onward.system import untrusted

BAD_PARTS = ["", ".", "..", "a/b", "/etc", "a\\b", "a\0b", "a\n", "-a", "~", "a b", "é", "a" * 129]


@pytest.mark.parametrize("value", [*BAD_PARTS, None, 3, ["a"], b"a"])
def test_only_an_id_becomes_part_of_a_path(value):
    """Whatever could name another folder, or an option, is refused with its value."""
    with pytest.raises(UnsafeValue, match=r"^run ID "):
        untrusted.path_part(value, "run ID")


@pytest.mark.parametrize("value", ["../" * 21 + "a", "A" * 64, "a" * 63, "/" + "a" * 63, None])
def test_a_fingerprint_is_64_digits(value):
    """Nothing but what `hexdigest` returns counts as a fingerprint."""
    assert untrusted.fingerprint("0af" * 21 + "1", "data") == "0af" * 21 + "1"
    with pytest.raises(UnsafeValue):
        untrusted.fingerprint(value, "data")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 20_000,
        "[" * 20_000 + "]" * 20_000,
        '{"a":' * 65 + "1" + "}" * 65,
        '{"epochs": 1e999}',
        '{"epochs": NaN}',
        "-Infinity",
        "9" * 5_000,
        b"\xff\xfe",
        "",
    ],
    ids=lambda text: str(text[:12]),
)
def test_a_hostile_document_is_a_value_error(text):
    """Depth, digits and infinities end as one kind of error, never as a crash."""
    with pytest.raises(ValueError):  # noqa: PT011 - every text differs
        untrusted.parse_json(text)


def test_a_document_of_ours_is_read():
    """What the program writes itself comes back as it was."""
    document = {"epoch": 3, "metrics": {"val_loss": 0.25, "lr": None}, "files": [{"bytes": 10**15}]}
    assert untrusted.parse_json(json.dumps(document)) == document


@pytest.mark.parametrize("char", ["\x1b", "\r", "\n", "\x9b", "\u202e", "\u2028", "\ud800", "\x7f"])
def test_what_is_shown_moves_no_cursor(char):
    """A control character, a line break, a turned direction becomes its escape."""
    found = untrusted.shown(f"a{char}b")
    assert char not in found
    assert found.startswith("a\\")
    assert found.encode()


def test_what_is_shown_is_bounded():
    """A name of a megabyte fills no terminal."""
    assert len(untrusted.shown("x" * 10**6)) <= 4_001
