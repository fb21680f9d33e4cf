"""A signal at every step: the resume ends as if nothing had happened, bit for bit."""

import os
import random
import signal

import numpy as np
import pytest
import torch
from support import (
    SMALL,
    checkpoint,
    cli,
    client,
    comparable,
    curves,
    differences,
    index,
    only_run,
    write_table,
)

from train.tabular.task import TabularTask

pytestmark = pytest.mark.slow

EPOCHS, STEPS = 4, 5  # of each epoch: 320 rows to train on, 64 at a time
OPTIONS = (
    *SMALL,
    *("--epochs", str(EPOCHS), "--checkpoint_freq", "2", "--target", "price", "--dropout", "0.2"),
    *("--precision", "bf16", "--accumulation_steps", "3", "--schedule", "plateau", "--lr", "0.05"),
    *("--early_stopping", "3", "--shuffle_window", "100"),
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that was never interrupted; return (options, store, run ID, its last checkpoint)."""
    folder = tmp_path_factory.mktemp("undisturbed")
    options = (*OPTIONS, "--data", str(write_table(folder / "table.csv")))
    uri = train_in(folder, *options).uri
    run_id = only_run(uri).info.run_id
    return options, uri, run_id, comparable(checkpoint(uri, run_id, folder / "got"))


class train_in:
    """Run the command line with a store in `folder`, and TRAIN_HOME in its subfolder `home`."""

    def __init__(self, folder, *options, home="home", code=0):
        self.uri = f"sqlite:///{folder}/mlflow.db"
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setenv("MLFLOW_TRACKING_URI", self.uri)
            patch.setenv("TRAIN_HOME", str(folder / home))
            result = cli("run", *options)
        self.output = result.output
        assert result.exit_code == code, result.output


def stop_at(patch, step):
    """Let SIGTERM come in the middle of a step; past an epoch's last, in its evaluation."""
    calls = {"loss": 0}
    loss, evaluate = TabularTask.loss, TabularTask.evaluate
    in_evaluation, step = step % 1 > 0, int(step)

    def signalled_loss(self, model, indices):
        calls["loss"] += 1
        if not in_evaluation and calls["loss"] == 3 * step - 1:  # of three parts the second
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, model, indices)

    def signalled_evaluate(self, model):
        if in_evaluation and calls["loss"] == 3 * step:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, model)

    patch.setattr(TabularTask, "loss", signalled_loss)
    patch.setattr(TabularTask, "evaluate", signalled_evaluate)


@pytest.mark.parametrize(
    "step",
    [*range(1, EPOCHS * STEPS + 1), *(STEPS * e + 0.5 for e in range(1, EPOCHS + 1))],
)
def test_stopped_at_any_step_and_resumed_on_another_machine(undisturbed, tmp_path, step):
    """Invariants 2, 5, 9: no step is lost or made twice, wherever the signal comes."""
    options, uri, undisturbed_id, expected = undisturbed
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, step)
        stopped = train_in(tmp_path, *options, code=75)
    run_id = only_run(stopped.uri).info.run_id
    run = client(stopped.uri).get_run(run_id)
    assert run.info.status == "KILLED"
    [newest] = [e for e in index(stopped.uri, run_id, tmp_path) if e["step"] == int(step)]
    assert newest == {"epoch": (int(step) - 1) // STEPS, "step": int(step), "kept": False}
    random.seed(1)  # what the generators hold in a new process is not what they held in the old
    np.random.seed(1)
    torch.manual_seed(1)
    resumed = train_in(tmp_path, "--resume_run", run_id, home="elsewhere")
    assert differences(expected, comparable(checkpoint(resumed.uri, run_id, tmp_path))) == []
    assert curves(resumed.uri, run_id) == curves(uri, undisturbed_id)
    assert index(resumed.uri, run_id, tmp_path) == index(uri, undisturbed_id, tmp_path / "b")
