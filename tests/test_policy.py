"""When a checkpoint is kept for good, which is best, and which may go."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.checkpoint.manifest import FileEntry, Manifest
from onward.checkpoint.policy import Retention, SavePolicy, find_best, ranked
from onward.monitor import UNDECLARED, Monitor
from train.tabular.options import Config

STEPS = 10  # of each epoch


def manifest(epoch, score=None, kept=False, epoch_step=0, monitor=UNDECLARED):
    """Return the manifest of an epoch's end; with an `epoch_step`, of so many steps beyond it."""
    return Manifest(
        epoch=epoch,
        step=STEPS * epoch + epoch_step,
        epoch_step=epoch_step,
        attempt=1,
        created="2026-01-02T03:04:05+00:00",
        kept=kept,
        metrics={} if epoch_step else {monitor.name: score},
        monitor=monitor,
        files=(FileEntry("checkpoint.pth", 1, "a" * 64),),
    )


def inside(epoch, epoch_step):
    return manifest(epoch, epoch_step=epoch_step)


monitors = st.sampled_from([UNDECLARED, Monitor("val_loss", "min"), Monitor("val/acc")])
scores = st.none() | st.floats(-1, 1) | st.sampled_from([0.0, 0.5])
ends = st.dictionaries(st.integers(0, 40), st.tuples(scores, st.booleans())).map(
    lambda drawn: [manifest(epoch, *rest) for epoch, rest in drawn.items()]
)
insides = st.sets(st.tuples(st.integers(0, 40), st.integers(1, STEPS)), max_size=8).map(
    lambda drawn: [inside(*where) for where in drawn]
)


def judged(drawn):
    """Return checkpoints of one run, in any order: what it is judged by is one metric."""
    found, monitor = [*drawn[0], *drawn[1]], drawn[2]
    renamed = [
        m if m.epoch_step else replace(m, metrics={monitor.name: m.metrics["val_pearson"]})
        for m in found
    ]
    return st.permutations([replace(m, monitor=monitor) for m in renamed])


histories = st.tuples(ends, insides, monitors).flatmap(judged)
retentions = st.builds(
    Retention,
    last=st.integers(1, 3),
    best=st.integers(1, 3),
    every=st.none() | st.integers(1, 5),
)


@pytest.mark.parametrize(
    ("every", "epoch", "is_last", "kept"),
    [
        (5, 5, False, True),
        (5, 10, False, True),
        (5, 4, False, False),
        (5, 6, False, False),
        (5, 7, True, True),
        (1, 3, False, True),
        (100, 3, False, False),
    ],
)
def test_every_nth_epoch_and_the_last_are_kept(every, epoch, is_last, kept):
    """checkpoint_freq keeps its multiples, and the end of the run."""
    assert SavePolicy(every_epochs=every).keeps(epoch, is_last) is kept


@pytest.mark.parametrize(
    ("steps", "seconds", "step", "since", "is_due"),
    [
        (3, 0, 3, 0.0, True),
        (3, 0, 6, 0.0, True),
        (3, 0, 4, 1e9, False),
        (1, 0, 1, 0.0, True),
        (0, 60, 5, 59.9, False),
        (0, 60, 5, 60.0, True),
        (0, 60, 5, 1e9, True),
        (3, 60, 4, 60.0, True),
        (3, 60, 3, 0.0, True),
        (3, 60, 4, 59.9, False),
        (0, 0, 5, 0.0, False),
        (0, 0, 5, 1e9, False),
    ],
)
def test_inside_an_epoch_one_is_due_by_steps_or_by_time(steps, seconds, step, since, is_due):
    """By the run's steps, by the time since the last one, by either; 0 and 0: never."""
    policy = SavePolicy(every_epochs=1, every_steps=steps, every_seconds=seconds)
    assert policy.is_due(step, since) is is_due


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([], None),
        ([None, None], None),
        ([0.1, 0.3, 0.2], 2),
        ([0.3, 0.3], 1),
        ([None, -0.5], 2),
        ([0.0, None], 1),
    ],
)
def test_the_best_has_the_highest_score_and_is_the_oldest_of_equals(scores, best):
    """0.0 and negative scores count, a missing one (NaN) does not."""
    found = find_best([manifest(epoch, score) for epoch, score in enumerate(scores, start=1)])
    assert (found and found.epoch) == best


LOSS = Monitor("val_loss", "min")


@pytest.mark.parametrize(
    ("scores", "order"),
    [
        ([], []),
        ([None, None], []),
        ([0.3, 0.1, 0.2], [2, 3, 1]),
        ([0.3, 0.3], [1, 2]),
        ([None, 0.5, -0.5], [3, 2]),
        ([0.0, 1e300, 0.1], [1, 3, 2]),
    ],
)
def test_where_less_is_better_the_lowest_comes_first(scores, order):
    """The rule is that of the metric which the run is judged by; a tie keeps the older."""
    manifests = [manifest(e, score, monitor=LOSS) for e, score in enumerate(scores, start=1)]
    assert [m.epoch for m in ranked(manifests)] == order
    found = find_best(manifests)
    assert (found and found.epoch) == (order[0] if order else None)
    stay = Retention(last=1, best=2)
    gone = {m.epoch for m in stay.to_prune(manifests)}
    assert gone == set(range(1, len(scores))) - set(order[:2])


def test_another_metric_of_the_manifest_decides_nothing():
    """Only the monitored one is a score, whatever else was measured."""
    found = manifest(1, 0.5, monitor=LOSS)
    other = replace(found, epoch=2, metrics={"val_pearson": 0.9, "loss": 0.0})
    assert (found.score, other.score) == (0.5, None)
    assert find_best([other, found]) == found


@pytest.mark.parametrize("score", [math.inf, -math.inf, math.nan, 1.7976931348623157e308])
@pytest.mark.parametrize("direction", ["max", "min"])
def test_what_is_not_finite_is_never_best(score, direction):
    """In neither direction, and not as MLflow gives it back: ±1.8e308."""
    monitor = Monitor("val_loss", direction)
    manifests = [manifest(1, 0.5, monitor=monitor)]
    manifests += [manifest(e, s, monitor=monitor) for e, s in ((2, score), (3, -score))]
    assert ranked(manifests) == manifests[:1]


@pytest.mark.parametrize(
    ("checkpoints", "pruned"),
    [
        ([], []),
        ([(1, 0.1, False)], []),
        ([(1, 0.1, False), (2, 0.2, False)], [1]),
        ([(1, 0.9, False), (2, 0.2, False)], []),
        ([(1, 0.9, False), (2, 0.2, False), (3, 0.3, False)], [2]),
        ([(1, 0.1, True), (2, 0.2, False), (3, 0.3, False)], [2]),
        ([(1, None, False), (2, None, False)], [1]),
        ([(3, 0.3, False), (1, 0.1, False), (2, 0.2, False)], [1, 2]),
    ],
)
def test_what_may_go(checkpoints, pruned):
    """Neither kept, nor newest, nor best: that goes; the order of the list does not matter."""
    gone = Retention().to_prune([manifest(*checkpoint) for checkpoint in checkpoints])
    assert [m.epoch for m in gone] == pruned


@pytest.mark.parametrize(
    ("retention", "pruned"),
    [
        (Retention(last=3), [1]),
        (Retention(best=2), [1, 4]),
        (Retention(last=2, best=3), [1]),
        (Retention(every=2), [1]),
        (Retention(every=4), [1, 2]),
        (Retention(last=0, best=0), [1, 4]),
        (Retention(last=99), []),
    ],
)
def test_any_reason_to_stay_is_enough(retention, pruned):
    """Newest, best, every Nth or marked: one of them keeps a checkpoint."""
    scores = {1: 0.1, 2: 0.8, 3: 0.9, 4: 0.2, 5: None}
    manifests = [manifest(epoch, score, kept=epoch == 2) for epoch, score in scores.items()]
    gone = [m.epoch for m in retention.to_prune(manifests)]
    assert gone == pruned


@pytest.mark.parametrize(
    ("checkpoints", "pruned"),
    [
        ([inside(0, 3)], []),
        ([inside(0, 3), inside(0, 6)], ["global_step_3"]),
        ([inside(0, 10), manifest(1)], ["global_step_10"]),
        ([manifest(1), inside(0, 10)], ["global_step_10"]),
        ([manifest(1, 0.9), inside(1, 1)], []),
        ([manifest(1, 0.9), manifest(2, 0.1), inside(2, 1)], ["epoch_2"]),
        ([manifest(1, 0.9), inside(1, 5), manifest(2, 0.1)], ["global_step_15"]),
        ([manifest(1), inside(1, 5)], ["epoch_1"]),
    ],
)
def test_one_inside_an_epoch_stays_only_while_it_is_the_newest(checkpoints, pruned):
    """An epoch's end is newer than the checkpoint after its last step."""
    assert [m.name for m in Retention().to_prune(checkpoints)] == pruned


@pytest.mark.parametrize("every", [1, 2])
def test_keeping_every_nth_epoch_keeps_none_inside_it(every):
    """`prune --keep_every` is about whole epochs."""
    manifests = [manifest(2), inside(2, 5), manifest(4), inside(4, 5), inside(4, 7)]
    gone = Retention(every=every).to_prune(manifests)
    assert [m.name for m in gone] == ["global_step_25", "global_step_45"]


def test_retention_is_that_of_the_options():
    """`keep_last` and `keep_best` are the run's; without its options the least there is."""
    assert Retention.of(Config(keep_last=2, keep_best=3)) == Retention(2, 3)
    assert Retention.of(Config(), every=4) == Retention(1, 1, 4)
    assert Retention.of(None) == Retention()


def test_ranked_is_from_the_best_down_with_the_older_of_equals_first():
    """Without a score it has no rank."""
    manifests = [manifest(e, s) for e, s in enumerate([0.2, None, 0.9, 0.9, 0.0], start=1)]
    assert [m.epoch for m in ranked(manifests)] == [3, 4, 1, 5]


@given(histories, retentions)
def test_the_newest_the_best_and_the_kept_never_go(manifests, retention):
    """Pruning leaves what a resume needs and what was asked to be kept (invariant 3)."""
    gone = retention.to_prune(manifests)
    if retention.every is None:
        assert not any(m.kept for m in gone)
    else:
        assert all(m.epoch_step or m.epoch % retention.every for m in gone)
    newest_first = sorted(manifests, key=lambda m: (m.step, m.epoch), reverse=True)
    assert not any(m in gone for m in newest_first[: retention.last])
    assert not any(m in gone for m in ranked(manifests)[: retention.best])


@given(histories, retentions)
def test_what_lies_inside_an_epoch_goes_as_soon_as_newer_ones_exist(manifests, retention):
    """It is neither kept for good nor the best: only the newest few of them stay."""
    gone = retention.to_prune(manifests)
    newest_first = sorted(manifests, key=lambda m: (m.step, m.epoch), reverse=True)
    overtaken = newest_first[retention.last :]
    assert all(m in gone for m in overtaken if m.epoch_step)
    best = find_best(manifests)
    assert best is None or not best.epoch_step


@given(histories, retentions)
def test_pruning_twice_prunes_nothing_more(manifests, retention):
    """What is left after pruning stays, and has the same best and the same newest."""
    left = [m for m in manifests if m not in retention.to_prune(manifests)]
    assert retention.to_prune(left) == []
    assert find_best(left) == find_best(manifests)
