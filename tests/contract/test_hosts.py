# ruff: noqa: F811 - a fixture of another file is imported
"""Ranks whose machines share no disk: each brings its own files, and what is lost is made up."""

import socket
import subprocess
from pathlib import Path

import pytest
from gateway import Gateway
from support import (
    BIN,
    client,
    environment,
    group_of,
    mlflow_server,
    only_run,
    start_logged,
)
from test_ranks import (  # the same script, and the same claims
    OWN,
    RANKED,
    calm,  # noqa: F401
    expect_as,
    steps,
)  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # processes that import torch


UNFINISHED = Path(__file__).with_name("unfinished.py")


class Hosts:
    """A job of two ranks, each of which stands for a machine of its own.

    Args:
        folder: Their files.
        uri: Of the tracking server.
    """

    def __init__(self, folder, uri):
        self.folder, self.uri = folder, uri

    def start(self, *plan, names="ab", uris=None, script=RANKED, **variables):
        """Start an agent on each machine, as torchrun is started there; return both."""
        port = free_port()
        options = {"UPLOAD": "sync", "LOG_MODEL": "false", "GRACE_SECONDS": "20"} | variables
        own = OWN | {"DIE_AT"}
        given = {(k if k in own else f"ONWARD_{k}"): v for k, v in options.items()}
        agents = []
        for number, name in enumerate(names):
            place = self.folder / name
            (place / "tmp").mkdir(parents=True, exist_ok=True)
            env = environment(
                place / "home", (uris or {}).get(name, self.uri), OMP_NUM_THREADS="1", FSDP="1",
                TMPDIR=str(place / "tmp"), **given,
            )  # fmt: skip
            torchrun = [
                BIN / "torchrun", "--nnodes", "2", "--node-rank", str(number), "--nproc-per-node",
                "1", "--master-addr", "127.0.0.1", "--master-port", str(port),
            ]  # fmt: skip
            agents.append(
                start_logged(
                    [*torchrun, script, *plan], place / "output", cwd=place, env=env,
                    start_new_session=True,
                )
            )  # fmt: skip
        return agents

    def run(self, *plan, code=0, **named):
        """Run it to its end; return what each machine has printed."""
        first, second = self.start(*plan, **named)
        with group_of(first), group_of(second):
            ends = [agent.wait(240) for agent in (first, second)]
            told = [agent.output.read_text() for agent in (first, second)]
        assert [bool(end) for end in ends] == [bool(code)] * 2, "\n".join(told)
        return told


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@pytest.fixture
def hosts(tmp_path, tracking_uri):
    return Hosts(tmp_path, tracking_uri)


def test_a_lost_rank_and_machines_that_change_places(calm, hosts, tracking_uri):
    """Rank 1 is killed; both go on, each as the other rank, with what the other has on its disk."""
    [step] = steps((6, 20))
    hosts.run(f"1:{step}:KILL:1", code=1)
    run_id = only_run(tracking_uri).info.run_id
    hosts.run(names="ba", RESUME_RUN=run_id)
    expect_as(calm, 2, tracking_uri, hosts.folder, attempts=2, FSDP="1")
    logs = {log.path for log in client(tracking_uri).list_artifacts(run_id, "logs")}
    assert {"logs/attempt_2.log", "logs/attempt_2_rank_1.log"} <= logs
    left = [path for path in hosts.folder.glob("[ab]/home/runs/*/*") if path.name != "lock"]
    assert left == []


def test_a_machine_that_cannot_upload(calm, hosts, tmp_path):
    """What it has not brought is not committed; that is told, and training goes on, to the end."""
    with mlflow_server(tmp_path / "server") as server:
        gateway = Gateway(server.port, refuse_of_one)
        told, _other = hosts.run(uris={"a": server.address, "b": gateway.address})
        gateway.close()
        assert gateway.refused
        assert "the files of rank 1 for global_step_4 are not in the store" in told
        expect_as(calm, 2, server.address, hosts.folder, attempts=1, FSDP="1")
        run_id = only_run(server.address).info.run_id
        log = "logs/attempt_1_rank_1.log"
        path = client(server.address).download_artifacts(run_id, log, str(hosts.folder))
        assert "global_step_4 could not be brought to the store" in Path(path).read_text()


def refuse_of_one(method, path, _size):
    """Refuse what rank 1 brings of one checkpoint."""
    return 403 if method == "PUT" and "global_step_4/shard-00001" in path else None


def test_what_lost_machines_have_brought_is_finished(calm, hosts, tracking_uri):
    """Killed before the commit, and every disk is lost: by the next attempt, and by sync."""
    hosts.run(script=UNFINISHED, code=1, DIE_AT="global_step_6")
    run_id = only_run(tracking_uri).info.run_id
    assert "global_step_6" not in committed(tracking_uri, run_id, hosts.folder)
    told, _other = hosts.run(
        script=UNFINISHED, names="cd", code=1, DIE_AT="global_step_14", RESUME_RUN=run_id
    )
    assert "Resuming training from epoch 1, step 7 of it" in told
    env = environment(hosts.folder / "e" / "home", tracking_uri)
    done = subprocess.run([BIN / "onward", "sync", run_id], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "global_step_14" in committed(tracking_uri, run_id, hosts.folder)
    done = subprocess.run([BIN / "onward", "verify", run_id], env=env)
    assert done.returncode == 0
    hosts.run(names="fg", RESUME_RUN=run_id)
    expect_as(calm, 2, tracking_uri, hosts.folder, attempts=3, FSDP="1")


def committed(uri, run_id, folder):
    """Return the names of the checkpoints that have a manifest."""
    tracking = client(uri)
    names = [found.path for found in tracking.list_artifacts(run_id, "checkpoints") if found.is_dir]
    return {
        Path(name).name
        for name in names
        if f"{name}/manifest.json" in {f.path for f in tracking.list_artifacts(run_id, name)}
    }
