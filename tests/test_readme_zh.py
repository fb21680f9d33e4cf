"""README.zh.md is README.md in Chinese: the same sections, commands, options and messages.

Whether the commands do what they say is tested once, in test_readme.py: here they are compared.
"""

import re

import pytest
from babel.messages.pofile import read_po
from support import ROOT
from test_readme import cells, default_of, slug

from train.config import Config, Launch
from train.declare import OnResume, options_of

ENGLISH = (ROOT / "README.md").read_text()
PAGE = ROOT / "README.zh.md"
CHINESE = PAGE.read_text()
ON_RESUME = {OnResume.CHANGE: "可以改", OnResume.FORK: "只能分叉", OnResume.NEVER: "不能改"}

# One term for one thing, here and in the messages; each with words that would be another for it.
GLOSSARY = {
    "最佳": r"最好的(检查点|轮次|模型|相关)",  # best
    "上传": "发布",  # upload, and publish
    "目录": "文件夹",  # folder
    "响应": "应答",  # answer
    "工件": r"(?<!（)\bartifacts?\b",  # artifact
    "暂存区": "本地暂存",  # spool
    "预处理好的": "预处理过",  # prepared
    "轮次中途": "轮次之中|一轮之中",  # inside an epoch
    "优化器步": "优化步",  # optimizer step
    "脚本版": "脚本版本",  # script version
    "绝对路径": "完整路径",  # full path
    "名字": "名称",  # name
    "图": "图表",  # figure
    "随机数状态": "随机状态",  # random state
    "早停": "提前停止",  # early stopping
    "表格": "原始表(?!格)|另一张表|自己的表(?!格)",  # table
}

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


def catalog():
    """Return each message of the program to its translation."""
    with (ROOT / "train" / "locale" / "zh.po").open("rb") as file:
        return {m.id: m.string for m in read_po(file, abort_invalid=True) if m.id}


def quotes(text):
    """Return the messages that a text quotes in both languages: (English, Chinese)."""
    code = r"`[^`\n]+`"
    bold = rf"\*\*{code}(?:，[^*\n]*)?\*\*"
    found = []
    for several, one, chinese in re.findall(
        rf"(?:({bold}(?:、{bold})*)|({code}))（({code}(?:、{code})*)）", text
    ):
        if re.search(HAN, chinese):
            pair = [re.findall(r"`([^`]+)`", part) for part in (several or one, chinese)]
            found += zip(*pair, strict=True)
    return found


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


def test_messages_are_quoted_as_the_program_says_them():
    """Each is quoted in Chinese as well, and what is quoted is in a message and its translation."""
    said, quoted = catalog(), dict(quotes(CHINESE))
    entries = CHINESE.partition("### 本程序的消息")[2].partition("### MLflow 自己的消息")[0]
    assert {text for entry in messages(entries) for text in entry} <= set(quoted)
    for english, chinese in quoted.items():
        parts = [part.strip() for part in english.split("…")]
        translated = [z for e, z in said.items() for part in parts if part in e]
        for part in chinese.split("…"):
            assert any(part.strip() in text for text in translated), (english, part)


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


def test_options_mean_what_the_help_says():
    """The tables have the texts of `--help` in Chinese; code may be marked as code."""
    declared = {**options_of(Launch), **options_of(Config)}
    said, plain = catalog(), str.maketrans("", "", "`'")
    for row in options_shown():
        name = row[0].strip("`")
        if name in declared:
            meaning = row[1] if len(row) == 2 else row[2]
            expected = said[declared[name][1].help]
            assert meaning.translate(plain) == expected.translate(plain), name


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


@pytest.mark.parametrize("term", GLOSSARY)
def test_one_thing_has_one_name(term):
    """On the page and in what the program says."""
    said = [re.sub(r"`[^`]*`", "", text) for text in catalog().values()]
    assert any(term in text for text in [*said, CHINESE])
    other = re.compile(GLOSSARY[term])
    assert [line for line in [*prose(CHINESE), *said] if other.search(line)] == []


def test_chinese_punctuation_follows_chinese():
    """A comma, colon, semicolon, question mark or bracket after a Chinese letter is a wide one."""
    for line in prose(CHINESE):
        assert not re.search(rf"{HAN}[,:;?!(]", line), line
