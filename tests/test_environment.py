"""This process, its machine and its code: told truly, and without what is secret."""

import getpass
import os
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from onward.opening.identity import machine_tags, upload_code
from onward.options.run_options import RunOptions
from onward.system import environment, git, processes
from onward.system.git import code_diff, code_version
from onward.system.processes import is_alive, machine, this

OWN = "onward/system/git.py"


class Code:
    """A git repository that this program's code lies in."""

    def __init__(self, folder):
        self.folder = folder
        self.write(OWN, "one\n")
        self.git("init", "--quiet")
        self.commit()

    def git(self, *arguments):
        command = ["git", "-c", "user.name=me", "-c", "user.email=me@here", *arguments]
        return subprocess.run(
            command, cwd=self.folder, check=True, capture_output=True, text=True
        ).stdout.strip()

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def commit(self):
        self.git("add", "--all", "--force")
        self.git("commit", "--quiet", "--message", "all")
        return self.git("rev-parse", "HEAD")

    @property
    def version(self):
        code_version.cache_clear()
        return code_version()

    @property
    def diff(self):
        code_version.cache_clear()
        code_diff.cache_clear()
        return code_diff()


@pytest.fixture
def code(tmp_path, monkeypatch):
    """Return a repository with one commit, in which this program seems to lie."""
    for name, where in {"HOME": tmp_path, "GIT_CONFIG_NOSYSTEM": "1"}.items():
        monkeypatch.setenv(name, str(where))
    code = Code(tmp_path / "repository")
    monkeypatch.setattr(git, "__file__", str(code.folder / OWN))
    yield code
    code_version.cache_clear()
    code_diff.cache_clear()


def subject(wanted):
    """Return what is trained, as far as its code is stored."""
    return SimpleNamespace(options=RunOptions(upload_diff=wanted), code=dict)


def test_the_version_is_the_commit(code):
    """Code that is committed is known by its commit, and there is nothing to show."""
    assert code.version == code.git("rev-parse", "HEAD")
    assert code.diff == b""


def test_a_change_has_a_version_of_its_own(code):
    """Two runs with other changes are not taken for the same code; undone, it is as before."""
    commit, seen = code.version, set()
    for text in ("two\n", "three\n", "two\n"):
        code.write(OWN, text)
        version = code.version
        assert re.fullmatch(re.escape(commit) + r"\+changes\.[0-9a-f]{8}", version)
        seen.add(version)
    assert len(seen) == 2
    code.write(OWN, "one\n")
    assert code.version == commit


def test_code_of_nobody_has_no_version(code, tmp_path, monkeypatch):
    """Neither an installed copy inside somebody's repository nor one outside has a commit."""
    code.write(f"site-packages/{OWN}", "")
    code.write(".gitignore", "site-packages\n")
    code.commit()
    code.git("rm", "--quiet", "--cached", f"site-packages/{OWN}")
    for folder in (code.folder / "site-packages", tmp_path / "outside"):
        (folder / OWN).parent.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(git, "__file__", str(folder / OWN))
        assert code.version is None
        assert code.diff == b""


def test_without_git_there_is_no_version(code, monkeypatch):
    """A machine that only trains has no git."""
    monkeypatch.setenv("PATH", "")
    assert code.version is None
    assert code.diff == b""


def test_a_git_that_hangs_or_fails_ends_nothing(code, monkeypatch):
    """The diff is a convenience: a run starts without it."""
    code.write(OWN, "two\n")
    assert code.diff != b""
    run_git = git._git
    for error in (subprocess.TimeoutExpired("git", 10), subprocess.CalledProcessError(1, "git")):

        def fail(folder, *arguments, error=error):
            if any("exclude" in argument for argument in arguments):
                raise error
            return run_git(folder, *arguments)

        monkeypatch.setattr(git, "_git", fail)
        assert code.diff == b""


def test_the_diff_holds_what_was_changed(code):
    """The program's own files, as a patch that git applies."""
    code.write("train/tabular/task.py", "a\nb\n")
    commit = code.commit()
    code.write(OWN, "two\n")
    code.write("train/tabular/task.py", "a\nc\n")
    code.write("train/new.py", "added\n")
    code.git("add", "train/new.py")
    diff = code.diff
    for line in (b"-one", b"+two", b"-b", b"+c", b"+added"):
        assert line in diff.splitlines()
    (code.folder.parent / "diff.patch").write_bytes(diff)
    code.git("reset", "--quiet", "--hard", commit)
    code.git("apply", "../diff.patch")
    assert (code.folder / OWN).read_text() == "two\n"
    assert (code.folder / "train/new.py").read_text() == "added\n"


SECRET = [
    ".env", ".env.production", "prod.env", "certificates/server.pem", "deploy.key", "me.p12",
    "me.pfx", "id_rsa", "id_ecdsa", "id_ed25519.pub", "secrets.yaml", "my_secret.py",
    "Credentials.json", ".git-credentials", "PASSWORDS.txt", "api_token", ".netrc", ".npmrc",
    ".pypirc", "prod.tfvars", "kubeconfig", "secrets/prod.yaml", "deep/er/secrets/a/b/prod.yaml",
    ".env.d/prod", ".aws/config", "TOKENS/mine",
]  # fmt: skip


@pytest.mark.parametrize("name", SECRET)
@pytest.mark.parametrize(
    ("known", "package"), [("changed", "train"), ("added", "onward"), ("deleted", "train")]
)
def test_the_diff_never_holds_a_secret(code, name, known, package):
    """A file whose name says that it holds one is left out, even where git tracks it."""
    name = f"{package}/{name}"
    if known == "added":
        code.write(name, "hunter2\n")
        code.git("add", "--force", name)
    else:
        code.write(name, "hunter2\n")
        code.commit()
        (code.folder / name).unlink()
        if known == "changed":
            code.write(name, "hunter2 and 3\n")
    code.write(OWN, "two\n")
    diff = code.diff
    assert b"hunter2" not in diff
    assert name.encode() not in diff
    assert b"+two" in diff


def test_the_diff_holds_nothing_that_git_does_not_know(code):
    """Notes, data and keys that lie about are nobody's business."""
    code.write("notes.txt", "hunter2\n")
    code.write(OWN, "two\n")
    assert b"+two" in code.diff
    assert b"hunter2" not in code.diff


def test_what_git_does_not_know_is_no_change(code):
    """A table or a database beside the program must not look like other code."""
    code.write("table.csv", "1\n")
    assert code.version == code.git("rev-parse", "HEAD")
    assert code.diff == b""


def test_a_binary_file_that_is_changed_is_a_change(code):
    """Though a patch shows only that it differs."""
    code.write("train/weights.bin", "\0one")
    commit, seen = code.commit(), set()
    for text in ("\0two", "\0three"):
        code.write("train/weights.bin", text)
        seen.add(code.version)
    assert len(seen) == 2
    assert all(version.startswith(f"{commit}+changes.") for version in seen)


@pytest.mark.parametrize("setting", ["textconv", "command", "color"])
def test_the_diff_runs_no_program_of_the_users(code, setting):
    """Some show encrypted files in clear text; colours would make a patch that does not apply."""
    script = code.folder.parent / "decrypt"
    script.write_text("#!/bin/sh\necho hunter2 $$\n")
    script.chmod(0o755)
    code.write(".gitattributes", "*.enc diff=decrypted\n")
    code.write("train/values.enc", "cipher 1\n")
    code.commit()
    code.git("config", "color.ui", "always")
    if setting != "color":
        code.git("config", f"diff.decrypted.{setting}", str(script))
    code.write("train/values.enc", "cipher 2\n")
    assert code.version == code.version, "what such a program prints may differ each time"
    assert b"+cipher 2" in code.diff.splitlines()
    assert b"hunter2" not in code.diff
    assert b"\x1b" not in code.diff


def test_a_large_diff_is_cut(code, monkeypatch):
    """A data set that is tracked and changed does not go up with every attempt."""
    monkeypatch.setattr(git, "MAX_DIFF_BYTES", 1000)
    code.write(OWN, "".join(f"line {n}\n" for n in range(10_000)))
    diff = code.diff
    assert len(diff) < 1100
    assert b"+line 1\n" in diff
    assert diff.endswith(b"\n... cut: the rest is left out\n")


OF_OTHERS = [
    "settings.py", "config.py", "docker-compose.yml", "database.ini", "notes/login.md", "wp.php",
    "terraform/main.tf", "k8s/deploy.yaml", "notebooks/try.ipynb", ".vscode/settings.json",
    "trainer/own.py", "src/train/own.py", "src/onward/own.py", "onwards/own.py", ".env", "id_rsa",
]  # fmt: skip


def test_nothing_else_of_the_repository_is_told(code):
    """Of what lies beside the program nothing is stored, and it is no change of the program."""
    for name in OF_OTHERS:
        code.write(name, "one\n")
    commit = code.commit()
    for name in OF_OTHERS:
        code.write(name, "hunter2\n")
    assert code.version == commit
    assert code.diff == b""
    code.write(OWN, "two\n")
    code.write("MLproject", "name: mine\n")
    code.git("add", "MLproject")
    diff = code.diff
    assert b"hunter2" not in diff
    assert b"+two" in diff
    assert b"+name: mine" in diff


def test_a_secret_in_a_file_of_the_program_is_replaced(code):
    """Addresses with a login and what is written out as a password; other lines are as they are."""
    code.write("conda.yaml", "one\n")
    code.commit()
    code.write("conda.yaml", "- --index-url https://me:hunter2@pypi.example.org/simple\n")
    lines = ["login(token=token, key=key)", "PASSWORD = 'hunter2'", '{"api_key": "hunter2"}']
    code.write(OWN, "\n".join(lines) + "\n")
    diff = code.diff
    assert b"hunter2" not in diff
    assert b"+- --index-url https://***@pypi.example.org/simple\n" in diff
    assert b"+login(token=token, key=key)\n+PASSWORD = ***\n" in diff


def test_the_diff_is_stored_with_the_attempt(code, tracking, record, tmp_path, caplog):
    """Artifact `code/diff.patch`, told in one line; nothing where nothing was changed."""
    caplog.set_level("INFO", "onward")
    assert code.diff == b""
    upload_code(tracking, record.run_id, tmp_path / "spool", subject("yes"))
    artifacts = tracking.artifacts(record)
    assert artifacts.list() == []
    code.write(OWN, "two\n")
    diff, version = code.diff, code.version
    upload_code(tracking, record.run_id, tmp_path / "spool", subject("no"))
    assert artifacts.list() == []
    assert machine_tags()["train.code"] == version
    upload_code(tracking, record.run_id, tmp_path / "spool", subject("yes"))
    assert artifacts.list("code") == ["diff.patch"]
    assert (artifacts.folder / "code/diff.patch").read_bytes() == diff
    assert list((tmp_path / "spool").iterdir()) == []
    [line] = [r.getMessage() for r in caplog.records if "diff.patch" in r.getMessage()]
    assert "(files: 1, " in line
    assert "upload_diff=no" in line


def test_a_machine_is_its_boot_and_its_processes():
    """Two processes that can see each other agree on it."""
    code = "from onward.system import processes; print(processes.machine())"
    root = Path(environment.__file__).parents[2]
    other = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert other.stdout.strip() == machine()


def test_a_machine_without_proc_is_known_by_its_number(monkeypatch):
    """Not only Linux trains."""
    monkeypatch.setattr(environment.os, "readlink", lambda path: (_ for _ in ()).throw(OSError()))
    machine.cache_clear()
    try:
        assert re.fullmatch(r"[0-9a-f]+", machine())
    finally:
        machine.cache_clear()


def test_this_process_is_alive():
    """It is found by its ID and its start."""
    pid, started = this()
    assert pid == os.getpid()
    assert is_alive(pid, started)
    assert not is_alive(pid, started - 1), "another process had that ID before"


@pytest.fixture
def sleeper():
    """Return a process that does nothing, and is alive."""
    process = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); "
                                "time.sleep(600)"], stdout=subprocess.PIPE)  # fmt: skip
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_killed_process_is_dead_before_it_is_buried(sleeper):
    """A zombie, whose parent has not asked how it ended, trains nothing."""
    started = processes._started(sleeper.pid)
    assert is_alive(sleeper.pid, started)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{sleeper.pid}").exists()
    assert not is_alive(sleeper.pid, started)
    sleeper.wait()
    assert not is_alive(sleeper.pid, started)


def test_setting_the_wall_clock_kills_nobody(sleeper, monkeypatch):
    """A start is counted from the machine's: a corrected clock leaves it as it is."""
    import psutil

    started = processes._started(sleeper.pid)
    boot_time = psutil._psplatform.boot_time
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot_time() + 3600)
    assert is_alive(sleeper.pid, started)


@pytest.mark.parametrize("name", ["a b) (c", "\xff\xfe"])
def test_a_process_of_any_name_is_found(tmp_path, name):
    """Linux shows the name in the middle of the line that is read."""
    link = tmp_path / name.encode("latin-1").decode("utf-8", "surrogateescape")
    link.symlink_to("/bin/sleep")
    with subprocess.Popen([link, "600"]) as process:
        started = processes._started(process.pid)
        assert is_alive(process.pid, started)
        assert abs(started - time.clock_gettime(time.CLOCK_BOOTTIME)) < 60
        process.kill()
    assert not is_alive(process.pid, started)


@pytest.mark.parametrize("pid", [2**22 + 1, 2**31, 10**15])
def test_an_id_that_no_process_can_have_is_dead(pid):
    """It was written by somebody else."""
    assert not is_alive(pid, 0.0)


def test_a_user_without_a_name_can_train(monkeypatch):
    """In a container with any number as its user nobody has a name."""
    for error in (KeyError("getpwuid(): uid not found: 4711"), OSError("No username set")):

        def fail(error=error):
            raise error

        monkeypatch.setattr(getpass, "getuser", fail)
        assert git.source_tags()["mlflow.user"] == str(os.getuid())


def test_an_attempt_tells_its_machine():
    """Host, cores, memory, versions and code are tags, to be seen in the UI and searched."""
    tags = machine_tags()
    assert tags["train.host"] == environment.hostname()
    assert re.match(r"\d+ cores, \d+ GB", tags["train.hardware"])
    assert tags["train.version.torch"] == environment.versions()["torch"]
    assert tags["train.code"] == (code_version() or "unknown")


def test_which_build_of_torch_it_is_is_told(monkeypatch):
    """PyPI's wheel with CUDA is 2.13.0 for pip, and 2.13.0+cu130 for itself."""
    import torch

    monkeypatch.setattr(torch, "__version__", f"{version('torch').partition('+')[0]}+cu130")
    for told in (environment.versions()["torch"], machine_tags()["train.version.torch"]):
        assert told == torch.__version__
        assert type(told) is str
    assert "torch" not in environment.versions(["numpy"])


def test_a_checkpoint_tells_where_it_was_made():
    """What `drift` compares is in it, and more."""
    import torch

    told = environment.describe("cpu", 3)
    assert told["device"].startswith("cpu (")
    assert (told["threads"], told["cuda"]) == (3, None)
    assert told["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert {"host", "platform", "cpus", "code"} < set(told)
    assert {"python", "torch", "numpy", "mlflow"} < set(told["versions"])


def test_a_gpu_has_no_instructions_of_a_processor(monkeypatch):
    """What computes there is named by the device alone."""
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a card at {device}")
    told = environment.describe("cuda:0", 3)
    assert told["device"] == "a card at cuda:0"
    assert "instructions" not in told


def test_the_order_of_sums_repeats_and_new_memory_is_not_filled(monkeypatch):
    """Torch fills each new tensor otherwise, a hundredth of a step."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    mode, threads = torch.get_deterministic_debug_mode(), torch.get_num_threads()
    try:
        environment.set_threads(1)
        assert torch.get_deterministic_debug_mode() == 1, "it warns of what has no order"
        assert not torch.utils.deterministic.fill_uninitialized_memory
        assert torch.get_num_threads() == 1
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.set_num_threads(threads)
