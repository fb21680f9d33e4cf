"""What a machine downloads of a checkpoint that several ranks saved: each file once, verified."""

import dataclasses
import multiprocessing
import threading

import pytest
import torch

from onward.checkpoint import host_files
from onward.checkpoint.format import write_checkpoint
from onward.checkpoint.host_files import HostFiles
from onward.checkpoint.index import Origin
from onward.checkpoint.pieces import Marker, Piece, add_shard
from onward.checkpoint.store import CheckpointStore
from onward.errors import CheckpointDamaged, StoreUnavailable
from onward.opening.fetching import get_apart
from onward.system.boxes import Box, whole
from onward.system.environment import Ranks
from onward.world import World

MARKER = Marker("w", "float32", (4, 3))


@pytest.fixture
def manifest(artifacts, tmp_path, make_checkpoint):
    """Return what two ranks have committed."""

    def add(folder):
        entries = []
        for rank in range(2):
            tensor = torch.full((2, 3), float(rank))
            piece = Piece(key="w", shape=(4, 3), offset=(2 * rank, 0), tensor=tensor)
            entries += add_shard(folder, Origin(rank, 2, 1, 30), [piece]).entries
        return dataclasses.make_dataclass("Written", ["entries"])(entries)

    content = make_checkpoint(3, format_version=3, world=2, layout="fsdp")
    content["model_state_dict"] = {"w": MARKER.to_dict()}
    folder = tmp_path / "spool" / "epoch_3"
    written = write_checkpoint(folder, content, attempt=1, kept=True, metrics={}, shard=add)
    return CheckpointStore(artifacts, "r1").put(folder, written)


@pytest.fixture
def files(manifest, artifacts, tmp_path):
    return HostFiles(tmp_path / "home", manifest, lambda: artifacts)


def downloads(calls):
    return [name.rpartition("/")[2] for name in calls.names if name.startswith("download")]


def test_only_what_overlaps_is_downloaded(files, calls):
    """By the first that needs it; nobody downloads it again."""
    calls.arm()
    first = files.shards().read(MARKER, Box((2, 0), (2, 3)))
    assert first.unique().item() == 1
    assert [n for n in downloads(calls) if n.endswith(".pth")] == ["shard-00001-00000.pth"]
    calls.arm()
    assert files.shards().read(MARKER, whole((4, 3)))[:, 0].tolist() == [0, 0, 1, 1]
    assert downloads(calls) == ["shard-00000-00000.pth"]
    files.remove()
    assert not files.folder.exists()


def test_ranks_of_a_machine_that_need_it_at_once_download_it_once(manifest, files, calls):
    """The others wait for the one that does."""
    entry = next(e for e in manifest.files if e.path == "shard-00001-00000.pth")
    calls.arm()
    ranks = [threading.Thread(target=files.fetch, args=(entry,)) for _rank in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert downloads(calls) == ["shard-00001-00000.pth"]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
def test_each_file_is_somebodys(files, manifest, num_ranks):
    """So that together the machines have verified all of it."""
    found = [e.path for rank in range(num_ranks)
             for e in files.of_ranks(range(rank, rank + 1), num_ranks)]  # fmt: skip
    assert sorted(found) == ["shard-00000-00000.pth", "shard-00001-00000.pth"]


@pytest.mark.parametrize("way", ["cut", "other", "gone"])
def test_what_is_damaged_is_not_kept(files, manifest, artifacts, way):
    """What has its name here is what the manifest says."""
    entry = next(e for e in manifest.files if e.path == "shard-00001-00000.pth")
    stored = artifacts.root / "checkpoints" / "epoch_3" / entry.path
    content = stored.read_bytes()
    stored.unlink()
    if way != "gone":
        stored.write_bytes(content[:-1] + (b"x" if way == "other" else b""))
    with pytest.raises(CheckpointDamaged):
        files.fetch(entry)
    assert not (files.folder / entry.path).exists()


def test_what_links_elsewhere_is_damaged(files, manifest, artifacts, tmp_path):
    """All fall back from it, as from what is cut."""
    entry = next(e for e in manifest.files if e.path == "shard-00001-00000.pth")
    stored = artifacts.root / "checkpoints" / "epoch_3" / entry.path
    stored.rename(tmp_path / "elsewhere")
    stored.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointDamaged, match="symbolic link"):
        files.fetch(entry)


def test_what_is_not_gone_on_from_is_removed(files, manifest, artifacts, tmp_path):
    """As the next is fetched, or as the process ends; a crash's by who comes next."""
    home = tmp_path / "home"
    (home / "resumed" / "crashed").mkdir(parents=True)
    files.keep()
    files.fetch_all(manifest.indexes)
    other = HostFiles(home, dataclasses.replace(manifest, step=31), lambda: artifacts)
    other.keep()
    assert [path for path in other.folder.parent.iterdir() if path.is_dir()] == [other.folder]
    host_files._leave()
    assert not other.folder.exists()


def test_what_another_process_keeps_stays(files, manifest, artifacts, tmp_path):
    """Be it of the same checkpoint or of another one, until that process has ended."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def live():
        files.keep()
        files.fetch_all(manifest.indexes)
        there.send("kept")
        there.recv()

    process = context.Process(target=live)
    process.start()
    here.recv()
    files.keep()
    files.remove()
    other = HostFiles(tmp_path / "home", dataclasses.replace(manifest, step=31), lambda: artifacts)
    other.keep()
    is_kept = all((files.folder / entry.path).exists() for entry in manifest.indexes)
    here.send("end")
    process.join(20)
    assert is_kept
    other.keep()
    assert not files.folder.exists()
    other.remove()


class Answers:
    """What other machines answer."""

    def __init__(self, *answers):
        self.answers = answers

    def ask(self, question, meanwhile):
        assert question["name"] == "epoch_3"
        meanwhile()
        return self.answers


@pytest.mark.parametrize(
    ("answer", "error"),
    [(None, None), (["damaged", "x"], CheckpointDamaged), (["unavailable", "x"], StoreUnavailable)],
)
def test_what_any_machine_finds_damaged_is_damaged_for_all(manifest, artifacts, answer, error):
    """So that all fall back to the same one; rank 0 has read none of the pieces of others."""
    world = World(Ranks(0, 2, local_size=1))
    if error is not None:
        with pytest.raises(error):
            get_apart(manifest, artifacts, world, Answers(answer))
        return
    content = get_apart(manifest, artifacts, world, Answers(answer))
    assert content.parts["model"]["w"] == MARKER.to_dict()
    assert "download checkpoints/epoch_3/shard-00001-00000.pth" not in artifacts.calls.names
