"""One attempt at a run: what it records, publishes and commits, and how it ends."""

import io
import json
import logging
import math
import shutil
import signal
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from train import environment, rng
from train.attempt import Attempt
from train.checkpoint import staging
from train.checkpoint.pipeline import Pipeline
from train.checkpoint.policy import Retention
from train.checkpoint.publisher import Publisher
from train.checkpoint.spool import RunFolder
from train.checkpoint.store import CheckpointStore
from train.config import Config
from train.errors import CheckpointError, Interrupted, NonFinite, RunNotUsable, StoreUnavailable
from train.metrics import History, is_wall_clock
from train.report import Reporter
from train.run import Run, Start, _same
from train.schedule import Schedule
from train.source import find_source, open_store
from train.state import TrainState
from train.sync import publish_waiting
from train.tracking import FINGERPRINT_TAG, OPTIONS_TAG, Artifacts, Tracking

SCORES = {1: 0.3, 2: 0.5, 3: 0.4, 4: 0.6, 5: 0.1, 6: 0.2}
STEPS = 2  # optimizer steps an epoch


class Stopped(Exception):
    """Stands for whatever ends a process."""


def build(config, width=4):
    """Return a small model with dropout, its optimizer and its schedule."""
    rng.seed_all(rng.derive_seed("weights", config.seed))
    model = nn.Sequential(nn.Linear(3, width), nn.Dropout(0.5), nn.Linear(width, 1))
    return model, torch.optim.AdamW(model.parameters(), fused=True), Schedule(config)


def make_step(model, optimizer):
    optimizer.zero_grad()
    loss = (model(torch.rand(8, 3)) - 1).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def train(run, scores=SCORES, stop_at=(), act=None, width=4, more=None):
    """Train; at (epoch, step) `act`, which by default raises; log the metrics `more` as well."""
    model, optimizer, schedule = build(run.config, width)
    run.restore(TrainState(model, optimizer, schedule))
    for epoch in run.epochs():
        optimizer.param_groups[0]["lr"] = schedule.lr(epoch)
        for step in run.steps(range(1, STEPS + 1), STEPS):
            if (epoch, step) == stop_at:
                if act is None:
                    raise Stopped
                act()
            loss = make_step(model, optimizer)
        schedule.observe(loss)
        metrics = {"train_loss": loss, "val_loss": loss / 2, "val_pearson": scores[epoch]}
        run.log({**metrics, **(more or {})}, num_samples=16)
        run.save()


class Bench:
    """Opens attempts at runs, as a launch does, and reads what they left."""

    def __init__(self, tracking, folder):
        self.tracking, self.folder = tracking, folder

    def new_run(self):
        return self.tracking.create_run("0", None, {}).run_id

    def begin(self, run_id, tracking=None, **options):
        """Open the next attempt, with a connection of its own where one is given."""
        config = Config(**{"epochs": 4, "schedule_epochs": 6, **options})
        tracking = tracking or self.tracking
        folder = RunFolder(environment.run_folder(tracking.uri, run_id))
        assert folder.acquire()
        seen = tracking.get_run(run_id)
        store, manifests = open_store(tracking, seen, folder), []
        if seen.attempts == 0:
            attempt, start = Attempt.first(tracking, seen), Start(None, History())
        else:
            publish_waiting(tracking, seen, store, folder)
            seen = tracking.get_run(run_id)
            source = find_source(seen, store, None)
            manifests = source.manifests
            attempt = Attempt.another(tracking, seen, None, source.epoch + 1, {})
            start = Start(source.checkpoint, tracking.published(run_id, seen.metrics))
        attempt.begin({FINGERPRINT_TAG: "f", OPTIONS_TAG: json.dumps(config.to_dict())})
        spool = folder.spool(attempt.number)
        spool.write_journal(attempt.journal("RUNNING", attempt.first_epoch - 1))
        spool.log_file.write_text("a line\n")
        publisher = Publisher(
            tracking, store, spool, Retention(), manifests, check_lease=attempt.check_lease
        )
        pipeline = Pipeline(publisher, spool, config.max_spool_bytes, config.upload == "sync")
        reporter = Reporter(Console(file=io.StringIO()))
        return Run(config, attempt, pipeline, folder, start, {"fingerprint": "d"}, reporter)

    def source(self, run_id):
        record = self.tracking.get_run(run_id)
        return find_source(record, CheckpointStore(self.tracking.artifacts(record), run_id), None)

    def contents(self, run_id):
        """Return what each checkpoint holds, oldest first."""
        record = self.tracking.get_run(run_id)
        store = CheckpointStore(self.tracking.artifacts(record), run_id)
        return [store.get(m, self.folder / run_id / m.name) for m in store.list()]

    def spool(self, run_id, attempt=1):
        return RunFolder(environment.run_folder(self.tracking.uri, run_id)).spool(attempt)

    def final(self, run_id):
        """Return the newest checkpoint, flat, without what two equal runs differ in."""
        content = dict(self.source(run_id).checkpoint)
        for name in ("timestamp", "environment"):
            del content[name]
        history = History()
        history.load_state_dict(content["history"])
        content["history"] = {
            key: history.values(key) for key in content["history"] if not is_wall_clock(key)
        }
        return flat(content)

    def rows(self, run_id):
        """Return what is published: (key, step) to its [(value, timestamp)]."""
        found = {}
        for key in self.tracking.get_run(run_id).metrics:
            for metric in self.tracking._client.get_metric_history(run_id, key):
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

    def log_points(self, run_id, points):
        if self.is_dead:
            raise SystemExit  # ends the thread, as the end of the process would
        if self.is_away:
            raise StoreUnavailable("away for good")
        super().log_points(run_id, points)


@pytest.fixture
def away(tracking):
    """Return a connection that can be cut; what still waits for it ends with the test."""
    connection = Away()
    yield connection
    connection.is_dead = True


def once_each(rows, last_epoch):
    """Tell whether every metric has every epoch exactly once.

    What a commit costs is told by later epochs, of those commits that there were.
    """
    assert all(len(values) == 1 for values in rows.values())
    rows = {where: v for where, v in rows.items() if not where[0].startswith("checkpoint_")}
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
    assert {"epoch_seconds", "samples_per_second", "train_loss", "val_loss"} < set(seen.metrics)
    assert run.step == 4 * STEPS


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
    content = bench.source(run_id).checkpoint
    assert content["config"] == run.config.to_dict()
    assert content["data"] == {"fingerprint": "d"}
    assert {"host", "versions", "code"} <= set(content["environment"])
    assert content["timestamp"] > 1.7e9
    assert (content["epoch"], content["step"], content["aucs"]) == (1, STEPS, [0.3])


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
    assert f"`python -m train sync {run_id}` publishes them" in warning
    assert bench.status(run_id) == "RUNNING", "it is said to be over before it is"


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
    saved = bench.source(run_id).checkpoint
    model, optimizer, schedule = build(run.config)
    for epoch in (1, 2, 3, 4):
        optimizer.param_groups[0]["lr"] = schedule.lr(epoch)
        for _ in range(STEPS):
            make_step(model, optimizer)
    assert flat(dict(model.state_dict())) == flat(saved["model_state_dict"])
    assert flat(rng.capture()) == flat(saved["rng"])


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_between_two_steps(bench, run_id, number):
    """A signal ends training at the next step as KILLED; resumed, nothing is lost or double."""
    stopped = pytest.raises(Interrupted, match=f"{number.name} after 1 epochs")
    with stopped, bench.begin(run_id) as run:
        train(run, stop_at=(2, 1), act=lambda: signal.raise_signal(number))
    assert run.step == STEPS + 1, "the step under way was not completed"
    assert bench.status(run_id) == "KILLED"
    with bench.begin(run_id) as run:
        train(run)
    assert once_each(bench.rows(run_id), 4)


def test_published_values_stay_when_an_epoch_is_trained_again(bench, run_id, caplog):
    """After a fallback the published value wins, and the difference is told once (invariant 2)."""
    with bench.begin(run_id, checkpoint_freq=1) as run:
        train(run)
    before = bench.rows(run_id)
    for epoch in (3, 4):
        bench.damage(run_id, epoch)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "train"), bench.begin(run_id, epochs=5) as run:
        train(run, scores={**SCORES, 3: 0.41, 4: 0.99})
    after = bench.rows(run_id)
    assert once_each(after, 5)
    assert {where: after[where] for where in before} == before, "wall-clock ones included"
    differences = [r for r in caplog.records if "trained again" in r.getMessage()]
    assert len(differences) == 1
    assert "val_pearson=0.41; 0.4 was published" in differences[0].getMessage()
    assert run.state.history.values("val_pearson") == [0.3, 0.5, 0.4, 0.6, 0.1]
    assert (run.state.best_corr, run.state.best_epoch) == (0.6, 4)


def test_an_epoch_trained_again_alike_is_no_difference(bench, run_id, caplog):
    """On the same machine the values are the same, NaN and infinity included: no warning."""
    scores, more = {**SCORES, 3: math.nan}, {"a": math.nan, "b": math.inf, "c": -math.inf}
    with bench.begin(run_id, checkpoint_freq=1) as run:
        train(run, scores, more=more)
    before = bench.rows(run_id)
    for epoch in (3, 4):
        bench.damage(run_id, epoch)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "train"), bench.begin(run_id) as run:
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


def test_an_epoch_must_end_with_save(bench, run_id):
    """A loop that forgets to save is told so, instead of losing the epoch."""
    run = bench.begin(run_id)
    run.restore(TrainState(*build(run.config)))
    with pytest.raises(AssertionError, match=r"save\(\) ends an epoch"), run:
        list(run.epochs())


def test_the_log_is_stored_and_its_last_lines_tell_how_to_go_on(bench, run_id, caplog):
    """The end of the log names status, epoch, best correlation and the command."""
    with caplog.at_level(logging.INFO, "train"), bench.begin(run_id) as run:
        train(run)
    lines = [r.getMessage() for r in caplog.records]
    end = lines.index("FINISHED after epoch 4, best correlation 0.60000 (epoch 4)")
    commands = [line for line in lines[end + 1 :] if "python -m train run" in line]
    assert commands[0].endswith(f"python -m train run --resume_run {run_id} --epochs 8")
    root = Path(bench.tracking.get_run(run_id).artifact_uri)
    assert (root / "logs" / "attempt_1.log").read_text() == "a line\n"


def test_an_error_while_closing_does_not_hide_the_first(bench, run_id, caplog):
    """What ended training is what is raised; that the run could not be closed is a warning."""

    def act():
        bench.tracking._client.delete_run(run_id)
        raise Stopped

    with pytest.raises(Stopped), bench.begin(run_id) as run:
        train(run, stop_at=(2, 1), act=act)
    assert "could not be closed as FAILED" in caplog.text


def test_an_error_while_closing_is_raised_if_it_is_the_first(bench, run_id):
    """A run that cannot be closed as FINISHED does not end as if it were (invariant 7)."""
    run = bench.begin(run_id).__enter__()
    train(run)
    bench.tracking._client.delete_run(run_id)
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
    assert bench.spool(run_id).read_journal()["status"] == status, "the log still waits"
    logs.unlink()
    run._pipeline._uploader.join()
    assert (logs / "attempt_1.log").read_text() == "a line\n"
    assert not bench.spool(run_id).folder.exists()


def test_epochs_that_cannot_be_committed_wait_and_stop_nothing(bench, run_id, caplog, monkeypatch):
    """Invariant 10: training goes on without the store; what waits is published once it is back.

    Invariant 2: until then nothing of it is to be seen.
    """

    def away(*_, **__):
        raise StoreUnavailable("the store is away")

    with monkeypatch.context() as patch:
        take_away = partial(patch.setattr, Artifacts, "upload", away)
        with bench.begin(run_id, upload="sync", drain_seconds=0) as run:
            train(run, stop_at=(2, 1), act=take_away)
        assert run.state.epoch == 4
        assert once_each(bench.rows(run_id), 1)
        assert sum("published later" in r.getMessage() for r in caplog.records) == 1
    run._pipeline._uploader.join()
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


def test_nan_and_infinity_are_not_the_same():
    """A value that became NaN when it was trained again is a difference."""
    assert _same(math.nan, math.nan)
    assert _same(math.inf, 1.7976931348623157e308)
    assert not _same(math.nan, math.inf)
    assert not _same(1.7976931348623157e308, math.nan)
