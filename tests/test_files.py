"""Files and folders are whole or not there, and one process holds a lock."""

import contextlib
import errno
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

from onward.errors import UnsafeFile, UsageError
from onward.system import files
from onward.system.files import FolderLock, atomic_folder, atomic_write, open_own, require_own


def fill(folder, content):
    (folder / "a").write_text(content)
    (folder / "deep").mkdir()
    (folder / "deep" / "b").write_text(content)


def content_of(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_appears_whole(tmp_path):
    """While it is filled its name is not there; afterwards nothing else is."""
    with atomic_folder(tmp_path / "x" / "f") as temporary:
        fill(temporary, "new")
        assert not (tmp_path / "x" / "f").exists()
    assert content_of(tmp_path / "x" / "f") == {"a": "new", "deep/b": "new"}
    assert os.listdir(tmp_path / "x") == ["f"]


def test_a_folder_that_is_there_is_replaced(tmp_path):
    """No file of the old one is left among the new ones."""
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "old").write_text("old")
    with atomic_folder(tmp_path / "f") as temporary:
        fill(temporary, "new")
    assert content_of(tmp_path / "f") == {"a": "new", "deep/b": "new"}


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("moment", ["block", "fsync", "replace"])
def test_a_folder_that_fails_leaves_the_old_one_or_none(tmp_path, monkeypatch, old, moment):
    """Whatever fails before the name is given, nothing half is left."""
    path = tmp_path / "f"
    if old:
        path.mkdir()
        (path / "a").write_text("old")

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    if moment != "block":
        monkeypatch.setattr(files.os, moment, fail)
    with pytest.raises(OSError, match="No space"), atomic_folder(path) as temporary:  # noqa: PT012
        fill(temporary, "new")
        if moment == "block":
            fail()
    if moment != "replace":  # the old one makes room right before
        assert (content_of(path) if path.exists() else None) == ({"a": "old"} if old else None)
    assert not [name for name in os.listdir(tmp_path) if name != "f"]


@pytest.fixture
def order(monkeypatch):
    """Return the names that were synced, and "replace", in the order of the calls."""
    seen = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor):
        seen.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.split(".")[0])
        fsync(descriptor)

    def note_replace(source, target):
        seen.append("replace")
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", note_fsync)
    monkeypatch.setattr(files.os, "replace", note_replace)
    return seen


def test_a_folders_bytes_are_on_disk_before_its_name_is(tmp_path, order):
    """The other way round a power cut could leave empty files under the final name."""
    with atomic_folder(tmp_path / "f") as temporary:
        fill(temporary, "new")
    assert order[-2:] == ["replace", tmp_path.name.split(".")[0]]
    assert sorted(order[:-2]) == ["a", "b", "deep", "f"]
    assert order[-3] == "f", "the folder that holds the names comes after what it names"


def test_a_files_bytes_are_on_disk_before_its_name_is(tmp_path, order):
    """The same order for a single file, and its folder last."""
    atomic_write(tmp_path / "a", lambda file: file.write(b"new"))
    assert order == ["a", "replace", tmp_path.name.split(".")[0]]


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077, 0o777])
def test_what_is_our_own_is_private_whatever_the_umask(tmp_path, umask):
    """Folders are 0700, those above included, and files 0600; not what the user asked for."""
    script = f"""
import os
os.umask({umask})
from pathlib import Path

from onward.system.files import FolderLock, PUBLIC, atomic_folder, atomic_write
from onward.system.files import make_folder, open_own
make_folder(Path("made/deep"))
atomic_write(Path("written/deep/a"), lambda file: file.write(b"x"))
with atomic_folder(Path("whole/deep")) as folder:
    os.close(os.open(folder / "a", os.O_CREAT | os.O_WRONLY, 0o666))
    os.mkdir(folder / "inner", 0o777)
os.close(open_own(Path("own/log")))
FolderLock(Path("locked")).acquire()
atomic_write(Path("asked for"), lambda file: file.write(b"x"), PUBLIC)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, check=True)
    asked_for = tmp_path / "asked for"
    assert asked_for.stat().st_mode & 0o777 == 0o666 & ~umask
    found = {p: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p != asked_for}
    assert len(found) == 13
    assert {p for p, mode in found.items() if mode != (0o700 if p.is_dir() else 0o600)} == set()


@pytest.mark.parametrize("plant", [os.mkfifo, "link", "second name"])
@pytest.mark.parametrize("use", [open_own, lambda path: FolderLock(path.parent)])
def test_what_lies_in_place_of_a_file_of_our_own_is_not_written_to(tmp_path, plant, use):
    """Neither followed, nor waited for: a known name is no way to somebody else's file."""
    (tmp_path / "victim").write_text("a stranger's")
    path = tmp_path / "f" / "lock"
    path.parent.mkdir()
    if plant == "link":
        path.symlink_to(tmp_path / "victim")
    elif plant == "second name":
        os.link(tmp_path / "victim", path)
    else:
        plant(path)
    with pytest.raises(UnsafeFile, match="lock"):
        use(path)
    assert (tmp_path / "victim").read_text() == "a stranger's"


def test_a_link_that_leads_nowhere_is_not_followed_either(tmp_path):
    """Else whoever made it would choose which file is made."""
    (tmp_path / "log").symlink_to(tmp_path / "new")
    with pytest.raises(UnsafeFile):
        open_own(tmp_path / "log")
    assert os.listdir(tmp_path) == ["log"]


@pytest.mark.parametrize("write", [atomic_write, "folder"])
def test_a_link_in_place_of_what_is_written_whole_is_replaced(tmp_path, write):
    """What it names stays as it is."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "a").write_text("a stranger's")
    if write == "folder":
        (tmp_path / "f").symlink_to(tmp_path / "victim")
        with contextlib.suppress(OSError), atomic_folder(tmp_path / "f") as temporary:
            (temporary / "a").write_text("new")
    else:
        (tmp_path / "f").symlink_to(tmp_path / "victim" / "a")
        write(tmp_path / "f", lambda file: file.write(b"new"))
        assert (tmp_path / "f").read_text() == "new"
    assert (tmp_path / "victim" / "a").read_text() == "a stranger's"


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755, 0o500])
def test_a_folder_that_only_its_owner_writes_to_is_taken(tmp_path, mode):
    """Others may read it; one that is not there yet is made private."""
    folder = tmp_path / "home"
    require_own(folder)
    folder.mkdir()
    folder.chmod(mode)
    require_own(folder)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o775, 0o777])
def test_a_folder_that_others_may_write_to_is_refused_with_what_mends_it(tmp_path, mode):
    """The command in the message, run as it stands, mends it."""
    folder = tmp_path / "my home"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UsageError, match=r"others may write to") as caught:
        require_own(folder)
    command = str(caught.value).split("`")[1]
    subprocess.run(shlex.split(command), check=True)
    require_own(folder)


def test_a_folder_meant_for_all_is_refused_and_stays_one(tmp_path):
    """Nobody is told to close /tmp."""
    tmp_path.chmod(0o1777)
    with pytest.raises(UsageError, match=r"TRAIN_HOME") as caught:
        require_own(tmp_path)
    assert "chmod" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("whose", ["folder", "link"])
def test_a_folder_of_somebody_else_is_refused(tmp_path, whose):
    """So is a link of theirs to a folder of one's own."""
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir(0o700)
    link.symlink_to(folder)
    os.lchown(folder if whose == "folder" else link, 12345, -1)
    with pytest.raises(UsageError, match="12345"):
        require_own(link)


def test_a_lock_has_one_holder(tmp_path):
    """A second one is refused, and gets it once it is given back."""
    first, second = FolderLock(tmp_path / "f"), FolderLock(tmp_path / "f")
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()


HOLDER = """
import pathlib, sys
from onward.system.files import FolderLock
lock = FolderLock(pathlib.Path(sys.argv[1]))
print(lock.acquire(), flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_lock_is_held_against_other_processes_until_its_own_dies(tmp_path):
    """A process that is killed gives its lock back, however it dies."""
    env = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[2])}
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    ) as holder:
        assert holder.stdout.readline() == "True\n"
        mine = FolderLock(tmp_path)
        assert not mine.acquire()
        holder.kill()
        holder.wait()
        assert mine.acquire()
        mine.release()


def test_a_process_that_is_forked_does_not_hold_the_lock_on(tmp_path):
    """Such as a loader's worker, which outlives the process that was killed by some seconds."""
    script = """
import os, sys, time
from pathlib import Path

from onward.system.files import FolderLock
lock = FolderLock(Path("f"))
assert lock.acquire()
if os.fork() == 0:
    print("locked", flush=True)
    time.sleep(60)
time.sleep(60)
"""
    (tmp_path / "f").mkdir(mode=0o700)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout.readline() == b"locked\n"
        process.kill()
        process.wait()
        lock = FolderLock(tmp_path / "f")
        assert lock.acquire()
        lock.release()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
