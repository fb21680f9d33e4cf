"""What a finished run leaves: one model that takes raw rows, figures, and words on the run."""

import csv
import datetime
import decimal
import io
import json
import os
import re
import signal
import threading
import weakref
import zipfile
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND
from mlflow.utils import requirements_utils
from support import SMALL, cli, wait_for, write_table

from onward.checkpoint.store import CheckpointStore
from onward.publish import results
from onward.system import environment
from onward.tracking import models as model_files
from onward.tracking.names import DATA_TAG, MODEL_TAG
from train.tabular import figures
from train.tabular.data import cache
from train.tabular.data.provide import cache_folder
from train.tabular.options import Config
from train.tabular.task import TabularTask

FIGURES = ["best_predicted", "best_residuals", "correlation", "last_predicted", "last_residuals",
           "loss"]  # fmt: skip


@pytest.fixture
def table(tmp_path):
    """Make a small table; return its path."""
    return write_table(tmp_path / "table.csv", num_rows=120)


@pytest.fixture
def train(tracking, table):
    """Return a function that trains, with a model at the end, and returns click's result."""

    def run(*options, data=table, succeeds=True):
        options = ("--log_model", "true", "--data", data, "--target", "price", *options)
        result = cli("run", *SMALL, *options)
        assert not succeeds or result.exit_code == 0, result.output
        return result

    return run


@pytest.fixture
def trained(train, tracking):
    """Return a finished run of three epochs, all kept, without a model."""
    train("--epochs", "3", "--lr", "0.02", "--log_model", "false", "--checkpoint_freq", "1")
    return the_run(tracking)


def the_run(tracking):
    """Return the one run that is no attempt of another."""
    runs = tracking.client.search_runs(["0"])
    [run] = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    return tracking.get_run(run.info.run_id)


def models(tracking):
    return tracking.client.search_logged_models(["0"])


def made_of(tracking):
    """Return the checkpoint of each logged model, oldest first."""
    found = sorted(models(tracking), key=lambda m: m.creation_timestamp)
    return [model.tags.get("train.checkpoint") for model in found]


def history(tracking, run_id, key):
    return [(m.step, m.value) for m in tracking.client.get_metric_history(run_id, key)]


def best_of(tracking, run_id):
    """Return the best epoch, by the run's own metrics."""
    return max(history(tracking, run_id, "val_pearson"), key=lambda point: point[1])[0]


def versions(tracking, name):
    """Return number to model ID of each version of a registered model, and the newest's number."""
    found = tracking.client.search_model_versions(f"name = '{name}'")
    newest = tracking.client.get_model_version_by_alias(name, "newest")
    return {int(v.version): v.source.removeprefix("models:/") for v in found}, int(newest.version)


def test_a_finished_run_has_one_model(train, tracking):
    """It is READY, of the best epoch, and says what it takes, with rows to try; its metrics are
    those of the run, whose own are not doubled."""
    train("--epochs", "3")
    run_id = the_run(tracking).run_id
    best = best_of(tracking, run_id)
    [model] = models(tracking)
    assert (model.name, str(model.status), model.source_run_id) == ("model", "READY", run_id)
    assert model.tags["train.checkpoint"] == f"epoch_{best}"
    assert the_run(tracking).tags[MODEL_TAG] == model.model_id
    [entry] = tracking.client.get_run(run_id).inputs.dataset_inputs
    dataset = (entry.dataset.name, entry.dataset.digest)
    keys = [k for k in the_run(tracking).metrics if k.startswith("val_")]
    assert len(keys) == 5
    for key in keys:
        values = dict(history(tracking, run_id, key))
        assert len(history(tracking, run_id, key)) == 3
        [linked] = [m for m in model.metrics if m.key == key]
        assert (linked.step, linked.value) == (best, values[best])
        assert (linked.dataset_name, linked.dataset_digest) == dataset
    info = mlflow.models.get_model_info(f"runs:/{run_id}/model")
    assert info.signature.inputs.input_names() == ["size", "weight", "color"]
    assert info.saved_input_example_info is not None
    assert model.params["hidden_size"] == "16"
    note = model.tags["mlflow.note.content"]
    assert f"train predict {run_id} table.csv --epoch {best}\n" in note
    assert f"mlflow models serve -m runs:/{run_id}/model" in note
    assert model.tags["mlflow.source.name"] == "train"


def test_a_model_is_logged_without_a_look_at_each_installed_package(train, tracking, monkeypatch):
    """MLflow would read all their files, only to compare versions that were read just before."""
    scanned = []
    monkeypatch.setattr(requirements_utils, "_MODULES_TO_PACKAGES", None)
    monkeypatch.setattr(
        requirements_utils.importlib_metadata,
        "packages_distributions",
        lambda: scanned.append("all") or {},
    )
    train("--epochs", "1")
    assert len(models(tracking)) == 1
    assert scanned == []
    assert requirements_utils._MODULES_TO_PACKAGES is None, "others are to find it as it was"


def test_a_last_epoch_that_is_the_best_is_drawn_once(train, tracking, monkeypatch):
    """Its pictures have both names; else the two epochs have their own."""
    drawn = []
    draw = figures.residuals
    monkeypatch.setattr(figures, "residuals", lambda *of: drawn.append(of) or draw(*of))
    train("--epochs", "1")
    root = Path(the_run(tracking).artifact_uri) / "figures"
    assert len(drawn) == 1
    for name in ("predicted", "residuals"):
        last, best = (root / f"{which}_{name}.png" for which in ("last", "best"))
        assert last.read_bytes() == best.read_bytes()


def test_the_best_epoch_and_the_last_are_drawn(train, tracking):
    """Where they are not the same, their pictures are not."""
    train("--epochs", "3", "--monitor", "val_loss:max")  # of which the first epoch has most
    root = Path(the_run(tracking).artifact_uri) / "figures"
    last, best = ((root / f"{which}_residuals.png").read_bytes() for which in ("last", "best"))
    assert last != best


def test_a_finished_run_shows_figures_and_words(train, tracking):
    """Six pictures; the page and the description name the best epoch and how to go on."""
    train("--epochs", "3")
    run = the_run(tracking)
    root, best = Path(run.artifact_uri), best_of(tracking, run.run_id)
    pictures = sorted((root / "figures").iterdir())
    assert [path.name for path in pictures] == [f"{name}.png" for name in FIGURES]
    assert {path.read_bytes()[:4] for path in pictures} == {b"\x89PNG"}
    page, note = (root / "checkpoints/index.html").read_text(), run.tags["mlflow.note.content"]
    assert f"Best: <b>epoch_{best}</b>" in page
    assert f"<b>FINISHED</b> · run <code>{run.run_id}" in page
    assert f"--resume_run {run.run_id}" in page
    assert re.search(rf"\*\*finished\*\*: epoch 3 of 3, best .*\(epoch {best}\)", note)
    assert f"train run --resume_run {run.run_id} --fork true --epochs 6 --schedule_epochs 6" in note
    assert "| 1 | epochs 1-3 on " in note


def test_the_best_is_logged_though_it_is_not_the_newest(train, tracking, table):
    """What is used is the best epoch; the model predicts as that checkpoint does."""
    train("--epochs", "6", "--lr", "0.5", "--schedule", "none", "--checkpoint_freq", "1")
    run_id = the_run(tracking).run_id
    best = best_of(tracking, run_id)
    assert best < 6, "else this shows nothing"
    assert made_of(tracking) == [f"epoch_{best}"]
    loaded = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    shown = predicted(cli("predict", run_id, table, "--epoch", best).stdout)
    np.testing.assert_allclose(loaded.predict(pd.read_csv(table)), shown, rtol=1e-6)


def predicted(text):
    return [float(row["predicted_price"]) for row in csv.DictReader(io.StringIO(text))]


def test_one_checkpoint_at_a_time_is_in_memory(train, monkeypatch):
    """The last and the best may be large each."""
    alive, get = [], CheckpointStore.get

    def noted(store, manifest):
        assert not [content for content in alive if content() is not None]
        content = get(store, manifest)
        alive.append(weakref.ref(content.parts["model"]["head.bias"]))
        return content

    monkeypatch.setattr(CheckpointStore, "get", noted)
    train("--epochs", "3", "--lr", "0.5", "--checkpoint_freq", "1")
    assert len(alive) == 2


def test_a_model_takes_columns_of_every_kind(train, tracking, tmp_path):
    """Whole numbers, booleans, dates, times, categories, with and without missing values: they are
    in the signature and the example, and rows of the table are predicted, ints as well as
    floats."""
    random, n = np.random.default_rng(0), 60
    whole = random.integers(0, 9, n)
    times = [datetime.datetime(2020, 1, 1 + int(w), int(w), 30) for w in whole]
    text = [f"w{w % 3}" for w in whole]
    columns = {
        "whole": pa.array(whole), "small": pa.array(whole, pa.uint8()),
        "some": pa.array([None, *whole[1:].tolist()]), "flag": pa.array([None, *(whole[1:] > 4)]),
        "part": pa.array(random.normal(size=n)), "half": pa.array(whole.astype(np.float16)),
        "money": pa.array([decimal.Decimal(int(w)) for w in whole]),
        "day": pa.array([None, *(t.date() for t in times[1:])]), "moment": pa.array(times),
        "zoned": pa.array(times, pa.timestamp("ns", "UTC")),
        "clock": pa.array([None, *(t.time() for t in times[1:])]),
        "lasted": pa.array([datetime.timedelta(hours=int(w)) for w in whole]),
        "text": pa.array([None, *text[1:]]), "long": pa.array(text, pa.large_string()),
        "kind": pa.array(text).dictionary_encode(),
        "price": pa.array(whole + random.normal(size=n)),
    }  # fmt: skip
    table = pa.table(columns)
    pyarrow.parquet.write_table(table, tmp_path / "kinds.parquet")
    result = train("--epochs", "1", data=tmp_path / "kinds.parquet")
    assert "something is missing" not in result.output
    run_id = the_run(tracking).run_id
    loaded, rows = mlflow.pyfunc.load_model(f"runs:/{run_id}/model"), table.drop_columns("price")
    assert set(loaded.metadata.get_input_schema().input_names()) == set(rows.column_names)
    assert len(loaded.predict(loaded.input_example)) == 5
    shown = predicted(cli("predict", run_id, tmp_path / "kinds.parquet").stdout)
    np.testing.assert_allclose(loaded.predict(rows.to_pandas()), shown, rtol=1e-5)


def test_an_extended_run_logs_its_new_best(train, tracking):
    """The model of the run is the new one; where the best is the same, no other is logged."""
    train("--epochs", "1", "--lr", "0.02", "--schedule", "none")
    run_id = the_run(tracking).run_id
    first = the_run(tracking).tags[MODEL_TAG]
    tracking.set_tags(run_id, {"mlflow.source.name": "https://me:secret@host/project"})
    train("--resume_run", run_id, "--epochs", "3", "--checkpoint_freq", "1")
    best = best_of(tracking, run_id)
    assert best > 1, "else this shows nothing"
    assert made_of(tracking) == ["epoch_1", f"epoch_{best}"]
    newest = the_run(tracking).tags[MODEL_TAG]
    assert newest != first
    assert mlflow.models.get_model_info(f"runs:/{run_id}/model").model_id == newest
    [made] = [model for model in models(tracking) if model.model_id == newest]
    assert made.tags["mlflow.source.name"] == "https://***@host/project"
    assert cli("publish", run_id).exit_code == 0
    assert len(models(tracking)) == 2


@pytest.mark.parametrize(
    ("ended", "status"),
    [(lambda: os.kill(os.getpid(), signal.SIGTERM), "KILLED"), (lambda: 1 / 0, "FAILED")],
)
def test_a_run_that_did_not_finish_has_no_model(train, tracking, monkeypatch, ended, status):
    """It will be resumed, and has one when it is finished."""
    evaluate, epochs = TabularTask.evaluate, iter((None, ended))

    def evaluated(*args):
        (next(epochs) or (lambda: None))()
        return evaluate(*args)

    monkeypatch.setattr(TabularTask, "evaluate", evaluated)
    train("--epochs", "3", succeeds=False)
    assert the_run(tracking).status == status
    assert models(tracking) == []
    assert not (Path(the_run(tracking).artifact_uri) / "figures").exists()


@pytest.mark.parametrize("options", [("--log_model", "false"), ("--upload", "off")])
def test_where_none_is_wanted_there_is_no_model(train, tracking, options):
    """Neither with log_model=false, nor where nothing of the run is to leave this machine."""
    result = train("--epochs", "1", *options)
    assert models(tracking) == []
    assert "best model" not in result.output
    assert not (Path(the_run(tracking).artifact_uri) / "figures").exists()


def test_what_a_try_that_died_left_is_deleted(trained, tracking):
    """Its PENDING model goes at the next try; one of another run stays."""
    other = tracking.create_run("0", "another", {})
    for run_id in (trained.run_id, other.run_id):
        tracking.client.create_logged_model("0", name="model", source_run_id=run_id)
    assert cli("publish", trained.run_id).exit_code == 0
    left = {(model.source_run_id, str(model.status)) for model in models(tracking)}
    assert left == {(trained.run_id, "READY"), (other.run_id, "PENDING")}
    assert len(models(tracking)) == 2


@pytest.mark.parametrize(
    "call", ["create_logged_model", "log_model_artifacts", "finalize_logged_model", "log_outputs"]
)
@pytest.mark.parametrize("after", [False, True])
def test_a_store_that_is_away_is_tried_again(trained, tracking, monkeypatch, call, after):
    """Before or after any of its calls: the next try ends with one model, and none half made."""
    original, fails = getattr(MlflowClient, call), [True]

    def failing(*args, **kwargs):
        made = original(*args, **kwargs) if after else None
        if fails.pop() if fails else False:
            raise MlflowException("API request failed: Max retries exceeded")
        return made if after else original(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, call, failing)
    result = cli("publish", trained.run_id)
    assert (result.exit_code, "does not answer" in result.stderr) == (7, True), result.output
    assert cli("publish", trained.run_id).exit_code == 0
    model_id = the_run(tracking).tags[MODEL_TAG]
    states = {m.model_id: str(m.status) for m in models(tracking)}
    assert states.pop(model_id) == "READY"
    assert "PENDING" not in states.values()


def test_a_server_without_logged_models_leaves_them_out(train, tracking, monkeypatch):
    """One of MLflow 2 answers 404: it is said once, and the figures are there."""

    def unknown(*_args, **_options):
        told = "API request to endpoint /api/2.0/mlflow/logged-models failed with error code 404"
        raise MlflowException(told, error_code=ENDPOINT_NOT_FOUND)

    for call in ("search_logged_models", "create_logged_model", "get_logged_model"):
        monkeypatch.setattr(MlflowClient, call, unknown)
    result = train("--epochs", "1")
    run = the_run(tracking)
    assert (run.status, MODEL_TAG in run.tags) == ("FINISHED", False)
    assert result.output.count("is of an older version of MLflow") == 1
    assert any((Path(run.artifact_uri) / "figures").iterdir())
    result = cli("publish", run.run_id)
    assert (result.exit_code, "an older version" in result.stderr) == (7, True)


@pytest.mark.parametrize("num_failing", [2, 99])
def test_training_ends_well_where_the_store_fails(train, tracking, monkeypatch, num_failing):
    """It is tried again a few times; where the store answers and still refuses, that is told."""
    original, fails = MlflowClient.log_model_artifacts, [True] * num_failing

    def failing(*args):
        if fails:
            fails.pop()
            raise MlflowException("refused on purpose")
        return original(*args)

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", failing)
    result = train("--epochs", "1")
    run = the_run(tracking)
    given_up = f"refused on purpose. `train publish {run.run_id}` logs the model"
    assert (given_up in result.output) == (num_failing > 3)
    [model] = models(tracking)
    assert str(model.status) == ("PENDING" if num_failing > 3 else "READY")
    assert run.status == "FINISHED"


def test_training_ends_well_where_the_server_goes_away(train, tracking, monkeypatch):
    """Its end waits until the server is back, and then has a model."""
    away = [True] * 5

    def watched(name, original):
        def call(*args, **kwargs):
            if away and (name == "create_logged_model" or len(away) < 5):
                away.pop()
                raise MlflowException("API request failed: Max retries exceeded")
            return original(*args, **kwargs)

        return call

    for name in ("create_logged_model", "search_experiments"):
        monkeypatch.setattr(MlflowClient, name, watched(name, getattr(MlflowClient, name)))
    result = train("--epochs", "1")
    assert "The server answers again" in result.output
    assert "something is missing" not in result.output
    assert [str(model.status) for model in models(tracking)] == ["READY"]
    assert the_run(tracking).status == "FINISHED"


def test_a_model_that_cannot_be_made_costs_no_run(train, tracking, monkeypatch):
    """It is a warning, with the command that tries again; that leaves nothing half made."""
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.pyfunc.save_model", lambda *a, **k: 1 / 0)
        result = train("--epochs", "1")
    run = the_run(tracking)
    assert run.status == "FINISHED"
    assert f"division by zero. `train publish {run.run_id}` logs the model" in result.output
    assert [str(model.status) for model in models(tracking)] == ["PENDING"]
    assert cli("publish", run.run_id).exit_code == 0
    assert [str(model.status) for model in models(tracking)] == ["READY"]


def test_a_best_that_is_damaged_costs_no_run(trained, tracking, caplog):
    """It is told, not raised, and nothing is logged in its place."""
    for file in Path(trained.artifact_uri).glob("checkpoints/epoch_*/checkpoint.pth"):
        file.write_bytes(b"")
    store = CheckpointStore(tracking.artifacts(trained), trained.run_id)
    dataset = cache.load(cache_folder(environment.home(), trained.tags[DATA_TAG]))
    task = TabularTask(dataset, Config(), "cpu")
    results.publish_results(tracking, trained.run_id, store, Config(), lambda: task, lambda: None)
    [warning] = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert re.search(rf"epoch_\d of run .* is damaged: .*train publish {trained.run_id}", warning)
    assert models(tracking) == []


def test_a_model_is_registered_once(train, tracking):
    """The best becomes version 1, named newest; again the same adds none; another is version 2."""
    train("--epochs", "3", "--checkpoint_freq", "1", "--register", "price of it")
    run_id = the_run(tracking).run_id
    best, first = best_of(tracking, run_id), the_run(tracking).tags[MODEL_TAG]
    assert versions(tracking, "price of it") == ({1: first}, 1)
    assert cli("publish", run_id, "--register", "price of it").exit_code == 0
    assert versions(tracking, "price of it") == ({1: first}, 1)
    other = 1 if best != 1 else 2
    result = cli("publish", run_id, "--epoch", other, "--register", "price of it")
    assert result.exit_code == 0, result.output
    second = the_run(tracking).tags[MODEL_TAG]
    assert versions(tracking, "price of it") == ({1: first, 2: second}, 2)
    [version] = [v for v in tracking.client.search_model_versions() if v.version == 2]
    assert (version.run_id, version.tags["epoch"]) == (run_id, str(other))


def test_a_model_that_only_a_tag_names_is_not_registered(train, tracking):
    """It may be anybody's: what gets the name is logged by the process that registers it."""
    train("--epochs", "1")
    run = the_run(tracking)
    theirs = tracking.client.create_logged_model("0", name="model", source_run_id=run.run_id)
    tracking.client.finalize_logged_model(theirs.model_id, "READY")
    own = run.tags[MODEL_TAG]
    tracking.set_tags(run.run_id, {MODEL_TAG: theirs.model_id})
    assert cli("publish", run.run_id, "--register", "ours").exit_code == 0
    found, _newest = versions(tracking, "ours")
    assert list(found) == [1]
    assert found[1] not in (theirs.model_id, own)


def test_a_name_that_cannot_be_registered_is_told(train, tracking):
    """It would never succeed, so it is not tried again: the run has its model, and a warning."""
    result = train("--epochs", "1", "--register", "a/b")
    assert "train publish" in result.output
    assert (the_run(tracking).status, made_of(tracking)) == ("FINISHED", ["epoch_1"])
    result = cli("publish", the_run(tracking).run_id, "--register", "a/b")
    assert (result.exit_code, "registering model 'a/b' failed" in result.stderr) == (2, True), (
        result.output
    )


def test_any_epoch_can_be_made_the_model(trained, tracking):
    """`train publish --epoch N`: the run's model is then of that epoch."""
    for epoch in (1, 3):
        result = cli("publish", trained.run_id, "--epoch", epoch)
        assert result.exit_code == 0, result.output
        assert f"runs:/{trained.run_id}/model is the model of epoch_{epoch}" in result.stdout
        info = mlflow.models.get_model_info(f"runs:/{trained.run_id}/model")
        assert info.model_id == the_run(tracking).tags[MODEL_TAG]
    assert made_of(tracking) == ["epoch_1", "epoch_3"]


def test_publishing_needs_no_cache(trained, tracking, tmp_path, monkeypatch):
    """On another machine what was fitted comes from the run's artifacts."""
    monkeypatch.setenv("TRAIN_HOME", str(tmp_path / "elsewhere"))
    assert cli("publish", trained.run_id).exit_code == 0
    assert len(made_of(tracking)) == 1
    (Path(trained.artifact_uri) / "data/processed_data.json").unlink()
    result = cli("publish", trained.run_id)
    assert (result.exit_code, "processed_data.json" in result.stderr) == (3, True), result.output


def test_a_run_of_an_older_version_gets_a_model_too(trained, tracking, tmp_path, monkeypatch):
    """Its data has no sample of raw rows: the model then has no signature, and works."""
    monkeypatch.setenv("TRAIN_HOME", str(tmp_path / "elsewhere"))
    record = Path(trained.artifact_uri) / "data/processed_data.json"
    document = json.loads(record.read_text())
    del document["sample"]
    record.write_text(json.dumps(document))
    assert cli("publish", trained.run_id).exit_code == 0
    info = mlflow.models.get_model_info(f"runs:/{trained.run_id}/model")
    assert (info.signature, info.saved_input_example_info) == (None, None)


def test_a_file_is_predicted(trained, table, tmp_path):
    """With one more column, of the best epoch or of any; to stdout, or to a file."""
    result = cli("predict", trained.run_id, table)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert list(rows[0]) == ["size", "weight", "color", "price", "predicted_price"]
    assert len(rows) == 120
    given = [float(row["price"]) for row in rows]
    assert np.corrcoef(given, predicted(result.stdout))[0, 1] > 0.5
    done = cli("predict", trained.run_id, table, "--to", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == result.stdout
    assert "120 rows with predicted_price are in" in done.stdout
    shown = {cli("predict", trained.run_id, table, "--epoch", n).stdout for n in (1, 2, 3)}
    assert len(shown) == 3
    assert result.stdout in shown


def test_text_of_digits_stays_text(train, tracking, tmp_path):
    """A postcode is a category though a file holds only digits; what is not used is shown as it
    is in the file."""
    lines = [
        "postcode,key,price",
        *(f"{'0123' if i % 2 else 'AB12'},0{i},{i % 2}.5" for i in range(60)),
    ]
    (tmp_path / "all.csv").write_text("\n".join(lines))
    (tmp_path / "digits.csv").write_text("\n".join([lines[0], *lines[2::2]]))
    train("--epochs", "2", "--drop", "key", "--log_model", "false", data=tmp_path / "all.csv")
    run_id = the_run(tracking).run_id
    everything, digits = (
        cli("predict", run_id, tmp_path / name).stdout for name in ("all.csv", "digits.csv")
    )
    assert predicted(everything)[1::2] == predicted(digits)
    assert predicted(everything)[0] != predicted(digits)[0]
    [first, *_] = csv.DictReader(io.StringIO(digits))
    assert (first["postcode"], first["key"]) == ("0123", "01")


def test_what_cannot_be_predicted_is_told(trained, table, tmp_path):
    """No such epoch, file, column; a name that is taken: each has its exit code, nothing is
    written."""
    lacking, taken = tmp_path / "lacking.csv", tmp_path / "taken.csv"
    lacking.write_text("size\n1\n")
    taken.write_text("size,weight,color,predicted_price\n1,2,red,3\n")
    for words, code, told in [
        ((table, "--epoch", "9"), 4, "has no checkpoint of epoch 9"),
        ((tmp_path / "none.csv",), 3, "was not found"),
        ((lacking,), 3, "lacks 'color', 'weight'"),
        ((taken,), 3, "has a column 'predicted_price' already"),
    ]:
        result = cli("predict", trained.run_id, *words, "--to", tmp_path / "out.csv")
        assert (result.exit_code, told in result.stderr) == (code, True), result.output
    assert cli("publish", trained.run_id, "--epoch", "9").exit_code == 4
    assert not (tmp_path / "out.csv").exists()


def test_a_model_that_is_late_keeps_no_run_open(train, tracking, monkeypatch):
    """All that was trained is in the store, so the run is FINISHED; the rest waits on the disk."""
    free, original = threading.Event(), results.log_model

    def slow(*args):
        assert free.wait(60)
        return original(*args)

    monkeypatch.setattr(results, "log_model", slow)
    result = train("--epochs", "1", "--drain_seconds", "5")
    run = the_run(tracking)
    assert run.status == "FINISHED"
    assert f"not done in time: `train sync {run.run_id}` makes them" in result.output
    assert list(environment.home().glob("runs/*/attempt_1/journal.json"))
    free.set()
    wait_for(lambda: not list(environment.home().glob("runs/*/attempt_1/journal.json")))
    assert [str(model.status) for model in models(tracking)] == ["READY"]


def test_a_fault_in_the_page_costs_no_run(train, tracking, monkeypatch):
    """What is only looked at must not end training."""
    monkeypatch.setattr("onward.publish.publisher.checkpoint_page", lambda *args: 1 / 0)
    result = train("--epochs", "1")
    assert "The page of the checkpoints is not up to date: ZeroDivisionError" in result.output
    assert the_run(tracking).status == "FINISHED"


def test_only_the_programs_code_goes_into_a_model(tmp_path, monkeypatch):
    """What somebody put beside it, or a link to elsewhere, is not published."""
    package = tmp_path / "package_of_a_test"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for name in ("a.py", "inner/b.py", "inner/zh.po", ".env", "table.csv.gz", "key.pem"):
        (package / name).write_text(name)
    (package / "link.py").symlink_to(package / ".env")
    monkeypatch.syspath_prepend(tmp_path)
    loader, code = model_files._pack_code(f"{package.name}.inner.b", tmp_path / "code")
    assert [Path(file).name for file in code] == [f"{loader}.zip", f"{loader}.py"]
    packed = {Path(name) for name in zipfile.ZipFile(code[0]).namelist()}
    own = {str(p.relative_to(package.name)) for p in packed if p.parts[0] == package.name}
    assert own == {"__init__.py", "a.py", "inner/b.py", "inner/zh.po"}
    library = [path for path in packed if path.parts[0] == "onward"]
    assert {path.suffix for path in library} == {".py", ".po"}
    assert Path("onward/cli/main.py") in library
    _, of_the_library = model_files._pack_code("onward.metrics", tmp_path / "once")
    assert len(zipfile.ZipFile(of_the_library[0]).namelist()) == len(library)


def test_a_model_that_somebody_deleted_is_logged_anew(trained, tracking):
    """The run's tag still names it; what counts is whether it is there."""
    assert cli("publish", trained.run_id).exit_code == 0
    [deleted] = models(tracking)
    tracking.client.delete_logged_model(deleted.model_id)
    assert cli("publish", trained.run_id).exit_code == 0
    [model] = models(tracking)
    assert (model.model_id != deleted.model_id, str(model.status)) == (True, "READY")
