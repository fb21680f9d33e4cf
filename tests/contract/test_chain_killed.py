"""Killed between the commit and the tag, or before either: nothing is told to be missing."""

import json

import pytest
from support import SMALL, client, environment, launch, launch_killed, only_run, write_table

from onward.tracking.names import MANIFEST_TAG

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("where", ["after:manifest@2", "before:tags@2", "after:tags@2"])
@pytest.mark.parametrize("home", ["home", "another"])
def test_a_kill_around_the_commit_is_no_loss(tmp_path, where, home):
    """On the same disk and on another machine the next attempt goes on without a warning."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    table = write_table(tmp_path / "table.csv", num_rows=80)
    options = (*SMALL, "--data", str(table), "--target", "price", "--epochs", "4",
               "--checkpoint_freq", "1")  # fmt: skip
    launch_killed(where, *options, cwd=tmp_path, env=environment(tmp_path / "home", uri))
    run_id = only_run(uri).info.run_id
    env = environment(tmp_path / home, uri)
    done = launch("--resume_run", run_id, "--take_over", "true", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is not as it was left" not in done.stdout + done.stderr
    run = client(uri).get_run(run_id)
    folder = tmp_path / "got"
    folder.mkdir()
    local = client(uri).download_artifacts(run_id, "checkpoints/index.json", str(folder))
    with open(local) as file:
        entries = json.load(file)["checkpoints"]
    assert [entry["epoch"] for entry in entries] == [1, 2, 3, 4]
    assert {entry["run_id"] for entry in entries} == {run_id}
    assert [bool(entry.get("previous")) for entry in entries] == [False, True, True, True]
    assert MANIFEST_TAG in run.data.tags
