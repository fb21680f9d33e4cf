"""A checkpoint's bytes: whatever was changed is found, and nothing in them is executed."""

import json
import math
import os
import shutil
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.checkpoint.format import (
    CHECKPOINT_FILE,
    FORMAT_VERSION,
    MANIFEST_FILE,
    METRICS_FILE,
    load_checkpoint,
    parse_manifest,
    to_plain,
    verify,
    write_checkpoint,
)
from train.errors import CheckpointDamaged, CheckpointError

CONTENT = {
    "epoch": 3,
    "step": 30,
    "weights": {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([math.nan, math.inf])},
    "best_corr": np.float64(0.9),
    "aucs": [np.float64(0.5), 0.25, None, True],
    "pair": (1, "two", b"three"),
}
FILES = [CHECKPOINT_FILE, METRICS_FILE]
VALID = {
    "format_version": FORMAT_VERSION,
    "epoch": 3,
    "step": 30,
    "attempt": 1,
    "created": "2026-01-02T03:04:05+00:00",
    "kept": True,
    "metrics": {"val_loss": 0.5, "val_pearson": None},
    "files": [{"path": CHECKPOINT_FILE, "bytes": 5, "sha256": "a" * 64}],
}

texts = st.text(max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4)
)


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
    loaded = load_checkpoint(folder / CHECKPOINT_FILE, manifest.name)
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


def test_a_truncated_manifest_is_no_manifest(written):
    """A manifest that was cut anywhere does not commit anything (invariant 1)."""
    text = (written[0] / MANIFEST_FILE).read_bytes()
    for end in range(0, len(text), 7):
        with pytest.raises(CheckpointDamaged, match="is not JSON"):
            parse_manifest(text[:end], "epoch_3")


def parses_or_is_refused(text):
    """Return the manifest, or None if one of our own errors refused it, in one line."""
    try:
        return parse_manifest(text, "epoch_3")
    except CheckpointError as error:
        message = str(error)
    assert "\n" not in message
    return None


def test_any_changed_bit_of_a_manifest_is_refused_or_read(written):
    """A flipped bit in a manifest never ends in another error than ours."""
    text = (written[0] / MANIFEST_FILE).read_bytes()
    for at in range(0, len(text), 3):
        changed = bytearray(text)
        changed[at] ^= 1 << (at % 8)
        parses_or_is_refused(bytes(changed))


@given(st.binary(max_size=40) | documents.map(lambda d: json.dumps(d).encode()))
def test_any_bytes_are_refused_with_our_own_error(text):
    """Bytes that are no manifest are damage, whatever JSON they may be (invariant 6)."""
    assert parses_or_is_refused(text) is None


@given(st.sampled_from(sorted(VALID)), documents)
def test_any_value_of_a_field_is_refused_or_read(field, value):
    """A field of any type and size gives a manifest or our own error, never another."""
    manifest = parses_or_is_refused(json.dumps({**VALID, field: value}).encode())
    if manifest is not None:
        assert {**VALID, field: value} == manifest.to_dict()


@given(st.sampled_from(["path", "bytes", "sha256"]), documents)
def test_any_value_in_a_file_entry_is_refused_or_read(field, value):
    """A file entry of any type and size gives a manifest or our own error, never another."""
    entry = {**VALID["files"][0], field: value}
    others = VALID["files"] if field == "path" else []
    parses_or_is_refused(json.dumps({**VALID, "files": [entry, *others]}).encode())


def test_the_valid_manifest_is_valid():
    """The document that the tests below change is read as it is."""
    assert parse_manifest(json.dumps(VALID).encode(), "epoch_3").to_dict() == VALID


@pytest.mark.parametrize("field", sorted(VALID))
def test_a_missing_field_is_damage(field):
    """No field of a manifest has a default."""
    document = {k: v for k, v in VALID.items() if k != field}
    with pytest.raises(CheckpointDamaged):
        parse_manifest(json.dumps(document).encode(), "epoch_3")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../other/checkpoint.pth",
        "..",
        ".",
        ".hidden",
        "-rf",
        "a/b",
        "a\\b",
        "C:x",
        "a\n",
        "a\0b",
        "",
        "a" * 101,
        "ünsafe",
        "%2e%2e",
        MANIFEST_FILE,
    ],
)
def test_no_path_leaves_the_folder(path):
    """A file entry names a plain file directly in the checkpoint's folder (invariant 6)."""
    files = [*VALID["files"], {**VALID["files"][0], "path": path}]
    with pytest.raises(CheckpointDamaged, match="bad file entries"):
        parse_manifest(json.dumps({**VALID, "files": files}).encode(), "epoch_3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 4}, "epoch 4, which is not this folder's"),
        ({"epoch": True}, "epoch True"),
        ({"epoch": 3.0}, "epoch 3.0"),
        ({"epoch": -3}, "epoch -3"),
        ({"step": "30"}, "step '30'"),
        ({"step": 2**63}, f"step {2**63}"),
        ({"attempt": None}, "attempt None"),
        ({"kept": 1}, "kept 1"),
        ({"created": 5}, "creat"),
        ({"format_version": True}, "format_version True"),
        ({"format_version": "1"}, "format_version '1'"),
        ({"metrics": [1]}, "bad metrics"),
        ({"metrics": {"val_loss": True}}, "bad metrics"),
        ({"metrics": {"val_loss": "0.5"}}, "bad metrics"),
        ({"files": []}, "files"),
        ({"files": {}}, "bad file entries"),
        ({"files": VALID["files"] * 2}, "files"),
        ({"files": [{**VALID["files"][0], "path": "other.pth"}]}, "files"),
        ({"files": [{**VALID["files"][0], "bytes": True}]}, "bad file entries"),
        ({"files": [{**VALID["files"][0], "sha256": "A" * 64}]}, "bad file entries"),
        ({"files": ["checkpoint.pth"]}, "bad file entries"),
    ],
)
def test_a_wrong_field_is_damage_and_is_named(changes, message):
    """What is wrong with a manifest is said with the value that was found."""
    with pytest.raises(CheckpointDamaged) as caught:
        parse_manifest(json.dumps({**VALID, **changes}).encode(), "epoch_3")
    assert message in str(caught.value)


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_metrics_that_are_not_finite_are_damage(literal):
    """Python's JSON takes NaN and Infinity; a manifest with them was not written by us."""
    text = json.dumps({**VALID, "metrics": {"val_loss": 0}}).replace('"val_loss": 0', "%s")
    with pytest.raises(CheckpointDamaged, match="bad metrics"):
        parse_manifest((text % f'"val_loss": {literal}').encode(), "epoch_3")


def test_a_newer_format_is_told_apart_from_damage():
    """A checkpoint of a newer version is no damage: the message asks for that version."""
    with pytest.raises(CheckpointError, match=r"format version 2.* reads 1") as caught:
        parse_manifest(json.dumps({**VALID, "format_version": 2}).encode(), "epoch_3")
    assert not isinstance(caught.value, CheckpointDamaged)


def test_deeply_nested_json_is_damage():
    """JSON that exhausts the parser's stack is refused like any other."""
    with pytest.raises(CheckpointDamaged, match="is not JSON"):
        parse_manifest(b"[" * 100_000, "epoch_3")


class Hostile:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_hostile_checkpoint_executes_nothing(tmp_path):
    """Code in a checkpoint.pth is refused, not run (invariant 6)."""
    path = tmp_path / CHECKPOINT_FILE
    torch.save({"format_version": FORMAT_VERSION, "epoch": Hostile()}, path)
    with pytest.raises(CheckpointDamaged, match="cannot be read"):
        load_checkpoint(path, "x")
    assert not (tmp_path / "executed").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "executed").exists(), "the file would not have done any harm"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a checkpoint", b"\x80\x02}q\x00."])
def test_bytes_that_are_no_checkpoint_are_damage(tmp_path, content):
    """Whatever torch raises for them leaves as one line of ours."""
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointDamaged) as caught:
        load_checkpoint(tmp_path / "x", "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("saved", [[1], {"epoch": 1}, {"format_version": 2}])
def test_another_kind_of_content_is_damage(tmp_path, saved):
    """A file that loads but is no checkpoint of this format is refused."""
    torch.save(saved, tmp_path / "x")
    with pytest.raises(CheckpointDamaged, match="no checkpoint of this format"):
        load_checkpoint(tmp_path / "x", "x")


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
    folder = tmp_path_factory.mktemp("plain")
    content = {"epoch": 1, "step": 1, "value": value}
    manifest = write_checkpoint(folder, content, attempt=1, kept=False, metrics={})
    verify(folder, manifest, "x")
    assert load_checkpoint(folder / CHECKPOINT_FILE, "x")["value"] == value


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_an_integer_too_large_for_a_metric_is_damage(value):
    """A whole number beyond a double is refused like every other value that is not finite."""
    text = json.dumps({**VALID, "metrics": {"val_loss": value}}).encode()
    with pytest.raises(CheckpointDamaged, match="bad metrics"):
        parse_manifest(text, "epoch_3")


@pytest.mark.parametrize("created", ["yesterday", "", "2026-01-02T03:04:05", None])
def test_a_time_of_creation_that_is_none_is_damage(created):
    """Whoever lists checkpoints can rely on a time with its zone."""
    with pytest.raises(CheckpointDamaged, match="created"):
        parse_manifest(json.dumps({**VALID, "created": created}).encode(), "epoch_3")


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
