"""Ranks whose machines share no disk: each brings its own files, and what is lost is made up."""

import socket

import pytest
from support import BIN, environment, group_of, only_run, start_logged
from test_ranks import OWN, RANKED, ended, expect_as  # the same script, and the same claims

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # processes that import torch


class Hosts:
    """A job of two ranks, each of which stands for a machine of its own.

    Args:
        folder: Their files.
        uri: Of the tracking server.
    """

    def __init__(self, folder, uri):
        self.folder, self.uri = folder, uri

    def start(self, *plan, names="ab", uris=None, **variables):
        """Start an agent on each machine, as torchrun is started there; return both."""
        port = free_port()
        options = {"UPLOAD": "sync", "LOG_MODEL": "false", "GRACE_SECONDS": "20"} | variables
        given = {(k if k in OWN else f"ONWARD_{k}"): v for k, v in options.items()}
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
                    [*torchrun, RANKED, *plan], place / "output", cwd=place, env=env,
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


def test_trained(hosts, tracking_uri):
    """x"""
    told = hosts.run()
    print("\n".join(told))
    print(only_run(tracking_uri).info.status)
