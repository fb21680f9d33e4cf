"""What an MLflow server of another version can do: `python tools/versions.py servers` runs this.

It is no part of the suite, whose server is the one that is installed. SERVER_BIN names the folder
of the other one's commands.
"""

import json
import sys

import pytest
from many import train
from support import (
    SMALL,
    children,
    client,
    differences,
    ended,
    environment,
    launch,
    launch_killed,
    mlflow_server,
    only_run,
    run_command,
    write_table,
)

LEFT_OUT = "is of an older version of MLflow"


@pytest.fixture
def calm(tmp_path):
    """A run that nothing befell, in a database of the newest version: (store, run ID)."""
    uri = f"sqlite:///{tmp_path}/calm.db"
    options = (*SMALL, "--data", str(write_table(tmp_path / "table.csv")), "--target", "price")
    env = environment(tmp_path / "calm", uri)
    assert launch(*options, "--epochs", "4", cwd=tmp_path, env=env).returncode == 0
    return uri, only_run(uri).info.run_id, options


def test_the_main_job(calm, tmp_path, monkeypatch):
    """Killed, gone on with elsewhere, listed, verified, forked, pruned, with a loop of one's own;
    what the server cannot do is said once."""
    uri, calm_id, options = calm

    def done(*words, where="other"):
        env = environment(tmp_path / where, server.address)
        found = run_command([sys.executable, "-m", "train", *words], cwd=tmp_path, env=env)
        assert found.returncode == 0, found.stdout + found.stderr
        return found

    with mlflow_server(tmp_path / "server") as server:
        env = environment(tmp_path / "one", server.address)
        log_model = ("--log_model", "true", "--epochs", "4", "--checkpoint_freq", "1")
        launch_killed("after:manifest@2", *options, *log_model, cwd=tmp_path, env=env)
        run_id = only_run(server.address).info.run_id
        resumed = done("run", "--resume_run", run_id)
        run = client(server.address).get_run(run_id)
        assert run.info.status == "FINISHED"
        told = (resumed.stdout + resumed.stderr).count(LEFT_OUT)
        print(f"\nits model: {run.data.tags.get('train.model', 'left out')}")
        assert told == (0 if "train.model" in run.data.tags else 1)
        assert len(children(server.address, run_id)) == 1
        [row] = json.loads(done("list", "--json").stdout)
        assert (row["run_id"], row["epoch"]) == (run_id, 4)
        rows = json.loads(done("verify", run_id, "--json").stdout)
        assert [row["status"] for row in rows] == ["ok"] * 4
        both = [ended(uri, calm_id, tmp_path / "a"), ended(server.address, run_id, tmp_path / "b")]
        for found in both:
            found.pop("kept")  # of the calm one fewer are
        assert differences(*both) == []
        done("prune", run_id, "--keep_every", "2")
        assert len(json.loads(done("list", run_id, "--json").stdout)) == 2
        done("run", "--resume_run", run_id, "--resume_epoch", "2", "--fork", "--lr", "0.001")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        own_id = train(1)
        client(server.address).update_run(own_id, status="KILLED")
        monkeypatch.setenv("TRAIN_HOME", str(tmp_path / "third"))
        assert train(2, resume_run="latest") == own_id
