"""README.zh.md and docs/*.zh.md are the English pages in Chinese.

They have the same sections, commands, options and messages.

Whether the commands do what they say is tested once, in test_readme.py: here they are compared.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from babel.messages.pofile import read_po
from support import ROOT
from test_readme import DOCS, GUIDE, cells, default_of, known_options, slug

from onward.options.declare import OnResume, options_of
from onward.options.request import Launch
from train.tabular.options import Config


@dataclass(frozen=True)
class Page:
    """A page in both languages."""

    file: Path  # the Chinese one
    english_file: Path

    @property
    def chinese(self):
        """The text of the Chinese one."""
        return self.file.read_text()

    @property
    def english(self):
        """The text of the English one."""
        return self.english_file.read_text()

    def pairs(self):
        """Return the sections of both, with the Chinese heading; their order is the same."""
        titles = [title for _, title in headings(self.chinese)]
        return zip(titles, sections(self.english), sections(self.chinese), strict=True)


BOTH = [Page(page.with_name(f"{page.stem}.zh.md"), page) for page in GUIDE]
OPTIONS, TROUBLESHOOTING = (
    next(page for page in BOTH if page.english_file.stem == name)
    for name in ("options", "troubleshooting")
)
CHINESE = "\n".join(page.chinese for page in BOTH)
each_page = pytest.mark.parametrize("page", BOTH, ids=lambda page: page.file.name)
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


def messages(text):
    """Return the code in bold that lines of a text begin with."""
    quoted = re.findall(r"^(?:\*\*`[^`]+`(?:\*\*[,、] ?)?)+", text, re.MULTILINE)
    return [re.findall(r"`([^`]+)`", entry) for entry in quoted]


def catalog():
    """Return each message of the program to its translation."""
    with (ROOT / "onward" / "words" / "locale" / "zh.po").open("rb") as file:
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


def test_every_page_in_chinese_has_one_in_english():
    """And each of those is compared here."""
    written = {page for folder in (ROOT, DOCS) for page in folder.glob("*.zh.md")}
    assert written == {page.file for page in BOTH}


@each_page
def test_the_pages_have_the_same_sections(page):
    """There are as many headings, of the same levels, in the same order."""
    assert [n for n, _ in headings(page.chinese)] == [n for n, _ in headings(page.english)]


@each_page
def test_blocks_are_those_of_the_english_page(page):
    """No byte of a fenced block is translated, and the Chinese page has none of its own."""
    assert all(block in blocks(page.english) for block in blocks(page.chinese))
    assert page.chinese.count("```") == 2 * len(blocks(page.chinese)), "a block that is not closed"


@each_page
def test_no_command_is_missing(page):
    """The blocks to be typed are those of the English page, in its order."""
    typed = [text for kind, text in blocks(page.chinese) if kind == "sh"]
    assert typed == [text for kind, text in blocks(page.english) if kind == "sh"]


@each_page
def test_each_block_is_in_its_section(page):
    """A block stands under the same heading in both pages."""

    def places(text):
        parts = re.split(r"^#+ .+\n(?=\n)", text, flags=re.MULTILINE)
        return [[block for block in blocks(part) if block[0] == "sh"] for part in parts]

    assert places(page.chinese) == places(page.english)


@each_page
def test_rows_that_begin_with_code_are_those_of_the_english_page(page):
    """Options, keys of a checkpoint, exit codes, commands: a row for each, in the same section."""
    for title, english, chinese in page.pairs():
        missing = set(code_that_begins_a_row(english)) - set(code_that_begins_a_row(chinese))
        assert not missing, title


def test_there_are_troubleshooting_entries():
    """They are found in the text, to be compared."""
    assert sum(map(len, messages(TROUBLESHOOTING.english))) > 30


@each_page
def test_every_troubleshooting_entry_is_there(page):
    """Each section has as many entries as in English, with the same messages in the same order."""
    for title, english, chinese in page.pairs():
        assert messages(chinese) == messages(english), title
        entries = [re.findall(r"^\*\*", text, re.MULTILINE) for text in (english, chinese)]
        assert len(entries[0]) == len(entries[1]), title


def test_messages_are_quoted_as_the_program_says_them():
    """Each is quoted in Chinese as well, and what is quoted is in a message and its translation."""
    said, quoted = catalog(), dict(quotes(CHINESE))
    text = TROUBLESHOOTING.chinese
    entries = text.partition("## 本程序的消息")[2].partition("## MLflow 自己的消息")[0]
    assert entries
    assert {text for entry in messages(entries) for text in entry} <= set(quoted)
    for english, chinese in quoted.items():
        parts = [part.strip() for part in english.split("…")]
        translated = [z for e, z in said.items() for part in parts if part in e]
        for part in chinese.split("…"):
            assert any(part.strip() in text for text in translated), (english, part)


def test_commands_in_the_text_name_real_options():
    """Every `-P name=value`, also outside the blocks, is an option."""
    assert set(re.findall(r"-P (\w+)=", CHINESE)) <= known_options() | {"nproc"}


# --- options ----------------------------------------------------------------------------------


def options_shown():
    """Return the rows of the two tables of options."""
    shown = re.search(r"<!-- options -->\n(.*?)<!-- end of options -->", OPTIONS.chinese, re.DOTALL)
    return cells(shown[1])


def test_every_option_is_there_with_its_default():
    """Name, default and what a resume may change are those of the program, in its order."""
    expected = [
        (f"`{name}`", default_of(field), ON_RESUME[opt.on_resume])
        for name, (field, opt) in options_of(Config).items()
    ]
    rows = [row for row in options_shown() if len(row) == 4]
    assert [(name, default, change) for name, default, _, change in rows] == expected


def test_every_way_to_resume_is_there():
    """The options of a launch are those of the program, in its order."""
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


@each_page
def test_each_page_leads_to_the_other_language(page):
    """The link is the first thing under the title."""
    assert page.chinese.splitlines()[2] == f"[English]({page.english_file.name})"
    assert page.english.splitlines()[2] == f"[简体中文]({page.file.name})"


@each_page
def test_every_link_leads_somewhere(page):
    """A relative link names a file that exists, and a heading of it."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", without_blocks(page.chinese)):
        path, _, anchor = target.partition("#")
        file = page.file.parent / path if path else page.file
        assert file.exists(), target
        if anchor:
            assert anchor in [slug(title) for _, title in headings(file.read_text())], target


@pytest.mark.parametrize(
    "file",
    [file for page in BOTH for file in (page.file, page.english_file)],
    ids=lambda file: file.name,
)
def test_no_two_headings_share_an_anchor(file):
    """GitHub would number the second one, and links to it would lead to the first."""
    anchors = [slug(title) for _, title in headings(file.read_text())]
    assert len(anchors) == len(set(anchors))


@each_page
def test_it_links_where_the_english_page_links(page):
    """A section leads to the same files and sites; to the Chinese page where there is one."""
    chinese_of = {other.english_file: other.file for other in BOTH}

    def targets(text, folder):
        found = re.findall(r"\]\(([^)#\s][^)\s]*)\)", text)
        sites = {link for link in found if "://" in link}
        paths = {(folder / link.partition("#")[0]).resolve() for link in found if link not in sites}
        return sites, paths

    for title, english, chinese in page.pairs():
        sites, paths = targets(english, page.english_file.parent)
        sites_there, paths_there = targets(chinese, page.file.parent)
        assert sites <= sites_there, title
        wanted = {chinese_of.get(path, path) for path in paths}
        assert wanted - {page.file} <= paths_there, title


@each_page
def test_the_text_is_chinese(page):
    """Of the text that is not code, most is Chinese, and no line is without it."""
    han = sum(len(re.findall(HAN, line)) for line in prose(page.chinese))
    words = sum(len(re.findall(WORD, line)) for line in prose(page.chinese))
    assert han > 10 * words
    english = [line for line in prose(page.chinese) if len(re.findall(WORD, line)) > 3]
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
