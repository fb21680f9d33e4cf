"""What an attempt left on this disk is published once, and only while nobody has overtaken it."""

import hashlib
import json
from pathlib import Path

import pytest
from support import attempt_of

from onward.attempts import attempt
from onward.attempts.attempt import Attempt
from onward.checkpoint.format import write_checkpoint
from onward.checkpoint.manifest import checkpoint_name
from onward.checkpoint.policy import Retention
from onward.checkpoint.spool import JOURNAL_FILE, RunFolder
from onward.errors import StoreUnavailable, Superseded
from onward.metrics import History, Point
from onward.opening.begin import Opening
from onward.opening.maintenance import verify_rows
from onward.opening.source import find_source, open_store
from onward.opening.waiting import publish_waiting, waiting_runs
from onward.options.request import Launch
from onward.publish.publisher import Publisher
from onward.system import environment
from onward.terminal.report import Reporter
from onward.tracking.names import HOST_TAG, LATEST_CHECKPOINT_TAG, OPTIONS_TAG
from train.kind import find_task
from train.tabular.options import Config

TABLE = find_task()


class Disk:
    """A run, and what its attempts leave on this disk."""

    def __init__(self, tracking, record, make_checkpoint):
        self.tracking, self.run_id, self.make_checkpoint = tracking, record.run_id, make_checkpoint
        self.folder = RunFolder(environment.run_folder(tracking.uri, record.run_id))
        self.history = History()

    @property
    def record(self):
        return self.tracking.get_run(self.run_id)

    @property
    def store(self):
        return open_store(self.tracking, self.record, self.folder)

    def begin(self, first_epoch=1, **options):
        """Claim the next attempt, as a process that has just started."""
        self.config = Config(log_model=False, **options)
        if self.record.attempts == 0:
            attempt = Attempt.first(self.tracking, self.record)
        else:
            attempt = Attempt.another(self.tracking, self.record, None, first_epoch, {})
        attempt.begin({OPTIONS_TAG: json.dumps(self.config.to_dict())})
        self.spool = self.folder.spool(attempt.number)
        self.spool.write_journal(attempt.journal("RUNNING", attempt.first_epoch - 1))
        self.spool.log_file.write_text(f"of attempt {attempt.number}\n")
        return attempt

    def write_inside(self, epoch, epoch_step):
        """Train some steps beyond an epoch, whose checkpoint gets as far as the spool."""
        rest = {"history": self.history.state_dict(), "config": self.config.to_dict()}
        content = self.make_checkpoint(epoch, epoch_step, **rest)
        path = self.spool.path(checkpoint_name(content))
        attempt = self.spool.attempt
        return write_checkpoint(path, content, attempt=attempt, kept=False, metrics={})

    def write(self, epoch, score=0.1, kept=True):
        """Train an epoch, whose checkpoint gets as far as the spool."""
        for key in ("val_loss", "val_pearson"):
            self.history.add(Point(key, epoch, 1000 * epoch, score))
        rest = {"history": self.history.state_dict(), "config": self.config.to_dict()}
        content = self.make_checkpoint(epoch, **rest)
        path, metrics = self.spool.path(f"epoch_{epoch}"), self.history.at(epoch)
        attempt = self.spool.attempt
        return write_checkpoint(path, content, attempt=attempt, kept=kept, metrics=metrics)

    def publisher(self, manifests, retention=None):
        """Return a publisher on behalf of the newest attempt."""
        attempt = attempt_of(self.tracking, self.run_id)
        return Publisher(attempt, self.store, self.spool, retention or Retention(), manifests)

    def commit(self, manifest, retention=None, points=()):
        """Get a checkpoint into the store, and `points` to the server."""
        publisher = self.publisher(self.store.list(), retention)
        publisher.add(points)
        publisher.commit(manifest)
        self.spool.remove(manifest.name)

    def publish(self):
        return publish_waiting(self.tracking, self.record, self.store, self.folder, TABLE)

    def stored(self):
        return [m.epoch for m in self.store.list()]

    def published(self):
        keys = ("val_loss", "val_pearson")
        found = [(k, m) for k in keys for m in
                 self.tracking.client.get_metric_history(self.run_id, k)]  # fmt: skip
        assert len({(key, m.step) for key, m in found}) == len(found), "something is there twice"
        return sorted({m.step for _, m in found})


@pytest.fixture
def disk(recorded_tracking, record, make_checkpoint):
    return Disk(recorded_tracking, record, make_checkpoint)


@pytest.mark.parametrize(
    ("journal", "status"), [("RUNNING", "KILLED"), ("FINISHED", "FINISHED"), ("FAILED", "FAILED")]
)
def test_what_an_attempt_left_is_published_and_the_attempt_closed(disk, journal, status):
    """Checkpoints, metrics, log and status: one that died without a word was killed."""
    attempt = disk.begin()
    for epoch in (1, 2):
        disk.write(epoch)
    if journal != "RUNNING":
        disk.spool.write_journal(attempt.journal(journal, 2))
    assert disk.publish() == []
    assert disk.stored() == disk.published() == [1, 2]
    run = disk.record
    assert run.status == status
    assert run.tags["train.epoch"] == "2"
    assert run.tags[LATEST_CHECKPOINT_TAG] == "checkpoints/epoch_2/checkpoint.pth"
    files = disk.tracking.artifacts(run).folder
    assert (files / "logs" / "attempt_1.log").read_text() == "of attempt 1\n"
    index = (files / "checkpoints" / "index.json").read_bytes()
    assert [entry["epoch"] for entry in json.loads(index)["checkpoints"]] == [1, 2]
    assert run.index_sha256 == hashlib.sha256(index).hexdigest()


def test_a_second_time_there_is_nothing_to_do(disk, calls):
    """What was published is gone from this disk, and the server is not asked again."""
    disk.begin()
    disk.write(1)
    disk.publish()
    assert disk.folder.waiting() == []
    assert not disk.spool.folder.exists()
    calls.arm(None)
    assert disk.publish() == []
    assert calls.names == []


def test_one_inside_an_epoch_is_published_as_the_newest(disk):
    """What a signal saved, and the machine could not send any more, is what a resume gets."""
    disk.begin()
    disk.write(1)
    disk.write_inside(1, 3)
    disk.write_inside(1, 6)
    assert disk.publish() == []
    assert [m.name for m in disk.store.list()] == ["epoch_1", "global_step_16"]
    assert disk.published() == [1]
    pointer = disk.record.tags[LATEST_CHECKPOINT_TAG]
    assert pointer == "checkpoints/global_step_16/checkpoint.pth"


@pytest.mark.parametrize("epoch_step", [3, 10])
def test_one_inside_an_epoch_that_is_complete_in_the_store_stays_away(disk, epoch_step):
    """An epoch's end is newer than the checkpoint after its last step, of the same number."""
    disk.begin()
    disk.write(1)
    inside = disk.write_inside(1, epoch_step)
    disk.commit(disk.write(2))
    disk.publish()
    assert disk.stored() == [2]
    assert inside.name not in {m.name for m in disk.store.list()}
    assert disk.record.tags[LATEST_CHECKPOINT_TAG] == "checkpoints/epoch_2/checkpoint.pth"


def test_only_what_is_still_needed_goes_up(disk, tracking):
    """What a newer one has overtaken meanwhile is not uploaded; its metrics are (design 5)."""
    disk.begin()
    for epoch, score in [(1, 0.1), (2, 0.9), (3, 0.2), (4, 0.3)]:
        disk.write(epoch, score, kept=False)
    disk.publish()
    assert disk.stored() == [2, 4]
    assert disk.published() == [1, 2, 3, 4]
    assert disk.record.tags["train.best_epoch"] == "2"


def test_what_the_store_has_already_is_not_sent_again(disk):
    """Only checkpoints newer than the store's newest are published."""
    disk.begin()
    disk.commit(disk.write(1))
    disk.write(2)
    disk.publish()
    assert disk.stored() == [1, 2]
    assert disk.published() == [1, 2]


def test_what_was_overtaken_is_returned_and_kept(disk):
    """One writer (invariant 8): after another attempt was claimed nothing of it is published."""
    disk.begin()
    disk.write(1)
    old = disk.spool
    disk.begin()
    [overtaken] = disk.publish()
    assert overtaken.folder == old.folder
    assert [m.epoch for m in old.list()] == [1]
    assert disk.stored() == disk.published() == []
    assert [spool.attempt for spool in disk.folder.waiting()] == [1], "the newest is closed"


@pytest.mark.parametrize("name", ["checkpoint.pth", "checkpoint_metrics.json"])
def test_a_damaged_checkpoint_is_not_published(disk, caplog, name):
    """Invariant 1: what changed on this disk since it was written is passed over, and told."""
    disk.begin()
    for epoch in (1, 2):
        disk.write(epoch)
    path = disk.spool.path("epoch_2") / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    disk.publish()
    assert disk.stored() == disk.published() == [1]
    [warning] = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "epoch_2" in warning
    assert warning.endswith("it is not published")


@pytest.mark.parametrize(
    "call",
    [0, 1, 3, 4, 2],
)  # fmt: skip
def test_an_outage_in_between_keeps_everything(disk, calls, call):
    """Invariant 10: whichever call is not answered, what is left stays and goes up later."""
    attempt = disk.begin()
    for epoch in (1, 2):
        disk.write(epoch)
    disk.spool.write_journal(attempt.journal("FINISHED", 2))
    calls.arm(call)
    try:
        disk.publish()
    except StoreUnavailable:
        assert disk.folder.waiting() != []
    calls.arm(None)
    disk.publish()
    assert disk.stored() == disk.published() == [1, 2]
    assert disk.record.status == "FINISHED"
    assert disk.folder.waiting() == []


def test_metrics_of_a_committed_checkpoint_are_published(disk):
    """Invariant 10: the server went away between the last commit and its metrics."""
    attempt = disk.begin()
    disk.commit(disk.write(1), points=disk.history)
    last = disk.write(2)
    disk.store.put(disk.spool.path("epoch_2"), last)
    disk.spool.write_journal(attempt.journal("FINISHED", 2))
    disk.publish()
    assert disk.stored() == disk.published() == [1, 2]
    assert disk.record.tags["train.epoch"] == "2"


def test_the_log_goes_up_where_all_checkpoints_are_there_already(disk):
    """Invariant 10: the server went away between the last commit and the end."""
    attempt = disk.begin()
    disk.commit(disk.write(1), points=disk.history)
    disk.spool.write_journal(attempt.journal("FINISHED", 1))
    disk.publish()
    logs = disk.tracking.artifacts(disk.record).folder / "logs"
    assert (logs / "attempt_1.log").read_text() == "of attempt 1\n"


def test_publishing_keeps_what_the_run_was_asked_to_keep(disk):
    """`keep_last` and `keep_best` of the run decide what is pruned, here as in training."""
    disk.begin(keep_last=3, keep_best=2)
    retention = Retention(last=3, best=2)
    for epoch, score in [(1, 0.9), (2, 0.8), (3, 0.1), (4, 0.2)]:
        manifest = disk.write(epoch, score, kept=False)
        disk.commit(manifest, retention)
    assert disk.stored() == [1, 2, 3, 4]
    disk.write(5, 0.3, kept=False)
    disk.publish()
    assert disk.stored() == [1, 2, 3, 4, 5]


def test_without_upload_no_pointer_is_set(disk, tracking):
    """MLflow's pointer never names files that are only on this machine's disk (design 5)."""
    tracking.set_tags(disk.run_id, {HOST_TAG: environment.hostname()})
    disk.begin(upload="off")
    disk.write(1)
    disk.publish()
    assert disk.stored() == [1]
    assert LATEST_CHECKPOINT_TAG not in disk.record.tags


def test_an_attempt_that_is_claimed_meanwhile_stops_the_publishing(disk, tracking, monkeypatch):
    """Invariant 8: another machine took the run over while this disk's rest was on its way."""
    monkeypatch.setattr(attempt, "LEASE_SECONDS", 0.0)
    disk.begin()
    for epoch in (1, 2):
        disk.write(epoch)
    record, store = disk.record, disk.store

    def claim_then_log(run_id, *points_and_tags):
        tracking.claim_attempt(run_id, 2, "another")
        type(disk.tracking).log_points(disk.tracking, run_id, *points_and_tags)

    disk.tracking.log_points = claim_then_log
    with pytest.raises(Superseded):
        publish_waiting(disk.tracking, record, store, disk.folder, TABLE)
    assert disk.stored() == [1]


def test_a_broken_journal_does_not_keep_the_run_from_going_on(disk, caplog):
    """What lies beside it is published all the same, and the run is closed as killed."""
    disk.begin()
    disk.write(1)
    (disk.spool.folder / JOURNAL_FILE).write_bytes(b"\0" * 20)
    disk.publish()
    assert disk.stored() == disk.published() == [1]
    assert disk.record.status == "KILLED"


def test_the_name_of_a_killed_attempt_tells_what_it_did(disk, tracking):
    """Status tells the truth (invariant 9): epochs count that are in the store already."""
    disk.begin()
    disk.folder.spool(1).discard()
    attempt = disk.begin()
    for epoch in (1, 2):
        disk.commit(disk.write(epoch))
    disk.publish()
    name = tracking.get_run(attempt.child_id).name
    assert name.startswith("attempt 2: epochs 1-2 on ")


def test_what_was_overtaken_and_holds_nothing_is_cleared_away(disk):
    """A log and a journal without a checkpoint could not become a run of their own."""
    disk.begin()
    old = disk.spool
    disk.begin()
    assert disk.publish() == []
    assert not old.folder.exists()


def test_a_child_that_somebody_deleted_holds_nothing_up(disk, tracking, caplog):
    """What is left is published and cleared away; that the child is gone is a warning."""
    disk.begin()
    disk.spool.discard()
    attempt = disk.begin()
    disk.write(1)
    tracking.client.delete_run(attempt.child_id)
    disk.publish()
    assert disk.stored() == disk.published() == [1]
    assert disk.record.status == "KILLED"
    assert disk.folder.waiting() == []
    assert attempt.child_id in caplog.text


def test_a_launch_that_failed_stays_failed(disk, tracking):
    """Publishing its log later does not change how it ended (invariant 9)."""
    opening = Opening(tracking, Launch(), None, Reporter())
    opening.folder(disk.record)
    opening._attempt = disk.begin()
    opening.abandon("FAILED")
    assert disk.record.status == "FAILED"
    disk.publish()
    assert disk.record.status == "FAILED"
    assert disk.folder.waiting() == []


def test_only_runs_of_this_server_are_found(disk, tracking, tmp_path):
    """Runs of another server that wait on this disk are left alone; each is found once."""
    home = environment.home()
    assert waiting_runs(home, tracking.uri) == []
    disk.begin()
    disk.begin()
    other = RunFolder(environment.run_folder("http://elsewhere", "other"))
    other.spool(1).write_journal({})
    (environment.run_folder(tracking.uri, "without a journal") / "attempt_1").mkdir(parents=True)
    assert waiting_runs(home, tracking.uri) == [disk.run_id]
    assert waiting_runs(home, "http://elsewhere") == ["other"]


SAMPLES = [Point("system/load", step, 10 * step, step / 8) for step in (1, 2, 3)]


def samples(disk, run_id):
    """Return the system metrics that the server has of a run."""
    found = disk.tracking.client.get_metric_history(run_id, "system/load")
    return [Point(m.key, m.step, m.timestamp, m.value) for m in found]


def end_offline(disk, attempt, status="FINISHED"):
    """Let the attempt end while the server is away, with samples of its machine that wait."""
    disk.spool.write_journal(attempt.journal(status, 1) | {"system": SAMPLES})


@pytest.mark.parametrize("number", [1, 2])
def test_samples_that_waited_are_published_with_their_attempt(disk, number):
    """Invariant 10: as they were taken, once, with the run that stands for the attempt."""
    attempt = disk.begin()
    for _ in range(number - 1):
        disk.spool.discard()
        attempt = disk.begin()
    disk.write(1)
    end_offline(disk, attempt)
    disk.tracking.log_points(attempt.child_id, SAMPLES[:2])  # and then the server was gone
    disk.publish()
    assert samples(disk, attempt.child_id) == SAMPLES
    assert (attempt.child_id == disk.run_id) == (number == 1)
    assert disk.published() == [1]


def test_an_outage_while_samples_are_published_keeps_them(disk, calls):
    """They go up with the next try."""
    attempt = disk.begin()
    end_offline(disk, attempt)
    calls.arm(0)
    with pytest.raises(StoreUnavailable):
        disk.publish()
    assert samples(disk, disk.run_id) == []
    calls.arm(None)
    disk.publish()
    assert samples(disk, disk.run_id) == SAMPLES
    assert disk.record.status == "FINISHED"


def test_one_that_died_without_a_word_is_told_to_have_vanished(disk, tracking):
    """In the tag of the attempt, in the description, and on its child (invariant 9)."""
    disk.begin()
    disk.spool.discard()
    attempt = disk.begin()
    for epoch in (1, 2):
        disk.write(epoch)
    disk.publish()
    run = disk.record
    assert run.tags["train.attempt.2"] == f"epochs 1-2 on {environment.hostname()}, vanished"
    assert run.tags["train.attempt.2"] in run.tags["mlflow.note.content"]
    child = tracking.get_run(attempt.child_id)
    assert (child.tags["train.ended"], child.status) == ("vanished", "KILLED")


def test_samples_of_a_child_that_somebody_deleted_do_not_keep_the_run_open(disk, tracking):
    """There is nowhere to show them, and the run is closed as it ended (invariant 9)."""
    disk.begin()
    disk.spool.discard()
    attempt = disk.begin()
    disk.write(1)
    end_offline(disk, attempt)
    tracking.client.delete_run(attempt.child_id)
    disk.publish()
    assert disk.folder.waiting() == []
    assert disk.record.status == "FINISHED"


def test_what_followed_a_fallback_is_published(disk):
    """A damaged checkpoint that the attempt did not go on from makes nothing of it old."""
    disk.begin()
    for epoch in (1, 2, 3):
        disk.commit(disk.write(epoch), Retention())
    file = Path(disk.record.artifact_uri) / "checkpoints" / "epoch_3" / "checkpoint.pth"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    disk.begin(first_epoch=3)
    saved = disk.write_inside(2, 3)
    (disk.spool.folder / JOURNAL_FILE).unlink()  # then the run's tags tell where it began
    (disk.spool.folder / JOURNAL_FILE).write_text("{}")
    disk.publish()
    assert find_source(disk.record, disk.store, None, TABLE).manifest == saved


def test_commits_before_the_tag_are_no_break(disk):
    """Where the server could not be told of two, what lies between is no fault."""
    disk.begin()
    publisher = disk.publisher(disk.store.list())
    publisher.commit(disk.write(1, kept=False))

    def fail(*_):
        raise StoreUnavailable("away")

    publisher._publish = fail
    for epoch in (2, 3):
        with pytest.raises(StoreUnavailable, match="away"):
            publisher.commit(disk.write(epoch, score=0.05, kept=False))
    assert find_source(disk.record, disk.store, None, TABLE).gone is None


def test_a_damaged_newest_is_told_as_that_alone(disk):
    """After a fallback nothing else is missing: verify has one row of it."""
    disk.begin()
    publisher = disk.publisher(disk.store.list())
    for epoch, score in ((4, 0.9), (5, 0.1), (6, 0.1)):
        publisher.commit(disk.write(epoch, score=score, kept=False))
    file = Path(disk.record.artifact_uri) / "checkpoints" / "epoch_6" / "checkpoint.pth"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    source = find_source(disk.record, disk.store, None, TABLE)
    disk.publisher(source.manifests).settle()
    rows = {row["name"]: row["status"] for row in verify_rows(disk.tracking, disk.run_id)}
    assert rows == {"epoch_4": "ok", "epoch_6": "damaged"}


def test_a_link_where_a_checkpoint_would_be_holds_nothing_up(disk):
    """It is told and left alone, and what is trained is published."""
    disk.begin()
    disk.commit(disk.write(1))
    planted = Path(disk.record.artifact_uri) / "checkpoints" / "epoch_9" / "checkpoint.pth"
    planted.parent.mkdir()
    planted.symlink_to("/etc/passwd")
    disk.commit(disk.write(2))
    assert disk.stored() == [1, 2]
    assert planted.is_symlink()
