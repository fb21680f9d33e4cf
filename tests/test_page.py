"""What people see of a run while it is trained: the page of its checkpoints, its description."""

import json
import re
from pathlib import Path

import pytest
from support import attempt_of

from onward.attempts.attempt import Attempt
from onward.attempts.spans import first_epochs
from onward.checkpoint.pipeline import Pipeline
from onward.checkpoint.policy import Retention
from onward.checkpoint.spool import RunFolder
from onward.checkpoint.store import CheckpointStore
from onward.errors import StoreUnavailable, Superseded
from onward.metrics import Point
from onward.publish import publisher as publisher_module
from onward.publish.publisher import PAGE_SECONDS, Publisher
from onward.tracking.names import OPTIONS_TAG
from train.tabular.options import Config


class Clock:
    """A clock that stands still until it is set."""

    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """Let time stand still for whoever decides when the page is due."""
    clock = Clock()
    monkeypatch.setattr(publisher_module, "time", clock)
    return clock


@pytest.fixture
def make_publisher(tracking, record, artifacts, tmp_path):
    """Return a function that makes a publisher of the run's checkpoints, for an attempt."""

    def make(attempt=None, **options):
        attempt = attempt or attempt_of(tracking, record.run_id)
        spool = RunFolder(tmp_path / "disk").spool(1)
        spool.folder.mkdir(parents=True, exist_ok=True)
        spool.log_file.write_text("what happened")
        store = CheckpointStore(artifacts, record.run_id)
        return Publisher(attempt, store, spool, Retention(last=9), **options)

    return make


@pytest.fixture
def begun(tracking, record):
    """Return the first attempt at the run, begun."""
    attempt = Attempt.first(tracking, record)
    options = {OPTIONS_TAG: json.dumps(Config(epochs=7).to_dict())}
    attempt.begin(options)
    return attempt


def save(pipeline, make_checkpoint, *epochs):
    """Let the pipeline save and commit a checkpoint of each epoch."""
    for epoch in epochs:
        pipeline.save(make_checkpoint(epoch), {"val_loss": 1.0, "val_pearson": epoch / 10}, True)


def note(tracking, attempt):
    return tracking.get_run(attempt.run_id).tags["mlflow.note.content"]


def test_the_page_is_due_at_once_and_then_once_a_minute(make_publisher, clock):
    """However often something is committed."""
    publisher, refreshed = make_publisher(), []
    publisher.show = lambda: refreshed.append(clock.now)
    for seconds in (0, 1, PAGE_SECONDS - 1, PAGE_SECONDS, PAGE_SECONDS + 1, 2 * PAGE_SECONDS):
        clock.now = 1000.0 + seconds
        publisher.refresh_page()
    assert refreshed == [1000.0 + n * PAGE_SECONDS for n in range(3)]


def test_each_commit_looks_whether_the_page_is_due(make_publisher, make_checkpoint, clock):
    """The first one shows it; the next ones within the minute do not."""
    publisher, refreshed = make_publisher(), []
    publisher.show = lambda: refreshed.append([m.epoch for m in publisher.manifests])
    pipeline = Pipeline(publisher, publisher._spool, is_sync=True)
    pipeline.open()
    save(pipeline, make_checkpoint, 1, 2)
    clock.now += PAGE_SECONDS
    save(pipeline, make_checkpoint, 3)
    assert pipeline.close(lambda: None, 30)
    assert refreshed == [[1], [1, 2, 3]]


def test_the_page_and_the_description_tell_what_is_committed(
    make_publisher, make_checkpoint, begun, tracking, artifacts
):
    """Epoch, best and curves while it runs; then how it ended, which the page does not undo."""
    publisher = make_publisher(begun)
    pipeline = Pipeline(publisher, publisher._spool, is_sync=True)
    publisher.add([Point("val_pearson", e, e, e / 10) for e in (1, 2)])
    publisher.add([Point("best_val_pearson", 2, 2, 0.2), Point("best_epoch", 2, 2, 2.0)])
    pipeline.open()
    save(pipeline, make_checkpoint, 1, 2)
    assert pipeline.close(publisher.show, 30)
    page = (artifacts.root / "checkpoints/index.html").read_text()
    assert "<b>RUNNING</b>" in page
    assert "Best: <b>epoch_2</b>" in page
    assert "**running**: epoch 2 of 7, best val_pearson 0.20000 (epoch 2)" in note(tracking, begun)
    begun.end("FINISHED", 2)
    ended = note(tracking, begun)
    publisher.show()
    assert "<b>FINISHED</b>" in (artifacts.root / "checkpoints/index.html").read_text()
    assert "**finished**: epoch 2 of 7" in ended
    assert note(tracking, begun) == ended


def test_whoever_was_overtaken_changes_nothing(make_publisher, begun, tracking, artifacts):
    """A later attempt shows the run: neither the page nor the description is touched."""
    tracking.claim_attempt(begun.run_id, 2, "another")
    before = note(tracking, begun)
    with pytest.raises(Superseded):
        make_publisher(begun).show()
    assert not (artifacts.root / "checkpoints").exists()
    assert note(tracking, begun) == before


def test_without_uploads_no_page_goes_up(make_publisher, begun, artifacts, calls):
    """With upload=off the checkpoints are on one machine's disk; the description still tells."""
    make_publisher(begun, points_here=False).show()
    assert [name for name in calls.names if name.startswith("upload")] == []
    assert not (artifacts.root / "checkpoints").exists()


def test_a_store_that_is_away_is_told_to_whoever_retries(make_publisher, begun, calls):
    """The page is no exception: nothing that fails is passed over in silence."""
    calls.arm(0)
    with pytest.raises(StoreUnavailable):
        make_publisher(begun).show()


@pytest.mark.parametrize(
    ("tags", "metrics", "words"),
    [
        ({}, {}, ""),
        ({"train.epoch": "3"}, {}, ": epoch 3"),
        ({"train.epoch": "3", OPTIONS_TAG: "{"}, {}, ": epoch 3"),
        ({"train.epoch": "3", OPTIONS_TAG: '{"epochs": 9}'}, {}, ": epoch 3 of 9"),
        ({"train.epoch": "3"}, {"best_val_pearson": 0.5, "best_epoch": 2.0},
         ": epoch 3, best val_pearson 0.50000 (epoch 2)"),
    ],
)  # fmt: skip
def test_the_description_begins_with_how_far_it_is(tracking, record, tags, metrics, words):
    """By what the store holds; what is not known is left out."""
    attempt = Attempt.first(tracking, record)
    tracking.set_tags(record.run_id, tags)
    tracking.log_points(record.run_id, [Point(k, 1, 1, v) for k, v in metrics.items()])
    attempt.describe(tracking.get_run(record.run_id))
    assert note(tracking, attempt).splitlines()[0] == f"**running**{words}"


@pytest.mark.parametrize(
    ("status", "command"),
    [
        ("RUNNING", "Resume"),
        ("KILLED", "Resume"),
        ("FAILED", "Resume"),
        ("FINISHED", "Train longer"),
    ],
)
def test_the_description_tells_what_to_do_next(tracking, record, status, command):
    """A run that is finished is trained longer, any other is resumed; both can be forked from the
    best epoch, if there is one."""
    if status != "FAILED":
        tracking.log_points(record.run_id, [Point("best_val_pearson", 4, 1, 0.5)])
    attempt = Attempt.first(tracking, record)
    attempt.begin({"train.epoch": "4"})
    if status != "RUNNING":
        attempt.end(status, 4)
    titles = [line for line in note(tracking, attempt).splitlines() if line.endswith(":")]
    fork = [] if status == "FAILED" else ["Fork from the best epoch:"]
    assert titles == [f"{command}:", *fork]
    # Each on a line of its own that MLflow's pages can break, so that it is read and copied whole.
    commands = re.findall(r"^\n`(train run [^`]*)`\n$", note(tracking, attempt), re.MULTILINE)
    assert len(commands) == len(titles)
    assert ("--epochs 8" in commands[0]) == (status == "FINISHED")


def test_where_each_attempt_began_is_read_from_its_words():
    """In the order of the epochs; one that did no epoch, or another tag, does not count."""
    told = {
        "train.attempt": "3",
        "train.attempt.1": "epochs 1-3 on node-7, failed",
        "train.attempt.2": "no epoch on a-b, preempted",
        "train.attempt.10": "epochs 14-… on a, running",
        "train.attempt.3": "epochs 4-13 on a, preempted",
        "train.attempt.note": "epochs 2-3",
    }
    assert first_epochs(told) == {1: 1, 3: 4, 10: 14}
    assert first_epochs({}) == {}


def test_the_page_lies_beside_the_index(make_publisher, begun, artifacts):
    """Where MLflow shows it with a click; the list of checkpoints does not take it for one."""
    publisher = make_publisher(begun)
    publisher._upload_page("<p>…</p>")
    assert (Path(artifacts.root) / "checkpoints/index.html").read_bytes() == "<p>…</p>".encode()
    assert publisher.store.list() == []
