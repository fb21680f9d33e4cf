"""What is read from a store is bounded while it comes, and what was checked is what is used."""

import dataclasses
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from onward.checkpoint import store as store_module
from onward.checkpoint.format import write_checkpoint
from onward.checkpoint.manifest import MANIFEST_FILE, FileEntry
from onward.checkpoint.store import CheckpointStore
from onward.errors import CheckpointDamaged, CheckpointError, TooLarge
from onward.system.streams import Region
from onward.tracking.artifacts import Artifacts

MEGABYTE = b"\0" * (1 << 20)


class Endless(BaseHTTPRequestHandler):
    """A server of artifacts that answers every GET with bytes until the reader goes away."""

    max_bytes, num_sent = 1 << 30, 0

    def do_GET(self):
        """Send up to `max_bytes`."""
        self.send_response(200)
        self.end_headers()
        kind = type(self)
        try:
            while kind.num_sent < self.max_bytes:
                self.wfile.write(MEGABYTE)
                kind.num_sent += len(MEGABYTE)
        except OSError:
            pass

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def endless():
    """Return (kind of the handler, artifacts behind it)."""
    kind = type("", (Endless,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    yield kind, Artifacts("mlflow-artifacts:/0/r/artifacts", address)
    server.shutdown()
    server.server_close()


def test_a_download_over_http_is_cut_at_its_limit(endless, tmp_path):
    """A file without end costs the limit and what the sockets hold, and leaves nothing."""
    kind, artifacts = endless
    with pytest.raises(TooLarge, match="more than 1,000 bytes"):
        artifacts.download("checkpoints/index.json", tmp_path / "got", 1000)
    assert kind.num_sent < 64 << 20
    assert not (tmp_path / "got").exists()


@pytest.fixture
def write(tmp_path, make_checkpoint):
    """Return a function that writes the checkpoint of an epoch to the local disk."""

    def write(epoch):
        folder = tmp_path / "spool" / f"epoch_{epoch}"
        content = make_checkpoint(epoch)
        return folder, write_checkpoint(folder, content, attempt=1, kept=True, metrics={})

    return write


class Growing:
    """A repository of MLflow's kind, whose listing says one size and whose file has another."""

    def __init__(self, listed, chunks):
        self.listed, self.chunks, self.calls = listed, chunks, 0

    def list_artifacts(self, path=None):
        """Return the one file there is."""
        from mlflow.entities import FileInfo

        return [FileInfo(f"{path}/file", False, self.listed)]

    def _download_file(self, remote, local):
        self.calls += 1
        with open(local, "wb") as file:
            for chunk in self.chunks(local):
                file.write(chunk)
                file.flush()


def behind(tmp_path, repository):
    """Return artifacts that are neither a folder nor behind MLflow's server."""
    artifacts = Artifacts(str(tmp_path / "store"))
    artifacts.folder, artifacts._repository = None, repository
    return artifacts


def test_what_a_listing_calls_too_large_is_not_fetched(tmp_path):
    """Other stores are asked for the size first."""
    repository = Growing(1001, lambda local: [])
    with pytest.raises(TooLarge, match="'data/file'"):
        behind(tmp_path, repository).download("data/file", tmp_path / "got", 1000)
    assert repository.calls == 0


def test_a_file_that_grows_past_its_limit_is_given_up(tmp_path):
    """A listing may lie, or the file change after it."""

    def chunks(local):
        while Path(local).exists():  # until it is given up
            yield MEGABYTE[:4000]

    with pytest.raises(TooLarge):
        behind(tmp_path, Growing(10, chunks)).download("data/file", tmp_path / "got", 1000)
    assert not (tmp_path / "got").exists()


def test_a_download_tells_the_hash_of_what_it_wrote(tmp_path):
    """What is compared with a manifest are the bytes that were put here, not those there now."""
    root = tmp_path / "store"
    (root / "a").mkdir(parents=True)
    (root / "a" / "b").write_bytes(b"content")
    for artifacts in (Artifacts(str(root)), behind(tmp_path, Growing(7, lambda _: [b"content"]))):
        found = artifacts.download("a/b" if artifacts.folder else "a/file", tmp_path / "got", 7)
        assert found == hashlib.sha256(b"content").hexdigest()
        assert (tmp_path / "got").read_bytes() == b"content"


def test_a_download_into_a_piece_of_a_file_touches_nothing_else_of_it(tmp_path):
    """Parts that arrive at the same time go into one file, and none reaches into the next."""
    root, got = tmp_path / "store", tmp_path / "got"
    (root / "a").mkdir(parents=True)
    (root / "a" / "b").write_bytes(b"content")
    for artifacts in (Artifacts(str(root)), behind(tmp_path, Growing(7, lambda _: [b"content"]))):
        path = "a/b" if artifacts.folder else "a/file"
        got.write_bytes(b"." * 12)
        with got.open("r+b") as file:
            place = Region(file, 3, threading.Lock())
            for _again in range(2):
                found = artifacts.download(path, place, 7)
                assert (found, place.num_bytes) == (hashlib.sha256(b"content").hexdigest(), 7)
            with pytest.raises(TooLarge):
                artifacts.download(path, Region(file, 0, threading.Lock()), 6)
        assert got.read_bytes() == b"...content.."


def test_a_local_file_is_copied_not_shared(tmp_path):
    """Whoever may write to the store cannot change, or cut off, what was read from it."""
    root = tmp_path / "store"
    (root / "a").mkdir(parents=True)
    (root / "a" / "b").write_bytes(b"content")
    Artifacts(str(root)).download("a/b", tmp_path / "got", 7)
    (root / "a" / "b").write_bytes(b"CHANGED")
    assert (tmp_path / "got").read_bytes() == b"content"
    with pytest.raises(TooLarge):
        Artifacts(str(root)).download("a/b", tmp_path / "got", 6)


def test_a_checkpoint_changed_after_its_check_is_the_one_that_was_checked(
    artifacts, write, tmp_path, monkeypatch
):
    """Between hashing and loading nobody can put other weights in place, or end the process."""
    store = CheckpointStore(artifacts, "r1")
    folder, manifest = write(1)
    store.put(folder, manifest)
    path = artifacts.root / "checkpoints" / "epoch_1" / "checkpoint.pth"
    load = store_module.load_content

    def change_and_load(*arguments):
        with open(path, "r+b") as file:
            file.truncate(0)
        return load(*arguments)

    monkeypatch.setattr(store_module, "load_content", change_and_load)
    content = store.get(manifest)
    assert torch.equal(content.parts["model"]["weight"], torch.full((3,), 1.0))


@pytest.mark.parametrize("remote", [False, True])
def test_a_file_longer_than_its_manifest_says_is_damage(artifacts, calls, write, tmp_path, remote):
    """No more of it comes than the manifest promised."""
    store = CheckpointStore(type(artifacts)(artifacts.root, calls, is_remote=remote), "r1")
    folder, manifest = write(1)
    store.put(folder, manifest)
    path = artifacts.root / "checkpoints" / "epoch_1" / "checkpoint.pth"
    with open(path, "ab") as file:
        file.truncate(path.stat().st_size + (1 << 30))
    with pytest.raises(CheckpointDamaged, match=r"checkpoint\.pth has more than [\d,]+ bytes"):
        store.get(manifest)
    assert not list((tmp_path / "got").glob("*.pth"))


@pytest.mark.parametrize("name", ["index.json", f"epoch_2/{MANIFEST_FILE}"])
def test_an_index_or_manifest_without_end_is_nothing(artifacts, write, tmp_path, name):
    """16 MiB are the most that is fetched of them."""
    store = CheckpointStore(artifacts, "r1")
    for epoch in (1, 2):
        store.put(*write(epoch))
    path = artifacts.root / "checkpoints" / name
    with open(path, "ab") as file:
        file.truncate(1 << 32)
    expected = [1, 2] if name == "index.json" else [1]
    assert [m.epoch for m in store.list()] == expected


def test_a_checkpoint_that_the_disk_cannot_hold_is_not_begun(artifacts, write, tmp_path):
    """A manifest may promise any size: the room is looked at before the first byte."""
    store = CheckpointStore(artifacts, "r1")
    folder, manifest = write(1)
    store.put(folder, manifest)
    files = (FileEntry("checkpoint.pth", 1 << 60, "a" * 64),)
    huge = dataclasses.replace(manifest, files=files)
    stored = artifacts.root / "checkpoints" / "epoch_1" / MANIFEST_FILE
    stored.unlink()
    stored.write_text(json.dumps(huge.to_dict()))
    with pytest.raises(CheckpointError, match=r"1152921\.5 TB") as caught:
        store.get(huge)
    assert not isinstance(caught.value, CheckpointDamaged), "no older one is taken for it unasked"


def junk(artifacts, name):
    """Put in place of a stored checkpoint.pth what is none, with a manifest that agrees."""
    folder = artifacts.root / "checkpoints" / name
    (folder / "checkpoint.pth").unlink()
    (folder / "checkpoint.pth").write_bytes(b"junk")
    document = json.loads((folder / MANIFEST_FILE).read_bytes())
    for entry in document["files"]:
        if entry["path"] == "checkpoint.pth":
            entry |= {"bytes": 4, "sha256": hashlib.sha256(b"junk").hexdigest()}
    (folder / MANIFEST_FILE).unlink()
    (folder / MANIFEST_FILE).write_text(json.dumps(document))


def test_junk_with_the_right_hash_is_damaged(artifacts, write, tmp_path):
    """To verify is to load, too: a manifest is as easily written as the file."""
    store = CheckpointStore(artifacts, "r1")
    store.put(*write(1))
    junk(artifacts, "epoch_1")
    with pytest.raises(CheckpointDamaged, match="it is plain text"):
        store.check("epoch_1", tmp_path / "got")


@pytest.mark.parametrize("name", ["index.json", f"epoch_2/{MANIFEST_FILE}"])
def test_a_document_that_is_nested_without_end_is_nothing(artifacts, write, name):
    """It ends no command: the index is derived, and a manifest that is none commits nothing."""
    store = CheckpointStore(artifacts, "r1")
    for epoch in (1, 2):
        store.put(*write(epoch))
    path = artifacts.root / "checkpoints" / name
    path.unlink(missing_ok=True)
    path.write_text('{"checkpoints": ' + "[" * 20_000 + "]" * 20_000 + "}")
    assert [m.epoch for m in store.list()] == ([1, 2] if name == "index.json" else [1])


@pytest.mark.parametrize(
    "history",
    [[1], {"a": 1}, {"a": torch.ones(3)}, {"a": torch.full((1, 3), float("inf"))}, {"a": None}],
    ids=str,
)
def test_a_history_that_is_none_is_damage(artifacts, make_checkpoint, tmp_path, history):
    """It is read before anything is published, by fork and sync too: `verify` finds it."""
    store = CheckpointStore(artifacts, "r1")
    folder = tmp_path / "epoch_1"
    content = make_checkpoint(1, history=history)
    manifest = write_checkpoint(folder, content, attempt=1, kept=True, metrics={})
    store.put(folder, manifest)
    with pytest.raises(CheckpointDamaged, match="what it holds cannot be read"):
        store.check("epoch_1", tmp_path / "got")
