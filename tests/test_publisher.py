"""Whenever a commit stops, what the store shows is true, and whoever comes next completes it."""

from types import SimpleNamespace

import pytest
from support import attempt_of

from onward.attempts import attempt as attempt_module
from onward.checkpoint.format import write_checkpoint
from onward.checkpoint.policy import Retention
from onward.checkpoint.spool import Spool
from onward.checkpoint.store import CheckpointStore
from onward.errors import StoreUnavailable, Superseded
from onward.metrics import History, Point
from onward.monitor import Monitor
from onward.publish import publisher as publisher_module
from onward.publish.publisher import Publisher
from onward.tracking.names import LATEST_CHECKPOINT_TAG

pytestmark = pytest.mark.usefixtures("one_at_a_time")

KEYS = ("train_loss", "val_loss", "val_pearson")
# The calls of a commit whose predecessor is pruned, in the order that must not change.
COMMIT = [
    "upload checkpoints/epoch_2/checkpoint.pth",
    "upload checkpoints/epoch_2/checkpoint_metrics.json",
    "upload checkpoints/epoch_2/manifest.json",
    "publish 2 2 2",
    "point to checkpoints/epoch_2/checkpoint.pth",
    "upload checkpoints/index.json",
    "delete checkpoints/epoch_1/manifest.json",
    "delete checkpoints/epoch_1",
]


class Attempt:
    """What an attempt does with a publisher: resume, train epochs, commit each."""

    def __init__(self, tracking, record, artifacts, make_checkpoint, folder, **options):
        self.tracking, self.run_id, self.make_checkpoint = tracking, record.run_id, make_checkpoint
        self.spool = Spool(folder, 1)
        store = CheckpointStore(artifacts, record.run_id)
        manifests = store.list()
        published = tracking.published(self.run_id, KEYS)
        options = {"retention": Retention(), "published": published, **options}
        attempt = attempt_of(tracking, self.run_id)
        self.publisher = Publisher(attempt, store, self.spool, manifests=manifests, **options)
        self.history, self.epoch = History(), 0
        if manifests:
            content = store.get(manifests[-1])
            self.history, self.epoch = content.history, content.epoch
        self.publisher.add(self.history.missing_from(published))
        self.publisher.settle()

    def write(self, epoch, score=None, kept=False, monitor=None):
        """Measure an epoch and write its checkpoint to the spool."""
        for key in KEYS:
            time_ms = max(1000 * epoch, self.history.last_timestamp_ms() + 1)
            point = Point(key, epoch, time_ms, epoch / 100 if score is None else score)
            self.history.add(point)
            self.publisher.add([point])
        told = {} if monitor is None else {"monitor": str(monitor), "format_version": 3}
        content = self.make_checkpoint(epoch, history=self.history.state_dict(), **told)
        path, metrics = self.spool.path(f"epoch_{epoch}"), self.history.at(epoch)
        return write_checkpoint(path, content, attempt=1, kept=kept, metrics=metrics)

    def train_to(self, last_epoch, kept=False):
        while self.epoch < last_epoch:
            self.epoch += 1
            self.publisher.commit(self.write(self.epoch, kept=kept))


@pytest.fixture
def attempt(recorded_tracking, record, artifacts, make_checkpoint, tmp_path):
    """Return a function that begins the next attempt at one and the same run."""

    def begin(**options):
        folder = tmp_path / "spool"
        return Attempt(recorded_tracking, record, artifacts, make_checkpoint, folder, **options)

    return begin


def rows(tracking, run_id):
    """Return (key, step) of every row that the tracking server has."""
    client = tracking.client
    return sorted((k, m.step) for k in KEYS for m in client.get_metric_history(run_id, k))


def test_metrics_follow_the_commit_and_the_pointer_follows_the_metrics(attempt, calls):
    """Files, manifest, metrics, pointer, index, prune: invariants 1, 2 and 3 in one list."""
    first = attempt()
    first.train_to(1)
    calls.arm(None)
    first.train_to(2)
    assert calls.names == COMMIT


def test_a_commit_inside_an_epoch_publishes_only_what_is_complete(attempt, calls, tracking, record):
    """It is what the pointer names; the metrics are those of the epochs before it (invariant 2)."""
    one = attempt()
    one.train_to(1)
    one.publisher.add([Point("val_loss", 2, 2000, 0.5)])  # of an epoch that is not saved
    content = one.make_checkpoint(1, 3, history=one.history.state_dict())
    path = one.spool.path("global_step_13")
    manifest = write_checkpoint(path, content, attempt=1, kept=False, metrics={})
    calls.arm(None)
    one.publisher.commit(manifest)
    assert calls.names == [
        "upload checkpoints/global_step_13/checkpoint.pth",
        "upload checkpoints/global_step_13/checkpoint_metrics.json",
        "upload checkpoints/global_step_13/manifest.json",
        "publish",
        "point to checkpoints/global_step_13/checkpoint.pth",
        "upload checkpoints/index.json",
    ], "the best one stays"
    assert {step for _, step in rows(tracking, record.run_id)} == {1}
    tags = tracking.get_run(record.run_id).tags
    assert (tags["train.epoch"], tags["train.best_epoch"]) == ("1", "1")
    one.epoch = 1
    one.train_to(2)
    assert [m.name for m in one.publisher.manifests] == ["epoch_2"]
    assert "delete checkpoints/global_step_13" in calls.names


def expect_truth(tracking, record, artifacts):
    """Check what must hold at any moment; return the newest epoch that can be resumed."""
    store = CheckpointStore(artifacts, record.run_id)
    manifests = store.list()
    for manifest in manifests:
        store.get(manifest)
    newest = manifests[-1].epoch
    published = {step for _, step in rows(tracking, record.run_id)}
    assert published <= set(range(1, newest + 1)), "published without a checkpoint that holds it"
    pointer = tracking.get_run(record.run_id).tags[LATEST_CHECKPOINT_TAG]
    assert (artifacts.root / pointer).with_name("manifest.json").exists(), "points to nothing"
    return newest


@pytest.mark.parametrize(
    ("call", "when"),
    [(c, w) for c in range(len(COMMIT)) for w in ("before", "after")]
    + [(c, "half") for c, name in enumerate(COMMIT) if name.startswith(("upload", "publish"))],
)
def test_a_commit_that_stops_anywhere_tells_the_truth_and_is_completed(
    attempt, tracking, record, artifacts, calls, call, when
):
    """Publish after commit, point after commit (invariants 1, 2), and no gap or double after."""
    first = attempt()
    first.train_to(1)
    calls.arm(call, when)
    failed = COMMIT[min(call, COMMIT.index("delete checkpoints/epoch_1/manifest.json"))]
    with pytest.raises(StoreUnavailable, match=f"{failed} failed on purpose"):  # tried again, whole
        first.train_to(2)
    calls.arm(None)
    newest = expect_truth(tracking, record, artifacts)
    committed = call > 2 or (call == 2 and when == "after")
    assert newest == (2 if committed else 1)

    attempt()  # a resume settles what the attempt before left, before it trains
    store = CheckpointStore(artifacts, record.run_id)
    assert [m.epoch for m in store.list()] == [newest]
    assert rows(tracking, record.run_id) == sorted(
        (k, s) for k in KEYS for s in range(1, newest + 1)
    )
    attempt().train_to(3)
    assert expect_truth(tracking, record, artifacts) == 3
    assert rows(tracking, record.run_id) == sorted((k, step) for k in KEYS for step in (1, 2, 3))


@pytest.mark.parametrize("when", ["before", "half", "after"])
@pytest.mark.parametrize("call", range(len(COMMIT)))
def test_the_same_attempt_can_go_on_after_an_outage(
    attempt, tracking, record, artifacts, calls, call, when
):
    """Invariant 10: a commit is called again after any outage, with nothing twice or missing."""
    first = attempt()
    first.train_to(1)
    manifest = first.write(2)
    calls.arm(call, when)
    with pytest.raises(StoreUnavailable):
        first.publisher.commit(manifest)
    calls.arm(None)
    first.publisher.commit(manifest)
    done = rows(tracking, record.run_id)
    assert done == sorted((k, step) for k in KEYS for step in (1, 2))
    assert expect_truth(tracking, record, artifacts) == 2
    assert artifacts.list("checkpoints/epoch_1") == []
    calls.arm(None)
    first.publisher.commit(manifest)
    assert not [name for name in calls.names if name.startswith("upload checkpoints/epoch_")]
    assert rows(tracking, record.run_id) == done


@pytest.mark.parametrize("call", [3, 4, 5, 6, 7])
def test_what_was_committed_and_not_told_travels_with_the_next(
    attempt, tracking, record, calls, call
):
    """Points that could not be published are published with the next commit (invariant 10)."""
    first = attempt()
    first.train_to(1)
    calls.arm(call, "half")
    with pytest.raises(StoreUnavailable):
        first.train_to(2)
    calls.arm(None)
    first.train_to(3)
    assert rows(tracking, record.run_id) == sorted((k, step) for k in KEYS for step in (1, 2, 3))


def test_points_that_wait_are_published_oldest_first(attempt, calls):
    """A backlog goes out before the epoch that is committed, in the order of its steps."""
    first = attempt()
    first.train_to(1)
    first.publisher.add(Point("late", step, step, 0.0) for step in (0, 1))
    calls.arm(None)
    first.train_to(2)
    assert "publish 0 1 2 2 2" in calls.names
    calls.arm(None)
    first.publisher.settle()
    assert "publish" in calls.names, "something was published twice"


def test_points_of_epochs_that_are_not_committed_wait(attempt, calls):
    """Publish after commit (invariant 2): what training has measured since stays back."""
    first = attempt()
    committed = first.write(1)
    ahead = first.write(2)
    calls.arm(None)
    first.publisher.commit(committed)
    assert "publish 1 1 1" in calls.names
    calls.arm(None)
    first.publisher.settle()
    assert "publish" in calls.names
    first.publisher.commit(ahead)
    assert "publish 2 2 2" in calls.names


def test_without_a_place_for_it_no_pointer_is_set(attempt, tracking, record):
    """With upload=off MLflow's pointer would name files that are not there; the epoch is told."""
    attempt(points_here=False).train_to(2)
    tags = tracking.get_run(record.run_id).tags
    assert LATEST_CHECKPOINT_TAG not in tags
    assert tags["train.epoch"] == "2"


def test_a_pointer_to_parts_names_their_folder(attempt, tracking, record, make_checkpoint):
    """A large checkpoint is a folder of parts, and that is what MLflow's functions download."""
    first = attempt()
    content = make_checkpoint(1)
    path = first.spool.path("epoch_1")
    manifest = write_checkpoint(path, content, attempt=1, kept=True, metrics={}, part_bytes=500)
    assert len(manifest.files) > 2
    first.publisher.commit(manifest)
    pointer = tracking.get_run(record.run_id).tags[LATEST_CHECKPOINT_TAG]
    assert pointer == "checkpoints/epoch_1/checkpoint.pth"


@pytest.mark.parametrize(("num_checks", "num_done"), list(enumerate([0, 0, 1, 2, 2, 3, 5, 6])))
def test_an_overtaken_attempt_publishes_nothing_more(attempt, calls, num_checks, num_done):
    """One writer (invariant 8): the lease is asked for before each step that others could see.

    Before the first byte, each file, the manifest (once more, whatever was answered a moment ago),
    the metrics and the tags, the index, a deletion.
    """
    first = attempt()
    first.train_to(1)
    lease = iter(range(num_checks))

    def check_lease():
        if next(lease, None) is None:
            raise Superseded("r1", 1, 2)

    lease_of = first.publisher._attempt
    lease_of.check_lease = first.publisher._require_lease = check_lease
    lease_of.require_lease = lambda _max_seconds: check_lease()
    calls.arm(None)
    with pytest.raises(Superseded):
        first.train_to(2)
    assert calls.names == COMMIT[:num_done]


def test_a_deletion_asks_for_the_lease_itself(attempt):
    """Within the moment in which an answer is believed, nothing is deleted on the word of it."""
    first = attempt()
    first.train_to(1)

    def check_lease():
        raise Superseded("r1", 1, 2)

    first.publisher._require_lease = lambda: None
    first.publisher._attempt.require_lease = lambda _max_seconds: None
    first.publisher._attempt.check_lease = check_lease
    with pytest.raises(Superseded):
        first.train_to(2)
    assert [m.epoch for m in first.publisher.store.list()] == [1, 2]


def test_tags_name_the_newest_and_the_best(attempt, tracking, record):
    """MLflow's own pointer, the epoch and the best epoch are there after a commit."""
    attempt().train_to(3, kept=True)
    tags = tracking.get_run(record.run_id).tags
    assert tags[LATEST_CHECKPOINT_TAG] == "checkpoints/epoch_3/checkpoint.pth"
    assert tags["train.epoch"] == "3"
    assert tags["train.best_epoch"] == "3"


def test_several_commits_share_what_follows(attempt, calls, tracking, record):
    """Until then a listing is true: it reads by itself what the index, which the tag names, lacks.

    Afterwards all that needs not stay is gone.
    """
    one, run_id = attempt(), record.run_id
    one.train_to(1)
    for epoch in (2, 3):
        one.publisher.put(one.write(epoch))
    index_sha256 = tracking.get_run(run_id).index_sha256
    store = CheckpointStore(one.publisher.store._artifacts, run_id)
    calls.arm(None)
    assert [m.epoch for m in store.list(index=index_sha256)] == [1, 2, 3]
    read = [name for name in calls.names if name.endswith("manifest.json")]
    assert read == [f"download checkpoints/epoch_{n}/manifest.json" for n in (1, 2, 3)]
    assert "download checkpoints/index.json" in calls.names
    calls.arm(None)
    one.publisher.settle()
    gone = [n for n in calls.names if n.startswith("delete") and not n.endswith("manifest.json")]
    assert gone == [f"delete checkpoints/epoch_{n}" for n in (1, 2)]
    assert calls.names.count("upload checkpoints/index.json") == 1
    assert [m.epoch for m in store.list()] == [3]


def test_a_long_index_is_not_written_for_each_commit(attempt, calls, tracking, record, monkeypatch):
    """What it lacks a listing reads by itself; the end, a deletion and the next attempt write it.

    Killed at any of these moments the run has all its checkpoints.
    """
    monkeypatch.setattr(publisher_module, "LISTED_SHARE", 3)
    one, run_id = attempt(), record.run_id
    store = CheckpointStore(one.publisher.store._artifacts, run_id)
    num_written = []
    for epoch in range(1, 13):
        calls.arm(None)
        one.train_to(epoch, kept=True)
        num_written.append(calls.names.count("upload checkpoints/index.json"))
        index_sha256 = tracking.get_run(run_id).index_sha256
        listed = [m.epoch for m in store.list(index=index_sha256)]
        assert listed == [m.epoch for m in store.indexed()] == [*range(1, epoch + 1)]
    assert num_written == [1, 1, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0]

    def num_in_index():
        store.list()
        return len(store._proven(tracking.get_run(run_id).index_sha256))

    assert num_in_index() == 11
    again = attempt()
    assert num_in_index() == 12, "the next attempt writes it"
    again.train_to(13, kept=True)
    assert num_in_index() == 12
    again.publisher.tidy()
    assert num_in_index() == 13, "and the end"
    again.train_to(14)
    again.train_to(15)
    assert [m.epoch for m in store.indexed()] == [*range(1, 14), 15]
    assert num_in_index() == 14, "and a deletion"


def test_what_a_failed_upload_has_left_goes_though_its_deletion_failed_too(
    attempt, artifacts, calls
):
    """Whoever settles again after an outage deletes it, also where the index is complete."""
    one = attempt()
    one.train_to(1, kept=True)
    lost = one.write(2)
    calls.arm(1)
    with pytest.raises(StoreUnavailable, match="upload checkpoints/epoch_2"):
        one.publisher.commit(lost)
    calls.arm(None)
    assert artifacts.list("checkpoints/epoch_2")
    third = one.write(3, kept=True)
    calls.arm(6)
    with pytest.raises(StoreUnavailable, match="delete checkpoints/epoch_2"):
        one.publisher.commit(third)
    calls.arm(None)
    one.publisher.settle()
    assert not artifacts.list("checkpoints/epoch_2")


def test_an_index_never_keeps_another_checkpoint_of_a_name(attempt, record):
    """One that is saved again, as one that stays, is in the index at once."""
    one = attempt()
    one.train_to(1)
    one.publisher.put(one.write(2))
    one.publisher.put(one.write(1, kept=True))
    store = CheckpointStore(one.publisher.store._artifacts, record.run_id)
    assert [m.kept for m in store.indexed() if m.epoch == 1] == [True]
    digests = {m.name: m.digest for m in store.list()}
    assert {m.name: m.digest for m in store.indexed()} == digests


def test_a_lease_is_asked_for_once_for_commits_in_quick_succession(attempt, monkeypatch):
    """And anew for each that takes longer: also where the process was stopped meanwhile."""
    one, clock = attempt(), SimpleNamespace(now=100.0)
    monkeypatch.setattr(attempt_module, "seconds_awake_or_asleep", lambda: clock.now)
    asked = []
    get_run = one.tracking.get_run
    monkeypatch.setattr(one.tracking, "get_run", lambda run_id: asked.append(1) or get_run(run_id))
    for epoch, seconds, total in [(1, 0, 1), (2, 0.09, 1), (3, 0.02, 2), (4, 0.01, 2)]:
        clock.now += seconds
        one.publisher.put(one.write(epoch))
        assert len(asked) == total, epoch


def test_the_end_does_nothing_where_nothing_was_refused(attempt, calls):
    """Nothing is asked of the server."""
    one = attempt()
    one.train_to(3)
    calls.arm(None)
    one.publisher.tidy()
    assert calls.names == []


def test_only_kept_best_and_newest_stay(attempt, record, artifacts, calls):
    """After each commit the others are gone, from the store and from the index (invariant 3)."""
    first = attempt()
    for epoch, score in enumerate([0.5, 0.9, 0.1, 0.2, 0.3], start=1):
        first.publisher.commit(first.write(epoch, score, kept=epoch == 3))
    store = CheckpointStore(artifacts, record.run_id)
    assert [m.epoch for m in store.list()] == [2, 3, 5]
    assert [m.epoch for m in first.publisher.manifests] == [2, 3, 5]
    assert sorted(artifacts.list("checkpoints")) == ["epoch_2", "epoch_3", "epoch_5", "index.json"]
    calls.arm(None)
    CheckpointStore(artifacts, record.run_id).indexed()
    assert len(calls.names) == 2, "the index lacks one"


def test_as_many_stay_as_were_asked_for(attempt, artifacts):
    """`keep_last` and `keep_best` count from the newest and from the best."""
    first = attempt(retention=Retention(last=2, best=2))
    for epoch, score in enumerate([0.5, 0.9, 0.1, 0.2, 0.3], start=1):
        first.publisher.commit(first.write(epoch, score))
    assert [m.epoch for m in first.publisher.manifests] == [1, 2, 4, 5]
    assert sorted(artifacts.list("checkpoints"))[:-1] == [
        "epoch_1",
        "epoch_2",
        "epoch_4",
        "epoch_5",
    ]


def test_where_less_is_better_the_lowest_is_named_and_stays(attempt, tracking, record, artifacts):
    """By the metric that the run is judged by: its lowest value, the oldest of equals."""
    first = attempt(retention=Retention(last=1, best=2))
    for epoch, score in enumerate([0.5, 0.1, 0.4, 0.1, 0.9, float("-inf"), 0.7], start=1):
        first.publisher.commit(first.write(epoch, score, monitor=Monitor("val_loss", "min")))
    assert [m.epoch for m in first.publisher.manifests] == [2, 4, 7]
    assert sorted(artifacts.list("checkpoints"))[:-1] == ["epoch_2", "epoch_4", "epoch_7"]
    assert tracking.get_run(record.run_id).tags["train.best_epoch"] == "2"
    assert {m.monitor for m in CheckpointStore(artifacts, record.run_id).list()} == {
        Monitor("val_loss", "min")
    }


def test_the_log_is_stored_under_the_number_of_its_attempt(attempt, artifacts):
    """Each attempt has a log of its own."""
    first = attempt()
    first.spool.folder.mkdir(parents=True)
    first.spool.log_file.write_text("a line\n")
    first.publisher.upload_log()
    assert (artifacts.root / "logs" / "attempt_1.log").read_text() == "a line\n"
