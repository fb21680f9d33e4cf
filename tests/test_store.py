"""A checkpoint exists if and only if its manifest does, however an upload or deletion ends."""

import contextlib
import dataclasses
import hashlib
import json
import shutil

import pytest
import torch

from onward.checkpoint import listed
from onward.checkpoint import store as store_module
from onward.checkpoint import transfers as transfers_module
from onward.checkpoint.format import write_checkpoint
from onward.checkpoint.manifest import CHECKPOINT_FILE, MANIFEST_FILE, checkpoint_name
from onward.checkpoint.spool import Spool
from onward.checkpoint.store import CheckpointStore
from onward.checkpoint.transfers import show_upload
from onward.errors import CheckpointDamaged, CheckpointError, StoreUnavailable, Superseded
from onward.monitor import UNDECLARED, Monitor
from onward.terminal.progress import Moved

MOMENTS = ["before", "half", "after"]


@pytest.fixture
def store(artifacts):
    """Return the checkpoints of a run whose calls are recorded."""
    return CheckpointStore(artifacts, "r1")


@pytest.fixture
def write(tmp_path, make_checkpoint):
    """Return a function that writes a checkpoint of an epoch, or inside one, to the local disk."""

    def write(epoch, epoch_step=0, **more):
        checkpoint = make_checkpoint(epoch, epoch_step, **more)
        folder = tmp_path / "spool" / checkpoint_name(checkpoint)
        return folder, write_checkpoint(folder, checkpoint, attempt=1, kept=True, metrics={})

    return write


def weights(store, manifest, folder):
    """Return a number by which the content of a stored checkpoint is known."""
    return store.get(manifest).parts["model"]["weight"][0].item()


def test_an_empty_run_has_no_checkpoints(store):
    """A run without any files is no error."""
    assert store.list() == []


def test_what_was_put_is_listed_oldest_first_and_got_back(store, write, tmp_path):
    """Checkpoints come in the order of their epochs, with the content they were put with."""
    manifests = {epoch: write(epoch) for epoch in (10, 9, 2)}
    for folder, manifest in manifests.values():
        store.put(folder, manifest)
    assert [m.epoch for m in store.list()] == [2, 9, 10]
    assert weights(store, manifests[9][1], tmp_path / "got") == 9


MIXED = [(0, 9), (0, 10), (1, 0), (1, 1), (1, 10), (9, 3), (10, 0), (10, 2)]  # of 10 steps each
MIXED_NAMES = [
    *("global_step_9", "global_step_10", "epoch_1", "global_step_11", "global_step_20"),
    *("global_step_93", "epoch_10", "global_step_102"),
]


@pytest.mark.parametrize("indexed", [(), (0, 3, 6), tuple(range(len(MIXED)))])
def test_ends_and_insides_of_epochs_are_listed_in_the_order_of_training(
    store, write, tmp_path, calls, indexed
):
    """By step, and an epoch's end after its last step; with or without them in the index."""
    written = [write(*where) for where in MIXED]
    manifests = [manifest for _, manifest in written]
    for at in (5, 2, 7, 0, 6, 1, 4, 3):
        store.put(*written[at])
    store.write_index(listed.to_text([manifests[at] for at in reversed(indexed)]), tmp_path)
    calls.arm(None)
    assert store.indexed() == manifests
    assert [m.name for m in store.indexed()] == MIXED_NAMES
    assert len(calls.names) == 2 * (2 + len(MIXED) - len(indexed))
    for manifest in manifests:
        content = store.get(manifest)
        counts = content.epoch, content.step, content.epoch_step
        assert counts == (manifest.epoch, manifest.step, manifest.epoch_step)


def test_commit_last(store, write, calls, one_at_a_time):
    """Invariant 1: the manifest is uploaded after every other file."""
    calls.arm(None)
    store.put(*write(1))
    assert calls.names == [
        "upload checkpoints/epoch_1/checkpoint.pth",
        "upload checkpoints/epoch_1/checkpoint_metrics.json",
        "upload checkpoints/epoch_1/manifest.json",
    ]


@pytest.mark.parametrize("sizes", [(900, 1 << 20), (1 << 20, 900), (900, 700)])
def test_a_name_is_written_again_however_it_was_cut(
    artifacts, make_checkpoint, tmp_path, calls, one_at_a_time, sizes
):
    """What an upload left that died, another attempt's files may have to take the place of."""
    manifests, folders = [], []
    for number, size in enumerate(sizes):
        folders.append(tmp_path / f"disk_{number}" / "epoch_1")
        content = make_checkpoint(1)
        manifests.append(
            write_checkpoint(
                folders[-1], content, attempt=1 + number, kept=True, metrics={}, part_bytes=size
            )
        )
    first = CheckpointStore(artifacts, "r1")
    calls.arm(len(manifests[0].files))  # all but the manifest
    with pytest.raises(StoreUnavailable):
        first.put(folders[0], manifests[0])
    calls.arm(None)
    store = CheckpointStore(artifacts, "r1")
    assert store.list() == []
    store.put(folders[1], manifests[1])
    assert store.list() == [manifests[1]]
    assert weights(store, manifests[1], tmp_path / "got") == 1
    remote = artifacts.folder / "checkpoints" / "epoch_1"
    stored = {p.relative_to(remote).as_posix() for p in remote.rglob("*") if p.is_file()}
    assert stored == {entry.path for entry in manifests[1].files} | {MANIFEST_FILE}


@pytest.mark.parametrize("when", MOMENTS)
@pytest.mark.parametrize("call", [0, 1, 2])
def test_an_upload_that_fails_anywhere_is_no_checkpoint(
    store, artifacts, write, calls, call, when, tmp_path, one_at_a_time
):
    """Invariant 1: a put that fails at any call shows nothing half, and older ones stay."""
    folder, older = write(1)
    store.put(folder, older)
    calls.arm(call, when)
    folder, newer = write(2)
    with pytest.raises(StoreUnavailable, match="on purpose"):
        store.put(folder, newer)
    calls.arm(None)
    again = CheckpointStore(artifacts, "r1")
    committed = call == 2 and when == "after"  # the store had it all, only its answer was lost
    assert again.list() == [older, *([newer] if committed else [])]
    for manifest in again.list():
        assert weights(again, manifest, tmp_path / manifest.name) == manifest.epoch
    again.put(folder, newer)
    assert again.list() == [older, newer]
    assert weights(again, newer, tmp_path / "again") == 2


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", [0, 1])
def test_a_deletion_that_fails_anywhere_leaves_a_whole_checkpoint_or_none(
    store, artifacts, write, calls, call, when, tmp_path, one_at_a_time
):
    """Invariant 3: the manifest is deleted first, so no half of a checkpoint is ever listed."""
    manifests = [write(epoch) for epoch in (1, 2)]
    for folder, manifest in manifests:
        store.put(folder, manifest)
    calls.arm(call, when)
    with pytest.raises(StoreUnavailable, match=r"delete checkpoints/epoch_1.* on purpose"):
        store.delete(manifests[0][1].name)
    calls.arm(None)
    again = CheckpointStore(artifacts, "r1")
    untouched = call == 0 and when == "before"
    assert [m.epoch for m in again.list()] == ([1, 2] if untouched else [2])
    for manifest in again.list():
        assert weights(again, manifest, tmp_path / manifest.name) == manifest.epoch
    again.delete(manifests[0][1].name)
    assert artifacts.list("checkpoints") == ["epoch_2"]


def test_the_manifest_is_deleted_first(store, write, calls):
    """Invariant 3: the order of a deletion."""
    _, manifest = write(1)
    calls.arm(None)
    store.delete(manifest.name)
    names = ["delete checkpoints/epoch_1/manifest.json", "delete checkpoints/epoch_1"]
    assert calls.names == names


def test_a_name_is_written_again_only_after_its_manifest_is_deleted(
    store, artifacts, write, calls, tmp_path
):
    """Invariant 1: old manifest and new data are never there together."""
    store.put(*write(1))
    again = CheckpointStore(artifacts, "r1")
    again.list()
    folder, manifest = write(1, model_state_dict={"weight": torch.full((3,), 7.0)})
    calls.arm(None)
    again.put(folder, manifest)
    first, second, *uploads, last = calls.names
    assert first == "delete checkpoints/epoch_1/manifest.json"
    assert second == "delete checkpoints/epoch_1"
    assert all(name.startswith("upload ") for name in uploads)
    assert last == "upload checkpoints/epoch_1/manifest.json"
    assert weights(again, manifest, tmp_path / "got") == 7


@pytest.mark.parametrize("when", MOMENTS)
@pytest.mark.parametrize("call", [0, 1, 2, 3, 4])
def test_a_rewrite_that_fails_anywhere_leaves_the_old_the_new_or_none(
    store, artifacts, write, calls, call, when, tmp_path, one_at_a_time
):
    """Invariant 1: a name that is written again is never a mixture, wherever that stops."""
    folder, old = write(1)
    store.put(folder, old)
    store.list()
    folder, new = write(1, model_state_dict={"weight": torch.full((3,), 7.0)})
    calls.arm(call, when)
    with pytest.raises(StoreUnavailable, match="on purpose"):
        store.put(folder, new)
    calls.arm(None)
    found = CheckpointStore(artifacts, "r1").list()
    if call == 0 and when != "after":
        assert found == [old]
        assert weights(store, old, tmp_path / "got") == 1
    elif call == 4 and when == "after":
        assert found == [new]
        assert weights(store, new, tmp_path / "got") == 7
    else:
        assert found == []


@pytest.mark.parametrize(
    "name",
    ["epoch_7", "epoch_07", "epoch_x", "epoch_-1", "global_step_7", "global_step_07", "notes"],
)
def test_a_folder_without_a_manifest_is_nothing(store, artifacts, write, name):
    """A killed upload leaves a listed folder that is no checkpoint (invariant 1)."""
    _, older = write(3)
    store.put(*write(3))
    (artifacts.root / "checkpoints" / name).mkdir()
    (artifacts.root / "checkpoints" / name / "checkpoint.pth").write_bytes(b"half")
    assert [m.epoch for m in store.list()] == [older.epoch]


def test_a_manifest_in_a_folder_of_another_name_is_nothing(store, artifacts, write):
    """A folder that was copied under another epoch's name is not taken for that epoch."""
    store.put(*write(3))
    checkpoints = artifacts.root / "checkpoints"
    shutil.copytree(checkpoints / "epoch_3", checkpoints / "epoch_4")
    assert [m.epoch for m in store.list()] == [3]


def test_one_inside_an_epoch_under_an_epochs_name_is_nothing(store, artifacts, write):
    """Nothing that was copied or renamed passes for what it is not."""
    for where in ((3, 0), (3, 4)):
        store.put(*write(*where))
    checkpoints = artifacts.root / "checkpoints"
    shutil.copytree(checkpoints / "global_step_34", checkpoints / "epoch_4")
    shutil.copytree(checkpoints / "epoch_3", checkpoints / "global_step_30")
    assert [m.name for m in store.list()] == ["epoch_3", "global_step_34"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"checkpoints": {}}',
        b'{"checkpoints": 5}',
        b'{"checkpoints": [1]}',
        b'{"checkpoints": [{"epoch": []}]}',
        b'{"checkpoints": [{"epoch": 1, "format_version": 99}]}',
        b'{"checkpoints": [{"step": 10, "epoch_step": "x"}]}',
        b"[" * 100_000,
        None,
    ],
)
def test_a_corrupt_or_missing_index_is_harmless(store, artifacts, write, tmp_path, content):
    """The index is derived: where it cannot be read, the manifests themselves are."""
    manifests = [write(epoch)[1] for epoch in (1, 2)]
    for manifest in manifests:
        store.put(tmp_path / "spool" / manifest.name, manifest)
    store.write_index(listed.to_text(manifests), tmp_path)
    index = artifacts.root / "checkpoints" / "index.json"
    if content is None:
        index.unlink()
    else:
        index.write_bytes(content)
    assert store.list() == manifests


def test_a_stale_index_is_harmless(store, artifacts, write, tmp_path):
    """An index that lacks the newest, and names one that is gone, changes no listing."""
    manifests = [write(epoch)[1] for epoch in (1, 2, 3)]
    for manifest in manifests:
        store.put(tmp_path / "spool" / manifest.name, manifest)
    store.write_index(listed.to_text(manifests[:2]), tmp_path)
    store.delete(manifests[0].name)
    assert store.list() == manifests[1:]


def test_an_index_that_lies_is_found_out_before_use(store, artifacts, write, tmp_path):
    """A checkpoint is verified against its own manifest, not against the index."""
    folder, manifest = write(1)
    store.put(folder, manifest)
    document = {**manifest.to_dict(), "step": 99}
    index = artifacts.root / "checkpoints" / "index.json"
    index.write_text(json.dumps({"checkpoints": [document]}))
    [listed] = store.indexed()
    assert listed.step == 99
    with pytest.raises(CheckpointDamaged, match="is not the one that was chosen"):
        store.get(listed)
    assert store.list() == [manifest], "what is chosen is not chosen by the index"
    (artifacts.root / "checkpoints" / "epoch_1" / MANIFEST_FILE).unlink()
    with pytest.raises(CheckpointDamaged, match=r"manifest\.json is missing"):
        store.get(manifest)


@pytest.fixture
def indexed(store, write, tmp_path, calls):
    """Three checkpoints and their index; return them and its digest."""
    manifests = [store.put(*write(epoch)) for epoch in (1, 2, 3)]
    text = listed.to_text(manifests)
    store.write_index(text, tmp_path)
    calls.arm(None)
    return manifests, listed.digest(text)


def test_an_index_that_the_run_names_is_chosen_by(store, indexed, calls):
    """A resume reads it, and the newest manifest, whatever the number."""
    manifests, digest = indexed
    assert store.list(index=digest) == manifests
    assert len(calls.names) == 3


@pytest.mark.parametrize("forged", ["the index", "the newest manifest", "its tag"])
def test_an_index_of_another_digest_is_not_chosen_by(store, artifacts, indexed, forged):
    """Where index, newest manifest and tag do not agree, each manifest is read."""
    (manifests, digest), folder = indexed, artifacts.root / "checkpoints"
    if forged == "the index":
        (folder / "index.json").write_bytes(listed.to_text(manifests[:1]))
    elif forged == "its tag":
        digest = "a" * 64
    else:
        document = {**manifests[-1].to_dict(), "attempt": 7}
        (folder / "epoch_3" / MANIFEST_FILE).write_text(json.dumps(document))
        manifests[-1] = dataclasses.replace(manifests[-1], attempt=7)
    assert store.list(index=digest) == manifests


def test_an_index_is_chosen_by_only_as_far_as_it_is_signed(store, indexed):
    """With a key what that has not signed counts as none, in the index too."""
    signing = CheckpointStore(store._artifacts, store.run_id, b"k" * 32)
    assert signing.list(index=indexed[1]) == []


@pytest.mark.parametrize("number", [1, 2, 40])
def test_a_listing_costs_two_calls_whatever_the_number(store, write, calls, tmp_path, number):
    """With a current index, a listing is one folder and one file."""
    manifests = [write(epoch)[1] for epoch in range(1, number + 1)]
    for manifest in manifests:
        store.put(tmp_path / "spool" / manifest.name, manifest)
    store.write_index(listed.to_text(manifests), tmp_path)
    calls.arm(None)
    assert len(store.indexed()) == number
    assert calls.names == ["list checkpoints", "download checkpoints/index.json"]


def test_a_listing_costs_one_call_more_for_each_that_is_not_indexed(store, write, calls, tmp_path):
    """Only manifests that the index lacks are fetched."""
    manifests = [write(epoch)[1] for epoch in range(1, 6)]
    for manifest in manifests:
        store.put(tmp_path / "spool" / manifest.name, manifest)
    store.write_index(listed.to_text(manifests[:3]), tmp_path)
    calls.arm(None)
    assert store.indexed() == manifests
    fetched = [f"download checkpoints/epoch_{n}/manifest.json" for n in (4, 5)]
    assert sorted(calls.names[2:]) == fetched


@pytest.mark.parametrize("name", ["checkpoint.pth", "checkpoint_metrics.json", "manifest.json"])
def test_a_file_that_is_gone_is_damage_and_is_named(store, artifacts, write, tmp_path, name):
    """A committed checkpoint that lost a file is refused with its name and the run's."""
    folder, manifest = write(1)
    store.put(folder, manifest)
    (artifacts.root / "checkpoints" / "epoch_1" / name).unlink()
    with pytest.raises(CheckpointDamaged, match=f"epoch_1 of run 'r1' .*{name} is missing"):
        store.get(manifest)


@pytest.mark.parametrize("name", ["checkpoint.pth", "checkpoint_metrics.json"])
def test_a_flipped_bit_in_the_store_is_found(store, artifacts, write, tmp_path, name):
    """What was changed in the store is never loaded (invariant 1)."""
    folder, manifest = write(1)
    store.put(folder, manifest)
    path = artifacts.root / "checkpoints" / "epoch_1" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointDamaged, match=f"{name} has sha256"):
        store.get(manifest)


def test_an_outage_is_not_taken_for_an_empty_run(store, write, calls, tmp_path):
    """A store that does not answer is an error, never "no checkpoints" (invariant 7)."""
    store.put(*write(1))
    for num_calls, read in ((3, store.indexed), (2, store.list)):
        for call in range(num_calls):
            calls.arm(call)
            with pytest.raises(StoreUnavailable):
                read()
    calls.arm(None)
    assert len(store.list()) == 1


def test_a_name_is_written_twice_by_one_store_only_after_its_manifest_is_deleted(
    store, write, calls
):
    """What this store wrote itself counts as seen, without a listing (invariant 1)."""
    store.put(*write(1))
    calls.arm(None)
    store.put(*write(1))
    assert calls.names[0] == "delete checkpoints/epoch_1/manifest.json"


@pytest.mark.parametrize("in_index", [True, False])
def test_a_checkpoint_of_a_newer_version_is_not_left_out(
    store, artifacts, write, tmp_path, in_index
):
    """What only a newer program reads is an error: without it a resume would go back unseen."""
    manifests = [write(epoch)[1] for epoch in (1, 2)]
    for manifest in manifests:
        store.put(tmp_path / "spool" / manifest.name, manifest)
    path = artifacts.root / "checkpoints" / "epoch_2" / MANIFEST_FILE
    newer = {**manifests[1].to_dict(), "format_version": 99}
    path.write_text(json.dumps(newer))
    if in_index:
        document = {"checkpoints": [manifests[0].to_dict(), newer]}
        (artifacts.root / "checkpoints" / "index.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="format version 99"):
        store.list()


RMSE = Monitor("val_rmse", "min")
HELD = {"format_version": 3, "monitor": str(RMSE), "epoch_sums": {}, "epoch_seconds": 0.0}


@pytest.mark.parametrize(
    ("held", "changes", "found"),
    [
        ({}, {"epoch": 9}, "epoch 1, its manifest says 9"),
        ({}, {"step": 9}, "step 13, its manifest says 9"),
        ({}, {"epoch_step": 9}, "epoch_step 3, its manifest says 9"),
        ({}, {"epoch_step": 0}, "epoch_step 3, its manifest says 0"),
        ({}, {"monitor": RMSE}, "monitor val_pearson:max, its manifest says val_rmse:min"),
        (
            HELD,
            {"monitor": UNDECLARED},
            "monitor val_rmse:min, its manifest says val_pearson:max",
        ),
        (
            HELD,
            {"monitor": Monitor("val_rmse", "max")},
            "monitor val_rmse:min, its manifest says val_rmse:max",
        ),
    ],
)
def test_content_of_another_epoch_step_or_monitor_is_damage(
    store, write, tmp_path, held, changes, found
):
    """A manifest that says another place than the file holds commits nothing (invariant 1)."""
    folder, manifest = write(1, 3, **held)
    other = dataclasses.replace(manifest, **changes)
    (folder / MANIFEST_FILE).write_text(json.dumps(other.to_dict()))
    store.put(folder, other)
    with pytest.raises(CheckpointDamaged, match=f"holds {found}"):
        store.get(other)


@pytest.fixture
def write_parts(tmp_path, make_checkpoint):
    """Return a function that writes a checkpoint in parts to the local disk."""

    def write(epoch, weight=None):
        folder = tmp_path / "spool" / f"epoch_{epoch}"
        weight = torch.arange(400.0) if weight is None else weight
        content = make_checkpoint(epoch, model_state_dict={"weight": weight})
        options = {"attempt": 1, "kept": True, "metrics": {}, "part_bytes": 600}
        return folder, write_checkpoint(folder, content, **options)

    return write


def uploads(calls):
    return [name.removeprefix("upload checkpoints/epoch_1/") for name in calls.names]


def test_an_interrupted_upload_goes_on_with_what_is_missing(
    store, artifacts, write_parts, calls, tmp_path, one_at_a_time
):
    """No part goes up twice, by the same process or by another (issue 3)."""
    folder, manifest = write_parts(1)
    paths = [entry.path for entry in manifest.files]
    assert len(paths) > 5
    calls.arm(3)
    with pytest.raises(StoreUnavailable):
        store.put(folder, manifest)
    calls.arm(2)
    with pytest.raises(StoreUnavailable):
        store.put(folder, manifest)
    assert uploads(calls)[1] == paths[3]
    calls.arm(None)
    again = CheckpointStore(artifacts, "r1")
    again.list()
    calls.arm(None)
    again.put(folder, manifest)
    assert uploads(calls)[1:] == [*paths[4:], MANIFEST_FILE]
    assert again.get(manifest).epoch == 1


def test_parts_of_equal_content_all_go_up(
    store, artifacts, write_parts, calls, tmp_path, one_at_a_time
):
    """Weights that are all zero make equal parts, and none of them may be left out."""
    folder, manifest = write_parts(1, torch.zeros(4000))
    assert len({entry.sha256 for entry in manifest.files}) < len(manifest.files)
    calls.arm(8)
    with pytest.raises(StoreUnavailable):
        store.put(folder, manifest)
    calls.arm(None)
    store.put(folder, manifest)
    assert store.get(manifest).epoch == 1


def test_what_was_uploaded_is_sent_again_where_the_store_has_lost_it(
    store, artifacts, write_parts, calls, tmp_path, one_at_a_time
):
    """A note of what went up is worth nothing once the folder in the store is gone."""
    folder, manifest = write_parts(1)
    calls.arm(4)
    with pytest.raises(StoreUnavailable):
        store.put(folder, manifest)
    calls.arm(None)
    artifacts.delete("checkpoints/epoch_1")
    store.put(folder, manifest)
    assert store.get(manifest).epoch == 1


@pytest.mark.parametrize("num_failing", [1, 2])
@pytest.mark.parametrize("call", [0, 1, 2])
def test_each_upload_is_tried_again(
    store, write, calls, pauses, call, num_failing, tmp_path, one_at_a_time
):
    """A broken connection costs one file, not the checkpoint; pauses grow, under 2 s in all."""
    folder, manifest = write(1)
    calls.arm(call, "half", num_failing)
    store.put(folder, manifest)
    assert len(calls.names) == 3 + num_failing
    assert len(set(calls.names)) == 3
    assert len(pauses) == num_failing
    assert pauses == sorted(pauses)
    assert 0 < sum(pauses) < 2.5
    assert weights(store, manifest, tmp_path / "got") == 1


def test_pauses_are_never_in_step(store, write, calls, pauses):
    """Many processes that lost one server do not all come back at one moment."""
    for epoch in range(1, 6):
        folder, manifest = write(epoch)
        calls.arm(0, num_failing=1)
        store.put(folder, manifest)
    assert len(set(pauses)) == 5


def test_a_store_that_stays_away_is_told_after_some_tries(store, write, calls, one_at_a_time):
    """Trying is bounded: what is behind it decides how to go on."""
    folder, manifest = write(1)
    calls.arm(0)
    with pytest.raises(StoreUnavailable):
        store.put(folder, manifest)
    assert calls.names.count("upload checkpoints/epoch_1/checkpoint.pth") == 3


@pytest.fixture
def remote(artifacts, calls):
    """Return a store that passes for a server's, over the same files."""
    return CheckpointStore(type(artifacts)(artifacts.root, calls, is_remote=True), "r1")


def cut_downloads(artifacts, monkeypatch, times):
    """Let the first `times` downloads of a checkpoint.pth end early, without an error."""
    download, done = artifacts.download, []

    def cut(path, local_file, max_bytes):
        found = download(path, local_file, max_bytes)
        if path.endswith(".pth") and len(done) < times:
            done.append(path)
            content = local_file.read_bytes()[:-1]
            local_file.write_bytes(content)
            found = hashlib.sha256(content).hexdigest()
        return found

    monkeypatch.setattr(artifacts, "download", cut)


def test_a_download_that_was_cut_short_is_fetched_again(remote, write, tmp_path, monkeypatch):
    """HTTP may end early without an error; the size tells, and a second fetch helps."""
    folder, manifest = write(1)
    remote.put(folder, manifest)
    cut_downloads(remote._artifacts, monkeypatch, 1)
    assert weights(remote, manifest, tmp_path / "got") == 1


@pytest.mark.parametrize("times", [0, 1])
def test_what_was_fetched_is_counted_once(remote, write, tmp_path, monkeypatch, times):
    """How far a download is ends at the manifest's bytes, also where a file was fetched again."""
    folder, manifest = write(1)
    remote.put(folder, manifest)
    cut_downloads(remote._artifacts, monkeypatch, times)
    moved = Moved()
    remote.fetch(manifest, tmp_path / "got", moved)
    assert moved.num_bytes() == manifest.bytes


def test_a_file_that_is_under_way_counts_as_far_as_it_is(
    remote, write, tmp_path, monkeypatch, one_at_a_time
):
    """Of a large file on a slow line there is something to see."""
    folder, manifest = write(1)
    remote.put(folder, manifest)
    moved, seen, download = Moved(), [], remote._artifacts.download

    def look(path, local_file, max_bytes):
        before = moved.num_bytes()
        found = download(path, local_file, max_bytes)
        seen.append(moved.num_bytes() - before)
        return found

    monkeypatch.setattr(remote._artifacts, "download", look)
    remote.fetch(manifest, tmp_path / "got", moved)
    assert seen == [0, *(entry.bytes for entry in manifest.files)]


def test_an_upload_is_as_far_as_files_have_arrived(
    store, write_parts, calls, tmp_path, monkeypatch, one_at_a_time
):
    """What an earlier try brought is not counted, and a folder that is gone has gone up."""
    shown = []

    @contextlib.contextmanager
    def show(title, total_bytes, measure):
        shown.append((title, total_bytes, measure))
        yield

    monkeypatch.setattr(transfers_module, "show_transfer", show)
    folder, manifest = write_parts(1)
    spool, sizes = Spool(folder.parent, 1), [entry.bytes for entry in manifest.files]
    calls.arm(2)
    with show_upload(spool, [manifest]), contextlib.suppress(StoreUnavailable):
        store.put(folder, manifest)
    with show_upload(spool, [manifest]):
        pass
    (title, total, first), (_, rest, second) = shown
    assert (title, total, rest) == ("Uploading epoch_1", sum(sizes), sum(sizes[2:]))
    assert (first(), second()) == (sum(sizes[:2]), 0)
    calls.arm(None)
    store.put(folder, manifest)
    assert (first(), second()) == (total, rest)
    spool.remove("epoch_1")
    assert (first(), second()) == (total, rest)


def test_a_damaged_file_is_not_fetched_for_ever(remote, write, calls, tmp_path, monkeypatch):
    """What differs twice is damaged where it lies."""
    folder, manifest = write(1)
    remote.put(folder, manifest)
    cut_downloads(remote._artifacts, monkeypatch, 99)
    calls.arm(None)
    with pytest.raises(CheckpointDamaged, match=r"checkpoint\.pth has "):
        remote.get(manifest)
    assert calls.names.count("download checkpoints/epoch_1/checkpoint.pth") == 2


def test_a_damaged_local_file_is_read_once(store, artifacts, write, calls, tmp_path):
    """A file of this disk does not change by reading it again."""
    folder, manifest = write(1)
    store.put(folder, manifest)
    path = artifacts.root / "checkpoints" / "epoch_1" / "checkpoint.pth"
    path.write_bytes(path.read_bytes()[:-1])
    calls.arm(None)
    with pytest.raises(CheckpointDamaged):
        store.get(manifest)
    assert calls.names.count("download checkpoints/epoch_1/checkpoint.pth") == 1


def test_parts_are_fetched_verified_and_joined(remote, write_parts, tmp_path):
    """A checkpoint in parts comes back from a store as it went there."""
    folder, manifest = write_parts(1)
    remote.put(folder, manifest)
    [listed] = remote.list()
    assert listed == manifest
    got = remote.get(listed)
    assert torch.equal(got.parts["model"]["weight"], torch.arange(400.0))


def test_parts_become_one_file_that_is_mapped(store, write_parts, artifacts, tmp_path, monkeypatch):
    """Their bytes are read and written once on their way to the weights."""
    folder, manifest = write_parts(1)
    store.put(folder, manifest)
    moved = Moved()
    store.fetch(manifest, tmp_path / "got", moved)
    assert moved.num_bytes() == manifest.bytes
    whole = tmp_path / "got" / CHECKPOINT_FILE
    parts = sorted((folder / CHECKPOINT_FILE).iterdir())
    assert whole.read_bytes() == b"".join(part.read_bytes() for part in parts)
    read = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **kw: read.append(kw["mmap"]) or load(*a, **kw))
    store.get(manifest)
    assert read == [True]
    damaged = artifacts.root / "checkpoints" / "epoch_1" / CHECKPOINT_FILE / parts[1].name
    content = damaged.read_bytes()
    for found, told in ((content[:-1], "has 599 bytes"), (b"?" * len(content), "has sha256")):
        damaged.write_bytes(found)
        with pytest.raises(CheckpointDamaged, match=f"{parts[1].name} {told}"):
            store.get(manifest)
    damaged.write_bytes(content)


def test_a_part_is_no_longer_than_what_is_listed(store, write_parts, artifacts):
    """Between two parts there is nothing that no hash covers."""
    folder, manifest = write_parts(1)
    store.put(folder, manifest)
    [wrong] = [entry for entry in manifest.files if entry.path.endswith("part-00001")]
    files = [
        dataclasses.replace(entry, bytes=entry.bytes + 6) if entry == wrong else entry
        for entry in manifest.files
    ]
    longer = dataclasses.replace(manifest, files=tuple(files))
    listed = artifacts.root / "checkpoints" / "epoch_1" / MANIFEST_FILE
    listed.write_bytes(longer.to_json())
    with pytest.raises(CheckpointDamaged, match="part-00001 has 600 bytes, its manifest says 606"):
        store.get(longer)


def test_a_local_store_shares_the_bytes_of_the_spool(store, artifacts, write):
    """What lies on the same file system is given a second name, not written again (issue 3)."""
    folder, manifest = write(1)
    store.put(folder, manifest)
    stored = artifacts.root / "checkpoints" / "epoch_1"
    for entry in manifest.files:
        assert (stored / entry.path).samefile(folder / entry.path)


@pytest.mark.parametrize("call", range(5))
def test_no_manifest_and_no_later_file_without_the_lease(store, artifacts, write, calls, call):
    """One writer (invariant 8): from the moment the lease is lost nothing more goes up."""
    asked = []

    def check_lease():
        asked.append(len(calls.names))
        if len(asked) > call:
            raise Superseded("r1", 1, 2)

    folder, manifest = write(1)
    if call == 4:
        store.put(folder, manifest, check_lease)
        assert len(asked) == 4, "first byte, two files, manifest"
        return
    with pytest.raises(Superseded):
        store.put(folder, manifest, check_lease)
    assert f"upload checkpoints/epoch_1/{MANIFEST_FILE}" not in calls.names
    assert len(calls.names) <= max(call - 1, 0)


def test_what_a_killed_upload_left_is_found_and_what_is_damaged_is_not(store, artifacts, write):
    """Only a folder without any manifest is a leftover: a broken one may be somebody's."""
    for epoch in (1, 2, 3):
        store.put(*write(epoch))
    checkpoints = artifacts.root / "checkpoints"
    (checkpoints / "epoch_1" / MANIFEST_FILE).write_bytes(b"{")
    (checkpoints / "epoch_2" / MANIFEST_FILE).unlink()
    manifests = store.list()
    assert [m.epoch for m in manifests] == [3]
    assert store.leftovers(manifests) == ["epoch_2"]
    store.delete("epoch_2")
    assert store.leftovers(manifests) == []
    assert sorted(artifacts.list("checkpoints")) == ["epoch_1", "epoch_3"]


def test_what_a_killed_upload_left_inside_an_epoch_is_found_too(store, artifacts, write, calls):
    """A folder global_step_N without a manifest is tidied up like that of an epoch."""
    store.put(*write(1))
    folder, manifest = write(1, 4)
    calls.arm(2)  # the manifest
    with pytest.raises(StoreUnavailable):
        store.put(folder, manifest)
    calls.arm(None)
    again = CheckpointStore(artifacts, "r1")
    assert again.leftovers(again.list()) == ["global_step_14"]
    again.delete("global_step_14")
    assert artifacts.list("checkpoints") == ["epoch_1"]


def test_one_that_is_checked_is_whole_damaged_or_never_was(store, artifacts, write, tmp_path):
    """`check` tells a damaged checkpoint from a folder that never became one."""
    for epoch in (1, 2, 3):
        store.put(*write(epoch))
    checkpoints = artifacts.root / "checkpoints"
    (checkpoints / "epoch_2" / "checkpoint.pth").unlink()
    (checkpoints / "epoch_3" / MANIFEST_FILE).unlink()
    assert store.check("epoch_1", tmp_path / "1").epoch == 1
    with pytest.raises(CheckpointDamaged, match="is missing"):
        store.check("epoch_2", tmp_path / "2")
    assert store.check("epoch_3", tmp_path / "3") is None
    assert list(store.examine()) == ["epoch_3", "epoch_1", "epoch_2"]
    assert store.examine()["epoch_3"] is None


@pytest.mark.parametrize("part", ["config", "data", "history", "rng"])
def test_content_that_lacks_what_a_resume_needs_is_damage(store, tmp_path, make_checkpoint, part):
    """A file that loads without one of its parts is not gone on from (invariant 7)."""
    content = make_checkpoint(1)
    del content[part]
    folder = tmp_path / "spool" / "epoch_1"
    manifest = write_checkpoint(folder, content, attempt=1, kept=True, metrics={})
    store.put(folder, manifest)
    with pytest.raises(CheckpointDamaged, match=f"lacks {part}"):
        store.get(manifest)


def test_a_manifest_of_absurd_size_is_not_read(store, artifacts, write, monkeypatch):
    """What is read before it is verified is bounded."""
    store.put(*write(1))
    store.put(*write(2))
    path = artifacts.root / "checkpoints" / "epoch_2" / MANIFEST_FILE
    monkeypatch.setattr(store_module, "MAX_MANIFEST_BYTES", path.stat().st_size)
    path.write_bytes(path.read_bytes() + b" ")
    assert [m.epoch for m in store.list()] == [1]
