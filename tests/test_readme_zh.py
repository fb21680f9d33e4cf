"""README.zh.md is README.md in Chinese: the same sections, commands, options and messages.

Whether the commands do what they say is tested once, in test_readme.py: here they are compared.
"""

import re

import pytest
from support import ROOT
from test_readme import cells, default_of, slug

from train.config import Config, Launch
from train.declare import OnResume, options_of

ENGLISH = (ROOT / "README.md").read_text()
PAGE = ROOT / "README.zh.md"
CHINESE = PAGE.read_text()
ON_RESUME = {OnResume.CHANGE: "可以改", OnResume.FORK: "只能分叉", OnResume.NEVER: "不能改"}

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HAN = r"[\u4e00-\u9fff]"
WORD = r"[A-Za-z]{2,}"


def blocks(text):
    """Return the fenced blocks of a text: what they are, and what is in them."""
    return BLOCK.findall(text)


def without_blocks(text):
    """Return a text without its fenced blocks and HTML comments."""
    return re.sub(r"<!--.*?-->", "", BLOCK.sub("", text))


def headings(text):
    """Return the headings of a text: level and title."""
    return re.findall(r"^(#+) (.+)$", without_blocks(text), re.MULTILINE)


def sections(text):
    """Return the text of each section, without its heading; the first is what stands on top."""
    return re.split(r"^#+ .+\n", without_blocks(text), flags=re.MULTILINE)[1:]


def pairs():
    """Return the sections of both pages, with the Chinese heading; their order is the same."""
    titles = [title for _, title in headings(CHINESE)]
    return zip(titles, sections(ENGLISH), sections(CHINESE), strict=True)


def messages(text):
    """Return the code in bold that lines of a text begin with."""
    quoted = re.findall(r"^(?:\*\*`[^`]+`(?:\*\*[,、] ?)?)+", text, re.MULTILINE)
    return [re.findall(r"`([^`]+)`", entry) for entry in quoted]


def prose(text):
    """Return the lines of a text without code, and links without where they lead."""
    text = re.sub(r"`[^`\n]*`", "", without_blocks(text))
    return re.sub(r"\]\([^)]*\)", "]", text).splitlines()


def code_that_begins_a_row(text):
    """Return the first cells of the tables in a text that are code or a number."""
    first = [row[0] for row in cells(without_blocks(text))]
    return [cell for cell in first if re.fullmatch(r"`[^`]+`(, `[^`]+`)*|\d+", cell)]


# --- the same page ----------------------------------------------------------------------------


def test_the_pages_have_the_same_sections():
    """There are as many headings, of the same levels, in the same order."""
    assert [level for level, _ in headings(CHINESE)] == [level for level, _ in headings(ENGLISH)]


def test_blocks_are_those_of_the_english_page():
    """No byte of a fenced block is translated, and README.zh.md has none of its own."""
    assert all(block in blocks(ENGLISH) for block in blocks(CHINESE))
    assert CHINESE.count("```") == 2 * len(blocks(CHINESE)), "a block that is not closed"


def test_no_command_is_missing():
    """The blocks to be typed are those of README.md, in its order."""
    typed = [text for kind, text in blocks(CHINESE) if kind == "sh"]
    assert typed == [text for kind, text in blocks(ENGLISH) if kind == "sh"]


def test_each_block_is_in_its_section():
    """A block stands under the same heading in both pages."""

    def places(text):
        parts = re.split(r"^#+ .+\n(?=\n)", text, flags=re.MULTILINE)
        return [[block for block in blocks(part) if block[0] == "sh"] for part in parts]

    assert places(CHINESE) == places(ENGLISH)


def test_rows_that_begin_with_code_are_those_of_the_english_page():
    """Options, keys of a checkpoint, exit codes, commands: a row for each, in the same section."""
    for title, english, chinese in pairs():
        missing = set(code_that_begins_a_row(english)) - set(code_that_begins_a_row(chinese))
        assert not missing, title


def test_every_troubleshooting_entry_is_there():
    """Each section has as many entries as README.md's, with the same messages in the same order."""
    assert sum(map(len, messages(ENGLISH))) > 30
    for title, english, chinese in pairs():
        assert messages(chinese) == messages(english), title
        entries = [re.findall(r"^\*\*", text, re.MULTILINE) for text in (english, chinese)]
        assert len(entries[0]) == len(entries[1]), title


def test_commands_in_the_text_name_real_options():
    """Every `-P name=value`, also outside the blocks, is an option."""
    known = {*options_of(Config), *options_of(Launch), "name", "help"}
    assert set(re.findall(r"-P (\w+)=", CHINESE)) <= known


# --- options ----------------------------------------------------------------------------------


def options_shown():
    """Return the rows of the two tables of options."""
    shown = re.search(r"<!-- options -->\n(.*?)<!-- end of options -->", CHINESE, re.DOTALL)
    return cells(shown[1])


def test_every_option_is_there_with_its_default():
    """Name, default and what a resume may change are those of `train/config.py`, in its order."""
    expected = [
        (f"`{name}`", default_of(field), ON_RESUME[opt.on_resume])
        for name, (field, opt) in options_of(Config).items()
    ]
    rows = [row for row in options_shown() if len(row) == 4]
    assert [(name, default, change) for name, default, _, change in rows] == expected


def test_every_way_to_resume_is_there():
    """The options of a launch are those of `train/config.py`, in its order."""
    rows = [row for row in options_shown() if len(row) == 2]
    assert [name for name, _ in rows] == [f"`{name}`" for name in options_of(Launch)]


# --- text -------------------------------------------------------------------------------------


def test_it_leads_to_the_english_page():
    """The link to the other language is the first thing under the title."""
    assert CHINESE.splitlines()[2] == "[English](README.md)"


def test_every_link_leads_somewhere():
    """A relative link names a file that exists, and a heading of it."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", without_blocks(CHINESE)):
        path, _, anchor = target.partition("#")
        file = ROOT / path if path else PAGE
        assert file.exists(), target
        if anchor:
            assert anchor in [slug(title) for _, title in headings(file.read_text())], target


@pytest.mark.parametrize("page", [PAGE, ROOT / "README.md"], ids=lambda page: page.name)
def test_no_two_headings_share_an_anchor(page):
    """GitHub would number the second one, and links to it would lead to the first."""
    anchors = [slug(title) for _, title in headings(page.read_text())]
    assert len(anchors) == len(set(anchors))


def test_it_links_where_the_english_page_links():
    """A section leads to the same files and sites."""
    for title, english, chinese in pairs():
        links = [re.findall(r"\]\(([^)#\s][^)\s]*)\)", text) for text in (english, chinese)]
        assert set(links[0]) - {PAGE.name} <= set(links[1]), title


def test_the_text_is_chinese():
    """Of the text that is not code, most is Chinese, and no line is without it."""
    han = sum(len(re.findall(HAN, line)) for line in prose(CHINESE))
    words = sum(len(re.findall(WORD, line)) for line in prose(CHINESE))
    assert han > 10 * words
    english = [line for line in prose(CHINESE) if len(re.findall(WORD, line)) > 3]
    assert [line for line in english if not re.search(HAN, line)] == []


def test_bold_is_bold():
    """Bold that ends in punctuation is none, where a letter follows: `**。**` wants a space."""
    text = re.sub(r"`[^`\n]*`", "`", without_blocks(CHINESE))
    for line in text.splitlines():
        for before, bold, after in re.findall(r"(.?)\*\*(.+?)\*\*(?=(.?))", line):
            assert not (re.match(r"\W", bold[0]) and re.match(r"\w", before)), line
            assert not (re.match(r"\W", bold[-1]) and re.match(r"\w", after)), line


def test_chinese_punctuation_follows_chinese():
    """A comma, colon, semicolon, question mark or bracket after a Chinese letter is a wide one."""
    for line in prose(CHINESE):
        assert not re.search(rf"{HAN}[,:;?!(]", line), line
