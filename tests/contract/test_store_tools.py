"""What others see of our runs: MLflow's own tools, the list, the data, a bare loop."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import requests
import torch
from support import (
    BIN,
    SMALL,
    checkpoint,
    cli,
    client,
    curves,
    differences,
    environment,
    launch,
    mlflow_server,
    only_run,
    write_table,
)
from torch.nn.utils import clip_grad_norm_

from onward.run import rng
from onward.run.order import batches
from train.schedule import Schedule
from train.tabular.data.dataset import prepare
from train.tabular.options import Config
from train.tabular.task import TabularTask

TINY = (*SMALL, "--target", "price", "--epochs", "5", "--checkpoint_freq", "2", "--dropout", "0.1")


@pytest.fixture
def run(tracking_uri, table):
    """A finished run of five epochs."""
    result = cli("run", *TINY, "--data", table)
    assert result.exit_code == 0, result.output
    return only_run(tracking_uri)


def test_training_equals_a_bare_loop(run, tracking_uri, table, tmp_path):
    """Invariant 4: saving, logging and publishing change nothing: the weights are, bit for bit,
    those of ten lines of plain torch."""
    config = Config(data=str(table), target="price", epochs=5, schedule_epochs=5, batch_size=64,
                    hidden_size=16, num_layers=1, dropout=0.1)  # fmt: skip
    task = TabularTask(prepare(config), config, "cpu")
    rng.seed_all(rng.derive_seed("weights", config.seed))
    model, schedule = task.build_model(), Schedule(config, task.plateau)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay, fused=True)
    for epoch in range(1, 6):
        optimizer.param_groups[0]["lr"] = schedule.lr(epoch)
        for indices in batches(task.num_samples, 64, config.seed, epoch):
            optimizer.zero_grad()
            task.loss(model, indices).backward()
            clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
    saved = checkpoint(tracking_uri, run.info.run_id, tmp_path / "got")
    assert differences(saved["model_state_dict"], dict(model.state_dict())) == []


def test_mlflow_finds_the_checkpoints(run, tracking_uri, tmp_path, monkeypatch):
    """MLflow's own download functions and commands work on our runs, by epoch and for the
    latest."""
    from mlflow.utils.checkpoint_utils import download_checkpoint_artifact

    run_id = run.info.run_id
    latest = download_checkpoint_artifact(run_id, dst_path=str(tmp_path))
    assert torch.load(latest, weights_only=True)["epoch"] == 5
    older = download_checkpoint_artifact(run_id, epoch=2, dst_path=str(tmp_path))
    assert torch.load(older, weights_only=True)["epoch"] == 2
    words = [BIN / "mlflow", "artifacts", "list", "-r", run_id, "-a", "checkpoints/epoch_4"]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    for name in ("checkpoint.pth", "checkpoint_metrics.json", "manifest.json"):
        assert f"checkpoints/epoch_4/{name}" in listed


def test_a_checkpoint_holds_what_the_script_version_held(run, tracking_uri, tmp_path):
    """The keys of older scripts are there, with the histories as lists of one value an epoch."""
    saved = checkpoint(tracking_uri, run.info.run_id, tmp_path / "got")
    for key in ("model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "timestamp"):
        assert key in saved
    values = curves(tracking_uri, run.info.run_id)
    for key, metric in (
        ("train_losses", "train_loss"),
        ("val_losses", "val_loss"),
        ("aucs", "val_pearson"),
    ):
        assert saved[key] == [value for _, value in values[metric]]
    assert saved["best_corr"] == max(saved["aucs"])
    assert saved["best_epoch"] == saved["aucs"].index(saved["best_corr"]) + 1


def test_what_a_run_shows(run, tracking_uri):
    """Every metric has one value an epoch, every option is a param, and the tags tell seed's
    code, data and versions."""
    wanted = {"train_loss", "val_loss", "val_pearson", "val_spearman", "val_rmse", "val_mae", "lr",
              "best_val_pearson", "best_epoch"}  # fmt: skip
    found = {k for k in run.data.metrics if not k.startswith("system/")}
    assert wanted == found
    for key in wanted | {"system/epoch_seconds", "system/samples_per_second"}:
        history = client(tracking_uri).get_metric_history(run.info.run_id, key)
        assert [m.step for m in history] == [1, 2, 3, 4, 5]
    assert set(Config().to_dict()) <= set(run.data.params)
    assert run.data.params["threads"] == "1", "what was chosen is recorded"
    assert run.data.tags["train.version.torch"] == torch.__version__
    assert len(run.inputs.dataset_inputs) == 1
    logs = [f.path for f in client(tracking_uri).list_artifacts(run.info.run_id, "logs")]
    assert logs == ["logs/attempt_1.log"]


def test_a_damaged_checkpoint_is_passed_over(run, tracking_uri, tmp_path):
    """Invariants 2 and 7: with a flipped byte in the newest, the one before is used, named in a
    warning; what is trained again is not published again; asked for, it is an error."""
    run_id = run.info.run_id
    before = {k: client(tracking_uri).get_metric_history(run_id, k) for k in run.data.metrics}
    path = tmp_path / "mlruns" / "0" / run_id / "artifacts/checkpoints/epoch_5/checkpoint.pth"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    result = cli("run", "--resume_run", run_id, "--resume_epoch", "5", "--fork", "--epochs", "6")
    assert result.exit_code == 4
    result = cli("run", "--resume_run", run_id, "--epochs", "5")
    assert result.exit_code == 0, result.output
    assert "checkpoint epoch_5 of run" in result.stdout
    assert "is damaged: checkpoint.pth has sha256" in result.stdout
    assert "Resuming training from epoch 5 " in result.stdout
    after = {k: client(tracking_uri).get_metric_history(run_id, k) for k in run.data.metrics}
    assert {k: [m.to_dictionary() for m in v] for k, v in before.items()} == {
        k: [m.to_dictionary() for m in v] for k, v in after.items()
    }
    assert checkpoint(tracking_uri, run_id, tmp_path / "got")["epoch"] == 5


def test_data_that_was_not_uploaded(tracking_uri, table, tmp_path):
    """With upload_data=no a resume elsewhere asks for the raw table, takes it from any place, and
    refuses another."""
    assert cli("run", *TINY, "--data", table, "--upload_data", "no").exit_code == 0
    run_id = only_run(tracking_uri).info.run_id
    kept = [f.path for f in client(tracking_uri).list_artifacts(run_id, "data")]
    assert kept == ["data/processed_data.json"]
    os.environ["TRAIN_HOME"] = str(tmp_path / "elsewhere")
    moved = shutil.move(table, tmp_path / "moved.csv")
    result = cli("run", "--resume_run", run_id, "--epochs", "6")
    assert (result.exit_code, "Pass data=" in result.stderr) == (3, True), result.output
    other = write_table(tmp_path / "other.csv", seed=9)
    assert cli("run", "--resume_run", run_id, "--epochs", "6", "--data", other).exit_code == 2
    result = cli("run", "--resume_run", run_id, "--epochs", "6", "--data", moved)
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_a_listing_costs_three_calls(tmp_path, table, monkeypatch):
    """`train list RUN` asks the server three times, however many checkpoints there are, and once
    more for each that the index lacks; no run of others is listed."""
    with mlflow_server(tmp_path / "server") as server:
        address = server.address
        env = environment(tmp_path / "home", address)
        done = launch(*TINY, "--data", str(table), cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        client(address).create_run("0")
        run_id = client(address).search_runs(["0"], "tags.`train.epoch` = '5'")[0].info.run_id
        calls = []
        send = requests.Session.send
        monkeypatch.setattr(
            requests.Session, "send", lambda *a, **k: calls.append(a[1].url) or send(*a, **k)
        )
        rows = json.loads(cli("list", run_id, "--json").stdout)
        assert [row["epoch"] for row in rows] == [2, 4, 5]
        assert len(calls) == 3, "\n".join(calls)
        [row] = json.loads(cli("list", "--json").stdout)
        assert (row["run_id"], row["epoch"], row["epochs"]) == (run_id, 5, 5)
        folder = next((tmp_path / "server").rglob("index.json"))
        index = json.loads(folder.read_text())
        folder.write_text(json.dumps(index | {"checkpoints": index["checkpoints"][:1]}))
        calls.clear()
        assert json.loads(cli("list", run_id, "--json").stdout) == rows
        assert len(calls) == 5, "\n".join(calls)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (["--help"], ["torch", "mlflow"]),
        (["run", "--help"], ["torch", "mlflow"]),
        (["list"], ["torch"]),
    ],
)
def test_commands_start_without_heavy_imports(tmp_path, words, heavy):
    """Help imports neither torch nor mlflow; a listing does not import torch."""
    code = (
        "import sys\nfrom train.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        f"sys.exit(sum(name in sys.modules for name in {heavy!r}))"
    )
    env = environment(tmp_path / "home", f"sqlite:///{tmp_path}/mlflow.db")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True)
    assert done.returncode == 0, done
