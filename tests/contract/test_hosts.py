# ruff: noqa: F811 - a fixture of another file is imported
"""Ranks whose machines share no disk: each brings its own files, and what is lost is made up."""

import os
import random
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from gateway import Gateway
from support import (
    BIN,
    Server,
    client,
    environment,
    group_of,
    mlflow_server,
    only_run,
    run_command,
    start_logged,
    wait_for,
)
from test_ranks import (  # the same script, and the same claims
    OWN,
    RANKED,
    calm,  # noqa: F401
    expect_as,
    steps,
)  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # processes that import torch


SHORT = {"EPOCHS": "2"}  # of 11 steps each
INTERFACE = "eth0"  # of each machine, to the other
UNFINISHED = Path(__file__).with_name("unfinished.py")


class Hosts:
    """A job of two ranks, each of which stands for a machine of its own.

    Args:
        folder: Their files.
        uri: Of the tracking server.
        ways: By the name of a machine, the words that run a command there, and its address.
    """

    def __init__(self, folder, uri, ways=None):
        self.folder, self.uri, self._ways = folder, uri, ways or {}

    def start(self, *plan, names="ab", uris=None, script=RANKED, **variables):
        """Start an agent on each machine, as torchrun is started there; return both."""
        port = free_port()
        ways = [self._ways.get(name, ([], "127.0.0.1")) for name in names]
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
            prefix, address = ways[number]
            if prefix:
                env["GLOO_SOCKET_IFNAME"] = INTERFACE
            torchrun = [
                *prefix, BIN / "torchrun", "--nnodes", "2", "--node-rank", str(number),
                "--nproc-per-node", "1", "--local-addr", address,
                "--master-addr", ways[0][1], "--master-port", str(port),
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
    hosts.run(f"1:{step}:KILL:1", code=1, **SHORT)
    run_id = only_run(tracking_uri).info.run_id
    hosts.run(names="ba", RESUME_RUN=run_id, **SHORT)
    expect_as(calm, 2, tracking_uri, hosts.folder, attempts=2, FSDP="1", **SHORT)
    logs = {log.path for log in client(tracking_uri).list_artifacts(run_id, "logs")}
    assert {"logs/attempt_2.log", "logs/attempt_2_rank_1.log"} <= logs
    left = [path for path in hosts.folder.glob("[ab]/home/runs/*/*") if path.name != "lock"]
    assert left == []


def test_each_machine_brings_and_reads_its_own(calm, hosts, tmp_path):
    """One cannot upload a checkpoint: it is not committed, and told; a resume reads what it needs.

    Rank 1 asks nothing of the tracking server.
    """
    with mlflow_server(tmp_path / "server") as server:
        ways = {
            "a": Gateway(server.port, lambda *_: None),
            "b": Gateway(server.port, refuse_of_one),
        }
        uris = {name: way.address for name, way in ways.items()}
        told, _other = hosts.run("1:15:TERM:1", uris=uris, code=75, **SHORT)
        assert ways["b"].refused
        assert "the files of rank 1 for global_step_4 are not in the store" in told
        run_id = only_run(server.address).info.run_id
        log = "logs/attempt_1_rank_1.log"
        path = client(server.address).download_artifacts(run_id, log, str(hosts.folder))
        assert "global_step_4 could not be brought to the store" in Path(path).read_text()
        for way in ways.values():
            way.passed.clear()
        hosts.run(uris=uris, RESUME_RUN=run_id, **SHORT)
        for rank, way in enumerate(ways.values()):
            got = [path.rpartition("/")[2] for method, path, _size in way.passed if method == "GET"]
            shards = [name for name in got if re.fullmatch(r"shard-.*\.pth", name)]
            assert shards == [f"shard-0000{rank}-00000.pth"]
        assert all("/mlflow-artifacts/" in path for _method, path, _size in ways["b"].passed)
        for way in ways.values():
            way.close()
        expect_as(calm, 2, server.address, hosts.folder, attempts=2, FSDP="1", **SHORT)


def refuse_of_one(method, path, _size):
    """Refuse what rank 1 brings of one checkpoint."""
    return 403 if method == "PUT" and "global_step_4/shard-00001" in path else None


def test_what_lost_machines_have_brought_is_finished(calm, hosts, tracking_uri):
    """Killed before the commit, and every disk is lost: by the next attempt, and by sync."""
    hosts.run(script=UNFINISHED, code=1, DIE_AT="global_step_6", **SHORT)
    run_id = only_run(tracking_uri).info.run_id
    assert "global_step_6" not in committed(tracking_uri, run_id, hosts.folder)
    told, _other = hosts.run(
        script=UNFINISHED,
        names="cd",
        code=1,
        DIE_AT="global_step_14",
        RESUME_RUN=run_id,
        **SHORT,
    )
    assert "Resuming training from epoch 1, step 7 of it" in told
    env = environment(hosts.folder / "e" / "home", tracking_uri)
    done = run_command([BIN / "onward", "sync", run_id], cwd=hosts.folder, env=env)
    assert done.returncode == 0, done.stderr
    assert "global_step_14" in committed(tracking_uri, run_id, hosts.folder)
    done = run_command([BIN / "onward", "verify", run_id], cwd=hosts.folder, env=env)
    assert done.returncode == 0
    hosts.run(names="fg", RESUME_RUN=run_id, **SHORT)
    expect_as(calm, 2, tracking_uri, hosts.folder, attempts=3, FSDP="1", **SHORT)


def committed(uri, run_id, folder):
    """Return the names of the checkpoints that have a manifest."""
    tracking = client(uri)
    names = [found.path for found in tracking.list_artifacts(run_id, "checkpoints") if found.is_dir]
    return {
        Path(name).name
        for name in names
        if f"{name}/manifest.json" in {f.path for f in tracking.list_artifacts(run_id, name)}
    }


@pytest.fixture
def link():
    """Return two machines by their network, with a link between them that can be cut."""
    if sys.platform != "linux" or os.geteuid() or shutil.which("ip") is None:
        pytest.skip("needs root and `ip`, for namespaces of the network")
    link = Link()
    try:
        yield link
    finally:
        link.close()


class Link:
    """Two namespaces of the network, joined by a pair of interfaces with private addresses."""

    def __init__(self):
        self._spaces = {name: f"onward-{os.getpid()}-{name}" for name in "ab"}
        subnet = f"10.{random.randint(64, 127)}.{random.randint(0, 255)}"
        self.addresses = {"a": f"{subnet}.1", "b": f"{subnet}.2"}
        for space in self._spaces.values():
            made = ip("netns", "add", space, check=False)
            if made.returncode:
                self.close()
                pytest.skip(f"no namespace can be made here: {made.stderr.strip()}")
        first, second = self._spaces.values()
        pair = ["peer", "name", INTERFACE, "netns", second]
        ip("link", "add", INTERFACE, "netns", first, "type", "veth", *pair)
        for name, space in self._spaces.items():
            ip("-n", space, "addr", "add", f"{self.addresses[name]}/24", "dev", INTERFACE)
            for interface in ("lo", INTERFACE):
                ip("-n", space, "link", "set", interface, "up")

    def words(self, name):
        """Return what runs a command on one of them."""
        return ["ip", "netns", "exec", self._spaces[name]]

    def set(self, state):
        """Cut it, by "down", or mend it, by "up"."""
        ip("-n", self._spaces["a"], "link", "set", INTERFACE, state)

    def close(self):
        """Remove all of it."""
        for space in self._spaces.values():
            ip("netns", "delete", space, check=False)


def ip(*words, check=True):
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


def test_the_link_between_two_machines_is_cut(calm, link, tmp_path):
    """Both end, the run is FAILED; mended, it goes on from the newest checkpoint, to the bit."""
    ways = {name: (link.words(name), link.addresses[name]) for name in "ab"}
    server = Server(tmp_path / "server", host=link.addresses["a"], prefix=link.words("a"))
    server.start()
    try:
        hosts = Hosts(tmp_path, server.address, ways)
        first, second = hosts.start(RANK_MINUTES="0.1", **SHORT)
        with group_of(first), group_of(second):
            wait_for(lambda: "epoch 1" in first.output.read_text())
            link.set("down")
            assert [first.wait(300), second.wait(300)] == [1, 1]
        assert "rank 1 died, or does not answer" in first.output.read_text()
        [log] = (tmp_path / "b").glob("home/runs/*/attempt_1/attempt_1_rank_1.log")
        assert "rank 0 died, or does not answer" in log.read_text()
        link.set("up")
        hosts.run(RESUME_RUN="auto", **SHORT)
    finally:
        server.stop()
    with mlflow_server(tmp_path / "server") as here:
        expect_as(calm, 2, here.address, hosts.folder, attempts=2, FSDP="1", **SHORT)
