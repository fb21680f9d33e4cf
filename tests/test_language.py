"""What the program says is in English or in Chinese, and each message is in both."""

import ast
import os
import re
import string
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import click
import pytest
from babel.messages.pofile import read_po
from support import ROOT

from onward import errors
from onward.cli import listing
from onward.cli import main as onward_cli
from onward.options.declare import options_of, parse
from onward.options.request import Launch
from onward.system import environment
from onward.words.language import _, choose
from train import cli as train_cli
from train.tabular.options import Config

CHINESE = re.compile(r"[\u4e00-\u9fff]")
SAYING = ("_", "language._", "later")
MESSAGE = "The server answers again"
PROGRAMS = {"onward": onward_cli.main, "train": train_cli.main}
COMMANDS = [
    pytest.param(name, command, id=f"{name} {command}".strip())
    for name, program in PROGRAMS.items()
    for command in ["", *sorted(program.commands)]
]


@pytest.fixture(autouse=True)
def english():
    """Speak English again after the test."""
    yield
    choose([])


@pytest.fixture(scope="module")
def catalog():
    """Return message to its translation."""
    with (ROOT / "onward" / "words" / "locale" / "zh.po").open("rb") as file:
        return {m.id: m.string for m in read_po(file, abort_invalid=True) if m.id}


def trees():
    """Yield the name of each file of the program and its syntax tree."""
    for path in sorted([*(ROOT / "onward").rglob("*.py"), *(ROOT / "train").rglob("*.py")]):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def calls():
    """Yield (place, call) of every `_(…)`, and of what is marked to be translated `later`."""
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in SAYING:
                yield f"{name}:{node.lineno}", node


def messages():
    """Return each message that `_` is given."""
    return [call.args[0].value for _place, call in calls() if is_literal(call)]


def is_literal(call):
    """Tell whether `_` is given one string, as it stands in the source."""
    [argument] = call.args if len(call.args) == 1 and not call.keywords else [None]
    return isinstance(argument, ast.Constant) and isinstance(argument.value, str)


def fields(text):
    """Return the {fields} of a text, each with its conversion and format.

    >>> fields("{a!r} of {b:.1f}")
    [('a', '', 'r'), ('b', '.1f', None)]
    """
    parsed = string.Formatter().parse(text)
    return sorted(field[1:] for field in parsed if field[1] is not None)


def codes(text):
    """Return the %-codes of a text, in their order.

    >>> codes("%s at 50 %: %.3g s")
    ['%s', '%.3g']
    """
    return re.findall(r"%[-+#0]*[\d*]*(?:\.\d+)?[sdrfgxi]", text)


def test_every_message_is_one_literal():
    """A message is one string and no f-string, so that it can be found in the catalog."""
    wrong = [f"{place}: {ast.unparse(call)}" for place, call in calls() if not is_literal(call)]
    assert not wrong


def test_nothing_else_is_called_underscore_where_a_message_is():
    """No function that says something has a variable `_`, which would hide what translates."""
    hidden = []
    for name, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef):
                continue
            inside = [n for n in ast.walk(node) if isinstance(n, ast.Name) and n.id == "_"]
            kinds = {type(n.ctx) for n in inside if not in_comprehension(node, n)}
            if {ast.Load, ast.Store} <= kinds:
                hidden.append(f"{name}:{node.lineno} {node.name}")
    assert not hidden


def in_comprehension(function, name):
    """Tell whether a name lies in a comprehension, which has variables of its own."""
    kinds = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
    return isinstance(name.ctx, ast.Store) and any(
        name in ast.walk(node) for node in ast.walk(function) if isinstance(node, kinds)
    )


def test_every_message_is_translated(catalog):
    """Each message has a translation."""
    missing = sorted({message for message in messages() if not catalog.get(message)})
    assert not missing, "not in onward/words/locale/zh.po:\n" + "\n".join(missing)


def test_translations_take_the_same_values(catalog):
    """A translation has the fields of its message, and its %-codes in the same order."""
    differing = [
        message
        for message, translation in catalog.items()
        if fields(message) != fields(translation) or codes(message) != codes(translation)
    ]
    assert not differing


def test_translations_name_the_same_commands_and_options(catalog):
    """What is to be typed, `commands` and option=value, is in the translation as it is."""
    differing = []
    for message, translation in catalog.items():
        typed = re.findall(r"`[^`]*`|(?<![\w{])[a-z_]+=(?:true|false|auto|off|<[^>]*>)", message)
        differing += [f"{t} in: {message}" for t in typed if t not in translation]
    assert not differing


def help_texts():
    """Return all that the help of the commands says: descriptions, headings, what options mean."""
    declared = [o for c in (Launch, Config) for _field, o in options_of(c).values()]
    texts = {o.help for o in declared} | {o.group for o in declared}
    both = PROGRAMS.values()
    for command in (*both, *(c for program in both for c in program.commands.values())):
        context = click.Context(command)
        headings = re.findall(r"^(\w+):$", command.get_help(context), re.MULTILINE)
        epilog = re.findall(r"^\w.*:$", command.epilog or "", re.MULTILINE)
        texts |= {command.help, *headings, *epilog}
        if command.name != "run":  # whose options are the declared ones, and these
            texts |= {p.help for p in command.get_params(context) if isinstance(p, click.Option)}
    run = PROGRAMS["train"].commands["run"]
    return texts | {p.help for p in run.params if p.name == "debug"}


def test_the_help_is_in_chinese_too(catalog):
    """Each text of the help of each command is in the catalog."""
    assert not sorted(text for text in help_texts() if not catalog.get(text))


def test_no_translation_is_left_over(catalog):
    """The catalog translates only what the program says: a message, or a text of its help."""
    unused = sorted(set(catalog) - set(messages()) - help_texts())
    assert not unused, "not said by the program:\n" + "\n".join(unused)


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_the_help_is_shown_in_chinese(name, command):
    """The help says all in Chinese but what is typed, and no line is wider than a terminal."""
    choose(["zh"])
    program = PROGRAMS[name]
    shown = program.commands[command] if command else program
    said = shown.get_help(shown.context_class(shown, info_name=name))
    assert said.startswith("用法: ")
    english = {text for text in help_texts() if not CHINESE.search(text)}
    assert not [text for text in english if f" {text}\n" in f"{said}\n"]
    assert max(width(line) for line in said.splitlines()) <= 80


def width(line):
    """Return how many columns of a terminal a line takes."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


@pytest.mark.parametrize(
    "languages",
    [
        ["zh_CN.UTF-8"],
        ["zh"],
        ["zh_TW"],
        ["zh_CN.UTF-8@pinyin"],
        ["ZH_cn.utf8"],
        ["de", "zh"],
        ["de_DE.UTF-8", "fr", "zh_CN", "en"],
    ],
)
def test_chinese_is_spoken_where_it_comes_first(languages):
    """Of the languages that are wanted, the first that there is counts."""
    choose(languages)
    assert CHINESE.search(_(MESSAGE))


@pytest.mark.parametrize(
    "languages",
    [
        [],
        ["C"],
        ["C.UTF-8"],
        ["POSIX"],
        ["de_DE"],
        ["en_US.UTF-8", "zh_CN"],
        ["en", "zh"],
        ["zha"],
        [""],
        ["../zh"],
        ["."],
    ],
)
def test_english_is_spoken_otherwise(languages):
    """What is no language, or none there is, gives the original, also after another choice."""
    choose(["zh"])
    choose(languages)
    assert _(MESSAGE) == MESSAGE


@pytest.mark.parametrize(
    ("variables", "languages"),
    [
        ({}, []),
        ({"LANG": "zh_CN.UTF-8"}, ["zh_CN.UTF-8"]),
        ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "en_US.UTF-8"}, ["en_US.UTF-8"]),
        ({"LC_MESSAGES": "en_US.UTF-8", "LC_ALL": "zh_CN"}, ["zh_CN"]),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": ""}, ["zh_CN.UTF-8"]),
        ({"LANG": "en_US.UTF-8", "LANGUAGE": "de:zh_CN:en"}, ["de", "zh_CN", "en"]),
        ({"LANG": "zh_CN.UTF-8", "LANGUAGE": ":"}, ["zh_CN.UTF-8"]),
        ({"LANG": "zh_CN.UTF-8", "LANGUAGE": "zh", "LC_ALL": "C"}, []),
        ({"LANG": "zh_CN.UTF-8", "LANGUAGE": "zh", "LC_ALL": "C.UTF-8"}, []),
        ({"LANGUAGE": "zh", "LC_ALL": "POSIX"}, []),
        ({"LANGUAGE": "zh"}, []),
    ],
)
def test_the_languages_are_those_of_gettext(monkeypatch, variables, languages):
    """LANGUAGE stands in place of the locale, which is the first of three that is set, but of C."""
    for name in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert environment.languages() == languages


def test_an_error_speaks_chinese_with_its_values_in_it():
    """A message is translated when it is made, and its values are put in."""
    choose(["zh"])
    error = errors.CheckpointNotFound("a1b2", "epoch 7", ["5", "10"])
    assert CHINESE.search(str(error))
    for part in ("a1b2", "epoch 7", "5, 10", "`onward list a1b2`"):
        assert part in str(error)
    nan = errors.NonFinite("loss", float("nan"), 3, 41, 1e-3)
    assert "损失 在第 41 步（第 3 轮，lr 0.001）变为 nan" in str(nan)
    assert nan.what == "loss"
    with pytest.raises(errors.UsageError, match=r"^lr='abc' 不是数（默认值为 0\.002）$"):
        parse(Config, "lr", "abc")


def test_a_listing_speaks_chinese(capsys):
    """What a table says is translated, and what is typed in a command is not."""
    choose(["zh"])
    row = {"epoch": 3, "step": 41, "epoch_step": 5, "val_loss": 0.5, "val_pearson": None}
    row |= {"best": True, "latest": True, "kept": False, "bytes": 2000, "path": "checkpoints/x"}
    row |= {"status": "KILLED", "go_on": "train run --resume_run a1b2"}
    row |= {"monitor": "val_pearson:max", "score": None, "unit": "epoch", "metrics": {}}
    listing.show([{**row, "created": time.time() - 7200}], "a1b2", as_json=False)
    heading, line, hint = capsys.readouterr().out.splitlines()
    assert heading.split() == ["epoch", "步", "验证损失", "val_pearson", "大小", "保存于", "路径"]
    assert "3 + 5 步" in line
    assert "最佳 最新" in line
    assert "2 小时前" in line
    assert hint == "恢复：train run --resume_run a1b2"


def start(arguments, **variables):
    """Run the program with these variables and none else that chooses a language."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG"))}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**kept, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **variables},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "lr='abc' 不是数（默认值为 0.002）"),
        ({"LANG": "en_US.UTF-8", "LANGUAGE": "de:zh"}, "lr='abc' 不是数（默认值为 0.002）"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "lr='abc' is not a number (the default is 0.002)"),
        ({}, "lr='abc' is not a number (the default is 0.002)"),
    ],
)
def test_a_refused_option_is_told_in_the_language_of_the_locale(variables, said):
    """The program looks for its language before it reads its options."""
    done = start(["-m", "train", "run", "--lr", "abc"], **variables)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_unknown_option_is_told_in_chinese():
    """What click says of an option stands between what this program says."""
    done = start(["-m", "train", "list", "--nope"], LANG="zh_CN.UTF-8")
    assert done.returncode == 2
    assert done.stderr.startswith("错误：No such option '--nope'")
    assert done.stderr.endswith("。用 `train list --help` 看有哪些\n")


@pytest.mark.parametrize(("lang", "is_needed"), [("en_US.UTF-8", False), ("zh_CN.UTF-8", True)])
def test_who_reads_english_does_not_wait_for_babel(lang, is_needed):
    """Babel is imported where there is something to translate, and only there."""
    done = start(["-X", "importtime", "-m", "train", "--help"], LANG=lang)
    assert done.returncode == 0
    assert bool(re.search(r"\|\s+babel", done.stderr)) == is_needed


def test_the_catalog_is_installed_with_the_package():
    """Each catalog lies where the package data of pyproject.toml looks for it."""
    files = [p.relative_to(ROOT) for p in (ROOT / "onward" / "words" / "locale").iterdir()]
    assert files == [Path("onward/words/locale/zh.po")]
    assert '"onward.words" = ["locale/*.po"]' in (ROOT / "pyproject.toml").read_text()
