"""Saving in the background: what may give way, what waits, and what is never lost."""

import errno
import logging
import math
import os
import random
import threading
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import attempt_of, wait_for

from onward.checkpoint import pipeline as pipeline_module
from onward.checkpoint import uploader as uploader_module
from onward.checkpoint.pipeline import Pipeline
from onward.checkpoint.policy import Retention
from onward.checkpoint.spool import Spool
from onward.checkpoint.store import CheckpointStore
from onward.errors import (
    CheckpointError,
    RankFilesMissing,
    StoreRefused,
    StoreUnavailable,
    Superseded,
)
from onward.metrics import Point, is_wall_clock
from onward.monitor import UNDECLARED, Monitor
from onward.publish.publisher import Publisher
from onward.system import files
from onward.terminal import progress

FIRST = "upload checkpoints/epoch_1/checkpoint.pth"


class HeldSpool(Spool):
    """A spool whose writer can be held, right before it writes, with the buffers lent to it."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.free, self.reached = threading.Event(), threading.Event()
        self.free.set()

    def free_bytes(self):
        self.reached.set()
        assert self.free.wait(60)
        return super().free_bytes()


class Saver:
    """A pipeline, and what a run would give it."""

    def __init__(self, tracking, record, artifacts, spool, make_checkpoint, **options):
        store = CheckpointStore(artifacts, record.run_id)
        retention = options.pop("retention", Retention())
        attempt = attempt_of(tracking, record.run_id)
        if "check_lease" in options:
            object.__setattr__(attempt, "check_lease", options.pop("check_lease"))
        self.publisher = Publisher(attempt, store, spool, retention, store.list())
        self.monitor = options.get("monitor", UNDECLARED)
        self.pipeline = Pipeline(self.publisher, spool, **options)
        self.spool, self.make_checkpoint, self.ended = spool, make_checkpoint, []
        self.pipeline.open()

    def save(self, epoch, score=0.0, kept=False):
        name = self.monitor.name
        self.publisher.add([Point(name, epoch, 1000 * epoch, score)])
        told = {} if self.monitor == UNDECLARED else {"monitor": str(self.monitor)}
        content = self.make_checkpoint(epoch, **told)
        return self.pipeline.save(content, {name: score}, kept)

    def save_inside(self, epoch, epoch_step, required=False):
        content = self.make_checkpoint(epoch, epoch_step)
        return self.pipeline.save(content, {}, kept=False, required=required)

    def written(self):
        """Wait until the writer has done what it was given."""
        shared = self.pipeline._shared
        with shared.changed:
            assert shared.changed.wait_for(lambda: shared.num_writing == 0, 60)

    def offline(self):
        """Wait until it was noticed that the store is away."""
        shared = self.pipeline._shared
        with shared.changed:
            assert shared.changed.wait_for(lambda: shared.offline, 60)

    def spooled(self):
        return [m.epoch for m in self.spool.list()]

    def close(self, drain_seconds=60):
        return self.pipeline.close(partial(self.ended.append, True), drain_seconds)


@pytest.fixture
def spool(tmp_path):
    spool = HeldSpool(tmp_path / "spool", 1)
    spool.folder.mkdir()
    spool.log_file.write_text("a line\n")
    return spool


@pytest.fixture
def saver(recorded_tracking, record, artifacts, calls, spool, make_checkpoint):
    """Return a function that opens a pipeline; its threads are gone when the test is over."""
    opened = []

    def open_saver(**options):
        opened.append(
            Saver(recorded_tracking, record, artifacts, spool, make_checkpoint, **options)
        )
        return opened[-1]

    yield open_saver
    calls.free()
    spool.free.set()
    for one in opened:
        with one.pipeline._shared.changed:
            one.pipeline._shared.closing = True
            one.pipeline._shared.ending = one.pipeline._shared.ending or (lambda: None)
            one.pipeline._shared.changed.notify_all()
        one.pipeline._items.put(None)
        for thread in (one.pipeline._writer, one.pipeline._upload_thread):
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture
def stored(artifacts, record):
    """Return a function that lists the epochs in the store."""
    return lambda: [m.epoch for m in CheckpointStore(artifacts, record.run_id).list()]


@pytest.fixture
def published(tracking, record):
    """Return a function that lists the published steps of the metric."""

    def steps():
        found = tracking.client.get_metric_history(record.run_id, "val_pearson")
        return sorted(point.step for point in found)

    return steps


def in_background(act):
    """Start `act`, which has to wait, in a thread; return the thread."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def test_what_was_saved_is_committed_published_and_gone_from_the_disk(
    saver, spool, stored, published
):
    """Everything is in the store when `close` says so, and the end came last."""
    run = saver()
    for epoch in (1, 2, 3):
        run.save(epoch, epoch / 10, kept=True)
    assert run.close()
    assert stored() == published() == [1, 2, 3]
    assert run.spooled() == []
    assert run.ended == [True]
    assert run.pipeline.num_waiting == 0


def test_a_latest_is_passed_over_while_the_buffers_are_lent(saver, spool, stored, published):
    """Training never waits for one that is neither kept nor best; its metrics travel on."""
    run = saver()
    spool.free.clear()
    run.save(1, 0.5)
    spool.reached.wait(60)
    for epoch in (2, 3):
        run.save(epoch, 0.1)
    spool.free.set()
    run.written()
    run.save(4, 0.2, kept=True)
    assert run.close()
    assert stored() == [1, 4]
    assert published() == [1, 2, 3, 4]


@pytest.mark.parametrize(("score", "kept"), [(0.1, True), (0.9, False)])
def test_kept_and_best_are_never_passed_over(saver, spool, stored, score, kept):
    """Training waits for the buffers where a checkpoint must be saved."""
    run = saver()
    spool.free.clear()
    run.save(1, 0.5)
    spool.reached.wait(60)
    waiting = in_background(lambda: run.save(2, score, kept))
    waiting.join(0.05)
    assert waiting.is_alive(), "it did not wait for the buffers"
    spool.free.set()
    waiting.join(60)
    run.save(3, 0.2, kept=True)
    assert run.close()
    assert 2 in stored()


@pytest.mark.parametrize("required", [True, False])
def test_only_what_is_required_waits_for_the_buffers_inside_an_epoch(
    saver, spool, artifacts, record, required
):
    """`save` tells whether it took the state; what a stop asks for is never passed over."""
    run, told = saver(), []
    spool.free.clear()
    assert run.save(1, 0.5) is True
    spool.reached.wait(60)
    saving = in_background(lambda: told.append(run.save_inside(1, 3, required)))
    saving.join(0.05)
    assert saving.is_alive() is required
    spool.free.set()
    saving.join(60)
    assert told == [required]
    assert run.close()
    names = ["epoch_1", "global_step_13"] if required else ["epoch_1"]
    assert [m.name for m in CheckpointStore(artifacts, record.run_id).list()] == names


def test_inside_an_epoch_only_the_newest_waits(saver, calls, artifacts, record, published):
    """In the spool, too, one inside an epoch gives way to any that is newer."""
    run = saver()
    held = calls.hold(FIRST)
    run.save(1, 0.5)
    held.wait()
    for step, save in [(13, lambda: run.save_inside(1, 3)), (16, lambda: run.save_inside(1, 6))]:
        assert save()
        run.written()
        names = [m.name for m in run.spool.list()]
        assert names == ["epoch_1", f"global_step_{step}"]
    run.save(2, 0.1)
    run.save_inside(2, 1, required=True)
    run.written()
    assert [m.name for m in run.spool.list()] == ["epoch_1", "global_step_21"]
    held.free.set()
    assert run.close()
    names = [m.name for m in CheckpointStore(artifacts, record.run_id).list()]
    assert names == ["epoch_1", "global_step_21"]
    assert published() == [1, 2]
    assert not [name for name in calls.names if "global_step_1" in name or "epoch_2" in name]


def test_a_tie_and_nan_are_no_new_best(saver, spool, stored):
    """Only a higher score is worth waiting for."""
    run = saver()
    spool.free.clear()
    run.save(1, 0.5)
    spool.reached.wait(60)
    run.save(2, 0.5)
    run.save(3, float("nan"))
    spool.free.set()
    assert run.close()
    assert stored() == [1]


def test_a_lower_value_is_a_new_best_where_less_is_better(saver, spool, stored):
    """It is what training waits for; a higher one, a tie, NaN and -infinity are passed over."""
    run = saver(monitor=Monitor("val_rmse", "min"))
    spool.free.clear()
    run.save(1, 0.5)
    spool.reached.wait(60)
    for epoch, score in [(2, 0.9), (3, 0.5), (4, math.nan), (5, -math.inf)]:
        assert run.save(epoch, score) is False
    waiting = in_background(lambda: run.save(6, 0.4))
    waiting.join(0.05)
    assert waiting.is_alive(), "it did not wait for the buffers"
    spool.free.set()
    waiting.join(60)
    run.save(7, 0.6, kept=True)
    assert run.close()
    assert stored() == [6, 7]


def test_a_resume_knows_the_best_where_less_is_better(saver, spool, stored):
    """What the store holds is what a new value has to be lower than."""
    monitor = Monitor("val_rmse", "min")
    run = saver(monitor=monitor, is_sync=True)
    run.save(1, 0.5)
    assert run.close()
    spool.log_file.write_text("a line\n")
    run = saver(monitor=monitor)
    spool.reached.clear()
    spool.free.clear()
    run.save(2, 0.9)
    spool.reached.wait(60)
    assert run.save(3, 0.6) is False
    spool.free.set()
    assert run.close()
    assert stored() == [1, 2]


def test_the_overtaken_leave_the_spool_before_their_upload(saver, calls, stored, published):
    """What is neither kept nor best gives way to a newer one; the one under way never does."""
    run = saver()
    held = calls.hold(FIRST)
    run.save(1, 0.1)
    held.wait()
    for epoch, score, expected in [(2, 0.05, [1, 2]), (3, 0.04, [1, 3]), (4, 0.9, [1, 4]),
                                   (5, 0.2, [1, 4, 5]), (6, 0.3, [1, 4, 6])]:  # fmt: skip
        run.save(epoch, score)
        run.written()
        assert run.spooled() == expected
        assert run.pipeline.num_waiting == len(expected)
    held.free.set()
    assert run.close()
    assert stored() == [4, 6]
    assert published() == [1, 2, 3, 4, 5, 6]
    uploaded = {name.split("/")[1] for name in calls.names if name.startswith("upload check")}
    assert uploaded == {"epoch_1", "epoch_4", "epoch_6", "index.json", "index.html"}


def test_kept_ones_stay_in_the_spool(saver, calls, stored):
    """However many wait, what is kept for good is not overtaken."""
    run = saver()
    held = calls.hold(FIRST)
    for epoch in (1, 2, 3, 4):
        run.save(epoch, 0.5, kept=True)
        run.written()
    held.wait()
    assert run.spooled() == [1, 2, 3, 4]
    held.free.set()
    assert run.close()
    assert stored() == [1, 2, 3, 4]


def test_as_many_best_ones_stay_in_the_spool_as_were_asked_for(saver, calls, stored):
    """One that is committed and not yet settled is one of the best, not two of them."""
    run = saver(retention=Retention(last=1, best=2))
    held = calls.hold("upload checkpoints/index.json")
    for epoch, score in [(1, 0.9), (2, 0.5), (3, 0.1)]:
        run.save(epoch, score)
        run.written()
        held.wait()
    assert run.spooled() == [1, 2, 3]
    held.free.set()
    assert run.close()
    assert stored() == [1, 2, 3]


def test_a_full_spool_makes_training_wait_and_says_so(saver, calls, stored, caplog):
    """`max_spool_bytes` bounds what waits on the disk; nothing that is kept is lost for it."""
    run = saver(max_spool_bytes=1)
    held = calls.hold(FIRST)
    run.save(1, kept=True)
    held.wait()
    run.save(2, kept=True)
    waiting = in_background(lambda: run.save(3, kept=True))
    waiting.join(0.05)
    assert waiting.is_alive()
    assert run.spooled() == [1]
    held.free.set()
    waiting.join(60)
    assert run.close()
    assert stored() == [1, 2, 3]
    assert all("The spool is full" in text for text in warnings(caplog))
    assert 1 <= len(warnings(caplog)) <= 2


def test_a_full_spool_without_a_server_does_not_hold_up_the_end(saver, calls, stored, caplog):
    """`close` writes what was staged, over the limit, and returns: nothing is lost for it."""
    run = saver(max_spool_bytes=0)
    calls.arm(0)
    run.save(1, kept=True)
    run.offline()
    run.save(2, kept=True)
    assert run.close(drain_seconds=0) is False
    assert run.spooled() == [1, 2]
    assert run.ended == []
    calls.arm(None)
    run.pipeline._upload_thread.join(60)
    assert stored() == [1, 2]
    assert run.ended == [True]


def test_a_full_spool_does_not_hide_what_ended_the_upload(saver, calls):
    """Training that waits for room hears of an error: there will never be room again."""
    lease = []

    def check_lease():
        if lease:
            raise Superseded("r1", 1, 2)

    run = saver(max_spool_bytes=0, check_lease=check_lease)
    held = calls.hold(FIRST)
    run.save(1, kept=True)
    held.wait()
    lease.append("taken")
    run.save(2, kept=True)
    raised = []

    def save_more():
        try:
            for epoch in (3, 4):
                run.save(epoch, kept=True)
        except Superseded as error:
            raised.append(error)

    waiting = in_background(save_more)
    held.free.set()
    waiting.join(2)
    assert raised


class Stop:
    """A signal that comes when the test says so."""

    def __init__(self, run):
        self._ends = math.inf
        run.pipeline.seconds_left = lambda: max(0.0, self._ends - time.monotonic())

    def come(self, grace_seconds):
        self._ends = time.monotonic() + grace_seconds


@pytest.fixture
def look_often(monkeypatch):
    monkeypatch.setattr(pipeline_module, "LOOK_SECONDS", 0.01)


def test_a_signal_ends_the_wait_for_room(saver, calls, look_often):
    """Over the limit is better than lost: what waits for room in the spool is written at once."""
    run = saver(max_spool_bytes=0)
    stop, held = Stop(run), calls.hold(FIRST)
    run.save(1, kept=True)
    held.wait()
    run.save(2, kept=True)
    waiting = in_background(lambda: run.save_inside(2, 3, required=True))
    waiting.join(0.05)
    assert waiting.is_alive()
    stop.come(60)
    waiting.join(30)
    assert not waiting.is_alive()
    run.written()
    names = [m.name for m in run.spool.list()]
    assert names == ["epoch_1", "epoch_2", "global_step_23"]


def test_a_signal_ends_the_wait_for_a_commit(saver, calls, look_often):
    """With upload=sync the last upload goes on in the background until the time is up."""
    run = saver(is_sync=True)
    stop, held = Stop(run), calls.hold(FIRST)
    waiting = in_background(lambda: run.save(1, kept=True))
    held.wait()
    waiting.join(0.05)
    assert waiting.is_alive()
    stop.come(60)
    waiting.join(30)
    assert not waiting.is_alive()
    held.free.set()
    assert run.close()


@pytest.mark.parametrize("patience", [0.0, 1000.0])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_the_end_takes_no_longer_than_a_signal_leaves(
    saver, calls, look_often, monkeypatch, when, patience
):
    """`grace_seconds` counts though `drain_seconds` is longer, also for a signal at the end.

    Be it before the wait is announced or after that.
    """
    monkeypatch.setattr(pipeline_module, "PATIENCE_SECONDS", patience)
    run = saver()
    stop, held = Stop(run), calls.hold(FIRST)
    run.save(1, kept=True)
    held.wait()
    if when == "before":
        stop.come(0.05)
    told = []
    closing = in_background(lambda: told.append(run.close(drain_seconds=1000)))
    closing.join(0.02)
    if when == "meanwhile":
        assert closing.is_alive()
        stop.come(0.05)
    closing.join(10)
    assert told == [False]
    assert run.ended == []
    assert run.spooled() == [1]


def test_a_signal_does_not_make_the_end_longer(saver, calls, look_often):
    """`drain_seconds` holds, however much time the signal leaves."""
    run = saver()
    calls.hold(FIRST)
    run.save(1, kept=True)
    Stop(run).come(1000)
    assert run.close(drain_seconds=0.05) is False


def no_space(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_pauses_saving_and_training_goes_on(
    saver, spool, stored, published, caplog, monkeypatch
):
    """One warning, no broken file, and once there is room saving goes on with all metrics."""
    run = saver()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", no_space)
        for epoch in (1, 2, 3):
            run.save(epoch, epoch / 10, kept=True)
            run.written()
    [warning] = warnings(caplog)
    assert "Saving is paused, training goes on" in warning
    assert "No space left" in warning
    assert [path.name for path in spool.folder.iterdir()] == ["attempt_1.log"]
    run.save(4, 0.5, kept=True)
    assert run.close()
    assert stored() == [4]
    assert published() == [1, 2, 3, 4]


def test_each_time_that_saving_pauses_there_is_a_warning(saver, caplog, monkeypatch):
    """A disk that is full again, after saving had gone on, is told again."""
    run = saver(is_sync=True)
    for epoch in (1, 3):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", no_space)
            run.save(epoch, kept=True)
            run.written()
        run.save(epoch + 1, kept=True)
        run.written()
    assert run.close()
    assert len(warnings(caplog)) == 2


def test_a_disk_that_is_full_while_a_checkpoint_is_committed_ends_nothing(
    saver, stored, published, artifacts, monkeypatch, caplog
):
    """What the uploader notes on the disk is told, holds nothing up, and is made good later."""
    fsync = files.os.fsync

    def no_space_for_the_index(descriptor):
        if "index.json" in os.readlink(f"/proc/self/fd/{descriptor}"):
            no_space()
        fsync(descriptor)

    run = saver()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", no_space_for_the_index)
        run.save(1, kept=True)
        wait_for(lambda: published() == [1])
        run.save(2, kept=True)
        wait_for(lambda: published() == [1, 2])
    assert run.close()
    assert stored() == published() == [1, 2]
    [told] = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert told == "[Errno 28] No space left on device. Training and publishing go on without it"
    assert "index.json" in artifacts.list("checkpoints")


class SmallDisk(HeldSpool):
    """A spool on a disk with little room."""

    def free_bytes(self):
        return 100


@pytest.mark.parametrize(
    "waits",
    [True, False],
)  # fmt: skip
def test_room_is_looked_for_before_writing(
    recorded_tracking, record, artifacts, calls, tmp_path, make_checkpoint, caplog, waits
):
    """Less room than a checkpoint takes is a full disk, found out before it is filled up."""
    (tmp_path / "small").mkdir()
    spool = SmallDisk(tmp_path / "small", 1)
    spool.log_file.write_text("a line\n")
    run = Saver(recorded_tracking, record, artifacts, spool, make_checkpoint, is_sync=not waits)
    held = calls.hold(FIRST)
    if not waits:
        held.free.set()
    run.save(1, kept=True)
    run.written()
    run.save(2, kept=True)
    held.free.set()
    run.written()
    assert run.close()
    assert [m.epoch for m in run.publisher.manifests] == [1]
    assert "has 100 bytes free" in warnings(caplog)[0]


class FullDisk(HeldSpool):
    """A spool on a disk that has room for one checkpoint and a little."""

    capacity = math.inf

    def free_bytes(self):
        return self.capacity - sum(m.bytes for m in self.list())


@pytest.mark.parametrize("is_closing", [False, True])
def test_room_that_an_upload_makes_is_waited_for(
    recorded_tracking, record, artifacts, calls, tmp_path, make_checkpoint, caplog, is_closing
):
    """No epoch is lost for want of room that is there a little later; the wait is told once."""
    (tmp_path / "full").mkdir()
    spool = FullDisk(tmp_path / "full", 1)
    spool.log_file.write_text("a line\n")
    run = Saver(recorded_tracking, record, artifacts, spool, make_checkpoint)
    held = calls.hold(FIRST)
    run.save(1, kept=True)
    run.written()
    spool.capacity = 1.9 * spool.list()[0].bytes
    run.save(2, kept=True)
    closing = in_background(run.close) if is_closing else None
    wait_for(lambda: "have made room" in caplog.text)
    held.free.set()
    if closing is not None:
        closing.join(60)
    else:
        run.save(3, kept=True)
        assert run.close()
    assert not run.pipeline.is_paused
    assert run.ended == [True]
    assert [m.epoch for m in run.publisher.manifests] == ([1, 2] if is_closing else [1, 2, 3])
    assert all("have made room" in warning for warning in warnings(caplog))


@pytest.mark.parametrize("is_sync", [False, True])
def test_an_upload_on_which_nothing_moves_counts_as_an_outage(
    saver, calls, stored, monkeypatch, is_sync
):
    """The progress line says so, and `upload=sync` waits no longer; what arrives ends it."""
    monkeypatch.setattr(pipeline_module, "STALL_SECONDS", 0.05)
    monkeypatch.setattr(pipeline_module, "LOOK_SECONDS", 0.01)
    run = saver(is_sync=is_sync)
    held = calls.hold(FIRST)
    run.save(1, kept=True)
    wait_for(lambda: run.pipeline.condition == "no answer for 0 s, 1 waiting")
    held.free.set()
    assert run.close()
    assert stored() == [1]
    assert run.pipeline.condition == ""


def test_an_outage_is_one_warning_and_its_end_is_told(saver, calls, stored, published, caplog):
    """Invariant 10: while the store is away the progress line says so, and nothing stops."""
    caplog.set_level("INFO", "onward")
    run = saver()
    assert run.pipeline.condition == ""
    calls.arm(0)
    for epoch in (1, 2, 3):
        run.save(epoch, kept=True)
        run.written()
    run.offline()
    assert run.pipeline.condition == "offline, 3 waiting"
    [warning] = warnings(caplog)
    assert warning.startswith("upload checkpoints/epoch_1/checkpoint.pth failed on purpose. ")
    assert "published later" in warning
    calls.arm(None)
    assert run.close()
    assert run.pipeline.condition == ""
    assert stored() == published() == [1, 2, 3]
    assert [r.getMessage() for r in caplog.records].count("The server answers again") == 1


def test_an_outage_at_any_call_loses_and_doubles_nothing(saver, calls, stored, published):
    """Invariant 10: whichever call it is that the server does not answer, it is made good."""
    run = saver(is_sync=True)
    for epoch, call in enumerate(range(12), start=1):
        calls.arm(call, "half", num_failing=3)
        run.save(epoch, epoch / 100)
    calls.arm(None)  # some of the last failures may not have been met
    assert run.close()
    assert published() == list(range(1, 13))
    assert stored() == [12]


def test_an_outage_of_days_is_waited_out(saver, monkeypatch):
    """The time between two tries has a limit, however many there were."""
    monkeypatch.setattr(uploader_module, "MAX_RETRY_SECONDS", 0.0)
    assert saver().pipeline.uploader._wait_offline(100_000, StoreUnavailable("away"), None)


def test_what_does_not_go_away_by_itself_is_told_as_that(saver, caplog):
    """Nobody waits for a server to be started where a refusal is to be dealt with."""
    assert saver().pipeline.uploader._wait_offline(0, StoreRefused("refused"), None)
    [told] = [record.getMessage() for record in caplog.records]
    assert told == "refused. It will not go away by itself: what is saved waits on this disk"


def test_overtaken_during_an_outage_it_is_not_tried_again(saver, calls, stored):
    """What a newer one replaces while the server is away does not hold up what is needed."""
    run = saver()
    calls.arm(0)
    run.save(1, 0.1)
    run.offline()
    run.save(2, 0.2)
    run.written()
    wait_for(lambda: run.spooled() == [2])  # one that is just being tried goes after that
    calls.arm(None)
    assert run.close()
    assert stored() == [2]
    assert not [name for name in calls.names if name.startswith("upload checkpoints/epoch_1")]


def test_what_was_given_up_is_not_left_in_the_store(saver, calls, artifacts):
    """A manifest may arrive though its answer is lost; overtaken after that, it goes."""
    run = saver()
    calls.arm(2, "after")  # the two files come first, then the manifest
    run.save(1, 0.1)
    run.offline()
    run.save(2, 0.2)
    run.written()
    calls.arm(None)
    assert run.close()
    assert sorted(artifacts.list("checkpoints")) == ["epoch_2", "index.html", "index.json"]


def test_a_server_that_stays_away_does_not_hold_up_the_end(saver, calls, spool, caplog):
    """`close` waits `drain_seconds` and no longer, and says what waits."""
    caplog.set_level("INFO", "onward")
    run = saver()
    calls.arm(0)
    run.save(1, kept=True)
    run.save(2, kept=True)
    assert run.close(drain_seconds=0.2) is False
    assert run.ended == []
    assert run.spooled() == [1, 2]
    assert run.pipeline.num_waiting == 2
    assert "Waiting up to 0.2 s for the store (2 to upload)" in caplog.text


def test_what_is_left_at_the_end_is_not_begun(saver, calls, stored):
    """In a process that lives on, a notebook's, the spool is then another's to publish."""
    run, given_back = saver(), threading.Event()
    calls.arm(0)
    run.save(1, kept=True)
    run.save(2, kept=True)
    run.offline()
    assert run.close(drain_seconds=0) is False
    run.pipeline.let_go(given_back.set)
    assert given_back.is_set()
    calls.arm(None)
    assert not run.pipeline._upload_thread.is_alive()
    assert (stored(), run.spooled(), run.ended) == ([], [1, 2], [])


def test_nobody_else_has_the_spool_while_an_upload_is_under_way(saver, calls, stored, monkeypatch):
    """It is the last: then the spool is given back."""
    monkeypatch.setattr(pipeline_module, "LET_GO_SECONDS", 0.0)
    run, held, given_back = saver(), calls.hold(FIRST), threading.Event()
    run.save(1, kept=True)
    run.save(2, kept=True)
    held.wait()
    assert run.close(drain_seconds=0) is False
    run.pipeline.let_go(given_back.set)
    assert not given_back.is_set()
    held.free.set()
    assert given_back.wait(60)
    assert (stored(), run.spooled(), run.ended) == ([1], [2], [])


def test_what_is_left_at_the_end_shows_how_far_it_is(saver, calls, caplog, monkeypatch):
    """A long last upload is seen to go on, by file."""
    caplog.set_level("INFO", "onward.terminal.progress")
    monkeypatch.setattr(progress, "DELAY_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    run, held = saver(), calls.hold(FIRST)
    run.save(1, kept=True)
    held.wait()
    closing = in_background(run.close)
    wait_for(lambda: "Uploading epoch_1: 0.0 of 0.0 MB" in caplog.text)
    held.free.set()
    closing.join(60)
    assert run.ended == [True]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), SystemExit(3), Superseded("r1", 1, 2)])
def test_an_error_in_a_thread_is_raised_where_training_is(saver, artifacts, error, monkeypatch):
    """Whatever ends a thread is not lost: the next save raises it, and so does the end."""

    def fail(*arguments, **options):
        raise error

    run = saver()
    monkeypatch.setattr(artifacts, "upload", fail)
    run.save(1, kept=True)
    run.pipeline._upload_thread.join(60)
    with pytest.raises(type(error)):
        run.save(2, kept=True)
    with pytest.raises(type(error)):
        run.close()
    assert run.spooled() == [1], "what could not be published stays"


def test_an_error_of_the_end_is_raised(saver):
    """A run that cannot be closed does not end as if it were (invariant 7)."""
    run = saver()
    with pytest.raises(ZeroDivisionError):
        run.pipeline.close(lambda: 1 / 0, 60)


def test_a_state_that_cannot_be_saved_is_raised_at_once(saver, stored, make_checkpoint):
    """What no checkpoint can hold is told where training is, and the next save works."""
    run = saver()
    with pytest.raises(CheckpointError, match=r"checkpoint\['hook'\]"):
        run.pipeline.save(make_checkpoint(1, hook=object()), {}, kept=True)
    run.save(2, kept=True)
    assert run.close()
    assert stored() == [2]


def test_sync_waits_for_the_commit(saver, stored, published):
    """With upload=sync a checkpoint is in the store, with its metrics, when `save` returns."""
    run = saver(is_sync=True)
    for epoch in (1, 2, 3):
        run.save(epoch, kept=True)
        assert stored() == published() == list(range(1, epoch + 1))
    assert run.close()


def test_sync_does_not_wait_for_a_server_that_is_away(saver, calls, stored):
    """Invariant 10: an outage stops nothing, with upload=sync either."""
    run = saver(is_sync=True)
    calls.arm(0)
    for epoch in (1, 2):
        run.save(epoch, kept=True)
    run.written()
    assert run.spooled() == [1, 2]
    calls.arm(None)
    assert run.close()
    assert stored() == [1, 2]


def test_what_a_commit_cost_is_measured(saver, calls):
    """Stall, write, upload and size are told for metrics that equal runs may differ in."""
    run = saver(is_sync=True)
    assert run.pipeline.timings is None
    run.save(1)
    found = run.pipeline.timings.as_metrics()
    assert set(found) == {
        "checkpoint_stall_seconds",
        "checkpoint_write_seconds",
        "checkpoint_upload_seconds",
        "checkpoint_bytes",
    }
    assert all(is_wall_clock(key) for key in found)
    assert found["checkpoint_bytes"] == run.publisher.manifests[0].bytes
    assert min(found.values()) >= 0
    assert run.close()


def test_the_log_goes_up_with_what_is_kept(saver, calls, artifacts):
    """A run that is lost later leaves a log beside its kept checkpoints, not at each epoch."""
    run = saver(is_sync=True)
    run.save(1, kept=False)
    assert "upload logs/attempt_1.log" not in calls.names
    run.save(2, kept=True)
    assert "upload logs/attempt_1.log" in calls.names
    assert run.close()


def test_what_an_attempt_before_left_undone_is_done_first(saver, calls, stored, artifacts):
    """What the store has already is settled as soon as the threads run (invariant 2)."""
    run = saver(is_sync=True)
    run.save(1)
    assert run.close()
    calls.arm(None)
    assert saver().close()
    assert "point to checkpoints/epoch_1/checkpoint.pth" in calls.names
    assert not [name for name in calls.names if name.startswith("upload checkpoints/epoch")]


def random_numbers():
    return (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_background_threads_draw_no_random_numbers_of_the_training(saver, calls, pauses):
    """Invariant 4: also while transfers are tried again, the global generators are untouched."""
    run = saver()
    before = random_numbers()
    calls.arm(0, num_failing=9)
    for epoch in (1, 2, 3):
        run.save(epoch, kept=True)
    assert run.close()
    assert len(calls.names) > 9
    assert pauses, "nothing was tried again"
    assert random_numbers() == before


@pytest.fixture
def rounds(artifacts, monkeypatch):
    """Return a function that lets rounds to what counts as a server last so many seconds."""
    artifacts.folder = None  # a server's
    return partial(monkeypatch.setattr, uploader_module, "ROUND_SECONDS")


def test_in_a_round_only_what_stays_goes_up_and_all_is_told_at_once(
    saver, rounds, calls, stored, published
):
    """What the second one finds waiting: the kept, the newest, one list, one publishing."""
    rounds(1e6)
    run = saver()
    run.save(1)
    run.written()
    wait_for(lambda: not run.pipeline.num_waiting)
    calls.arm(None)
    for epoch in (2, 3, 4, 5):
        run.save(epoch, epoch / 10, kept=epoch == 3)
        run.written()
    assert run.spooled() == [3, 5]
    assert calls.names == []
    assert run.close()
    assert published() == [1, 2, 3, 4, 5]
    assert stored() == [3, 5]
    folders = ("checkpoints/epoch_3", "checkpoints/epoch_5")
    names = ("checkpoint.pth", "checkpoint_metrics.json", "manifest.json")
    up = [f"upload {folder}/{name}" for folder in folders for name in names]
    told = [
        "publish 2 3 4 5",
        "point to checkpoints/epoch_5/checkpoint.pth",
        "upload checkpoints/index.json",
        "delete checkpoints/epoch_1/manifest.json",
        "delete checkpoints/epoch_1",
    ]
    assert calls.names[: len(up + told)] == up + told
    assert run.pipeline.uploader.totals.num_committed == 3


def test_a_round_does_not_wait_for_long(saver, rounds, calls, stored):
    """A notebook whose cell has ended, with the run still open, has all that it keeps."""
    rounds(0.3)
    run = saver()
    for epoch in (1, 2, 3):
        run.save(epoch, kept=True)
        run.written()
    wait_for(lambda: not run.pipeline.num_waiting)
    assert stored() == [1, 2, 3]
    assert run.close()


def test_a_long_upload_is_told_of_before_the_next(saver, rounds, calls, published):
    """However much waits, what is committed is seen as soon as the round is over."""
    rounds(1e6)
    run = saver()
    held = calls.hold(FIRST)
    for epoch in (1, 2):
        run.save(epoch, kept=True)
        run.written()
    held.wait()
    rounds(0)
    calls.free()
    assert run.close()
    assert [name for name in calls.names if name.startswith("publish")] == [
        "publish 1",
        "publish 2",
    ]


def test_a_round_takes_what_waited_when_it_began(saver, rounds, calls, stored, published):
    """What comes while it is under way is for the next, and may be overtaken until then."""
    rounds(1e6)
    run, held = saver(), calls.hold(FIRST)
    run.save(1, kept=True)
    held.wait()
    for epoch in (2, 3):
        run.save(epoch, epoch / 10)
        run.written()
    calls.free()
    wait_for(lambda: published() == [1])
    wait_for(lambda: run.spooled() == [3])
    assert run.close()
    assert stored() == [1, 3]


def test_training_that_waits_for_room_begins_a_round(saver, rounds, calls, stored):
    """Else a full spool would be emptied by the clock."""
    rounds(1e6)
    run = saver(max_spool_bytes=1)
    for epoch in (1, 2, 3):
        run.save(epoch, kept=True)
        run.written()  # what there is no room for would never be
    assert run.close()
    assert stored() == [1, 2, 3]


def test_sync_has_no_rounds(saver, rounds, stored):
    """Training waits for each commit, not for more of them."""
    rounds(1e6)
    run = saver(is_sync=True)
    for epoch in (1, 2):
        run.save(epoch, kept=True)
        assert stored()[-1] == epoch
    assert run.close()


def test_what_lost_ranks_have_brought_is_not_swept_away(saver, rounds, artifacts, monkeypatch):
    """The next attempt completes it; what else need not stay goes, also in its round."""
    rounds(1e6)
    run = saver()
    run.save(1, 0.1)
    run.written()
    wait_for(lambda: not run.pipeline.num_waiting)
    complete = run.publisher.store.gathering.complete

    def lacks(here, cut, *more):
        if cut.epoch == 3:
            raise RankFilesMissing(1, cut.name, "it is gone")
        return complete(here, cut, *more)

    monkeypatch.setattr(run.publisher.store.gathering, "complete", lacks)
    run.pipeline.uploader.rank_files = SimpleNamespace(is_lost=True)
    for epoch in (2, 3):
        run.save(epoch, epoch / 10, kept=True)
        run.written()
    assert run.close()
    assert run.pipeline.uploader.has_left
    there = set(artifacts.list("checkpoints")) - {"index.json", "index.html"}
    assert there == {"epoch_2", "epoch_3"}
