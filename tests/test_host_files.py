"""What a machine downloads of a checkpoint that several ranks saved: each file once, verified."""

import dataclasses
import threading

import pytest
import torch

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
