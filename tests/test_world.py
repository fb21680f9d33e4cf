"""This process among its ranks: what it costs alone, what ranks tell each other, how they end."""

import contextlib
import json
import logging
import multiprocessing
import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from support import BIN, environment, run_command
from torch.distributed import TCPStore
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from onward.checkpoint.content import Content
from onward.errors import CheckpointError, Interrupted, RankLost, RankStopped
from onward.metrics import History
from onward.options.command import script_of, train_command
from onward.run import rng
from onward.run.agreement import Agreement
from onward.run.ranks import for_rank, of_rank, restore_on_rank
from onward.run.shares import Shares, is_divisible, share_of, tell_undivided
from onward.run.signals import StopRequest
from onward.run.state import Start, TrainState
from onward.system.environment import Ranks
from onward.system.threads import bounded
from onward.world import ALONE, World, lives


def test_alone_nothing_is_imported_for_it(monkeypatch):
    """Who is one process pays for no ranks."""
    monkeypatch.setitem(sys.modules, "torch.distributed", None)
    world = World()
    world.open()
    world.connect()
    assert world.agree([1.0, 2.0]) == [1.0, 2.0]
    assert world.sum([3.0]) == [3.0]
    assert world.gather({"a": 1}) == [{"a": 1}]
    assert world.broadcast({"a": 1}) == {"a": 1}
    assert world.from_leader("x", lambda: object) is object


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("number", [1, 2, 3, 5, 14])
def test_shares_of_a_batch_add_up_to_it(size, number):
    """Each sample is on one rank; by its weight the ranks' mean of means is the mean of all."""
    values = torch.arange(number, dtype=torch.float64)
    own, weights = zip(
        *(share_of(torch.arange(number), World(Ranks(rank, size))) for rank in range(size)),
        strict=True,
    )
    there = [part for part, weight in zip(own, weights, strict=True) if weight]
    assert torch.cat(there).tolist() == list(range(number))
    means = [values[part].mean() * weight for part, weight in zip(own, weights, strict=True)]
    assert sum(means) / size == pytest.approx(values.mean())
    assert all(len(part) for part in own)


def test_what_divides_itself_is_left_as_it_is():
    """A loader with a sampler for ranks, without one, or over a stream."""

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(4))

    rows = TensorDataset(torch.arange(8))
    assert is_divisible(DataLoader(rows, batch_size=4, shuffle=True))
    sampler = DistributedSampler(rows, num_replicas=2, rank=0)
    assert not is_divisible(DataLoader(rows, batch_size=4, sampler=sampler))
    assert not is_divisible(DataLoader(rows, batch_size=None))
    assert not is_divisible(DataLoader(Stream(), batch_size=4))
    assert not is_divisible([1, 2, 3])


@pytest.mark.parametrize(
    ("kind", "is_told"), [("plain", False), ("sampler", False), ("list", True)]
)
def test_a_loader_that_nobody_divides_is_told(kind, is_told, caplog):
    """Each rank would train on the same."""
    rows = TensorDataset(torch.arange(8))
    sampler = DistributedSampler(rows, num_replicas=2, rank=0)
    loader = {
        "plain": DataLoader(rows, batch_size=4),
        "sampler": DataLoader(rows, batch_size=4, sampler=sampler),
        "list": [rows[:4], rows[4:]],
    }[kind]
    with caplog.at_level(logging.WARNING, "onward"):
        tell_undivided(loader)
    assert ("list cannot be divided here" in caplog.text) == is_told


def test_shares_leave_out_what_is_done():
    """Batches before are drawn and not read; the weights are those of what is left."""
    shares = Shares([[0, 1, 2], [3, 4, 5], [6]], World(Ranks(1, 2)), 1, lambda: None, lambda: None)
    assert list(shares) == [[5], [6]]
    assert list(shares.weights) == [pytest.approx(2 / 3), 0.0]


def content(ranks=(), **named):
    sums = {"loss": torch.tensor(1.0, dtype=torch.float64)}
    rest = {"rng": rng.capture(), "history": History(), "epoch_sums": sums, "ranks": ranks}
    return Content(epoch=1, step=5, epoch_step=2, parts={}, **rest | named)


def test_each_rank_gets_back_its_own():
    """With as many ranks as before: random numbers and sums."""
    owns = []
    for number in range(3):
        torch.manual_seed(number)
        sums = {"loss": torch.tensor(float(number))}
        owns.append(of_rank(content(epoch_sums=sums)))
    saved = content(ranks=owns)
    for rank in range(3):
        got = for_rank(saved, World(Ranks(rank, 3)), 0)
        assert got.epoch_sums["loss"] == rank
        assert torch.equal(got.rng["torch"], owns[rank]["rng"]["torch"])


@pytest.mark.parametrize(("then", "now"), [(3, 1), (3, 2), (1, 2), (2, 4)])
def test_another_number_of_ranks_loses_no_sum(then, now):
    """Rank 0 gets all sums; the others begin new random numbers, each its own."""
    torch.manual_seed(5)
    owns = [of_rank(content()) for _rank in range(then)] if then > 1 else ()
    got = [for_rank(content(ranks=owns), World(Ranks(rank, now)), 0) for rank in range(now)]
    assert sum(float(c.epoch_sums.get("loss", 0.0)) for c in got) == then
    states = {bytes(c.rng["torch"].numpy()) for c in got}
    assert len(states) == now


def test_a_place_of_its_own_fits_no_other_number():
    """What only a rank's own loader knows cannot be dealt out anew: that is refused."""
    feed = {"taken": 3, "place": {"x": 1}}
    with pytest.raises(CheckpointError, match=r"each of 2 ranks, and there are 3"):
        for_rank(content(ranks=[{}, {}], feeds={"batches 0": feed}), World(Ranks(0, 3)), 0)


@pytest.mark.parametrize(
    "hostile",
    [{"feeds": {"batches 0": 3}}, {"feeds": {"batches 0": {}}}, {"ranks": [{"rng": {}}, {}]},
     {"ranks": [{"rng": {}, "feeds": {}, "epoch_sums": {"loss": "many"}}] * 2}],
)  # fmt: skip
def test_what_others_wrote_of_ranks_is_refused_in_one_line(hostile):
    """And not by an error of Python's own."""
    state, start = TrainState({}), Start(content(**hostile), History())
    with pytest.raises(CheckpointError, match="has of each rank cannot be read"):
        restore_on_rank(state, start, World(Ranks(0, 3)), 0)


def test_what_ranks_had_is_written_only_where_there_were_some():
    """The checkpoint of a single process is what it was."""
    assert "ranks" not in content().to_dict()
    whole = content(ranks=[of_rank(content())] * 2).to_dict()
    assert len(Content.from_dict(whole).ranks) == 2
    with pytest.raises(ValueError, match="its ranks"):
        Content.from_dict(whole | {"ranks": "many"})


def test_a_second_signal_ends_no_rank():
    """An agent may send on what the process got already; it ends what takes too long."""
    import signal

    stop = StopRequest(has_agent=True)
    stop.install()
    try:
        for _time in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM
    finally:
        stop.uninstall()


class Quiet:
    def check(self):
        """Nothing is wrong."""


def _ranks(port, rank, size, work, results):
    """Be one rank: call `work`, and put what it returns, or raises."""
    import os

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    world = World(Ranks(rank, size))
    try:
        world.open()
        results.put((rank, work(world)))
    except BaseException as error:  # of any kind: the test is to see it
        results.put((rank, (type(error).__name__, str(error))))
        world.end(error)
    finally:
        world.closed()
        world.wait_for_leader(lambda: 1.0)
        world.close()


def together(work, size=2, num_answers=2):
    """Return what `work(world)` returns on each rank that gets so far, in processes."""
    # As an agent's: it is not rank 0's, and outlives it.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [
        context.Process(target=_ranks, args=(store.port, rank, size, work, results))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(results.get() for _answer in range(num_answers))
    finally:
        for process in processes:
            process.join(20)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    return [found[rank] for rank in sorted(found)]


def _exchange(world):
    world.connect(30.0)
    tensor = torch.tensor([1.5 + world.rank])
    world.add_from(tensor, 1 - world.rank)
    got = world.gather({"x": torch.full((world.rank + 1,), world.rank)})
    sent = world.broadcast({"y": (1, [2.5])} if world.is_leader else None)
    return (
        world.agree([world.rank, -world.rank]), world.sum([0.1, float(world.rank)]), tensor.item(),
        [own["x"].tolist() for own in got], sent, world.from_leader("v", lambda: [world.rank]),
    )  # fmt: skip


def test_ranks_exchange_what_they_have():
    """Largest, sums, a pair's sum, what each has, and rank 0's word."""
    first, second = together(_exchange)
    assert first == ([1.0, 0.0], [0.2, 1.0], 4.0, [[0], [1, 1]], {"y": (1, [2.5])}, [0])
    assert second == ([1.0, 0.0], [0.2, 1.0], 4.0, [], {"y": (1, [2.5])}, [0])


def _fail_to_open(world):
    def fail():
        raise CheckpointError("is damaged")

    return world.from_leader("opened", fail)


def test_the_others_hear_why_rank_0_could_not():
    """With its code, so that the job ends by that."""
    first, second = together(_fail_to_open)
    assert first == ("CheckpointError", "is damaged")
    assert second == ("RankStopped", "rank 0 has ended: is damaged")


def _fail_before_the_group(world):
    if world.rank == 1:
        raise CheckpointError("no data here")
    world.connect(60.0)


def test_a_rank_that_cannot_begin_is_not_waited_for():
    """The others hear it before they make a group, in which they could not be stopped."""
    first, _second = together(_fail_before_the_group)
    assert first == ("RankStopped", "rank 1 has ended: no data here")


def _stop_one(world):
    world.connect(30.0)
    stop = StopRequest()
    agreement = Agreement(world, stop, Quiet())
    agreement.look()
    before = agreement.is_stopping
    if world.rank == 1:
        stop.take(15)
    at_first = agreement.is_stopping  # not before all know
    agreement.look()
    return before, at_first, agreement.is_stopping, stop.received_name


def test_a_signal_to_one_stops_all_at_the_next_step():
    """Nobody acts on it before all have heard."""
    assert together(_stop_one) == [(False, False, True, "SIGTERM")] * 2


def _die(world):
    import os
    import signal

    world.connect(30.0)
    world.agree([0.0])
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RankLost) as caught:
        world.agree([0.0])
    return caught.value.ranks


def test_a_rank_that_died_is_named():
    """The others find out who does not answer."""
    assert together(_die, num_answers=1) == [[1]]


def _leave_early(world):
    world.connect(30.0)
    if world.rank == 1:
        raise ValueError("my own fault")
    try:
        world.agree([0.0])
    except RankStopped as error:
        return error.rank, error.reason, error.exit_code
    return None


def test_a_rank_that_failed_says_why():
    """And the others end by its code."""
    first, second = together(_leave_early)
    assert first == (1, "ValueError: my own fault", 1)
    assert second == ("ValueError", "my own fault")


class _Unanswering:
    """A store beyond a link that was cut: its client waits for ever, with its lock."""

    def __getattr__(self, name):
        return lambda *_: threading.Event().wait()


def test_a_store_that_does_not_answer_keeps_nobody_from_ending(monkeypatch):
    """Neither the last words of a rank, nor what it waits for, have no end."""
    monkeypatch.setattr("onward.world.world.LOST_SECONDS", 0.05)
    world = World(Ranks(0, 2))
    world._store = _Unanswering()

    def end():
        with pytest.raises(CheckpointError):
            _fail_to_open(world)
        world.end(ValueError("my own fault"))
        world.wait_for_leader(lambda: 0.05)
        world.closed()
        world.close()

    assert bounded(end, 20.0)


def test_what_is_no_lost_rank_is_left_alone():
    """An error of the training itself is not blamed on others."""
    assert World(Ranks(0, 2)).blame(RuntimeError("shapes do not match")) is None
    assert World(Ranks(0, 2)).blame(ValueError("timed out")) is None
    assert ALONE.blame(RuntimeError("Connection closed by peer")) is None


def test_the_next_life_knows_the_run(tmp_path, monkeypatch):
    """By the launcher's file, which only rank 0 writes; not another run of the same process."""
    monkeypatch.setattr(lives, "_has_run", False)
    file = tmp_path / "lives.json"
    first, other = (
        World(Ranks(rank, 2, lives_file=str(file), launcher=("onward",))) for rank in (0, 1)
    )
    assert first.lives.run_id() is None
    other.lives.remember("no", 1)
    first.lives.remember("r", 0)
    first.lives.remember("r", 7)
    assert json.loads(file.read_text()) == {"run_id": "r", "step": 7}
    assert first.lives.run_id() is None
    monkeypatch.setattr(lives, "_has_run", False)  # as in a new process
    assert World(Ranks(1, 2, life=1, lives_file=str(file))).lives.run_id() == "r"


@pytest.mark.parametrize(
    ("planned", "code", "count"),
    [
        ([(0, 0, 5)], 0, 1),
        ([(1, -9, 3), (0, -9, 6), (0, 0, 9)], 0, 3),  # it goes on
        ([(0, 75, 3)], 75, 1),
        ([(0, 8, 3)], 8, 1),
        ([(0, 2, -1)], 2, 1),
        ([(1, 1, -1)] * 9, 1, 3),  # no checkpoint comes
        ([(0, -9, 4)] * 9, 1, 3),
        ([(0, -9, n) for n in range(7)] + [(0, 0, 9)], 0, 8),
    ],
)
def test_ranks_are_started_anew_as_long_as_it_goes_on(monkeypatch, planned, code, count):
    """After a code that another life would end by too, or that was asked for, they are not."""
    from onward.cli import launching

    seen = []

    def live(words, num_ranks):
        rank, ended, step = planned[len(seen)]
        seen.append(step)
        if step >= 0:
            World(Ranks(lives_file=launching_file())).lives.remember("r", step)
        return rank, ended

    def launching_file():
        return os.environ["_ONWARD_LIVES"]

    monkeypatch.setattr(launching, "_live", live)
    assert launching.launch(["x.py"], 2, 2) == code
    assert len(seen) == count


def test_a_job_of_the_same_name_is_forgotten(tmp_path):
    """torchrun calls each job "none" that has no name: its first life has no run yet."""
    file = tmp_path / "lives.json"
    file.write_text('{"run_id": "of another", "step": 3}')
    others = [World(Ranks(rank, 2, life=0, lives_file=str(file))) for rank in (1, 0)]
    assert [world.lives.run_id() for world in others] == [None, None]
    assert World(Ranks(0, 2, life=1, lives_file=str(file))).lives.run_id() is None


ENDS = """
import signal, sys
import onward
from onward.errors import RunNotUsable
if "early" not in sys.argv:
    try:
        onward.open_run({}, minimize="x", no_such_option=1)
    except onward.errors.UsageError:
        pass
if "usage" in sys.argv:
    onward.open_run({}, minimize="x", no_such_option=1)
if "stopped" in sys.argv:
    signal.raise_signal(signal.SIGINT)
raise RunNotUsable("0" * 32, "x") if "run" in sys.argv else ValueError("x")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "num_lives"),
    [
        (["run"], 6, 1),
        (["usage"], 2, 1),
        (["stopped"], 75, 1),
        ([], 1, 2),  # what was caught is not what ends it
        (["early", "run"], 1, 2),  # before anything of ours
    ],
)
def test_an_error_ends_a_launch_by_its_own_code(tmp_path, words, code, num_lives):
    """Python ends by 1 after each traceback, by the signal after Ctrl-C."""
    (tmp_path / "ends.py").write_text(ENDS)
    command = [BIN / "onward", "launch", "--nproc", "1", "--max_restarts", "1", "ends.py", *words]
    env = environment(tmp_path / "home", OMP_NUM_THREADS="1")
    done = run_command(command, cwd=tmp_path, env=env)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("Traceback") == num_lives


def test_the_code_of_a_life_is_not_that_of_the_next(monkeypatch):
    """It is what the rank that ended has left in this one."""
    from onward.cli import launching

    lived = []

    def live(words, num_ranks):
        lived.append(len(lived))
        if len(lived) == 1:
            lives.code_file(Path(os.environ["_ONWARD_LIVES"]), 0).write_text("7")
            return 1, -9
        return 0, 1

    monkeypatch.setattr(launching, "_live", live)
    assert launching.launch(["x.py"], 2, 2) == 1
    assert len(lived) == 3


def test_a_mean_is_of_all_ranks():
    """Also of one that had no batch."""
    assert together(_mean) == [2.5, 2.5]


def _mean(world):
    world.connect(30.0)
    state = TrainState({})
    if world.rank:
        state.mean("x").add(2.0, 3)
        state.mean("x").add(4.0, 1)
    return state.mean("x", world).value


def test_a_stop_is_told_by_its_code():
    """What ends a rank with others ends it by the same code."""
    assert RankStopped(0, "x", 7).code == 7
    assert isinstance(RankLost([1], "x"), SystemExit)
    assert Interrupted("SIGTERM", 1).code == 75


@pytest.mark.parametrize(
    ("words", "is_shown"),
    [
        (["onward", "launch", "--nproc", "2", "my_script.py", "--lr", "1"], True),
        (["onward", "launch", "--nproc", "2", "-m", "mine"], True),
        (["onward", "launch", "--nproc", "2", "-c", "import os"], False),
        (["onward", "launch", "--nproc", "2"], False),
        (["onward", "launch", "--nproc", "2; rm", "x.py"], False),
        (["onward launch --nproc 2 rm", "x"], False),
        (["onward", "sync", "x"], False),
    ],
)
def test_only_our_launcher_is_shown_as_what_started_a_script(words, is_shown):
    """Others may write to the tag, and somebody may paste what is shown."""
    assert (script_of(words) is not None) == is_shown


def test_messages_name_the_launcher(monkeypatch):
    """What goes on with a run goes on with as many ranks."""
    monkeypatch.setenv("_ONWARD_LAUNCHER", "onward launch --nproc 2")
    assert train_command({"resume_run": "r"}) == "train launch --nproc 2 -- run --resume_run r"
    monkeypatch.setenv("MLFLOW_RUN_ID", "x")
    told = train_command({"resume_run": "r"}, project=".")
    assert told == "mlflow run . --env-manager local -e distributed -P nproc=2 -P resume_run=r"
