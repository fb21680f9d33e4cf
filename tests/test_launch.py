"""Opening a run in this process: which one `auto` takes, and what is checked before it goes on."""

import ctypes
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support import SMALL, cli, client, wait_for, write_table
from support import environment as environment_of

from onward.attempts import heartbeat
from onward.attempts.heartbeat import Beat
from onward.errors import RunNotUsable
from onward.opening import open as launch
from onward.options.request import Launch
from onward.run import recording, signals
from onward.system import environment, processes
from onward.terminal.report import Reporter
from onward.tracking.names import MONITOR_TAG, NOTE_TAG, OPTIONS_TAG
from train.kind import find_task

EPOCHS = 2


@pytest.fixture(autouse=True)
def table(tmp_path):
    """Make a small table; return its path."""
    return write_table(tmp_path / "table.csv", num_rows=80)


@pytest.fixture
def train(tracking, table):
    """Return a function that trains with those options, and returns click's result."""

    def run(*options, data=table, epochs=EPOCHS, succeeds=True):
        result = cli(
            "run", *SMALL, "--data", data, "--target", "price", "--epochs", epochs, *options
        )
        assert not succeeds or result.exit_code == 0, result.output
        return result

    return run


def mains(tracking):
    """Return the runs that are no attempt of another, newest first."""
    runs = tracking.client.search_runs(["0"], order_by=["attributes.start_time DESC"])
    return [r for r in runs if "mlflow.parentRunId" not in r.data.tags]


def attempts(tracking, run):
    return tracking.get_run(run.info.run_id).attempts


@pytest.fixture
def preempted(train, tracking):
    """Return a run that was stopped after two epochs of the four it was asked for."""
    train("--schedule_epochs", "4")
    wait_for(lambda: not [t for t in threading.enumerate() if t.name == "heartbeat"])  # its last
    [run] = mains(tracking)
    options = json.loads(run.data.tags[OPTIONS_TAG]) | {"epochs": 4}
    tracking.set_tags(run.info.run_id, {OPTIONS_TAG: json.dumps(options)})
    tracking.set_status(run.info.run_id, "KILLED")
    return run


@pytest.fixture
def auto(train):
    """Return a function that starts the command line that made `preempted`, with `auto`."""

    def start(*options, **more):
        options = ("--resume_run", "auto", "--schedule_epochs", "4", *options)
        return train(*options, **{"epochs": 4, **more})

    return start


def test_auto_goes_on_with_the_run_of_the_same_options_and_data(auto, tracking, preempted):
    """One command line for a scheduler: it finds the run by itself, and finishes it."""
    result = auto()
    [run] = mains(tracking)
    assert run.info.run_id == preempted.info.run_id
    user = run.data.tags["mlflow.user"]
    whose = f"({run.info.run_name} of {user}, started "
    assert f"Going on with run '{run.info.run_id}' {whose}" in result.output.replace("\n", " ")
    assert "Resuming training from epoch 3" in result.output
    assert (run.info.status, attempts(tracking, run)) == ("FINISHED", 2)
    history = tracking.client.get_metric_history(run.info.run_id, "val_loss")
    assert [m.step for m in history] == [1, 2, 3, 4]


def test_auto_starts_afresh_where_there_is_none(auto, tracking):
    """The first start of that command line."""
    result = auto()
    assert "No unfinished run has these options and this data" in result.output
    [run] = mains(tracking)
    assert run.info.status == "FINISHED"


def test_auto_leaves_a_finished_run_alone(auto, tracking):
    """It has what it was asked for; the same again is another run."""
    auto()
    auto()
    assert [attempts(tracking, run) for run in mains(tracking)] == [1, 1]


@pytest.mark.parametrize("status", ["KILLED", "FAILED"])
def test_auto_takes_the_newest_of_several(auto, tracking, preempted, status):
    """Also one that failed: what was wrong may be gone."""
    auto()  # finishes the first
    auto()  # a second one
    second, first = mains(tracking)
    for run in (first, second):
        tracking.set_status(run.info.run_id, status)
    auto()
    assert [attempts(tracking, run) for run in mains(tracking)] == [2, 2]


@pytest.mark.parametrize(
    "options",
    [("--lr", "0.1"), ("--seed", "1"), ("--hidden_size", "17"), ("--dropout", "0.1"),
     ("--schedule", "none"), ("--schedule_epochs", "5"), ("--split_seed", "3"),
     ("--val_fraction", "0.3"), ("--drop", "color"), ("--batch_size", "32"),
     ("--accumulation_steps", "2")],
)  # fmt: skip
def test_auto_leaves_a_run_of_other_options_alone(auto, tracking, preempted, options):
    """Whatever makes it another training makes it another run."""
    auto(*options)
    assert attempts(tracking, preempted) == 1
    assert len(mains(tracking)) == 2


def test_auto_leaves_a_run_of_other_data_alone(auto, tracking, preempted, tmp_path):
    """The rows count, not where they lie."""
    (tmp_path / "other").mkdir()
    same = tmp_path / "other" / "table.csv"
    same.write_bytes((tmp_path / "table.csv").read_bytes())
    other = write_table(tmp_path / "other.csv", num_rows=80, seed=1)
    auto(data=other)
    assert attempts(tracking, preempted) == 1
    auto(data=same)
    assert attempts(tracking, preempted) == 2


@pytest.mark.parametrize(
    "options",
    [("--checkpoint_freq", "1"), ("--keep_last", "3"), ("--upload", "sync"), ("--strict", "true"),
     ("--early_stopping", "50"), ("--device", "cpu")],
)  # fmt: skip
def test_auto_goes_on_where_only_the_handling_differs(auto, tracking, preempted, options):
    """What a resume may change does not make it another run."""
    auto(*options)
    assert attempts(tracking, preempted) == 2


def test_auto_extends_a_run_whose_schedule_is_given(auto, train, tracking, preempted):
    """More epochs on the same schedule are the same run; without it, they are another schedule."""
    auto(epochs=6)
    assert attempts(tracking, preempted) == 2
    tracking.set_status(preempted.info.run_id, "KILLED")
    train("--resume_run", "auto", epochs=6)
    assert attempts(tracking, preempted) == 2
    assert len(mains(tracking)) == 2


def test_auto_goes_on_on_a_machine_with_other_cores(auto, tracking, preempted, monkeypatch):
    """The number of threads is chosen by the machine, and then part of the run."""
    monkeypatch.setattr(environment, "num_cpus", lambda: 64)
    monkeypatch.setattr(environment, "hostname", lambda: "with 64 cores")
    monkeypatch.setattr(environment, "choose_threads", lambda *_: 3)
    auto()
    [run] = mains(tracking)
    assert attempts(tracking, run) == 2
    assert json.loads(run.data.tags[OPTIONS_TAG])["threads"] == 1


@pytest.mark.parametrize(("threads", "is_taken"), [("0", True), ("1", True), ("2", False)])
def test_auto_and_a_number_of_threads(auto, tracking, preempted, threads, is_taken):
    """Left to choose it is the run's; another one is another run, not a refusal for ever."""
    auto("--threads", threads)
    assert attempts(tracking, preempted) == 1 + is_taken
    assert len(mains(tracking)) == 2 - is_taken


def test_what_was_committed_while_it_waited_makes_an_older_epoch_a_fork(
    tracking, preempted, monkeypatch, tmp_path
):
    """The epoch that was asked for was the newest when the wait for another machine began."""
    run_id = preempted.info.run_id

    def wait(tracking, record, take_over):
        with monkeypatch.context() as patch:
            patch.setenv("TRAIN_HOME", str(tmp_path / "elsewhere"))
            result = cli("run", "--resume_run", run_id, "--epochs", "3")
        assert result.exit_code == 0, result.output
        return tracking.get_run(run_id)

    with monkeypatch.context() as patch:
        waits = iter([wait])
        free = launch.wait_until_free
        patch.setattr(
            launch, "wait_until_free",
            lambda tracking, record, take_over: next(waits, free)(tracking, record, take_over),
        )  # fmt: skip
        result = cli("run", "--resume_run", run_id, "--resume_epoch", "2")
    assert result.exit_code == 0, result.output
    fork, _ = mains(tracking)
    assert fork.data.tags["train.forked_from_run"] == run_id
    assert (fork.data.tags["train.forked_from_epoch"], fork.info.status) == ("2", "FINISHED")
    assert attempts(tracking, preempted) == 2


@pytest.fixture
def open_and_die(table, monkeypatch):
    """Return a function that opens a run and dies before its first epoch, without a word."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    started = processes._started(dead.pid)
    dead.wait()

    def die(resume_run="auto", **options):
        given = {"data": str(table), "target": "price", "batch_size": 64, "hidden_size": 16,
                 "num_layers": 1, "epochs": 4, "schedule_epochs": 4, **options}  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(processes, "this", lambda: (dead.pid, started))
            run = launch.open_run(find_task(), given, Launch(resume_run=resume_run), Reporter())
        run.life.release()
        return run.run_id

    return die


def test_auto_finds_a_run_that_died_before_its_first_checkpoint(auto, tracking, open_and_die):
    """Its claim and its options are there: no second run is begun."""
    run_id = open_and_die()
    result = auto()
    [run] = mains(tracking)
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    assert f"Run '{run_id}' died before its first checkpoint" in result.output
    host = environment.hostname()
    assert run.data.tags["train.attempt.1"] == f"no epoch on {host}, vanished"
    assert run.data.tags["train.attempt.2"] == f"epochs 1-4 on {host}, finished"


def test_many_deaths_before_the_first_checkpoint_make_one_run(auto, tracking, open_and_die):
    """An endless restart on machines that die at once leaves one run with many attempts."""
    assert len({open_and_die() for _ in range(4)}) == 1
    auto()
    [run] = mains(tracking)
    assert (run.info.status, attempts(tracking, run)) == ("FINISHED", 5)


def test_auto_does_not_enter_a_living_run(auto, tracking, preempted, monkeypatch):
    """The same command line on a second machine is refused, and does not train it twice."""
    run_id = preempted.info.run_id
    tracking.set_status(run_id, "RUNNING")
    tracking.set_tags(run_id, Beat.of_this_process(1, 9, {}).to_tag())
    result = auto(succeeds=False)
    assert result.exit_code == 6
    assert f"is being trained by process {os.getpid()} on this machine" in result.stderr
    assert attempts(tracking, preempted) == 1


def test_take_over_takes_a_run_from_a_machine_that_may_live(train, tracking, preempted):
    """Nobody is waited for; what the one before did is told."""
    run_id = preempted.info.run_id
    elsewhere = dataclasses.replace(Beat.of_this_process(1, 9, {}), machine="other", host="there")
    tracking.set_status(run_id, "RUNNING")
    tracking.set_tags(run_id, elsewhere.to_tag())
    result = cli("run", "--resume_run", run_id, "--take_over", "true")
    assert result.exit_code == 0, result.output
    assert attempts(tracking, preempted) == 2


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_after_the_end_does_not_make_it_a_failure(train, tracking, monkeypatch, number):
    """A scheduler would start a run again that is finished, and `auto` would train another."""
    close = Reporter.close_log

    def signalled(reporter):
        os.kill(os.getpid(), number)
        close(reporter)

    monkeypatch.setattr(Reporter, "close_log", signalled)
    assert train(succeeds=False).exit_code == 0
    [run] = mains(tracking)
    assert run.info.status == "FINISHED"


# What is not as it was.


@pytest.fixture
def old_torch(monkeypatch):
    """Let the checkpoint have been made by another torch, and other code."""
    then = environment.describe

    def describe(*arguments):
        told = then(*arguments)
        return told | {"versions": told["versions"] | {"torch": "1.0"}, "code": "a" * 40}

    with monkeypatch.context() as patch:
        patch.setattr(environment, "describe", describe)
        yield patch


def test_drift_is_told_once_and_training_goes_on(old_torch, tracking, preempted, auto):
    """The table is in the log of the attempt."""
    old_torch.undo()
    lines = auto().output.splitlines()
    assert sum("Not everything is as it was at the checkpoint" in line for line in lines) == 1
    torch = environment.versions()["torch"]
    assert [line for line in lines if line.endswith(f" 1.0 -> {torch}")]
    assert sum("last bits" in line for line in lines) == 1


def test_strict_refuses_drift_before_anything_is_claimed(old_torch, tracking, preempted, auto):
    """The run is as it was, and the message has the command that forks."""
    old_torch.undo()
    run_id = preempted.info.run_id
    before = tracking.get_run(run_id)
    result = auto("--strict", "true", succeeds=False)
    assert result.exit_code == 6
    assert "is not continued with strict=true: code was aaaa" in result.stderr
    assert "torch was 1.0 and is " in result.stderr
    assert f"--resume_run {run_id} --fork true" in result.stderr
    assert result.stderr.count("\n") == 1
    assert tracking.get_run(run_id) == before


# Clocks and folders.


def test_a_clock_that_runs_backwards_makes_a_curve_that_does_not(
    train, tracking, monkeypatch, preempted
):
    """Between epochs and between attempts: each step is there once, later than the one before."""
    run_id = preempted.info.run_id
    for epochs, start in ((4, 10**12), (6, 10**9), (8, 0)):
        times = iter(range(start, start - 10**9, -1000))
        with monkeypatch.context() as patch:
            patch.setattr(recording, "now_ms", lambda times=times: next(times))
            patch.setattr(heartbeat, "now_ms", lambda times=times: next(times))
            result = cli("run", "--resume_run", run_id, "--epochs", epochs)
        assert result.exit_code == 0, result.output
    for key in ("val_loss", "train_loss", "val_pearson", "system/epoch_seconds"):
        found = tracking.client.get_metric_history(run_id, key)
        assert sorted(m.step for m in found) == list(range(1, 9))
        times = [m.timestamp for m in sorted(found, key=lambda m: m.step)]
        assert times == sorted(set(times))
    assert tracking.get_run(run_id).status == "FINISHED"


@pytest.mark.parametrize("variable", ["ID", "NAME"])
def test_an_experiment_that_cannot_be_used_ends_in_one_line(train, tracking, variable):
    """Wrong or deleted, with what to do."""
    gone = tracking.client.create_experiment("gone")
    tracking.client.delete_experiment(gone)
    os.environ[f"MLFLOW_EXPERIMENT_{variable}"] = "999" if variable == "ID" else "gone"
    result = train(succeeds=False)
    assert result.exit_code == 7
    assert result.stderr.count("\n") == 1
    way_out = "unset MLFLOW_EXPERIMENT_ID" if variable == "ID" else "mlflow experiments restore"
    assert way_out in result.stderr


def test_a_deleted_run_ends_in_one_line(train, tracking, preempted):
    """Its way out is in it; `auto` and `latest` do not see it."""
    run_id = preempted.info.run_id
    tracking.client.delete_run(run_id)
    result = cli("run", "--resume_run", run_id)
    assert result.exit_code == 6
    assert result.stderr.count("\n") == 1
    assert f"mlflow runs restore --run-id {run_id}" in result.stderr
    with pytest.raises(RunNotUsable, match="no unfinished run"):
        launch.find_run(tracking, "latest")


DROP_BOUNDING, DAC_OVERRIDE = 24, 1  # of prctl and of Linux's capabilities


def obey_permissions():
    """Let the program that starts now be refused what a folder's mode refuses, root included."""
    if os.getuid() == 0:
        ctypes.CDLL(None).prctl(DROP_BOUNDING, DAC_OVERRIDE, 0, 0, 0)


@pytest.fixture
def start_read_only(tmp_path, table):
    """Return a function that trains in a folder that cannot be written; all else is elsewhere."""
    here, home = tmp_path / "here", tmp_path / "home"
    for folder in (here, home):
        folder.mkdir()
    here.chmod(0o555)
    env = environment_of(home, f"sqlite:///{home}/mlflow.db")

    def start(command, **variables):
        return subprocess.run(
            command, cwd=here, env=env | variables, preexec_fn=obey_permissions,
            capture_output=True, text=True, timeout=240,
        )  # fmt: skip

    if start(["touch", "file"]).returncode == 0:
        pytest.skip("this user can write to any folder")
    options = [*SMALL, "--data", str(table), "--target", "price", "--epochs", "2"]
    program = [sys.executable, "-m", "train", "run", *options]
    yield lambda **variables: start(program, **variables)
    assert list(here.iterdir()) == []
    here.chmod(0o755)


@pytest.mark.slow
def test_a_working_directory_that_cannot_be_written_is_no_hindrance(start_read_only, tmp_path):
    """Where all files have their place, a checkout may be mounted read-only."""
    uri = f"sqlite:///{tmp_path}/home/mlflow.db"
    made = client(uri).create_experiment("elsewhere", str(tmp_path / "home" / "files"))
    done = start_read_only(MLFLOW_EXPERIMENT_NAME="elsewhere")
    assert done.returncode == 0, done.stderr
    [run] = client(uri).search_runs([made])
    assert run.info.status == "FINISHED"
    assert (tmp_path / "home" / "files" / run.info.run_id / "artifacts" / "checkpoints").is_dir()


@pytest.mark.slow
def test_files_that_would_lie_in_such_a_directory_end_it_in_one_line(start_read_only, tmp_path):
    """MLflow's default for a database is `./mlruns`; the run that was begun is closed."""
    done = start_read_only()
    assert done.returncode == 7
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "here") in done.stderr
    [run] = client(f"sqlite:///{tmp_path}/home/mlflow.db").search_runs(["0"])
    assert run.info.status == "FAILED"


@pytest.fixture
def script_file(train, tracking, tmp_path):
    """Return a script's file for the table, whose optimizer was SGD, and its weights."""
    import torch

    train()
    [run] = mains(tracking)
    path = tmp_path / "script.pth"
    store = tracking.artifacts(tracking.get_run(run.info.run_id)).folder
    tracking.client.delete_run(run.info.run_id)
    content = torch.load(store / "checkpoints" / f"epoch_{EPOCHS}" / "checkpoint.pth")
    weights = {k: v.clone() for k, v in content["model_state_dict"].items()}
    parameters = [torch.nn.Parameter(v) for v in weights.values()]
    sgd = torch.optim.SGD(parameters, lr=0.1).state_dict()
    script = {"epoch": 1, "model_state_dict": weights, "optimizer_state_dict": sgd}
    torch.save(script, path)
    return path, weights


def test_a_file_that_does_not_fit_makes_no_run_and_its_weights_do(train, tracking, script_file):
    """What the first step would fail on is found before; the weights alone are a start."""
    import torch

    path, weights = script_file
    refused = train("--resume_from", path, succeeds=False)
    assert refused.exit_code == 4
    assert "is none of AdamW for this model: it lacks betas" in refused.output
    assert mains(tracking) == []
    train("--resume_from", path, "--resume_from_weights_only", "true")
    [run] = mains(tracking)
    assert run.info.status == "FINISHED"
    steps = [m.step for m in tracking.client.get_metric_history(run.info.run_id, "val_loss")]
    assert steps == [*range(1, EPOCHS + 1)]
    store = tracking.artifacts(tracking.get_run(run.info.run_id)).folder
    first = torch.load(store / "checkpoints" / "epoch_0" / "checkpoint.pth")
    for name, weight in weights.items():
        assert torch.equal(first["model_state_dict"][name], weight)


def checkpoints_of(run):
    return Path(run.info.artifact_uri) / "checkpoints"


def test_a_rollback_is_told_and_strict_refuses_it(train, tracking):
    """The newest checkpoint gone in every place: a line says so, or with strict the command."""
    train("--checkpoint_freq", "1")
    [run] = mains(tracking)
    shutil.rmtree(checkpoints_of(run) / f"epoch_{EPOCHS}")
    (checkpoints_of(run) / "index.json").unlink()
    run_id, more = run.info.run_id, ("--epochs", EPOCHS + 1)
    refused = cli("run", "--resume_run", run_id, "--strict", "true", *more)
    assert refused.exit_code == 6
    assert "the newest checkpoint that its tag names is gone" in refused.stderr
    assert f"train run --resume_run {run_id} --strict false" in refused.stderr
    assert attempts(tracking, run) == 1, "nothing was claimed"
    result = cli("run", "--resume_run", run_id, "--strict", "false", *more)
    assert result.exit_code == 0, result.output
    assert "is not as it was left" in result.output
    again = cli("run", "--resume_run", run_id, "--epochs", EPOCHS + 2)
    assert "is not as it was left" not in again.output


def test_a_signed_run_goes_on_with_its_key_only(train, tracking, tmp_path, monkeypatch):
    """The key is nowhere in the store; with another nothing of the run counts."""
    for name in ("key", "other"):
        (tmp_path / name).write_bytes(name.encode() * 16)
    key = tmp_path / "key"
    train("--checkpoint_key", key)
    [run] = mains(tracking)
    run_id = run.info.run_id
    stored = tracking.get_run(run_id)
    assert "checkpoint_key" not in {*stored.params, *json.loads(stored.tags["train.options"])}
    assert str(key) not in str([stored.params, stored.tags])
    monkeypatch.setenv("TRAIN_CHECKPOINT_KEY", str(tmp_path / "other"))
    result = cli("run", "--resume_run", run_id, "--epochs", EPOCHS + 1)
    assert (result.exit_code, attempts(tracking, run)) == (4, 1)
    assert "is damaged: not signed by this key" in result.output
    assert cli("verify", run_id).exit_code == 4
    result = cli("run", "--resume_run", run_id, "--epochs", EPOCHS + 1, "--checkpoint_key", key)
    assert result.exit_code == 0, result.output
    assert cli("verify", run_id).exit_code == 0


def test_a_number_far_ahead_keeps_no_run_from_going_on(train, tracking):
    """Params are written once, so this one stays for ever."""
    train()
    [run] = mains(tracking)
    run_id = run.info.run_id
    tracking.log_params(run_id, {"train.attempt.99999999": "x"}, known=())
    result = cli("run", "--resume_run", run_id, "--epochs", EPOCHS + 1)
    assert result.exit_code == 0, result.output
    assert attempts(tracking, run) == 2


# By which metric a run is judged.


@pytest.fixture
def minimised(train, tracking):
    """Return a finished run that was judged by its error."""
    train("--monitor", "val_rmse:min", "--checkpoint_freq", "1", "--schedule_epochs", "4")
    [run] = mains(tracking)
    return run


def values(tracking, run, key):
    """Return a metric's values by epoch."""
    return {m.step: m.value for m in tracking.client.get_metric_history(run.info.run_id, key)}


def expect_best(tracking, run, name, choose):
    """Fail unless everything that tells the run's best tells the epoch that `choose` finds."""
    run = tracking.client.get_run(run.info.run_id)
    measured = values(tracking, run, name)
    best = choose(measured, key=measured.get)
    assert run.data.metrics["best_epoch"] == best
    assert run.data.metrics[f"best_{name}"] == measured[best]
    rows = [row for row in listed(run.info.run_id) if row["epoch"] in measured]
    saved = {row["epoch"]: row[name] for row in rows}  # a fork has those since it began
    assert saved.items() <= measured.items()
    best_saved = choose(saved, key=saved.get)
    assert run.data.tags["train.best_epoch"] == str(best_saved)
    assert [row["epoch"] for row in rows if row["best"]] == [best_saved]
    assert f"best {name} {measured[best]:.5f} (epoch {best})" in run.data.tags[NOTE_TAG]
    return best


def listed(*run_id):
    result = cli("list", *run_id, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def newest_checkpoint(run):
    import torch

    index = json.loads((checkpoints_of(run) / "index.json").read_text())["checkpoints"][-1]
    path = checkpoints_of(run) / f"epoch_{index['epoch']}" / "checkpoint.pth"
    return index, torch.load(path, weights_only=True)


def test_a_run_that_minimises_is_told_by_its_least(train, tracking):
    """At the end, in the list, in the tags and metrics, and in each checkpoint."""
    result = train("--monitor", "val_rmse:min", "--checkpoint_freq", "1")
    [run] = mains(tracking)
    best = expect_best(tracking, run, "val_rmse", min)
    told = f"FINISHED after epoch 2, best val_rmse {values(tracking, run, 'val_rmse')[best]:.5f}"
    assert f"{told} (epoch {best})" in result.output
    assert run.data.tags[MONITOR_TAG] == run.data.params["monitor"] == "val_rmse:min"
    assert "best_val_pearson" not in run.data.metrics
    index, content = newest_checkpoint(run)
    assert (index["monitor"], content["monitor"]) == ("val_rmse:min", "val_rmse:min")
    assert (content["best_epoch"], content["best_corr"]) == (best, None)
    [row] = listed()
    assert (row["monitor"], row["best_val_rmse"]) == (
        "val_rmse:min", values(tracking, run, "val_rmse")[best],
    )  # fmt: skip
    assert cli("verify", run.info.run_id).exit_code == 0


def test_a_run_without_one_is_written_as_ever(train, tracking):
    """An older program goes on with it: nothing of it names a monitor."""
    train()
    [run] = mains(tracking)
    index, content = newest_checkpoint(run)
    assert MONITOR_TAG not in run.data.tags
    assert "monitor" not in {*index, *content, *json.loads(run.data.tags[OPTIONS_TAG])}
    assert (index["format_version"], content["format_version"]) == (2, 2)
    assert content["best_corr"] == run.data.metrics["best_val_pearson"]
    expect_best(tracking, run, "val_pearson", max)


def test_early_stopping_waits_for_the_metric_that_is_named(train, tracking):
    """A tie is no better; the message names the metric."""
    result = train("--monitor", "val_rmse:min", "--early_stopping", "2", "--lr", "0", epochs=9)
    assert "FINISHED after epoch 3, best val_rmse" in result.output
    assert "Stopped early: val_rmse has not become better for 2 epochs" in result.output


def test_a_metric_that_is_not_reported_is_told_with_those_that_are(train, tracking):
    """After the first epoch, which is when it is known; the run is closed as failed."""
    result = train("--monitor", "acc:max", succeeds=False)
    assert result.exit_code == 2
    assert "acc is to be watched, and the task reports val_loss, val_pearson" in result.stderr
    [run] = mains(tracking)
    assert run.info.status == "FAILED"


@pytest.mark.parametrize("given", [(), ("--monitor", "val_rmse:min")])
def test_a_resume_keeps_the_runs_monitor(tracking, minimised, given):
    """Named once more or not, it goes on by the metric that it was judged by."""
    run_id = minimised.info.run_id
    result = cli("run", "--resume_run", run_id, "--epochs", "4", *given)
    assert result.exit_code == 0, result.output
    assert "Best val_rmse so far: " in result.output
    [run] = mains(tracking)
    assert attempts(tracking, run) == 2
    expect_best(tracking, run, "val_rmse", min)
    assert "best_val_pearson" not in run.data.metrics


def test_another_monitor_wants_a_fork_which_judges_its_history_anew(tracking, minimised):
    """The epochs are the same, which of them is best is not; the old run is as it was."""
    run_id = minimised.info.run_id
    before = tracking.get_run(run_id)
    other = ("--monitor", "val_mae:max", "--epochs", "3")
    refused = cli("run", "--resume_run", run_id, *other)
    assert refused.exit_code == 2
    assert "monitor is val_rmse:min in the run and val_mae:max was given" in refused.stderr
    assert "--fork true --monitor val_mae:max" in refused.stderr
    assert tracking.get_run(run_id) == before
    done = cli("run", "--resume_run", run_id, "--fork", "true", *other)
    assert done.exit_code == 0, done.output
    fork, _ = mains(tracking)
    assert (
        values(tracking, fork, "val_mae").items() >= values(tracking, minimised, "val_mae").items()
    )
    expect_best(tracking, fork, "val_mae", max)
    assert fork.data.tags[MONITOR_TAG] == "val_mae:max"
    assert "best_val_rmse" not in fork.data.metrics
    measured, best_epochs = (values(tracking, fork, key) for key in ("val_mae", "best_epoch"))
    assert best_epochs == {n: max(range(1, n + 1), key=measured.get) for n in (1, 2, 3)}
    back = cli(
        "run", "--resume_run", fork.info.run_id, "--fork", "true",
        "--monitor", "val_pearson:max", "--epochs", "4",
    )  # fmt: skip
    assert back.exit_code == 0, back.output
    newest, *_ = mains(tracking)
    assert MONITOR_TAG not in newest.data.tags
    expect_best(tracking, newest, "val_pearson", max)


def test_a_fork_by_another_monitor_waits_for_its_own_plateau(train, tracking):
    """What was the best of another metric is nothing that this one could be compared with."""
    train("--schedule", "plateau")
    [run] = mains(tracking)
    more = ("--fork", "true", "--epochs", "3", "--monitor", "val_mae:min")
    done = cli("run", "--resume_run", run.info.run_id, *more)
    assert done.exit_code == 0, done.output
    fork, _ = mains(tracking)
    _, content = newest_checkpoint(fork)
    state = content["scheduler_state_dict"]
    assert (state["best"], state["num_bad_epochs"]) == (values(tracking, fork, "val_mae")[3], 0)
    _, before = newest_checkpoint(run)
    assert set(before["scheduler_state_dict"]) == {"factor", "best", "num_bad_epochs"}


def test_resume_epoch_best_is_the_least_of_a_run_that_minimises(tracking, minimised):
    """As a fork where it is not the newest, and in place where it is."""
    run_id = minimised.info.run_id
    tracking.set_status(run_id, "KILLED")
    [best] = [row["epoch"] for row in listed(run_id) if row["best"]]
    result = cli("run", "--resume_run", run_id, "--resume_epoch", "best", "--epochs", "3")
    assert result.exit_code == 0, result.output
    assert f"Resuming training from epoch {best + 1} " in result.output.replace("\n", " ")


def test_auto_takes_the_tables_own_monitor_for_none(auto, tracking, preempted):
    """Said or not it is the same run, so the same fingerprint; another is another run."""
    auto("--monitor", "val_pearson:max")
    assert attempts(tracking, preempted) == 2
    tracking.set_status(preempted.info.run_id, "KILLED")
    auto("--monitor", "val_rmse:min")
    assert attempts(tracking, preempted) == 2
    assert len(mains(tracking)) == 2


@pytest.mark.parametrize("monitor", ["val_pearson:max", "val_rmse:min"])
def test_auto_with_a_monitor_finds_a_run_that_died_before_its_first_checkpoint(
    auto, tracking, open_and_die, monitor
):
    """A scheduler's command line says the same each time, whatever it names."""
    run_id = open_and_die(monitor=monitor)
    auto("--monitor", monitor)
    [run] = mains(tracking)
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
