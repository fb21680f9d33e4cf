"""Every command that the program shows runs as shown, and trains to some use.

In each state that a run can be left in: what its log, its description, its page of checkpoints, the
lists and the errors say is typed, word by word.
"""

import html
import os
import re
import shlex
import signal

import pytest
from support import SMALL, cli, environment, launch_killed, write_table

from onward.options.command import Standing
from onward.run.run import Run
from train.tabular.task import TabularTask

LR = 2e-3
AT_THE_FLOOR = "at the last learning rate"  # where that is said, it is meant


@pytest.fixture
def train(tracking, tmp_path):
    """Return a function that trains on a small table; it returns (run ID, what was said)."""
    table = write_table(tmp_path / "table.csv", 200)

    def start(*options, exit_code=0):
        words = ["--data", table, "--target", "price", *SMALL, "--checkpoint_freq", 1, *options]
        result = cli("run", *words)
        assert result.exit_code == exit_code, result.output
        return re.search(r"Run (\w{32}), attempt", result.output)[1], result.output

    return start


def stopped_after_epoch(monkeypatch, number):
    """Let SIGTERM come right after an epoch was saved."""
    end_epoch = Run.end_unit

    def ended(run):
        end_epoch(run)
        if run.state.epoch == number:
            monkeypatch.setattr(Run, "end_unit", end_epoch)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Run, "end_unit", ended)


def at_batch(monkeypatch, number, act):
    """Call `act` in a batch, counted from the beginning."""
    loss, batches = TabularTask.loss, []

    def counted(task, *arguments):
        batches.append(1)
        if len(batches) == number:
            monkeypatch.setattr(TabularTask, "loss", loss)
            act()
        return loss(task, *arguments)

    monkeypatch.setattr(TabularTask, "loss", counted)


def fail():
    raise RuntimeError("the disk is on fire")


def finished(train, monkeypatch):
    return train("--epochs", 4)


def finished_without_a_schedule(train, monkeypatch):
    return train("--epochs", 4, "--schedule", "none")


def stopped_early(train, monkeypatch):
    evaluate = TabularTask.evaluate
    same = {"val_pearson": 0.5}
    monkeypatch.setattr(TabularTask, "evaluate", lambda task, m: {**evaluate(task, m), **same})
    run_id, said = train("--epochs", 9, "--early_stopping", 2)
    monkeypatch.setattr(TabularTask, "evaluate", evaluate)
    assert "FINISHED after epoch 3" in said
    assert "Stopped early" in said
    return run_id, said


def killed_at_the_end_of_an_epoch(train, monkeypatch):
    stopped_after_epoch(monkeypatch, 3)
    return train("--epochs", 4, exit_code=75)


def killed_inside_an_epoch(train, monkeypatch):
    at_batch(monkeypatch, 8, lambda: os.kill(os.getpid(), signal.SIGTERM))
    return train("--epochs", 4, exit_code=75)


def killed_inside_the_first_epoch(train, monkeypatch):
    at_batch(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    return train("--epochs", 4, exit_code=75)


def died_before_the_first_checkpoint(train, monkeypatch):
    at_batch(monkeypatch, 1, fail)
    return train("--epochs", 4, exit_code=1)


STATES = [
    finished, finished_without_a_schedule, stopped_early, killed_at_the_end_of_an_epoch,
    killed_inside_an_epoch, killed_inside_the_first_epoch, died_before_the_first_checkpoint,
]  # fmt: skip


def commands_in(text):
    """Return the commands of this program in a text, with what is said of them; no two equal."""
    found = re.findall(r"^(.*?)(train (?:run|sync|list|publish)\b[^`\n]*)", text, re.MULTILINE)
    return {command.strip().removesuffix("."): AT_THE_FLOOR in said for said, command in found}


def shown(tracking, run_id, said):
    """Return all commands that are shown of a run: command to whether it is at the floor."""
    record = tracking.get_run(run_id)
    pages = list((tracking.artifacts(record).folder / "checkpoints").glob("index.html"))
    codes = [c for p in pages for c in re.findall("<code>(train.*?)</code>", p.read_text())]
    errors = [
        cli("run", "--resume_run", run_id, *given).stderr
        for given in ([] if record.status == "FINISHED" else ["--lr", 0.01],
                      ["--batch_size", 32], ["--seed", 5, "--weight_decay", 0.1])
    ]  # fmt: skip
    assert all(error.startswith("error: ") for error in errors), errors
    lists = [cli("list").output, cli("list", run_id).output]
    note = record.tags["mlflow.note.content"]
    found = {}
    for text in (said, note, *map(html.unescape, codes), *lists, *errors):
        found |= commands_in(text)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_every_command_runs_as_shown_and_trains(tracking, train, monkeypatch, state):
    """None is refused, and each makes at least one epoch, at a rate that is not near zero."""
    run_id, said = state(train, monkeypatch)
    found = shown(tracking, run_id, said)
    assert found
    # What goes on with the run itself comes last: it changes what the others are about.
    for command in sorted(found, key=lambda c: "--fork true" not in c):
        lr_before = [m.value for m in tracking.client.get_metric_history(run_id, "lr")]
        result = cli(*shlex.split(command)[1:])
        assert result.exit_code == 0, f"{command}\n{result.output}"
        if command.startswith("train list"):
            continue
        new_id = re.search(r"Run (\w{32}), attempt", result.output)[1]
        rates = [m.value for m in tracking.client.get_metric_history(new_id, "lr")]
        epochs = [int(e) for e in re.findall(r"^epoch (\d+)  ", result.output, re.MULTILINE)]
        if new_id != run_id or len(rates) > len(lr_before):
            assert epochs, f"{command}\n{result.output}"
        lr = float((re.findall(r"--lr (\S+)", command) or [LR])[0])
        if epochs and not found[command]:
            assert max(rates[epochs[0] - 1 :]) >= lr / 8, f"{command}\n{rates}"


@pytest.mark.slow
def test_what_a_later_attempt_overtook_is_gone_on_with_as_shown(tracking, train, tmp_path):
    """The command that makes a run of what waits on a disk, and the one that this shows, run."""
    words = ["--data", tmp_path / "table.csv", "--target", "price", *SMALL, "--epochs", 4]
    here, elsewhere = environment(tmp_path / "home", tracking.uri), str(tmp_path / "elsewhere")
    launch_killed("before:upload@2", *map(str, words), cwd=tmp_path, env=here)
    [run] = tracking.search_runs("0")
    os.environ["TRAIN_HOME"] = elsewhere
    assert cli("run", "--resume_run", run.run_id, "--take_over").exit_code == 0
    os.environ["TRAIN_HOME"] = here["TRAIN_HOME"]
    said = cli("sync", run.run_id).output
    for start in ("train sync", "train run"):
        [command] = [c for c in commands_in(said) if c.startswith(start)]
        result = cli(*shlex.split(command)[1:])
        assert result.exit_code == 0, f"{command}\n{result.output}"
        said = result.output
    assert "FINISHED after epoch 4" in said


@pytest.mark.slow
def test_the_model_of_a_run_is_used_as_its_page_says(tracking, train):
    """The description of the logged model has the command that predicts the rows of a file."""
    train("--epochs", 2, "--log_model", "true")
    [model] = tracking.client.search_logged_models(["0"])
    note = model.tags["mlflow.note.content"]
    [command] = re.findall(r"^train predict .*$", note, re.MULTILINE)
    result = cli(*shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 201


@pytest.mark.parametrize(
    ("standing", "in_place", "go_on", "fork"),
    [
        (("r", False, 3, 20, 0, 2, 20), {}, {}, {}),
        (("r", False, 15, 20, 0, 2, 20), {}, {}, {"epochs": 30, "schedule_epochs": 30}),
        (("r", False, 5, 20, 0, 2, 6), {}, {}, {"epochs": 20, "schedule_epochs": 20}),
        (("r", True, 20, 20, 0, 9, 20), {"epochs": 40},
         {"epochs": 40, "schedule_epochs": 40, "fork": True},
         {"epochs": 40, "schedule_epochs": 40}),
        (("r", True, 20, 20, 0, 9, 90), {"epochs": 40}, {"epochs": 40},
         {"epochs": 40, "schedule_epochs": 90}),
        (("r", True, 20, 20, 0, 9, None), {"epochs": 40}, {"epochs": 40}, {"epochs": 40}),
        (("r", True, 8, 20, 3, 5, 20), {"epochs": 20, "early_stopping": 0},
         {"epochs": 20, "early_stopping": 0}, {}),
        (("r", True, 20, 20, 3, None, None), {"epochs": 40, "early_stopping": 0},
         {"epochs": 40, "early_stopping": 0}, {"epochs": 40}),
        (("r", True, 0), {"epochs": 2}, {"epochs": 2}, {}),
    ],
)  # fmt: skip
def test_what_goes_on_from_a_run_is_by_how_it_stands(standing, in_place, go_on, fork):
    """Epochs are left to train, early stopping does not end it at once, the rate is not zero."""
    run, start = Standing(*standing), {"resume_run": "r"}
    assert run.in_place() == start | in_place
    assert run.go_on() == start | go_on
    assert run.fork_from("best") == {**start, "resume_epoch": "best", "fork": True, **fork}
