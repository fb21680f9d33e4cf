"""MLflow as this project uses it, on a real SQLite store; its errors leave as ours."""

import dataclasses
import json
import math
import os
import socket
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.db import utils as mlflow_databases
from support import cli

from onward.errors import RunNotUsable, StoreUnavailable, UnsafeFile
from onward.metrics import Point
from onward.monitor import UNDECLARED, Monitor
from onward.tracking.artifacts import Artifacts
from onward.tracking.client import MAX_TAG_CHARS, Tracking, now_ms
from onward.tracking.names import EPOCH_TAG, FINGERPRINT_TAG, HEARTBEAT_TAG
from onward.tracking.record import RunRecord
from onward.tracking.ui import MAX_VIEW_CHARS, VIEW_TAG, mark_experiment
from onward.words.redact import redact


@pytest.fixture
def client(tracking):
    """Return MLflow's own client of the same store."""
    return MlflowClient(tracking.uri)


def one_line(error):
    return str(error) and "\n" not in str(error)


def test_only_one_claims_an_attempt(tracking, record):
    """The second claim of an attempt loses, and its error names who holds it (invariant 8)."""
    tracking.claim_attempt(record.run_id, 2, "child a")
    with pytest.raises(RunNotUsable, match=r"another process \(attempt 2, run child a\)"):
        tracking.claim_attempt(record.run_id, 2, "child b")
    assert tracking.get_run(record.run_id).params["train.attempt.2"] == "child a"


def test_a_claim_may_be_repeated_by_its_holder(tracking, record):
    """A request that is sent twice, after a lost answer, does not lose against itself."""
    tracking.claim_attempt(record.run_id, 1, "child a")
    tracking.claim_attempt(record.run_id, 1, "child a")
    tracking.claim_attempt(record.run_id, 2, "child b")
    assert tracking.get_run(record.run_id).attempts == 2


def test_a_claim_on_an_unknown_run_is_refused(tracking):
    """Nobody wins a run that is not there."""
    with pytest.raises(RunNotUsable, match="is not on the tracking server"):
        tracking.claim_attempt("0" * 32, 1, "child a")


@pytest.mark.parametrize(
    ("params", "attempts"),
    [
        ({}, 0),
        ({"lr": "1"}, 0),
        ({f"train.attempt.{n}": "a" for n in range(11, 0, -1)}, 11),
        ({"train.attempt.1": "a", "train.attempt.10": "b", "train.attempt.9": "c"}, 1),
        ({"train.attempt.x": "a", "train.attempt.": "b", "my.train.attempt.7": "c"}, 0),
    ],
)
def test_the_newest_attempt_is_the_last_before_a_gap(params, attempts):
    """Attempts are numbered one after the other; what only looks like a claim is none."""
    record = RunRecord("r", "", "0", "RUNNING", "", 0, params, {}, {})
    assert record.attempts == attempts


def test_points_published_twice_are_there_once(tracking, record, client):
    """Publishing again changes nothing, since each point carries its own time (invariant 2)."""
    points = [Point("val_loss", step, 1_700_000_000_000 + step, 1 / step) for step in (1, 2, 3)]
    tracking.log_points(record.run_id, points)
    tracking.log_points(record.run_id, points)
    found = client.get_metric_history(record.run_id, "val_loss")
    assert [Point("val_loss", m.step, m.timestamp, m.value) for m in found] == points


def test_thousands_of_points_are_published_in_pieces(tracking, record, monkeypatch):
    """A long backlog passes MLflow's limit of 1,000 items, oldest first, as it was measured."""
    sizes, log_batch = [], tracking.client.log_batch

    def counted(run_id, metrics, tags=()):
        sizes.append((len(metrics), len(tags)))
        log_batch(run_id, metrics=metrics, tags=tags)

    monkeypatch.setattr(tracking.client, "log_batch", counted)
    points = [Point(f"m{step % 5}", step, 1_000 + step, step / 7) for step in range(2_001)]
    tracking.log_points(record.run_id, points, {"after": "them"})
    assert sizes == [(900, 0), (900, 0), (201, 1)]
    assert tracking.get_run(record.run_id).tags["after"] == "them"
    assert list(tracking.published(record.run_id, [f"m{i}" for i in range(5)])) == points


def test_tags_without_points_are_one_request(tracking, record, monkeypatch):
    """And nothing at all is none."""
    asked = []
    monkeypatch.setattr(tracking.client, "log_batch", lambda *_, **rows: asked.append(rows))
    tracking.log_points(record.run_id, [])
    tracking.log_points(record.run_id, [], {"a": "b"})
    assert [(len(rows["metrics"]), len(rows["tags"])) for rows in asked] == [(0, 1)]


def test_values_that_are_not_finite_come_back_as_the_store_has_them(tracking, record):
    """NaN stays NaN; infinities become the largest doubles (design 7)."""
    values = [math.nan, math.inf, -math.inf]
    points = [Point("x", step, step, value) for step, value in enumerate(values, start=1)]
    tracking.log_points(record.run_id, points)
    found = tracking.published(record.run_id, ["x"]).values("x")
    assert math.isnan(found[0])
    assert found[1:] == [1.7976931348623157e308, -1.7976931348623157e308]


def test_params_that_are_known_are_not_logged_again(tracking, record):
    """A param that `mlflow run` has logged stays as it is, and does not fail the others."""
    tracking.log_params(record.run_id, {"lr": "'0.1'"}, known=())
    known = tracking.get_run(record.run_id).params
    tracking.log_params(record.run_id, {"lr": "0.1", "epochs": "3"}, known)
    assert tracking.get_run(record.run_id).params == {"lr": "'0.1'", "epochs": "3"}


def test_more_params_than_a_request_takes(tracking, record):
    """Params are sent in pieces too."""
    params = {f"p{i}": str(i) for i in range(150)}
    tracking.log_params(record.run_id, params, known=())
    assert tracking.get_run(record.run_id).params == params


def test_a_tag_that_would_be_cut_is_left_out(tracking, record):
    """A tag is whole or not there: MLflow would cut it without a word (design 4)."""
    tracking.set_tags(record.run_id, {"long": "x" * (MAX_TAG_CHARS + 1), "short": "y"})
    tracking.set_tags(record.run_id, {"longest": "z" * MAX_TAG_CHARS})
    tags = tracking.get_run(record.run_id).tags
    assert "long" not in tags
    assert tags["short"] == "y"
    assert tags["longest"] == "z" * MAX_TAG_CHARS


def test_a_run_is_made_named_and_closed(tracking):
    """A run is RUNNING from its creation until it gets a status; RUNNING can be set again."""
    made = tracking.create_run("0", "first name", {"a": "b"})
    assert (made.name, made.status, made.experiment_id) == ("first name", "RUNNING", "0")
    assert made.tags["a"] == "b"
    tracking.rename(made.run_id, "second name")
    for status in ("KILLED", "RUNNING", "FINISHED"):
        tracking.set_status(made.run_id, status)
        assert tracking.get_run(made.run_id).status == status
    assert tracking.get_run(made.run_id).name == "second name"


ON_A_RUN = {
    "get_run": lambda tracking, run_id: tracking.get_run(run_id),
    "set_status": lambda tracking, run_id: tracking.set_status(run_id, "FAILED"),
    "rename": lambda tracking, run_id: tracking.rename(run_id, "x"),
    "published": lambda tracking, run_id: tracking.published(run_id, ["val_loss"]),
}


@pytest.mark.parametrize("run_id", ["0" * 32, "../../etc", "a b", "x" * 400])
@pytest.mark.parametrize("what", ["get_run", "set_status", "rename"])
def test_an_unknown_run_is_refused_in_one_line(tracking, what, run_id):
    """A run ID that does not exist is named, with where it was looked for."""
    with pytest.raises(RunNotUsable) as caught:
        ON_A_RUN[what](tracking, run_id)
    assert caught.value.run_id == run_id
    assert one_line(caught.value)


def test_a_deleted_run_is_refused_with_how_to_bring_it_back(tracking, record, client):
    """A run in MLflow's bin can be restored, and the message says how."""
    client.delete_run(record.run_id)
    with pytest.raises(RunNotUsable, match=f"mlflow runs restore --run-id {record.run_id}"):
        tracking.get_run(record.run_id)


def test_a_relative_sqlite_uri_is_explained(tracking):
    """`mlflow run` works in another folder, where a relative URI names another database."""
    os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///mlflow.db"
    with pytest.raises(RunNotUsable, match="Use the full path: sqlite:////full"):
        Tracking().get_run("0" * 32)


def test_search_finds_our_runs_with_a_checkpoint_newest_first(tracking, client):
    """Runs of others, and runs that never committed, are left out."""
    ours = {FINGERPRINT_TAG: "f", EPOCH_TAG: "1"}
    made = []
    for number, tags in enumerate([ours, {}, {FINGERPRINT_TAG: "f"}, ours], start=1):
        run = client.create_run("0", start_time=1_000 * number, tags=tags)
        made.append(run.info.run_id)
    assert [r.run_id for r in tracking.search_runs("0")] == [made[3], made[0]]
    client.delete_run(made[3])
    assert [r.run_id for r in tracking.search_runs("0")] == [made[0]]


def test_the_newest_run_is_the_one_that_was_worked_on_last(tracking, client):
    """A run that was made first and resumed since is newer than one that was made after it."""
    ours = {FINGERPRINT_TAG: "f", EPOCH_TAG: "1"}
    resumed, made_since, of_old = (
        client.create_run("0", start_time=start, tags=ours).info.run_id
        for start in (1_000, 5_000, 3_000)
    )
    for run_id, beat in ((resumed, 9.0), (made_since, 6.5)):
        client.set_tag(run_id, HEARTBEAT_TAG, json.dumps({"time": beat}))
    for fingerprint in (None, "f"):
        found = tracking.search_runs("0", fingerprint)
        assert [r.run_id for r in found] == [resumed, made_since, of_old]
        assert [r.last_active for r in found] == [9.0, 6.5, 3.0]


@pytest.mark.parametrize(
    "text",
    ["", "no JSON", "[" * 5000, "[]", "5", "{}", '{"time": "9"}', '{"time": true}',
     '{"time": NaN}', '{"time": 1e999}', '{"time": -1}',
     f'{{"time": {"9" * 5000}}}', '{"time": 1e300}', '{"time": 2}'],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_what_is_no_heartbeat_does_not_count(record, text):
    """Whatever somebody wrote there, the run was worked on when it began."""
    tags = {HEARTBEAT_TAG: text}
    assert dataclasses.replace(record, tags=tags, start_time_ms=3_000).last_active == 3.0


def test_the_experiment_is_the_one_that_mlflow_chooses(tracking):
    """ID before name, a new name makes an experiment once, and the default is "0"."""
    assert tracking.experiment_id() == "0"
    os.environ["MLFLOW_EXPERIMENT_NAME"] = "diamonds"
    named = tracking.experiment_id()
    assert named != "0"
    assert tracking.experiment_id() == named
    os.environ["MLFLOW_EXPERIMENT_ID"] = "7"
    assert tracking.experiment_id() == "7"


def test_an_experiment_opens_as_training_with_a_view_of_its_runs(tracking, client):
    """Both are set where nothing is; what somebody has chosen since stays."""
    mark_experiment(tracking, "0", UNDECLARED)
    tags = client.get_experiment("0").tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    view = json.loads(tags["mlflow.sharedViewState.resumable-train"])
    assert view["name"] == "Training"
    state = json.loads(view["state"])
    assert state["selectedColumns"] == state["columnOrder"]
    assert state["columnOrder"][0] == "metrics.`best_val_pearson`"
    client.set_experiment_tag("0", "mlflow.sharedViewState.resumable-train", "mine")
    client.delete_experiment_tag("0", "mlflow.experimentKind")
    mark_experiment(tracking, "0", UNDECLARED)
    tags = client.get_experiment("0").tags
    assert tags["mlflow.sharedViewState.resumable-train"] == "mine"
    assert tags["mlflow.experimentKind"] == "custom_model_development"


def columns_of(client):
    """Return the columns of the view of the experiment, by which MLflow shows its runs."""
    view = json.loads(client.get_experiment("0").tags[VIEW_TAG])
    state = json.loads(view["state"])
    assert state["selectedColumns"] == state["columnOrder"]
    assert set(state["columnWidths"]) == {state["columnOrder"][0]}
    return state["columnOrder"]


ACCURACY, RMSE = Monitor("val/acc", "max"), Monitor("val_rmse", "min")


def test_the_view_gets_a_column_for_each_monitor(tracking, client):
    """The newest comes first; what is there already is written once."""
    mark_experiment(tracking, "0", UNDECLARED)
    first = columns_of(client)
    assert first[0] == "metrics.`best_val_pearson`"
    mark_experiment(tracking, "0", RMSE)
    assert columns_of(client) == ["metrics.`best_val_rmse`", *first]
    mark_experiment(tracking, "0", ACCURACY)
    three = ["metrics.`best_val/acc`", "metrics.`best_val_rmse`", *first]
    assert columns_of(client) == three
    known = client.get_experiment("0").tags
    for monitor in (UNDECLARED, RMSE, ACCURACY, Monitor("val_rmse", "max")):
        mark_experiment(tracking, "0", monitor)
    assert client.get_experiment("0").tags == known


def test_the_view_of_a_run_that_chose_its_monitor_has_no_other(tracking, client):
    """Nobody there has a correlation."""
    mark_experiment(tracking, "0", RMSE)
    assert columns_of(client)[:2] == ["metrics.`best_val_rmse`", "metrics.`best_epoch`"]
    assert not any("pearson" in column for column in columns_of(client))


def state_of(columns):
    return json.dumps({"name": "Training", "state": json.dumps({"selectedColumns": columns})})


FOREIGN = [
    "", "mine", "null", "5", "[]", "{}", '{"state": 5}', '{"state": "{"}', '{"state": "[]"}',
    '{"state": "{}"}', '{"state": "{\\"selectedColumns\\": 5}"}',
    "[" * 4000, json.dumps({"state": "[" * 4000}),
    state_of(["params.`lr`", "params.`mine`"]), state_of(["metrics.`best_val_pearson`", 5]),
    state_of([["metrics.`best_val_pearson`"]]), state_of({"metrics.`mine`": 1}),
    state_of(["metrics.`best_val_pearson`", "tags.`mine`"]),
]  # fmt: skip


@pytest.mark.parametrize("known", FOREIGN, ids=lambda text: text[-30:])
def test_a_view_of_somebody_is_left_alone(tracking, client, known):
    """Whatever it is: one that has columns of its own, or none that can be read."""
    client.set_experiment_tag("0", VIEW_TAG, known)
    for monitor in (UNDECLARED, RMSE):
        mark_experiment(tracking, "0", monitor)
    assert client.get_experiment("0").tags[VIEW_TAG] == known


@pytest.mark.parametrize("padding", ["x" * 240, "数" * 100])
def test_a_view_never_grows_too_long_to_be_stored(tracking, client, padding):
    """However many monitors there were, of whatever name: MLflow takes 5,000 characters."""
    for number in range(60):
        mark_experiment(tracking, "0", Monitor(f"{number}{padding}", "max"))
        assert len(client.get_experiment("0").tags[VIEW_TAG]) <= 5_000
    assert len(columns_of(client)) > 2
    known = client.get_experiment("0").tags[VIEW_TAG]
    assert len(known) > MAX_VIEW_CHARS
    mark_experiment(tracking, "0", RMSE)
    assert client.get_experiment("0").tags[VIEW_TAG] == known


def test_the_dataset_is_shown(tracking, record, client):
    """With its name, the beginning of its fingerprint, its columns and rows."""
    columns = {"carat": "double", "cut": "string"}
    tracking.log_dataset(record.run_id, "gems", "f" * 64, "/gems.csv", columns, {"train_rows": 3})
    [entry] = client.get_run(record.run_id).inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("gems", "f" * 8)
    assert '"carat"' in entry.dataset.schema
    assert entry.dataset.profile == '{"train_rows": 3}'


@pytest.fixture
def closed_port():
    """Return a port of this machine at which nothing answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_server_that_does_not_answer_is_told_in_one_line(closed_port):
    """A dead server is found out within seconds, and named without its password."""
    os.environ["MLFLOW_TRACKING_URI"] = f"http://me:secret@127.0.0.1:{closed_port}"
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="does not answer") as caught:
        Tracking().probe()
    assert time.monotonic() - started < 20
    assert one_line(caught.value)
    assert f"127.0.0.1:{closed_port}" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_every_call_to_a_dead_server_is_our_own_error(closed_port):
    """A server that goes away later is StoreUnavailable as well, whatever was asked of it."""
    os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{closed_port}"
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    dead = Tracking()
    asked = [
        *(lambda do=do: do(dead, "0" * 32) for do in ON_A_RUN.values()),
        lambda: dead.search_runs("0"),
        lambda: dead.create_run("0", None, {}),
        lambda: dead.log_points("0" * 32, [Point("a", 1, 1, 1.0)]),
        lambda: dead.set_tags("0" * 32, {"a": "b"}),
        lambda: dead.claim_attempt("0" * 32, 1, "c"),
        lambda: mark_experiment(dead, "0", UNDECLARED),
    ]
    for ask in asked:
        with pytest.raises(StoreUnavailable) as caught:
            ask()
        assert one_line(caught.value)


def test_a_database_that_cannot_be_opened_is_told_in_one_line(tmp_path):
    """A database that cannot be made is named, without the lines of a traceback."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path}/none/mlflow.db"
    (tmp_path / "none").write_text("a file in the way")
    with pytest.raises(StoreUnavailable) as caught:
        Tracking().probe()
    assert one_line(caught.value)
    assert f"{tmp_path}/none" in str(caught.value)


@pytest.mark.parametrize("how", ["default", "path", "uri"])
def test_an_old_file_store_is_refused_with_the_way_out(tmp_path, how):
    """Old `mlruns/` folders flip MLflow to a store that it no longer opens (design 7)."""
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("experiment_id: '0'\nname: Default\n")
    folder = tmp_path / "mlruns"
    if how != "default":
        os.environ["MLFLOW_TRACKING_URI"] = str(folder) if how == "path" else folder.as_uri()
    with pytest.raises(StoreUnavailable, match=r"migrate-filestore.*sqlite:///") as caught:
        Tracking().probe()
    assert one_line(caught.value)


def test_files_go_up_and_come_down(tmp_path):
    """A file is stored under its own name, replaces an older one, and can be deleted twice."""
    artifacts = Artifacts(str(tmp_path / "store"))
    local = tmp_path / "a.txt"
    for content in ("old", "new"):
        local.write_text(content)
        artifacts.upload(local, "folder")
    assert artifacts.list() == ["folder"]
    assert artifacts.list("folder") == ["a.txt"]
    artifacts.download("folder/a.txt", tmp_path / "deep" / "er" / "b.txt", 9)
    assert (tmp_path / "deep" / "er" / "b.txt").read_text() == "new"
    artifacts.delete("folder/a.txt")
    artifacts.delete("folder/a.txt")
    assert artifacts.list("folder") == []
    assert artifacts.list("nothing here") == []


@pytest.mark.parametrize("path", ["none.txt", "none/at/all.txt"])
def test_a_file_that_is_not_there_is_told_apart_from_an_outage(tmp_path, path):
    """A missing artifact is FileNotFoundError; only a store that fails is StoreUnavailable."""
    artifacts = Artifacts(str(tmp_path / "store"))
    with pytest.raises(FileNotFoundError, match=path):
        artifacts.download(path, tmp_path / "x", 9)


def test_a_download_that_fails_is_not_taken_for_a_missing_file(tmp_path):
    """What is listed but cannot be fetched is an outage: nobody starts from scratch for it."""
    (tmp_path / "store" / "folder").mkdir(parents=True)
    (tmp_path / "store" / "folder" / "file").write_text("x")

    class CutOff(LocalArtifactRepository):
        def _download_file(self, remote_file_path, local_path):
            raise OSError("cut off")

    artifacts = Artifacts(str(tmp_path / "store"))
    artifacts.folder, artifacts._repository = None, CutOff(str(tmp_path / "store"))
    with pytest.raises(StoreUnavailable, match="downloading 'folder/file'") as caught:
        artifacts.download("folder/file", tmp_path / "x", 9)
    (tmp_path / "store" / "folder" / "file").unlink()
    with pytest.raises(FileNotFoundError):
        artifacts.download("folder/file", tmp_path / "x", 9)
    assert one_line(caught.value)


def test_an_upload_that_cannot_be_made_is_our_own_error(tmp_path):
    """A disk error, or a file in the way, is StoreUnavailable with what was uploaded."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "folder").write_text("a file in the way")
    (tmp_path / "a.txt").write_text("x")
    artifacts = Artifacts(str(tmp_path / "store"))
    with pytest.raises(StoreUnavailable, match=r"uploading 'folder/a\.txt'") as caught:
        artifacts.upload(tmp_path / "a.txt", "folder")
    assert one_line(caught.value)
    with pytest.raises(StoreUnavailable, match="uploading"):
        artifacts.upload(tmp_path / "not there.txt", "other")


def test_a_path_cannot_leave_the_artifact_root(tmp_path):
    """No download from above the root (invariant 6)."""
    (tmp_path / "secret.txt").write_text("x")
    artifacts = Artifacts(str(tmp_path / "store"))
    (tmp_path / "store").mkdir()
    with pytest.raises(UnsafeFile):
        artifacts.download("../secret.txt", tmp_path / "got", 9)
    assert not (tmp_path / "got").exists()


def test_artifacts_of_a_run_lie_where_the_run_says(tracking, record, tmp_path):
    """A run's files are at the place that MLflow recorded for it."""
    (tmp_path / "a.txt").write_text("x")
    tracking.artifacts(record).upload(tmp_path / "a.txt", "logs")
    assert (Path(record.artifact_uri) / "logs" / "a.txt").read_text() == "x"


def test_now_is_in_milliseconds():
    """The clock counts as MLflow's timestamps do."""
    before = time.time()
    assert before * 1000 - 1 <= now_ms() <= time.time() * 1000 + 1


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///{folder}/garbage.db",
        "postgresql://me:secret@127.0.0.1:1/db",
        "mysql+pymysql://me:secret@127.0.0.1:1/db",
    ],
)
def test_a_store_that_cannot_be_used_is_told_in_one_line(tmp_path, uri, monkeypatch):
    """A file that is no database, a driver or a server that is missing, ends in no traceback."""
    waited = []
    monkeypatch.setattr(mlflow_databases.time, "sleep", waited.append)
    (tmp_path / "garbage.db").write_text("this is no database " * 100)
    os.environ["MLFLOW_TRACKING_URI"] = uri.format(folder=tmp_path)
    with pytest.raises(StoreUnavailable, match=r"connecting (failed|needs)") as caught:
        Tracking().probe()
    assert one_line(caught.value)
    assert "secret" not in str(caught.value)
    assert sum(waited) < 15


def test_passwords_with_an_at_sign_are_not_shown():
    """Everything up to the last @ is left out of a URL."""
    assert redact("see http://me:p@ss@host/x now") == "see http://***@host/x now"


REFUSALS = [
    (401, "You are not authenticated.", "text/plain"),  # MLflow's basic-auth
    (401, "<html><h1>401 Authorization Required</h1></html>", "text/html"),  # a proxy
    (401, '{"error_code": "UNAUTHENTICATED", "message": "who?"}', "application/json"),
    (403, "Permission denied", "text/plain"),
    (403, '{"error_code": "PERMISSION_DENIED", "message": "not you"}', "application/json"),
]
WHAT_TO_DO = {401: "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD", 403: "Ask whoever"}


@pytest.mark.parametrize(("code", "body", "kind"), REFUSALS)
def test_a_refusal_is_told_in_one_line_with_what_to_do(refusing, code, body, kind):
    """401: it does not know who asks, 403: it does. Each has its way out; no password is shown."""
    uri = refusing(code, body, kind)
    for ask in (Tracking.probe, *(lambda t, do=do: do(t, "0" * 32) for do in ON_A_RUN.values())):
        with pytest.raises(StoreUnavailable, match=rf"was refused by .* with {code}: ") as caught:
            ask(Tracking())
        assert caught.value.exit_code == 7
        assert one_line(caught.value)
        assert uri in str(caught.value)
        assert WHAT_TO_DO[code] in str(caught.value)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("code", [401, 403])
def test_a_refused_file_is_told_like_a_refused_call(refusing, tmp_path, code):
    """The server's artifacts go another way, where requests raises."""
    refusing(code, "no")
    artifacts = Artifacts("mlflow-artifacts:/0/r/artifacts", os.environ["MLFLOW_TRACKING_URI"])
    (tmp_path / "a.txt").write_text("x")
    for ask in (
        artifacts.list,
        lambda: artifacts.upload(tmp_path / "a.txt", "logs"),
        lambda: artifacts.download("logs/a.txt", tmp_path / "b.txt", 9),
        lambda: artifacts.delete("logs/a.txt"),
    ):
        with pytest.raises(StoreUnavailable, match=rf"was refused by .* with {code}: ") as caught:
            ask()
        assert one_line(caught.value)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("code", [401, 403])
def test_the_command_line_ends_a_refusal_with_code_7(refusing, code):
    """One line, before any work is done that would be lost."""
    refusing(code, "no")
    for words in (["run"], ["run", "--resume_run", "latest"], ["list"], ["verify", "r1"]):
        done = cli(*words)
        assert done.exit_code == 7
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert f"with {code}: " in done.stderr


def test_who_may_read_a_run_and_not_claim_it_is_told_so(tracking, record, monkeypatch):
    """That a param could not be written is not always that another process was faster."""

    def refuse(*_, **__):
        raise StoreUnavailable("logging params was refused by … with 403: this user may not")

    monkeypatch.setattr(tracking, "log_params", refuse)
    with pytest.raises(StoreUnavailable, match="refused by … with 403"):
        tracking.claim_attempt(record.run_id, 1, record.run_id)


@pytest.mark.parametrize("chosen", ["999", "abc"])
def test_an_experiment_that_does_not_exist_is_told_with_what_to_do(tracking, chosen):
    """A wrong MLFLOW_EXPERIMENT_ID is found when the run is made."""
    os.environ["MLFLOW_EXPERIMENT_ID"] = chosen
    with pytest.raises(StoreUnavailable, match="unset MLFLOW_EXPERIMENT_ID") as caught:
        tracking.create_run(tracking.experiment_id(), None, {})
    assert one_line(caught.value)
    assert f"creating a run in experiment '{chosen}' failed" in str(caught.value)


@pytest.mark.parametrize("by", ["ID", "NAME"])
def test_a_deleted_experiment_is_told_with_how_to_bring_it_back(tracking, client, by):
    """As for a deleted run, the command is in the message."""
    gone = client.create_experiment("gone")
    client.delete_experiment(gone)
    os.environ[f"MLFLOW_EXPERIMENT_{by}"] = gone if by == "ID" else "gone"
    command = f"`mlflow experiments restore --experiment-id {gone}` brings it back"
    with pytest.raises(StoreUnavailable, match=command) as caught:
        tracking.create_run(tracking.experiment_id(), None, {})
    assert one_line(caught.value)


def test_points_of_a_deleted_run_are_refused_and_not_an_outage(tracking, record, client):
    """Who waits for a server to come back would wait for ever."""
    client.delete_run(record.run_id)
    with pytest.raises(RunNotUsable) as caught:
        tracking.log_points(record.run_id, [Point("a", 1, 1, 1.0)])
    assert one_line(caught.value)
