"""Tasks of somebody's own: their file is found, their options are options of the run."""

import json
import os
import subprocess
import sys

import pytest
from support import ROOT, cli, client

from onward.errors import UsageError
from train.kind import find_task
from train.tabular.options import Config

DIGITS = ROOT / "examples" / "digits.py"
SMALL = ("--epochs", "2", "--width", "2", "--threads", "1", "--log_model", "false")


def write(text, name="mine.py"):
    """Write a task file where the test works."""
    with open(name, "w") as file:
        file.write(text)
    return name


def train(*words):
    """Train digits; return what was printed and the run's ID."""
    result = cli("run", "--task", DIGITS, *SMALL, *words)
    assert result.exit_code == 0, result.output
    [line] = [text for text in result.output.splitlines() if ", attempt " in text]
    return result.output, line.split()[1].removesuffix(",")


def test_the_table_is_a_task_like_any_other():
    """It is found by its name, has the options it always had, and its module is what a file is."""
    kind = find_task()
    assert (kind.name, kind.declared, kind.file) == ("tabular", Config, None)
    for needed in ("Options", "open_task", "NAME"):
        assert hasattr(kind.module, needed)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import nowhere_at_all\n", "cannot be run: ModuleNotFoundError: No module named"),
        ("1/0\n", "cannot be run: ZeroDivisionError: division by zero"),
        ("def (:\n", "cannot be run: SyntaxError"),
        ("x = 1\n", "is no task: it has no function open_task"),
        (
            "from dataclasses import dataclass\n@dataclass\nclass Options:\n    width: int = 1\n",
            "Options is to be a dataclass with frozen=True",
        ),
        (
            "from dataclasses import dataclass\n@dataclass(frozen=True, kw_only=True)\n"
            "class Options:\n    width: int = 1\n",
            r"Options\.width is to be made by option",
        ),
        (
            "from dataclasses import dataclass\nfrom onward import option\n"
            "@dataclass(frozen=True, kw_only=True)\n"
            "class Options:\n    lr: float = option(1.0, 'A rate.', 'Mine')\n",
            "the option lr is there already",
        ),
        (
            "from dataclasses import dataclass\nfrom onward import option\n"
            "@dataclass(frozen=True, kw_only=True)\n"
            "class Options:\n    sizes: list = option((), 'Sizes.', 'Mine')\n",
            "Options.sizes is of list, and options are of",
        ),
    ],
)
def test_a_file_that_is_no_task_is_refused_in_one_line(isolated, text, told):
    """It says what is wrong, and in which file."""
    with pytest.raises(UsageError, match=told):
        find_task(write(text))
    result = cli("run", "--task", "mine.py")
    assert (result.exit_code, result.output.count("\n")) == (2, 1)


def test_a_file_that_is_not_there_is_told_with_its_path(isolated):
    """Where it was looked for is said."""
    result = cli("run", "--task", "gone.py")
    assert result.exit_code == 2
    assert os.path.abspath("gone.py") in result.output


def test_what_lies_beside_the_file_can_be_imported_and_hides_nothing(isolated):
    """A module of the user's in that folder is found; one called like ours is not taken for it."""
    write("WIDTH = 3\n", "beside.py")
    write("raise SystemExit('the wrong train')\n", "train.py")
    text = "import beside\nimport train.kind\ndef open_task(options, stored):\n    pass\n"
    assert find_task(write(text)).module.beside.WIDTH == 3


def test_its_options_are_in_the_help():
    """With their limits and defaults, in place of the table's."""
    shown = cli("run", "--task", DIGITS, "--help").output
    assert "--width" in shown
    assert "--shift" in shown
    assert "--target" not in shown
    assert "--batch_size" in shown
    assert "--width" not in cli("run", "--help").output


def test_its_options_are_parsed_and_validated(isolated):
    """As those of the table are: by their kind and their limits, also as name=value."""
    for word in ("--width=0", "width=0"):
        result = cli("run", "--task", DIGITS, word)
        assert (result.exit_code, "width=0 is too small" in result.output) == (2, True)
    result = cli("run", "--task", DIGITS, "--target", "price")
    assert (result.exit_code, "No such option" in result.output) == (2, True)


def test_a_run_of_it_is_tracked_listed_and_gone_on_with(tracking):
    """Params, tags, metrics, list, verify, show, resume, fork: as of a table, by its own metric."""
    told, run_id = train()
    assert "best val_accuracy" in told
    run = client(tracking.uri).get_run(run_id)
    assert (run.data.params["width"], run.data.tags["train.task"]) == ("2", "digits")
    assert run.data.tags["train.monitor"] == "val_accuracy:max"
    assert "best_val_accuracy" in run.data.metrics
    [row] = json.loads(cli("list", "--json").output)
    assert (row["monitor"], row["best_val_accuracy"]) == (
        "val_accuracy:max", run.data.metrics["best_val_accuracy"],
    )  # fmt: skip
    assert f"--task {DIGITS}" in row["go_on"]
    assert all(r["status"] == "ok" for r in json.loads(cli("verify", run_id, "--json").output))
    manifest = json.loads(cli("show", run_id, "--json").output)["manifest"]
    assert (manifest["format_version"], manifest["monitor"]) == (3, "val_accuracy:max")
    more, same = train("--resume_run", run_id, "--epochs", "3")
    assert same == run_id
    assert "Resuming training from epoch 3" in more
    [stretch] = [line for line in more.splitlines() if "A fork may stretch it" in line]
    assert f"--task {DIGITS}" in stretch  # else the command would be refused
    _told, fork = train("--resume_run", run_id, "--resume_epoch", "2", "--fork", "--epochs", "3",
                        "--shift", "0")  # fmt: skip
    assert fork != run_id


def test_what_publishes_it_is_told_with_its_task(tracking, monkeypatch):
    """Where the model could not be logged: without it the command takes the run for a table."""
    monkeypatch.setattr("onward.publish.results.log_checkpoint", lambda *_: 1 / 0)
    told, run_id = train("--log_model", "true")
    assert f"`train publish {run_id} --task {DIGITS}` logs the model" in told.replace("\n", " ")


def test_a_run_names_its_task_and_imports_nothing(tracking):
    """Gone on with without the file, it is refused in one line that says what to name."""
    _told, run_id = train()
    result = cli("run", "--resume_run", run_id, "--epochs", "3")
    assert result.exit_code != 0
    assert "trains the task 'digits'" in result.output
    assert "task=<file>" in result.output
    assert "trains the task 'digits'" in cli("predict", run_id, "rows.csv").output


def test_an_option_of_its_own_is_looked_at_on_a_resume(tracking):
    """One that makes another model is refused, one that makes another training needs a fork."""
    _told, run_id = train()
    again = ("run", "--task", DIGITS, "--resume_run", run_id, "--epochs", "3")
    result = cli(*again, "--width", "3")
    assert (result.exit_code, "width is 2 in run" in result.output) == (2, True)
    result = cli(*again, "--shift", "2")
    assert "--fork true" in result.output
    assert f"--task {DIGITS}" in result.output


def test_auto_finds_a_run_by_its_options(tracking):
    """With the same width it goes on with the unfinished run, with another it starts afresh."""
    _told, run_id = train()
    client(tracking.uri).set_terminated(run_id, "KILLED")
    assert train("--resume_run", "auto")[1] == run_id
    result = cli("run", "--task", DIGITS, "--epochs", "2", "--width", "3", "--threads", "1",
                 "--log_model", "false", "--resume_run", "auto")  # fmt: skip
    assert "starting a fresh one" in result.output


def test_a_metric_that_is_not_reported_is_told_with_those_that_are(tracking):
    """After the first epoch, in one line."""
    result = cli("run", "--task", DIGITS, *SMALL, "--monitor", "val_f1:max")
    assert result.exit_code == 2
    assert "val_f1 is to be watched, and the task reports val_loss, val_accuracy" in result.output


def test_importing_the_library_costs_nothing():
    """Neither torch nor MLflow nor NumPy is imported before a name is used."""
    script = "import sys, onward; print({'torch', 'mlflow', 'numpy', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "set()\n"


def test_the_public_names_are_these():
    """The surface does not grow by accident, and each name is there."""
    import onward

    assert sorted(onward.__all__) == [
        "Monitor", "OnResume", "Part", "Run", "ServedModel", "Stateful", "checkpoints", "errors",
        "open_run", "option", "seeded",
    ]  # fmt: skip
    assert set(dir(onward)) == {name for name in onward.__all__ if getattr(onward, name)}
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = onward.nope
