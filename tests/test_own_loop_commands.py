"""The commands, on runs of loops of one's own: by epochs or steps, judged by a metric or not."""

import json
import re
import threading

import own_loops
import pytest
import torch
from support import cli
from test_own_loop import Died, only_id

import onward
from onward.checkpoint.policy import find_best
from onward.cli import main as commands
from onward.errors import CheckpointNotFound
from onward.opening.source import find_store
from onward.system import invocation
from onward.words import shell

OPTIONS = {"upload": "sync", "checkpoint_steps": 4, "checkpoint_freq": 2, "keep_last": 2}
# The loop, and whether a metric decides which unit is best.
LOOPS = {"gan": False, "classifier": True, "language_model": True}


@pytest.fixture(params=LOOPS)
def run(request, tracking, one_thread, monkeypatch):
    """Return the run of a loop that died near its end, and what it trains."""

    def die(step):
        if step == 14:
            raise Died

    with pytest.raises(Died):
        getattr(own_loops, request.param)(act=die, **OPTIONS)
    monkeypatch.setattr(invocation, "_script", None)  # whoever looks is another process
    tracking.client.set_tag(only_id(tracking), "train.command", '["python", "my_loop.py"]')
    return only_id(tracking), request.param


def out(*words):
    result = cli(*words)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_list_shows_what_the_run_counts_and_is_judged_by(run):
    run_id, loop = run
    [row] = json.loads(out("list", "--json"))
    is_by_step = loop == "language_model"
    assert row["unit"] == ("step" if is_by_step else "epoch")
    assert row["go_on"] == f"ONWARD_RESUME_RUN={run_id} python my_loop.py"
    shown, told = out("list"), out("list", run_id)
    assert f"resume: ONWARD_RESUME_RUN={run_id} python my_loop.py" in shown
    assert ("epoch" in told.split("resume:")[0].replace("/epoch_", "/")) is not is_by_step
    assert ("best" in told) is LOOPS[loop]
    for text in (shown, told):
        assert not re.search(r"epochs=|--epochs|early_stopping|schedule|val loss", text)


def test_a_checkpoint_is_verified_shown_and_written_as_a_file(run, tmp_path):
    run_id, loop = run
    rows = json.loads(out("verify", run_id, "--json"))
    assert rows
    assert {row["status"] for row in rows} == {"ok"}
    name = rows[-1]["name"]
    which = name if name.startswith("global") else name.removeprefix("epoch_")
    assert json.loads(out("show", run_id, "--epoch", which, "--json"))["manifest"]["files"]
    out("show", run_id)
    out("export", run_id, "--to", str(tmp_path / "x.pth"))
    saved = torch.load(tmp_path / "x.pth", weights_only=True)
    assert any(key.endswith("_state_dict") for key in saved)
    result = cli("export", run_id, "--epoch", "best", "--to", str(tmp_path / "best.pth"))
    assert (result.exit_code == 0) is LOOPS[loop], result.output


def test_a_prune_keeps_the_newest_and_the_best(run, tracking):
    run_id, loop = run
    _record, _folder, store = find_store(tracking, run_id)
    before = store.list()
    out("prune", run_id, "--keep_last", "1", "--keep_every", "1000000", "--take_over")
    assert (find_best(before) is not None) is LOOPS[loop]
    stay = {before[-1].name, *(m.name for m in [find_best(before)] if m)}
    assert {m.name for m in store.list()} == stay
    getattr(own_loops, loop)(resume_run=run_id, take_over=True, **OPTIONS)
    assert tracking.get_run(run_id).status == "FINISHED"


def test_what_waits_on_the_disk_is_published_with_its_figures(
    tracking, one_thread, monkeypatch, tmp_path
):
    """Also of a run that a command knows nothing of but its tags."""
    from onward.tracking.client import Tracking

    log_points, gone = Tracking.log_points, []
    is_away = False

    def refused(self, *arguments):
        if threading.current_thread() in gone:
            raise SystemExit
        if is_away:
            raise ConnectionError
        return log_points(self, *arguments)

    def leave(step):
        nonlocal is_away
        is_away = step > 8

    monkeypatch.setattr(Tracking, "log_points", refused)
    own_loops.classifier(act=leave, logs_steps=True, drain_seconds=0, upload="async")
    gone += [thread for thread in threading.enumerate() if "guarded" in thread.name]
    for thread in gone:  # as that process would be
        thread.join(60)
    run_id, is_away = only_id(tracking), False
    monkeypatch.setattr(invocation, "_script", None)
    out("sync", run_id)
    record = tracking.get_run(run_id)
    assert (record.status, record.epoch) == ("FINISHED", 4)
    figures = {item.path for item in tracking.client.list_artifacts(run_id, "figures")}
    assert figures == {"figures/accuracy.png", "figures/loss.png", "figures/step_loss.png"}
    # Also what is logged on an axis of its own, and of a fork.
    own_loops.classifier(logs_steps=True, resume_run=run_id, fork=True, upload="sync")
    for each in (run_id, only_id(tracking)):
        points = tracking.client.get_metric_history(each, "step_loss")
        assert sorted(p.step for p in points) == list(range(100, 124))


def test_messages_name_the_commands_that_every_script_has(tracking):
    """`onward list`, not `train list`: that is the trainer's."""
    with onward.open_run({}) as run:
        list(run.epochs(range(2)))
    with pytest.raises(CheckpointNotFound, match=f"`onward list {run.run_id}` shows them"):
        onward.open_run({}, resume_run=run.run_id, resume_epoch="7", fork=True)
    with pytest.raises(CheckpointNotFound, match="`onward list "):
        onward.checkpoints(run.run_id).find(7)
    missing = cli("show", run.run_id, "--epoch", "7")
    assert f"`train list {run.run_id}` shows them" in missing.output
    assert set(commands.main.commands) == shell.OF_BOTH


def test_checkpoints_from_python(run, tmp_path):
    run_id, loop = run
    found = onward.checkpoints(run_id)
    assert found.run_id == run_id
    assert [c.name for c in found] == [row["name"] for row in found.verify()]
    assert found[-1] == found.find("latest") == found.find(found[-1].key)
    parts = found.load()
    assert set(parts) >= {"gan": {"g", "d"}, "classifier": {"model"}}.get(loop, {"model", "loop"})
    assert found.content().config["checkpoint_steps"] == 4
    found.export("latest", tmp_path / "x.pth")
    assert torch.load(tmp_path / "x.pth", weights_only=True)["step"] == found[-1].step
    with pytest.raises(CheckpointNotFound, match="no checkpoint of epoch 999: it has"):
        found.load(999)
    if not LOOPS[loop]:
        with pytest.raises(CheckpointNotFound, match="a best epoch"):
            found.load("best")


def test_the_page_and_the_description_speak_of_what_the_run_counts(run, tracking):
    run_id, loop = run
    note = tracking.get_run(run_id).tags["mlflow.note.content"]
    path = tracking.client.download_artifacts(run_id, "checkpoints/index.html")
    with open(path) as file:
        page = file.read()
    is_by_step = loop == "language_model"
    assert (">step " in page, ">epoch " in page) == (is_by_step, not is_by_step)
    assert f"{'step' if is_by_step else 'epoch'} " in note
    assert ("best" in note.split("attempt")[0]) is LOOPS[loop]
    for text in (page, note):
        assert not re.search(r"--epochs|epochs=|val_pearson|train run", text)
        assert f"ONWARD_RESUME_RUN={run_id}" in text


def test_the_trainer_sends_a_run_to_its_script(run):
    run_id, _loop = run
    result = cli("run", "--resume_run", run_id, "--take_over", "true")
    assert result.exit_code == 6
    assert "which goes on with it by ONWARD_RESUME_RUN=" in result.output
    assert "task=" not in result.output
