"""Loops of one's own: a resume ends with the bits and the curve of what was never stopped."""

import os
import random
import signal
import threading
from types import SimpleNamespace

import numpy as np
import own_loops
import pytest
import torch
from torch.utils.data import DataLoader

import onward
from onward import metrics
from onward.checkpoint import staging
from onward.checkpoint.content import Content
from onward.checkpoint.plain import to_plain
from onward.errors import Interrupted
from onward.metrics import History, Point, is_wall_clock
from onward.monitor import Monitor
from onward.publish import results
from onward.run import parts
from onward.run.differences import first_difference


class Died(Exception):
    """Stands for whatever ends a process."""


def scramble(seed):
    """Leave the global generators as another process has them."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def only_id(tracking):
    [run] = tracking.client.search_runs(
        ["0"], filter_string="tags.`train.fingerprint` != ''", order_by=["start_time DESC"]
    )[:1]
    return run.info.run_id


def curve(tracking, run_id):
    """Return every point of the run but those of the clock, in the order of keys and steps."""
    keys = tracking.client.get_run(run_id).data.metrics
    return {
        key: sorted((m.step, m.value) for m in tracking.client.get_metric_history(run_id, key))
        for key in keys
        if not is_wall_clock(key)
    }


def bits(state):
    """Return a copy of everything in a state, as it is stored."""
    captured = {name: parts.capture(part) for name, part in state.items()}
    return to_plain(captured, tensor=lambda _where, tensor: tensor.detach().clone())


def trial(tracking, loop, kills, **options):
    """Train straight; and again, killed at each of `kills` steps of its processes; compare."""
    options = {"upload": "sync", **options}
    made = options.pop("made", dict)
    scramble(1)
    straight = bits(loop(**made(), **options))
    whole = only_id(tracking)
    run_id = None
    for number, kill in enumerate(kills):
        scramble(10 + number)

        def die(step, kill=kill):
            if step == kill:
                raise Died

        with pytest.raises(Died):
            loop(act=die, resume_run=run_id, **made(), **options)
        run_id = run_id or only_id(tracking)
    scramble(99)
    resumed = bits(loop(resume_run=run_id, **made(), **options))
    assert first_difference(straight, resumed, "state") is None
    assert curve(tracking, run_id) == curve(tracking, whole)
    names = [[c.name for c in onward.checkpoints(each)] for each in (whole, run_id)]
    assert names[0] == names[1]
    return run_id


EVERY_3 = {"checkpoint_steps": 3}


@pytest.mark.parametrize(
    ("loop", "kills", "options"),
    [
        ("classifier", [4, 9, 2], EVERY_3),
        ("classifier", [8, 8], {}),
        ("language_model", [7, 12], {"checkpoint_steps": 4}),
        ("gan", [6, 5], EVERY_3),
        ("diffusion", [5, 9], EVERY_3),
        ("ppo", [14, 9], {"checkpoint_steps": 2}),
    ],
)
def test_a_resume_ends_as_if_nothing_had_happened(tracking, one_thread, loop, kills, options):
    trial(tracking, getattr(own_loops, loop), kills, **options)


def test_values_that_a_checkpoint_leaves_out_are_missed_nowhere(tracking, one_thread, monkeypatch):
    """A resume, a fork and the figures have all of them, also on an axis of its own."""
    monkeypatch.setattr(metrics, "MAX_ROWS", 2)
    drawn = {}

    def draw(history, _begun, key, *_others):
        drawn[key] = [step for step, _value in history.series(key)]
        return b"a picture"

    monkeypatch.setattr(results.curves, "metric_curve", draw)
    options = {"logs_steps": True, "checkpoint_freq": 1}
    run_id = trial(tracking, own_loops.classifier, [8, 8], **options)
    assert drawn["accuracy"] == [1, 2, 3, 4]
    assert drawn["step_loss"] == list(range(100, 124))
    saved = onward.checkpoints(run_id)
    assert [len(saved.content(epoch).history.values("loss")) for epoch in (2, 3, 4)] == [2, 2, 2]
    assert saved.content(4).history.get("accuracy", 2) is not None  # the best
    assert len(saved.content(4).history.values("accuracy")) == 3
    own_loops.classifier(
        resume_run=run_id, resume_epoch="3", fork=True, upload="sync", logs_steps=True
    )
    fork_id = only_id(tracking)
    assert fork_id != run_id
    assert curve(tracking, fork_id) == curve(tracking, run_id)
    # Its first checkpoint has all of it: killed before that is published, it lacks nothing.
    assert onward.checkpoints(fork_id).content(3).history.values("loss") == [
        value for step, value in curve(tracking, run_id)["loss"] if step <= 3
    ]


def test_no_published_value_is_believed_to_be_the_best(monkeypatch):
    """What a checkpoint has left out comes from MLflow, where anybody can write."""
    monkeypatch.setattr(metrics, "MAX_ROWS", 2)
    rows = [Point("accuracy", step, step, value) for step, value in [(2, 0.7), (4, 0.5), (5, 0.6)]]
    content = Content(
        epoch=5, step=5, parts={}, rng={}, history=History(rows), best_epoch=2,
        monitor=Monitor("accuracy", "max"),
    )  # fmt: skip
    told = [Point("accuracy", 1, 1, 0.6), Point("accuracy", 3, 3, 0.99), *rows]
    asked = SimpleNamespace(published=lambda _run_id, _keys: History(told))
    found = results.with_all_history(asked, "r1", content).history
    assert list(found.series("accuracy")) == [(1, 0.6), (2, 0.7), (4, 0.5), (5, 0.6)]


def loaders():
    data, batches = own_loops.Augmented(), {"batch_size": 16, "shuffle": True}
    yield "main process", lambda: DataLoader(data, **batches)
    yield (
        "own generator",
        lambda: DataLoader(data, generator=torch.Generator().manual_seed(4), **batches),
    )
    yield "workers, seeded", lambda: DataLoader(onward.seeded(data, 7), num_workers=2, **batches)
    yield (
        "persistent workers, seeded",
        lambda: DataLoader(
            onward.seeded(data, 7), num_workers=2, persistent_workers=True, **batches
        ),
    )
    weights = torch.utils.data.WeightedRandomSampler(torch.arange(96.0) + 1, 96)
    yield "weighted", lambda: DataLoader(data, batch_size=16, sampler=weights)
    yield "stream", lambda: DataLoader(own_loops.Stream(), batch_size=16)


FAST = ("main process", "own generator", "workers, seeded")


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=() if name in FAST else pytest.mark.slow)
        for name, make in loaders()
    ],
)
def test_the_inside_of_an_epoch_is_exact_with_every_loader(tracking, one_thread, make):
    trial(tracking, own_loops.classifier, [4, 9], made=lambda: {"loader": make()}, **EVERY_3)


@pytest.mark.parametrize(
    "where", ["inside a batch", "inside a step", "after a break", "at the end"]
)
def test_a_signal_in_evaluation_saves_nothing_that_is_half_done(tracking, where):
    """What is counted is what is done: else the signal waits until the batch, or the step, is."""
    weight = torch.zeros(1)
    loader = DataLoader(torch.arange(4.0), batch_size=1)

    def evaluate(run, now):
        with run.interruptible():
            if now:
                os.kill(os.getpid(), signal.SIGTERM)
                for _ in range(100):  # where it ends the block it does so here
                    pass

    def train(stop, **options):
        with onward.open_run({"weight": weight}, upload="sync", **options) as run:
            if where == "inside a step":
                for number in run.steps(range(4)):
                    weight.add_(1)
                    evaluate(run, stop and number == 2)
                return run
            for epoch in run.epochs(range(2)):
                for number, batch in enumerate(run.batches(loader)):
                    weight.add_(batch + 1)
                    if where == "inside a batch":
                        evaluate(run, stop and (epoch, number) == (1, 2))
                    if where == "after a break" and number == 2:
                        break
                evaluate(run, stop and (epoch, where) in ((0, "after a break"), (1, "at the end")))
        return run

    train(False)
    whole = weight.clone()
    weight.zero_()
    with pytest.raises(Interrupted):
        train(True)
    weight.zero_()
    assert train(False, resume_run="auto").state.epoch == (4 if where == "inside a step" else 2)
    assert torch.equal(weight, whole)


@pytest.mark.parametrize("background_copy", [False, True])
def test_weights_that_are_changed_past_the_optimizer_are_copied_at_once(
    tracking, monkeypatch, background_copy
):
    """As by clipping: what is copied while training goes on, if a loop allows it, would be torn."""
    copy_all, changed, copied = staging._copy_all, threading.Event(), []

    def late(copies, staged):
        if copies:
            copied.extend(copies)
            assert changed.wait(60)
        copy_all(copies, staged)

    monkeypatch.setattr(staging, "_copy_all", late)
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    state = {"model": model, "optimizer": optimizer}
    options = {"background_copy": background_copy, "checkpoint_steps": 1, "keep_last": 9}
    with onward.open_run(state, **options) as run:
        for _epoch in run.epochs(range(1)):
            for number, batch in enumerate(run.batches(torch.ones(2, 1, 1))):
                if number == 1:
                    kept = model.weight.detach().clone()
                    model.weight.data.fill_(7)
                    changed.set()
                optimizer.zero_grad()
                model(batch).sum().backward()
                optimizer.step()
    saved = onward.checkpoints(run.run_id).load("global_step_1")["model"]["weight"]
    assert bool(copied) is background_copy
    assert torch.equal(saved, torch.full_like(kept, 7) if background_copy else kept)
