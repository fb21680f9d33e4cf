"""A value in a description is text: no link, no picture, no row of a table, no end of a block."""

import re

import pytest

from onward.tracking.markdown import block, code, link, plain

EVIL = "](//x) ![p](https://x/p.png) <img src=//x> | a\n| b | `c` ```\n# d **e** WWW.x.org me@x.org"


def test_text_has_no_markup():
    """Each sign of Markdown is escaped, HTML too, and there is one line."""
    text = plain(EVIL)
    assert "\n" not in text
    assert "<" not in text
    assert ">" not in text
    assert "www." not in text.lower()
    assert "@" not in text
    text = re.sub(r"&(#\d+|\w+);", "", text)
    assert not re.search(r"(?<!\\)[\[\]()`|#*!:]", text)


def test_a_link_leads_where_it_says():
    """Neither its text nor its address ends it early."""
    found = link(EVIL, "http://me:pw@host/a) [b](javascript:alert(1)")
    address = found.rpartition("](")[2]
    assert address == "http://***@host/a%29%20[b]%28javascript:alert%281%29)"
    assert found.count("](") == found.count("\\](") + 1


@pytest.mark.parametrize("text", ["a`b", "```", "`", "a ```` b\n```\nc"])
def test_code_ends_where_it_ends(text):
    """Its fence is longer than any run of backticks inside."""
    shown = text.replace("\n", "\\n")
    ticks = re.match("`+", code(text))[0]
    assert f"{ticks}" not in shown
    assert shown in code(text)
    fence, line, end = block(text)
    assert line == shown
    assert fence == end
    assert fence not in line
    assert len(fence) >= 3
