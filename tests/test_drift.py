"""What is not as it was at a checkpoint is shown once, or refused with the way out."""

import logging
import math

import pytest
from test_run import SCORES, Bench, once_each, train

from onward.errors import RunNotUsable
from onward.opening.drift import Difference, differences, report
from onward.system import environment

THEN = {
    "host": "there", "platform": "Linux-5", "cpus": 2, "device": "cpu (Fast 1)", "threads": 1,
    "cuda": None, "code": "a" * 40, "versions": {"python": "3.11.7", "torch": "2.12.0"},
}  # fmt: skip


@pytest.fixture
def shown(caplog):
    """Return a function that reports differences, and returns the warnings."""

    def show(found, strict=False):
        caplog.clear()
        with caplog.at_level(logging.INFO, "onward"):
            report("r1", found, strict, "train run --resume_run r1 --fork true")
        return [r.getMessage() for r in caplog.records]

    return show


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"device": "cpu (Fast 2)"}, [("device", "cpu (Fast 1)", "cpu (Fast 2)")]),
        ({"instructions": "AVX2"}, []),  # a checkpoint of old does not tell them
        ({"threads": 2}, [("threads", "1", "2")]),
        ({"cuda": "13.0"}, [("cuda", "None", "13.0")]),
        ({"code": "b" * 40}, [("code", "a" * 40, "b" * 40)]),
        ({"versions": {"python": "3.11.7", "torch": "2.14.0"}}, [("torch", "2.12.0", "2.14.0")]),
        ({"threads": 2, "code": "b", "versions": {"python": "3.12.1", "torch": "2.12.0"}},
         [("code", "a" * 40, "b"), ("python", "3.11.7", "3.12.1"), ("threads", "1", "2")]),
    ],
)  # fmt: skip
def test_what_differs_is_found(changes, expected):
    """Device, threads, code and each package, in the order of their names."""
    assert differences(THEN, THEN | changes) == [Difference(*d) for d in expected]


@pytest.mark.parametrize(
    ("then", "now", "differs"),
    [
        ("2.13.0+cpu", "2.13.0+cu130", True),
        ("2.13.0+cpu", "2.13.0", True),
        ("2.13.0+cpu", "2.13.0+cpu", False),
        ("2.13.0", "2.13.0+cu130", False),  # a checkpoint of old tells no build
        ("2.13.0", "2.13.1+cu130", True),
    ],
)
def test_two_builds_of_a_version_differ_where_both_are_known(then, now, differs):
    """`2.13.0+cpu` and `2.13.0+cu130` give other numbers; `2.13.0` alone is any build of it."""
    found = differences({"versions": {"torch": then}}, {"versions": {"torch": now}})
    assert found == [Difference("torch", then, now)] * differs


def test_a_processor_of_the_same_name_may_have_fewer_instructions():
    """As virtual machines have them: the sums are others."""
    found = differences(THEN | {"instructions": "AVX512"}, THEN | {"instructions": "AVX2"})
    assert found == [Difference("instructions", "AVX512", "AVX2")]


def test_of_the_code_every_change_is_told():
    """What stands behind the plus of a commit is no build: it is other code."""
    [found] = differences({"code": "a" * 40}, {"code": "a" * 40 + "+changes.0123abcd"})
    assert found.what == "code"


def test_another_machine_of_the_same_kind_is_no_news():
    """Machines come and go: their names, kernels and cores do not decide the numbers."""
    assert differences(THEN, THEN | {"host": "here", "platform": "Linux-6", "cpus": 64}) == []


@pytest.mark.parametrize("key", [*THEN, "torch"])
def test_what_one_of_them_does_not_tell_is_not_compared(key):
    """A checkpoint of an older version tells less, one of a newer version more."""
    now = environment.describe("cpu", 4)
    less = {k: v for k, v in THEN.items() if k != key}
    less["versions"] = {k: v for k, v in THEN["versions"].items() if k != key}
    all_of_them = {d.what for d in differences(THEN, now)}
    for then, after in ((less, now), (now, less)):
        assert {d.what for d in differences(then, after)} == all_of_them - {key}


@pytest.mark.parametrize("then", [None, {}, [], "x", {"versions": None}, {"versions": ["torch"]}])
def test_a_checkpoint_that_tells_nothing_differs_in_nothing(then):
    """Whatever lies there, it is not an error."""
    assert differences(then, environment.describe("cpu", 1)) == []


def test_now_and_now_do_not_differ():
    """On the same machine there is nothing to tell."""
    assert differences(environment.describe("cpu", 1), environment.describe("cpu", 1)) == []


@pytest.mark.parametrize("strict", [False, True])
def test_where_nothing_differs_nothing_is_said(shown, strict):
    """Silence is the usual case."""
    assert shown([], strict) == []


def test_differences_are_a_table(shown):
    """Each has a line, was and is; long ones are cut; that numbers can differ is said below."""
    found = [Difference("torch", "2.13.0", "2.14.0"), Difference("device", "a" * 70, "b")]
    assert shown(found) == [
        "Not everything is as it was at the checkpoint:",
        "  torch   2.13.0 -> 2.14.0",
        f"  device  {'a' * 57}... -> b",
        "So what follows may differ in its last bits from what it would have been "
        "(strict=true would refuse)",
    ]


@pytest.mark.parametrize(
    "what", ["device", "instructions", "threads", "ranks", "torch", "numpy", "python", "cuda"]
)
def test_what_can_change_numbers_is_told_so(shown, what):
    """These decide the last bits of a sum."""
    assert "last bits" in shown([Difference(what, "1", "2")])[-1]


@pytest.mark.parametrize("what", ["mlflow", "code", "onward"])
def test_what_does_not_change_numbers_is_only_shown(shown, what):
    """No false alarm: another MLflow computes nothing."""
    assert shown([Difference(what, "1", "2")]) == [
        "Not everything is as it was at the checkpoint:", f"  {what}  1 -> 2",
    ]  # fmt: skip


def test_strict_refuses_in_one_line_with_the_command_that_forks(shown):
    """All that differs is in it, uncut."""
    found = [Difference("torch", "2.13.0", "2.14.0"), Difference("code", "a" * 70, "b")]
    with pytest.raises(RunNotUsable) as caught:
        shown(found, strict=True)
    assert str(caught.value) == (
        "run 'r1' is not continued with strict=true: torch was 2.13.0 and is 2.14.0, code was "
        f"{'a' * 70} and is b. Fork it: train run --resume_run r1 --fork true"
    )


# An epoch that is trained again, and gives other numbers.


@pytest.fixture
def bench(tracking, tmp_path):
    return Bench(tracking, tmp_path)


@pytest.fixture
def fallen_back(bench):
    """Return a run with four epochs published, whose checkpoints 3 and 4 are damaged."""
    run_id = bench.new_run()
    with bench.begin(run_id, checkpoint_freq=1) as run:
        train(run, {**SCORES, 3: math.nan})
    for epoch in (3, 4):
        bench.damage(run_id, epoch)
    return run_id


def test_strict_ends_where_an_epoch_trained_again_differs(bench, fallen_back):
    """Invariant 2: the published value stays, the run is FAILED, and the way out is told."""
    before = bench.rows(fallen_back)
    with pytest.raises(RunNotUsable) as caught, bench.begin(fallen_back, strict=True) as run:
        train(run, {**SCORES, 3: math.nan, 4: 0.7})
    assert str(caught.value) == (
        f"run '{fallen_back}' is not continued with strict=true: epoch 4, trained again, gave "
        "val_pearson=0.7, and 0.6 was published before. Fork it: train run "
        f"--resume_run {fallen_back} --fork true"
    )
    assert run.state.epoch == 3, "up to there nothing differed, NaN included"
    assert bench.status(fallen_back) == "FAILED"
    after = bench.rows(fallen_back)
    assert str({where: after[where] for where in before}) == str(before)
    assert once_each(after, 4)


def test_strict_goes_on_where_an_epoch_trained_again_is_alike(bench, fallen_back):
    """Wall-clock values differ always, and are no difference."""
    with bench.begin(fallen_back, strict=True, epochs=5) as run:
        train(run, {**SCORES, 3: math.nan})
    assert bench.status(fallen_back) == "FINISHED"
    assert once_each(bench.rows(fallen_back), 5)
