"""What stores do that a folder does not: refuse, raise for what is absent, count bytes."""

import json
import logging
import math
from pathlib import Path

import azure_sdk
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from support import attempt_of

from onward.checkpoint import listed
from onward.checkpoint.format import write_checkpoint
from onward.checkpoint.manifest import MANIFEST_FILE
from onward.checkpoint.policy import Retention
from onward.checkpoint.spool import Spool
from onward.checkpoint.store import CheckpointStore
from onward.errors import CheckpointDamaged, StoreUnavailable
from onward.publish.publisher import Publisher
from onward.tracking.artifacts import Artifacts


class Remote(Artifacts):
    """A store that passes for none of this machine; `repository` is as MLflow's own are."""

    def __init__(self, root, repository=LocalArtifactRepository):
        super().__init__(str(root))
        self.root = Path(root)
        self._repository = repository(str(root))
        self.folder = None


@pytest.fixture
def write(tmp_path, make_checkpoint):
    """Return a function that writes a checkpoint whose weights are `value`."""

    def write(epoch, value=0.0, attempt=1, part_bytes=1 << 20):
        content = make_checkpoint(epoch, model_state_dict={"weight": torch.full((3,), value)})
        folder = tmp_path / f"spool_{attempt}" / f"epoch_{epoch}"
        return folder, write_checkpoint(
            folder, content, attempt=attempt, kept=False, metrics={}, part_bytes=part_bytes
        )

    return write


def weight(store, manifest, folder):
    return store.get(manifest).parts["model"]["weight"][0].item()


# --- Azure ------------------------------------------------------------------------------------


@pytest.fixture
def blobs(monkeypatch):
    """Azure's answers, by MLflow's own repository."""
    return azure_sdk.install(monkeypatch)


def test_deleting_what_is_absent_is_done(blobs, tmp_path):
    """MLflow's repository for Azure raises there; what is there is deleted, and nothing else."""
    artifacts = Artifacts(azure_sdk.URI)
    for name in ("epoch_1", "epoch_10"):
        file = tmp_path / "a.txt"
        file.write_text("a")
        artifacts.upload(file, f"checkpoints/{name}")
    with pytest.raises(MlflowException, match="No such file"):
        artifacts._repository.delete_artifacts("checkpoints/epoch_2")
    for path in ("checkpoints/epoch_2", "checkpoints/epoch_1/b.txt", "nowhere/c", "d"):
        artifacts.delete(path)
    assert artifacts.list("checkpoints") == ["epoch_1", "epoch_10"]
    artifacts.delete("checkpoints/epoch_1")
    artifacts.delete("checkpoints/epoch_1")
    assert artifacts.list("checkpoints") == ["epoch_10"]


def test_what_a_killed_upload_left_blocks_nobody(blobs, write, tmp_path):
    """The next attempt writes the same name, however either of them was cut."""

    def die():
        if blobs.content:
            raise StoreUnavailable("the process was killed")

    first = CheckpointStore(Artifacts(azure_sdk.URI), "r1")
    with pytest.raises(StoreUnavailable, match="killed"):
        first.put(*write(1, 1.0, part_bytes=700), check_lease=die)
    assert blobs.content
    store = CheckpointStore(Artifacts(azure_sdk.URI), "r1")
    assert store.list() == []
    folder, manifest = write(1, 2.0, attempt=2)
    store.put(folder, manifest)
    assert store.list() == [manifest]
    assert weight(store, manifest, tmp_path / "got") == 2


# --- a file that grows ------------------------------------------------------------------------


def test_of_a_file_that_grows_only_what_was_told_goes_up(tmp_path):
    """A length is told before the bytes are read: what is added in between is not sent, since a
    server would take it for the beginning of the next request."""
    log_file = tmp_path / "spool" / "attempt_1.log"
    log_file.parent.mkdir()
    log_file.write_text("a line\n")
    sent = []

    class Counting(LocalArtifactRepository):
        def log_artifact(self, local_file, artifact_path=None):
            told = Path(local_file).stat().st_size
            with log_file.open("a") as writer:
                writer.write("another, of another thread\n")
            sent.append((Path(local_file).name, told, Path(local_file).read_bytes()))

    store = CheckpointStore(Remote(tmp_path / "artifacts", Counting), "r1")
    store.upload(log_file, "logs")
    assert sent == [("attempt_1.log", 7, b"a line\n")]
    assert [p.name for p in log_file.parent.iterdir()] == ["attempt_1.log"]


# --- a store that refuses to delete -----------------------------------------------------------


class Undeletable(LocalArtifactRepository):
    """Takes everything, and deletes nothing, as MLflow's repository for abfss:// does."""

    num_refused = 0

    def delete_artifacts(self, artifact_path=None):
        Undeletable.num_refused += 1
        raise NotImplementedError("This artifact repository does not support deleting artifacts")


@pytest.fixture
def undeletable(tmp_path):
    Undeletable.num_refused = 0
    return Remote(tmp_path / "artifacts", Undeletable)


@pytest.fixture
def publisher(tracking, record, undeletable, tmp_path):
    store = CheckpointStore(undeletable, record.run_id)
    spool = Spool(tmp_path / "spool_1", 1)
    return Publisher(attempt_of(tracking, record.run_id), store, spool, Retention())


def test_publishing_does_not_wait_for_what_is_refused(
    publisher, write, tracking, record, undeletable, caplog
):
    """Every epoch arrives, is pointed to and listed; that the others stay is told once."""
    for epoch in range(1, 8):
        publisher.commit(write(epoch)[1])
    assert tracking.get_run(record.run_id).tags["train.epoch"] == "7"
    store = CheckpointStore(undeletable, record.run_id)
    assert [m.epoch for m in store.list()] == list(range(1, 8))
    [told] = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "does not support deleting" in told
    assert told.endswith("Training and publishing go on without it")
    assert Undeletable.num_refused <= 3, "it was asked again at every epoch"


def test_a_store_that_deletes_again_is_pruned_at_the_end(publisher, write, undeletable, tmp_path):
    """What was refused for a while is not left behind."""
    for epoch in range(1, 4):
        publisher.commit(write(epoch)[1])
    undeletable._repository = LocalArtifactRepository(str(undeletable.root))
    publisher.tidy()
    assert [m.epoch for m in publisher.store.list()] == [3]
    assert publisher.manifests == publisher.store.list()


def test_the_end_of_a_run_does_not_wait_either(publisher, write, undeletable):
    """With nothing but refusals, `tidy` is over, and may be called again."""
    for epoch in range(1, 4):
        publisher.commit(write(epoch)[1])
    publisher.tidy()
    publisher.tidy()
    assert [m.epoch for m in publisher.manifests] == [1, 2, 3]


@pytest.mark.parametrize("num_files", range(4))
def test_a_name_that_cannot_be_deleted_is_written_again_all_the_same(
    write, undeletable, tmp_path, num_files
):
    """Its manifest is replaced by one that lists nothing, before any other byte is: killed after
    whatever file, there is no checkpoint of other bytes (invariant 1)."""
    first = CheckpointStore(undeletable, "r1")
    _, old = write(1, 1.0)
    first.put(tmp_path / "spool_1" / "epoch_1", old)
    first.write_index(listed.to_text([old]), tmp_path)
    folder, new = write(1, 2.0, attempt=2)
    checks = iter(range(num_files))

    def die():
        if next(checks, None) is None:
            raise StoreUnavailable("the process was killed")

    store = CheckpointStore(undeletable, "r1")
    assert store.list() == [old]
    (undeletable.root / "checkpoints" / "index.json").unlink()
    if num_files < 3:
        with pytest.raises(StoreUnavailable, match="killed"):
            store.put(folder, new, check_lease=die)
        assert CheckpointStore(undeletable, "r1").list() == ([old] if num_files == 0 else [])
    again = CheckpointStore(undeletable, "r1")
    again.list()
    again.put(folder, new)
    assert again.list() == [new]
    assert weight(again, new, tmp_path / "got") == 2


def test_a_voided_manifest_is_none(write, undeletable, tmp_path):
    """`train verify` shows what is left there as uncommitted, not as damaged."""
    store = CheckpointStore(undeletable, "r1")
    folder, manifest = write(1, 1.0)
    store.put(folder, manifest)
    store._clear(manifest)
    assert store.check("epoch_1", tmp_path / "checked") is None
    with pytest.raises(CheckpointDamaged, match=r"manifest.json is missing"):
        store.fetch(manifest, tmp_path / "got")
    void = undeletable.root / "checkpoints" / "epoch_1" / MANIFEST_FILE
    assert json.loads(void.read_text()) == {"deleted": True}


@pytest.mark.parametrize("what", ["log", "page", "index"])
def test_a_file_that_only_people_look_at_holds_nothing_up(
    tracking, record, write, tmp_path, caplog, what
):
    """A store that refuses one of them gets all the others; it is told once."""
    refused = {"log": "attempt_1.log", "page": "index.html", "index": "index.json"}[what]

    class Picky(LocalArtifactRepository):
        def log_artifact(self, local_file, artifact_path=None):
            if Path(local_file).name == refused:
                raise MlflowException("413 Client Error: Request Entity Too Large")
            super().log_artifact(local_file, artifact_path)

    store = CheckpointStore(Remote(tmp_path / "artifacts", Picky), record.run_id)
    spool = Spool(tmp_path / "spool_1", 1)
    publisher = Publisher(attempt_of(tracking, record.run_id), store, spool, Retention())
    for epoch in (1, 2):
        publisher.commit(write(epoch)[1])
        spool.log_file.write_text("a line\n")
        publisher.upload_log()
        publisher.show()
    assert tracking.get_run(record.run_id).tags["train.epoch"] == "2"
    assert store.list()[-1].epoch == 2
    [told] = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert refused in told


def test_a_store_that_is_away_is_waited_for(tracking, record, write, artifacts, calls, tmp_path):
    """What fails since nothing answers is done again later, as everything is."""
    store = CheckpointStore(artifacts, record.run_id)
    spool = Spool(tmp_path / "spool_1", 1)
    publisher = Publisher(attempt_of(tracking, record.run_id), store, spool, Retention())
    publisher.commit(write(1)[1])
    spool.log_file.write_text("a line\n")
    calls.arm(0)
    with pytest.raises(StoreUnavailable, match="on purpose"):
        publisher.upload_log()
    calls.arm(0, num_failing=1)
    publisher.upload_log()
    assert artifacts.list("logs") == ["attempt_1.log"]
    assert math.isinf(publisher._prune_at)
