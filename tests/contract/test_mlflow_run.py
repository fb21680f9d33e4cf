"""The project through the real `mlflow run`, as its users start it."""

import os
import shutil
import signal
import subprocess
import zipfile

import pytest
from support import (
    BIN,
    ROOT,
    SMALL,
    checkpoint,
    children,
    client,
    comparable,
    differences,
    environment,
    launch,
    only_run,
    wait_for,
    write_table,
)

from onward.attempts.heartbeat import Beat

pytestmark = pytest.mark.slow

OPTIONS = (*SMALL, "--target", "price", "--epochs", "4")


def as_params(*options):
    """Turn `--name value` pairs into `-P name=value`."""
    pairs = zip(options[::2], options[1::2], strict=True)
    return [word for name, value in pairs for word in ("-P", f"{name[2:]}={value}")]


def start(project, *options, cwd, env, before=()):
    """Start `mlflow run project`, in a process group of its own."""
    command = [BIN / "mlflow", "run", str(project), "--env-manager", "local", *before]
    return subprocess.Popen(
        command + as_params(*options),
        cwd=cwd,
        env={k: v for k, v in env.items() if k != "PYTHONPATH"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def mlflow_run(project, *options, cwd, env, before=()):
    """Run `mlflow run project` to its end; return (exit code, what it printed)."""
    process = start(project, *options, cwd=cwd, env=env, before=before)
    printed, _ = process.communicate(timeout=240)
    return process.returncode, printed


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project, as a user has it after a clone."""
    folder = tmp_path_factory.mktemp("projects") / "project"
    folder.mkdir()
    for name in ("MLproject", "conda.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name in ("onward", "train"):
        left_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    return folder


def test_a_run_is_trained_and_its_id_resumed(project, tmp_path):
    """One run, one curve: the launch that resumes becomes a child of the run, with its status,
    params and name; given params are logged once; a data path may hold a blank."""
    env = environment(tmp_path / "home")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    folder = tmp_path / "my tables"
    folder.mkdir()
    table = write_table(folder / "the table.csv")
    code, printed = mlflow_run(project, *OPTIONS, "--data", str(table), cwd=tmp_path, env=env)
    assert code == 0, printed
    run = only_run(uri)
    assert run.info.run_id in printed
    assert (run.info.status, run.data.params["epochs"]) == ("FINISHED", "4")
    assert run.data.params["seed"] == "0", "effective options are params too"
    code, printed = mlflow_run(
        project, "--resume_run", run.info.run_id, "--epochs", "6", cwd=tmp_path, env=env
    )
    assert code == 0, printed
    assert "Resuming training from epoch 5 (恢复训练，从 epoch 5 开始)" in printed
    [child] = children(uri, run.info.run_id)
    assert child.info.run_name.startswith("attempt 2: epochs 5-6 on ")
    assert (child.info.status, child.data.params["epochs"]) == ("FINISHED", "6")
    steps = [m.step for m in client(uri).get_metric_history(run.info.run_id, "val_pearson")]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert client(uri).get_run(run.info.run_id).info.status == "FINISHED"
    kind = client(uri).get_experiment("0").tags["mlflow.experimentKind"]
    assert kind == "custom_model_development"


def test_from_a_zip_and_from_a_git_address(project, tmp_path):
    """`mlflow run` works in a temporary folder then; the store, the cache and the spool are where
    the next launch finds them, and a run begun from the one is resumed from the other."""
    env = environment(tmp_path / "home", GIT_CONFIG_COUNT="1")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    archive = tmp_path / "project.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in project.rglob("*"):
            file.write(path, path.relative_to(project))
    table = write_table(tmp_path / "table.csv")
    code, printed = mlflow_run(archive, *OPTIONS, "--data", str(table), cwd=tmp_path, env=env)
    assert code == 0, printed
    run_id = only_run(uri).info.run_id
    table.unlink()

    repository = tmp_path / "repository"
    shutil.copytree(project, repository)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-C", str(repository)]
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "project"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    # MLflow takes an existing file:// path for a folder; git maps this address onto it instead.
    env |= {
        "GIT_CONFIG_KEY_0": f"url.file://{repository}.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://git.test/project.git",
    }
    code, printed = mlflow_run(
        "https://git.test/project.git",
        *("--resume_run", run_id, "--epochs", "5"),
        cwd=tmp_path,
        env=env,
    )
    assert code == 0, printed
    assert "Resuming training from epoch 5" in printed
    assert client(uri).get_run(run_id).info.status == "FINISHED"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that no signal reached; return what it was started with, and what it has saved."""
    folder = tmp_path_factory.mktemp("undisturbed")
    table = str(write_table(folder / "table.csv"))
    # As many as last for longer than a signal takes to arrive.
    options = (*SMALL, "--target", "price", "--data", table, "--dropout", "0.1", "--epochs", "150")
    uri = f"sqlite:///{folder}/mlflow.db"
    done = launch(*options, cwd=folder, env=environment(folder / "home", uri))
    assert done.returncode == 0, done.stderr
    return options, comparable(checkpoint(uri, only_run(uri).info.run_id, folder / "saved"))


@pytest.mark.parametrize(
    ("whom", "number"),
    [("group", signal.SIGTERM), ("group", signal.SIGKILL), ("group", signal.SIGINT),
     ("child", signal.SIGTERM)],
)  # fmt: skip
def test_a_signal_to_the_group_or_to_the_child(project, undisturbed, tmp_path, whom, number):
    """Killed at any moment, through `mlflow run`, a run goes on to where an undisturbed one ends;
    a signal that can be caught never leaves it RUNNING. A launcher that outlives it says FAILED."""
    env = environment(tmp_path / "home")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    options, expected = undisturbed
    process = start(project, *options, cwd=tmp_path, env=env)
    for line in process.stdout:
        if line.startswith("epoch 7 "):
            if whom == "group":
                os.killpg(process.pid, number)
            else:
                os.kill(Beat.from_tags(only_run(uri).data.tags).pid, number)
            break
    printed, _ = process.communicate(timeout=60)
    run = wait_for(lambda: only_run(uri))
    if number != signal.SIGKILL:
        wait_for(lambda: only_run(uri).info.status != "RUNNING")
        wait_for(lambda: only_run(uri).data.tags["train.attempt.1"].endswith(", preempted"))
        if (whom, number) == ("group", signal.SIGTERM):
            assert only_run(uri).info.status == "KILLED"
    code, printed = mlflow_run(
        project, "--resume_run", run.info.run_id, "--epochs", "150", cwd=tmp_path, env=env
    )
    assert code == 0, printed
    saved = comparable(checkpoint(uri, run.info.run_id, tmp_path / "saved"))
    assert differences(expected, saved) == []


def test_a_launch_in_another_experiment(project, tmp_path):
    """The run goes on in its own experiment, with a child there; the launch's stray run tells
    which run it continued, and is closed with the same status."""
    env = environment(tmp_path / "home")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    table = str(write_table(tmp_path / "table.csv"))
    done = launch(*OPTIONS, "--data", table, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    run_id = only_run(uri).info.run_id
    code, printed = mlflow_run(
        project,
        *("--resume_run", run_id, "--epochs", "5"),
        cwd=tmp_path,
        env=env,
        before=("--experiment-name", "elsewhere"),
    )
    assert code == 0, printed
    elsewhere = client(uri).get_experiment_by_name("elsewhere").experiment_id
    [stray] = client(uri).search_runs([elsewhere])
    assert stray.data.tags["train.launched"] == run_id
    assert run_id in stray.data.tags["mlflow.note.content"]
    assert stray.info.status == "FINISHED"
    [child] = children(uri, run_id)
    assert child.info.status == "FINISHED"


def test_what_the_launcher_cannot_tell(project, tmp_path):
    """A relative table names the folder that was searched, and a relative sqlite URI that the
    child resolves elsewhere is explained; the launch's run ends FAILED."""
    env = environment(tmp_path / "home")
    code, printed = mlflow_run(
        project, "--data", "table.csv", "--target", "price", cwd=tmp_path, env=env
    )
    assert code == 1
    assert f"searched '{project}/table.csv'" in printed
    assert only_run(f"sqlite:///{tmp_path}/mlflow.db").info.status == "FAILED"
    env["MLFLOW_TRACKING_URI"] = "sqlite:///relative.db"
    code, printed = mlflow_run(project, cwd=tmp_path, env=env)
    assert code == 1
    assert "sqlite:////full/path/mlflow.db" in printed
    assert "Traceback (most recent call last)" not in printed.split("=== Running command")[1]
