"""One attempt at a run: what it records, publishes and commits, and how it ends."""

import contextlib
import io
import json
import logging
import math
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from support import wait_for
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from onward import metrics
from onward.attempts.attempt import Attempt
from onward.checkpoint import pipeline as pipeline_module
from onward.checkpoint import staging
from onward.checkpoint.pipeline import Pipeline
from onward.checkpoint.policy import Retention
from onward.checkpoint.spool import RunFolder
from onward.checkpoint.staging import Stager
from onward.checkpoint.store import CheckpointStore
from onward.errors import (
    CheckpointError,
    Interrupted,
    NonFinite,
    RunNotUsable,
    StoreUnavailable,
    UsageError,
)
from onward.metrics import History, is_wall_clock, same_value
from onward.monitor import UNDECLARED, Monitor
from onward.opening.begin import fresh_start, start_from
from onward.opening.source import find_source, open_store
from onward.opening.waiting import publish_waiting
from onward.publish.publisher import Publisher
from onward.run import rng, signals
from onward.run import saving as saving_module
from onward.run.lifecycle import Lifecycle
from onward.run.run import Run
from onward.system import environment
from onward.terminal.report import Reporter
from onward.tracking.artifacts import Artifacts
from onward.tracking.client import Tracking
from onward.tracking.names import BEST_EPOCH_TAG, FINGERPRINT_TAG, OPTIONS_TAG
from train.kind import find_task
from train.schedule import Schedule
from train.tabular.options import Config

SCORES = {1: 0.3, 2: 0.5, 3: 0.4, 4: 0.6, 5: 0.1, 6: 0.2}
SAMPLES = 16
STEPS = 2  # optimizer steps an epoch
EVALUATION, END = "evaluation", "end"  # of an epoch: where else than at a step it can be stopped


KIND = find_task()


class Stopped(Exception):
    """Stands for whatever ends a process."""


class Subject:
    """What is trained here, as far as a run asks for it; it is called what the first ones were."""

    name, data_fingerprint, copies_in_background = "tabular", "d", True

    def __init__(self, options, monitor=UNDECLARED):
        self.options, self.monitor = options, monitor

    def facts(self):
        return {"rows": 16}

    def extras(self, history, best):
        return {"aucs": history.values("val_pearson"), "best_corr": best and best.value}


def build(options, width=4):
    """Return a small model with dropout, its optimizer and its schedule."""
    rng.seed_all(rng.derive_seed("weights", options.seed))
    model = nn.Sequential(nn.Linear(3, width), nn.Dropout(0.5), nn.Linear(width, 1))
    schedule = Schedule(options, Monitor("train_loss", "min"))
    return model, torch.optim.AdamW(model.parameters(), fused=True), schedule


def parts_of(model, optimizer, schedule):
    """Return what is built as a run takes it."""
    return {"model": model, "optimizer": optimizer, "scheduler": schedule}


def make_step(model, optimizer):
    optimizer.zero_grad()
    loss = (model(torch.rand(8, 3)) - 1).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def train(run, scores=SCORES, stop_at=(), act=None, width=4, more=None, num_steps=STEPS):
    """Train; at (epoch, step) `act`, which by default raises; log `more`, or `more(epoch)`, too.

    In place of a step there may be EVALUATION, or END: right before the epoch is saved. An `act`
    that returns True leaves the loop there, by `break`.
    """

    def act_at(epoch, moment):
        if (epoch, moment) != stop_at:
            return False
        if act is None:
            raise Stopped
        return act() is True

    model, optimizer, schedule = build(run.options, width)
    run.restore(parts_of(model, optimizer, schedule))
    for epoch in run.epochs(range(1, run.options.epochs + 1)):
        optimizer.param_groups[0]["lr"] = schedule.lr(epoch)
        for _indices in run.order(SAMPLES, SAMPLES // num_steps):
            act_at(epoch, run.state.epoch_step + 1)
            run.mean("train_loss").add(make_step(model, optimizer))
        with run.interruptible():
            act_at(epoch, EVALUATION)
        loss = run.mean("train_loss").value
        schedule.observe(loss)
        metrics = {"train_loss": loss, "val_loss": loss / 2, "val_pearson": scores[epoch]}
        run.log(**metrics, **(more(epoch) if callable(more) else more or {}))
        if act_at(epoch, END):
            break


class Bench:
    """Opens attempts at runs, as a launch does, and reads what they left."""

    def __init__(self, tracking, folder):
        self.tracking, self.folder = tracking, folder

    def new_run(self):
        return self.tracking.create_run("0", None, {}).run_id

    def begin(self, run_id, tracking=None, monitor=UNDECLARED, **options):
        """Open the next attempt, with a connection of its own where one is given."""
        options = Config(**{"epochs": 4, "schedule_epochs": 6, **options})
        tracking = tracking or self.tracking
        folder = RunFolder(environment.run_folder(tracking.uri, run_id))
        wait_for(folder.acquire)  # what the attempt before has under way ends first
        seen = tracking.get_run(run_id)
        store, manifests = open_store(tracking, seen, folder), []
        subject = Subject(options, monitor)
        if seen.attempts == 0:
            attempt, start = Attempt.first(tracking, seen), fresh_start(subject)
        else:
            publish_waiting(tracking, seen, store, folder, None)
            seen = tracking.get_run(run_id)
            source = find_source(seen, store, None, KIND)
            manifests = source.manifests
            attempt = Attempt.another(tracking, seen, None, source.epoch + 1, {})
            start = fresh_start(subject)
            if source.content is not None:
                start = start_from(source.content, tracking.published(run_id, seen.metrics))
        attempt.begin({FINGERPRINT_TAG: "f", OPTIONS_TAG: json.dumps(options.to_dict())})
        spool = folder.spool(attempt.number)
        spool.write_journal(attempt.journal("RUNNING", attempt.first_epoch - 1))
        spool.log_file.write_text("a line\n")
        retention = Retention.of(options)
        publisher = Publisher(
            attempt, store, spool, retention, manifests, published=start.published
        )
        pipeline = Pipeline(
            publisher, spool, options.max_spool_bytes, options.upload == "sync", start.monitor
        )
        reporter = Reporter(Console(file=io.StringIO()))
        life = Lifecycle(attempt, pipeline, folder, subject.options, lambda: None)
        return Run(subject, attempt, pipeline, life, start, reporter)

    def source(self, run_id):
        record = self.tracking.get_run(run_id)
        store = CheckpointStore(self.tracking.artifacts(record), run_id)
        return find_source(record, store, None, KIND)

    def contents(self, run_id):
        """Return what each checkpoint holds, oldest first."""
        record = self.tracking.get_run(run_id)
        store = CheckpointStore(self.tracking.artifacts(record), run_id)
        return [store.get(m).to_dict() for m in store.list()]

    def names(self, run_id):
        """Return the names of the checkpoints in the store, oldest first."""
        return [manifest.name for manifest in self.source(run_id).manifests]

    def spool(self, run_id, attempt=1):
        return RunFolder(environment.run_folder(self.tracking.uri, run_id)).spool(attempt)

    def final(self, run_id):
        """Return the newest checkpoint, flat, without what two equal runs differ in."""
        content = self.source(run_id).content.to_dict()
        for name in ("timestamp", "environment"):
            del content[name]
        history = History()
        history.load_state_dict(content["history"])
        content["history"] = {
            key: history.values(key) for key in content["history"] if not is_wall_clock(key)
        }
        return flat(content)

    def rows(self, run_id):
        """Return what is published of the training: (key, step) to its [(value, timestamp)]."""
        found = {}
        keys = self.tracking.get_run(run_id).metrics
        for key in (key for key in keys if not is_sampled(key)):
            for metric in self.tracking.client.get_metric_history(run_id, key):
                found.setdefault((key, metric.step), []).append((metric.value, metric.timestamp))
        return found

    def status(self, run_id):
        return self.tracking.get_run(run_id).status

    def damage(self, run_id, epoch):
        root = Path(self.tracking.get_run(run_id).artifact_uri)
        path = root / "checkpoints" / f"epoch_{epoch}" / "checkpoint.pth"
        path.write_bytes(path.read_bytes()[:-1] + b"?")


def flat(value):
    """Return nested content as one comparable list; tensors as bytes."""
    if isinstance(value, torch.Tensor):
        return [value.numpy().tobytes()]
    if isinstance(value, dict):
        return [x for key in sorted(value, key=str) for x in (key, *flat(value[key]))]
    if isinstance(value, list | tuple):
        return [x for item in value for x in flat(item)]
    return [repr(value)]


class Away(Tracking):
    """A connection that can be cut: metrics are not taken any more, as where a server is gone."""

    is_away = is_dead = False

    def log_points(self, *points_and_tags):
        if self.is_dead:
            raise SystemExit  # ends the thread, as the end of the process would
        if self.is_away:
            raise StoreUnavailable("away for good")
        super().log_points(*points_and_tags)


@pytest.fixture
def away(tracking):
    """Return a connection that can be cut; what still waits for it ends with the test."""
    connection = Away()
    yield connection
    connection.is_dead = True


def is_sampled(key):
    """Tell whether a metric is of the machine at some time, not of an epoch."""
    of_epochs = ("epoch_seconds", "samples_per_second", "checkpoint_")
    return key.startswith("system/") and not key[len("system/") :].startswith(of_epochs)


def once_each(rows, last_epoch):
    """Tell whether every metric has every epoch exactly once.

    What a commit costs is told by later epochs, of those commits that there were.
    """
    assert all(len(values) == 1 for values in rows.values())
    rows = {where: v for where, v in rows.items() if "checkpoint_" not in where[0]}
    keys = {key for key, _ in rows}
    complete = {(key, epoch) for key in keys for epoch in range(1, last_epoch + 1)}
    return set(rows) == complete and all(len(values) == 1 for values in rows.values())


@pytest.fixture
def bench(tracking, tmp_path):
    return Bench(tracking, tmp_path)


@pytest.fixture
def run_id(bench):
    return bench.new_run()


def test_a_run_records_publishes_and_finishes(bench, run_id):
    """After a run each metric has each epoch once, and the run is FINISHED (invariant 9)."""
    with bench.begin(run_id) as run:
        train(run)
    assert once_each(bench.rows(run_id), 4)
    seen = bench.tracking.get_run(run_id)
    assert seen.status == "FINISHED"
    assert (seen.metrics["best_val_pearson"], seen.metrics["best_epoch"]) == (0.6, 4)
    measured = {
        "system/epoch_seconds",
        "system/samples_per_second",
        "train_loss",
        "val_loss",
    }
    assert measured < set(seen.metrics)
    assert run.step == 4 * STEPS


def test_what_the_machine_did_is_not_among_what_was_learned(bench, run_id):
    """In MLflow's pages it is in the section of the machine, which comes below the losses."""
    with bench.begin(run_id) as run:
        train(run)
    keys = bench.tracking.get_run(run_id).metrics
    learned = {"train_loss", "val_loss", "val_pearson", "best_val_pearson", "best_epoch"}
    assert {key for key in keys if not key.startswith("system/")} == learned


def test_a_run_of_an_older_version_keeps_its_curves(bench, run_id, monkeypatch):
    """What was measured without a section goes on without: each metric is one curve."""
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "SYSTEM", "")
        with bench.begin(run_id, epochs=2) as run:
            train(run)
    with bench.begin(run_id, epochs=4) as run:
        train(run)
    rows = bench.rows(run_id)
    assert once_each(rows, 4)
    assert ("epoch_seconds", 4) in rows
    assert ("system/epoch_seconds", 4) not in rows


def test_times_rise_from_epoch_to_epoch(bench, run_id):
    """All values of an epoch have one time, later than that of the epoch before."""
    with bench.begin(run_id) as run:
        train(run)
    times = {}
    for (_, epoch), [(_, timestamp)] in bench.rows(run_id).items():
        times.setdefault(epoch, set()).add(timestamp)
    assert [len(times[epoch]) for epoch in (1, 2, 3, 4)] == [1, 1, 1, 1]
    in_order = [times[epoch].pop() for epoch in (1, 2, 3, 4)]
    assert in_order == sorted(set(in_order))


def test_a_checkpoint_says_what_it_was_made_of(bench, run_id):
    """Options, data and environment are in it, beside the state (design 4)."""
    with bench.begin(run_id, epochs=1) as run:
        train(run)
    content = bench.source(run_id).content
    assert content.config == run.options.to_dict()
    assert content.data == {"fingerprint": "d", "rows": 16}
    assert {"host", "versions", "code"} <= set(content.environment)
    assert content.timestamp > 1.7e9
    assert (content.epoch, content.step, content.extras["aucs"]) == (1, STEPS, [0.3])


@pytest.mark.parametrize("upload", ["sync", "async"])
@pytest.mark.parametrize("stop_at", [(1, 2), (2, 1), (3, 2), (4, 1)])
def test_resume_equals_never_having_stopped(bench, run_id, stop_at, upload):
    """Invariant 5: weights, moments, random numbers and metrics are the same bit for bit."""
    options = {"schedule": "plateau", "upload": upload}
    with pytest.raises(Stopped), bench.begin(run_id, **options) as run:
        train(run, stop_at=stop_at)
    # In the background, one that is neither kept nor the best may have been passed over.
    possible = range(2 if upload == "async" and stop_at[0] == 4 else stop_at[0] - 1, stop_at[0])
    assert bench.source(run_id).epoch in possible
    with bench.begin(run_id, **options) as run:
        train(run)
    assert once_each(bench.rows(run_id), 4)

    whole = bench.new_run()
    with bench.begin(whole, **options) as run:
        train(run)
    assert bench.final(run_id) == bench.final(whole)


def test_a_resume_first_completes_what_was_committed(bench, run_id, away):
    """Metrics that an attempt could not publish any more are published by the next (invariant 2).

    There is nothing left to train, so no later commit would have taken them along.
    """
    cut = partial(setattr, away, "is_away", True)
    with bench.begin(run_id, away, upload="sync", drain_seconds=0) as run:
        train(run, stop_at=(4, 1), act=cut)
    assert bench.source(run_id).epoch == 4
    assert once_each(bench.rows(run_id), 3)
    with bench.begin(run_id) as run:
        train(run)
    assert once_each(bench.rows(run_id), 4)
    assert bench.tracking.get_run(run_id).tags["train.epoch"] == "4"
    assert bench.status(run_id) == "FINISHED"


def test_what_is_not_published_at_the_end_waits_on_this_disk(bench, run_id, away, caplog):
    """Invariant 10: a run whose server is gone ends without an error, and says what waits."""
    away.is_away = True
    with bench.begin(run_id, away, drain_seconds=0) as run:
        train(run)
    spool = bench.spool(run_id)
    journal = spool.read_journal()
    assert (journal["status"], journal["last_epoch"]) == ("FINISHED", 4)
    assert spool.list()[-1].epoch == 4
    warning = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"][-1]
    assert f"checkpoints and the end of run {run_id} wait on this disk ({spool.folder})" in warning
    assert f"`onward sync {run_id}` publishes them" in warning
    assert bench.status(run_id) == "RUNNING", "it is said to be over before it is"
    assert not run._pipeline._upload_thread.is_alive(), "this process lives on, and would publish"


def test_nobody_else_has_the_run_while_its_last_upload_is_under_way(bench, run_id, monkeypatch):
    """A process that lives on, a notebook's, would publish beside the other."""
    reached, free, upload = threading.Event(), threading.Event(), Artifacts.upload

    def held(self, local_file, folder, **options):
        if "epoch_4" in folder:
            reached.set()
            assert free.wait(60)
        upload(self, local_file, folder, **options)

    monkeypatch.setattr(Artifacts, "upload", held)
    monkeypatch.setattr(pipeline_module, "LET_GO_SECONDS", 0.0)
    with bench.begin(run_id, drain_seconds=0.5) as run:
        train(run)
        assert reached.wait(60)
    folder = RunFolder(environment.run_folder(bench.tracking.uri, run_id))
    assert not folder.acquire()
    free.set()
    wait_for(folder.acquire)
    folder.release()
    assert [content["epoch"] for content in bench.contents(run_id)][-1] == 4


def test_resume_with_more_epochs_goes_on(bench, run_id):
    """A finished run is extended: one curve, and the result of the longer run (invariant 5)."""
    for epochs in (2, 6):
        with bench.begin(run_id, epochs=epochs) as run:
            train(run)
    assert once_each(bench.rows(run_id), 6)
    whole = bench.new_run()
    with bench.begin(whole, epochs=6) as run:
        train(run)
    assert bench.final(run_id) == bench.final(whole)


@pytest.mark.parametrize("checkpoint_freq", [1, 100])
def test_saving_does_not_disturb_training(bench, run_id, checkpoint_freq):
    """Invariant 4: weights and random numbers are those of the same loop without a run."""
    with bench.begin(run_id, checkpoint_freq=checkpoint_freq) as run:
        train(run)
    saved = bench.source(run_id).content
    model, optimizer, schedule = build(run.options)
    for epoch in (1, 2, 3, 4):
        optimizer.param_groups[0]["lr"] = schedule.lr(epoch)
        for _ in range(STEPS):
            make_step(model, optimizer)
    assert flat(dict(model.state_dict())) == flat(saved.parts["model"])
    assert flat(rng.capture()) == flat(saved.rng)


def test_weights_are_set_aside_before_a_step_changes_them(bench, run_id, monkeypatch):
    """Invariant 4, the other way round: a copy that is late is waited for right before the step."""
    stepped, copy_all = threading.Event(), staging._copy_all

    def copy_late(copies, staged):
        stepped.clear()
        stepped.wait(0.1)  # a step that does not wait comes now
        copy_all(copies, staged)

    whole = bench.new_run()
    with bench.begin(whole, checkpoint_freq=1) as run:
        train(run)
    monkeypatch.setattr(staging, "_copy_all", copy_late)
    hook = register_optimizer_step_post_hook(lambda *arguments: stepped.set())
    with bench.begin(run_id, checkpoint_freq=1) as run:
        train(run)
    hook.remove()
    for key in ("model_state_dict", "optimizer_state_dict", "rng"):
        saved = [[flat(content[key]) for content in bench.contents(r)] for r in (whole, run_id)]
        assert saved[0] == saved[1]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Interrupted("SIGTERM", 1), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
        (NonFinite("loss", math.nan, 2, 3, 0.1), "FAILED"),
        (RuntimeError("out of memory"), "FAILED"),
    ],
)
def test_the_status_tells_how_it_ended(bench, run_id, error, status):
    """Stopped is KILLED and can be resumed; every other error is FAILED (invariant 9)."""

    def act():
        assert bench.status(run_id) == "RUNNING"
        raise error

    with pytest.raises(type(error)), bench.begin(run_id) as run:
        train(run, stop_at=(2, 1), act=act)
    assert bench.status(run_id) == status
    assert bench.source(run_id).epoch == 1
    assert once_each(bench.rows(run_id), 1)
    root = Path(bench.tracking.get_run(run_id).artifact_uri)
    assert (root / "logs" / "attempt_1.log").read_text() == "a line\n"


def test_the_attempts_own_run_has_the_same_end(bench, run_id):
    """The child of a later attempt is closed too, and its name says what it did."""
    with pytest.raises(Stopped), bench.begin(run_id) as run:
        train(run, stop_at=(2, 1))
    with pytest.raises(KeyboardInterrupt), bench.begin(run_id) as run:
        train(run, stop_at=(4, 1), act=lambda: signal.default_int_handler(2, None))
    child = bench.tracking.get_run(run.attempt.child_id)
    assert child.run_id != run_id
    assert (child.status, bench.status(run_id)) == ("KILLED", "KILLED")
    assert child.name.startswith("attempt 2: epochs 2-3 on ")


LONG = {"num_steps": 4}  # an epoch with room for checkpoints inside it
# Each is saved, and stays, if nothing else is in its way.
ALL = {"upload": "sync", "keep_last": 99, "checkpoint_minutes": 0}


@pytest.fixture
def clock(monkeypatch):
    """Let an optimizer step take a minute, and nothing else any time; return the clock."""
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(saving_module, "time", clock)
    step = register_optimizer_step_post_hook(lambda *_: setattr(clock, "now", clock.now + 60))
    yield clock
    step.remove()


@pytest.fixture
def busy(monkeypatch):
    """Let the one before always be still being written: only what must be saved is."""
    monkeypatch.setattr(Stager, "is_free", property(lambda stager: False))


@pytest.fixture
def saved(monkeypatch):
    """Return the (epoch, step) of all that is set aside, in order."""
    found, stage = [], Stager.stage

    def noted(stager, state, may_wait=None):
        found.append((state["epoch"], state["step"]))
        return stage(stager, state, may_wait)

    monkeypatch.setattr(Stager, "stage", noted)
    return found


@pytest.mark.parametrize(
    ("every", "names"),
    [
        (1, [*(f"global_step_{n}" for n in (1, 2, 3)), "epoch_1",
             *(f"global_step_{n}" for n in (5, 6, 7)), "epoch_2"]),
        (3, ["global_step_3", "epoch_1", "global_step_6", "epoch_2"]),
        (4, ["epoch_1", "epoch_2"]),
        (7, ["epoch_1", "global_step_7", "epoch_2"]),
        (0, ["epoch_1", "epoch_2"]),
    ],
)  # fmt: skip
def test_every_so_many_steps_one_is_saved_but_not_at_an_epochs_end(bench, run_id, every, names):
    """`checkpoint_steps` counts the run's steps; what ends an epoch is the epoch's checkpoint."""
    with bench.begin(run_id, epochs=2, checkpoint_steps=every, **ALL) as run:
        train(run, **LONG)
    assert bench.names(run_id) == names
    manifests = bench.source(run_id).manifests
    assert {m.epoch_step: dict(m.metrics) for m in manifests if m.epoch_step} == {
        m.step % 4: {} for m in manifests if m.epoch_step
    }
    assert not any(m.kept for m in manifests if m.epoch_step)
    assert once_each(bench.rows(run_id), 2)


@pytest.mark.parametrize(
    ("minutes", "names"),
    [
        (3, ["global_step_3", "epoch_1", "global_step_7", "epoch_2"]),
        (2.5, ["global_step_3", "epoch_1", "global_step_7", "epoch_2"]),
        (4, ["epoch_1", "epoch_2"]),
        (0, ["epoch_1", "epoch_2"]),
    ],
)
def test_inside_a_long_epoch_one_is_saved_by_time(bench, run_id, clock, minutes, names):
    """`checkpoint_minutes` counts from the last one that was saved, an epoch's end included."""
    options = {**ALL, "checkpoint_minutes": minutes}
    with bench.begin(run_id, epochs=2, **options) as run:
        train(run, **LONG)
    assert bench.names(run_id) == names


def test_one_that_is_due_and_passed_over_is_due_again(bench, run_id, clock, monkeypatch):
    """Where the one before is still being written, the next step tries again."""
    steps = []

    def is_free(stager):
        steps.append(run.step)
        return run.step != 2

    monkeypatch.setattr(Stager, "is_free", property(is_free))
    with bench.begin(run_id, epochs=1, **{**ALL, "checkpoint_minutes": 2}) as run:
        train(run, **LONG)
    assert steps[:2] == [2, 3]
    assert bench.names(run_id) == ["global_step_3", "epoch_1"]


def test_saving_inside_an_epoch_does_not_disturb_training(bench, run_id):
    """Invariant 4: with a checkpoint after each step all is as with none."""
    whole = bench.new_run()
    for one, every in ((run_id, 1), (whole, 0)):
        with bench.begin(one, upload="sync", checkpoint_steps=every) as run:
            train(run, **LONG)
    contents = [bench.source(one).content for one in (run_id, whole)]
    compared = [
        {name: flat(part) for name, part in {**one.parts, "rng": one.rng}.items()}
        for one in contents
    ]
    assert compared[0] == compared[1]


@pytest.mark.parametrize(
    ("number", "moment", "step"),
    [
        (signal.SIGTERM, 1, 5),
        (signal.SIGINT, 3, 7),
        (signal.SIGHUP, 4, 8),
        (signal.SIGUSR1, EVALUATION, 8),
    ],
)
def test_a_signal_saves_the_steps_made_and_a_resume_goes_on_from_them(
    bench, run_id, number, moment, step
):
    """Invariants 2, 5, 9: KILLED at that step; resumed, nothing is lost, made or shown twice."""
    stopped = pytest.raises(Interrupted, match=f"{number.name} after 1 epochs and {step - 4} steps")
    with stopped as caught, bench.begin(run_id) as run:
        train(run, stop_at=(2, moment), act=lambda: signal.raise_signal(number), **LONG)
    found = caught.value.signal_name, caught.value.epoch, caught.value.epoch_step
    assert found == (number.name, 1, step - 4)
    assert run.step == step, "the step under way was not completed"
    source = bench.source(run_id)
    assert (source.manifest.name, source.manifest.kept) == (f"global_step_{step}", False)
    assert source.manifest.metrics == {}
    assert bench.status(run_id) == "KILLED"
    assert once_each(bench.rows(run_id), 1)
    with bench.begin(run_id) as run:
        train(run, **LONG)
    assert run.step == 16
    assert once_each(bench.rows(run_id), 4)
    whole = bench.new_run()
    with bench.begin(whole) as run:
        train(run, **LONG)
    assert bench.final(run_id) == bench.final(whole)


@pytest.mark.parametrize(
    ("moment", "name"), [(2, "global_step_6"), (EVALUATION, "global_step_8"), (END, "epoch_2")]
)
def test_what_a_stop_saves_is_never_passed_over(bench, run_id, busy, saved, moment, name):
    """A signal takes the state along even where the one before is still being written.

    Of an epoch whose own checkpoint was passed over that is the epoch's, with its metrics.
    """
    scores = {1: 0.9, 2: 0.1}  # so that only the first is the best, which is never passed over
    stop = {"stop_at": (2, moment), "act": lambda: signal.raise_signal(signal.SIGTERM)}
    with pytest.raises(Interrupted), bench.begin(run_id, checkpoint_freq=99) as run:
        train(run, scores, **stop, **LONG)
    assert bench.names(run_id) == ["epoch_1", name]
    assert saved == [(1, 4), (run.state.epoch, run.step)]
    newest = bench.source(run_id).manifest
    assert newest.score == (0.1 if moment == END else None)
    assert once_each(bench.rows(run_id), 2 if moment == END else 1)


@pytest.mark.parametrize("stop_at", [(1, 2), (2, EVALUATION)])
def test_after_max_minutes_the_state_is_saved_and_the_run_can_be_resumed(bench, run_id, stop_at):
    """The alarm stops between two steps or in an evaluation, as a signal does; exit code 75."""
    stopped = pytest.raises(Interrupted, match="stopped by max_minutes after")
    alarm = partial(signal.raise_signal, signal.SIGALRM)
    with stopped as caught, bench.begin(run_id, max_minutes=60) as run:
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 3600
        train(run, stop_at=stop_at, act=alarm)
    assert caught.value.exit_code == 75
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0, "it would end the process later"
    assert bench.tracking.get_run(run_id).status == "KILLED"
    with bench.begin(run_id) as run:
        train(run)
    assert bench.tracking.get_run(run_id).status == "FINISHED"


def test_minutes_that_were_over_before_training_stop_it_at_its_first_step(
    bench, run_id, monkeypatch
):
    """They count from the process's start: what a table took to read is not trained on top."""

    def alarm_is_over():
        return signal.getitimer(signal.ITIMER_REAL)[0] == 0

    monkeypatch.setattr(environment, "_STARTED", time.monotonic() - 90)
    assert environment.seconds_left(0) == math.inf
    assert -31 < environment.seconds_left(1) < -29
    with pytest.raises(Interrupted), bench.begin(run_id, max_minutes=1) as run:
        train(run, stop_at=(1, 2), act=lambda: wait_for(alarm_is_over))


def stopped_at_once(run):
    """Train, with a signal that came before the first step."""
    signal.raise_signal(signal.SIGTERM)
    train(run, **LONG)


@pytest.mark.parametrize(
    ("stop_at", "expected"),
    [
        ((1, 2), [(0, 2)]),  # saved anyway, after the step under way
        ((1, 3), [(0, 2), (0, 3)]),
        ((1, EVALUATION), [(0, 2), (0, 4)]),
        ((1, END), [(0, 2), (1, 4)]),
        ((2, 2), [(0, 2), (1, 4), (1, 6)]),
    ],
)
def test_nothing_is_saved_twice(bench, run_id, saved, stop_at, expected):
    """What is set aside already is not set aside again because a signal comes."""
    options = {**ALL, "checkpoint_steps": 2}
    with pytest.raises(Interrupted), bench.begin(run_id, **options) as run:
        train(run, stop_at=stop_at, act=lambda: signal.raise_signal(signal.SIGHUP), **LONG)
    assert saved == expected
    before = bench.names(run_id)
    with pytest.raises(Interrupted), bench.begin(run_id, **options) as run:
        stopped_at_once(run)
    assert saved == expected, "a resume that was stopped at once saved what it had got"
    assert bench.names(run_id) == before


def test_a_stop_before_the_first_step_saves_nothing(bench, run_id, saved):
    """There is nothing to lose, and the run can be resumed: from its beginning."""
    with pytest.raises(Interrupted) as caught, bench.begin(run_id) as run:
        stopped_at_once(run)
    assert (caught.value.epoch, caught.value.epoch_step, saved) == (0, 0, [])
    assert bench.status(run_id) == "KILLED"


def test_the_time_of_an_epoch_is_that_of_all_its_attempts(bench, run_id, clock):
    """It goes on where the stop was; what lay between is not counted."""
    with pytest.raises(Interrupted), bench.begin(run_id, epochs=1) as run:
        train(run, stop_at=(1, 3), act=lambda: signal.raise_signal(signal.SIGTERM), **LONG)
    clock.now += 100_000
    with bench.begin(run_id, epochs=1) as run:
        train(run, **LONG)
    [(seconds, _)] = bench.rows(run_id)["system/epoch_seconds", 1]
    assert seconds == 4 * 60


@pytest.mark.parametrize(("ending", "limit"), [(None, 60.0), (signal.SIGTERM, 15.0)])
def test_after_a_signal_the_end_waits_no_longer_than_it_may(
    bench, run_id, clock, monkeypatch, ending, limit
):
    """`grace_seconds` counts from the signal, in place of `drain_seconds`."""
    monkeypatch.setattr(signals, "time", clock)
    run, limits = bench.begin(run_id, epochs=2, drain_seconds=60, grace_seconds=75), []
    close = run._pipeline.close

    def noted(ending, drain_seconds):
        limits.append(min(drain_seconds, run._pipeline.seconds_left()))
        return close(ending, 60)

    monkeypatch.setattr(run._pipeline, "close", noted)
    act = partial(signal.raise_signal, ending) if ending else None
    stop_at = (2, 1) if ending else ()
    with contextlib.suppress(Interrupted), run:
        train(run, stop_at=stop_at, act=act)
    assert limits == [limit]


def test_a_stop_without_a_server_loses_nothing(bench, run_id, away):
    """Invariant 10: what cannot go up in time waits on this disk, and the next attempt takes it."""
    away.is_away = True
    with pytest.raises(Interrupted), bench.begin(run_id, away, grace_seconds=0) as run:
        train(run, stop_at=(2, 3), act=lambda: signal.raise_signal(signal.SIGTERM), **LONG)
    assert bench.spool(run_id).list()[-1].name == "global_step_7"
    assert bench.spool(run_id).read_journal()["status"] == "KILLED"
    with bench.begin(run_id) as run:
        assert run.start.content.step == 7
        train(run, **LONG)
    assert once_each(bench.rows(run_id), 4)


def test_published_values_stay_when_an_epoch_is_trained_again(bench, run_id, caplog):
    """After a fallback the published value wins, and the difference is told once (invariant 2)."""
    with bench.begin(run_id, checkpoint_freq=1) as run:
        train(run)
    before = bench.rows(run_id)
    for epoch in (3, 4):
        bench.damage(run_id, epoch)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "onward"), bench.begin(run_id, epochs=5) as run:
        train(run, scores={**SCORES, 3: 0.41, 4: 0.99})
    after = bench.rows(run_id)
    assert once_each(after, 5)
    assert {where: after[where] for where in before} == before, "wall-clock ones included"
    differences = [r for r in caplog.records if "trained again" in r.getMessage()]
    assert len(differences) == 1
    assert "val_pearson=0.41; 0.4 was published" in differences[0].getMessage()
    assert run.state.history.values("val_pearson") == [0.3, 0.5, 0.4, 0.6, 0.1]
    assert run.best == (0.6, 4)


def test_an_epoch_trained_again_alike_is_no_difference(bench, run_id, caplog):
    """On the same machine the values are the same, NaN and infinity included: no warning."""
    scores, more = {**SCORES, 3: math.nan}, {"a": math.nan, "b": math.inf, "c": -math.inf}
    with bench.begin(run_id, checkpoint_freq=1) as run:
        train(run, scores, more=more)
    before = bench.rows(run_id)
    for epoch in (3, 4):
        bench.damage(run_id, epoch)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "onward"), bench.begin(run_id) as run:
        train(run, scores, more=more)
    assert bench.source(run_id).epoch == 4
    assert not [r for r in caplog.records if "trained again" in r.getMessage()]
    assert flat(list(bench.rows(run_id).items())) == flat(list(before.items()))


def test_early_stopping_follows_from_epoch_and_best(bench, run_id):
    """It stops after so many epochs without a better one, is FINISHED, and keeps its last."""
    with bench.begin(run_id, epochs=6, early_stopping=2, checkpoint_freq=100) as run:
        train(run, scores={1: 0.3, 2: 0.5, 3: 0.4, 4: 0.4})
    source = bench.source(run_id)
    assert (source.epoch, source.manifest.kept) == (4, True)
    assert [m.epoch for m in source.manifests] == [2, 4]
    assert bench.status(run_id) == "FINISHED"


def test_a_resume_of_an_early_stopped_run_trains_nothing(bench, run_id):
    """Patience is part of what a resume knows; a larger one goes on."""
    for patience, done in ((2, 4), (2, 4), (4, 6)):
        with bench.begin(run_id, epochs=6, early_stopping=patience) as run:
            train(run, scores={1: 0.3, 2: 0.5, 3: 0.4, 4: 0.4, 5: 0.4, 6: 0.4})
        assert bench.source(run_id).epoch == done
    assert once_each(bench.rows(run_id), 6)


def test_early_stopping_without_any_score(bench, run_id):
    """Where the correlation is undefined from the start, patience counts from the start."""
    with bench.begin(run_id, epochs=6, early_stopping=3) as run:
        train(run, scores=dict.fromkeys(SCORES, math.nan))
    assert bench.source(run_id).epoch == 3
    assert run.state.best_epoch is None


LOWEST = Monitor("val_rmse", "min")


def errors(*values):
    """Return what logs those values of `LOWEST`, one for each epoch of the run."""
    return {"more": lambda epoch: {LOWEST.name: values[epoch - 1]}}


@pytest.mark.parametrize(
    ("values", "best", "stored"),
    [
        ((0.5, 0.2, 0.4, 0.3), (0.2, 2), [2, 4]),
        ((0.5, 0.4, 0.3, 0.2), (0.2, 4), [3, 4]),
        ((0.5, 0.5, 0.6, 0.5), (0.5, 1), [1, 2, 4]),
        ((-0.5, 0.0, -1.0, 1.0), (-1.0, 3), [1, 3, 4]),
        ((-math.inf, 0.2, 0.4, 0.3), (0.2, 2), [2, 4]),
        ((math.nan, 0.2, -math.inf, math.nan), (0.2, 2), [2, 4]),
        ((math.nan, math.nan, -math.inf, math.inf), None, [4]),
    ],
)
def test_where_less_is_better_the_lowest_is_best(bench, run_id, values, best, stored):
    """State, metrics, pointer and what stays agree; infinity and NaN are never best."""
    options = {"monitor": LOWEST, "upload": "sync", "checkpoint_freq": 99, "keep_best": 2}
    with bench.begin(run_id, **options) as run:
        train(run, **errors(*values))
    assert run.best == best
    seen = bench.tracking.get_run(run_id)
    told = seen.metrics.get(f"best_{LOWEST.name}"), seen.metrics.get("best_epoch")
    assert told == (best or (None, None))
    assert seen.tags.get(BEST_EPOCH_TAG) == (str(best[1]) if best else None)
    source = bench.source(run_id)
    assert [m.epoch for m in source.manifests] == stored
    assert source.content.best_epoch == (best[1] if best else None)
    assert {m.monitor for m in source.manifests} == {source.content.monitor} == {LOWEST}


def test_the_metric_that_a_run_is_judged_by_stays(bench, run_id):
    """A resume goes by the checkpoint, whatever the task says now."""
    options = {"upload": "sync", "checkpoint_freq": 99}
    with pytest.raises(Stopped), bench.begin(run_id, monitor=LOWEST, **options) as run:
        train(run, **errors(0.2, 0.4, 0.3), stop_at=(4, 1))
    assert run.best == (0.2, 1)
    with bench.begin(run_id, **options) as run:
        assert run.monitor == LOWEST
        train(run, **errors(0.2, 0.4, 0.3, 0.1))
    assert run.best == (0.1, 4)
    assert [m.epoch for m in bench.source(run_id).manifests] == [4]


@pytest.mark.parametrize("cut", [None, 2, 3])
def test_early_stopping_waits_for_a_lower_value(bench, run_id, cut):
    """Where less is better, too, after a resume as without one."""
    values = (0.3, 0.2, 0.4, 0.2, 0.1, 0.1)
    options = {"monitor": LOWEST, "epochs": 6, "early_stopping": 2, "upload": "sync"}
    if cut is not None:
        with pytest.raises(Stopped), bench.begin(run_id, **options) as run:
            train(run, **errors(*values), stop_at=(cut, 2))
    with bench.begin(run_id, **options) as run:
        train(run, **errors(*values))
    assert (run.state.epoch, run.best) == (4, (0.2, 2))
    assert bench.status(run_id) == "FINISHED"
    assert bench.source(run_id).manifest.kept


def test_the_best_where_less_is_better_is_never_passed_over(bench, run_id, busy, saved):
    """It is worth waiting for the one before; a higher value is not."""
    options = {"monitor": LOWEST, "checkpoint_freq": 99}
    with bench.begin(run_id, **options) as run:
        train(run, **errors(0.5, 0.6, 0.4, 0.9))
    assert saved == [(1, 2), (3, 6), (4, 8)]


def test_the_log_names_the_metric_by_which_it_was_judged(bench, run_id, caplog):
    """At the end, and where training stopped since it became no better."""
    options = {"monitor": LOWEST, "epochs": 6, "early_stopping": 2}
    with caplog.at_level(logging.INFO, "onward"), bench.begin(run_id, **options) as run:
        train(run, **errors(0.3, 0.2, 0.4, 0.2))
    lines = [r.getMessage() for r in caplog.records]
    assert "FINISHED after epoch 4, best val_rmse 0.20000 (epoch 2)" in lines
    assert "Stopped early: val_rmse has not become better for 2 epochs" in lines


def test_every_nth_and_the_last_are_kept(bench, run_id):
    """checkpoint_freq and the end of the run decide what stays, beside the best."""
    with bench.begin(run_id, epochs=5, checkpoint_freq=2) as run:
        train(run)
    kept = {m.epoch: m.kept for m in bench.source(run_id).manifests}
    assert kept == {2: True, 4: True, 5: True}


def test_a_checkpoint_of_another_model_is_refused_in_one_line(bench, run_id):
    """Weights that do not fit are an error of ours, and the run is FAILED (invariant 7)."""
    with pytest.raises(Stopped), bench.begin(run_id) as run:
        train(run, stop_at=(2, 1))
    refused = pytest.raises(CheckpointError, match="epoch 1 does not fit")
    with refused as caught, bench.begin(run_id) as run:
        train(run, width=5)
    assert "\n" not in str(caught.value)
    assert bench.status(run_id) == "FAILED"
    assert bench.source(run_id).epoch == 1


def test_an_epoch_ends_when_the_next_is_asked_for(bench, run_id):
    """A loop that says nothing of its end loses no epoch: each is complete, saved, published."""
    run = bench.begin(run_id, epochs=3, upload="sync", keep_last=99)
    run.restore(parts_of(*build(run.options)))
    with run:
        for epoch in run.epochs(range(1, 4)):
            assert [m.epoch for m in bench.source(run_id).manifests] == list(range(1, epoch))
            assert run.state.epoch == epoch - 1
    assert bench.names(run_id) == ["epoch_1", "epoch_2", "epoch_3"]
    assert once_each(bench.rows(run_id), 3)
    assert bench.status(run_id) == "FINISHED"


def leave():
    """Leave the loop where it is, by `break`."""
    return True


@pytest.mark.parametrize("last", [1, 2])
def test_a_break_ends_the_epoch_as_done(bench, run_id, last):
    """What the loop has logged is saved and published, and the run goes on behind it."""
    with bench.begin(run_id) as run:
        train(run, stop_at=(last, END), act=leave)
    assert (run.state.epoch, run.step) == (last, last * STEPS)
    source = bench.source(run_id)
    assert (source.epoch, source.manifest.name) == (last, f"epoch_{last}")
    assert source.manifest.score == SCORES[last]
    assert bench.status(run_id) == "FINISHED"
    assert once_each(bench.rows(run_id), last)
    with bench.begin(run_id) as run:
        train(run)
    assert once_each(bench.rows(run_id), 4)
    whole = bench.new_run()
    with bench.begin(whole) as run:
        train(run)
    assert bench.final(run_id) == bench.final(whole)


def test_after_the_last_epoch_nothing_is_ended_once_more(bench, run_id, saved):
    """What comes behind the loop is of no epoch."""
    with bench.begin(run_id, epochs=2) as run:
        train(run)
    assert saved == [(1, STEPS), (2, 2 * STEPS)]
    assert run.state.epoch == 2


@pytest.mark.parametrize("moment", [2, EVALUATION, END])
def test_an_error_leaves_the_epoch_as_never_begun(bench, run_id, moment):
    """Even where all of it was logged: nothing of it is saved or published (invariant 2)."""
    with pytest.raises(Stopped), bench.begin(run_id) as run:
        train(run, stop_at=(2, moment))
    assert run.state.epoch == 1
    assert bench.names(run_id) == ["epoch_1"]
    assert once_each(bench.rows(run_id), 1)
    assert bench.status(run_id) == "FAILED"
    with bench.begin(run_id) as run:
        train(run)
    whole = bench.new_run()
    with bench.begin(whole) as run:
        train(run)
    assert bench.final(run_id) == bench.final(whole)


def test_an_error_in_ending_a_left_epoch_ends_the_run_with_it(bench, run_id, monkeypatch):
    """A `break` whose epoch cannot be saved is not FINISHED (invariants 7, 9)."""
    run = bench.begin(run_id)
    refused = CheckpointError("cannot be saved")

    def refuse(*arguments):
        raise refused

    def act():
        monkeypatch.setattr(run._pipeline, "save", refuse)
        return True

    with pytest.raises(CheckpointError, match="cannot be saved"), run:
        train(run, stop_at=(2, END), act=act)
    assert bench.status(run_id) == "FAILED"
    assert bench.names(run_id) == ["epoch_1"]


def test_the_numbers_of_the_epochs_are_the_callers(bench, run_id):
    """They are for the loop to look at; what is counted is how many there were."""
    seen = []
    for num_epochs in (2, 4):
        run = bench.begin(run_id)
        with run:
            run.restore(parts_of(*build(run.options)))
            for number in run.epochs(range(10, 10 + 10 * num_epochs, 10)):
                seen.append(number)
                run.log(val_pearson=number / 100)
    assert seen == [10, 20, 30, 40]
    assert run.best == (0.4, 4)
    assert once_each(bench.rows(run_id), 4)


def test_what_is_logged_twice_in_an_epoch_is_refused_and_of_one_epoch(bench, run_id):
    """Each call adds its metrics; the same one again is refused, and the first value stays."""
    with bench.begin(run_id, epochs=2) as run:
        run.restore(parts_of(*build(run.options)))
        for epoch in run.epochs(range(1, 3)):
            run.log(val_pearson=epoch / 10)
            with pytest.raises(UsageError, match="val_pearson is logged already"):
                run.log(val_loss=0.7, val_pearson=0.9)
            run.log(val_loss=0.5)
    rows = bench.rows(run_id)
    assert once_each(rows, 2)
    assert [rows["val_pearson", epoch][0][0] for epoch in (1, 2)] == [0.1, 0.2]
    assert [rows["val_loss", epoch][0][0] for epoch in (1, 2)] == [0.5, 0.5]
    assert run.best == (0.2, 2)
    assert {m.epoch: m.score for m in bench.source(run_id).manifests} == {2: 0.2}


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_what_was_logged_before_a_stop_inside_the_epoch_is_told_once(bench, run_id, stop_at):
    """The resume logs it again, with what comes behind it: each metric has each epoch once."""

    def train_in_two_parts(run, stop_at=None):
        run.restore(parts_of(*build(run.options)))
        for epoch in run.epochs(range(1, 3)):
            for _indices in run.order(SAMPLES, 8):
                run.mean("train_loss").add(1.0)
            for part, name in enumerate(("train_loss", "val_pearson", "val_loss")):
                with run.interruptible():
                    if (epoch, part) == (2, stop_at):
                        signal.raise_signal(signal.SIGTERM)
                run.log(**{name: run.mean("train_loss").value * epoch / 10})

    with pytest.raises(Interrupted), bench.begin(run_id, epochs=2, upload="sync") as run:
        train_in_two_parts(run, stop_at)
    assert bench.names(run_id)[-1] == "global_step_4"
    assert once_each(bench.rows(run_id), 1)
    with bench.begin(run_id, epochs=2) as run:
        train_in_two_parts(run)
    assert once_each(bench.rows(run_id), 2)
    assert run.best == (0.2, 2)


def test_the_log_is_stored_and_its_last_lines_tell_how_to_go_on(bench, run_id, caplog):
    """The end of the log names status, epoch, the best value and the command."""
    with caplog.at_level(logging.INFO, "onward"), bench.begin(run_id) as run:
        train(run)
    lines = [r.getMessage() for r in caplog.records]
    end = lines.index("FINISHED after epoch 4, best val_pearson 0.60000 (epoch 4)")
    commands = [line for line in lines[end + 1 :] if "train run" in line]
    assert commands[0].endswith(f"train run --resume_run {run_id} --epochs 8")
    root = Path(bench.tracking.get_run(run_id).artifact_uri)
    assert (root / "logs" / "attempt_1.log").read_text() == "a line\n"


def test_an_error_while_closing_does_not_hide_the_first(bench, run_id, caplog):
    """What ended training is what is raised; that the run could not be closed is a warning."""

    def act():
        bench.tracking.client.delete_run(run_id)
        raise Stopped

    with pytest.raises(Stopped), bench.begin(run_id) as run:
        train(run, stop_at=(2, 1), act=act)
    assert "could not be closed as FAILED" in caplog.text


def test_an_error_while_closing_is_raised_if_it_is_the_first(bench, run_id):
    """A run that cannot be closed as FINISHED does not end as if it were (invariant 7)."""
    run = bench.begin(run_id).__enter__()
    train(run)
    bench.tracking.client.delete_run(run_id)
    with pytest.raises(RunNotUsable):
        run.__exit__(None, None, None)


@pytest.mark.parametrize("status", ["FINISHED", "FAILED"])
def test_the_status_is_true_even_where_the_log_cannot_be_stored(bench, run_id, status):
    """An artifact store that is gone at the end leaves no run RUNNING (invariant 9)."""
    run = bench.begin(run_id, upload="sync", drain_seconds=1).__enter__()
    train(run)
    logs = Path(bench.tracking.get_run(run_id).artifact_uri) / "logs"
    shutil.rmtree(logs)
    logs.write_text("a file in the way")
    error = Stopped() if status == "FAILED" else None
    run.__exit__(type(error) if error else None, error, None)
    assert bench.status(run_id) == status
    assert not run._pipeline._upload_thread.is_alive(), "nothing waits for it"
    assert bench.spool(run_id).read_journal()["status"] == status
    assert bench.spool(run_id).log_file.read_text() == "a line\n", "it is kept for `train sync`"


def test_epochs_that_cannot_be_committed_wait_and_stop_nothing(bench, run_id, caplog, monkeypatch):
    """Invariant 10: training goes on without the store; what waits is published once it is back.

    Invariant 2: until then nothing of it is to be seen.
    """

    def away(*_, **__):
        raise StoreUnavailable("the store is away")

    with bench.begin(run_id, upload="sync") as run:
        with monkeypatch.context() as patch:
            train(run, stop_at=(2, 1), act=partial(patch.setattr, Artifacts, "upload", away))
            assert run.state.epoch == 4
            assert once_each(bench.rows(run_id), 1)
        assert sum("published later" in r.getMessage() for r in caplog.records) == 1
    assert bench.source(run_id).epoch == 4
    assert once_each(bench.rows(run_id), 4)
    assert bench.status(run_id) == "FINISHED"


def test_a_run_whose_last_epochs_were_not_saved_is_not_finished(bench, run_id, monkeypatch):
    """A disk that is full at the end costs the result, so the run is FAILED (invariants 7, 9)."""
    full = SimpleNamespace(free=0)
    with monkeypatch.context() as patch:
        fill_up = partial(patch.setattr, shutil, "disk_usage", lambda folder: full)
        refused = pytest.raises(CheckpointError, match=r"newest epochs of run .* not be saved")
        with refused, bench.begin(run_id, upload="sync") as run:
            train(run, stop_at=(4, 1), act=fill_up)
    assert bench.status(run_id) == "FAILED"
    assert bench.source(run_id).epoch == 3
    with bench.begin(run_id) as run:
        train(run)
    assert once_each(bench.rows(run_id), 4)
    assert bench.status(run_id) == "FINISHED"


def test_nan_and_infinity_are_not_the_same_value():
    """A value that became NaN when it was trained again is a difference."""
    assert same_value(math.nan, math.nan)
    assert same_value(math.inf, 1.7976931348623157e308)
    assert not same_value(math.nan, math.inf)
    assert not same_value(1.7976931348623157e308, math.nan)


def test_the_log_does_not_say_finished_of_epochs_that_are_nowhere(bench, run_id, caplog):
    """How training ended is told when it is known whether its last state could be written."""
    caplog.set_level("INFO", "onward")
    run = bench.begin(run_id, upload="async").__enter__()
    run._pipeline.spool.free_bytes = lambda: -1
    train(run)
    with pytest.raises(CheckpointError, match="newest epochs of run"):
        run.__exit__(None, None, None)
    assert bench.tracking.get_run(run_id).status == "FAILED"
    assert "FAILED after epoch 4" in caplog.text
    assert "FINISHED after" not in caplog.text
