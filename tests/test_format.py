"""A checkpoint's bytes: whatever was changed is found, and nothing in them is executed."""

import json
import math
import os
import shutil
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onward.checkpoint.content import Content
from onward.checkpoint.format import load_checkpoint, load_content, write_checkpoint
from onward.checkpoint.hashed import verify
from onward.checkpoint.manifest import (
    CHECKPOINT_FILE,
    FORMAT_VERSION,
    MANIFEST_FILE,
    METRICS_FILE,
    FileEntry,
    Manifest,
    parse_manifest,
)
from onward.checkpoint.plain import to_plain
from onward.errors import CheckpointDamaged, CheckpointError
from onward.metrics import History, Point
from onward.monitor import UNDECLARED, Monitor

CONTENT = {
    "epoch": 3,
    "step": 30,
    "weights": {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([math.nan, math.inf])},
    "best_corr": np.float64(0.9),
    "aucs": [np.float64(0.5), 0.25, None, True],
    "pair": (1, "two", b"three"),
}
FILES = [CHECKPOINT_FILE, METRICS_FILE]


def load(folder, path=CHECKPOINT_FILE):
    """Load a file that no manifest of ours describes."""
    files = (FileEntry(path, 0, "a" * 64),)
    rest = {"attempt": 1, "created": "2026-01-02T03:04:05+00:00", "metrics": {}}
    return load_checkpoint(folder, Manifest(epoch=1, step=1, kept=True, files=files, **rest), "x")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return (folder, manifest) of a small checkpoint; tests change only copies of it."""
    folder = tmp_path_factory.mktemp("written") / "epoch_3"
    metrics = {"val_loss": 0.5, "val_pearson": math.nan, "lr": math.inf}
    return folder, write_checkpoint(folder, CONTENT, attempt=2, kept=True, metrics=metrics)


@pytest.fixture
def copied(written, tmp_path):
    """Return (folder, manifest) of a copy that may be changed."""
    return shutil.copytree(written[0], tmp_path / "epoch_3"), written[1]


def test_written_verified_loaded_is_what_it_was(written):
    """Tensors come back to the bit, NumPy's numbers as Python's."""
    folder, manifest = written
    verify(folder, manifest, manifest.name)
    loaded = load_checkpoint(folder, manifest, manifest.name)
    assert torch.equal(loaded["weights"]["a"], CONTENT["weights"]["a"])
    expected = struct.pack("2f", math.nan, math.inf)
    assert loaded["weights"]["b"].numpy().tobytes() == expected
    assert loaded["aucs"] == [0.5, 0.25, None, True]
    assert type(loaded["best_corr"]) is float
    assert loaded["pair"] == (1, "two", b"three")
    assert (loaded["format_version"], loaded["epoch"], loaded["step"]) == (FORMAT_VERSION, 3, 30)


def test_the_manifest_tells_what_was_written(written):
    """Name, numbers, sizes and the score are in the manifest; what is not finite is None."""
    folder, manifest = written
    assert manifest.name == "epoch_3"
    assert (manifest.epoch, manifest.step, manifest.attempt, manifest.kept) == (3, 30, 2, True)
    assert manifest.metrics == {"val_loss": 0.5, "val_pearson": None, "lr": None}
    assert manifest.score is None
    assert [entry.path for entry in manifest.files] == FILES
    assert manifest.bytes == sum((folder / name).stat().st_size for name in FILES)
    assert parse_manifest((folder / MANIFEST_FILE).read_bytes(), "epoch_3") == manifest


def test_metrics_file_is_as_mlflow_writes_it(written):
    """MLflow's own tools find epoch and step beside the metrics."""
    numbers = json.loads((written[0] / METRICS_FILE).read_text())
    expected = {"val_loss": 0.5, "val_pearson": None, "lr": None}
    assert numbers == {**expected, "epoch": 3, "global_step": 30}


def test_nothing_else_is_left_in_the_folder(written):
    """No temporary file stays beside the three of a checkpoint."""
    assert {path.name for path in written[0].iterdir()} == {*FILES, MANIFEST_FILE}


def damage(path, position, how):
    """Flip one bit at, or cut the file at, that part of its length."""
    content = bytearray(path.read_bytes())
    at = min(int(position * len(content)), len(content) - 1)
    if how == "cut":
        del content[at:]
    else:
        content[at] ^= 1 << (at % 8)
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["flip", "cut"])
@pytest.mark.parametrize("name", FILES)
def test_one_changed_bit_or_a_lost_end_is_found(copied, name, how):
    """A flipped bit and a truncation anywhere in a file are damage (invariant 1)."""
    folder, manifest = copied
    original = (folder / name).read_bytes()
    for position in [i / 40 for i in range(40)] + [1]:
        damage(folder / name, position, how)
        with pytest.raises(CheckpointDamaged, match=f"x is damaged: {name} has "):
            verify(folder, manifest, "x")
        (folder / name).write_bytes(original)
    verify(folder, manifest, "x")


@pytest.mark.parametrize("name", FILES)
def test_missing_empty_and_longer_files_are_found(copied, name):
    """A file that is gone, empty or longer is damage, said with both sizes (invariant 1)."""
    folder, manifest = copied
    size = (folder / name).stat().st_size
    (folder / name).write_bytes((folder / name).read_bytes() + b"\0")
    with pytest.raises(CheckpointDamaged, match=f"has {size + 1:,} bytes.* says {size:,}"):
        verify(folder, manifest, "x")
    (folder / name).write_bytes(b"")
    with pytest.raises(CheckpointDamaged, match="has 0 bytes"):
        verify(folder, manifest, "x")
    (folder / name).unlink()
    with pytest.raises(CheckpointDamaged, match=f"{name} is missing"):
        verify(folder, manifest, "x")


def test_files_of_another_checkpoint_are_found(copied, tmp_path):
    """Two checkpoints whose files were swapped are both damaged, sizes being equal."""
    folder, manifest = copied
    other = write_checkpoint(
        tmp_path / "epoch_4", {**CONTENT, "epoch": 4}, attempt=2, kept=True, metrics={}
    )
    mine, theirs = folder / CHECKPOINT_FILE, tmp_path / "epoch_4" / CHECKPOINT_FILE
    assert mine.stat().st_size == theirs.stat().st_size
    mine.rename(tmp_path / "held")
    theirs.rename(mine)
    (tmp_path / "held").rename(theirs)
    for checked, its_manifest in ((folder, manifest), (tmp_path / "epoch_4", other)):
        with pytest.raises(CheckpointDamaged, match="has sha256"):
            verify(checked, its_manifest, "x")


class Hostile:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_hostile_checkpoint_executes_nothing(tmp_path):
    """Code in a checkpoint.pth is refused, not run (invariant 6)."""
    path = tmp_path / CHECKPOINT_FILE
    torch.save({"format_version": FORMAT_VERSION, "epoch": Hostile()}, path)
    with pytest.raises(CheckpointDamaged, match=r"it holds code \(.*mkdir\)"):
        load(tmp_path)
    assert not (tmp_path / "executed").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "executed").exists(), "the file would not have done any harm"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a checkpoint", b"\x80\x02}q\x00."])
def test_bytes_that_are_no_checkpoint_are_damage(tmp_path, content):
    """Whatever torch raises for them leaves as one line of ours."""
    (tmp_path / CHECKPOINT_FILE).write_bytes(content)
    with pytest.raises(CheckpointDamaged) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "saved", [[1], {"epoch": 1}, {"format_version": 99}, {"format_version": "1"}]
)
def test_another_kind_of_content_is_damage(tmp_path, saved):
    """A file that loads but is no checkpoint of this format is refused."""
    torch.save(saved, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(CheckpointDamaged, match="no checkpoint of this format"):
        load(tmp_path)


def test_numpy_becomes_python_and_torch():
    """NumPy's numbers and arrays are converted at any depth; tensors lose their graph."""
    weight = torch.nn.Parameter(torch.ones(2))
    plain = to_plain(
        {"a": [np.float32(0.5), (np.int64(3), np.bool_(True))], "b": np.arange(3), "c": weight}
    )
    assert plain["a"] == [0.5, (3, True)]
    assert [type(v) for v in (plain["a"][0], *plain["a"][1])] == [float, int, bool]
    assert torch.equal(plain["b"], torch.arange(3))
    assert type(plain["c"]) is torch.Tensor
    assert not plain["c"].requires_grad


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: 0, torch.float32, 1 + 2j])
def test_what_could_not_be_loaded_again_is_refused_with_its_place(value):
    """An object in the state is refused when it is saved, and its path is named (invariant 7)."""
    with pytest.raises(CheckpointError) as caught:
        to_plain({"optimizer": [0, {"hook": value}]})
    assert "checkpoint['optimizer'][1]['hook'] is a " in str(caught.value)
    assert type(value).__qualname__ in str(caught.value)


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(plain_values)
def test_plain_values_come_back_equal(tmp_path_factory, value):
    """Whatever is made of builtins is loaded again as it was saved."""
    folder = tmp_path_factory.mktemp("plain") / "epoch_1"
    content = {"epoch": 1, "step": 1, "value": value}
    manifest = write_checkpoint(folder, content, attempt=1, kept=False, metrics={})
    verify(folder, manifest, "x")
    assert load_checkpoint(folder, manifest, "x")["value"] == value


@pytest.mark.parametrize(
    "value",
    [np.array(["a"]), np.array([object()]), np.longdouble(1), np.datetime64("2026"), {object: 1}],
    ids=["text", "objects", "long double", "date", "key"],
)
def test_numpy_that_torch_cannot_hold_is_refused_with_its_place(value):
    """What would be saved and never loaded again is refused when it is saved (invariant 7)."""
    with pytest.raises(CheckpointError, match=r"checkpoint\['x'\]"):
        to_plain({"x": value})


@pytest.mark.parametrize("value", [np.arange(4)[::-1], np.arange(3, dtype=">i4"), np.ones(2) > 0])
def test_any_array_of_numbers_becomes_a_tensor(value):
    """Views, foreign byte orders and booleans are converted, not refused."""
    assert to_plain(value).tolist() == value.tolist()


def test_numpy_keys_become_python():
    """A key that is a NumPy number could not be loaded with weights_only=True."""
    [key] = to_plain({np.int64(3): 1})
    assert type(key) is int


def parted(folder, content, part_bytes):
    """Write a checkpoint in parts; return its manifest."""
    options = {"attempt": 1, "kept": True, "metrics": {}, "part_bytes": part_bytes}
    return write_checkpoint(folder, {**content, "epoch": 3, "step": 30}, **options)


@pytest.fixture
def in_parts(tmp_path):
    """Return (folder, manifest) of a checkpoint in parts of 700 bytes."""
    folder = tmp_path / "epoch_3"
    return folder, parted(folder, CONTENT, 700)


def own_parts(manifest):
    return [e for e in manifest.files if e.path.startswith(CHECKPOINT_FILE)]


def test_a_large_checkpoint_is_a_folder_of_parts(in_parts):
    """Each part but the last is full, and joined they are the file (design 5)."""
    folder, manifest = in_parts
    parts = own_parts(manifest)
    assert [e.path for e in parts] == [f"{CHECKPOINT_FILE}/part-{i:05d}" for i in range(len(parts))]
    assert len(parts) > 2
    assert {e.bytes for e in parts[:-1]} == {700}
    assert 0 < parts[-1].bytes <= 700
    verify(folder, manifest, "x")
    loaded = load_checkpoint(folder, manifest, "x")
    assert torch.equal(loaded["weights"]["a"], CONTENT["weights"]["a"])
    joined = b"".join((folder / e.path).read_bytes() for e in parts)
    (folder / "joined").write_bytes(joined)
    assert torch.load(folder / "joined", weights_only=True)["pair"] == (1, "two", b"three")


def test_one_part_is_a_plain_file(tmp_path):
    """A checkpoint of exactly the size of a part, or less, is one file."""
    size = own_parts(parted(tmp_path / "a", CONTENT, 10**9))[0].bytes
    for number, part_bytes in enumerate((size, size + 1)):
        manifest = parted(tmp_path / f"b{number}", CONTENT, part_bytes)
        assert [e.path for e in manifest.files] == FILES
    manifest = parted(tmp_path / "c", CONTENT, size - 1)
    assert [e.bytes for e in own_parts(manifest)] == [size - 1, 1]


def test_no_byte_is_written_twice(in_parts, monkeypatch, tmp_path):
    """What goes to the disk is the sum of the files' sizes, and nothing else is left there."""
    folder, manifest = in_parts
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    assert set(found) == {*(e.path for e in manifest.files), MANIFEST_FILE}
    assert (
        sum(p.stat().st_size for p in found.values()) - found[MANIFEST_FILE].stat().st_size
        == manifest.bytes
    )


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "swap"])
def test_every_part_is_verified(in_parts, damage):
    """A part that was changed, cut, lost or swapped for another is damage, and is named."""
    folder, manifest = in_parts
    parts = own_parts(manifest)
    for entry, other in zip(parts, parts[1:] + parts[:1], strict=True):
        path = folder / entry.path
        content = path.read_bytes()
        changed = {"flip": bytes([content[0] ^ 1]) + content[1:], "cut": content[:-1]}
        path.write_bytes(changed.get(damage, (folder / other.path).read_bytes()))
        if damage == "remove":
            path.unlink()
        with pytest.raises(CheckpointDamaged, match=entry.path):
            verify(folder, manifest, "x")
        path.write_bytes(content)
    verify(folder, manifest, "x")


@given(st.integers(0, 3), st.integers(-2, 2), st.integers(100, 900))
def test_any_size_around_the_border_of_a_part_comes_back(tmp_path_factory, parts, around, size):
    """Whatever the sizes, what is read from the parts is what was saved."""
    folder = tmp_path_factory.mktemp("parts") / "epoch_3"
    weight = torch.arange(max(0, parts * size + around), dtype=torch.uint8)
    manifest = parted(folder, {"weight": weight}, size)
    verify(folder, manifest, "x")
    assert torch.equal(load_checkpoint(folder, manifest, "x")["weight"], weight)


def archive(folder, changes, compression=zipfile.ZIP_STORED):
    """Write a checkpoint file again, with `changes` (member to bytes) and that compression."""
    content = {"format_version": FORMAT_VERSION, "epoch": 1, "weight": torch.zeros(100_000)}
    torch.save(content, folder / "plain")
    with (
        zipfile.ZipFile(folder / "plain") as old,
        zipfile.ZipFile(folder / CHECKPOINT_FILE, "w", compression) as new,
    ):
        for name in old.namelist():
            new.writestr(name, changes.get(name.split("/", 1)[1], old.read(name)))


def test_a_zip_bomb_is_refused(tmp_path):
    """A small file that would be large in memory is refused before it is read (invariant 6)."""
    archive(tmp_path, {})
    assert load(tmp_path)["epoch"] == 1
    archive(tmp_path, {}, zipfile.ZIP_DEFLATED)
    assert (tmp_path / CHECKPOINT_FILE).stat().st_size < 10_000
    with pytest.raises(CheckpointDamaged, match="would grow when read"):
        load(tmp_path)


def directory_of(content):
    """Return the offset of the first entry of a zip file's directory."""
    return int.from_bytes(content[content.rindex(b"PK\5\6") + 16 :][:4], "little")


def test_an_archive_whose_members_overlap_is_refused(tmp_path):
    """Members that share their bytes grow when they are read, though none is compressed."""
    archive(tmp_path, {"data/0": b"\0" * 400_000})
    path = tmp_path / CHECKPOINT_FILE
    content = path.read_bytes()
    start, end = directory_of(content), content.rindex(b"PK\5\6")
    directory = content[start:end]
    entries = directory.count(b"PK\1\2")
    number = 2 * entries
    tail = bytearray(content[end:])
    tail[8:12] = number.to_bytes(2, "little") * 2
    tail[12:16] = (2 * len(directory)).to_bytes(4, "little")
    path.write_bytes(content[:start] + 2 * directory + bytes(tail))
    with pytest.raises(CheckpointDamaged, match="would grow when read"):
        load(tmp_path)


@pytest.mark.parametrize("at", [6, 46])
def test_an_archive_that_python_cannot_read_is_refused(tmp_path, at):
    """What one reader refuses another may still unpack: it is not left to torch (invariant 6)."""
    archive(tmp_path, {}, zipfile.ZIP_DEFLATED)
    path = tmp_path / CHECKPOINT_FILE
    content = bytearray(path.read_bytes())
    start = directory_of(content)
    content[start + at] = 100 if at == 6 else 0xFF  # a version, or a name, beyond Python's
    content[start + 9] |= 8  # the name is UTF-8
    path.write_bytes(content)
    with pytest.raises(CheckpointDamaged, match=r"grow|archive"):
        load(tmp_path)


# --- `Content`: what is in the file, and of which version it is ---------------------------------

RMSE = Monitor("val_rmse", "min")


def content_of(**changes):
    """Return the content of a checkpoint as the table's run of any version has it."""
    values = {
        "epoch": 1,
        "step": 3,
        "parts": {"model": {"w": torch.ones(2)}, "optimizer": {}, "scheduler": {"best": None}},
        "rng": {"torch": torch.zeros(2, dtype=torch.uint8)},
        "history": History([Point("val_pearson", 1, 5, 0.5), Point("val_rmse", 1, 5, 2.0)]),
        "best_epoch": 1,
        "config": {"epochs": 2},
        "data": {"fingerprint": "d" * 64},
        "extras": {"best_corr": 0.5},
    }
    return Content(**{**values, **changes})


PARTS = content_of().parts
VERSIONS = {
    "as ever": ({}, 2),
    "inside an epoch": ({"epoch_step": 1, "epoch_sums": {"train_loss": torch.ones(())}}, 2),
    "no value to be the best": ({"extras": {"best_corr": None}, "best_epoch": None}, 2),
    "another monitor": ({"monitor": RMSE}, 3),
    "the other way": ({"monitor": Monitor("val_pearson", "min")}, 3),
    "no schedule": ({"parts": {k: PARTS[k] for k in ("model", "optimizer")}}, 3),
    "one part more": ({"parts": {**PARTS, "average": {"w": torch.ones(2)}}}, 3),
    "other parts": ({"parts": {"generator": {}, "critic": {}}}, 3),
    "nothing of the table": ({"extras": {}}, 3),
}


@pytest.mark.parametrize("case", VERSIONS)
def test_a_newer_version_is_written_only_where_it_is_needed(tmp_path, case):
    """An older program goes on with all that it could have made; the rest it refuses by number."""
    changes, version = VERSIONS[case]
    content = content_of(**changes)
    folder = tmp_path / content.name
    manifest = write_checkpoint(folder, content.to_dict(), attempt=1, kept=True, metrics={})
    document = json.loads((folder / MANIFEST_FILE).read_bytes())
    saved = torch.load(folder / CHECKPOINT_FILE, weights_only=True)
    versions = (content.format_version, manifest.format_version)
    assert versions == (document["format_version"], saved["format_version"]) == (version, version)
    told = None if content.monitor == UNDECLARED else str(content.monitor)
    assert document.get("monitor", told) == saved.get("monitor", told) == told
    assert ("monitor" in document, "monitor" in saved) == (told is not None, told is not None)


@pytest.mark.parametrize("case", VERSIONS)
def test_content_comes_back_from_its_file(tmp_path, case):
    """Whatever the parts are called, and by whatever monitor."""
    content = content_of(**VERSIONS[case][0])
    folder = tmp_path / content.name
    manifest = write_checkpoint(folder, content.to_dict(), attempt=1, kept=True, metrics={})
    read = load_content(folder, parse_manifest(manifest.to_json(), folder.name), folder.name)
    assert (read.monitor, read.monitor.limit) == (content.monitor, content.monitor.limit)
    assert set(read.parts) == set(content.parts)
    assert list(read.history) == list(content.history)
    assert read.metrics == content.metrics
    assert set(read.to_dict()) == set(content.to_dict())
    assert repr(read.to_dict()) == repr(content.to_dict())


def rewritten(folder, **changes):
    """Write a checkpoint whose file holds something else than its manifest was written of."""
    content = content_of().to_dict()
    manifest = write_checkpoint(folder, content, attempt=1, kept=True, metrics={})
    held = {k: v for k, v in {**content, **changes}.items() if v is not ...}
    torch.save(held, folder / CHECKPOINT_FILE)
    return manifest


NO_MONITORS = [5, True, "", "val_rmse", ":min", "val_rmse:up", " x:min", "x" * 251 + ":max", [], {}]


@pytest.mark.parametrize("value", [*NO_MONITORS, torch.ones(2)], ids=str)
def test_a_monitor_in_the_file_that_is_none_is_damage(tmp_path, value):
    """Which epoch is best is not guessed."""
    manifest = rewritten(tmp_path / "epoch_1", monitor=value)
    with pytest.raises(CheckpointDamaged, match="cannot be read"):
        load_content(tmp_path / "epoch_1", manifest, "epoch_1")


NEEDED = [
    "epoch",
    "step",
    "epoch_step",
    "epoch_sums",
    "epoch_seconds",
    "rng",
    "history",
    "config",
    "data",
]


@pytest.mark.parametrize("name", NEEDED)
def test_content_that_lacks_what_every_run_has_is_damage(tmp_path, name):
    """A file of which something is gone is told as damaged, with what is missing."""
    manifest = rewritten(tmp_path / "epoch_1", **{name: ...})
    with pytest.raises(CheckpointDamaged, match=name):
        load_content(tmp_path / "epoch_1", manifest, "epoch_1")


KINDS = [None, True, -1, 1.5, "1", [], {"a": [1]}, torch.ones(()), torch.ones(3), b"x", (1, 2)]


@pytest.mark.parametrize("value", KINDS, ids=str)
@pytest.mark.parametrize("name", sorted(content_of().to_dict()))
def test_content_of_any_kind_is_refused_or_read(tmp_path, name, value):
    """Whatever somebody put in place of a field: our own error, or content."""
    manifest = rewritten(tmp_path / "epoch_1", **{name: value})
    refused = []
    try:
        content = load_content(tmp_path / "epoch_1", manifest, "epoch_1")
    except CheckpointDamaged as error:
        refused.append(str(error))
    if refused:
        assert "\n" not in refused[0]
        return
    counts = (content.epoch, content.step, content.epoch_step)
    assert counts == (1, 3, 0)
    assert {type(count) for count in counts} == {int}
    assert content.monitor == UNDECLARED
    assert content.data_fingerprint == "d" * 64
    assert type(content.epoch_seconds) is float
