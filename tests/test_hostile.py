"""Whoever may write to the server writes what they like: no command ends in a traceback."""

import json
from pathlib import Path

import pytest
import torch
from support import cli

from onward.checkpoint.format import write_checkpoint
from onward.checkpoint.store import CheckpointStore
from onward.metrics import Point
from onward.tracking.names import EPOCH_TAG, HEARTBEAT_TAG, MONITOR_TAG, OPTIONS_TAG, TASK_TAG

TEXTS = ["", "[/red]", "9" * 5000, "[" * 5000, '{"epochs": 1e999}', "../../x", "a\n\x1b[2J", "null"]
# Of which each can be read as one; some are those of columns, or of folders.
MONITORS = [
    f"{name}:{direction}"
    for name in ("[/red]", "../../x", "a\n\x1b[2J", "<b>", "a`b", "x" * 250)
    for direction in ("max", "min")
] + [f"{name}:max" for name in ("monitor", "epoch", "path", "go_on", "status", "bytes", "kept")]
TAGS = [
    MONITOR_TAG, TASK_TAG,
    OPTIONS_TAG, EPOCH_TAG, HEARTBEAT_TAG, "train.manifest", "train.data", "train.fingerprint",
    "train.attempt.1", "train.attempt", "train.best_epoch", "train.checkpoints_on", "train.model",
    "train.model_of", "mlflow.latest_checkpoint_artifact", "mlflow.parentRunId",
    "mlflow.runName", "mlflow.note.content",
]  # fmt: skip
COMMANDS = [
    "list", "list --json", "list RUN", "list RUN --json", "show RUN", "show RUN --json",
    "verify RUN --json", "prune RUN --dry_run --take_over", "export RUN --to out.pth",
    "predict RUN table.csv", "publish RUN", "sync RUN", "run --resume_run RUN --take_over",
    "run --resume_run latest --take_over",
]  # fmt: skip
QUICK = ["list", "list --json", "list RUN", "verify RUN --json", "prune RUN --dry_run --take_over"]


def expect_no_traceback(run_id, commands):
    """Run each command; it ends by itself, or with one line and a code of ours."""
    for command in commands:
        result = cli(*command.replace("RUN", run_id).split())
        error = result.exception
        assert error is None or isinstance(error, SystemExit), f"{command}: {error!r}"
        assert result.exit_code in (0, 2, 3, 4, 6, 7), f"{command}: {result.output}"
        if "--json" not in command:
            assert "\x1b[2J" not in result.output


@pytest.fixture
def trained(record, commit_to, tmp_path):
    """Return a run with two checkpoints."""
    (tmp_path / "table.csv").write_text("x,y\n1,2\n")
    return commit_to(record, {1: 0.5, 2: 0.4})


@pytest.mark.parametrize("tag", TAGS)
def test_any_text_in_a_tag_is_borne(tracking, trained, tag):
    """Whatever a tag holds."""
    for text in [*TEXTS, *MONITORS] if tag == MONITOR_TAG else TEXTS:
        tracking.client.set_tag(trained.run_id, tag, text)
        expect_no_traceback(trained.run_id, QUICK)
    expect_no_traceback(trained.run_id, COMMANDS)


@pytest.mark.parametrize("tag", TAGS)
def test_any_tag_may_be_gone(tracking, trained, tag):
    """Whatever tag somebody deleted."""
    if tag in tracking.get_run(trained.run_id).tags:
        tracking.client.delete_tag(trained.run_id, tag)
    expect_no_traceback(trained.run_id, COMMANDS)


def test_any_metric_and_param_is_borne(tracking, trained):
    """Numbers that cannot be, steps of another age, params that are no claims."""
    values = [1e308, -1e308, float("nan"), float("inf")]
    points = [
        Point(key, step, 1, value)
        for key in ("best_val_pearson", "best_epoch", "val_pearson", "val_loss", "a b")
        for step in (0, 2**62)
        for value in values
    ]
    tracking.log_points(trained.run_id, points)
    claims = {f"train.attempt.{n}": "[/red]" for n in ("1", "2", "99999999", "9" * 200, "x")}
    tracking.log_params(trained.run_id, claims, known=())
    expect_no_traceback(trained.run_id, COMMANDS)


FIELDS = [
    "format_version", "epoch", "step", "epoch_step", "attempt", "created", "kept", "metrics",
    "files", "run_id", "previous", "hmac", "monitor",
]  # fmt: skip
VALUES = [None, True, -1, 10**30, 1.5, "x" * 5000, "../x", [], {}, [[[]]], {"val_pearson": "x"}]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("name", ["index.json", "epoch_2/manifest.json"])
def test_any_value_in_a_manifest_is_borne(tracking, trained, field, name):
    """In the index and in the manifest itself."""
    file = Path(trained.artifact_uri) / "checkpoints" / name
    original = json.loads(file.read_bytes())
    file.unlink()
    for value in [*VALUES, *MONITORS] if field == "monitor" else VALUES:
        document = json.loads(json.dumps(original))
        for entry in document.get("checkpoints", [document]):
            entry[field] = value
        file.write_text(json.dumps(document))
        expect_no_traceback(trained.run_id, QUICK)


@pytest.mark.parametrize("value", [None, 5, ["a"], {"a": torch.zeros(2), "b": {"c": [1]}}], ids=str)
def test_any_options_and_environment_in_a_checkpoint_are_shown(
    tracking, record, make_checkpoint, tmp_path, value
):
    """They are somebody's too: of another shape they are left out, or shown as text."""
    content = make_checkpoint(1, environment=value, config=value)
    options = {"attempt": 1, "kept": True, "metrics": {}}
    manifest = write_checkpoint(tmp_path / "epoch_1", content, **options)
    CheckpointStore(tracking.artifacts(record), record.run_id).put(tmp_path / "epoch_1", manifest)
    expect_no_traceback(record.run_id, ["show RUN", "show RUN --json"])
