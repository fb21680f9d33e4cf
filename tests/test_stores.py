"""What stores do that a folder does not: refuse, raise for what is absent, count bytes."""

import json
import logging
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

import azure_sdk
import mlflow
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.store.artifact import artifact_repository_registry
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
from onward.tracking import models
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


# --- SFTP -------------------------------------------------------------------------------------


class Leaving(LocalArtifactRepository):
    """As MLflow's for SFTP and FTP: where there is no file it leaves an empty one."""

    def __init__(self, artifact_uri, *_args, **_options):
        super().__init__(urlparse(artifact_uri).path)

    def _download_file(self, remote_file_path, local_path):
        Path(local_path).touch()
        super()._download_file(remote_file_path, local_path)


def test_a_model_is_loaded_back_by_its_run_where_a_client_leaves_files(
    tracking, tmp_path, monkeypatch
):
    """MLflow looks among the run's files first, and then could not make the model's folder."""
    kinds = artifact_repository_registry._artifact_repository_registry._registry
    monkeypatch.setitem(kinds, "sftp", Leaving)
    experiment = tracking.client.create_experiment("far", f"sftp://host{tmp_path}/far")
    record = tracking.create_run(experiment, "", {})
    content = tmp_path / "content"
    content.mkdir()
    (content / "weights").write_text("3")
    served = models.ServedModel("", loader="train.tabular.pyfunc")
    models.log_model(tracking, record, content, served, [], {})
    got = mlflow.artifacts.download_artifacts(f"runs:/{record.run_id}/model")
    assert (Path(got) / "data" / "content" / "weights").read_text() == "3"
    assert (Path(got) / "MLmodel").read_text().count("model_id") == 1


# --- an object store behind MLflow's server -----------------------------------------------------


@pytest.fixture
def behind_server():
    """A server that answers 500 `failures` times before it sends a file; a list of what it has."""

    class Handler(BaseHTTPRequestHandler):
        files, failures, asked = {}, 0, []

        def do_GET(self):
            kind = type(self)
            name = self.path.partition("?")[0].rsplit("/", 1)[1]
            kind.asked.append(name)
            if "?" in self.path:
                told = [{"path": n, "is_dir": False, "file_size": 1} for n in kind.files]
                return self.answer(200, json.dumps({"files": told}).encode())
            if name not in kind.files or kind.asked.count(name) <= kind.failures:
                return self.answer(500, b"An error occurred (404) when calling HeadObject")
            return self.answer(200, kind.files[name])

        def answer(self, status, body):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Handler.uri = f"http://127.0.0.1:{server.server_port}/api/2.0/mlflow-artifacts/artifacts/0"
    yield Handler
    server.shutdown()
    server.server_close()


def test_what_is_absent_behind_a_server_is_not_asked_for_again(behind_server, tmp_path):
    """MLflow's own tries take six seconds for each checkpoint that a killed upload has left."""
    with pytest.raises(FileNotFoundError):
        Artifacts(behind_server.uri).download("manifest.json", tmp_path / "got", 99)
    assert behind_server.asked == ["manifest.json", "artifacts"]


def test_what_is_there_behind_a_server_is_asked_for_again(behind_server, tmp_path):
    """One 500 is no reason to do without it."""
    behind_server.files, behind_server.failures = {"manifest.json": b"{}"}, 1
    Artifacts(behind_server.uri).download("manifest.json", tmp_path / "got", 99)
    assert (tmp_path / "got").read_bytes() == b"{}"
