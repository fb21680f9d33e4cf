"""The command line: options become values, errors one line and an exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import BIN, environment

from onward import errors
from onward.cli import listing
from onward.cli import main as onward_cli
from onward.options.declare import options_of
from onward.options.request import Launch
from onward.system.environment import Ranks
from onward.system.environment import ranks as ranks_of_this
from onward.tracking.client import Tracking
from train.cli import main
from train.tabular.options import Config

ROOT = Path(__file__).parents[1]


def call(*arguments):
    """Run the command line in this process."""
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize("program", [main, onward_cli.main], ids=["train", "onward"])
def test_help_lists_the_commands(program):
    """`train --help`, and `onward --help`, names what can be done."""
    result = CliRunner().invoke(program, ["--help"])
    assert result.exit_code == 0
    listed = result.output.partition("Commands:")[2]
    for name, command in program.commands.items():
        assert f"  {name} " in listed
        assert command.help.split(";")[0].split(",")[0][:30] in " ".join(listed.split())
    assert "list" in program.commands
    assert ("run" in program.commands) == (program is main)


def test_train_has_all_that_onward_has():
    """What looks after runs whatever they train is in both, with the same options at least."""
    assert set(main.commands) - set(onward_cli.main.commands) == {"run", "predict", "publish"}
    for name, command in onward_cli.main.commands.items():
        both = [{o for p in c.params for o in p.opts} for c in (command, main.commands[name])]
        assert both[0] <= both[1], name


def test_help_lists_every_option_under_its_heading():
    """No option is missing from `train run --help`, and each has its sentence."""
    result = call("run", "--help")
    words = " ".join(result.output.split())
    assert result.exit_code == 0
    for config_class in (Launch, Config):
        for name, (_, opt) in options_of(config_class).items():
            assert f"--{name} " in words
            assert f"{opt.group}:" in words
            assert opt.help.split(",")[0][:30] in words


def test_an_unknown_option_suggests_the_near_one():
    """A typing error is answered with the option that was meant."""
    result = call("run", "--checkpoint_frq", "3")
    assert result.exit_code == 2
    assert "--checkpoint_frq" in result.stderr
    assert "Did you mean" in result.stderr
    assert "'--checkpoint_freq'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint_freq", "0"], "error: checkpoint_freq=0 is too small: the least is 1"),
        (["--epochs", "0"], "error: epochs=0 is too small: the least is 1"),
        (["epochs=0"], "error: epochs=0 is too small: the least is 1"),
        (["--strict", "true", "checkpoint-freq=0"], "error: checkpoint_freq=0 is too small"),
        (["--tags", "a=b", "tags=a=c", "epochs=0"], "error: epochs=0 is too small"),
        (["no_such=1"], "error: No such option '--no_such'"),
        (["resume_run="], "error: resume_run= has no value"),
        (["--epochs", "many"], "error: epochs='many' is not a whole number"),
        (["--schedule", "linear"], "error: schedule='linear' is not one of cosine, plateau, none"),
        (["--fork"], "error: fork needs resume_run=<id>"),
        (["--resume_epoch", "5"], "error: resume_epoch needs resume_run=<id>"),
        (["--resume_run", "r", "--resume_from", "f"], "error: give either resume_run or"),
    ],
)
def test_a_bad_value_is_one_line_and_exit_code_2(arguments, message, tmp_path):
    """What cannot be used is told before anything is opened or written."""
    result = call("run", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


LIVES = "named by torchrun's job"


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        ({}, Ranks()),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}, Ranks(1, 2, 1)),
        ({"WORLD_SIZE": "8", "RANK": "0"}, Ranks(0, 8)),
        ({"WORLD_SIZE": "many"}, Ranks()),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}, Ranks()),
        (
            {"WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "2"},
            Ranks(life=2, has_agent=True, lives_file=LIVES),
        ),
    ],
)
def test_a_process_knows_its_rank(monkeypatch, variables, ranks):
    """By what torchrun tells each of those that it starts; Slurm's own numbers are of its tasks."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    found = ranks_of_this()
    assert found._replace(lives_file=found.lives_file and LIVES) == ranks


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("run", "--checkpoint-freq", "0"),
        ("run", "--batch-size=0", None),
        ("prune", "--keep-last", "0"),
        ("prune", "--dry-run", None),
        ("sync", "--as-fork", "perhaps"),
    ],
)
def test_hyphens_are_taken_for_underscores(tracking, command, option, value):
    """The script version wrote `--checkpoint-freq`; the help shows underscores."""
    words = [] if command == "run" else ["0" * 32]
    result = call(command, *words, option, *([value] if value else []))
    assert "No such option" not in result.stderr
    name = option[2:].partition("=")[0].replace("-", "_")
    assert f"--{name}" in call(command, "--help").output
    if command == "run":
        assert result.stderr.startswith(f"error: {name}=0 is too small")


def test_what_others_wrote_is_one_line_of_an_error(opened, monkeypatch):
    """A name with control characters forges no line, and a password in an address is not told."""
    from onward.opening import together as launch

    def fail(*_):
        raise errors.RunNotUsable("r\n2026 INFO fine \x1b[2J", "is at http://me:pa/ss@host/x")

    monkeypatch.setattr(launch, "open_run", fail)
    result = call("run")
    assert result.stderr.count("\n") == 1
    assert "r\\n2026 INFO fine \\x1b[2J" in result.stderr
    assert "ss@" not in result.stderr
    assert "http://***@host/x" in result.stderr


@pytest.fixture
def opened(monkeypatch):
    """Return what `open_run` was called with; it ends there."""
    from onward.opening import together as launch

    seen = {}

    def open_run(kind, given, launch, reporter, world):
        seen.update(kind=kind, given=given, launch=launch)
        raise errors.UsageError("seen")

    monkeypatch.setattr(launch, "open_run", open_run)
    return seen


@pytest.mark.parametrize(
    ("arguments", "given", "launch"),
    [
        ([], {}, {}),
        (["--epochs", "3", "--drop", "a, b"], {"epochs": 3, "drop": ("a", "b")}, {}),
        (["--lr", "1e-3", "--target", "none"], {"lr": 1e-3, "target": None}, {}),
        (["--epochs", "20"], {"epochs": 20}, {}),
        (["--resume_run", "r", "--fork"], {}, {"resume_run": "r", "fork": True}),
        (["--fork", "true", "--resume_run=r"], {}, {"resume_run": "r", "fork": True}),
        (["--resume_run", "r", "--fork", "false"], {}, {"resume_run": "r", "fork": False}),
        (
            ["--resume_run", "r", "--resume_epoch", "5", "--seed", "1"],
            {"seed": 1},
            {"resume_run": "r", "resume_epoch": "5"},
        ),
    ],
)
def test_only_what_was_given_reaches_the_run(opened, arguments, given, launch):
    """A default is told from a given value: on a resume the others keep the run's values."""
    result = call("run", *arguments)
    assert result.stderr == "error: seen\n"
    assert opened["kind"].name == "tabular"
    assert opened["given"] == given
    assert opened["launch"] == Launch(**launch)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.TrainError("x"), 1),
        (errors.UsageError("x"), 2),
        (errors.DataError("x"), 3),
        (errors.CheckpointNotFound("r", "epoch 1", []), 4),
        (errors.NonFinite("loss", float("nan"), 1, 2, 0.1), 5),
        (errors.RunNotUsable("r", "x"), 6),
        (errors.StoreUnavailable("x"), 7),
        (errors.Superseded("r", 1, 2), 8),
        (errors.Interrupted("SIGTERM", 1), 75),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_its_message_and_its_exit_code(tracking, monkeypatch, error, code):
    """Scripts and schedulers tell the kinds of failure apart by the exit code."""

    def fail(tracking):
        raise error

    monkeypatch.setattr(listing, "run_rows", fail)
    result = call("list")
    assert result.exit_code == code
    assert result.stderr == f"error: {error}\n"
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["list", "run"])
def test_ctrl_c_is_one_line_and_exit_code_75(tracking, monkeypatch, command):
    """A stop while nothing runs yet ends like one in training."""

    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Tracking, "__init__", stop)
    result = call(command)
    assert result.exit_code == 75
    assert result.stderr.endswith("error: stopped by a signal\n")
    assert len(result.stderr.splitlines()) == 1


def test_what_a_terminal_cannot_show_is_no_error(tmp_path):
    """A letter that its encoding lacks is shown as a question mark."""
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "LANGUAGE": "zh", "LC_ALL": "zh_CN.UTF-8"}
    env["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path}/mlflow.db"
    command = [sys.executable, "-m", "train", "list"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "??" in done.stdout


@pytest.mark.parametrize("debug", [["--debug"], ["--debug", "true"]])
def test_debug_shows_where_an_error_came_from(opened, debug):
    """With `--debug` the error itself comes out, for its traceback."""
    result = call("run", *debug)
    assert isinstance(result.exception, errors.UsageError)
    assert call("run", "--debug", "false").exit_code == 2


def test_list_shows_runs_and_checkpoints(tracking, record, commit_to):
    """Without a run its table has the runs, with one its checkpoints."""
    commit_to(record, {1: 0.5, 2: 0.7})
    assert record.run_id in call("list").stdout
    result = call("list", record.run_id)
    assert result.exit_code == 0
    assert "checkpoints/epoch_2/checkpoint.pth" in result.stdout


def test_list_json_is_only_json(tracking, record, commit_to):
    """`--json` writes nothing but JSON to standard output."""
    commit_to(record, {1: 0.5, 2: 0.7})
    [run] = json.loads(call("list", "--json").stdout)
    assert run["run_id"] == record.run_id
    rows = json.loads(call("list", "--json", record.run_id).stdout)
    assert [(row["epoch"], row["best"]) for row in rows] == [(1, False), (2, True)]


def test_list_of_an_unknown_run_is_one_line_and_exit_code_6(tracking):
    """A mistyped run ID is told with where it was looked for."""
    result = call("list", "nonesuch")
    assert result.exit_code == 6
    assert result.stderr.startswith("error: run 'nonesuch' is not on the tracking server sqlite:")
    assert result.stderr.count("\n") == 1


def modules_after(*arguments, program="train.cli", **environment):
    """Return the top-level modules that a process has after a command."""
    code = (
        "import sys\n"
        f"from {program} import main\n"
        f"main({list(arguments)!r}, standalone_mode=False)\n"
        "print('\\n' + ' '.join({name.split('.')[0] for name in sys.modules}))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list", "--help"]])
def test_help_is_quick(arguments):
    """Help imports none of the libraries that take seconds."""
    assert not {"torch", "mlflow", "numpy", "pyarrow", "scipy"} & modules_after(*arguments)


@pytest.mark.slow
def test_onward_does_without_the_trainer(tracking, record, commit_to):
    """A listing by `onward` imports neither torch nor anything of `train`."""
    commit_to(record, {1: 0.5})
    where = {"program": "onward.cli.main", "MLFLOW_TRACKING_URI": tracking.uri}
    assert not {"torch", "mlflow", "train"} & modules_after("list", "--help", **where)
    modules = modules_after("list", record.run_id, **where)
    assert "mlflow" in modules
    assert not {"torch", "train"} & modules


@pytest.mark.slow
def test_list_does_without_torch(tracking, record, commit_to):
    """A listing imports mlflow, which it needs, and not torch."""
    commit_to(record, {1: 0.5})
    for arguments in (["list"], ["list", record.run_id]):
        modules = modules_after(*arguments, MLFLOW_TRACKING_URI=tracking.uri)
        assert "mlflow" in modules
        assert "torch" not in modules


@pytest.mark.slow
@pytest.mark.parametrize("program", ["train", "onward"])
def test_each_module_is_its_program(tmp_path, program):
    """`python -m onward` is `onward`: it lists what `train` lists."""
    env = environment(tmp_path / "home", f"sqlite:///{tmp_path}/mlflow.db")
    commands = [[sys.executable, "-m", program, "list"], [BIN / program, "list"]]
    for command in commands:
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "no run here has a checkpoint" in done.stdout


@pytest.mark.slow
def test_the_module_is_the_program():
    """`train` ends with the exit code, and prints no traceback."""
    command = [sys.executable, "-m", "train", "run", "--epochs", "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert done.stderr == "error: epochs=0 is too small: the least is 1\n"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["list"], ["run", "--epochs", "0"], ["sync", "0" * 32]])
def test_a_train_py_of_the_users_own_is_left_alone(tmp_path, arguments):
    """The console command, which messages name, is this program also where that file is."""
    (tmp_path / "train.py").write_text("raise SystemExit('the user\\'s own was run')\n")
    env = environment(tmp_path / "home", f"sqlite:///{tmp_path}/mlflow.db")
    command = [BIN / "train", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "own" not in done.stderr
    assert done.returncode == {"list": 0, "run": 2, "sync": 6}[arguments[0]], done.stderr


def test_help_shows_defaults_that_are_zero():
    """A default of 0 is shown like any other."""
    words = " ".join(call("run", "--help").output.split())
    assert "0: never. [0]" in words
    assert "batches and dropout. [0]" in words


def test_help_can_be_asked_for_as_mlflow_passes_it():
    """`mlflow run . -P help=true` gives `--help true`: the options are listed, nothing is run."""
    asked = call("run", "--help", "true")
    assert asked.exit_code == 0
    assert asked.output == call("run", "--help").output


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["train", ""], {"run", "list", "predict"}),
        (["train", "run", "--sched"], {"--schedule", "--schedule_epochs"}),
        (["train", "run", "--schedule", ""], {"cosine", "plateau", "none"}),
        (["train", "run", "--fork", "t"], {"true"}),
    ],
)
def test_the_shell_can_complete_commands_options_and_choices(typed, offered):
    """What click tells the shell to offer holds what can be typed there."""
    from click.shell_completion import BashComplete

    found = BashComplete(main, {}, "train", "_TRAIN_COMPLETE").get_completions(
        typed[1:-1], typed[-1]
    )
    assert offered <= {item.value for item in found}
