"""Files and folders are whole or not there, and one process holds a lock."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import train.files
from train.files import FolderLock, atomic_folder, atomic_write, link_or_copy


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
        monkeypatch.setattr(train.files.os, moment, fail)
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

    monkeypatch.setattr(train.files.os, "fsync", note_fsync)
    monkeypatch.setattr(train.files.os, "replace", note_replace)
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


def test_a_link_writes_no_bytes(tmp_path):
    """On one file system the second name is the same file."""
    (tmp_path / "a").write_text("content")
    link_or_copy(tmp_path / "a", tmp_path / "deep" / "b")
    assert (tmp_path / "deep" / "b").samefile(tmp_path / "a")
    assert os.listdir(tmp_path / "deep") == ["b"]


def test_without_links_it_is_a_copy(tmp_path, monkeypatch):
    """Across file systems the bytes are written, and what is there is replaced."""

    def refuse(*arguments):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(train.files.os, "link", refuse)
    (tmp_path / "a").write_text("content")
    (tmp_path / "b").write_text("old")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "content"
    assert not (tmp_path / "b").samefile(tmp_path / "a")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_link_replaces_what_is_there_and_spares_its_other_names(tmp_path):
    """The file that had the name before is not written to: others may still read it."""
    for name in ("new", "old"):
        (tmp_path / name).write_text(name)
    os.link(tmp_path / "old", tmp_path / "target")
    link_or_copy(tmp_path / "new", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "new"
    assert (tmp_path / "old").read_text() == "old"


@pytest.mark.parametrize("died", ["before the link was renamed", "in the middle of a copy"])
@pytest.mark.parametrize("is_there", [False, True])
def test_what_a_killed_one_left_is_cleared_by_doing_it_again(tmp_path, monkeypatch, died, is_there):
    """A store shows no file that is neither part of a checkpoint nor ever deleted."""
    store = tmp_path / "store"
    (tmp_path / "a").write_text("content")
    if is_there:  # it died after that, and did not get to note it
        link_or_copy(tmp_path / "a", store / "b")

    class Killed(BaseException):
        """Nothing that the program does on the way out is done."""

    def die(source, target):
        Path(target).write_text("half")
        raise Killed

    def refuse(*arguments):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        if died == "in the middle of a copy":
            patch.setattr(train.files.os, "link", refuse)
            patch.setattr(train.files.shutil, "copyfile", die)
        else:
            patch.setattr(train.files.os, "replace", lambda *_: die(tmp_path / "a", tmp_path / "c"))
        with pytest.raises(Killed):
            link_or_copy(tmp_path / "a", store / "b")
    assert len(os.listdir(store)) == 1 + is_there
    link_or_copy(tmp_path / "a", store / "b")
    assert os.listdir(store) == ["b"]
    assert (store / "b").read_text() == "content"


def test_a_copy_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    """A full disk costs the new file only, and leaves nothing lying about."""

    def fail(source, target):
        Path(target).write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(train.files.os, "link", fail)
    monkeypatch.setattr(train.files.shutil, "copyfile", fail)
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    with pytest.raises(OSError, match="No space"):
        link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "b"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_copys_bytes_are_on_disk_before_its_name_is(tmp_path, monkeypatch, order):
    """Where no link can be made, the copy is as durable as any other file."""

    def refuse(*arguments):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(train.files.os, "link", refuse)
    (tmp_path / "a").write_text("content")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert order[:2] == ["b", "replace"]


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
from train.files import FolderLock
lock = FolderLock(pathlib.Path(sys.argv[1]))
print(lock.acquire(), flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_lock_is_held_against_other_processes_until_its_own_dies(tmp_path):
    """A process that is killed gives its lock back, however it dies."""
    env = {**os.environ, "PYTHONPATH": str(Path(train.files.__file__).parents[1])}
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
