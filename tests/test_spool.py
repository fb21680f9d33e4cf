"""The spool: only what is whole counts, and what waits is found again by another process."""

import json
import os
import shutil

import pytest

from onward.checkpoint.format import write_checkpoint
from onward.checkpoint.manifest import MANIFEST_FILE, checkpoint_name
from onward.checkpoint.spool import JOURNAL_FILE, RunFolder, Spool


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "runs" / "key-run")


@pytest.fixture
def spool(folder):
    return folder.spool(3)


@pytest.fixture
def write(spool, make_checkpoint):
    """Return a function that writes the checkpoint of an epoch, or inside one, to the spool."""

    def write(epoch, epoch_step=0):
        content = make_checkpoint(epoch, epoch_step)
        path = spool.path(checkpoint_name(content))
        return write_checkpoint(path, content, attempt=3, kept=True, metrics={})

    return write


def test_nothing_is_made_before_something_is_put_in(folder, spool):
    """A look at a run that never was on this disk leaves nothing there."""
    assert spool.list() == []
    assert folder.waiting() == []
    assert spool.read_journal() == {}
    spool.remove("epoch_1")
    spool.discard()
    assert not folder.path.exists()


def test_what_was_written_is_listed_oldest_first_and_can_be_removed(spool, write):
    """Checkpoints wait in the order of their steps, not of their names."""
    manifests = {epoch: write(epoch) for epoch in (10, 9, 2)}
    assert spool.list() == [manifests[2], manifests[9], manifests[10]]
    spool.remove("epoch_9")
    assert [m.epoch for m in spool.list()] == [2, 10]


def test_those_inside_an_epoch_wait_in_the_order_of_training(spool, write):
    """By step, and an epoch's end after its last step, of the same number."""
    for where in [(1, 10), (2, 0), (0, 9), (1, 0), (1, 2)]:
        write(*where)
    names = ["global_step_9", "epoch_1", "global_step_12", "global_step_20", "epoch_2"]
    assert [m.name for m in spool.list()] == names
    spool.remove("global_step_20")
    assert [m.name for m in spool.list()] == [n for n in names if n != "global_step_20"]


class Killed(BaseException):
    """What ends a process that is killed: nothing catches it."""


@pytest.fixture
def die_at(monkeypatch):
    """Return a function that lets the process die before the n-th file or folder is removed."""

    def arm(number):
        left = iter(range(number))

        def dying(original):
            def remove(*arguments, **options):
                if next(left, None) is None:
                    raise Killed
                return original(*arguments, **options)

            return remove

        for name in ("unlink", "rmdir"):
            monkeypatch.setattr(os, name, dying(getattr(os, name)))

    yield arm
    monkeypatch.undo()


NUM_REMOVALS = 12  # journal, log, index, and two checkpoints of three files; the folders


@pytest.mark.parametrize("number", range(NUM_REMOVALS))
def test_a_discard_that_died_is_found_and_ended(folder, spool, write, die_at, monkeypatch, number):
    """Whatever is left of it is known to wait, so that nothing stays on the disk for ever."""
    spool.write_journal({"number": 3})
    spool.log_file.write_text("a line")
    (spool.folder / "index.json").write_text("{}")
    write(1)
    write(2)
    die_at(number)
    with pytest.raises(Killed):
        spool.discard()
    monkeypatch.undo()
    left = list(spool.folder.iterdir())
    assert [one.folder for one in folder.waiting()] == [spool.folder] * bool(left)
    spool.discard()
    assert not spool.folder.exists()


def test_a_removal_that_died_leaves_no_checkpoint_that_looks_damaged(spool, write, monkeypatch):
    """It is none before the first of its files is gone."""
    manifest = write(1)

    def die(*_, **__):
        raise Killed

    monkeypatch.setattr(shutil, "rmtree", die)
    with pytest.raises(Killed):
        spool.remove(manifest.name)
    assert (spool.path(manifest.name) / "checkpoint.pth").exists()
    assert spool.list() == []


@pytest.mark.parametrize("damage", ["no manifest", "half a manifest", "another's", "a file"])
def test_what_is_not_whole_is_nothing(spool, write, damage):
    """A folder without a manifest of its own is no checkpoint, and no error."""
    write(1)
    write(2)
    path = spool.path("epoch_2")
    if damage == "no manifest":
        (path / MANIFEST_FILE).unlink()
    elif damage == "half a manifest":
        (path / MANIFEST_FILE).write_bytes((path / MANIFEST_FILE).read_bytes()[:50])
    elif damage == "another's":
        os.replace(path, spool.path("epoch_3"))
    else:
        spool.path("epoch_7").write_text("in the way")
        spool.remove("epoch_2")
    assert [m.epoch for m in spool.list()] == [1]


def test_a_writer_that_died_leaves_nothing_that_counts(spool, write):
    """What was being written when the process died has another name."""
    write(1)
    os.replace(spool.path("epoch_1"), spool.path("epoch_1.0123.tmp"))
    (spool.folder / "notes").mkdir()
    assert spool.list() == []


def test_the_journal_comes_back_and_only_the_newest(spool):
    """What was recorded last is what is read."""
    for status in ("RUNNING", "FINISHED"):
        entry = {"status": status, "last_epoch": 3, "stray_id": None, "link": "http://…"}
        spool.write_journal(entry)
        assert spool.read_journal() == entry
    assert [path.name for path in spool.folder.iterdir()] == [JOURNAL_FILE]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"\xff\xfe", b"null"])
def test_a_broken_journal_is_none(spool, content):
    """A file that is no journal is read as if there were none."""
    spool.write_journal({"status": "RUNNING"})
    (spool.folder / JOURNAL_FILE).write_bytes(content)
    assert spool.read_journal() == {}


def test_attempts_that_wait_are_found_in_their_order(folder):
    """Only attempts with a journal wait; 10 comes after 9."""
    for number in (10, 9, 1):
        folder.spool(number).write_journal({"number": number})
    (folder.path / "attempt_2").mkdir()
    waiting = folder.waiting()
    assert [spool.attempt for spool in waiting] == [1, 9, 10]
    assert [spool.read_journal()["number"] for spool in waiting] == [1, 9, 10]
    waiting[0].discard()
    assert [spool.attempt for spool in folder.waiting()] == [9, 10]


def test_each_attempt_has_a_log_of_its_own(folder):
    """Logs of two attempts never get the same name in the store."""
    assert folder.spool(1).log_file.name == "attempt_1.log"
    assert folder.spool(2).log_file.parent == folder.spool(2).folder


def test_a_run_is_taken_by_one_at_a_time(folder):
    """Two processes on this machine do not work on one run; taken twice by one is no harm."""
    other = RunFolder(folder.path)
    assert folder.acquire()
    assert folder.acquire()
    assert not other.acquire()
    folder.release()
    folder.release()
    assert other.acquire()
    other.release()


def test_free_room_is_that_of_the_disk(tmp_path):
    """The number is the file system's own."""
    spool = Spool(tmp_path / "new" / "attempt_1", 1)
    found = os.statvfs(tmp_path)
    expected = found.f_bavail * found.f_frsize
    assert spool.free_bytes() == pytest.approx(expected, rel=0.2)


def test_the_journal_is_plain_json(spool):
    """A person can read what waits, and why."""
    spool.write_journal({"status": "FINISHED"})
    assert json.loads((spool.folder / JOURNAL_FILE).read_text()) == {"status": "FINISHED"}
