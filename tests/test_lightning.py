"""Lightning's Trainer with `Resumable`: a training that was stopped is the one that was not."""

import logging
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import MLFlowLogger
from lightning_net import (
    EPOCHS,
    PER_EPOCH,
    Counting,
    DrawingHooks,
    KillAt,
    Killed,
    Net,
    Points,
    StopAfter,
    TwoOptimizers,
    fit,
    loaders,
    trainer_of,
)
from support import checkpoint, curves, differences
from torch.utils.data import DataLoader, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from onward.adapters import lightning_checks
from onward.errors import CheckpointError, Interrupted, UsageError
from onward.lightning import Resumable
from onward.run import rng
from onward.script import open as opening

pytestmark = [
    pytest.mark.usefixtures("tracking", "one_thread", "quiet"),
    pytest.mark.filterwarnings("ignore:::(lightning|torch|torchmetrics|torchdata)"),
]


@pytest.fixture
def quiet():
    """Let Lightning say nothing, and leave no run open."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    yield
    if opening._open is not None:
        opening._open.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)


def result(trained):
    """Return all that a training leaves: weights, the newest checkpoint, the curves."""
    module, run_id = trained
    uri = os.environ["MLFLOW_TRACKING_URI"]
    saved = checkpoint(uri, run_id, Path(f"saved {run_id}"))
    return {
        "weights": dict(module.state_dict()),
        "state": saved["trainer_state_dict"],
        "rng": saved["rng"],
        "curves": curves(uri, run_id),
    }


def status_of(tracking, run_id):
    """Return the status of a run, as MLflow shows it."""
    return tracking.get_run(run_id).status


def expect_same(stop, **case):
    """Train at one go, and with a stop; fail where anything differs, to the bit."""
    callbacks, whole = case.pop("callbacks", list), case.pop("whole", None)
    whole = whole or fit(callbacks=callbacks(), **case)
    first = fit(callbacks=[*callbacks(), stop], **case)
    assert isinstance(first[0].error_raised, Killed | Interrupted)
    rest = fit(callbacks=callbacks(), resume_run=first[1], **case)
    assert first[1] == rest[1]
    assert differences(result(whole), result(rest)) == []
    num = len(rest[0].seen)
    assert rest[0].seen == whole[0].seen[-num:]
    assert num < len(whole[0].seen)
    return first[0], rest[0]


# --- exact ------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["step", "onecycle", "plateau"])
def test_a_training_that_was_stopped_is_as_if_it_had_not_been(schedule):
    """Weights, rates, moments, metrics and random numbers are equal, inside an epoch and at its
    end, whatever makes the learning rate; and where it died, which trains a part again."""
    case = {"make": partial(Net, schedule)}
    case["whole"] = fit(**case)
    for batch in (PER_EPOCH, PER_EPOCH + 2):
        stopped, rest = expect_same(StopAfter(batch), **case)
        assert (len(stopped.seen), len(rest.seen)) == (batch, EPOCHS * PER_EPOCH - batch)
    expect_same(KillAt(PER_EPOCH + 3), upload="sync", **case)


def with_generator():
    """Return loaders of which the first draws its order from a generator of its own."""
    return loaders(generator=torch.Generator().manual_seed(5))


def two_loaders():
    """Return two loaders side by side, the second of which begins anew inside an epoch."""
    shorter = DataLoader(Points(12), batch_size=4, shuffle=True)
    return {"long": loaders()[0], "short": shorter}, loaders()[1]


class Pairs(Net):
    """Trains on batches of two loaders."""

    def training_step(self, batch, index):
        self.seen.append(float(batch["short"][0][0, 0]))
        return super().training_step(batch["long"], index) + self.loss(batch["short"])


CASES = {
    "a generator of the loader's own": {"data": with_generator},
    "torchdata's loader": {"data": partial(loaders, StatefulDataLoader)},
    "two loaders": {"data": two_loaders, "make": Pairs},
    "accumulated gradients": {"trainer": {"accumulate_grad_batches": 2}},
    "accumulated by a callback": {"callbacks": lambda: [GradientAccumulationScheduler({1: 2})]},
    "two optimizers by hand": {"make": TwoOptimizers},
    "hooks that draw": {"make": DrawingHooks, "callbacks": lambda: [Counting()]},
    "an average of weights, and validation inside an epoch": {
        "callbacks": lambda: [EMAWeightAveraging(decay=0.5)],
        "trainer": {"val_check_interval": 2},
    },
    "validation after each batch": {"trainer": {"val_check_interval": 1}},
    "validation in every other epoch": {"trainer": {"check_val_every_n_epoch": 2}},
    "a part of the batches": {"trainer": {"limit_train_batches": 4}},
    "rates that are logged": {"callbacks": lambda: [LearningRateMonitor()]},
    "steps that are logged now and then": {"trainer": {"log_every_n_steps": 2}},
}


SLOW = ("validation after", "rates", "steps", "a part", "two loaders", "accumulated by")


@pytest.mark.parametrize(
    "case",
    [pytest.param(n, marks=pytest.mark.slow) if n.startswith(SLOW) else n for n in CASES],
)
def test_a_stop_inside_an_epoch_changes_nothing(case):
    """The batches that are left come in the same order, and the means are of all of them."""
    # Of gradients that are being accumulated nothing is stored: the step comes first.
    asked, stops = (3, 4) if "accumulated" in case else (2, 2)
    stopped, _rest = expect_same(StopAfter(PER_EPOCH + asked), **CASES[case])
    epoch = PER_EPOCH - (case == "a part of the batches")
    error = stopped.error_raised
    steps = stops // 2 if "accumulated" in case else stops + PER_EPOCH - epoch
    assert (error.epoch, error.epoch_step) == (1, steps)


def test_a_callback_begins_an_epoch_once():
    """What others do where an epoch begins comes after the save, and is done again."""
    case = {"make": DrawingHooks, "callbacks": lambda: [Counting()]}
    expect_same(KillAt(PER_EPOCH + 3), upload="sync", **case)


def test_a_value_of_an_epoch_outlives_a_stop_in_it():
    """A validation inside the epoch, after which no other one comes, is published at its end."""
    stop = StopAfter(PER_EPOCH + 4)
    expect_same(stop, trainer={"val_check_interval": 4}, epochs=2)


def test_a_schedule_sees_the_metric_of_an_epoch_before():
    """Where nothing is validated, it goes by what Lightning shows of the epoch before."""
    case = {"trainer": {"check_val_every_n_epoch": 2}, "make": partial(Net, "loose")}
    expect_same(StopAfter(2 * PER_EPOCH + 2), **case)


class Stream(IterableDataset):
    """Points without a number."""

    def __iter__(self):
        for _ in range(12):
            yield torch.rand(4), torch.rand(1)


def test_a_loader_without_a_length_is_gone_on_with_at_its_beginning(capsys):
    """Its batches are fetched ahead, so that nothing is saved inside an epoch, and that is told."""
    stopped, rest = expect_same(
        StopAfter(5), data=lambda: (DataLoader(Stream(), batch_size=4), loaders()[1])
    )
    assert (len(stopped.seen), len(rest.seen)) == (5, 6)
    told = capsys.readouterr().out
    assert "Nothing is saved inside an epoch" in told
    assert "has no length" in told


@pytest.mark.slow
def test_weights_averaged_by_lightning_go_on_at_the_beginning_of_an_epoch(capsys):
    """StochasticWeightAveraging changes the Trainer where an epoch begins, so that is redone."""
    averaging = lambda: [StochasticWeightAveraging(0.01, swa_epoch_start=1)]  # noqa: E731
    _stopped, _rest = expect_same(StopAfter(PER_EPOCH + 2), callbacks=averaging)
    assert "StochasticWeightAveraging cannot go on there" in capsys.readouterr().out


def test_a_run_is_extended():
    """Three epochs that become five are the same as five."""
    whole, short = fit(epochs=5), fit(epochs=3)
    longer = fit(epochs=5, resume_run=short[1])
    assert len(longer[0].seen) == 2 * PER_EPOCH
    assert differences(result(whole), result(longer)) == []


def test_a_finished_run_trains_nothing(tracking):
    """It is restored as it is, and stays finished."""
    done = fit()
    again = fit(resume_run=done[1])
    assert again[0].seen == []
    assert status_of(tracking, done[1]) == "FINISHED"
    assert differences(result(done), result(again)) == []


def test_early_stopping_comes_after_the_same_epoch():
    """Its patience goes on; and where it has stopped a run, the run is over."""
    patience = lambda: [EarlyStopping("val_loss", patience=2, min_delta=50.0)]  # noqa: E731
    _stopped, rest = expect_same(StopAfter(PER_EPOCH + 1), callbacks=patience, epochs=9)
    assert len(rest.seen) == 2 * PER_EPOCH - 1, "it stops after the third epoch"
    ended = fit(callbacks=patience(), epochs=9)
    assert fit(callbacks=patience(), epochs=9, resume_run=ended[1])[0].seen == []


def test_the_run_changes_nothing_of_the_training():
    """The bits are those of Lightning without it."""
    trained, _run_id = fit(checkpoint_steps=1)
    L.seed_everything(7, verbose=False)
    alone = Net()
    trainer_of(EPOCHS, [], logger=False, enable_checkpointing=False).fit(alone, *loaders())
    assert differences(dict(trained.state_dict()), dict(alone.state_dict())) == []
    assert trained.seen == alone.seen


# --- stopping and status ----------------------------------------------------------------------


def test_a_signal_publishes_no_part_of_an_epoch(tracking):
    """The epoch under way is neither validated nor published, and the run is KILLED."""
    stopped, run_id = fit(callbacks=[StopAfter(PER_EPOCH + 2)])
    error = stopped.error_raised
    assert (error.code, error.epoch, error.epoch_step) == (75, 1, 2)
    found = curves(tracking.uri, run_id)
    assert {len(points) for key, points in found.items() if "step" not in key} == {1}
    assert status_of(tracking, run_id) == "KILLED"


@pytest.mark.parametrize("hook", ["on_sanity_check_end", "on_validation_batch_start", "setup"])
def test_a_signal_is_ours_wherever_it_comes(tracking, hook):
    """Lightning, which would end with exit code 0, has no part in it; handlers are put back."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it was ignored at start
    asked = []

    def ask(self, trainer, *_, **__):
        if not (asked or (hook == "on_validation_batch_start" and trainer.sanity_checking)):
            asked.append(signal.raise_signal(signal.SIGTERM))

    stopped, run_id = fit(callbacks=[type("Asks", (L.Callback,), {hook: ask})()])
    assert isinstance(stopped.error_raised, Interrupted)
    assert asked
    assert status_of(tracking, run_id) == "KILLED"
    assert len(stopped.seen) == (PER_EPOCH if "batch" in hook else 0)
    with pytest.raises(KeyboardInterrupt):  # by Python's own handler, whoever had it since
        signal.raise_signal(signal.SIGINT)


def test_a_failure_fails_the_run(tracking):
    """An error goes through, and no run stays RUNNING."""
    stopped, run_id = fit(callbacks=[KillAt(2)])
    assert isinstance(stopped.error_raised, Killed)
    assert status_of(tracking, run_id) == "FAILED"


def test_a_run_that_no_fit_has_closed_is_closed_as_the_process_ends(tracking):
    """Reading `ckpt_path` opens the run; without a fit it was KILLED."""
    resumable = Resumable()
    assert resumable.ckpt_path is None
    run_id = resumable.run.run_id
    resumable._opened.abandon()
    assert status_of(tracking, run_id) == "KILLED"
    assert opening._open is None


@pytest.mark.slow
def test_the_end_of_a_process_closes_a_run_that_no_fit_has_closed(tracking):
    """Python 3.12 begins no thread by then."""
    script = "from onward.lightning import Resumable; print(Resumable().run.run_id)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "could not be closed" not in done.stdout
    run_id = re.search(r"^[0-9a-f]{32}$", done.stdout, re.MULTILINE).group()
    assert status_of(tracking, run_id) == "KILLED"


def test_the_file_is_gone_and_nothing_is_left_in_the_trainer():
    """What was written for Lightning to read, and what was put into it, is taken back."""
    done = fit(epochs=1)
    resumable = Resumable(resume_run=done[1], log_model=False)
    file = Path(resumable.ckpt_path)
    assert file.is_file()
    assert resumable.ckpt_path == str(file)
    trainer = trainer_of(2, [resumable], logger=resumable.logger)
    trainer.fit(Net(), *loaders(), ckpt_path=str(file), weights_only=True)
    assert not file.parent.exists()
    assert trainer.callbacks[-1] is resumable
    assert "_First" not in str(trainer.callbacks)
    assert "process_dataloader" not in vars(trainer.strategy)


def test_opening_a_run_draws_nothing():
    """The random numbers are those of the script until training begins."""
    done = fit(epochs=1)
    before = rng.capture()
    resumable = Resumable(resume_run=done[1])
    assert differences(before, rng.capture()) == [] or resumable.ckpt_path
    assert differences(before, rng.capture()) == []
    resumable._opened.abandon()


# --- metrics ----------------------------------------------------------------------------------


def test_metrics_lie_where_lightning_puts_them(tracking):
    """By epoch what is of an epoch, by Lightning's step what is of a step; `epoch` is none."""
    _module, run_id = fit()
    found = curves(tracking.uri, run_id)
    epochs = list(range(1, EPOCHS + 1))
    for key in ("val_loss", "train_loss_epoch", "train_error", "largest", "first_loss"):
        assert [step for step, _value in found[key]] == epochs
    assert [step for step, _value in found["train_loss_step"]] == list(range(EPOCHS * PER_EPOCH))
    assert "epoch" not in found
    assert "best_val_loss" in found


def test_a_metric_that_is_not_measured_is_not_published(tracking):
    """Lightning shows the value of an earlier epoch again; the run does not."""
    _module, run_id = fit(trainer={"check_val_every_n_epoch": 2}, epochs=4)
    assert [step for step, _value in curves(tracking.uri, run_id)["val_loss"]] == [2, 4]


# --- refused ----------------------------------------------------------------------------------


def refuse(match, trainer=(), path=True, make=Net, kind=UsageError, **options):
    """Expect a fit to be refused in one line, before it trains."""
    resumable = Resumable(log_model=False, **options)
    run_id, module = resumable.run.run_id, make()
    made = {"logger": resumable.logger, "max_epochs": 1, "callbacks": [resumable]}
    made |= dict(trainer() if callable(trainer) else trainer)
    with pytest.raises(kind, match=match) as caught:
        L.Trainer(accelerator="cpu", **made).fit(
            module, *loaders(), ckpt_path=resumable.ckpt_path if path else None
        )
    assert "\n" not in str(caught.value)
    assert module.seen == []
    assert opening._open is None
    return run_id


@pytest.mark.parametrize(
    ("trainer", "match"),
    [
        (lambda: {"logger": False}, "give the Trainer logger=resumable.logger"),
        (lambda: {"max_epochs": -1}, "give the Trainer max_epochs, and no max_steps"),
        (lambda: {"max_steps": 7}, "give the Trainer max_epochs, and no max_steps"),
    ],
)
def test_what_cannot_be_resumed_is_refused(tracking, trainer, match):
    """One line tells what to change; the run has FAILED."""
    assert status_of(tracking, refuse(match, trainer)) == "FAILED"


def mlflow_logger():
    """Return Lightning's logger to MLflow, which makes a run when it is first used."""
    return MLFlowLogger(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])


@pytest.mark.parametrize(
    ("match", "made"),
    [
        ("give the Trainer devices=1", dict),
        ("resumable.logger has them in run abc", lambda: {"logger": mlflow_logger(), "devices": 1}),
    ],
)
def test_what_would_begin_before_it_is_refused_is_refused(match, made):
    """Each device would train a run of its own, and MLflow's logger would record a second one."""
    own = Resumable()
    made = {"logger": own.logger, "devices": 2, "max_epochs": 1} | made()
    trainer = L.Trainer(accelerator="cpu", callbacks=[own], **made)
    with pytest.raises(UsageError, match=match):
        lightning_checks.require_usable(trainer, own, "abc")


def test_a_trainer_of_the_other_package_is_refused():
    """pytorch_lightning has classes of its own, of which Resumable is none."""
    with pytest.raises(UsageError, match=r"import lightning\.pytorch in its place"):
        lightning_checks.require_usable(SimpleNamespace(callbacks=[], loggers=[]), None, "a run")


def test_a_second_one_is_refused():
    """A process works on one run, and a Resumable sees one fit."""
    first, second = Resumable(), Resumable()
    with pytest.raises(UsageError, match="two Resumables"):
        trainer_of(1, [first, second], logger=first.logger).fit(Net(), *loaders())
    with pytest.raises(UsageError, match="make a new one"):
        first.ckpt_path  # noqa: B018
    third = Resumable()
    assert third.ckpt_path is None
    with pytest.raises(UsageError, match="is open in this process already"):
        Resumable().ckpt_path  # noqa: B018
    third._opened.abandon()


def test_a_fit_that_forgets_the_checkpoint_is_refused():
    """It would begin anew under the run's name; and one that takes another goes elsewhere."""
    done = fit(epochs=1)
    refuse("begins anew: give it ckpt_path", path=False, resume_run=done[1])
    resumable = Resumable(log_model=False)
    trainer = trainer_of(1, [resumable], logger=resumable.logger)
    other = Resumable(resume_run=done[1])
    path = other.ckpt_path
    opening._open = None
    with pytest.raises(UsageError, match="goes on from another checkpoint than the run"):
        trainer.fit(Net(), *loaders(), ckpt_path=path, weights_only=True)
    other._opened.abandon()


def test_early_stopping_is_lightnings():
    """The option of that name is for loops of one's own."""
    with pytest.raises(UsageError, match="give the Trainer an EarlyStopping"):
        Resumable(early_stopping=3, minimize="val_loss").ckpt_path  # noqa: B018
    assert opening._open is None


class Keeping(L.Callback):
    """Keeps what is no tensor and no builtin."""

    def state_dict(self):
        return {"where": {"path": Path("/tmp")}}


def test_a_state_that_cannot_be_stored_names_its_callback():
    """It is told before the first batch, with the path to what is no builtin."""
    own = Resumable(log_model=False)
    trainer = trainer_of(1, [Keeping(), own], logger=own.logger)
    match = r"the state of the callback Keeping\['where'\]\['path'\] is a pathlib"
    module = Net()
    with pytest.raises(CheckpointError, match=match):
        trainer.fit(module, *loaders())
    assert module.seen == []


class Named(Net):
    """Saves hyperparameters that no checkpoint can hold."""

    def __init__(self, where=Path("/tmp")):
        super().__init__()
        self.save_hyperparameters()


def test_hyperparameters_that_cannot_be_stored_are_left_out():
    """Nothing is restored from them."""
    expect_same(StopAfter(2), make=Named, epochs=1)


# --- what is private to Lightning -------------------------------------------------------------


def test_lightning_keeps_its_sums_where_it_did():
    """`fit_loop.epoch_loop._results`: the one private attribute, with all that is read of it."""
    looked = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            results = trainer.fit_loop.epoch_loop._results
            looked.append(
                {
                    key: (r.is_tensor, r.meta.on_epoch, r.meta.is_mean_reduction, r._computed)
                    for key, r in results.items()
                }
            )
            assert lightning_checks.why_not_inside(trainer) is None

    fit(callbacks=[Look()], epochs=1)
    assert looked[-1]["training_step.train_loss"] == (True, True, True, None)
    assert looked[-1]["training_step.largest"] == (True, True, False, None)


def test_where_lightning_keeps_them_elsewhere_epochs_are_saved_alone(monkeypatch, capsys):
    """A version that differs is no silent difference: it is told, and a stop redoes the epoch."""
    monkeypatch.setattr(lightning_checks, "has_sums", lambda trainer: False)
    _stopped, rest = expect_same(StopAfter(PER_EPOCH + 2))
    assert len(rest.seen) == 2 * PER_EPOCH
    assert "keeps its sums of what is logged elsewhere" in capsys.readouterr().out


def test_loaders_that_lightning_takes_elsewhere_are_refused(monkeypatch):
    """Without a loader that is watched nothing would be exact: that is no silent difference."""
    monkeypatch.setattr(Resumable, "_enter", enter_without_loaders)
    refuse("this version of Lightning takes its loaders elsewhere")


def enter_without_loaders(resumable, trainer, enter=Resumable._enter):
    """Enter a Trainer that does not ask what to do with its loaders."""
    enter(resumable, trainer)
    del trainer.strategy.process_dataloader
