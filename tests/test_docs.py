"""The site of docs/ builds without a warning and without a network, and says what is there."""

import ast
import csv
import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import PurePosixPath

import click
import pytest
import yaml
from support import ROOT
from test_readme import TEXT

from onward.cli import main as onward_cli
from onward.errors import TrainError
from onward.options.declare import options_of
from onward.options.request import Launch
from train.cli import main
from train.tabular.options import Config

DOCS = ROOT / "docs"
DESIGN = (DOCS / "design.md").read_text()
TUTORIAL = (DOCS / "tutorial.md").read_text()
FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}
RUN_ID = "0123456789abcdef0123456789abcdef"


# --- the site ---------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page of the site fetches, the targets of its links, and the words on it."""

    def __init__(self, path):
        super().__init__()
        self.fetched, self.links, self.words = [], [], ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in FETCHED and attrs.get(FETCHED[tag]):
            self.fetched.append(attrs[FETCHED[tag]])
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])

    def handle_data(self, data):
        self.words += data


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the site, and what Python imported while it was built."""
    site = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-X", "importtime", "-m", "mkdocs", "build", "--strict"]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    # An address where nothing answers: whoever wants the network fails.
    env |= {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        [*command, "--site-dir", str(site)], cwd=ROOT, env=env, capture_output=True, text=True
    )
    imports = re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE)
    told = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 0, "\n".join(told)
    return site, imports


@pytest.fixture(scope="module")
def site(built):
    """The folder of the site."""
    return built[0]


@pytest.fixture(scope="module")
def pages(site):
    """Every page of the site, by its path."""
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


def pages_of_the_nav():
    """Return the sources that `nav` of mkdocs.yml names."""

    def flat(entry):
        if isinstance(entry, str):
            return [entry]
        entries = entry.values() if isinstance(entry, dict) else entry
        return [page for part in entries for page in flat(part)]

    return flat(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])


def test_building_imports_neither_torch_nor_mlflow(built):
    """Docstrings are read, not imported: the site builds in seconds."""
    assert not {"torch", "mlflow"} & set(built[1])


def test_every_page_of_the_nav_is_built(pages):
    """Each page that the nav names is a page of the site."""
    assert {PurePosixPath(p).with_suffix(".html").as_posix() for p in pages_of_the_nav()} <= {
        *pages
    }


def test_every_page_and_every_decision_is_in_the_nav():
    """No page of docs/ is left out; the decisions come in their order."""
    named = pages_of_the_nav()
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert written <= set(named)
    decisions = sorted(page for page in written if page.startswith("decisions/"))
    assert [page for page in named if page.startswith("decisions/")] == decisions
    assert re.findall(r"\]\((decisions/[^)]+)\)", DESIGN) == decisions


def test_nothing_is_fetched_from_another_host(site, pages):
    """Scripts, styles, fonts and pictures lie in the site: it can be read without a network."""
    assert pages
    elsewhere = {
        url for page in pages.values() for url in page.fetched if re.match(r"(\w+:)?//", url)
    }
    assert not elsewhere
    for style in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        urls = re.findall(
            r"url\(['\"]?(?!data:)([^)'\"]+)|@import ['\"]([^'\"]+)", style.read_text()
        )
        assert not [u for pair in urls for u in pair if re.match(r"(\w+:)?//", u)], style


def test_links_between_pages_lead_to_files_of_the_site(site, pages):
    """Also those that lead out of docs/ in the repository, such as to README.md or examples/."""
    for name, page in pages.items():
        if name == "404.html":  # its links are those of the site's root
            continue
        for link in page.links:
            path = link.partition("#")[0]
            if path and not re.match(r"\w+:", path):
                assert ((site / name).parent / path).resolve().exists(), f"{name}: {link}"


def test_the_reference_has_every_command_and_every_error(pages):
    """What is made from the program is complete."""
    commands = pages["reference/command-line.html"].words
    for program, group in {"train": main, "onward": onward_cli.main}.items():
        for name, command in group.commands.items():
            assert f"{program} {name}" in commands
            for option in (o for p in command.params for o in p.opts if o.startswith("--")):
                assert option in commands, f"{program} {name} {option}"
    python = pages["reference/python.html"].words
    for error in (TrainError, *TrainError.__subclasses__()):
        assert error.__name__ in python
    for name in (
        *("Run", "Stateful", "Monitor", "ServedModel", "OnResume", "option", "train", "Task"),
        *("Config", "Launch", "CheckpointStore", "Manifest", "Content", "open_run"),
    ):
        assert re.search(rf"(?:onward|train)\.[a-z_.]+\.{name}\b", python), name


# --- the design -------------------------------------------------------------------------------


def test_every_test_that_the_design_names_exists():
    """Each promise names tests that can be run, and each of the ten names one."""
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", DESIGN)
    for path, function in named:
        tree = ast.parse((ROOT / path).read_text())
        assert not function or function in {getattr(node, "name", None) for node in tree.body}, (
            f"{path}::{function}"
        )
    invariants = re.split(r"^\*\*\d+\. ", DESIGN, flags=re.MULTILINE)[1:]
    assert len(invariants) == 11
    assert all("`tests/" in text for text in invariants)


def test_the_layers_are_those_that_the_tests_hold():
    """The drawing has the lines of `LAYERS`, all of them, in their order, with nothing else."""
    from test_architecture import LAYERS

    drawing = re.search(r"^## Layers.*?^```text\n(.*?)^```", DESIGN, re.MULTILINE | re.DOTALL)[1]
    assert [re.split(r" {3,}", line)[0].split() for line in drawing.splitlines()] == LAYERS


def test_the_layers_are_units_that_there_are():
    """What the drawing names is there, or the drawing says that it is to come."""
    drawing = re.search(r"^## Layers.*?^```text\n(.*?)^```", DESIGN, re.MULTILINE | re.DOTALL)[1]
    for line in drawing.splitlines():
        names = re.split(r" {3,}", line)[0].split()
        missing = [
            name
            for name in names
            if not ((ROOT / "onward" / name).is_dir() or (ROOT / "onward" / f"{name}.py").is_file())
        ]
        assert missing in ([], ["train"]) or "(to come)" in line, line


def test_what_the_design_points_to_is_there():
    """Each file of the program that it names exists, and so does each module of `checkpoint`."""
    assert all(
        (ROOT / path).is_file() for path in re.findall(r"`((?:onward|train)/[\w/]+\.py)`", DESIGN)
    )
    named = re.search(
        r"`checkpoint` has one module for each concept: (.*?)\.\s", DESIGN, re.DOTALL
    )[1]
    modules = {path.stem for path in (ROOT / "onward" / "checkpoint").glob("*.py")}
    assert set(re.findall(r"`(\w+)`", named)) <= modules


def test_the_picture_shows_the_way_of_a_checkpoint():
    """The steps in the picture are those of the pipeline, in its order."""
    from onward.checkpoint import pipeline

    steps = re.search(r"checkpoint: (.*?)\.$", pipeline.__doc__.splitlines()[0])[1].split(" → ")
    picture = (DOCS / "images" / "save-pipeline.svg").read_text()
    names = re.search(r'<g class="name">(.*?)</g>', picture, re.DOTALL)[1]
    assert re.findall(r">(\w+)</text>", names) == steps


# --- the tutorial -----------------------------------------------------------------------------


def commands():
    """Return the commands of the tutorial, each as its words, with an ID in place of <id>."""
    blocks = re.findall(r"^```sh\n(.*?)^```", TUTORIAL, re.MULTILINE | re.DOTALL)
    lines = []
    for block in blocks:
        for line in block.splitlines():
            if lines and lines[-1].count("'") % 2:  # goes on in a quoted text
                lines[-1] += f"\n{line}"
            else:
                lines.append(line)
    return lines


def parsed(command, words):
    """Parse words as a click command would, without running it; return its context."""
    context = None
    while isinstance(command, click.Group):
        assert words[0] in command.commands, words[0]
        context = click.Context(command, info_name=words[0], parent=context)
        command, words = command.commands[words[0]], words[1:]
    return command.make_context(command.name, words, parent=context)


def check_mlflow(words):
    """Check a command of MLflow, and the options that it passes on to the program."""
    from mlflow.cli import cli

    context = parsed(cli, words[1:])
    if words[1] == "run":
        parsed(main, ["run", *(f"--{option}" for option in context.params["param_list"])])


CHECKED = {
    "mlflow": check_mlflow,
    "train": lambda words: parsed(main, words[1:]),
}


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_tutorial_can_be_typed_so(line, tmp_path, monkeypatch):
    """Each is one of the guide's, which are run by another test, or has options that exist."""
    if line in TEXT.splitlines() and not line.startswith("train "):
        return
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text("carat\n1\n")
    words = shlex.split(line.replace("<id>", RUN_ID))
    if words[0] in CHECKED:
        CHECKED[words[0]](words)
    elif words[0] == "make":
        given = {option.partition("=")[0] for option in words[2].removeprefix("P=").split()}
        assert given <= {*options_of(Config), *options_of(Launch)}
    else:
        assert words[0] in ("git", "cd", ".", "kill", "gunzip", "curl"), line


def test_what_the_tutorial_sends_is_what_the_shipped_table_has():
    """The request is JSON, with the columns that the model was trained on, in two full rows."""
    [request] = [shlex.split(line) for line in commands() if line.startswith("curl")]
    body = json.loads(request[request.index("-d") + 1])["dataframe_split"]
    with gzip.open(ROOT / "train" / "tabular" / "data" / "diamonds.csv.gz", "rt") as file:
        columns, *rows = [row for row, _ in zip(csv.reader(file), range(3), strict=False)]
    price = columns.index("price")
    assert body["columns"] == columns[:price] + columns[price + 1 :]
    assert [[str(v) for v in row] for row in body["data"]] == [
        row[:price] + row[price + 1 :] for row in rows
    ]
    assert all(f"costs {row[price]} dollars" in TUTORIAL for row in rows)
