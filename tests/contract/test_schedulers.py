"""The files of examples/: the sbatch script is run by a stand-in for Slurm, the Job's command as
PID 1, and docs/ shows what the files say."""

import os
import re
import shutil
import signal
import subprocess

import psutil
import pytest
import yaml
from support import (
    ROOT,
    SMALL,
    checkpoint,
    client,
    environment,
    only_run,
    start_logged,
    wait_for,
    write_table,
)

from onward import errors
from onward.errors import TrainError
from train.cli import main

EXAMPLES = ROOT / "examples"
SBATCH, JOB, UNIT = (EXAMPLES / n for n in ("slurm.sbatch", "kubernetes.yaml", "train.service"))
PAGES = {ROOT / "docs" / f"{p.stem}.md": p for p in (SBATCH, JOB)}
PAGES[ROOT / "docs" / "systemd.md"] = UNIT
CODES = {e.exit_code for e in vars(errors).values() if isinstance(e, type) and
         issubclass(e, TrainError)}  # fmt: skip
PREEMPTED = errors.Interrupted.exit_code
# What a later start may find mended; the others need somebody.
TRANSIENT = {PREEMPTED, errors.StoreUnavailable.exit_code}
JOB_ID = "4711"


# --- run --------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path, tracking_uri):
    """Start a command on an empty disk, in a session of its own; kill what is left of it."""
    table = str(write_table(tmp_path / "table.csv", num_rows=2000))
    options = (*SMALL, "--data", table, "--target", "price", "--batch_size", "4", "--epochs", "5",
               "--checkpoint_steps", "20")  # fmt: skip
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.txt\n')
    scontrol.chmod(0o755)
    started = []

    def start(*command):
        number = len(started) + 1
        env = environment(tmp_path / f"disk_{number}", tracking_uri, SLURM_JOB_ID=JOB_ID)
        env["PATH"] = f"{scontrol.parent}{os.pathsep}{env['PATH']}"
        file = tmp_path / f"output_{number}.txt"
        words = [*command, *options]
        started.append(start_logged(words, file, cwd=tmp_path, env=env, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def in_an_epoch(uri, process):
    """Wait until a checkpoint from inside an epoch is committed."""

    def found():
        assert process.poll() is None, process.output.read_text()
        runs = client(uri).search_runs(["0"])
        latest = [r.data.tags.get("mlflow.latest_checkpoint_artifact", "") for r in runs]
        return any("global_step_" in path for path in latest)

    wait_for(found)


def assert_preempted(uri, process, tmp_path):
    """It ended with "try again", and the run has a checkpoint from where it stopped."""
    assert process.wait(60) == PREEMPTED, process.output.read_text()
    run = only_run(uri)
    assert run.info.status == "KILLED"
    assert "global_step_" in run.data.tags["mlflow.latest_checkpoint_artifact"]
    told = re.search(r"after (\d+) epochs and (\d+) steps", process.output.read_text())
    saved = checkpoint(uri, run.info.run_id, tmp_path / "got")
    assert (saved["epoch"], saved["epoch_step"]) == (int(told[1]), int(told[2]))


def requeued(tmp_path):
    """Return what `scontrol` was asked to do."""
    file = tmp_path / "scontrol.txt"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.slow
def test_slurms_warning_requeues_until_all_epochs_are_done(machine, tmp_path, tracking_uri):
    """USR1 to the batch shell: saved, requeued; the same line on another node ends the run."""
    first = machine("bash", str(SBATCH))
    in_an_epoch(tracking_uri, first)
    first.send_signal(signal.SIGUSR1)
    assert_preempted(tracking_uri, first, tmp_path)
    assert requeued(tmp_path) == [f"requeue {JOB_ID}"]
    second = machine("bash", str(SBATCH))
    assert second.wait(120) == 0, second.output.read_text()
    assert requeued(tmp_path) == [f"requeue {JOB_ID}"]
    run = only_run(tracking_uri)
    assert run.info.status == "FINISHED"
    assert (run.data.tags["train.attempt"], run.data.tags["train.epoch"]) == ("2", "5")


@pytest.mark.slow
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to the shell", "to all"])
def test_what_was_cancelled_is_not_requeued(machine, tmp_path, tracking_uri, send):
    """TERM, to the shell alone or as `scancel` sends it, to shell and python: saved, and over.

    `scontrol requeue` would start a cancelled job again; a preempted one Slurm requeues itself.
    """
    process = machine("bash", str(SBATCH))
    in_an_epoch(tracking_uri, process)
    send(process.pid, signal.SIGTERM)
    assert_preempted(tracking_uri, process, tmp_path)
    assert requeued(tmp_path) == []


@pytest.mark.slow
def test_an_error_is_handed_on_and_not_requeued(machine, tmp_path):
    """A job that cannot succeed fails with its own code."""
    process = machine("bash", str(SBATCH), "--no_such_option", "1")
    assert process.wait(60) == 2, process.output.read_text()
    assert "No such option" in process.output.read_text()
    assert requeued(tmp_path) == []


@pytest.mark.slow
def test_the_jobs_command_stops_as_pid_1(machine, tmp_path, tracking_uri):
    """The kernel gives PID 1 no default action for SIGTERM: the program's own handler ends it."""
    alone = ["unshare", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("no PID namespace can be made here")
    container = container_of_the_job()
    outer = machine(*alone, *container["command"], *container["args"])
    in_an_epoch(tracking_uri, outer)
    [first] = psutil.Process(outer.pid).children()
    first.send_signal(signal.SIGTERM)
    assert_preempted(tracking_uri, outer, tmp_path)


# --- what the files say -----------------------------------------------------------------------


def job():
    """Return the Job of the example."""
    [found] = [d for d in yaml.safe_load_all(JOB.read_text()) if d["kind"] == "Job"]
    return found


def container_of_the_job():
    """Return its one container."""
    [container] = job()["spec"]["template"]["spec"]["containers"]
    return container


def unit():
    """Return the settings of the unit file; each is there once, but Environment."""
    text = UNIT.read_text().replace("\\\n", " ")
    pairs = re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)
    names = [name for name, _ in pairs if name != "Environment"]
    assert len(names) == len(set(names))
    return {name: value for name, value in pairs if name != "Environment"}


def value_after(words, option):
    """Return the number that follows an option on a command line."""
    return float(words[words.index(option) + 1])


def test_slurms_warning_comes_early_enough():
    """The shell alone is warned, sooner before the end than the program takes to stop."""
    text = SBATCH.read_text()
    seconds = int(re.search(r"^#SBATCH --signal=B:USR1@(\d+)$", text, re.MULTILINE)[1])
    assert value_after(command_in(text).split(), "--grace_seconds") < seconds
    assert re.search(r"^#SBATCH --requeue$", text, re.MULTILINE)
    assert re.search(r"^#SBATCH --open-mode=append$", text, re.MULTILINE)


def test_the_job_starts_again_and_leaves_time_to_stop():
    """`OnFailure`, many times; python itself gets SIGTERM; TRAIN_HOME is the volume."""
    spec = job()["spec"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "OnFailure"
    assert spec["backoffLimit"] >= 100
    container = container_of_the_job()
    assert container["command"] == ["python", "-m", "train", "run"]
    assert all(isinstance(word, str) for word in container["args"])
    assert value_after(container["args"], "--grace_seconds") < pod["terminationGracePeriodSeconds"]
    env = {e["name"]: e["value"] for e in container["env"]}
    [mount] = container["volumeMounts"]
    [volume] = pod["volumes"]
    assert env["TRAIN_HOME"] == mount["mountPath"]
    assert volume["name"] == mount["name"]
    claims = [d for d in yaml.safe_load_all(JOB.read_text()) if d["kind"] != "Job"]
    claimed = volume["persistentVolumeClaim"]["claimName"]
    assert [(c["kind"], c["metadata"]["name"]) for c in claims] == [
        ("PersistentVolumeClaim", claimed)
    ]


def test_the_jobs_other_policy_is_about_the_programs_codes():
    """What docs/ offers in place of `OnFailure` ignores preemption, and fails on lasting errors."""
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    rules = yaml.safe_load(blocks(page, "yaml")[-1])["podFailurePolicy"]["rules"]
    by_code = {r["action"]: r["onExitCodes"] for r in rules if "onExitCodes" in r}
    assert by_code["Ignore"]["values"] == [PREEMPTED]
    assert by_code["Ignore"]["containerName"] == container_of_the_job()["name"]
    # In use by another process: its lease may be over by the next start.
    in_use = errors.RunNotUsable.exit_code
    assert set(by_code["FailJob"]["values"]) == CODES - TRANSIENT - {in_use}
    assert {"type": "DisruptionTarget", "status": "True"} in rules[1]["onPodConditions"]


def test_the_service_starts_again_and_leaves_time_to_stop():
    """75 and what may mend itself start again; systemd waits longer than the program takes."""
    found = unit()
    grace_seconds = value_after(found["ExecStart"].split(), "--grace_seconds")
    assert grace_seconds < float(found["TimeoutStopSec"])
    assert found["Restart"] == "on-failure"
    assert int(found["SuccessExitStatus"]) == int(found["RestartForceExitStatus"]) == PREEMPTED
    assert {int(c) for c in found["RestartPreventExitStatus"].split()} == CODES - TRANSIENT
    assert (found["KillSignal"], found["KillMode"]) == ("SIGTERM", "mixed")
    assert found["StartLimitIntervalSec"] == "0"
    mark = found["ConditionPathExists"].removeprefix("!")
    assert f"then touch {mark}; fi" in found["ExecStopPost"]
    assert f"TRAIN_HOME=/var/lib/{found['StateDirectory']}" in UNIT.read_text()


# --- what docs/ says of them ------------------------------------------------------------------


def blocks(text, language):
    """Return the blocks of that language in a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def command_in(text):
    """Return the one command line that trains, as it stands in a file."""
    [found] = re.findall(r"train run [^&\n]*", text.replace("\\\n", " "))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_shows_its_file(page):
    """It links the file, what it shows of it is in it to the letter, and it is short."""
    text, file = page.read_text(), PAGES[page].read_text()
    assert f"[examples/{PAGES[page].name}](../examples/{PAGES[page].name})" in text
    shown = [b for language in ("bash", "yaml", "ini") for b in blocks(text, language)]
    assert [b for b in shown if b not in file] == [b for b in shown if "podFailurePolicy" in b]
    assert len(text.splitlines()) <= 60
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        assert (page.parent / target).exists(), target
    assert all(word in text for word in ("resume_run", "auto", "75", "exit-codes.md"))


@pytest.mark.parametrize("file", PAGES.values(), ids=lambda file: file.name)
def test_a_file_names_its_page_and_gives_options_that_exist(file):
    """Its comment leads to the page; its options are those of `train run`."""
    text = file.read_text()
    page = next(page for page, shown in PAGES.items() if shown == file)
    assert f"docs/{page.name}" in text
    if file == JOB:
        container = container_of_the_job()
        words = [*container["command"], *container["args"]]
    else:
        words = command_in(text).split()
    known = {name for param in main.commands["run"].params for name in param.opts}
    given = {word for word in words if word.startswith("--")}
    assert {"--resume_run", "--grace_seconds"} <= given <= known
    assert words[words.index("--resume_run") + 1] == "auto"
