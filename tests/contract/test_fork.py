"""A fork: a run of its own that begins with a copy, and needs its parent no more."""

import shutil

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
    only_run,
    write_table,
)

TINY = (*SMALL, "--target", "price", "--dropout", "0.1", "--checkpoint_freq", "2")


@pytest.fixture
def parent(tracking_uri, tmp_path):
    """A finished run of four epochs, with kept checkpoints of 2 and 4."""
    table = write_table(tmp_path / "table.csv")
    result = cli("run", *TINY, "--epochs", "4", "--data", table)
    assert result.exit_code == 0, result.output
    return only_run(tracking_uri)


def fork(tracking_uri, parent, *options):
    """Fork the parent; return the new run."""
    result = cli("run", "--resume_run", parent.info.run_id, *options)
    assert result.exit_code == 0, result.output
    query = f"tags.`train.forked_from_run` = '{parent.info.run_id}'"
    [run] = client(tracking_uri).search_runs(["0"], query)
    return run


def rows(tracking_uri, run, key="val_loss"):
    """Return what the store has of a metric."""
    history = client(tracking_uri).get_metric_history(run.info.run_id, key)
    return [(m.step, m.timestamp, m.value) for m in history]


def test_an_older_epoch_forks_and_equals_the_run_it_left(parent, tracking_uri, tmp_path):
    """With the same options, a fork from epoch 2 is the parent over again: same weights at the
    end, the parent's points up to epoch 2 with their timestamps, one point a step after."""
    before = client(tracking_uri).get_run(parent.info.run_id).to_dictionary()
    run = fork(tracking_uri, parent, "--resume_epoch", "2")
    assert run.data.tags["train.forked_from_epoch"] == "2"
    assert curves(tracking_uri, run.info.run_id) == curves(tracking_uri, parent.info.run_id)
    assert rows(tracking_uri, run)[:2] == rows(tracking_uri, parent)[:2]
    saved = [
        comparable(checkpoint(tracking_uri, r.info.run_id, tmp_path / r.info.run_id))
        for r in (parent, run)
    ]
    assert differences(*saved) == []
    assert client(tracking_uri).get_run(parent.info.run_id).to_dictionary() == before


def test_a_fork_outlives_its_parent(parent, tracking_uri, tmp_path):
    """After the parent, its files, the cache and the table are gone, the fork goes on."""
    run = fork(tracking_uri, parent, "--resume_epoch", "2", "--epochs", "3")
    client(tracking_uri).delete_run(parent.info.run_id)
    for path in (tmp_path / "mlruns" / "0" / parent.info.run_id, tmp_path / "home"):
        shutil.rmtree(path)
    (tmp_path / "table.csv").unlink()
    result = cli("run", "--resume_run", run.info.run_id, "--epochs", "4")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "options",
    [("--lr", "0.01"), ("--seed", "5"), ("--batch_size", "32"), ("--dropout", "0.5"),
     ("--schedule", "plateau"), ("--weight_decay", "0.5"), ("--schedule_epochs", "8")],
)  # fmt: skip
def test_what_a_fork_may_change(parent, tracking_uri, tmp_path, options):
    """Another lr, seed, batch size, dropout or schedule makes another training from the fork on;
    a resume of the fork keeps them."""
    run = fork(tracking_uri, parent, "--fork", "--resume_epoch", "2", *options)
    name, value = options[0][2:], options[1]
    assert run.data.params[name] == value
    assert rows(tracking_uri, run)[:2] == rows(tracking_uri, parent)[:2]
    saved = checkpoint(tracking_uri, run.info.run_id, tmp_path / "a")
    other = checkpoint(tracking_uri, parent.info.run_id, tmp_path / "b")
    assert str(saved["config"][name]) == value
    assert differences(saved["model_state_dict"], other["model_state_dict"]) != []
    result = cli("run", "--resume_run", run.info.run_id, "--epochs", "5")
    assert result.exit_code == 0, result.output
    saved = checkpoint(tracking_uri, run.info.run_id, tmp_path / "c")
    assert str(saved["config"][name]) == value


def test_another_table_with_the_same_columns(parent, tracking_uri, tmp_path):
    """A fork may go on with other rows, seen through the parent's preprocessing; a table that
    lacks a column is refused, and nothing is made."""
    other = write_table(tmp_path / "other.csv", seed=3)
    run = fork(tracking_uri, parent, "--fork", "--data", other, "--epochs", "6")
    [dataset] = run.inputs.dataset_inputs
    assert dataset.dataset.name == "other"
    result = cli("run", "--resume_run", run.info.run_id, "--epochs", "7")
    assert result.exit_code == 0, result.output
    less = tmp_path / "less.csv"
    less.write_text("size,price\n1.0,2.0\n2.0,1.0\n3.0,5.0\n")
    result = cli(
        "run", "--resume_run", parent.info.run_id, "--fork", "--data", less, "--epochs", "6"
    )
    assert result.exit_code == 3
    assert "'color'" in result.stderr
    assert (
        len(client(tracking_uri).search_runs(["0"], "tags.`train.forked_from_run` LIKE '%'")) == 1
    )


def test_what_a_fork_may_not_change(parent):
    """Another model shape, or no epoch left to train, is refused with both values."""
    run_id = parent.info.run_id
    result = cli("run", "--resume_run", run_id, "--fork", "--hidden_size", "8", "--epochs", "5")
    assert result.exit_code == 2
    assert "hidden_size is 16 in run" in result.stderr
    result = cli("run", "--resume_run", run_id, "--fork")
    assert result.exit_code == 2
    assert "nothing is left to train" in result.stderr


def test_best_after_a_fork_is_the_best_of_what_it_carries(parent, tracking_uri):
    """`resume_epoch=best` forks from the best epoch, and the best values are right from there."""
    run = fork(tracking_uri, parent, "--fork", "--resume_epoch", "best", "--epochs", "5")
    scores = dict(curves(tracking_uri, run.info.run_id)["val_pearson"])
    best = dict(curves(tracking_uri, run.info.run_id)["best_val_pearson"])
    assert all(best[step] == max(v for s, v in scores.items() if s <= step) for step in scores)


def test_from_a_plain_file(parent, tracking_uri, tmp_path):
    """`resume_from` goes on from a file of the script version: its curves, its epoch, new run."""
    saved = checkpoint(tracking_uri, parent.info.run_id, tmp_path / "got")
    keys = ("epoch", "model_state_dict", "optimizer_state_dict", "train_losses", "val_losses",
            "aucs", "best_corr")  # fmt: skip
    file = tmp_path / "checkpoint_latest.pth"
    torch.save({k: saved[k] for k in keys} | {"timestamp": "2024-05-01T12:00:00"}, file)
    words = (*TINY, "--data", tmp_path / "table.csv", "--resume_from", file)
    result = cli("run", *words, "--epochs", "6")
    assert result.exit_code == 0, result.output
    assert "not exactly" in result.stdout
    assert "Resuming training from epoch 5" in result.stdout
    [run] = client(tracking_uri).search_runs(["0"], "tags.`train.resumed_from_file` LIKE '%'")
    curve = curves(tracking_uri, run.info.run_id)["val_pearson"]
    assert [step for step, _ in curve] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in curve[:4]] == saved["aucs"]
    result = cli("run", *words, "--epochs", "6", "--hidden_size", "8")
    assert result.exit_code == 4
    assert "hidden.0.weight" in result.stderr or "shape" in result.stderr
