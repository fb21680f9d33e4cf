"""A run's files in a local folder: whole or not there, given away without writing them twice."""

import errno
import hashlib
import os

import pytest

from onward.system import files
from onward.tracking import tree as tree_module
from onward.tracking.tree import Tree


@pytest.fixture
def root(tmp_path):
    """Return the folder of a run."""
    return tmp_path / "run" / "artifacts"


@pytest.fixture
def tree(root):
    """Return its files."""
    return Tree(root)


@pytest.fixture
def own(tmp_path):
    """Return a function that makes a file of our own, of that content, always of one name."""

    def write(content):
        file = tmp_path / "own" / "a"
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_text(content)
        return file

    return write


def refuse(*arguments, **more):
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def test_a_link_writes_no_bytes(tree, root, own, tmp_path):
    """On one file system what is given away is the same file; what is fetched is a copy."""
    file = own("content")
    tree.put(file, "deep/er", give_away=True)
    assert (root / "deep" / "er" / "a").samefile(file)
    assert os.listdir(root / "deep" / "er") == ["a"]
    sha256 = tree.fetch("deep/er/a", tmp_path / "got" / "b", 7)
    assert sha256 == hashlib.sha256(b"content").hexdigest()
    assert not (tmp_path / "got" / "b").samefile(file)
    assert os.listdir(tmp_path / "got") == ["b"]


def test_without_links_it_is_a_copy(tree, root, own, tmp_path, monkeypatch):
    """Across file systems the bytes are written, and what is there is replaced."""
    monkeypatch.setattr(tree_module.os, "link", refuse)
    for content in ("old", "new"):
        file = own(content)
        tree.put(file, "", give_away=True)
        tree.fetch("a", tmp_path / "got", 9)
    assert (root / "a").read_text() == (tmp_path / "got").read_text() == "new"
    assert not (root / "a").samefile(file)
    assert os.listdir(root) == ["a"]


@pytest.mark.parametrize("give_away", [True, False])
def test_what_is_there_is_replaced_and_its_other_names_are_spared(
    tree, root, own, tmp_path, give_away
):
    """The file that had the name before is not written to: others may still read it."""
    tree.put(own("old"), "", give_away)
    os.link(root / "a", tmp_path / "another name")
    tree.put(own("new"), "", give_away)
    assert (root / "a").read_text() == "new"
    assert (tmp_path / "another name").read_text() == "old"


def test_what_is_not_given_away_stays_a_file_of_its_own(tree, root, own):
    """It may be written to again."""
    file = own("old")
    tree.put(file, "")
    file.write_text("new")
    assert (root / "a").read_text() == "old"


@pytest.mark.parametrize("died", ["before it was renamed", "in the middle of a copy"])
@pytest.mark.parametrize("is_there", [False, True])
def test_what_a_killed_one_left_is_cleared_by_doing_it_again(
    tree, root, own, monkeypatch, died, is_there
):
    """A store shows no file that is neither part of a checkpoint nor ever deleted."""
    file = own("content")
    if is_there:  # it died after that, and did not get to note it
        tree.put(file, "", give_away=True)

    class Killed(BaseException):
        """Nothing that the program does on the way out is done."""

    def die(*arguments):
        raise Killed

    def die_half_way(source, target):
        target.write(b"half")
        target.close()
        raise Killed

    root.mkdir(parents=True, exist_ok=True)
    with monkeypatch.context() as patch:
        unlink = os.unlink
        patch.setattr(tree_module.os, "unlink", lambda *_, **__: None)
        if died == "in the middle of a copy":
            patch.setattr(tree_module.os, "link", refuse)
            patch.setattr(tree_module, "copy_out", die_half_way)
        else:
            patch.setattr(tree_module, "rename", die)
        with pytest.raises(Killed):
            tree.put(file, "", give_away=True)
        patch.setattr(tree_module.os, "unlink", unlink)
    assert len(os.listdir(root)) == 1 + is_there
    tree.put(file, "", give_away=True)
    assert os.listdir(root) == ["a"]
    assert (root / "a").read_text() == "content"


def test_a_copy_that_fails_leaves_the_old_one(tree, root, own, monkeypatch):
    """A full disk costs the new file only, and leaves nothing lying about."""
    tree.put(own("old"), "")

    def fail(source, target):
        target.write(b"half")
        target.close()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tree_module, "copy_out", fail)
    file = own("new")
    with pytest.raises(OSError, match="No space"):
        tree.put(file, "")
    assert (root / "a").read_text() == "old"
    assert os.listdir(root) == ["a"]


def test_a_copys_bytes_are_on_disk_before_its_name_is(tree, root, own, monkeypatch):
    """Where no link can be made, the copy is as durable as any other file."""
    seen = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor):
        seen.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def note_replace(*names, **more):
        seen.append("replace")
        replace(*names, **more)

    monkeypatch.setattr(tree_module.os, "link", refuse)
    monkeypatch.setattr(files.os, "fsync", note_fsync)
    monkeypatch.setattr(files.os, "replace", note_replace)
    tree.put(own("content"), "", give_away=True)
    assert seen == ["a.tmp", "replace", "artifacts"]


@pytest.mark.parametrize("give_away", [True, False])
def test_what_is_put_there_others_can_read(tree, root, own, tmp_path, give_away):
    """It has the permissions of any new file, though our own are private."""
    file = own("content")
    file.chmod(0o600)
    tree.put(file, "", give_away)
    (tmp_path / "new").write_text("x")
    assert (root / "a").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_what_is_fetched_is_private(tree, own, tmp_path):
    """It lies where our own files do."""
    tree.put(own("content"), "")
    tree.fetch("a", tmp_path / "got" / "a", 9)
    assert (tmp_path / "got").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "got" / "a").stat().st_mode & 0o777 == 0o600


def test_a_file_of_mlflow_that_is_not_whole_yet_is_not_listed(tree, root):
    """MLflow itself does not list it either."""
    root.mkdir(parents=True)
    (root / ".artifact.uploading.x1").write_text("half")
    assert tree.items("") == []


def test_the_way_to_the_root_may_be_a_link(own, tmp_path):
    """A person may keep the store on another disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "mlruns").symlink_to(tmp_path / "disk")
    Tree(tmp_path / "mlruns" / "0" / "4f1c" / "artifacts").put(own("content"), "logs")
    assert (tmp_path / "disk" / "0" / "4f1c" / "artifacts" / "logs" / "a").read_text() == "content"
