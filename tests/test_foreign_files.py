"""Files that others put into a run's folder or the program's own: never followed, never opened."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

import onward
from onward.checkpoint.format import write_checkpoint
from onward.checkpoint.manifest import is_own_file
from onward.checkpoint.store import CheckpointStore
from onward.errors import CheckpointDamaged, UnsafeFile
from onward.script import source
from onward.tracking.artifacts import Artifacts, is_of_a_run

VERBS = {
    "list": lambda artifacts, folder, local: artifacts.list(folder),
    "upload": lambda artifacts, folder, local: artifacts.upload(local, folder),
    "give": lambda artifacts, folder, local: artifacts.upload(local, folder, give_away=True),
    "download": lambda artifacts, folder, local: artifacts.download(
        f"{folder}/a.txt", local.with_name("got"), 99
    ),
    "delete": lambda artifacts, folder, local: artifacts.delete(f"{folder}/a.txt"),
}


def plant_pipe(path):
    os.mkfifo(path)


def plant_socket(path):
    """Make a socket by a short path: its address has room for about 100 characters."""
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def plant_device(path):
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero, which has no end
    except PermissionError:
        pytest.skip("only root makes devices")


def plant_link(path):
    path.symlink_to(path.parents[4] / "victim" / "a.txt")


SPECIAL = [plant_pipe, plant_socket, plant_device]


@pytest.fixture
def root(tmp_path):
    """Return the folder of a run as MLflow makes it; a stranger's folder lies beside the store."""
    folder = tmp_path / "mlruns" / "0" / "4f1c" / "artifacts"
    folder.mkdir(parents=True)
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "a.txt").write_text("a stranger's")
    return folder


@pytest.fixture
def local(tmp_path):
    """Return a file of our own."""
    file = tmp_path / "own" / "a.txt"
    file.parent.mkdir()
    file.write_text("ours")
    return file


def untouched(tmp_path):
    """Tell whether the stranger's folder is what it was."""
    victim = tmp_path / "victim"
    return os.listdir(victim) == ["a.txt"] and (victim / "a.txt").read_text() == "a stranger's"


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("level", ["checkpoints", "checkpoints/epoch_1", "", ".."])
def test_a_link_in_place_of_a_folder_is_not_followed(tmp_path, root, local, verb, level):
    """At any level, the run's own folder included: nothing outside is read, made or deleted."""
    if level in ("", ".."):  # the run's folders, put aside and replaced
        folder = root if level == "" else root.parent
        folder.rename(tmp_path / "aside")
        (tmp_path / "victim").rename(tmp_path / "v")
        (tmp_path / "v" / "artifacts" / "checkpoints" / "epoch_1").mkdir(parents=True)
        folder.symlink_to(tmp_path / "v" / ("artifacts" if level == "" else ""))
    else:
        link = root / level
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(tmp_path / "victim")
        if level == "checkpoints":
            (tmp_path / "victim" / "epoch_1").symlink_to(".")
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    with pytest.raises(UnsafeFile, match="symbolic link"):
        VERBS[verb](Artifacts(str(root)), "checkpoints/epoch_1", local)
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("verb", ["upload", "give", "download", "delete"])
def test_a_link_in_place_of_a_file_is_not_followed(tmp_path, root, local, verb):
    """Neither what it names is read or overwritten, nor is the link taken for ours."""
    (root / "logs").mkdir()
    plant_link(root / "logs" / "a.txt")
    with pytest.raises(UnsafeFile, match="symbolic link"):
        VERBS[verb](Artifacts(str(root)), "logs", local)
    assert untouched(tmp_path)


@pytest.mark.parametrize("give", [True, False])
def test_a_link_in_place_of_the_file_under_way_is_not_followed(tmp_path, root, local, give):
    """The name under which a file is written first can be known by anybody."""
    (root / "logs").mkdir()
    (root / "logs" / "a.txt.tmp").symlink_to(tmp_path / "victim" / "a.txt")
    Artifacts(str(root)).upload(local, "logs", give_away=give)
    assert untouched(tmp_path)
    assert (root / "logs" / "a.txt").read_text() == "ours"
    assert os.listdir(root / "logs") == ["a.txt"]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("plant", SPECIAL)
@pytest.mark.parametrize("verb", ["upload", "give", "download"])
def test_what_is_no_file_is_not_opened(root, local, plant, verb):
    """A pipe would never answer, a device never end."""
    (root / "logs").mkdir()
    plant(root / "logs" / "a.txt")
    with pytest.raises(UnsafeFile):
        VERBS[verb](Artifacts(str(root)), "logs", local)
    assert not local.with_name("got").exists()


@pytest.mark.parametrize("path", ["../4f1c/secret", "/etc/passwd", "a/../../secret", "", "a\0b"])
@pytest.mark.parametrize("verb", ["list", "download", "delete", "upload"])
def test_no_path_leads_out(tmp_path, root, local, path, verb):
    """Whoever asks: `..`, a full path, and what no file system takes."""
    if verb == "list" and path == "":
        pytest.skip("the root itself")
    if verb == "upload" and path == "":
        pytest.skip("the root itself")
    (root.parent / "secret").write_text("x")
    artifacts = Artifacts(str(root))
    acts = {
        "list": lambda: artifacts.list(path),
        "download": lambda: artifacts.download(path, local.with_name("got"), 99),
        "delete": lambda: artifacts.delete(path),
        "upload": lambda: artifacts.upload(local, path),
    }
    with pytest.raises(OSError):  # noqa: PT011 - which one, is no matter
        acts[verb]()
    assert (root.parent / "secret").read_text() == "x"
    assert root.is_dir()
    assert not local.with_name("got").exists()


def test_a_link_that_comes_and_goes_never_leads_out(tmp_path, root, local):
    """While another process swaps a folder for a link and back, no upload leaves the root."""
    (root / "logs").mkdir()
    (root / "link").symlink_to(tmp_path / "victim")
    artifacts, done = Artifacts(str(root)), threading.Event()

    def swap():
        while not done.is_set():
            for step in ("logs aside", "link logs", "logs link", "aside logs"):
                source, target = step.split()
                try:
                    os.rename(root / source, root / target)
                except OSError:
                    return

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for number in range(300):
            try:
                artifacts.upload(local, "logs", give_away=bool(number % 2))
                artifacts.delete("logs/a.txt")
            except OSError:
                continue
    finally:
        done.set()
        thread.join()
    assert untouched(tmp_path)


@pytest.fixture
def store(root):
    """Return the checkpoints of the run in `root`."""
    return CheckpointStore(Artifacts(str(root)), "4f1c")


@pytest.fixture
def commit(store, tmp_path, make_checkpoint):
    """Return a function that commits the checkpoint of an epoch."""

    def commit(epoch, store=store):
        folder = tmp_path / "spool" / f"epoch_{epoch}"
        manifest = write_checkpoint(
            folder, make_checkpoint(epoch), attempt=1, kept=True, metrics={}
        )
        store.put(folder, manifest)
        return manifest

    return commit


@pytest.mark.timeout(30)
@pytest.mark.parametrize("plant", [*SPECIAL, plant_link])
@pytest.mark.parametrize("name", ["checkpoint.pth", "manifest.json", "checkpoint_metrics.json"])
def test_a_checkpoint_with_something_else_in_place_of_a_file_is_damaged(
    root, store, commit, tmp_path, plant, name
):
    """Told as any other damage: a resume falls back, and nothing hangs."""
    commit(1)
    manifest = commit(2)
    file = root / "checkpoints" / "epoch_2" / name
    file.unlink()
    plant(file)
    with pytest.raises(CheckpointDamaged):
        store.get(manifest)
    assert [m.epoch for m in store.list()] == ([1] if name == "manifest.json" else [1, 2])
    assert store.leftovers(store.list()) == []


@pytest.mark.timeout(30)
@pytest.mark.parametrize("plant", [*SPECIAL, plant_link])
def test_an_index_that_is_no_file_counts_as_none(root, store, commit, plant):
    """It is derived: the manifests themselves are read."""
    commit(1)
    plant(root / "checkpoints" / "index.json")
    assert [m.epoch for m in store.list()] == [1]


def test_a_link_in_place_of_a_checkpoint_is_none(root, store, commit, tmp_path):
    """It is neither followed nor deleted, and the others are listed."""
    commit(1)
    (root / "checkpoints" / "epoch_2").symlink_to(tmp_path / "victim")
    assert [m.epoch for m in store.list()] == [1]
    assert store.leftovers(store.list()) == []
    assert untouched(tmp_path)


@pytest.mark.parametrize("foreign", ["notes.txt", "checkpoint.pth/weights.bin", "deep/er"])
def test_a_folder_of_somebody_else_is_left_alone(root, store, commit, foreign, caplog):
    """Without a manifest, and with what none of ours could list, it is no leftover."""
    commit(1)
    theirs = root / "checkpoints" / "epoch_7" / foreign
    theirs.parent.mkdir(parents=True)
    theirs.write_text("a stranger's")
    assert store.leftovers(store.list()) == []
    store.delete("epoch_7")
    assert theirs.read_text() == "a stranger's"
    assert "epoch_7" in caplog.text


def test_what_somebody_put_beside_a_checkpoint_stays(root, store, commit, tmp_path):
    """A checkpoint that is pruned takes its own files along, and nothing else."""
    commit(1)
    folder = root / "checkpoints" / "epoch_1"
    (folder / "notes.txt").write_text("a stranger's")
    store.delete("epoch_1")
    assert os.listdir(folder) == ["notes.txt"]
    assert store.list() == []


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["checkpoint.pth"],
        ["checkpoint.pth.tmp", "checkpoint_metrics.json"],
        ["checkpoint.pth/part-00000", "checkpoint.pth/part-00001.tmp", "manifest.json.tmp"],
    ],
)
def test_what_a_killed_upload_left_is_cleared_away(root, store, commit, names):
    """Of this attempt or another: its files are those of a checkpoint, and no manifest."""
    commit(1)
    folder = root / "checkpoints" / "epoch_7"
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("half")
    assert store.leftovers(store.list()) == ["epoch_7"]
    store.delete("epoch_7")
    assert not folder.exists()


def test_what_is_given_to_a_store_can_be_read_by_others(root, store, commit, monkeypatch):
    """The program's own files are private; those in the store have the mode of any new file."""
    commit(1)
    (root / "plain").write_text("x")
    expected = (root / "plain").stat().st_mode
    files = [p for p in (root / "checkpoints").rglob("*") if p.is_file()]
    assert {p.stat().st_mode for p in files} == {expected}


def test_a_link_that_is_planted_while_training_costs_nothing(root, store, commit, tmp_path):
    """What cannot be committed stays on this disk, and goes up once the link is gone."""
    commit(1)
    (root / "checkpoints").rename(root / "aside")
    (root / "checkpoints").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic link"):  # by which the pipeline knows an outage
        commit(2)
    assert untouched(tmp_path)
    (root / "checkpoints").unlink()
    (root / "aside").rename(root / "checkpoints")
    commit(2)
    assert [m.epoch for m in store.list()] == [1, 2]


def test_every_file_of_a_checkpoint_is_one_of_a_run(root, commit):
    """The layout of a run, and that of a checkpoint, are told in two places, and are one."""
    commit(1)
    files = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
    assert len(files) == 3
    assert all(map(is_of_a_run, files))
    inside = [file.removeprefix("checkpoints/epoch_1/") for file in files]
    assert all(map(is_own_file, inside))


@pytest.mark.parametrize("name", ["shard-00001.json", "shard-00001-00000.pth"])
def test_what_other_ranks_write_is_of_a_run_too(name):
    """Else a server that keeps files on this machine could not be gone on with."""
    assert is_own_file(name)
    assert is_of_a_run(f"checkpoints/epoch_3/{name}")
    assert is_of_a_run("logs/attempt_2_rank_1.log")
    assert not is_of_a_run(f"checkpoints/{name}")


def test_every_file_of_a_loop_of_ones_own_is_one_of_a_run(tracking, monkeypatch):
    """Its script, and how that was edited between two attempts, too."""
    resumed = {}
    for num_epochs, code in enumerate(("first\n", "second\n"), 1):
        monkeypatch.setattr(source, "script_code", lambda code=code: code)
        with onward.open_run({}, **resumed) as run:
            list(run.epochs(range(num_epochs)))
        resumed = {"resume_run": run.run_id}
    files = [name for _file, name in tracking.artifacts(tracking.get_run(run.run_id))._walk("")]
    assert "code/script.py" in files
    assert [name for name in files if not is_of_a_run(name)] == []
    assert is_of_a_run("code/script.patch")
