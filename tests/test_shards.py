"""Pieces of tensors: any cutting is read as any other, and nothing hostile is believed."""

import contextlib
import copy
import dataclasses
import hashlib
import io
import itertools
import json
import math
import pickle
import shutil
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onward.checkpoint.content import Content
from onward.checkpoint.format import cut_again, load_content, load_whole, write_checkpoint
from onward.checkpoint.hashed import verify
from onward.checkpoint.index import MAX_INDEX_BYTES, Origin, index_file, parse_index
from onward.checkpoint.manifest import FileEntry, Manifest, parse_manifest
from onward.checkpoint.pieces import MARKER, Marker, add_shard, write_shard
from onward.checkpoint.shards import Shards, with_ranks
from onward.errors import CheckpointDamaged, CheckpointError
from onward.metrics import History
from onward.system.boxes import Box, covers_once, cut, overlap, region, whole

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64]


@st.composite
def cuttings(draw, shape):
    """Return boxes that make up a tensor of that shape: cut again and again, anywhere."""
    boxes = [whole(shape)]
    for _number in range(draw(st.integers(0, 6))):
        box = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        wide = [d for d, n in enumerate(box.shape) if n > 1]
        if not wide:
            boxes.append(box)
            continue
        dim = draw(st.sampled_from(wide))
        at = draw(st.integers(1, box.shape[dim] - 1))
        for start, length in ((0, at), (at, box.shape[dim] - at)):
            offset, lengths = list(box.offset), list(box.shape)
            offset[dim] += start
            lengths[dim] = length
            boxes.append(Box(tuple(offset), tuple(lengths)))
    return boxes


shapes = st.lists(st.integers(1, 7), max_size=4).map(tuple)


def tensor_of(shape, dtype=torch.float32):
    """Return a tensor in which every element is another."""
    return torch.arange(math.prod(shape)).reshape(shape).to(dtype)


def pieces_of(key, tensor, boxes):
    """Return what a rank that holds those boxes of a tensor writes."""
    shape = tuple(tensor.shape)
    return [
        {
            "key": key,
            "shape": shape,
            "offset": box.offset,
            "tensor": region(tensor, whole(shape), box),
        }
        for box in boxes
    ]


def manifest_of(files, world, attempt=1, step=30):
    """Return a manifest that lists those files."""
    return Manifest(
        epoch=3, step=step, attempt=attempt, created="2026-01-02T03:04:05+00:00", kept=True,
        metrics={}, files=tuple(files), world=world, layout="fsdp", format_version=3,
    )  # fmt: skip


def saved(folder, per_rank, own=None, max_bytes=1 << 20):
    """Write what each rank holds; return the manifest."""
    folder.mkdir(exist_ok=True)
    indexes = [
        add_shard(folder, Origin(rank, len(per_rank), 1, 30), pieces, own, max_bytes)
        for rank, pieces in enumerate(per_rank)
    ]
    return manifest_of([e for index in indexes for e in index.entries], len(per_rank))


@given(st.data(), shapes, st.sampled_from(DTYPES), st.integers(1, 4))
def test_any_cutting_is_read_as_any_other(tmp_path_factory, data, shape, dtype, world):
    """Whatever ranks held when it was saved, a rank reads what it is to hold, to the bit."""
    tensor = tensor_of(shape, dtype)
    per_rank = [[] for _rank in range(world)]
    for piece in pieces_of("w", tensor, data.draw(cuttings(shape))):
        per_rank[data.draw(st.integers(0, world - 1))].append(piece)
    folder = tmp_path_factory.mktemp("any")
    shards = Shards(folder, saved(folder, per_rank), "x")
    marker = Marker("w", str(dtype).removeprefix("torch."), shape)
    for box in data.draw(cuttings(shape)):
        found = shards.read(marker, box)
        assert torch.equal(found, region(tensor, whole(shape), box))
        assert found.is_contiguous()


@given(st.data(), shapes)
def test_what_is_not_covered_once_is_found(data, shape):
    """A box left out, one twice, one that grew: the corners tell, as counting each element does."""
    boxes = data.draw(cuttings(shape))
    assert covers_once(shape, boxes)
    changed = list(boxes)
    at = data.draw(st.integers(0, len(boxes) - 1))
    how = data.draw(st.sampled_from(["gone", "twice", "other"]))
    if how == "gone":
        del changed[at]
    elif how == "twice":
        changed.append(boxes[at])
    else:
        offset = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
        lengths = tuple(
            data.draw(st.integers(1, n - o)) for n, o in zip(shape, offset, strict=True)
        )
        changed[at] = Box(offset, lengths)
    count = torch.zeros(shape, dtype=torch.int64)
    for box in changed:
        region(count, whole(shape), box).add_(1)
    assert covers_once(shape, changed) == bool((count == 1).all())


@given(shapes, st.integers(1, 60))
def test_a_box_is_cut_into_boxes_of_that_size(shape, most):
    """They make it up, and none is larger."""
    boxes = list(cut(whole(shape), most))
    assert covers_once(shape, boxes)
    assert max(box.num_elements for box in boxes) <= most


def test_boxes_without_a_cut_through_all_of_them():
    """A pinwheel is cut nowhere from side to side, and is whole all the same."""
    pinwheel = [
        ((0, 0), (1, 2)),
        ((0, 2), (2, 1)),
        ((2, 1), (1, 2)),
        ((1, 0), (2, 1)),
        ((1, 1), (1, 1)),
    ]
    boxes = [Box(*box) for box in pinwheel]
    assert covers_once((3, 3), boxes)
    assert not covers_once((3, 3), boxes[:-1])
    assert all(overlap(a, b) is None for a, b in itertools.combinations(boxes, 2))


def test_files_are_no_larger_than_asked(tmp_path):
    """A large tensor is cut, small ones share a file; of a view nothing else is saved."""
    large, padded = torch.rand(300, 1000), torch.rand(80)[:60].view(12, 5)
    pieces = [*pieces_of("large", large, [whole(large.shape)])]
    pieces += [p for i in range(50) for p in pieces_of(f"small {i}", padded, [whole((12, 5))])]
    manifest = saved(tmp_path / "x", [pieces], max_bytes=1 << 18)
    files = [e for e in manifest.files if e.path.endswith(".pth")]
    assert [e.path for e in files] == [f"shard-00000-{i:05d}.pth" for i in range(len(files))]
    assert max(e.bytes for e in files) <= 1 << 18
    assert sum(e.bytes for e in files) < large.nbytes + 50 * (240 + 512) + 8192 * len(files)
    shards = Shards(tmp_path / "x", manifest, "x")
    assert torch.equal(
        shards.read(Marker("large", "float32", (300, 1000)), whole((300, 1000))), large
    )


def test_only_files_that_overlap_are_opened(tmp_path):
    """A rank reads what it held from its own file."""
    tensor = tensor_of((10, 3))
    halves = list(cut(whole((10, 3)), 15))
    manifest = saved(tmp_path / "x", [pieces_of("w", tensor, [half]) for half in halves])
    shards = Shards(tmp_path / "x", manifest, "x")
    shards.read(Marker("w", "float32", (10, 3)), halves[1])
    assert shards.opened == ["shard-00001-00000.pth"]


def test_what_a_rank_has_for_itself_comes_back(tmp_path):
    """Tensors to the bit, numbers and text; each rank its own."""
    folder = tmp_path / "x"
    folder.mkdir()
    own = [
        {"rng": [3, [1, 2], None], "buffers": {"mean": torch.full((2,), float(r))}} for r in (0, 1)
    ]
    indexes = [add_shard(folder, Origin(r, 2, 1, 30), [], own[r]) for r in (0, 1)]
    shards = Shards(folder, manifest_of([e for i in indexes for e in i.entries], 2), "x")
    for rank in (0, 1):
        found = shards.own(rank)
        assert found["rng"] == [3, [1, 2], None]
        assert torch.equal(found["buffers"]["mean"], own[rank]["buffers"]["mean"])


def test_a_shard_is_there_when_all_of_it_is_on_disk(tmp_path, monkeypatch):
    """A write that fails leaves no folder, and the error is the disk's."""
    index = write_shard(
        tmp_path / "a", Origin(0, 1, 1, 30), pieces_of("w", torch.ones(3), [whole((3,))])
    )
    manifest = manifest_of(index.entries, 1)
    verify(tmp_path / "a", manifest, "x")
    assert Shards(tmp_path / "a", manifest, "x").keys == {"w"}
    with pytest.raises(CheckpointError, match=r"quint4x2|float8|not saved in pieces"):
        write_shard(
            tmp_path / "b", Origin(0, 1, 1, 30),
            pieces_of("w", torch.ones(3).to(torch.float8_e4m3fn), [whole((3,))]),
        )  # fmt: skip
    assert not list(tmp_path.glob("b*"))


# --- A whole checkpoint ---------------------------------------------------------------------------

STATE = {"w": tensor_of((5, 3)), "moment": tensor_of((5, 3), torch.bfloat16)}


def content_of(tree):
    """Return the content of a checkpoint whose model's state is `tree`."""
    return Content(
        epoch=3, step=30, parts={"model": tree}, rng={}, history=History(),
        config={}, data={"fingerprint": "f"}, world=2, layout="fsdp",
    )  # fmt: skip


def checkpoint(folder, tree=None, max_bytes=1 << 20):
    """Write one of two ranks, and return its manifest as rank 0 commits it."""
    markers = {k: Marker(k, str(t.dtype)[6:], (5, 3)).to_dict() for k, t in STATE.items()}
    tree = {**markers, "tied": markers["w"], "plain": torch.ones(2)} if tree is None else tree
    halves = list(cut(whole((5, 3)), 9))
    pieces = [[p for k, t in STATE.items() for p in pieces_of(k, t, [half])] for half in halves]
    manifest = write_checkpoint(
        folder, content_of(tree).to_dict(), attempt=1, kept=True, metrics={},
        shard=lambda here: add_shard(here, Origin(0, 2, 1, 30), pieces[0], None, max_bytes),
    )  # fmt: skip
    other = add_shard(folder, Origin(1, 2, 1, 30), pieces[1], {"seed": 1}, max_bytes)
    return dataclasses.replace(manifest, files=(*manifest.files, *other.entries))


def test_a_checkpoint_of_two_ranks_is_read_by_one_process(tmp_path):
    """Whole tensors, as if one process had saved them; what was tied is tied."""
    manifest = checkpoint(tmp_path / "epoch_3")
    verify(tmp_path / "epoch_3", manifest, "x")
    assert parse_manifest(manifest.to_json(), "epoch_3") == manifest
    content = load_content(tmp_path / "epoch_3", manifest, "x")
    model = content.parts["model"]
    assert all(torch.equal(model[key], tensor) for key, tensor in STATE.items())
    assert model["tied"] is model["w"]
    assert (content.world, content.layout) == (1, "")
    assert torch.equal(
        load_whole(tmp_path / "epoch_3", manifest, "x")["model_state_dict"]["w"], STATE["w"]
    )
    kept = load_content(tmp_path / "epoch_3", manifest, "x", is_whole=False)
    assert kept.parts["model"]["w"] == {MARKER: ["w", "float32", [5, 3]]}


def test_a_checkpoint_is_cut_again_for_a_gateway(tmp_path):
    """Smaller files of the same pieces, also of one rank's alone."""
    tall = torch.rand(300, 1000)
    folder = tmp_path / "epoch_3"
    manifest = checkpoint(folder)
    (folder / "shard-00001-00000.pth").unlink()
    more = add_shard(
        folder, Origin(1, 2, 1, 30),
        [p for k, t in STATE.items() for p in pieces_of(k, t, [list(cut(whole((5, 3)), 9))[1]])]
        + pieces_of("tall", tall, [whole(tall.shape)]),
    )  # fmt: skip
    alone = [e for e in manifest.files if not e.path.startswith("shard-00001")]
    manifest = dataclasses.replace(manifest, files=(*alone, *more.entries))
    smaller = cut_again(folder, manifest, tmp_path / "smaller", 1 << 18)
    assert max(e.bytes for e in smaller.files) <= 1 << 18
    assert len(smaller.files) > len(manifest.files)
    verify(tmp_path / "smaller", smaller, "x")
    model = load_content(tmp_path / "smaller", smaller, "x").parts["model"]
    assert all(torch.equal(model[key], tensor) for key, tensor in STATE.items())
    only = dataclasses.replace(manifest, files=tuple(alone))
    assert {e.path for e in cut_again(folder, only, tmp_path / "own", 1 << 18).files} == {
        e.path for e in alone
    }
    only = dataclasses.replace(manifest, files=more.entries)  # as rank 1 brings them up
    again = cut_again(folder, only, tmp_path / "other", 1 << 18)
    assert {e.path[:11] for e in again.files} == {"shard-00001"}
    assert again.files[-1].path == "shard-00001.json"


@pytest.mark.parametrize(
    "field",
    [
        *({"world": value} for value in (0, -1, True, 2.0, "2", None, 10**6, [2])),
        *({"layout": value} for value in ("../x", "Fsdp", "a" * 33, 3, None, ["fsdp"], "a\n")),
    ],
    ids=str,
)
def test_a_manifest_of_no_ranks_that_can_be_is_refused(field):
    """How many there were, and how the model was spread, are checked like any field."""
    document = {**manifest_of([FileEntry("checkpoint.pth", 5, "a" * 64)], 2).to_dict(), **field}
    with pytest.raises(CheckpointDamaged, match=next(iter(field))):
        parse_manifest(json.dumps(document).encode(), "epoch_3")


def test_rank_0_commits_what_the_indexes_of_all_ranks_list(tmp_path):
    """Those of this attempt and step, from every rank; nothing else is committed."""
    folder = tmp_path / "epoch_3"
    manifest = checkpoint(folder)
    texts = [(folder / index_file(rank)).read_bytes() for rank in (0, 1)]
    own = [e for e in manifest.files if not e.path.startswith("shard-00001")]
    local = dataclasses.replace(manifest, files=tuple(own))
    assert parse_manifest(local.to_json(), "epoch_3") == local, "it waits in the spool"
    committed = with_ranks(local, texts)
    assert set(committed.files) == set(manifest.files)
    Shards(folder, committed, "x").require(load_content(folder, committed, "x", False).parts)
    other = [b'"step":%d' % step for step in (30, 29)]
    with pytest.raises(CheckpointDamaged, match=r"shard-00001\.json is of another attempt, step"):
        with_ranks(local, [texts[0], texts[1].replace(*other)])
    with pytest.raises(CheckpointDamaged, match=r"shard-00001\.json is missing"):
        with_ranks(local, texts[:1])
    with pytest.raises(CheckpointDamaged, match=r"shard-00001\.json has rank 0"):
        with_ranks(local, [texts[0], texts[0]])


def test_a_marker_without_its_pieces_is_damage(tmp_path):
    """It is never taken for a state, whether there are other pieces or none."""
    lost = {"w": Marker("lost", "float32", (5, 3)).to_dict()}
    for tree in (lost, {"w": {MARKER: 3}}, {"w": {MARKER: ["w", "float32", [5, 4]]}}):
        folder = tmp_path / "epoch_3"
        manifest = checkpoint(folder, tree)
        with pytest.raises(CheckpointDamaged):
            load_content(folder, manifest, "x")
        bare = [e for e in manifest.files if not e.path.startswith("shard")]
        with pytest.raises(CheckpointDamaged):
            load_content(folder, dataclasses.replace(manifest, files=tuple(bare)), "x")
        shutil.rmtree(folder)


# --- What others wrote ----------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    """Return the folder of two ranks' shards, and their manifest."""
    halves = list(cut(whole((10, 3)), 15))
    tensor = tensor_of((10, 3))
    return tmp_path / "x", saved(
        tmp_path / "x", [pieces_of("w", tensor, [half]) for half in halves]
    )


def listed_anew(folder, manifest):
    """Return the manifest with the size and hash that each file has now."""
    entries = []
    for entry in manifest.files:
        content = (folder / entry.path).read_bytes()
        entries.append(FileEntry(entry.path, len(content), hashlib.sha256(content).hexdigest()))
    return dataclasses.replace(manifest, files=tuple(entries))


def changed(folder, manifest, change, rank=1):
    """Write a rank's index as `change` makes it, and return a manifest that lists it."""
    path = folder / index_file(rank)
    document = json.loads(path.read_bytes())
    document = change(document) or document
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return listed_anew(folder, manifest)


def setting(*path, to):
    """Return a change of one field."""

    def change(document):
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = to

    return change


PIECE = ("pieces", 0)
LARGE = {"global_shape": [10**9, 3], "shape": [10**8, 3]}
HOSTILE = {
    "no object": lambda d: "[]",
    "not JSON": lambda d: "{",
    "NaN": lambda d: json.dumps(d).replace("30", "NaN", 1),
    "infinite": lambda d: json.dumps(d).replace("30", "1e999", 1),
    "deep": lambda d: json.dumps(d)[:-1] + ', "more": ' + "[" * 100 + "]" * 100 + "}",
    "a float": setting(*PIECE, "offset", to=[5.0, 0]),
    "a bool": setting(*PIECE, "offset", to=[True, 0]),
    "negative": setting(*PIECE, "offset", to=[-1, 0]),
    "outside": setting(*PIECE, "offset", to=[6, 0]),
    "huge": setting(*PIECE, "shape", to=[10**30, 3]),
    "an empty piece": setting(*PIECE, "shape", to=[0, 3]),
    "another rank of tensor": setting(*PIECE, "offset", to=[5]),
    "65 dimensions": setting(*PIECE, "global_shape", to=[1] * 65),
    "a shape that is none": setting(*PIECE, "shape", to="53"),
    "larger than its file": lambda d: d["pieces"][0].update(LARGE),
    "another global shape": setting(*PIECE, "global_shape", to=[11, 3]),
    "another dtype than rank 0": setting(*PIECE, "dtype", to="int32"),
    "no dtype": setting(*PIECE, "dtype", to="__class__"),
    "dtype of a list": setting(*PIECE, "dtype", to=["float32"]),
    "overlapping": setting(*PIECE, "offset", to=[4, 0]),
    "missing": setting("pieces", to=[]),
    "twice": lambda d: d["pieces"].append(copy.deepcopy(d["pieces"][0])),
    "twice by another name": lambda d: d["pieces"].append({**d["pieces"][0], "name": "1"}),
    "no such file": setting(*PIECE, "file", to=1),
    "a file by its path": setting(*PIECE, "file", to="../shard-00000-00000.pth"),
    "no such name": setting(*PIECE, "name", to="1"),
    "no name": setting(*PIECE, "name", to=None),
    "a long key": setting(*PIECE, "key", to="w" * 1001),
    "a key that is no text": setting(*PIECE, "key", to=7),
    "a path that leads out": setting("files", 0, "path", to="../x/shard-00001-00000.pth"),
    "an absolute path": setting("files", 0, "path", to="/etc/passwd"),
    "another rank's file": setting("files", 0, "path", to="shard-00000-00000.pth"),
    "another hash": setting("files", 0, "sha256", to="a" * 64),
    "another size": setting("files", 0, "bytes", to=5000),
    "no files": setting("files", to=[]),
    "files that are none": setting("files", to=3),
    "pieces that are none": setting("pieces", to={"a": 1}),
    "another rank": setting("rank", to=0),
    "a rank of True": setting("rank", to=True),
    "another world": setting("world", to=3),
    "a world without it": setting("world", to=1),
    "another attempt": setting("attempt", to=2),
    "another step": setting("step", to=31),
    "a newer version": setting("format_version", to=4),
    "no version": setting("format_version", to=None),
    "too long": lambda d: json.dumps({**d, "own": "x" * MAX_INDEX_BYTES}),
    "a billion pieces": lambda d: '{"pieces": [' + "{}," * (MAX_INDEX_BYTES // 3) + "{}]}",
    "own without its tensor": setting("own", to={MARKER: ["rank 1", "float32", [3]]}),
    "own that is no marker": setting("own", to={MARKER: 3}),
}  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_index_is_refused(two, change):
    """Whatever is wrong in it, it is our own error, in one line, before a tensor is made."""
    folder, manifest = two
    manifest = changed(folder, manifest, change)
    with pytest.raises(CheckpointError) as caught:
        Shards(folder, manifest, "x").check({})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("damage", ["byte", "cut", "gone", "pointer"])
@pytest.mark.parametrize("path", ["shard-00001-00000.pth", "shard-00001.json"])
def test_a_changed_file_is_found_before_it_is_read(two, path, damage):
    """Its size and hash are compared first, those of a tensor file when it is opened."""
    folder, manifest = two
    content = bytearray((folder / path).read_bytes())
    if damage == "byte":
        content[len(content) // 2] ^= 1
    new = {"cut": content[:-1], "pointer": b"version https://git-lfs"}.get(damage, content)
    (folder / path).write_bytes(bytes(new))
    if damage == "gone":
        (folder / path).unlink()
    with pytest.raises(CheckpointDamaged, match=path):
        Shards(folder, manifest, "x").read(Marker("w", "float32", (10, 3)), whole((10, 3)))


def test_indexes_and_files_are_those_that_were_committed(two):
    """A rank's index that is missing, and a file that is in no index, are damage."""
    folder, manifest = two
    files = [e for e in manifest.files if e.path != index_file(1)]
    with pytest.raises(CheckpointDamaged, match=r"shard-00001\.json is missing"):
        Shards(folder, dataclasses.replace(manifest, files=tuple(files)), "x")
    extra = FileEntry("shard-00001-00001.pth", 5, "a" * 64)
    with pytest.raises(CheckpointDamaged, match=r"shard-00001-00001\.pth is in no index"):
        Shards(folder, dataclasses.replace(manifest, files=(*manifest.files, extra)), "x")
    gone = [e for e in manifest.files if e.path != "shard-00001-00000.pth"]
    with pytest.raises(CheckpointDamaged, match=r"shard-00001-00000\.pth is not the file"):
        Shards(folder, dataclasses.replace(manifest, files=tuple(gone)), "x")


class Evil:
    """Its pickle makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def hostile_archive(path):
    """Return an archive like torch's, whose pickle calls something."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("x/data.pkl", pickle.dumps({"0": Evil(path)}, protocol=2))
        file.writestr("x/byteorder", b"little")
        file.writestr("x/version", b"3\n")
    return buffer.getvalue()


def torch_bytes(content):
    """Return what torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


HELD = tensor_of((10, 3))[5:].clone()
FILES = {
    "code": hostile_archive,
    "a bare pickle": lambda path: pickle.dumps({"0": Evil(path)}, protocol=2),
    "other names": lambda path: torch_bytes({"1": HELD}),
    "more": lambda path: torch_bytes({"0": HELD, "1": HELD}),
    "no dict": lambda path: torch_bytes([HELD]),
    "no tensor": lambda path: torch_bytes({"0": [1.0] * 15}),
    "another dtype": lambda path: torch_bytes({"0": HELD.double()}),
    "another shape": lambda path: torch_bytes({"0": HELD.T.contiguous()}),
    "expanded": lambda path: torch_bytes({"0": torch.zeros(1).expand(5, 3)}),
    "sparse": lambda path: torch_bytes({"0": HELD.to_sparse()}),
    "empty": lambda path: b"",
}


@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
def test_a_hostile_shard_executes_nothing_and_is_refused(two, tmp_path, make):
    """With the right hash too it must be the tensors that the index says (invariant 6)."""
    folder, manifest = two
    path = folder / "shard-00001-00000.pth"
    path.write_bytes(make(str(tmp_path / "executed")))
    entry = next(e for e in listed_anew(folder, manifest).files if e.path == path.name)

    def list_it(document):
        document["files"][0].update(bytes=entry.bytes, sha256=entry.sha256)

    manifest = changed(folder, manifest, list_it)
    with pytest.raises(CheckpointDamaged):
        Shards(folder, manifest, "x").read(Marker("w", "float32", (10, 3)), whole((10, 3)))
    assert not (tmp_path / "executed").exists()


texts = st.text(max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4)
)
VALID = {
    "format_version": 3, "attempt": 1, "step": 30, "rank": 1, "world": 2,
    "files": [{"path": "shard-00001-00000.pth", "bytes": 500, "sha256": "a" * 64}],
    "pieces": [{"key": "w", "dtype": "float32", "global_shape": [10, 3], "offset": [5, 0],
                "shape": [5, 3], "file": 0, "name": "0"}],
    "own": None,
}  # fmt: skip
PATHS = [(key,) for key in VALID] + [
    (name, 0, key) for name in ("files", "pieces") for key in VALID[name][0]
]


@given(st.sampled_from(PATHS), documents)
def test_any_value_of_a_field_is_refused_or_read(path, value):
    """A field of any type and size gives an index or our own error, never another."""
    document = copy.deepcopy(VALID)
    setting(*path, to=value)(document)
    with contextlib.suppress(CheckpointError):
        index = parse_index(json.dumps(document).encode(), 1, "x")
        assert json.loads(index.text) == document


@given(st.binary(max_size=40) | documents.map(lambda d: json.dumps(d).encode()))
def test_any_bytes_are_refused_with_our_own_error(text):
    """Bytes that are no index are damage, whatever JSON they may be."""
    with pytest.raises(CheckpointDamaged):
        parse_index(text, 1, "x")
