"""The examples of loops of one's own: what is added to a script, and that it changes nothing.

`python tests/test_examples.py` writes the diffs in docs/ anew.
"""

import difflib
import re
import runpy
import subprocess
import sys

import pytest
import torch
from support import ROOT, differences

# Options that make each of them short.
EXAMPLES = {
    "classifier": "--epochs 2 --batch-size 256",
    "language_model": "--max-iters 6 --eval-interval 3 --eval-iters 2 --batch-size 4",
    "gan": "--epochs 2 --batch-size 512",
    "diffusion": "--steps 30 --milestone 10",
    "ppo": "--num-iterations 3 --num-steps 32",
}
MAX_LINES = 15  # that are added to a script, blank ones included
SHOWN_IN = {"own-loops": ["classifier"], "own-loops.zh": ["classifier"], "examples": list(EXAMPLES)}
PAGES = [ROOT / "docs" / f"{stem}.md" for stem in SHOWN_IN]


def script(name, which):
    """Return the file of an example: "before" or "after"."""
    return ROOT / "examples" / name / f"{which}.py"


def diff(name, context=1):
    """Return what differs between the two scripts of an example, but for indentation."""
    before, after = (script(name, which).read_text().splitlines() for which in ("before", "after"))
    matcher = difflib.SequenceMatcher(
        None, [line.strip() for line in before], [line.strip() for line in after], autojunk=False
    )
    found = []
    for group in matcher.get_grouped_opcodes(context):
        lines = []
        for kind, b, b_end, a, a_end in group:
            if kind == "equal":
                lines += [f" {line}".rstrip() for line in after[a:a_end]]
            else:
                lines += [f"-{line}" for line in before[b:b_end]]
                lines += [f"+{line}" for line in after[a:a_end]]
        found.append("\n".join(lines).strip("\n"))
    return "\n ...\n".join(found) + "\n"


def run(name, which, options, monkeypatch):
    """Run a script as `python` does; return the weights that it saves."""
    monkeypatch.setattr(sys, "argv", [str(script(name, which)), *options.split()])
    runpy.run_path(str(script(name, which)), run_name="__main__")
    return torch.load(f"{name}.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", [*(ROOT / "examples").glob("*/after.py"), ROOT / "examples" / "digits.py"], ids=str
)
def test_the_types_of_the_library_fit_what_the_examples_do_with_it(file):
    """As mypy sees it; the examples themselves declare no types."""
    allowed = ("untyped-defs", "untyped-calls", "incomplete-defs", "any-generics")
    words = [f"--allow-{word}" for word in allowed]
    command = [sys.executable, "-m", "mypy", "--ignore-missing-imports", "--check-untyped-defs"]
    done = subprocess.run(
        [*command, *words, str(file)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_few_lines_are_added(name):
    """A script that goes on differs from a plain one by 15 lines or less."""
    assert len([line for line in diff(name).splitlines() if line.startswith("+")]) <= MAX_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_show_what_is_added(page):
    """Each diff on a page is that of the two scripts."""
    shown = re.findall(r"^```diff\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert shown == [diff(name) for name in SHOWN_IN[page.stem]]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", EXAMPLES)
def test_without_a_stop_nothing_changes(name, tracking, monkeypatch):
    """What is added draws no random number, and changes no bit of the weights."""
    monkeypatch.setenv("ONWARD_LOG_MODEL", "false")
    before, after = (run(name, which, EXAMPLES[name], monkeypatch) for which in ("before", "after"))
    assert differences(before, after) == []
    [found] = tracking.client.search_runs(["0"])
    assert found.info.status == "FINISHED"


if __name__ == "__main__":
    for page in PAGES:
        diffs = iter([diff(name) for name in SHOWN_IN[page.stem]])
        text = re.sub(
            r"^```diff\n.*?^```",
            lambda _, diffs=diffs: f"```diff\n{next(diffs)}```",
            page.read_text(),
            flags=re.MULTILINE | re.DOTALL,
        )
        page.write_text(text)
