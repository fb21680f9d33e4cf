"""What a store, a server or a disk says becomes part of no path, and of no other run's name."""

import json
import logging
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from onward.attempts.attempt import Attempt
from onward.checkpoint.content import Content
from onward.checkpoint.spool import RunFolder
from onward.checkpoint.store import CheckpointStore
from onward.errors import (
    DataError,
    RunNotUsable,
    StoreUnavailable,
    UnsafeFile,
    UnsafeValue,
    UsageError,
)
from onward.metrics import History
from onward.opening.source import Source
from onward.opening.waiting import is_journal, publish_waiting, waiting_runs
from onward.run.subject import stored_of
from onward.system import environment
from onward.terminal.report import Reporter
from onward.tracking.client import Tracking
from onward.tracking.names import DATA_TAG, EPOCH_TAG, FINGERPRINT_TAG
from train.kind import find_task
from train.tabular.data.provide import cache_folder
from train.tabular.options import Config


def open_task(tracking, record, fingerprint=None, **options):
    """Open what a run trains, with its prepared data: cached here, fetched, or made anew."""
    config = Config(**options)
    return find_task().open(config, stored_of(tracking, record, config, fingerprint))


def open_model(tracking, record):
    """Open what makes the model of a run's checkpoint: what was fitted, without the data."""
    return find_task().open_model(Config(), stored_of(tracking, record, Config()))


NOT_OURS = [
    "../" * 9 + "tmp/x",
    "/tmp/x",
    "..",
    "a" * 63,
    "A" * 64,
    "f" * 63 + "\n",
    "f\0" * 32,
    "",
]


@pytest.mark.parametrize("value", NOT_OURS)
def test_a_fingerprint_that_is_none_names_no_folder(tmp_path, value):
    """A full path or `..` would lead to a person's own files."""
    with pytest.raises(UnsafeValue, match="data fingerprint"):
        cache_folder(tmp_path, value)


@pytest.mark.parametrize("where", ["tag", "no tag", "checkpoint"])
def test_a_runs_fingerprint_is_checked_wherever_it_comes_from(tracking, record, tmp_path, where):
    """A person's own `processed_data.json` is neither read nor overwritten."""
    theirs = tmp_path / "theirs" / "processed_data.json"
    theirs.parent.mkdir()
    theirs.write_text("a stranger's")
    stolen = str(theirs.parent)
    (tmp_path / "processed_data.json").write_text("planted")
    tracking.artifacts(record).upload(tmp_path / "processed_data.json", "data")
    if where == "tag":
        tracking.set_tags(record.run_id, {DATA_TAG: stolen})
    record = tracking.get_run(record.run_id)
    fingerprint = None
    if where == "checkpoint":
        rest = {"epoch": 1, "step": 10, "parts": {}, "rng": {}, "history": History()}
        held = Content(data={"fingerprint": stolen}, **rest)
        fingerprint = Source(record, None, [], None, held, Config()).data_fingerprint
    refused = RunNotUsable if where == "no tag" else UnsafeValue
    with pytest.raises(refused):
        open_task(tracking, record, fingerprint=fingerprint)
    if where != "checkpoint":
        with pytest.raises(refused):
            open_model(tracking, record)
    assert theirs.read_text() == "a stranger's"


class Answering(BaseHTTPRequestHandler):
    """A server that answers each question for a run with the run in `run`."""

    run = None

    def answer(self):
        body = json.dumps({"run": self.run, "runs": [self.run, OTHER]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer

    def log_message(self, *arguments):
        """Say nothing."""


def run_as_json(run_id, experiment_id="1"):
    info = {
        "run_id": run_id, "run_uuid": run_id, "experiment_id": experiment_id, "status": "RUNNING",
        "artifact_uri": "mlflow-artifacts:/1/x/artifacts", "lifecycle_stage": "active",
    }  # fmt: skip
    return {"info": info, "data": {}}


OTHER = run_as_json("4f1c")


@pytest.fixture
def answering(monkeypatch):
    """Return a function that sets what the server answers; the tracking server is this one."""
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{server.server_port}"
        yield lambda run: monkeypatch.setattr(Answering, "run", run)
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("answer", ["../../x", "5a5a", "4F1C", "latest"])
def test_an_answer_for_another_run_is_refused(answering, answer):
    """Else the server would choose whose files are written to."""
    answering(run_as_json(answer))
    with pytest.raises(UnsafeValue, match="4f1c"):
        Tracking().get_run("4f1c")


def test_an_answer_that_tells_of_no_run_is_none(answering):
    """It is as if the server were away: an attempt asks again, and trains on meanwhile."""
    answering(run_as_json(""))
    with pytest.raises(StoreUnavailable, match="tells of no run"):
        Tracking().get_run("4f1c")


@pytest.mark.parametrize("run_id", ["../../x", "/etc", "a b", ""])
def test_a_new_run_is_not_named_by_a_path(answering, run_id):
    """The ID that the server gives it becomes the name of a folder."""
    answering(run_as_json(run_id))
    with pytest.raises(UnsafeValue, match="run ID"):
        Tracking().create_run("1", None, {})


@pytest.mark.parametrize("bad", [run_as_json("../x"), run_as_json("5a5a", "../1")])
def test_one_bad_run_hides_no_other(answering, bad, caplog):
    """It is left out of a list, and told."""
    answering(bad)
    assert [r.run_id for r in Tracking().search_runs("1")] == ["4f1c"]
    assert "ID" in caplog.text


@pytest.fixture
def attempt(tracking, record):
    """Return the first attempt of a run of ours."""
    tracking.set_tags(record.run_id, {FINGERPRINT_TAG: "f" * 64, EPOCH_TAG: "1"})
    return Attempt.first(tracking, record)


BAD_FIELDS = [
    {"run_id": "other"}, {"child_id": "other"}, {"child_id": None}, {"stray_id": "../x"},
    {"stray_id": 3}, {"number": 2}, {"number": True}, {"first_epoch": "1"}, {"last_epoch": -1},
    {"unit": "[red]"}, {"unit": []}, {"status": "[red]"}, {"status": None}, {"status": []},
    {"link": 3}, {"system": 3},
    {"system": [[1, 2, 3, 4]]}, {"system": [["key", 1, 2]]}, {"system": [["key", 1, 2, "x"]]},
]  # fmt: skip


@pytest.mark.parametrize("fields", BAD_FIELDS, ids=str)
def test_a_journal_names_no_run_but_its_own(tracking, attempt, fields):
    """What is not as it was written counts as none: the attempt is closed as what it is."""
    entry = attempt.journal("FINISHED", 1)
    record = tracking.get_run(attempt.run_id)
    assert is_journal(json.loads(json.dumps(entry)), record, 1)
    assert not is_journal(entry | fields, record, 1)
    for missing in set(entry) - {"stray_id", "unit", "was_finished", "has_trained"}:
        assert not is_journal({k: v for k, v in entry.items() if k != missing}, record, 1)


@pytest.mark.parametrize("text", ["{}", "[]", "[" * 9_999, '{"status": "FINISHED"}', "\xff"])
def test_a_run_whose_journal_is_damaged_is_closed_all_the_same(tracking, attempt, record, text):
    """It is published as one that died without a word."""
    folder = RunFolder(environment.run_folder(tracking.uri, record.run_id))
    folder.spool(1).write_journal({})
    (folder.path / "attempt_1" / "journal.json").write_text(text)
    record = tracking.get_run(record.run_id)
    store = CheckpointStore(tracking.artifacts(record), record.run_id)
    publish_waiting(tracking, record, store, folder, find_task())
    assert tracking.get_run(record.run_id).status == "KILLED"
    assert folder.waiting() == []


def test_only_folders_that_the_program_names_so_are_read(tracking, attempt, record):
    """An attempt's number, and a run's ID, are what they are elsewhere."""
    folder = RunFolder(environment.run_folder(tracking.uri, record.run_id))
    for name in ("attempt_1", "attempt_x", "attempt_01", "attempt_", "attempt_1 ", "attempt_²"):
        (folder.path / name).mkdir(parents=True)
        (folder.path / name / "journal.json").write_text("{}")
    assert [spool.attempt for spool in folder.waiting()] == [1]
    for run_id in ("a b", "-x", "~", "ü"):
        path = folder.path.with_name(folder.path.name.replace(record.run_id, run_id))
        (path / "attempt_1").mkdir(parents=True)
        (path / "attempt_1" / "journal.json").write_text("{}")
    assert waiting_runs(environment.home(), tracking.uri) == [record.run_id]


@pytest.fixture
def reporter():
    """Return what writes the log, which is closed again."""
    reporter = Reporter()
    reporter.open_log()
    yield reporter
    reporter.close_log()


@pytest.mark.parametrize("target", ["authorized_keys", "not there"])
def test_the_log_follows_no_link(tmp_path, reporter, target):
    """Its name can be known before it is made."""
    (tmp_path / "authorized_keys").write_text("mine\n")
    log_file = tmp_path / "home" / "attempt_1.log"
    log_file.parent.mkdir()
    log_file.symlink_to(tmp_path / target)
    logging.getLogger("onward.x").info("forged")
    with pytest.raises(UnsafeFile, match="symbolic link"):
        reporter.log_to(log_file)
    assert (tmp_path / "authorized_keys").read_text() == "mine\n"
    assert not (tmp_path / "not there").exists()


def test_the_log_is_private(tmp_path, reporter):
    """Whatever the umask was."""
    log_file = tmp_path / "home" / "runs" / "attempt_1.log"
    reporter.log_to(log_file)
    assert log_file.stat().st_mode & 0o777 == 0o600
    assert {p.stat().st_mode & 0o777 for p in log_file.parents[:2]} == {0o700}


@pytest.mark.parametrize("inside", ["", "runs", "data", "runs/<run>"])
def test_a_home_that_others_may_write_to_is_refused(inside):
    """A spool or a cache in which somebody can plant files is none."""
    home = environment.home()
    uri = "http://127.0.0.1:5000"
    path = environment.run_folder(uri, "4f1c") if "<run>" in inside else home / inside
    path.mkdir(parents=True)
    environment.run_folder(uri, "4f1c")
    path.chmod(0o777)
    with pytest.raises(UsageError, match="chmod go-w"):
        environment.run_folder(uri, "4f1c")


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="no volume that all may write to")
def test_a_volume_that_was_mounted_for_several_users_is_a_home(tmp_path):
    """As a container has it; it is what the program makes there that must be its own."""
    os.environ["TRAIN_HOME"] = "/dev/shm"
    assert environment.home() == Path("/dev/shm")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["processed_data.json", "processed_data.npz"])
def test_a_pipe_among_the_cached_data_holds_nobody_up(tracking, record, name):
    """It counts as data that is not there."""
    folder = cache_folder(environment.home(), "d" * 64)
    folder.mkdir(parents=True)
    (folder / "processed_data.json").write_text('{"format_version": 1, "sha256": ""}')
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    tracking.set_tags(record.run_id, {DATA_TAG: "d" * 64})
    record = tracking.get_run(record.run_id)
    with pytest.raises(DataError):
        open_task(tracking, record, data="none.csv")
    with pytest.raises(DataError):
        open_model(tracking, record)
