"""Checkpoints go up in parts as large as the way to the store takes them."""

import logging
import warnings
from pathlib import Path

import pytest
import requests
import torch
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from support import attempt_of
from urllib3.exceptions import InsecureRequestWarning

from onward.checkpoint import parts
from onward.checkpoint.format import PART_BYTES, write_checkpoint
from onward.checkpoint.parts import PartSize
from onward.checkpoint.policy import Retention
from onward.checkpoint.spool import Spool
from onward.checkpoint.store import CheckpointStore
from onward.checkpoint.transfers import retried
from onward.errors import CheckpointDamaged, RequestTooLarge, StoreUnavailable
from onward.publish.publisher import Publisher
from onward.tracking.artifacts import Artifacts
from onward.tracking.client import Tracking

MIB = 1 << 20


@pytest.mark.parametrize(
    ("num_bytes", "seconds", "expected"),
    [
        (256 * MIB, 0.5, 256 * MIB),
        (256 * MIB, 20, 256 * MIB),  # 13 MiB/s is no slow way
        (200_000, 0.9, 256 * MIB),  # too short to tell
        (160 * MIB, 160, 8 * MIB),
        (160 * MIB, 16, 256 * MIB),
        (256 * MIB, 40, 64 * MIB),
        (MIB, 600, MIB),  # the floor
    ],
)
def test_a_slow_way_makes_small_parts(num_bytes, seconds, expected):
    """About ten seconds each; on a fast one they stay what they are."""
    size = PartSize()
    size.took(num_bytes, seconds)
    assert size.bytes == expected
    size.took(512 * MIB, 1.1)
    assert size.bytes == expected, "one size for the whole run"


def test_what_is_refused_is_halved_down_to_a_floor(caplog):
    """Each refusal of the size in force halves it, and names nginx's setting."""
    size, tried = PartSize(), 3_000_000
    sizes = []
    while size.refused(tried):
        tried = size.bytes
        sizes.append(tried)
    assert sizes == [2 * MIB, MIB, MIB // 2, MIB // 4]
    [told] = [r.getMessage() for r in caplog.records]
    assert "client_max_body_size" in told


class Gateway(LocalArtifactRepository):
    """Takes files up to a size."""

    limit = 300_000
    taken: list

    def log_artifact(self, local_file, artifact_path=None):
        size = Path(local_file).stat().st_size
        if size > self.limit:
            raise OSError("413 Client Error: Request Entity Too Large for url: http://x")
        self.taken.append((Path(local_file).name, size))
        super().log_artifact(local_file, artifact_path)


@pytest.fixture
def remote(tmp_path):
    """A store behind a gateway."""
    artifacts = Artifacts(str(tmp_path / "artifacts"))
    artifacts._repository = Gateway(str(tmp_path / "artifacts"))
    artifacts._repository.taken = []
    artifacts.folder = None
    return artifacts


@pytest.fixture
def write(tmp_path, make_checkpoint):
    """Return a function that writes a checkpoint of a megabyte to the spool."""

    def write(epoch, part_bytes=PART_BYTES):
        draw = torch.Generator().manual_seed(epoch)
        weights = {"weight": torch.rand(300_000, generator=draw)}
        content = make_checkpoint(epoch, model_state_dict=weights, history={})
        folder = tmp_path / "spool" / f"epoch_{epoch}"
        return content, write_checkpoint(
            folder, content, attempt=1, kept=True, metrics={}, part_bytes=part_bytes
        )

    return write


def test_a_checkpoint_that_is_refused_is_cut_and_commits(
    remote, write, tracking, record, tmp_path, caplog
):
    """What is read back is what was written; the next is cut so from the beginning; told once."""
    store = CheckpointStore(remote, record.run_id)
    spool = Spool(tmp_path / "spool", 1)
    publisher = Publisher(attempt_of(tracking, record.run_id), store, spool, Retention())
    for epoch in (1, 2):
        content, manifest = write(epoch)
        publisher.commit(manifest)
        publisher.commit(manifest)
        [stored] = [m for m in store.list() if m.epoch == epoch]
        assert stored.is_same(manifest)
        assert stored != manifest
        assert max(entry.bytes for entry in stored.files) <= 262_144
        got = store.get(stored)
        weight = content["model_state_dict"]["weight"]
        assert torch.equal(got.parts["model"]["weight"], weight)
        spool.remove(manifest.name)
    names = [name for name, _ in remote._repository.taken]
    assert names.count("part-00000") == 2, "something went up twice"
    assert store.uploads.part_size.bytes == 262_144
    assert [r.levelno for r in caplog.records].count(logging.WARNING) == 1
    assert list(spool.folder.glob("epoch_*")) == []
    tags = tracking.get_run(record.run_id).tags
    assert tags["mlflow.latest_checkpoint_artifact"] == "checkpoints/epoch_2/checkpoint.pth"


def test_one_that_is_cut_goes_on_where_an_outage_left_it(remote, write, tmp_path, monkeypatch):
    """It is not cut again, and what is there is not sent again."""
    store = CheckpointStore(remote, "r1")
    _, manifest = write(1)
    checks = iter(range(9))
    monkeypatch.setattr("onward.checkpoint.uploads.NUM_TRANSFERS", 1)

    def die():
        if next(checks, None) is None:
            raise StoreUnavailable("away")

    folder = tmp_path / "spool" / "epoch_1"
    with pytest.raises(StoreUnavailable, match="away"):
        store.put(folder, manifest, check_lease=die)
    assert remote._repository.taken
    stored = store.put(folder, manifest)
    assert CheckpointStore(remote, "r1").list() == [stored]
    names = [name for name, _ in remote._repository.taken]
    assert sorted(names) == sorted({*names}), "something went up twice"


def test_a_limit_below_the_floor_is_told(remote, write, tmp_path):
    """With the setting that is to be changed."""
    Gateway.limit, before = 1000, Gateway.limit
    try:
        store = CheckpointStore(remote, "r1")
        with pytest.raises(RequestTooLarge, match="client_max_body_size"):
            store.put(tmp_path / "spool" / "epoch_1", write(1)[1])
    finally:
        Gateway.limit = before
    assert store.list() == []


def test_damaged_bytes_are_not_cut_into_good_ones(remote, write, tmp_path):
    """A new manifest never vouches for bytes that the first one would not."""
    _, manifest = write(1)
    file = tmp_path / "spool" / "epoch_1" / "checkpoint.pth"
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointDamaged):
        CheckpointStore(remote, "r1").put(file.parent, manifest)


class Clock:
    """Tells the time that the store's answers take."""

    now = 0.0

    def monotonic(self):
        return self.now


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_part_whose_answer_was_lost_is_looked_for(remote, write, tmp_path, monkeypatch, is_cut):
    """It is not sent again where it has arrived; a name that held something is not trusted so."""
    clock = Clock()
    monkeypatch.setattr(parts, "time", clock)
    sent = []

    class Lossy(LocalArtifactRepository):
        def log_artifact(self, local_file, artifact_path=None):
            sent.append(Path(local_file).name)
            super().log_artifact(local_file, artifact_path)
            if len(sent) == 1:
                clock.now += 20
                raise OSError("the answer was lost")

    remote._repository = Lossy(str(tmp_path / "artifacts"))
    monkeypatch.setattr("onward.checkpoint.uploads.NUM_TRANSFERS", 1)
    store = CheckpointStore(remote, "r1")
    _, manifest = write(1, 400_000)
    folder = tmp_path / "spool" / "epoch_1"
    if is_cut:  # as if deleting had been refused there
        store._names.add("epoch_1")
        monkeypatch.setattr(store, "_clear", lambda name: False)
    store.put(folder, manifest)
    assert sent.count("part-00000") == (2 if is_cut else 1)
    assert store.list() == [manifest]


@pytest.mark.parametrize("passes", [600_000, 300_000])
def test_what_breaks_off_again_and_again_is_cut(remote, write, tmp_path, monkeypatch, passes):
    """Connections that break after so many bytes, wherever that is, keep no checkpoint out."""
    sent = []

    class Breaking(LocalArtifactRepository):
        def log_artifact(self, local_file, artifact_path=None):
            sent.append(Path(local_file).stat().st_size)
            if sent[-1] > passes:
                raise OSError("Connection broken")
            super().log_artifact(local_file, artifact_path)

    remote._repository = Breaking(str(tmp_path / "artifacts"))
    store = CheckpointStore(remote, "r1")
    content, manifest = write(1)
    stored = store.put(tmp_path / "spool" / "epoch_1", manifest)
    got = store.get(stored)
    assert torch.equal(got.parts["model"]["weight"], content["model_state_dict"]["weight"])
    assert sum(size > passes for size in sent) < 16


def test_a_store_that_is_away_cuts_nothing(remote, write, tmp_path, monkeypatch):
    """Where it does not answer at all, nothing is too large."""
    store = CheckpointStore(remote, "r1")

    def away(*_args, **_options):
        raise StoreUnavailable("away")

    monkeypatch.setattr(remote, "upload", away)
    monkeypatch.setattr(remote, "size", away)
    _, manifest = write(1)
    with pytest.raises(StoreUnavailable):
        store.put(tmp_path / "spool" / "epoch_1", manifest)
    assert store.uploads.part_size.bytes == PART_BYTES


def test_what_takes_minutes_is_cut_and_not_sent_again(remote, write, tmp_path, monkeypatch):
    """A store slower than the client's patience gets smaller parts in place of the same bytes."""
    clock = Clock()
    monkeypatch.setattr(parts, "time", clock)
    monkeypatch.setattr(parts, "MIN_SLOW_BYTES", 100_000)
    sent = []

    class Slow(LocalArtifactRepository):
        def log_artifact(self, local_file, artifact_path=None):
            size = Path(local_file).stat().st_size
            sent.append(size)
            clock.now += min(size / 10_000, 120)
            if size / 10_000 >= 120:
                raise OSError("read timed out")
            super().log_artifact(local_file, artifact_path)

    remote._repository = Slow(str(tmp_path / "artifacts"))
    monkeypatch.setattr("onward.checkpoint.uploads.NUM_TRANSFERS", 1)
    store = CheckpointStore(remote, "r1")
    content, manifest = write(1)
    stored = store.put(tmp_path / "spool" / "epoch_1", manifest)
    assert [size for size in sent if size > 1_000_000] == sent[:1]
    got = store.get(stored)
    assert torch.equal(got.parts["model"]["weight"], content["model_state_dict"]["weight"])


@pytest.mark.parametrize(("asked", "waited"), [("7", 7.0), ("3600", 30.0), ("soon", None)])
def test_what_a_server_asks_to_wait_is_waited_up_to_a_limit(tmp_path, pauses, asked, waited):
    """Retry-After, in seconds; an hour is not slept through."""
    answers = [429]

    class Busy(LocalArtifactRepository):
        def log_artifact(self, local_file, artifact_path=None):
            if answers:
                answer = requests.Response()
                answer.status_code, answer.headers["Retry-After"] = answers.pop(), asked
                answer.raise_for_status()
            super().log_artifact(local_file, artifact_path)

    artifacts = Artifacts(str(tmp_path / "artifacts"))
    artifacts._repository, artifacts.folder = Busy(str(tmp_path / "artifacts")), None
    file = tmp_path / "a.txt"
    file.write_text("a")
    retried(lambda: artifacts.upload(file, "logs", give_away=True))
    assert artifacts.list("logs") == ["a.txt"]
    [pause] = pauses
    assert pause == waited if waited else pause < 1


def test_a_warning_of_the_connection_is_shown_once(tracking):
    """A certificate that is not checked is said once, not at each request."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", InsecureRequestWarning)  # as urllib3 does
        Tracking()
        with warnings.catch_warnings(record=True) as seen:
            for line in range(1, 74):
                warnings.warn_explicit("Unverified", InsecureRequestWarning, "x.py", line)
    assert len(seen) == 1


@pytest.mark.usefixtures("one_at_a_time")
def test_a_cut_upload_that_died_is_begun_anew(remote, write, tmp_path, monkeypatch):
    """Of what went up before it was cut nothing is left there, so that nothing counts as there."""
    content, manifest = write(1)
    folder, checks = tmp_path / "spool" / "epoch_1", iter(range(9))

    def die():
        if next(checks, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CheckpointStore(remote, "r1").put(folder, manifest, check_lease=die)
    assert (tmp_path / "artifacts" / "checkpoints" / "epoch_1" / "checkpoint.pth").is_dir()
    monkeypatch.setattr(Gateway, "limit", 1 << 30)  # by the next process whole files may go up
    store = CheckpointStore(remote, "r1")
    assert store.list() == []
    stored = store.put(folder, manifest)
    got = store.get(stored)
    assert torch.equal(got.parts["model"]["weight"], content["model_state_dict"]["weight"])


def test_an_index_that_is_refused_keeps_nothing_from_being_pruned(
    remote, tracking, record, tmp_path, make_checkpoint, monkeypatch
):
    """It goes, too: listings read the manifests themselves."""
    spool, store = Spool(tmp_path / "spool", 1), CheckpointStore(remote, record.run_id)
    publisher = Publisher(attempt_of(tracking, record.run_id), store, spool, Retention())
    store_one = Gateway.log_artifact

    def refuse_index(self, local_file, artifact_path=None):
        if Path(local_file).name == "index.json":
            raise OSError("413 Client Error: Request Entity Too Large for url: http://x")
        store_one(self, local_file, artifact_path)

    for epoch in (1, 2, 3):
        content, path = make_checkpoint(epoch), spool.path(f"epoch_{epoch}")
        publisher.commit(write_checkpoint(path, content, attempt=1, kept=False, metrics={}))
        monkeypatch.setattr(Gateway, "log_artifact", refuse_index)
    publisher.tidy()
    assert [m.epoch for m in store.list()] == [3]
    assert not (tmp_path / "artifacts" / "checkpoints" / "index.json").exists()
