"""The manifest: whatever a store may hold under its name is read rightly or refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.checkpoint.manifest import (
    CHECKPOINT_FILE,
    FORMAT_VERSION,
    MANIFEST_FILE,
    NAME,
    READABLE_VERSIONS,
    FileEntry,
    Manifest,
    parse_manifest,
)
from onward.errors import CheckpointDamaged, CheckpointError
from onward.monitor import UNDECLARED, Monitor

VALID = {
    "format_version": FORMAT_VERSION,
    "epoch": 3,
    "step": 30,
    "epoch_step": 0,
    "attempt": 1,
    "created": "2026-01-02T03:04:05+00:00",
    "kept": True,
    "metrics": {"val_loss": 0.5, "val_pearson": None},
    "files": [{"path": CHECKPOINT_FILE, "bytes": 5, "sha256": "a" * 64}],
}
WRITTEN = json.dumps(VALID, indent=1).encode()
INSIDE = {**VALID, "step": 35, "epoch_step": 5, "kept": False, "metrics": {}}  # inside epoch 4
RMSE = Monitor("val_rmse", "min")
CHOSEN = {  # of a run that chose its monitor
    **VALID, "format_version": 3, "metrics": {"val_rmse": 0.5}, "monitor": "val_rmse:min",
}  # fmt: skip
FIRST = {k: v for k, v in VALID.items() if k != "epoch_step"} | {"format_version": 1}

texts = st.text(max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4)
)


def test_a_truncated_manifest_is_no_manifest():
    """A manifest that was cut anywhere does not commit anything (invariant 1)."""
    for end in range(0, len(WRITTEN)):
        with pytest.raises(CheckpointDamaged, match="is not JSON"):
            parse_manifest(WRITTEN[:end], "epoch_3")


def parses_or_is_refused(text):
    """Return the manifest, or None if one of our own errors refused it, in one line."""
    try:
        return parse_manifest(text, "epoch_3")
    except CheckpointError as error:
        message = str(error)
    assert "\n" not in message
    return None


def test_any_changed_bit_of_a_manifest_is_refused_or_read():
    """A flipped bit in a manifest never ends in another error than ours."""
    for at in range(len(WRITTEN)):
        changed = bytearray(WRITTEN)
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


@given(documents | st.builds("{}:{}".format, texts, st.sampled_from(["max", "min", "MAX"])))
def test_any_value_of_the_monitor_is_refused_or_read(value):
    """It is that metric and direction, or the manifest is damaged."""
    manifest = parses_or_is_refused(json.dumps({**CHOSEN, "monitor": value}).encode())
    if manifest is not None:
        read = None if manifest.monitor == UNDECLARED else str(manifest.monitor)
        assert read == manifest.to_dict().get("monitor")
        assert (read or str(UNDECLARED)) == (value or str(UNDECLARED))


@given(st.sampled_from(["path", "bytes", "sha256"]), documents)
def test_any_value_in_a_file_entry_is_refused_or_read(field, value):
    """A file entry of any type and size gives a manifest or our own error, never another."""
    entry = {**VALID["files"][0], field: value}
    others = VALID["files"] if field == "path" else []
    parses_or_is_refused(json.dumps({**VALID, "files": [entry, *others]}).encode())


@pytest.mark.parametrize(
    ("document", "monitor", "score"), [(VALID, UNDECLARED, None), (CHOSEN, RMSE, 0.5)]
)
def test_the_valid_manifest_is_valid(document, monitor, score):
    """The document that the tests below change is read as it is."""
    read = parse_manifest(json.dumps(document).encode(), "epoch_3")
    assert read.to_dict() == document
    assert (read.monitor, read.monitor.limit, read.score) == (monitor, monitor.limit, score)


def test_a_monitor_that_is_said_though_it_need_not_be_is_the_same():
    """Two manifests of one meaning are one, with one digest."""
    said = parse_manifest(json.dumps({**VALID, "monitor": "val_pearson:max"}).encode(), "epoch_3")
    assert said.to_dict() == VALID
    assert said.monitor.limit == UNDECLARED.limit
    assert said.digest == parse_manifest(WRITTEN, "epoch_3").digest


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
        ({"epoch": 4}, "epoch_4, which is not this folder's name"),
        ({"epoch_step": 5}, "global_step_30, which is not this folder's name"),
        ({"epoch": True}, "epoch True"),
        ({"epoch": 3.0}, "epoch 3.0"),
        ({"epoch": -3}, "epoch -3"),
        ({"step": "30"}, "step '30'"),
        ({"step": 2**63}, f"step {2**63}"),
        ({"epoch_step": "5"}, "epoch_step '5'"),
        ({"epoch_step": False}, "epoch_step False"),
        ({"epoch_step": 0.0}, "epoch_step 0.0"),
        ({"epoch_step": -1}, "epoch_step -1"),
        ({"epoch_step": None}, "epoch_step None"),
        ({"attempt": None}, "attempt None"),
        ({"kept": 1}, "kept 1"),
        ({"created": 5}, "creat"),
        ({"format_version": True}, "format_version True"),
        ({"format_version": "1"}, "format_version '1'"),
        ({"metrics": [1]}, "bad metrics"),
        ({"metrics": {"val_loss": True}}, "bad metrics"),
        ({"metrics": {"val_loss": "0.5"}}, "bad metrics"),
        *(
            ({"monitor": value}, "manifest.json has monitor ")
            for value in (
                5,
                True,
                [],
                {},
                ["val_rmse:min"],
                "",
                ":",
                "val_rmse",
                ":min",
                "val_rmse:up",
                "val_rmse:",
                "val_rmse:Min",
                " val_rmse:min",
                "val_rmse :min",
                "x" * 251 + ":min",
            )
        ),
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
    with pytest.raises(CheckpointDamaged, match="is no finite number"):
        parse_manifest((text % f'"val_loss": {literal}').encode(), "epoch_3")


@pytest.mark.parametrize("document", [VALID, CHOSEN])
def test_a_newer_format_is_told_apart_from_damage(document):
    """A checkpoint of a newer version is no damage: the message asks for that version."""
    newer = max(READABLE_VERSIONS) + 1
    expected = f"format version {newer}.* reads up to {newer - 1}"
    with pytest.raises(CheckpointError, match=expected) as caught:
        parse_manifest(json.dumps({**document, "format_version": newer}).encode(), "epoch_3")
    assert not isinstance(caught.value, CheckpointDamaged)


def test_deeply_nested_json_is_damage():
    """JSON that exhausts the parser's stack is refused like any other."""
    with pytest.raises(CheckpointDamaged, match="is not JSON"):
        parse_manifest(b"[" * 100_000, "epoch_3")


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


def entries(*paths):
    return [{"path": path, "bytes": 5, "sha256": "a" * 64} for path in paths]


def parts(*numbers):
    return entries(*(f"{CHECKPOINT_FILE}/part-{number:05d}" for number in numbers))


@pytest.mark.parametrize("numbers", [[0], [0, 1, 2], [1, 0]])
def test_all_parts_of_one_file_are_a_checkpoint(numbers):
    """Parts are numbered from 0 without a gap; the order in the manifest does not matter."""
    text = json.dumps({**VALID, "files": [*parts(*numbers), *entries("m.json")]}).encode()
    manifest = parse_manifest(text, "epoch_3")
    assert len(manifest.files) == len(numbers) + 1
    assert manifest.bytes == 5 * len(manifest.files)


@pytest.mark.parametrize(
    "files",
    [
        parts(1),
        parts(0, 2),
        parts(0, 1, 1),
        [*parts(0, 1), *entries(CHECKPOINT_FILE)],
        [*parts(0), *entries(f"{CHECKPOINT_FILE}/part-1")],
        entries("m.json"),
        [*parts(0), *entries("m.json/part-00000", "m.json/part-00000")],
        [*parts(0), *entries("m.json/../part-00000")],
        [*parts(0), *entries("../checkpoint.pth/part-00001")],
        [*parts(0), *entries(f"{CHECKPOINT_FILE}/part-000001")],
        [*parts(0), *entries("m.json/part-0000٢")],
    ],
    ids=lambda files: ",".join(file["path"] for file in files),
)
def test_missing_doubled_or_misnumbered_parts_are_damage(files):
    """A checkpoint is one file, or all parts of one: nothing between (invariant 1)."""
    with pytest.raises(CheckpointDamaged):
        parse_manifest(json.dumps({**VALID, "files": files}).encode(), "epoch_3")


def manifest(epoch, step, epoch_step=0, metrics=None, monitor=UNDECLARED):
    files = (FileEntry(CHECKPOINT_FILE, 5, "a" * 64), FileEntry("m.json", 2, "b" * 64))
    return Manifest(
        epoch=epoch, step=step, epoch_step=epoch_step, attempt=1, created=VALID["created"],
        kept=False, metrics=metrics or {}, files=files, monitor=monitor,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("made", "name", "key", "score"),
    [
        (manifest(3, 30, 0, {"val_pearson": 0.0}), "epoch_3", "3", 0.0),
        (manifest(3, 30, 0, {"val_pearson": 5.0}), "epoch_3", "3", None),  # no correlation
        (manifest(3, 30, 0, {"val_pearson": 0.5, "val_rmse": 5.0}, RMSE), "epoch_3", "3", 5.0),
        (manifest(3, 30, 0, {"val_pearson": 0.5}, RMSE), "epoch_3", "3", None),
        (manifest(3, 30, 0, {"val_rmse": -1.79e308}, RMSE), "epoch_3", "3", None),
        (manifest(3, 35, 5), "global_step_35", "global_step_35", None),
        (manifest(0, 1, 1), "global_step_1", "global_step_1", None),
        (manifest(0, 0), "epoch_0", "0", None),
    ],
)
def test_a_manifest_knows_its_name_key_score_and_size(made, name, key, score):
    """What listings and policies ask of it is derived, not stored twice."""
    assert (made.name, made.key, made.score, made.bytes) == (name, key, score, 7)
    assert NAME.fullmatch(made.name)


def test_the_order_is_that_of_training():
    """By steps; an epoch's end comes after its last step, where both have the same number."""
    in_order = [
        manifest(0, 9, 9),
        manifest(0, 10, 10),
        manifest(1, 10),
        manifest(1, 11, 1),
        manifest(1, 100, 90),
    ]
    shuffled = [in_order[i] for i in (3, 1, 4, 2, 0)]
    assert sorted(shuffled, key=lambda m: m.order) == in_order
    assert len({m.order for m in in_order}) == len(in_order)


def test_a_checkpoint_of_another_monitor_is_another():
    """Though all else is alike: which is best may differ."""
    one, other = manifest(3, 30), manifest(3, 30, monitor=RMSE)
    assert one != other
    assert not one.is_same(other)
    assert one.digest != other.digest


counts = st.integers(0, 2**63 - 1)
names = st.text(min_size=1, max_size=8).filter(lambda name: name == name.strip())


@given(
    st.builds(
        Manifest,
        epoch=st.integers(0, 10**18 - 1),
        step=st.integers(0, 10**18 - 1),
        epoch_step=st.just(0) | counts,
        attempt=counts,
        created=st.just(VALID["created"]),
        kept=st.booleans(),
        metrics=st.dictionaries(
            texts, st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=3
        ),
        files=st.just((FileEntry(CHECKPOINT_FILE, 5, "a" * 64),)),
        monitor=st.just(UNDECLARED) | st.builds(Monitor, names, st.sampled_from(["max", "min"])),
        format_version=st.sampled_from([2, 3]),
    )
)
def test_a_manifest_and_its_json_are_the_same(made):
    """Any manifest is read again as it was written, under its own name and no other."""
    written = json.dumps(made.to_dict(), allow_nan=False).encode()
    assert parse_manifest(written, made.name) == made
    other = f"epoch_{made.step}" if made.epoch_step else f"global_step_{made.epoch}"
    with pytest.raises(CheckpointDamaged, match="which is not this folder's name"):
        parse_manifest(written, other)


@pytest.mark.parametrize("name", ["epoch_3", "epoch_35", "global_step_30", "global_step_3"])
def test_a_checkpoint_inside_an_epoch_in_another_folder_is_damage(name):
    """A folder that was renamed or copied is not taken for an epoch's end, or another step."""
    assert parse_manifest(json.dumps(INSIDE).encode(), "global_step_35").epoch_step == 5
    with pytest.raises(CheckpointDamaged, match="global_step_35, which is not this folder's name"):
        parse_manifest(json.dumps(INSIDE).encode(), name)


def test_the_first_version_knows_no_steps_inside_an_epoch():
    """Format version 1 is read as an epoch's end, whatever else is written in it."""
    for document in (FIRST, {**FIRST, "epoch_step": 5}):
        read = parse_manifest(json.dumps(document).encode(), "epoch_3")
        assert read.to_dict() == VALID
    with pytest.raises(CheckpointDamaged, match="epoch_step None"):
        parse_manifest(json.dumps({**FIRST, "format_version": 2}).encode(), "epoch_3")


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("epoch_0", True),
        ("epoch_12", True),
        ("global_step_1", True),
        ("global_step_" + "9" * 18, True),
        ("global_step_" + "9" * 19, False),
        ("global_step_01", False),
        ("global_step_-1", False),
        ("global_step_", False),
        ("step_1", False),
        ("epoch_1.tmp", False),
        ("epoch_1\n", False),
        ("epoch_1٢", False),
    ],
)
def test_only_these_names_are_those_of_checkpoints(name, is_one):
    """What else lies in the folder of checkpoints is not looked at, nor deleted."""
    assert bool(NAME.fullmatch(name)) is is_one
