"""Every mistake of a tired user gets one line that says what to do."""

import argparse
import collections
import gc
import random
import subprocess
import sys
import threading
import types
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from own_loops import X, Y
from support import cli
from test_own_loop import Died, only_id
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import onward
from onward.attempts.attempt import Attempt
from onward.checkpoint.plain import require_readable
from onward.errors import (
    CheckpointError,
    Interrupted,
    RunNotUsable,
    StoreUnavailable,
    UsageError,
)
from onward.run import parts
from onward.run.differences import first_difference
from onward.script.source import CODE_FILE, PATCH_FILE
from onward.system import invocation


def make(width=4):
    model = nn.Linear(3, width)
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1)}


def loader_of(number, **options):
    return DataLoader(TensorDataset(X[:number], Y[:number]), batch_size=16, **options)


def train(state, num_epochs=2, loader=None, die_at=None, **options):
    """Train so many epochs, a step for each batch; die in the step of that number."""
    options = {"upload": "sync", **options}
    number = 0
    with onward.open_run(state, **options) as run:
        for _epoch in run.epochs(range(num_epochs)):
            for _batch in run.batches(loader_of(64) if loader is None else loader):
                number += 1
                if number == die_at:
                    raise Died
            run.log(loss=1.0)
    return run.run_id


def refused(message, error=UsageError):
    return pytest.raises(error, match=message)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"step": 3}, r"state\['step'\] is a value of type int.*put it into a dict"),
        ({"name": "x"}, "value of type str"),
        ({"pair": (1, 2)}, "value of type tuple"),
        ({"env": object()}, r"is a object, which has no state_dict.*onward\.Part\(get, set\)"),
        ({1: {}}, "a dict of named parts"),
        ([], "a dict of named parts"),
        ({"model": nn.LazyLinear(2)}, r"weight has no shape yet.*one batch before open_run"),
    ],
)
def test_a_state_that_cannot_be_put_back_is_named(tracking, state, message):
    with refused(message):
        onward.open_run(state)
    assert not tracking.client.search_runs(["0"])


def test_an_optimizer_of_another_model_is_refused(tracking):
    state = make()
    state["model"] = nn.Linear(3, 4)
    with refused(r"state\['optimizer'\] changes 2 of its 2 tensors that are in no part"):
        onward.open_run(state)
    free = torch.zeros(3, requires_grad=True)
    state = make()
    state["optimizer"].add_param_group({"params": [free]})
    with refused("changes 1 of its 3 tensors"):
        onward.open_run(state)
    parts.require_parts({**state, "free": free})  # once it is a part it is fine


def test_what_cannot_be_stored_is_named_by_its_path(tracking):
    loop = {"replay": {"buffer": [1, object()]}}
    with (
        refused(
            r"loop_state_dict'\]\['replay'\]\['buffer'\]\[1\] is a builtins.object", CheckpointError
        ),
        onward.open_run({"loop": loop}) as run,
    ):
        for _epoch in run.epochs(range(1)):
            pass
    assert tracking.get_run(only_id(tracking)).status == "FAILED"


def test_parts_that_are_renamed_are_named(tracking):
    run_id = train(make())
    state = make()
    state["net"] = state.pop("model")
    with refused("missing are model, new are net", CheckpointError):
        train(state, resume_run=run_id)
    record = tracking.get_run(run_id)  # nothing of it is changed
    assert (record.status, record.attempts) == ("FINISHED", 1)
    train(make(), resume_run=run_id)
    assert tracking.get_run(run_id).status == "FINISHED"


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        (make(4), make(5), "size mismatch for weight"),
        ({"noise": torch.zeros(3)}, {"noise": torch.zeros(4)}, r"has the shape \[4\].*\[3\]"),
        ({"noise": np.zeros((2, 2))}, {"noise": np.zeros(2)}, r"has the shape \[2\].*\[2, 2\]"),
    ],
)
def test_a_part_of_another_shape_is_told(tracking, then, now, message):
    run_id = train(then)
    with refused(message, CheckpointError):
        train(now, resume_run=run_id)


class Forgetful:
    """Gives back less than it was given."""

    def state_dict(self):
        return {"a": 1, "b": self.b}

    def load_state_dict(self, state):
        pass

    b = 0


def test_a_part_that_keeps_less_than_it_was_given_is_found(tracking):
    then, now = Forgetful(), Forgetful()
    then.b = 5
    run_id = train({"it": then})
    with refused(
        r"state\['it'\] was restored, and is not what was saved: it\['b'\] is 0, not 5",
        CheckpointError,
    ):
        train({"it": now}, resume_run=run_id)


def test_weights_that_were_tied_stay_tied(tracking):
    def model(tied):
        both = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
        if tied:
            both["b"].weight = both["a"].weight
        return both

    run_id = train({"model": model(True)})
    with refused("shared their memory, and do not any more", CheckpointError):
        train({"model": model(False)}, resume_run=run_id)
    train({"model": model(True)}, resume_run=run_id)


def test_a_scaler_that_was_off_is_told(tracking):
    run_id = train({"scaler": torch.amp.GradScaler("cpu", enabled=False)})
    with refused("disabled instance of GradScaler", CheckpointError):
        train({"scaler": torch.amp.GradScaler("cpu", enabled=True)}, resume_run=run_id)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"loss": "0.5"}, "loss is '0.5', of type str"),
        ({"loss": None}, "loss is None, of type NoneType"),
        ({"loss": torch.zeros(3)}, r"loss is a tensor of shape \[3\]"),
        ({"a,b": 1.0}, "'a,b' cannot be the name of a metric"),
        ({"other": 1.0, "step": 1.5}, "step=1.5 is no whole number"),
        ({"loss": 1.0, "step": 3}, "logged by epoch: leave step out"),
    ],
)
def test_what_is_no_metric_is_refused_where_it_is_logged(tracking, metrics, message):
    with refused(message), onward.open_run({}, minimize="loss") as run:
        for _epoch in run.epochs(range(1)):
            run.log(**metrics)


def test_one_metric_has_one_value_and_one_axis(tracking):
    with onward.open_run({}) as run:
        for epoch in run.epochs(range(2)):
            run.log(loss=torch.tensor(0.5), rate=np.float32(2))
            run.log(reward=1.0, step=10 * epoch)
            with refused(f"loss is logged already for epoch {epoch + 1}"):
                run.log(loss=0.25)
            with refused("reward is logged both with a step and without"):
                run.log(reward=0.25)
            with refused("loss is logged both"):
                run.log(loss=0.25, step=99)
    points = tracking.client.get_metric_history(run.run_id, "reward")
    assert [(p.step, p.value) for p in points] == [(0, 1.0), (10, 1.0)]
    assert [p.value for p in tracking.client.get_metric_history(run.run_id, "loss")] == [0.5, 0.5]


def test_a_process_has_one_run_open_at_a_time(tracking):
    with onward.open_run({}) as run, refused(f"run {run.run_id} is open in this process"):
        onward.open_run({})
    with onward.open_run({}) as run, pytest.raises(Died):
        raise Died
    with onward.open_run({}) as run:
        pass


def test_a_loop_is_one_and_inside_the_run(tracking):
    run = onward.open_run({})
    with refused("the run is not entered"):
        next(run.epochs(range(2)))
    with run:
        with refused("takes a range of all its epochs"):
            next(run.epochs(5))
        for _epoch in run.epochs(range(2)):
            with refused("run.epochs is iterated already"):
                next(run.epochs(range(2)))
        with refused("one such loop"):
            next(run.steps(range(2)))


def test_a_pass_is_one_and_inside_an_epoch(tracking):
    with onward.open_run({}) as run:
        with refused("outside an epoch"):
            next(iter(run.batches(loader_of(32))))
        for _epoch in run.epochs(range(2)):
            both = zip(run.batches(loader_of(32)), run.batches(loader_of(32)), strict=True)
            assert len(list(both)) == 2
            with refused("a second time in the epoch"):
                next(iter(run.batches(loader_of(32))))
    assert run.step == 4


def test_what_run_batches_returns_is_like_the_loader(tracking):
    with onward.open_run({}) as run:
        batches = run.batches(loader_of(40))
        assert (len(batches), len(batches.dataset), batches.batch_size) == (3, 40, 16)


def test_an_epoch_that_ends_early_is_told_once(tracking, capsys):
    with onward.open_run({}) as run:
        for _epoch in run.epochs(range(3)):
            for number, _batch in enumerate(run.batches(loader_of(64))):
                if number == 1:
                    break
    told = [line for line in capsys.readouterr().out.splitlines() if "counts as done" in line]
    assert told == ["warning: Epoch 1 ended after 2 of 4 batches of its loader; it counts as done"]


def test_a_loop_by_the_loaders_length_does_not_ask_for_the_end_and_counts_every_batch(
    tracking, capsys
):
    with onward.open_run({}) as run:
        for epoch in run.epochs(range(3)):
            batches = iter(run.batches(loader_of(64)))
            for _number in range(4):
                next(batches)
            assert run.step == 4 * epoch + 3
    assert run.step == 12
    assert "counts as done" not in capsys.readouterr().out


@pytest.mark.usefixtures("one_thread")
def test_a_loader_of_another_length_is_refused_inside_an_epoch_only(tracking):
    with pytest.raises(Died):
        train(make(), die_at=7, checkpoint_steps=2)
    run_id = only_id(tracking)
    with refused(
        "after batch 2 of 4 of a loader, and the loader has 5 batches now", CheckpointError
    ):
        train(make(), loader=loader_of(80), resume_run=run_id)
    train(make(), resume_run=run_id)
    train(make(), loader=loader_of(80), resume_run=run_id, num_epochs=3)


@pytest.mark.parametrize(
    ("options", "told"), [({}, "it has workers"), ({"persistent_workers": True}, "persistent")]
)
def test_workers_whose_random_numbers_are_lost_are_told_once(tracking, capsys, options, told):
    train(make(), loader=loader_of(32, num_workers=1, **options))
    [line] = [line for line in capsys.readouterr().out.splitlines() if "onward.seeded" in line]
    assert told in line


def test_seeded_workers_need_no_word(tracking, capsys):
    data = onward.seeded(TensorDataset(X[:32], Y[:32]), 3)
    train(make(), loader=DataLoader(data, batch_size=16, num_workers=1))
    assert "onward.seeded" not in capsys.readouterr().out


def test_a_range_that_is_shorter_than_what_is_done_is_refused(tracking):
    run_id = train(make(), num_epochs=3)
    with refused("run.epochs got 2, and the run has 3 behind it"):
        train(make(), num_epochs=2, resume_run=run_id)
    train(make(), num_epochs=3, resume_run=run_id)  # nothing is left: it is finished still
    assert tracking.get_run(run_id).status == "FINISHED"
    train(make(), num_epochs=5, resume_run=run_id)
    assert tracking.get_run(run_id).epoch == 5


def test_a_run_by_epochs_is_none_by_steps(tracking):
    run_id = train(make())
    state = make()
    with (
        refused(
            r"the run goes by epochs \(run.epochs\), and the program by steps", CheckpointError
        ),
        onward.open_run(state, resume_run=run_id) as run,
    ):
        next(run.steps(range(9)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint_frequency": 3}, "open_run has no option checkpoint_frequency: there are"),
        ({"maximize": "a", "minimize": "b"}, "either maximize or minimize"),
        ({"checkpoint_freq": 0}, "checkpoint_freq=0 is too small"),
        ({"config": [1]}, "config is a list: give a dict"),
        ({"fork": True}, "fork needs resume_run"),
    ],
)
def test_options_that_cannot_be_used_are_refused(tracking, options, message):
    with refused(message):
        onward.open_run({}, **options)
    assert not tracking.client.search_runs(["0"])


def test_the_environment_gives_options_and_wins(tracking, monkeypatch, capsys):
    monkeypatch.setenv("ONWARD_CHECKPOINT_FREQ", "7")
    monkeypatch.setenv("ONWARD_CHEKPOINT", "1")
    with onward.open_run({}, checkpoint_freq=3, resume_run="auto") as run:
        assert run.options.checkpoint_freq == 7
    assert "ONWARD_CHEKPOINT is no option" in capsys.readouterr().out
    monkeypatch.setenv("ONWARD_UPLOAD", "perhaps")
    with refused("upload='perhaps' is not one of"):
        onward.open_run({})
    monkeypatch.setenv("ONWARD_UPLOAD", "sync")
    monkeypatch.setenv("ONWARD_RESUME_RUN", "")  # of a shell's variable that is not set
    with refused("resume_run= has no value"):
        onward.open_run({})


def test_the_config_is_what_is_shown_and_what_auto_knows(tracking):
    config = argparse.Namespace(lr=0.1, model={"width": 8}, out="a", api_token="s3cret")
    with pytest.raises(Died):
        train(make(), die_at=5, config=config, config_ignore=["out"], resume_run="auto")
    first = only_id(tracking)
    shown = tracking.get_run(first).params
    assert {k: shown[k] for k in ("lr", "model.width", "out")} == {
        "lr": "0.1", "model.width": "8", "out": "a",
    }  # fmt: skip
    assert "s3cret" not in str(shown)
    config.out = "b"
    assert train(make(), config=config, config_ignore=["out"], resume_run="auto") == first
    config.lr = 0.2
    assert train(make(), config=config, config_ignore=["out"], resume_run="auto") != first


def test_another_config_is_told_and_refused_by_strict(tracking, capsys):
    run_id = train(make(), config={"lr": 0.1, "old": 1})
    with refused("lr was 0.1 and is 0.2; old was 1 and is -", RunNotUsable):
        train(make(), config={"lr": 0.2}, resume_run=run_id, strict=True)
    assert tracking.get_run(run_id).attempts == 1
    train(make(), num_epochs=3, config={"lr": 0.2}, resume_run=run_id)
    told = capsys.readouterr().out
    assert "lr was 0.1 and is 0.2; old was 1 and is -. Going on all the same" in told


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Stand for the script that this process runs."""
    path = tmp_path / "my_script.py"
    path.write_text("lr = 0.1\npassword = 'hunter2'\n")
    monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace(__file__=str(path)))
    monkeypatch.setattr(sys, "argv", ["my_script.py", "--lr", "0.1"])
    return path


def stored(tracking, run_id, name):
    return tracking.client.download_artifacts(run_id, f"code/{name}")


def test_an_edited_script_is_told_with_the_difference(tracking, script, capsys):
    run_id = train(make())
    with open(stored(tracking, run_id, CODE_FILE)) as file:
        assert file.read() == "lr = 0.1\npassword = ***\n"
    script.write_text(script.read_text().replace("0.1", "0.2"))
    with refused("the script was edited", RunNotUsable):
        train(make(), resume_run=run_id, strict=True)
    train(make(), num_epochs=3, resume_run=run_id)
    told = capsys.readouterr().out
    assert "the script was edited (code/script.patch of the attempt tells how)" in told
    with open(stored(tracking, tracking.get_run(run_id).child_of(2), PATCH_FILE)) as file:
        patch = file.read()
    assert "-lr = 0.1\n" in patch
    assert "+lr = 0.2\n" in patch
    assert "hunter2" not in patch


def test_the_command_that_goes_on_is_told_as_it_was_typed(tracking, script, capsys):
    with pytest.raises(Died):
        train(make(), die_at=6)
    python, run_id = Path(sys.executable).name, only_id(tracking)
    command = f"Go on with: ONWARD_RESUME_RUN={run_id} {python} my_script.py --lr 0.1"
    assert command in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    "words",
    ['["rm", "-rf", "/"]', '["python", "-c", "evil()"]', '"python x.py"', "[", '["python"]'],
)
def test_a_command_that_somebody_wrote_into_the_store_is_none(tracking, words, monkeypatch):
    run_id = train(make())
    monkeypatch.setattr(invocation, "_script", None)
    tracking.client.set_tag(run_id, "train.command", words)
    record = tracking.get_run(run_id)
    assert record.standing.script == ("python", "<script>")


def test_outside_the_main_thread_there_is_no_handler_and_all_else(tracking):
    done = []
    thread = threading.Thread(target=lambda: done.append(train(make())))
    thread.start()
    thread.join()
    assert tracking.get_run(done[0]).status == "FINISHED"


def test_a_stop_that_nobody_catches_is_an_exit_code():
    assert issubclass(Interrupted, SystemExit)
    assert Interrupted("SIGTERM", 3).code == 75


def test_every_kind_of_part_comes_back(tracking):
    def state(seed):
        torch_, numpy_, python = torch.Generator(), np.random.default_rng(seed), random.Random(seed)
        torch_.manual_seed(seed)
        old = np.random.RandomState(seed)
        old.normal()
        array = np.full(3, float(seed))
        box = [seed]
        model = nn.Linear(2, 2)
        nn.init.constant_(model.weight, seed)
        return {
            "torch": torch_, "numpy": numpy_, "mt": np.random.Generator(np.random.MT19937(seed)),
            "old": old, "python": python, "array": array, "tensor": torch.full((2,), float(seed)),
            "loop": {"best": seed / 7, "seen": torch.tensor([seed]), "at": (seed, None), 3: "x",
                     "deep": {"generator": torch.Generator().manual_seed(seed)}},
            "last": collections.deque([seed, 2.5], maxlen=4), "list": [seed, {"a": seed}],
            "part": onward.Part(lambda: {"box": box[0]}, lambda s: box.__setitem__(0, s["box"])),
            "nothing": None, "compiled": torch.compile(model, backend="eager"),
            "wrapped": nn.DataParallel(model),
        }  # fmt: skip

    then, now = state(1), state(2)
    kept = {name: id(part) for name, part in now.items()}
    run_id = train(then)
    train(now, num_epochs=3, resume_run=run_id)
    for name, part in then.items():
        assert first_difference(parts.capture(part), parts.capture(now[name]), name) is None
    assert {name: id(part) for name, part in now.items()} == kept
    assert now["last"].maxlen == 4
    assert now["numpy"].random() == then["numpy"].random()
    stored = onward.checkpoints(run_id).load()
    assert set(stored["compiled"]) == set(stored["wrapped"]) == {"weight", "bias"}


class Adam32(torch.optim.Optimizer):
    """Keeps moments in fp32, of weights in bf16."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1e-2})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state["m"] = state.get("m", torch.zeros_like(p, dtype=torch.float32)) + 0.123


def test_moments_of_another_dtype_than_the_weights_come_back(tracking):
    def state():
        weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        return {"weight": weight, "optimizer": Adam32([weight])}

    then, now = state(), state()
    then["optimizer"].step()
    run_id = train(then)
    train(now, num_epochs=3, resume_run=run_id)
    [moments] = now["optimizer"].state.values()
    assert moments["m"].dtype == torch.float32
    assert torch.equal(moments["m"], torch.full((3,), 0.123))


def test_a_metric_that_decides_and_is_not_logged_is_told(tracking, capsys):
    with onward.open_run({}, minimize="val_loss") as run:
        for _epoch in run.epochs(range(2)):
            run.log(test_loss=0.5, other=1.0)
    told = capsys.readouterr().out
    assert told.count("val_loss is to decide which epoch is best, and is not logged so far") == 1
    assert "logged are: other, test_loss" in told
    assert "test_loss 0.50000  other 1.00000" in told


def test_another_metric_than_the_runs_is_told_and_changes_nothing(tracking, capsys):
    run_id = train(make(), maximize="loss")
    train(make(), num_epochs=3, minimize="loss", resume_run=run_id)
    assert "loss:max decided which is best, and loss:min is given: the run's stays" in (
        capsys.readouterr().out
    )
    assert str(tracking.get_run(run_id).monitor) == "loss:max"


def test_an_optimizer_that_is_in_no_part_is_told_once(tracking, capsys):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    with onward.open_run({"model": model}) as run:
        for _epoch in run.epochs(range(2)):
            model(torch.ones(2)).sum().backward()
            optimizer.step()
    told = capsys.readouterr().out
    assert told.count("A Adam changes the model and is in no part of the state") == 1


def test_steps_of_a_metric_that_begin_anew_are_told(tracking, capsys):
    with onward.open_run({}) as run:
        for epoch in run.epochs(range(2)):
            for step in range(3):
                run.log(loss=epoch + step, step=step)
    assert capsys.readouterr().out.count("loss has a value at step 0 already") == 1


@pytest.mark.parametrize(
    ("width", "num_epochs", "error"), [(5, 3, CheckpointError), (4, 1, UsageError)]
)
def test_a_finished_run_that_is_resumed_wrongly_stays_finished(
    width, num_epochs, error, tracking, capsys
):
    """The attempt has failed, the run stands where it was, and what is told says so."""
    run_id = train(make())
    before = tracking.get_run(run_id)
    with pytest.raises(error):
        train(make(width), num_epochs, resume_run=run_id, checkpoint_freq=7)
    record = tracking.get_run(run_id)
    assert (record.status, record.attempts) == ("FINISHED", 2)
    assert record.run_options() == before.run_options()
    assert tracking.get_run(record.child_of(2)).status == "FAILED"
    assert record.tags["train.attempt.2"].startswith("no epoch on ")
    assert record.tags["train.attempt.2"].endswith(", failed")
    assert record.tags["mlflow.note.content"].startswith("**finished**: epoch 2 of 2")
    told = capsys.readouterr().out
    assert "FAILED after epoch 2\n" in told
    assert "Nothing was trained: the run is FINISHED, as it was\n" in told
    assert "epoch 0" not in told
    train(make(), 3, resume_run=run_id)
    assert tracking.get_run(run_id).epoch == 3


def test_a_finished_run_that_was_trained_on_is_failed(tracking):
    run_id = train(make())
    with pytest.raises(Died):
        train(make(), 3, die_at=1, resume_run=run_id)
    assert tracking.get_run(run_id).status == "FAILED"
    with refused("the run has 2 behind it"):
        train(make(), 1, resume_run=run_id)
    assert tracking.get_run(run_id).status == "FAILED"


def test_where_the_server_is_away_a_finished_run_is_finished_again_by_sync(tracking, monkeypatch):
    run_id = train(make())
    with monkeypatch.context() as away, refused("does not fit", CheckpointError):
        away.setattr(Attempt, "end", unreachable)
        train(make(5), 3, resume_run=run_id, drain_seconds=0)
    assert tracking.get_run(run_id).status == "RUNNING"
    assert cli("sync", run_id).exit_code == 0
    assert tracking.get_run(run_id).status == "FINISHED"


def unreachable(*_):
    raise StoreUnavailable("the server", "it is away")


def test_a_run_that_is_never_entered_does_not_stay_running(tracking):
    script = "import onward; run = onward.open_run({}); print(run.run_id)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    record = tracking.get_run(done.stdout.split()[-1])
    assert record.status == "KILLED"
    assert record.tags["mlflow.source.name"] == "notebook"


def test_a_metric_that_decides_now_and_then_is_not_missed(tracking, capsys):
    """A loss at each step, an evaluation at some: nothing is wrong with it."""
    with onward.open_run({}, minimize="val_loss", checkpoint_steps=4) as run:
        for number in run.steps(range(12)):
            run.log(loss=1.0, **({"val_loss": 2.0} if number == 2 else {}))
    assert "is to decide" not in capsys.readouterr().out


def test_a_run_that_is_closed_keeps_nothing_alive(tracking):
    """As in a notebook, which opens one after the other."""
    model = nn.Linear(2, 2)
    alive = weakref.ref(model)
    with onward.open_run({"model": model}) as run:
        for _epoch in run.epochs(range(1)):
            pass
    del model, run
    for beating in (thread for thread in threading.enumerate() if thread.name == "heartbeat"):
        beating.join(60)  # nobody waits for a beat that is under way, which tells of the run
    gc.collect()
    assert alive() is None


def test_lists_that_could_not_be_read_again_are_refused_as_they_are_written():
    with refused("put long lists of numbers, such as a replay buffer", CheckpointError):
        require_readable({"loop": [0.5] * 4_000_000})  # 36 MB in a pickle
    require_readable({"loop": [0.5] * 400_000, "model": torch.zeros(10_000_000)})
