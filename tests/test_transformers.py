"""A Trainer as a run: a resume ends with the bits and the curve of what was never stopped."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trainers
from accelerate.utils import memory
from trainers import STEPS, Died, Dies, train
from transformers import EarlyStoppingCallback, TrainerCallback

import onward
from onward.adapters import trainer as trainer_module
from onward.checkpoint.pipeline import Pipeline
from onward.errors import CheckpointError, Interrupted, TrainError, UsageError
from onward.metrics import is_wall_clock
from onward.run.differences import first_difference
from onward.run.parts import capture
from onward.transformers import Resumable

END, STEP = "on_epoch_begin", "on_step_begin"


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Let sums be made in one order, and no test collect the garbage of the whole suite."""
    monkeypatch.setattr(memory, "gc", SimpleNamespace(collect=lambda: None))
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


def newest(tracking):
    runs = tracking.client.search_runs(
        ["0"], filter_string="tags.`train.fingerprint` != ''", order_by=["start_time DESC"]
    )
    return next(r.info.run_id for r in runs if "mlflow.parentRunId" not in r.data.tags)


def curve(tracking, run_id):
    """Return every point of the run but those of the clock; each is there once."""
    keys = tracking.client.get_run(run_id).data.metrics
    return {
        key: sorted((m.step, m.value) for m in tracking.client.get_metric_history(run_id, key))
        for key in keys
        if not is_wall_clock(key)
    }


def result(trainer):
    """Return all that a Trainer ends with."""
    logged = [
        {k: v for k, v in entry.items() if not k.endswith(("_runtime", "_per_second"))}
        for entry in trainer.state.log_history
    ]
    parts = {name: getattr(trainer, name) for name in ("model", "optimizer", "lr_scheduler")}
    state = {name: capture(part) for name, part in parts.items()}
    callbacks = [c.state() for c in trainer.callback_handler.callbacks if hasattr(c, "state")]
    numbers = [trainer.state.global_step, trainer.state.total_flos, trainer.state.best_metric]
    return {**state, "logged": logged, "callbacks": callbacks, "numbers": numbers}


def trial(tracking, kills, resumable=None, saves=True, **options):
    """Train straight; and again, ended at each of `kills`, in a new process each; compare."""
    resumable = resumable or {}
    straight = train(1, resumable=resumable, **options)
    whole = straight.resumable.run.run_id
    run_id = None
    for number, (event, step) in enumerate(kills):
        last = step if event == STEP else step - 1  # where a checkpoint is saved before
        more = {"checkpoint_steps": last if saves else 0, "resume_run": run_id, "upload": "sync"}
        with pytest.raises(Died):
            train(10 + number, Dies(event, step), {**resumable, **more}, **options)
        run_id = run_id or newest(tracking)
        assert tracking.get_run(run_id).status == "FAILED"
    resumed = train(99, None, {**resumable, "resume_run": run_id}, **options)
    assert first_difference(result(straight), result(resumed), "Trainer") is None
    assert curve(tracking, run_id) == curve(tracking, whole)
    assert tracking.get_run(run_id).status == "FINISHED"
    return straight, resumed


PLATEAU = {
    "lr_scheduler_type": "reduce_lr_on_plateau",
    "lr_scheduler_kwargs": {"patience": 0, "threshold": 10.0},
    "metric_for_best_model": "eval_loss",
}
BY_STEPS = {"eval_strategy": "steps", "eval_steps": 5, "logging_strategy": "steps"}
CASES = {
    "ends of epochs": ([(END, 8), (END, 16)], {"saves": False}),
    "killed inside, back to the end": ([(STEP, 13)], {"saves": False}),
    "inside": ([(STEP, 1), ("on_step_end", 5), ("on_evaluate", 16), (STEP, 23)], {}),
    "windows of the loss": ([(STEP, 5), (STEP, 9)], BY_STEPS | {"logging_steps": 7}),
    "evaluation by steps": ([(STEP, 7), ("on_evaluate", 10)], BY_STEPS | {"logging_steps": 1}),
    "accumulation, plateau": (
        [(STEP, 2), (STEP, 4), (END, 6)], PLATEAU | {"gradient_accumulation_steps": 3},
    ),
    "masking": ([(STEP, 3), (STEP, 8), (STEP, 15)], {"collator": trainers.masking}),
    "masking, accumulation": (
        [(STEP, 2), (STEP, 7)],
        {"collator": trainers.masking, "gradient_accumulation_steps": 3},
    ),
    "augmentation": ([(STEP, 3), (STEP, 4), (STEP, 17)], {"data": trainers.Noisy()}),
    "groups by length": (
        [(STEP, 3), (STEP, 12)],
        {
            "data": trainers.Lengths(),
            "collator": trainers.padded,
            "train_sampling_strategy": "group_by_length",
        },
    ),
    "max_steps": ([(STEP, 6), (STEP, 17)], {"max_steps": 19}),
    "a part of an epoch": ([(STEP, 11)], {"num_train_epochs": 1.5}),
    "workers, seeded": (
        [(STEP, 3), (STEP, 12)],
        {"data": onward.seeded(trainers.Noisy(), 5), "dataloader_num_workers": 2},
    ),
    "a stream": ([(STEP, 5)], {"data": trainers.Stream(), "max_steps": 7, **BY_STEPS}),
    "a stream, several times": (
        [(STEP, 5), (STEP, 11)],
        {"data": trainers.Stream(), "max_steps": 20, **BY_STEPS},
    ),
}  # fmt: skip


FAST = {"masking", "augmentation", "a stream"}  # the others are of `make contract`


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_a_resume_ends_as_if_nothing_had_happened(tracking, name):
    """Weights, moments, rates, logs and what is published are equal to the bit, and once each."""
    kills, options = CASES[name]
    trial(tracking, kills, **options)


def test_nothing_is_another_with_a_run_than_without(tracking):
    """The same bits come out of a Trainer that nothing is attached to."""
    with_run = train(1)
    trainers.scramble(1)
    plain = trainers.trainer()
    trainers.transformers.set_seed(7)
    plain.train()
    assert first_difference(result(plain), result(with_run), "Trainer") is None


STOPS = {
    **PLATEAU, "learning_rate": 0.5, "num_train_epochs": 6,
    # Whatever the numbers are on this processor: the first is best, then three are not.
    "more": [lambda: EarlyStoppingCallback(3, early_stopping_threshold=1e9)],
}  # fmt: skip


@pytest.mark.slow
def test_early_stopping_counts_on(tracking):
    """Its patience is a part of the state, and a run that it has ended trains nothing more."""
    kills = [(END, 24), (STEP, 26), ("on_train_end", 32)]
    straight, _resumed = trial(tracking, kills, **STOPS)
    assert straight.state.global_step == 32, "it is a test of nothing else"


CONSTANT = {"lr_scheduler_type": "constant"}


def test_a_run_that_is_made_longer_is_the_longer_one(tracking):
    """Three epochs, and two that are made three, are equal where the rate does not tell them."""
    longer = train(1, **CONSTANT)
    short = train(2, num_train_epochs=2, **CONSTANT)
    run_id = short.resumable.run.run_id
    extended = train(3, None, {"resume_run": run_id}, num_train_epochs=3, **CONSTANT)
    parts = [{**result(each), "logged": []} for each in (longer, extended)]
    assert first_difference(*parts, "Trainer") is None
    curves = [curve(tracking, each.resumable.run.run_id) for each in (longer, extended)]
    assert curves[0]["eval_loss"] == curves[1]["eval_loss"]


def test_max_steps_that_are_more_go_on_inside_the_epoch(tracking):
    """What the last epoch had left of its data is trained on first."""
    options = {**CONSTANT, "eval_strategy": "no", "resumable": {"minimize": None}}
    options["collator"] = trainers.masking
    longer = train(1, max_steps=19, **options)
    short = train(2, max_steps=11, **options)
    resumable = {**options.pop("resumable"), "resume_run": short.resumable.run.run_id}
    extended = train(3, None, resumable, max_steps=19, **options)
    parts = [{**result(each), "logged": []} for each in (longer, extended)]
    assert first_difference(*parts, "Trainer") is None


def test_a_finished_run_trains_nothing(tracking):
    """It ends with the state that it had, and with the same loss."""
    first = train(1)
    run_id = first.resumable.run.run_id
    before = curve(tracking, run_id)
    again = train(2, Dies(STEP, 24), {"resume_run": run_id})
    assert first_difference(result(first)["model"], result(again)["model"], "model") is None
    assert curve(tracking, run_id) == before
    assert again.state.log_history[-1]["train_loss"] == first.state.log_history[-1]["train_loss"]
    assert tracking.get_run(run_id).status == "FINISHED"


@pytest.mark.parametrize("event", ["on_step_end", "on_evaluate", END])
def test_a_signal_stops_before_a_step_and_evaluates_no_part(tracking, event):
    """The exit code is 75, the run is KILLED, and it goes on from that step."""
    step = 8 if event == END else 16 if event == "on_evaluate" else 11
    stop = Dies(event, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted) as stopped:
        train(1, stop, collator=trainers.masking)
    assert stopped.value.code == 75
    run_id = newest(tracking)
    assert tracking.get_run(run_id).status == "KILLED"
    epochs = step // STEPS
    assert [step for step, _value in curve(tracking, run_id)["eval_loss"]] == [1, 2][:epochs]
    assert (stopped.value.epoch, stopped.value.epoch_step) == (epochs, 3 if step == 11 else 0)
    resumed = train(2, None, {"resume_run": run_id}, collator=trainers.masking)
    straight = train(3, collator=trainers.masking)
    assert first_difference(result(straight), result(resumed), "Trainer") is None
    assert curve(tracking, run_id) == curve(tracking, straight.resumable.run.run_id)


def test_a_signal_where_an_epoch_has_just_begun_loses_nothing(tracking, monkeypatch):
    """Where its checkpoint has given way, the state is taken after the first batches are read."""
    save, is_free = Pipeline.save, []

    def stop():
        os.kill(os.getpid(), signal.SIGTERM)
        is_free.append(True)

    monkeypatch.setattr(
        Pipeline, "save", lambda *args, **more: save(*args, **more) if is_free else False
    )
    made = trainers.trainer(callbacks=[Dies(END, 8, stop)], data=trainers.Noisy())
    made.resumable = Resumable(minimize="eval_loss", log_model=False)
    with pytest.raises(Interrupted):
        made.resumable.attach(made).train()
    run_id = newest(tracking)
    resumed = train(2, None, {"resume_run": run_id}, data=trainers.Noisy())
    straight = train(3, data=trainers.Noisy())
    assert first_difference(result(straight), result(resumed), "Trainer") is None


def test_eval_on_start_is_done_again_and_counts_for_nothing(tracking):
    """Neither its logs, nor what callbacks make of it, nor its random numbers are there twice."""
    trial(tracking, [(STEP, 19)], eval_on_start=True, **STOPS)


class Draws(TrainerCallback):
    """Draws random numbers as an epoch begins, and as a step does."""

    def on_epoch_begin(self, args, state, control, **kwargs):
        torch.rand(3)

    on_step_begin = on_epoch_begin


def test_callbacks_that_draw_are_where_they_were(tracking):
    """What is taken is taken before other callbacks of the same moment."""
    trial(tracking, [(END, 8), (STEP, 13)], more=[Draws], data=trainers.Noisy())


# -- what is published ---------------------------------------------------------------------------


def test_logs_by_epoch_are_of_the_epoch(tracking):
    """Each is there once for each epoch, and nothing of the clock."""
    found = curve(tracking, train(1).resumable.run.run_id)
    for key in ("eval_loss", "loss", "learning_rate", "grad_norm"):
        assert [step for step, _value in found[key]] == [1, 2, 3], key
    assert [step for step, _value in found["train_loss"]] == [3]
    assert set(found) == {
        "eval_loss", "loss", "learning_rate", "grad_norm", "train_loss", "best_eval_loss",
        "best_epoch",
    }  # fmt: skip


def test_evaluation_by_steps_is_there_by_steps_and_decides_by_epoch(tracking):
    """The last evaluation of an epoch is the epoch's, and each one is of `eval_loss_step`."""
    found = curve(tracking, train(1, **BY_STEPS, logging_steps=6).resumable.run.run_id)
    every = dict(found["eval_loss_step"])
    assert list(every) == [5, 10, 15, 20, 24]
    assert found["eval_loss"] == [(1, every[5]), (2, every[15]), (3, every[24])]
    assert [step for step, _value in found["loss"]] == [6, 12, 18, 24]


def test_what_is_no_metric_is_left_out(tracking, capsys):
    """Lists are passed over with one warning, and names are made such that MLflow takes them."""

    class Logs(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            made.log({"matrix": [[1, 2], [3, 4]], "f1@5": np.float32(0.5), "n": torch.tensor(2)})

    made = trainers.trainer(callbacks=[Logs()], num_train_epochs=1)
    resumable = Resumable(upload="sync", log_model=False)
    resumable.attach(made).train()
    found = curve(tracking, resumable.run.run_id)
    assert (found["f1_5"], found["n"], "matrix" in found) == ([(1, 0.5)], [(1, 2.0)], False)
    assert "matrix is no number but a list" in capsys.readouterr().out


# -- how it ends, and what is refused ------------------------------------------------------------


def test_the_folder_is_what_trainer_reads_and_is_gone_afterwards(tracking):
    """From the beginning there is none; later it has the weights and the state."""
    with pytest.raises(Died):
        train(1, Dies(END, 8))
    made = trainers.trainer()
    resumable = Resumable(resume_run=newest(tracking), log_model=False)
    resumable.attach(made)
    folder = Path(resumable.folder)
    assert resumable.folder == str(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["pytorch_model.bin", "trainer_state.json"]
    made.train(resume_from_checkpoint=resumable.folder)
    assert not folder.exists()
    assert resumable.folder is None


def test_the_folder_need_not_be_given(tracking):
    """A Trainer that is attached goes on from its run by itself."""
    with pytest.raises(Died):
        train(1, Dies(END, 16))
    made = trainers.trainer()
    Resumable(resume_run=newest(tracking), log_model=False).attach(made).train()
    assert made.state.log_history[0]["epoch"] == 1.0
    assert made.state.global_step == 24


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_the_status_tells_how_it_ended(tracking, error, status):
    """An error, or a stop by hand, closes the run."""

    def fail():
        raise error

    with pytest.raises(error):
        train(1, Dies("on_step_end", 3, fail))
    assert tracking.get_run(newest(tracking)).status == status


def test_a_run_that_is_never_trained_is_closed(tracking):
    """As the process ends it is KILLED, and its folder is gone."""
    resumable = Resumable()
    resumable.attach(trainers.trainer())
    assert resumable.folder is None
    resumable._abandon()
    assert tracking.get_run(newest(tracking)).status == "KILLED"
    with pytest.raises(UsageError, match="is closed, since its training has ended"):
        resumable._trainer.train()


def test_trainer_has_what_nobody_promises():
    """A new version of transformers that renames one of these fails here."""
    made = trainers.trainer()
    trainer_module.require_known(made, "5.24.0")
    made.train()
    for name in trainer_module.PRIVATE:
        assert hasattr(made, name), name
    assert isinstance(made._tr_loss, torch.Tensor)
    assert made._initial_global_step == 0
    assert made._globalstep_last_logged == made.state.global_step
    assert isinstance(made._total_loss_scalar, float)


def test_a_trainer_that_lacks_one_is_refused_in_one_line(monkeypatch):
    """What would make a resume inexact is told before anything is opened."""
    monkeypatch.setattr(trainer_module, "PRIVATE", ("_tr_loss", "_renamed"))
    with pytest.raises(TrainError, match="has no _renamed, without which") as refused:
        Resumable().attach(trainers.trainer())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ({"report_to": "mlflow"}, "its curve would be there twice"),
        ({"save_strategy": "epoch"}, "save_strategy='epoch' saves what the run saves already"),
        ({"enable_jit_checkpoint": True}, "enable_jit_checkpoint evaluates a part"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size changes the batches"),
        ({"ignore_data_skip": True}, "ignore_data_skip trains the first batches"),
    ],
)
def test_what_would_not_be_exact_is_refused(args, match):
    """In one line, which says what to do."""
    made = trainers.trainer(**args)
    with pytest.raises(UsageError, match=match) as refused:
        Resumable().attach(made)
    assert "\n" not in str(refused.value)


def test_what_is_refused_of_its_use(tracking, tmp_path):
    """A second Trainer, none, a folder of something else, patience of the run's."""
    resumable = Resumable()
    with pytest.raises(UsageError, match="no Trainer is attached"):
        _ = resumable.folder
    made = resumable.attach(trainers.trainer())
    with pytest.raises(UsageError, match="is for one Trainer"):
        resumable.attach(trainers.trainer())
    with pytest.raises(UsageError, match="a run goes on from its own checkpoint"):
        made.train(resume_from_checkpoint=str(tmp_path))
    assert tracking.get_run(newest(tracking)).status == "FAILED"
    patient = Resumable(early_stopping=2)
    patient.attach(trainers.trainer())
    with pytest.raises(UsageError, match="early_stopping=2 is not for a Trainer"):
        _ = patient.folder


def test_another_batch_size_inside_an_epoch_is_refused(tracking):
    """The rest of an epoch must be the rest of its samples."""
    with pytest.raises(Died):
        train(1, Dies(STEP, 3), {"checkpoint_steps": 1, "upload": "sync"})
    with pytest.raises(CheckpointError, match="inside an epoch of 8 batches, 1 to a step, and it"):
        train(2, None, {"resume_run": newest(tracking)}, gradient_accumulation_steps=2)
    straight = train(3, None, {"resume_run": newest(tracking)})
    assert straight.state.global_step == 24
