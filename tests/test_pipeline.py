"""Whenever a commit stops, what the store shows is true, and the next attempt completes it."""

import pytest

from train.checkpoint.pipeline import Pipeline
from train.checkpoint.store import CheckpointStore
from train.errors import StoreUnavailable
from train.metrics import History, Point
from train.tracking import LATEST_CHECKPOINT_TAG, Tracking

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


class RecordedTracking(Tracking):
    """A connection whose calls are noted together with those of the artifacts."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def log_points(self, run_id, points):
        name = " ".join(["publish", *(str(point.step) for point in points)])
        log = super().log_points
        half = points[: len(points) // 2]
        self.calls.make(name, lambda: log(run_id, points), lambda: log(run_id, half))

    def set_tags(self, run_id, tags):
        name = f"point to {tags.get(LATEST_CHECKPOINT_TAG)}"
        self.calls.make(name, lambda: super(RecordedTracking, self).set_tags(run_id, tags))


class Attempt:
    """What an attempt does with a pipeline: resume, train epochs, commit each."""

    def __init__(self, tracking, record, artifacts, make_checkpoint, folder):
        self.tracking, self.run_id, self.make_checkpoint = tracking, record.run_id, make_checkpoint
        store = CheckpointStore(artifacts, record.run_id)
        manifests = store.list()
        self.pipeline = Pipeline(tracking, store, 1, folder, manifests)
        self.history, self.epoch = History(), 0
        if manifests:
            content = store.get(manifests[-1], folder / "got")
            self.history.load_state_dict(content["history"])
            self.epoch = content["epoch"]
        published = tracking.published(self.run_id, KEYS)
        self.pipeline.unpublished = self.history.missing_from(published)
        self.pipeline.settle()

    def train_to(self, last_epoch, kept=False):
        while self.epoch < last_epoch:
            self.epoch += 1
            for key in KEYS:
                time_ms = max(1000 * self.epoch, self.history.last_timestamp_ms() + 1)
                point = Point(key, self.epoch, time_ms, self.epoch / 100)
                self.history.add(point)
                self.pipeline.unpublished.append(point)
            checkpoint = self.make_checkpoint(self.epoch, history=self.history.state_dict())
            self.pipeline.commit(checkpoint, self.history.at(self.epoch), kept)


@pytest.fixture
def attempt(tracking, record, artifacts, calls, make_checkpoint, tmp_path):
    """Return a function that begins the next attempt at one and the same run."""

    def begin():
        recorded = RecordedTracking(calls)
        return Attempt(recorded, record, artifacts, make_checkpoint, tmp_path / "spool")

    return begin


def rows(tracking, run_id):
    """Return (key, step) of every row that the tracking server has."""
    client = tracking._client
    return sorted((k, m.step) for k in KEYS for m in client.get_metric_history(run_id, k))


def test_metrics_follow_the_commit_and_the_pointer_follows_the_metrics(attempt, calls):
    """Files, manifest, metrics, pointer, index, prune: invariants 1, 2 and 3 in one list."""
    first = attempt()
    first.train_to(1)
    calls.arm(None)
    first.train_to(2)
    assert calls.names == COMMIT


def expect_truth(tracking, record, artifacts, folder):
    """Check what must hold at any moment; return the newest epoch that can be resumed."""
    store = CheckpointStore(artifacts, record.run_id)
    manifests = store.list()
    for manifest in manifests:
        store.get(manifest, folder / manifest.name)
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
    attempt, tracking, record, artifacts, calls, tmp_path, call, when
):
    """Publish after commit, point after commit (invariants 1, 2), and no gap or double after."""
    first = attempt()
    first.train_to(1)
    calls.arm(call, when)
    with pytest.raises(StoreUnavailable, match=f"{COMMIT[call]} failed on purpose"):
        first.train_to(2)
    calls.arm(None)
    newest = expect_truth(tracking, record, artifacts, tmp_path / "checked")
    committed = call > 2 or (call == 2 and when == "after")
    assert newest == (2 if committed else 1)

    attempt()  # a resume settles what the attempt before left, before it trains
    store = CheckpointStore(artifacts, record.run_id)
    assert [m.epoch for m in store.list()] == [newest]
    assert rows(tracking, record.run_id) == sorted(
        (k, s) for k in KEYS for s in range(1, newest + 1)
    )
    attempt().train_to(3)
    assert expect_truth(tracking, record, artifacts, tmp_path / "checked again") == 3
    assert rows(tracking, record.run_id) == sorted((k, step) for k in KEYS for step in (1, 2, 3))


@pytest.mark.parametrize("call", [3, 4, 5, 6, 7])
def test_the_same_attempt_can_go_on_after_an_outage(attempt, tracking, record, calls, call):
    """Points that could not be published travel with the next commit (invariant 10)."""
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
    first.pipeline.unpublished = [Point("late", step, step, 0.0) for step in (0, 1)]
    calls.arm(None)
    first.train_to(2)
    assert "publish 0 1 2 2 2" in calls.names
    assert first.pipeline.unpublished == []


def test_tags_name_the_newest_and_the_best(attempt, tracking, record):
    """MLflow's own pointer, the epoch and the best epoch are there after a commit."""
    attempt().train_to(3, kept=True)
    tags = tracking.get_run(record.run_id).tags
    assert tags[LATEST_CHECKPOINT_TAG] == "checkpoints/epoch_3/checkpoint.pth"
    assert tags["train.epoch"] == "3"
    assert tags["train.best_epoch"] == "3"


def test_only_kept_best_and_newest_stay(
    tracking, record, artifacts, make_checkpoint, tmp_path, calls
):
    """After each commit the others are gone, from the store and from the index (invariant 3)."""
    store = CheckpointStore(artifacts, record.run_id)
    pipeline = Pipeline(tracking, store, 1, tmp_path / "spool")
    for epoch, score in enumerate([0.5, 0.9, 0.1, 0.2, 0.3], start=1):
        pipeline.commit(make_checkpoint(epoch), {"val_pearson": score}, kept=epoch == 3)
    assert [m.epoch for m in store.list()] == [2, 3, 5]
    assert [m.epoch for m in pipeline.manifests] == [2, 3, 5]
    assert sorted(artifacts.list("checkpoints")) == ["epoch_2", "epoch_3", "epoch_5", "index.json"]
    calls.arm(None)
    CheckpointStore(artifacts, record.run_id).list()
    assert len(calls.names) == 2, "the index lacks one"


def test_a_committed_checkpoint_leaves_nothing_on_the_local_disk(attempt, tmp_path):
    """What is committed needs no local copy; the spool does not grow."""
    attempt().train_to(3)
    assert [p.name for p in (tmp_path / "spool").iterdir() if p.name.startswith("epoch")] == []


def test_the_log_is_stored_under_the_number_of_its_attempt(attempt, artifacts):
    """Each attempt has a log of its own."""
    first = attempt()
    first.pipeline.log_file.parent.mkdir(parents=True, exist_ok=True)
    first.pipeline.log_file.write_text("a line\n")
    first.pipeline.upload_log()
    assert (artifacts.root / "logs" / "attempt_1.log").read_text() == "a line\n"
