"""When a checkpoint is kept for good, which is best, and which may go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.checkpoint.manifest import FileEntry, Manifest
from train.checkpoint.policy import Retention, SavePolicy, find_best, ranked
from train.config import Config


def manifest(epoch, score=None, kept=False):
    return Manifest(
        epoch=epoch,
        step=10 * epoch,
        attempt=1,
        created="2026-01-02T03:04:05+00:00",
        kept=kept,
        metrics={"val_pearson": score},
        files=(FileEntry("checkpoint.pth", 1, "a" * 64),),
    )


scores = st.none() | st.floats(-1, 1) | st.sampled_from([0.0, 0.5])
histories = st.dictionaries(st.integers(0, 40), st.tuples(scores, st.booleans())).map(
    lambda drawn: [manifest(epoch, *rest) for epoch, rest in drawn.items()]
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


def test_retention_is_that_of_the_options():
    """`keep_last` and `keep_best` are the run's; without its options the least there is."""
    assert Retention.of(Config(keep_last=2, keep_best=3)) == Retention(2, 3)
    assert Retention.of(Config(), every=4) == Retention(1, 1, 4)
    assert Retention.of(None) == Retention()


def test_ranked_is_from_the_best_down_with_the_older_of_equals_first():
    """Without a score it has no rank."""
    manifests = [manifest(e, s) for e, s in enumerate([0.2, None, 0.9, 0.9, 0.0], start=1)]
    assert [m.epoch for m in ranked(manifests)] == [3, 4, 1, 5]


@given(histories)
def test_the_newest_the_best_and_the_kept_never_go(manifests):
    """Pruning leaves what a resume needs and what was asked to be kept (invariant 3)."""
    gone = Retention().to_prune(manifests)
    assert not any(m.kept for m in gone)
    if manifests:
        assert max(manifests, key=lambda m: m.epoch) not in gone
    assert find_best(manifests) not in gone


@given(histories)
def test_pruning_twice_prunes_nothing_more(manifests):
    """What is left after pruning stays, and has the same best and the same newest."""
    left = [m for m in manifests if m not in Retention().to_prune(manifests)]
    assert Retention().to_prune(left) == []
    assert find_best(left) == find_best(manifests)
