"""README.md and docs/ say what the program does: commands are run, tables and quotes compared.

README.md is short; `GUIDE` is README.md and the pages that have the rest of what a user does.
Every `sh` block of them is run by bash, in a copy of the project that holds a run killed after
epoch 11 of 12, the script version's checkpoint_epoch_10.pth, and table.csv. Each block finds that
copy as it was. But one after the HTML comment `<!-- continues -->` goes on where the block before
ended, as a second machine: with a new copy, and a TRAIN_HOME of its own. One after `killed` is
killed with SIGKILL once it has a checkpoint. One after `overtaken` is about another run: killed
with a checkpoint on its way, then resumed on another disk. What the test changes in a command is
told by `prepared`.

`python tests/test_readme.py` writes the tables of options anew.
"""

import ast
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import ROOT, client, environment, group_of, launch, wait_for, write_table

from onward import errors
from onward.options.declare import OnResume, options_of, to_text
from onward.options.request import Launch
from train.cli import main
from train.kind import find_task
from train.tabular.options import Config

README = ROOT / "README.md"
DOCS = ROOT / "docs"
OPTIONS = DOCS / "options.md"
GUIDE = [README, DOCS / "resume.md", OPTIONS, DOCS / "runs.md", DOCS / "model.md"]
GUIDE += [DOCS / "own-task.md", DOCS / "own-loops.md", DOCS / "lightning.md"]
GUIDE += [DOCS / "transformers.md", DOCS / "troubleshooting.md", DOCS / "distributed.md"]
TEXT = "\n".join(page.read_text() for page in GUIDE)
DECISIONS = sorted((DOCS / "decisions").iterdir())
PAGES = [*GUIDE, ROOT / "CHANGELOG.md", ROOT / "mlruns" / "README.md", *DECISIONS]
PAGES += [page for page in sorted(DOCS.glob("*.md")) if page not in GUIDE]

# Given to every command that starts a run and does not say otherwise; the killed run's too, so that
# its checkpoint fits as a file.
OF_THE_LOOP = {"epochs": "2", "batch_size": "4096"}
SHORT = OF_THE_LOOP | {"hidden_size": "16", "num_layers": "1"}
OF_A_KILLED_BLOCK = SHORT | {"epochs": "60"}
ON_RESUME = {
    OnResume.CHANGE: "may change",
    OnResume.FORK: "only by a fork",
    OnResume.NEVER: "never",
}


# --- tables -----------------------------------------------------------------------------------


def table(headings, rows):
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def option_tables():
    """Return the tables of docs/options.md, as the program has them."""
    resume = [(f"`{name}`", opt.help) for name, (_, opt) in options_of(Launch).items()]
    rows = [
        (f"`{name}`", default_of(field), opt.help, ON_RESUME[opt.on_resume])
        for name, (field, opt) in options_of(Config).items()
    ]
    return (
        f"{table(['Where to go on from', 'Meaning'], resume)}\n\n"
        f"{table(['Option', 'Default', 'Meaning', 'On a resume'], rows)}"
    )


def default_of(field):
    """Return how the table shows an option's default."""
    return "–" if field.default in (None, ()) else f"`{to_text(field.default)}`"


def cells(text):
    """Return the rows of the Markdown tables in a text, headings left out, as tuples."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    rules = [i for i, row in enumerate(rows) if set("".join(row)) <= set("- |")]
    headings = {i - 1 for i in rules}
    return [tuple(c.strip() for c in r) for i, r in enumerate(rows) if i not in {*rules, *headings}]


def section(title, text=TEXT):
    """Return what stands under a heading, up to the next of its level or above."""
    level = re.search(rf"^(#+) {re.escape(title)}$", text, re.MULTILINE)
    assert level, f"there is no heading '{title}'"
    rest = text[level.end() :]
    end = re.search(rf"^#{{1,{len(level[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def test_the_tables_of_options_are_those_of_the_program():
    """Name, default, meaning and what a resume may change are as the program has them."""
    text = OPTIONS.read_text()
    shown = re.search(r"<!-- options -->\n(.*?)<!-- end of options -->", text, re.DOTALL)[1]
    assert shown.strip() == option_tables(), "run `python tests/test_readme.py` to write them anew"


def test_the_exit_codes_are_those_of_the_errors():
    """The long table names every class with its code; the short one has the same codes."""
    rows = cells((DOCS / "exit-codes.md").read_text())
    documented = {name.strip("`"): int(code) for code, name, _, _ in rows if name}
    raised = {
        name: item.exit_code
        for name, item in vars(errors).items()
        if isinstance(item, type) and issubclass(item, errors.TrainError)
    }
    assert documented == raised
    short = [int(code) for code, _ in cells(section("Exit codes"))]
    assert short == sorted({0, *raised.values()})


# --- text -------------------------------------------------------------------------------------


def slug(heading):
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readme_is_short_and_leads_to_every_page(name):
    """It is read in minutes; what is not in it is one link away, in the reader's language."""
    text = (ROOT / name).read_text()
    assert len(text.splitlines()) <= 180
    suffix = name.removeprefix("README")
    pages = {page.name for page in DOCS.glob("*.md")}
    wanted = {p for p in pages if not p.endswith(".zh.md")}
    if suffix == ".zh.md":
        wanted = {z if (z := p.replace(".md", suffix)) in pages else p for p in wanted}
    assert wanted <= set(re.findall(r"\]\(docs/([\w.-]+\.md)[)#]", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    """A relative link names a file that exists, and a heading of it."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.parent.name != "reference":  # made from docstrings: the build checks it
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name}: {target}"


def test_decisions_are_numbered_and_short():
    """One file per decision: numbered without gaps, with its three parts, at most 40 lines."""
    numbers = [path.name.split("-")[0] for path in DECISIONS]
    assert numbers == [f"{i:04}" for i in range(1, len(DECISIONS) + 1)]
    for path in DECISIONS:
        text = path.read_text()
        assert text.startswith(f"# {int(path.name[:4])}. "), path.name
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
            "Context",
            "Decision",
            "Consequences",
        ]
        assert len(text.splitlines()) <= 40, path.name


def strings_of(source):
    """Yield every string of a Python source; what an f-string fills in is `…`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values)


def quoted_in(title):
    """Return the messages that open the entries under a heading, cut where a page has `…`."""
    entries = re.findall(r"^\*\*`([^`]+)`\*\*", section(title), re.MULTILINE)
    assert entries, title
    return [part.strip(" .") for entry in entries for part in entry.split("…")]


def test_quoted_messages_are_those_of_the_program():
    """Who searches the pages for what the program printed finds it."""
    paths = [path for name in ("onward", "train") for path in (ROOT / name).rglob("*.py")]
    sources = [path.read_text() for path in paths]
    messages = "\n".join(text for source in sources for text in strings_of(source))
    missing = [q for q in quoted_in("Messages of this program") if q not in messages]
    assert missing == [], "no message of the program has these"
    for quoted in (
        "Resuming training from epoch ",
        " (恢复训练，从 epoch ",
        ": on this machine only",
        " does not answer (",
        "): start it, or check MLFLOW_TRACKING_URI",
        ". What is saved waits on this disk, and is published later",
        "offline, ",
    ):
        assert quoted.strip(" :") in TEXT
        assert quoted in messages


def test_quoted_messages_of_mlflow_are_mlflows():
    """The messages that the pages give as MLflow's own are in the MLflow that is installed."""
    import mlflow

    folder = Path(mlflow.__file__).parent
    names = ("utils/conda.py", "store/tracking/file_store.py", "server/security_utils.py")
    messages = "\n".join(t for n in names for t in strings_of((folder / n).read_text()))
    for quoted in quoted_in("Messages of MLflow itself"):
        assert quoted in messages or quoted == "Max retries exceeded", quoted  # that is urllib3's


def inline_commands():
    """Return the commands of our program in the running text and tables of the pages."""
    without_blocks = re.sub(r"^```.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`((?:mlflow run |train |-P )[^`]*)`", without_blocks)


def known_options():
    """Return the names of all options, also of the task that is shown as an example."""
    example = find_task(str(ROOT / "examples" / "digits.py")).declared
    return {o for c in (Config, example, Launch) for o in options_of(c)} | {"debug", "name", "help"}


def test_commands_in_the_text_name_real_options():
    """Every `-P name=value` of the pages, also outside the blocks that are run, is an option."""
    known = known_options()
    used = {
        name for command in [*inline_commands(), TEXT] for name in re.findall(r"-P (\w+)=", command)
    }
    assert used
    assert used <= known | {"nproc"}  # of the entry point `distributed`


def test_our_commands_in_the_text_exist_with_their_options():
    """Every `train …` of README, and of the pages that it leads to, can be typed so."""
    blocks = re.findall(r"^train .*$", TEXT, re.MULTILINE)
    inline = [c for c in inline_commands() if c.startswith("train ")]
    assert {command.split()[1] for command in blocks} == set(main.commands)
    texts = [page.read_text() for page in PAGES]
    elsewhere = [c for t in texts for c in re.findall(r"`(train [^`]*)`", t)]
    for command in [*blocks, *inline, *elsewhere]:
        words = command.split()[1:]
        if words[0] == "launch" and "--" in words:  # what follows is a command of its own
            words = words[words.index("--") + 1 :]
        name, *words = words
        known = {o for p in main.commands[name].params for o in p.opts} | {"--help", "--name"}
        known |= {f"--{option}" for option in known_options()} if name == "run" else set()
        assert {w for w in words if w.startswith("--")} <= known, command
    shown = {name.strip("`") for name, *_ in cells(section("Look after checkpoints"))}
    assert shown == {p.opts[0] for p in main.commands["prune"].params} - {
        "run",
        "--dry_run",
        "--take_over",
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ""),
        (["P=checkpoint_freq=3 epochs=6"], " -P checkpoint_freq=3 -P epochs=6"),
    ],
)
def test_make_run_starts_the_main_job(words, expected):
    """`make run P="a=1 b=2"` is `mlflow run . --env-manager local -P a=1 -P b=2` in `.venv`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}  # `make test` sets some
    done = subprocess.run(
        ["make", "-n", "run", *words], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    last = done.stdout.splitlines()[-1]
    assert last.rstrip().endswith(f".venv/bin/mlflow run . --env-manager local{expected}")


# --- commands ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """One `sh` block of a page; `place` is where it begins."""

    place: str
    text: str
    comment: str  # of the HTML comment right before it

    @property
    def is_server(self):
        """Whether it goes on until it is stopped."""
        return (
            re.search(r"^(mlflow (server|ui|models serve)|train ui)", self.text, re.MULTILINE)
            is not None
        )


def stories_of(page):
    """Return the blocks of a page; those that continue the one before it are in one list."""
    found, text = [], page.read_text()
    pattern = r"^(?:<!-- ([^\n]*) -->\n)?```(?:sh|console|bash|shell)\n(.*?)^```"
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        place = f"{page.stem}-line-{text[: match.start(2)].count(chr(10)) + 1}"
        block = Block(place, match[2], match[1] or "")
        if "continues" in block.comment:
            found[-1].append(block)
        else:
            found.append([block])
    return found


def stories():
    """Return those of every page; what two pages show is run once."""
    once = {}
    for story in (story for page in GUIDE for story in stories_of(page)):
        once.setdefault(tuple((block.text, block.comment) for block in story), story)
    return list(once.values())


@dataclass(frozen=True)
class Project:
    """The copy of the project that blocks run in."""

    folder: Path
    home: Path
    saved: Path  # what `restore` goes back to
    run_id: str  # of the killed run

    def restore(self):
        """Make the folder what it was before the first block."""
        for path, saved in ((self.folder, "folder"), (self.home, "home")):
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(self.saved / saved, path, symlinks=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with a killed run, a file of the script version, and a table."""
    top = tmp_path_factory.mktemp("readme")
    project = copy_of_the_project(top / "project")
    uri = f"sqlite:///{project}/mlflow.db"
    # upload=sync: when epoch 12 is to be written, epoch 11 is committed.
    killed_run("write", 12, project, top / "home")
    [run] = client(uri).search_runs(["0"])
    run_id = run.info.run_id
    (project / "checkpoints").mkdir()
    checkpoint = project / "mlruns" / "0" / run_id / "artifacts/checkpoints/epoch_10/checkpoint.pth"
    write_script_checkpoint(checkpoint, project / "checkpoints" / "checkpoint_epoch_10.pth")
    write_table(project / "table.csv")
    shutil.copytree(project, top / "saved" / "folder", symlinks=True)
    shutil.copytree(top / "home", top / "saved" / "home")
    return Project(project, top / "home", top / "saved", run_id)


def copy_of_the_project(folder):
    """Copy what git has of the project, as far as a run needs it."""
    folder.mkdir()
    for name in ("MLproject", "Makefile", "conda.yaml", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name in ("onward", "train", "examples"):
        left_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def write_script_checkpoint(source, target):
    """Write a checkpoint of ours as the script version wrote it, NumPy's scalars included."""
    import numpy as np
    import torch

    saved = torch.load(source, weights_only=True)
    names = ("epoch", "model_state_dict", "optimizer_state_dict", "train_losses", "val_losses")
    script = {name: saved[name] for name in names}
    script["scheduler_state_dict"] = {"T_max": 50, "last_epoch": 10}
    script["aucs"] = [np.float64(value) for value in saved["aucs"]]
    script |= {"best_corr": np.float64(saved["best_corr"]), "timestamp": "2024-05-01 02:00:00"}
    torch.save(script, target)


def prepared(text, run_id, port, short):
    """Return a block as it is run.

    `<id>` becomes a run's ID, `<server>` and 0.0.0.0 this machine, 5000 and 5001 a free port; a
    command that starts a run gets the `short` options that it does not have; `make` only shows
    what it would do.
    """
    text = text.replace("<id>", run_id).replace("<server>", "127.0.0.1")
    text = re.sub(r"0\.0\.0\.0", "127.0.0.1", text)
    text = re.sub(r"(?<=[: ])500[01]\b", str(port), text)
    text = re.sub(r"^(mlflow|train) ui$", rf"\1 ui --port {port}", text, flags=re.M)
    text = re.sub(r"^mlflow (ui|server)", r"mlflow \1 --workers 1", text, flags=re.MULTILINE)
    text = re.sub(r"^make ", "make -n ", text, flags=re.MULTILINE)
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if starts_a_run(line) and not re.search(r"\bresume_run\b", line):
            has_task = re.search(r"\btask\b", line)  # its options are not those of the table
            given = {k: v for k, v in short.items() if not has_task or k in OF_THE_LOOP}
            option = "-P {}={}" if line.startswith("mlflow") else "--{}={}"
            more = [
                option.format(k, v) for k, v in given.items() if not re.search(rf"\b{k}\b", line)
            ]
            lines[i] = " ".join([line, *more])
    assert "<" not in "\n".join(lines), "a placeholder that the test does not know"
    return "\n".join(lines)


def starts_a_run(line):
    """Tell whether a line of a block trains."""
    return line.startswith(("mlflow run", "train run"))


def killed_run(step, epoch, cwd, home):
    """Train, and die before the first `step` of epoch `epoch`; the one before it is committed."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests' / 'contract')!r}); import killer\n"
        f"killer.PART_BYTES = 1 << 28; killer.arm('before', {step!r}, 1, {epoch})\n"
        "killer.cli.main(sys.argv[1:])"
    )
    options = [f"--{k}={v}" for k, v in (SHORT | {"epochs": epoch, "upload": "sync"}).items()]
    command = [sys.executable, "-c", code, "run", *options]
    done = subprocess.run(
        command, cwd=cwd, env=environment(home), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == -signal.SIGKILL, f"{done.stdout}{done.stderr}"


def overtaken_run(project, folder):
    """Leave a checkpoint on the project's disk that may not be published; return the run's ID."""
    killed_run("upload", 3, project.folder, project.home)
    waiting = list(project.home.glob("runs/*/attempt_1/epoch_3/manifest.json"))
    [run_id] = [path.parents[2].name.split("-")[1] for path in waiting]
    env = environment(folder / "other disk")
    again = launch(f"--resume_run={run_id}", cwd=project.folder, env=env)
    assert again.returncode == 0, again.stderr
    return run_id


OF_OUR_COMMANDS = {  # what each prints in a project with a run that was killed after epoch 11
    "list": "0.9",
    "verify": "epoch_11    ok",
    "show": "model_state_dict.head.weight",
    "export": "epoch_10 of run <id> is in model.pth",
    "prune": "delete epoch_5 ",
    "plan": "checkpoint_steps=",
    "launch": "FINISHED after epoch 2",
    "predict": "53,940 rows with predicted_price are in predictions.csv",
    "publish": "runs:/<id>/model is the model of epoch_10",
}


def expected_output(text, run_id):
    """Return what a block must print."""
    expected = []
    for line in text.splitlines():
        if line.startswith("make -n run"):
            expected.append("/mlflow run . --env-manager local")
        if line.startswith("train sync"):
            expected.append("is now run " if "as_fork" in line else "Published what attempt 1 of")
        elif line.startswith("curl"):
            expected.append('{"predictions": [')
        elif line.startswith("train ") and not starts_a_run(line):
            expected.append(OF_OUR_COMMANDS[line.split()[1]].replace("<id>", run_id))
        elif line.startswith("python ") and not line.startswith("python -c"):
            expected.append(f"Script: {Path(line.split()[1]).name}")
        elif "python " in line and "python -c" not in line:
            expected.append("Forking run" if "FORK" in line else f"Run {run_id}, attempt 2: http")
        if not starts_a_run(line):
            continue
        if not re.search(r"\bresume_run\b", line):
            expected.append("attempt 1: http")
        elif "resume_epoch=" in line:
            expected += ["attempt 1: http", f"Forking run '{run_id}' at epoch 1"]
        else:
            expected.append(f"Run {run_id}, attempt 2: http")
        if "resume_" in line:
            expected.append("Resuming training from epoch ")
        if "resume_from=" in line:
            expected.append("holds no random state and no data order")
    return expected


@contextlib.contextmanager
def started(text, cwd, env):
    """Start a block in a process group of its own, which is killed at the end."""
    process = subprocess.Popen(
        ["bash", "-e", "-c", text],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process.stdout, group_of(process):
        yield process


def run_to_the_end(text, cwd, env):
    """Run a block, and return what it printed; it must succeed."""
    with started(text, cwd, env) as process:
        printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, f"{text}\n{printed}"
    return printed


def run_until_killed(text, cwd, env, api):
    """Kill a block, with all its processes, once the server has a checkpoint of its run; return
    what it printed."""
    printed = []
    with started(text, cwd, env) as process:
        for line in process.stdout:
            printed.append(line)
            if line.startswith("epoch ") and "train.epoch" in api.search_runs(["0"])[0].data.tags:
                return "".join(printed)
    raise AssertionError(f"{text}\n{''.join(printed)}")


def answers(address):
    """Tell whether a server is up."""
    try:
        return urllib.request.urlopen(f"{address}/health", timeout=5).status == 200
    except OSError:
        return False


def free_port():
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_server(server, address, printed):
    """Wait until a server that was started answers; return MLflow's client of it."""
    wait_for(lambda: server.poll() is not None or answers(address))
    assert server.poll() is None, "".join(printed)
    return client(address)


def run_story(story, project, folder):
    """Run the blocks of a story one after another, as a reader would."""
    run_id, port, printed_by_server = project.run_id, free_port(), []
    if story[0].comment == "overtaken":
        run_id = overtaken_run(project, folder)
    cwd, home = project.folder, project.home
    if "mlflow server" in story[0].text:
        cwd = folder / "server"
        cwd.mkdir()
    with contextlib.ExitStack() as servers:
        for number, block in enumerate(story):
            killed = "killed" in block.comment
            text = prepared(block.text, run_id, port, OF_A_KILLED_BLOCK if killed else SHORT)
            if number and "here" not in block.comment:  # another machine
                cwd = copy_of_the_project(folder / f"machine{number}")
                home = folder / f"home{number}"
            env = environment(home, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
            env.pop("PYTHONPATH")
            if block.is_server:
                server = servers.enter_context(started(text, cwd, env))
                # A pipe that nobody reads is full after some hundred requests: the server hangs.
                threading.Thread(target=printed_by_server.extend, args=[server.stdout]).start()
                api = wait_for_server(server, f"http://127.0.0.1:{port}", printed_by_server)
                if re.search(r"\bui\b", text):
                    assert api.list_artifacts(run_id, "checkpoints"), "the pages do not show it"
                continue
            if killed:
                printed = run_until_killed(text, cwd, env, api)
            else:
                printed = run_to_the_end(text, cwd, env)
            for line in expected_output(text, run_id):
                assert line in printed, f"{text}\n{printed}"
            begun = re.findall(r"^Run ([0-9a-f]{32}), attempt", printed, re.MULTILINE)
            run_id = begun[-1] if begun else run_id


def in_its_speed(story):
    """Return a story as a parameter: `make test` runs those of README."""
    place = story[0].place
    marks = [pytest.mark.smoke] if place.startswith("README") else []
    return pytest.param(story, id=place, marks=marks)


@pytest.mark.slow
@pytest.mark.parametrize("story", [in_its_speed(story) for story in stories()])
def test_commands_do_what_they_say(story, project, tmp_path):
    """Each command of the pages succeeds, and prints what its paragraph promises."""
    project.restore()
    run_story(story, project, tmp_path)


@pytest.mark.slow
def test_the_table_of_keys_is_that_of_a_checkpoint(project):
    """The page names every key of `checkpoint.pth`, and every file of a run."""
    import torch

    project.restore()
    artifacts = project.folder / "mlruns" / "0" / project.run_id / "artifacts"
    saved = torch.load(artifacts / "checkpoints/epoch_10/checkpoint.pth", weights_only=True)
    text = section("What a checkpoint holds")
    documented = [key for row in cells(text) for key in re.findall(r"`(\w+)`", row[0])]
    assert sorted(documented) == sorted(saved)
    for path in re.findall(r"^((?:checkpoints|data|logs)/\S+)", text, re.MULTILINE):
        assert (artifacts / path).is_file() or path.startswith("logs/"), path


if __name__ == "__main__":
    between = r"(?<=<!-- options -->\n).*?(?=<!-- end of options -->)"
    page = OPTIONS.read_text()
    OPTIONS.write_text(re.sub(between, lambda _: f"{option_tables()}\n", page, flags=re.DOTALL))
