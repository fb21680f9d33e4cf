"""A fork of what has imported all is a process as any other, or it is not taken."""

import json
import os
import signal
import subprocess
import sys

import pytest
from preloaded import Forked
from support import BIN, cli, environment, run_command, start_command, wait_for

pytestmark = pytest.mark.slow  # in the process that the long tests have in any case

CODE = """
import json, os, sys
print(json.dumps([sys.argv, os.getcwd(), os.environ["WORD"], "mlflow" in sys.modules,
                  "onward" in sys.modules, os.getpid(), os.getpgid(0), __name__]))
print("an error", file=sys.stderr)
sys.exit(7)
"""


@pytest.fixture
def where(tmp_path):
    """Return folder, environment and pipes of a process."""
    env = environment(tmp_path / "home", WORD="é")
    return {"cwd": tmp_path, "env": env, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


@pytest.mark.parametrize("is_leader", [False, True])
@pytest.mark.parametrize("kind", ["-c", "-m", "file"])
def test_it_is_python_with_these_words(where, tmp_path, kind, is_leader):
    """Its own arguments, folder, environment, output, group and end; only imports are there."""
    (tmp_path / "asked.py").write_text(CODE)
    words = {"-c": ["-c", CODE], "-m": ["-m", "asked"], "file": [tmp_path / "asked.py"]}[kind]
    process = start_command([sys.executable, *words, 5], **where, start_new_session=is_leader)
    assert isinstance(process, Forked)
    told, errors = process.communicate(60)
    argv, cwd, word, has_mlflow, has_ours, pid, group, name = json.loads(told)
    first = "-c" if kind == "-c" else str(tmp_path / "asked.py")
    assert (argv, cwd, word, name) == ([first, "5"], str(tmp_path), "é", "__main__")
    assert (has_mlflow, has_ours) == (True, False)
    assert (pid, group == pid) == (process.pid, is_leader)
    assert (process.wait(), process.poll(), errors) == (7, 7, "an error\n")


def test_it_gets_signals_and_is_waited_for(where):
    """As one of `subprocess`."""
    code = "import time; print('begun', flush=True); time.sleep(600)"
    process = start_command([sys.executable, "-c", code], **where)
    assert process.stdout.readline() == "begun\n"
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.terminate()
    assert process.wait(60) == -signal.SIGTERM
    process.kill()  # which is nothing any more


def test_what_takes_too_long_is_killed(where, tmp_path):
    """And it is told."""
    code = "import os, time; os.symlink(str(os.getpid()), 'pid'); time.sleep(600)"
    with pytest.raises(subprocess.TimeoutExpired):
        run_command([sys.executable, "-c", code], timeout=5, **where)
    pid = os.readlink(tmp_path / "pid")
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"))


@pytest.mark.parametrize(
    ("words", "variables"),
    [(["-X", "utf8", "-c", CODE], {}), (["-c", CODE], {"LC_ALL": "C"}),
     (["-c", CODE], {"OMP_NUM_THREADS": "3"}), (["-c", CODE], {"PYTHONHASHSEED": "1"})],
)  # fmt: skip
def test_what_a_fork_cannot_be_is_started(where, words, variables):
    """Flags of Python, and what is read while it starts."""
    where["env"] |= variables
    with start_command([sys.executable, *words], **where) as process:
        assert isinstance(process, subprocess.Popen)
        process.kill()


def test_a_command_that_ran_in_the_process_of_the_test_changes_nothing(where, tmp_path):
    """It leaves variables there."""
    cli("list")
    assert "OMP_WAIT_POLICY" in os.environ
    env = environment(tmp_path / "home", WORD="é")
    process = start_command([sys.executable, "-c", "print(5)"], **(where | {"env": env}))
    assert isinstance(process, Forked)
    assert process.communicate(60)[0] == "5\n"


def test_other_programs_are_started(tmp_path):
    """As ever."""
    assert run_command(["echo", 5]).stdout == "5\n"
    assert run_command(["sh", "-c", "echo 5; pwd"], cwd=tmp_path).stdout == f"5\n{tmp_path}\n"


IMPORTED = [True, False]
RANK = """
import json, os, sys, time
from pathlib import Path
rank = os.environ["RANK"]
imported = [name in sys.modules for name in ("mlflow", "onward")]
told = [os.getppid(), os.getpgid(0) == os.getpid(), imported, sys.argv[1:]]
Path(f"rank_{rank}").write_text(json.dumps([*told, os.environ["WORLD_SIZE"]]))
print(f"said by {rank}\\n", end="")
if "die" in sys.argv:
    if rank == "1":
        os.kill(os.getpid(), 9)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    "launcher", [["torchrun", "--nproc-per-node"], ["onward", "launch", "--nproc"]]
)
def test_a_launchers_ranks_are_its_children(where, tmp_path, launcher):
    """They lead groups of their own, print where it prints, and only imports are there."""
    (tmp_path / "asked.py").write_text(RANK)
    env = where["env"] | {"OMP_NUM_THREADS": "1"}
    name, *words = launcher
    command = [BIN / name, *words, 2, "asked.py", "a word"]
    process = start_command(command, **(where | {"env": env}))
    assert isinstance(process, Forked)
    told, errors = process.communicate(60)
    assert process.returncode == 0, errors
    assert sorted(told.split("\n")) == ["", "said by 0", "said by 1"]
    for rank in range(2):
        found = json.loads((tmp_path / f"rank_{rank}").read_text())
        assert found == [process.pid, True, IMPORTED, ["a word"], "2"]


def test_the_end_of_a_rank_is_seen(where, tmp_path):
    """One that is killed ends the others, and is named; what it has printed is there."""
    (tmp_path / "asked.py").write_text(RANK)
    env = where["env"] | {"OMP_NUM_THREADS": "1"}
    words = ["launch", "--nproc", 2, "--max-restarts", 0, "asked.py", "die"]
    process = start_command([BIN / "onward", *words], **(where | {"env": env}))
    assert isinstance(process, Forked)
    told, errors = process.communicate(60)
    assert "rank 1 ended with code -9" in errors
    assert process.returncode == 1
    assert "said by 1" in told
    assert [json.loads(file.read_text())[2] for file in tmp_path.glob("rank_*")] == [IMPORTED] * 2
