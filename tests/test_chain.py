"""Which checkpoints are believed: the run's own, in their order, up to the one its tag names."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from onward.checkpoint.chain import find_break, linked, require_own
from onward.checkpoint.manifest import FileEntry, Manifest, parse_manifest
from onward.checkpoint.policy import Retention
from onward.checkpoint.store import CheckpointStore
from onward.cli.listing import checkpoint_rows
from onward.errors import CheckpointDamaged, UsageError
from onward.opening import maintenance
from onward.opening.source import find_source, find_store
from onward.system import environment
from onward.tracking.names import EPOCH_TAG, MANIFEST_TAG
from train.kind import find_task

KEY, OTHER_KEY = b"k" * 16, b"o" * 16
SCORES = {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.9}


@pytest.fixture
def trained(record, commit_to):
    """Return a run with checkpoints of four epochs, the last being the best."""
    return commit_to(record, SCORES)


def checkpoints(record):
    return Path(record.artifact_uri) / "checkpoints"


def read(record, epoch):
    return json.loads((checkpoints(record) / f"epoch_{epoch}" / "manifest.json").read_bytes())


def change(record, epoch, **fields):
    """Write another manifest in place of one, without touching what it may be linked to."""
    file = checkpoints(record) / f"epoch_{epoch}" / "manifest.json"
    text = json.dumps({**read(record, epoch), **fields})
    file.unlink()
    file.write_text(text)


def epochs_of(tracking, record):
    store = CheckpointStore(tracking.artifacts(record), record.run_id)
    return [m.epoch for m in store.list()]


def open_source(tracking, record, wanted=None):
    _record, _folder, store = find_store(tracking, record.run_id)
    return find_source(tracking.get_run(record.run_id), store, wanted, find_task())


def make(epoch, run_id="r1", previous=None, key=None):
    """Return a manifest as it is committed."""
    files = (FileEntry("checkpoint.pth", 1, "0" * 64),)
    one = Manifest(
        epoch=epoch, step=10 * epoch, attempt=1, created="2026-01-01T00:00:00+00:00", kept=True,
        metrics={"val_loss": 0.25}, files=files,
    )  # fmt: skip
    return linked(one, run_id, previous, key)


def test_a_committed_manifest_says_whose_it_is_and_what_came_before(tracking, trained):
    """The first has none before it; the tag names the newest."""
    manifests = CheckpointStore(tracking.artifacts(trained), trained.run_id).list()
    assert {m.run_id for m in manifests} == {trained.run_id}
    assert [m.previous for m in manifests] == [None, *(m.digest for m in manifests[:-1])]
    assert trained.tags[MANIFEST_TAG] == manifests[-1].digest
    assert "hmac" not in read(trained, 4)
    assert open_source(tracking, trained).gone is None


def test_a_manifest_of_an_earlier_version_is_read(tracking, trained):
    """It has none of the fields, and an earlier version ignores them."""
    old = {k: v for k, v in read(trained, 1).items() if k not in ("run_id", "previous")}
    found = parse_manifest(json.dumps(old).encode(), "epoch_1")
    assert (found.run_id, found.previous, found.hmac) == (None, None, None)
    assert found.to_dict() == old
    require_own(found, "r1", None, "epoch_1")


@pytest.mark.parametrize("field", ["run_id", "previous", "hmac"])
@pytest.mark.parametrize("value", ["../x", "", 5, ["a"], "A" * 64, "a" * 4000])
def test_what_is_no_such_field_is_damage(tracking, trained, field, value):
    """Each is of its kind; what is shown of it is short."""
    text = json.dumps({**read(trained, 1), field: value}).encode()
    if (field, value) == ("run_id", "A" * 64):
        return
    with pytest.raises(CheckpointDamaged, match=field) as caught:
        parse_manifest(text, "epoch_1")
    assert len(str(caught.value)) < 200


def test_a_forged_index_deletes_nothing(tracking, trained):
    """What stays is chosen by the manifests, not by the index beside them."""
    index = checkpoints(trained) / "index.json"
    document = json.loads(index.read_bytes())
    for entry in document["checkpoints"]:
        best = entry["epoch"] == 1
        entry |= {"kept": False, "metrics": {"val_pearson": 0.99 if best else 0.0}}
        entry["step"] = 1000 - entry["epoch"]  # the newest first
    index.unlink()
    index.write_text(json.dumps(document))
    for epoch in SCORES:
        change(trained, epoch, kept=False)
    gone = maintenance.prune(tracking, trained.run_id, Retention(), dry_run=False)
    assert [m.epoch for m in gone] == [1, 2, 3]
    assert epochs_of(tracking, trained) == [4]


def test_a_forged_index_chooses_nothing(tracking, trained, tmp_path):
    """Neither the newest nor the best of what is resumed, shown or exported."""
    index = checkpoints(trained) / "index.json"
    document = json.loads(index.read_bytes())
    document["checkpoints"][0]["metrics"]["val_pearson"] = 0.99
    document["checkpoints"][0]["step"] = 1000
    index.unlink()
    index.write_text(json.dumps(document))
    assert open_source(tracking, trained).epoch == 4
    for wanted in ("latest", "best"):
        to = tmp_path / "out.pth"
        assert maintenance.export(tracking, trained.run_id, wanted, to).epoch == 4
        assert maintenance.describe(tracking, trained.run_id, wanted)["manifest"]["epoch"] == 4


def test_a_score_that_cannot_be_is_not_the_best(tracking, trained):
    """1e308 in a manifest makes no checkpoint stay for ever."""
    change(trained, 1, metrics={"val_pearson": 1e308})
    gone = maintenance.prune(tracking, trained.run_id, Retention(every=100), dry_run=False)
    assert [m.epoch for m in gone] == [1, 2, 3]


def test_a_checkpoint_of_another_run_is_none(tracking, trained, commit_to, caplog):
    """It is told, passed over, damaged for `verify`, and never deleted as if it were ours."""
    other = commit_to(tracking.create_run("0", "other", {}), {5: 0.99})
    shutil.copytree(checkpoints(other) / "epoch_5", checkpoints(trained) / "epoch_5")
    assert open_source(tracking, trained).epoch == 4
    found = f"checkpoint epoch_5 is damaged: it belongs to run '{other.run_id}'"
    assert f"{found}: it counts as none" in caplog.messages
    rows = {row["name"]: row for row in maintenance.verify_rows(tracking, trained.run_id)}
    assert (rows["epoch_5"]["status"], rows["epoch_5"]["found"]) == ("damaged", found)
    assert "train.manifest" not in rows
    maintenance.prune(tracking, trained.run_id, Retention(every=100), dry_run=False)
    assert (checkpoints(trained) / "epoch_5" / "manifest.json").exists()
    assert epochs_of(tracking, trained) == [4]


def roll_back(tracking, record, *epochs):
    for epoch in epochs:
        shutil.rmtree(checkpoints(record) / f"epoch_{epoch}")
    document = {"checkpoints": [read(record, epoch) for epoch in SCORES if epoch not in epochs]}
    index = checkpoints(record) / "index.json"
    index.unlink()
    index.write_text(json.dumps(document))
    return tracking.get_run(record.run_id)


@pytest.mark.parametrize("epochs", [(4,), (3, 4)])
def test_a_rollback_is_told(tracking, trained, caplog, epochs):
    """The newest ones gone in all places is still not what the run's tag names."""
    roll_back(tracking, trained, *epochs)
    left = f"epoch_{4 - len(epochs)}"
    gone = open_source(tracking, trained).gone
    assert gone == (
        "the newest checkpoint that its tag names is gone, or is not what it was: the newest that "
        f"is left is {left}"
    )
    rows = list(maintenance.verify_rows(tracking, trained.run_id))
    assert [row["status"] for row in rows] == ["ok"] * (4 - len(epochs)) + ["damaged"]
    assert rows[-1]["name"] == MANIFEST_TAG
    assert rows[-1]["found"] == gone
    maintenance.prune(tracking, trained.run_id, Retention(), dry_run=True)
    assert f"Run '{trained.run_id}' is not as it was left: {gone}" in caplog.messages


def test_a_newest_that_was_changed_is_told(tracking, trained):
    """Another manifest in its place, with the same files, is not what the tag names."""
    change(trained, 4, attempt=2)
    assert "is not what it was" in open_source(tracking, trained).gone


def test_a_damaged_newest_is_told_as_that_only(tracking, trained):
    """Its manifest is there, so nothing is gone."""
    data = checkpoints(trained) / "epoch_4" / "checkpoint.pth"
    content = data.read_bytes()[:-1]
    data.unlink()
    data.write_bytes(content)
    source = open_source(tracking, trained)
    assert (source.epoch, source.gone) == (3, None)
    rows = list(maintenance.verify_rows(tracking, trained.run_id))
    assert [row["name"] for row in rows] == ["epoch_1", "epoch_2", "epoch_3", "epoch_4"]


def test_where_all_is_gone_a_run_does_not_start_again(tracking, trained):
    """Any of the tags of a commit says that it had a checkpoint."""
    shutil.rmtree(checkpoints(trained))
    tracking.client.delete_tag(trained.run_id, EPOCH_TAG)
    with pytest.raises(LookupError, match="though it had some"):
        open_source(tracking, trained)


def test_a_run_that_is_being_trained_is_not_told_to_have_lost_anything(tracking, trained):
    """What was read of its tags and of its store may be of two moments."""
    store = CheckpointStore(tracking.artifacts(trained), trained.run_id)
    before = dataclasses.replace(trained, tags={**trained.tags, MANIFEST_TAG: "b" * 64})
    from onward.opening.source import find_gone

    assert find_gone(tracking, before, store.list()) is None
    tracking.set_tags(trained.run_id, {MANIFEST_TAG: "b" * 64})
    assert find_gone(tracking, before, store.list()) is not None


OLD = dataclasses.replace(make(1), run_id=None)
FIRST = make(1)
SECOND = make(2, previous=FIRST)
THIRD = make(3, previous=SECOND)
STRAY = make(9, previous=FIRST)


@pytest.mark.parametrize(
    ("manifests", "anchor", "told"),
    [
        ([FIRST], FIRST.digest, None),
        ([FIRST], None, None),  # died between the first commit and the tag; or an earlier version
        ([FIRST, SECOND], FIRST.digest, None),  # died between the commit and the tag
        ([SECOND], FIRST.digest, None),  # and the first was pruned
        ([FIRST, THIRD], THIRD.digest, None),  # pruned between
        ([OLD], None, None),
        ([OLD, make(2, previous=OLD)], None, None),
        ([OLD, make(2, previous=OLD)], make(2, previous=OLD).digest, None),
        ([FIRST, SECOND], None, "its tag that names the newest checkpoint is gone"),
        ([FIRST, SECOND], THIRD.digest, "is gone, or is not what it was"),
        ([FIRST, SECOND, STRAY], SECOND.digest, "epoch_9 does not follow epoch_2"),
        ([FIRST, dataclasses.replace(SECOND, run_id=None, previous=None)], FIRST.digest,
         "an earlier version of this program saved it"),
    ],
)  # fmt: skip
def test_what_holds_between_checkpoints_and_the_tag(manifests, anchor, told):
    """Only the newest is held by the tag; between, any may be pruned."""
    found = find_break(manifests, manifests[-1], anchor)
    assert (found is None) if told is None else told in found


def test_an_older_one_after_damage_is_gone_on_from_in_order(tracking, trained, commit_to):
    """What follows a fallback is linked to what was gone on from."""
    shutil.rmtree(checkpoints(trained) / "epoch_4")
    again = commit_to(tracking.get_run(trained.run_id), {})
    store = CheckpointStore(tracking.artifacts(again), again.run_id)
    newest = store.list()[-1]
    assert store.linked(make(4), newest).previous == newest.digest


def test_a_key_signs_what_is_committed(tracking, record, commit_to, tmp_path, monkeypatch):
    """With the key all is good; with another, or once a byte was changed, nothing is."""
    key = tmp_path / "key"
    key.write_bytes(KEY)
    signed = make(3, key=KEY)
    require_own(signed, "r1", KEY, "epoch_3")
    require_own(signed, "r1", None, "epoch_3")
    for forged in (
        dataclasses.replace(signed, attempt=2),
        dataclasses.replace(signed, previous="a" * 64),
        dataclasses.replace(signed, hmac="a" * 64),
        dataclasses.replace(signed, hmac=None),
        make(3, key=OTHER_KEY),
    ):
        with pytest.raises(CheckpointDamaged, match="is damaged: not signed by this key"):
            require_own(forged, "r1", KEY, "epoch_3")
    assert parse_manifest(signed.to_json(), "epoch_3").hmac == signed.hmac
    assert signed.digest == dataclasses.replace(signed, hmac=None).digest


def test_with_a_key_only_what_it_signed_is_used(tracking, trained, tmp_path, monkeypatch, caplog):
    """Resume, verify, prune, export and show refuse what it has not signed."""
    key = tmp_path / "key"
    key.write_bytes(KEY)
    store = CheckpointStore(tracking.artifacts(trained), trained.run_id)
    manifests = store.list()
    before = None
    for manifest in manifests[:3]:
        before = linked(manifest, trained.run_id, before, KEY)
        change(trained, manifest.epoch, previous=before.previous, hmac=before.hmac)
    monkeypatch.setenv("TRAIN_CHECKPOINT_KEY", str(key))
    assert open_source(tracking, trained).epoch == 3
    rows = {row["name"]: row["found"] for row in maintenance.verify_rows(tracking, trained.run_id)}
    assert rows["epoch_4"] == "checkpoint epoch_4 is damaged: not signed by this key"
    assert rows["epoch_3"] == ""
    with pytest.raises(LookupError, match="has no checkpoint of epoch 4"):
        maintenance.export(tracking, trained.run_id, "4", tmp_path / "out")
    gone = maintenance.prune(tracking, trained.run_id, Retention(every=100), dry_run=False)
    assert [m.epoch for m in gone] == [1, 2], "the newest good one is the newest signed one"
    assert (checkpoints(trained) / "epoch_4").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "cannot be read: No such file"), (b"short", "has 5 bytes, and 16 to 65536"),
     (b"x" * 70_000, "is no key")],
)  # fmt: skip
def test_what_is_no_key_is_refused(tmp_path, monkeypatch, content, told):
    """Too short to keep anybody out, missing, or not meant."""
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("TRAIN_CHECKPOINT_KEY", str(file))
    with pytest.raises(UsageError, match=told):
        environment.checkpoint_key()
    monkeypatch.delenv("TRAIN_CHECKPOINT_KEY")
    assert environment.checkpoint_key() is None


def test_a_signed_run_without_the_key_is_told(tracking, trained, caplog):
    """It can be gone on with, and one line says what that means."""
    newest = read(trained, 4)
    signed = linked(
        parse_manifest(json.dumps(newest).encode(), "epoch_4"), trained.run_id, None, KEY
    )
    change(trained, 4, hmac=signed.hmac)
    assert open_source(tracking, trained).epoch == 4
    assert "are signed, and no checkpoint_key is given" in caplog.text


def test_the_list_shows_the_index(tracking, trained):
    """It is for looking only, and costs two calls."""
    assert [row["epoch"] for row in checkpoint_rows(tracking, trained.run_id)] == [1, 2, 3, 4]
