"""Plain checkpoint files: those of the script version load, and none executes anything."""

import io
import logging
import os
import pickle
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from onward.checkpoint.format import FORMAT_VERSION
from onward.checkpoint.plain import to_plain
from onward.errors import CheckpointDamaged, CheckpointError, CheckpointFileNotFound, UsageError
from onward.metrics import History, Point
from onward.monitor import UNDECLARED, Monitor
from onward.run.state import TrainState
from train.schedule import Schedule
from train.script import check_order, read_checkpoint_file
from train.tabular.options import Config

AUCS = [0.5, 0.75, 0.625]


def read_file(path, **given):
    """Return the checkpoint in a file, for a run with the given options."""
    return read_checkpoint_file(path, given, Config)[1]


def best_of(read):
    """Return the best epoch and its value, by the history."""
    best = read.monitor.best(read.history.series(read.monitor.name))
    return best and (best.value, best.epoch)


def state(epoch=0):
    """Return the state of a model that nothing has been learned by."""
    model = nn.Linear(3, 1)
    parts = {"model": model, "optimizer": torch.optim.AdamW(model.parameters())}
    schedule = Schedule(Config(schedule_epochs=20), Monitor("val_loss", "min"))
    return TrainState({**parts, "scheduler": schedule}, epoch=epoch)


def our_content(config, state, **more):
    """Return what a file of this program holds."""
    content = {**state.capture().to_dict(), "config": config.to_dict(), **more}
    return {**content, "format_version": FORMAT_VERSION, "best_corr": None}


def script_content(**changes):
    """Return what the script version saved after three epochs."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    for _ in range(6):
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    return {
        "epoch": 3,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": scheduler.state_dict(),
        "train_losses": [np.float64(x) for x in (0.4, 0.3, 0.2)],
        "val_losses": [np.float64(x) for x in (0.5, 0.4, 0.35)],
        "aucs": [np.float64(x) for x in AUCS],
        "best_corr": np.float64(0.75),
        "timestamp": "2024-05-06 07:08:09",
        **changes,
    }


@pytest.fixture
def file(tmp_path):
    """Return a function that saves a script file, and returns its path."""

    def save(content):
        path = tmp_path / "checkpoint_epoch_3.pth"
        torch.save(content, path)
        return path

    return save


def with_numpy_1_names(path):
    """Rewrite the file's pickle as NumPy 1 would have written it."""
    found = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(found, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            new.writestr(name, content)
    path.write_bytes(found.getvalue())


@pytest.mark.parametrize("numpy_version", [1, 2])
def test_a_script_file_is_read_as_a_checkpoint(file, caplog, numpy_version):
    """Weights, moments, curves and the best are taken over, whichever NumPy wrote the file."""
    content = script_content()
    path = file(content)
    if numpy_version == 1:
        with_numpy_1_names(path)
    with caplog.at_level(logging.WARNING, "onward"):
        read = read_file(path)
    assert (read.epoch, read.step, read.epoch_step, read.monitor) == (3, 6, 0, UNDECLARED)
    assert best_of(read) == (0.75, 2)
    for name, weight in content["model_state_dict"].items():
        assert torch.equal(read.parts["model"][name], weight)
    history = read.history
    assert history.values("val_pearson") == AUCS
    assert history.values("train_loss") == [0.4, 0.3, 0.2]
    assert history.values("val_loss") == [0.5, 0.4, 0.35]
    assert [p.step for p in history if p.key == "val_loss"] == [1, 2, 3]
    assert "not exactly as it would have" in caplog.text
    assert to_plain(read.to_dict())


def test_random_numbers_of_a_script_file_come_from_the_seed(file):
    """The file holds no random state: it follows from the seed, the same each time."""
    path = file(script_content())
    first, again, other = (read_file(path, seed=s).rng for s in (1, 1, 2))
    assert torch.equal(first["torch"], again["torch"])
    assert first["python"] == again["python"]
    assert not torch.equal(first["torch"], other["torch"])


def test_the_times_of_a_script_file_end_with_the_file(file):
    """A file tells no time of its epochs: they lie before its own, in order."""
    path = file(script_content())
    os.utime(path, (1_700_000_000, 1_700_000_000))
    history = read_file(path).history
    times = [history.get("val_loss", epoch).timestamp_ms for epoch in (1, 2, 3)]
    assert times == [1_700_000_000_000 - 2, 1_700_000_000_000 - 1, 1_700_000_000_000]


@pytest.mark.parametrize("missing", ["epoch", "model_state_dict", "optimizer_state_dict"])
def test_a_missing_key_is_named(file, missing):
    """Without what training needs, the file is refused with what it lacks and what it holds."""
    content = script_content()
    del content[missing]
    with pytest.raises(CheckpointError, match=f"lacks {missing}; it holds aucs, best_corr"):
        read_file(file(content))


def test_what_the_script_may_have_left_out_is_not_needed(file):
    """A file without curves and schedule is a start all the same."""
    needed = ("epoch", "model_state_dict", "optimizer_state_dict")
    content = {k: v for k, v in script_content().items() if k in needed}
    read = read_file(file(content))
    assert (read.epoch, best_of(read), list(read.history)) == (3, None, [])
    assert read.parts["scheduler"] is None, "a fresh one begins"


def test_nan_in_the_scripts_curve_is_not_its_best(file):
    """NaN is never best, also in a file of the script."""
    aucs = [np.float64(np.nan), np.float64(0.25), np.float64(np.nan)]
    read = read_file(file(script_content(aucs=aucs)))
    assert best_of(read) == (0.25, 2)


def test_a_schedule_of_another_kind_starts_afresh_and_says_so(file, caplog):
    """torch's schedule state fits none of ours; that it is left out is a warning."""
    with caplog.at_level(logging.WARNING, "onward"):
        read = read_file(file(script_content()), schedule="plateau")
    assert "from epoch 4 the rate follows schedule=plateau" in caplog.text
    assert read.parts["scheduler"] is None, "a fresh one begins"


def test_our_own_file_is_read_as_it_is(file, caplog):
    """A downloaded checkpoint of this format keeps its random state: no warning."""
    config = Config(seed=4, hidden_size=8)
    content = our_content(config, state())
    with caplog.at_level(logging.WARNING, "onward"):
        options, read = read_checkpoint_file(file(to_plain(content)), {"seed": 5}, Config)
    assert options == config.replace(seed=5), "given options win, the others are the file's"
    assert set(read.to_dict()) == set(content)
    assert torch.equal(read.rng["torch"], content["rng"]["torch"])
    assert caplog.records == []


class Hostile:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize("how", ["zip", "legacy", "plain pickle"])
def test_a_hostile_file_executes_nothing(tmp_path, how):
    """The names that script files need are allowed, no other (invariant 6)."""
    path, content = tmp_path / "x.pth", script_content(best_corr=Hostile())
    if how == "plain pickle":
        path.write_bytes(pickle.dumps({"epoch": Hostile()}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(CheckpointDamaged, match=r"it holds code|it is a pickle") as caught:
        read_file(path)
    assert not (tmp_path / "executed").exists()
    assert "\n" not in str(caught.value)


def test_the_allowed_names_are_not_left_allowed(file):
    """What a script file may hold stays forbidden in checkpoints from a store."""
    path = file(script_content())
    read_file(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_numpy_objects_cannot_carry_a_pickle(file):
    """A NumPy scalar of dtype object, which would hold a pickle, is refused (invariant 6)."""
    hostile = np.empty((), dtype=object)
    hostile[()] = Hostile()
    with pytest.raises(CheckpointDamaged):
        read_file(file(script_content(best_corr=hostile)))
    assert not os.path.exists("executed")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken"])
def test_a_broken_file_is_damage(tmp_path, content):
    """Bytes that are no checkpoint are refused in one line."""
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointDamaged, match=f"file '{path}'") as caught:
        read_file(path)
    assert "\n" not in str(caught.value)


def test_a_file_of_something_else_is_refused(file):
    """A saved list, or a bare state_dict, is no checkpoint."""
    with pytest.raises(CheckpointError, match="holds a list, no dict"):
        read_file(file([1, 2]))
    with pytest.raises(CheckpointError, match=r"lacks .* it holds bias, weight"):
        read_file(file(nn.Linear(3, 1).state_dict()))


def test_a_file_that_is_not_there_is_named_with_its_full_path(tmp_path):
    """A missing file is told with the path that was looked at."""
    with pytest.raises(CheckpointFileNotFound) as caught:
        read_file(tmp_path / "none.pth")
    assert str(tmp_path) in str(caught.value)


def test_a_folder_is_told_as_one(tmp_path):
    """A folder of checkpoints is a common slip for one of them."""
    with pytest.raises(CheckpointError, match=f"'{tmp_path}' is a folder"):
        read_file(tmp_path)


@pytest.mark.parametrize(
    "kind",
    [np.float32, np.float16, np.int64, torch.tensor, np.array],
    ids=["float32", "float16", "int64", "tensor", "array"],
)
def test_numbers_of_any_kind_make_the_curves(file, kind):
    """`scipy.stats.pearsonr` gives float32 for float32, and metrics may be tensors."""
    path = file(script_content(aucs=[kind(v) for v in (1, 0, 1)], epoch=np.int64(3)))
    assert best_of(read_file(path)) == (1.0, 1)
    for curve in (np.array([1, 0, 1], np.float32), torch.tensor([1.0, 0.0, 1.0])):
        assert best_of(read_file(file(script_content(aucs=curve)))) == (1.0, 1)


@pytest.mark.parametrize("bare", [False, True])
def test_of_any_file_the_weights_alone_can_be_taken(file, caplog, bare):
    """Whatever the optimizer was, or without one, a run can start from the weights, and says so."""
    weights = nn.Linear(3, 1).state_dict()
    sgd = {"optimizer_state_dict": {"state": {}, "param_groups": []}, "epoch": -1}
    path = file(weights if bare else script_content(model_state_dict=weights, **sgd))
    with caplog.at_level(logging.WARNING, "onward"):
        config, read = read_checkpoint_file(path, {"epochs": 7}, Config, weights_only=True)
    assert "the weights alone are taken" in caplog.text
    assert (read.epoch, read.step, list(read.history), best_of(read)) == (0, 0, [], None)
    assert (read.parts["optimizer"], read.parts["scheduler"]) == (None, None)
    assert torch.equal(read.parts["model"]["weight"], weights["weight"])
    assert config == Config(epochs=7)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer_state_dict": 5},
        {"optimizer_state_dict": {}},
        {"model_state_dict": [1]},
        {"epoch": "three", "train_losses": []},
        {"aucs": [None]},
        {"train_losses": 5},
        {"train_losses": {1: 0.3, 2: 0.2, 3: 0.1}},
        {"val_losses": [True]},
        {"aucs": torch.ones(2, 2)},
        {"aucs": [1j]},
        {"model_state_dict": {"weight": 1}},
        *({"epoch": epoch} for epoch in (-1, 3.0, "3", True, None, 2**60)),
    ],
    ids=str,
)
def test_parts_of_another_kind_are_refused_in_one_line(file, changes):
    """A file whose parts are not what the script saved is refused, with what was found."""
    with pytest.raises(CheckpointError, match="cannot be used") as caught:
        read_file(file(script_content(**changes)))
    assert "\n" not in str(caught.value)


def inside_an_epoch(epoch_step):
    """Return what this program saved inside an epoch, or with 0 at the end of one."""
    reached = state(epoch=4)
    reached.epoch_step = epoch_step
    return to_plain(our_content(Config(seed=4), reached, data={"fingerprint": "d"}))


@pytest.mark.parametrize(
    ("given", "data", "changed"),
    [
        ({}, "d", None),
        ({"lr": 0.5, "epochs": 9}, "d", None),
        ({"data": "/the/same/table.csv"}, "d", None),
        ({"batch_size": 7}, "d", "batch_size"),
        ({"seed": 5}, "d", "seed"),
        ({}, "e", "data"),
        ({"seed": 5, "batch_size": 7}, "e", "batch_size, data, seed"),
    ],
)
def test_a_file_from_inside_an_epoch_keeps_the_order_of_its_batches(file, given, data, changed):
    """The rest of the epoch must be the rest of its samples; at an epoch's end all is free."""
    for epoch_step in (0, 3):
        path = file(inside_an_epoch(epoch_step))
        options, content = read_checkpoint_file(path, given, Config)
        subject = SimpleNamespace(options=options, data_fingerprint=data)
        if changed is None or epoch_step == 0:
            check_order(content, subject, path)
            continue
        with pytest.raises(UsageError, match=f"lies inside epoch 5, and with another {changed} "):
            check_order(content, subject, path)


@pytest.mark.parametrize(
    "missing", ["step", "history", "rng", "best_epoch", "config", "scheduler_state_dict"]
)
def test_our_own_file_must_be_complete(file, missing):
    """A checkpoint of this format that lacks a part is not gone on from (invariant 7)."""
    content = our_content(Config(seed=4, hidden_size=8), state())
    del content[missing]
    with pytest.raises(CheckpointError, match=f"lacks {missing}; it holds"):
        read_file(file(to_plain(content)))


@pytest.mark.parametrize(
    "history",
    [{"val_loss": torch.ones(3)}, {"val_loss": torch.full((1, 3), float("inf"))}, [1]],
    ids=str,
)
def test_a_history_of_another_kind_is_refused_in_one_line(file, history):
    """What could not be restored is found out before the run is made."""
    content = our_content(Config(seed=4), state(), history=history)
    with pytest.raises(CheckpointError, match="cannot be used") as caught:
        read_file(file(to_plain(content)))
    assert "\n" not in str(caught.value)


def test_our_own_file_of_another_monitor_goes_on_by_it(file):
    """A file tells by which metric its run was judged; an older one tells none, and means r."""
    parts = {"model": nn.Linear(3, 1)}
    judged = TrainState(
        {**state().parts, **parts},
        Monitor("val_rmse", "min"),
        history=History(Point("val_rmse", e, e, v) for e, v in enumerate((0.5, 0.25, 0.75), 1)),
    )
    content = our_content(Config(monitor="val_rmse:min"), judged) | {"format_version": 3}
    options, read = read_checkpoint_file(file(to_plain(content)), {}, Config)
    assert (options.monitor, read.monitor) == ("val_rmse:min", Monitor("val_rmse", "min"))
    assert best_of(read) == (0.25, 2)
    assert "monitor" not in our_content(Config(), state())
    assert read_file(file(to_plain(our_content(Config(), state())))).monitor == UNDECLARED
