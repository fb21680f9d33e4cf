"""`train ui`: which page is shown, where, and on what kind of machine a browser is opened."""

import json
import shutil
import socket
import time

import pytest
from support import cli

from onward.cli import browse
from onward.errors import RunNotUsable, StoreUnavailable
from onward.opening.source import find_run
from onward.system import environment
from onward.tracking.client import Tracking
from onward.tracking.names import HEARTBEAT_TAG

SERVER = "http://user:secret@127.0.0.1:1"


@pytest.fixture(autouse=True)
def opened(monkeypatch):
    """Let no browser be opened; return the addresses that would be."""
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    addresses = []
    monkeypatch.setattr(browse.webbrowser, "open", addresses.append)
    return addresses


@pytest.fixture
def served(tracking, monkeypatch):
    """Let the store pass for a server: what is in it is the same."""
    connected = Tracking.__init__

    def connect(self):
        connected(self)
        self.uri = f"{SERVER}/"

    monkeypatch.setattr(Tracking, "__init__", connect)


@pytest.mark.usefixtures("served")
def test_a_servers_page_of_the_run_is_told(record):
    """Its address without the password, and nothing is started; an attempt leads to its run."""
    result = cli("ui", record.run_id)
    assert result.exit_code == 0, result.output
    page = f"#/experiments/0/runs/{record.run_id}?workflowType=machine_learning"
    assert f"http://127.0.0.1:1/{page}\n" in result.stderr.replace("\n#", "#")


@pytest.mark.usefixtures("served")
def test_the_newest_run_is_shown_by_default(tracking, record, commit_to):
    """The newest with a checkpoint; where there is none, the list of the experiment's runs."""
    assert "/#/experiments/0/runs?viewStateShareKey=" in cli("ui").stderr
    commit_to(record, {1: 0.5})
    tracking.create_run("0", "not ours", {})
    assert f"/#/experiments/0/runs/{record.run_id}" in cli("ui").stderr


@pytest.mark.usefixtures("served")
def test_the_newest_run_is_the_one_that_was_worked_on_last(tracking, record, commit_to):
    """Also if another one was begun after it, as `train list` and `resume_run=latest` have it."""
    later = tracking.create_run("0", "another", {})
    for run in (record, later):
        commit_to(run, {1: 0.5})
    tracking.set_tags(record.run_id, {HEARTBEAT_TAG: json.dumps({"time": time.time() + 60})})
    assert f"/#/experiments/0/runs/{record.run_id}" in cli("ui").stderr
    assert cli("list").output.splitlines()[1].startswith(record.run_id)
    assert find_run(tracking, "latest").run_id == record.run_id


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("screen", [None, "BROWSER", "DISPLAY", "WAYLAND_DISPLAY"])
def test_a_browser_is_opened_only_where_there_is_a_screen(record, monkeypatch, opened, screen):
    """In a terminal without one it would take the terminal over."""
    if screen:
        monkeypatch.setenv(screen, ":0")
    assert environment.has_screen() == bool(screen)
    assert cli("ui", record.run_id).exit_code == 0
    expected = (
        [f"http://127.0.0.1:1/#/experiments/0/runs/{record.run_id}?workflowType=machine_learning"]
        if screen
        else []
    )
    assert opened == expected, "without the password: others can read its command line"


@pytest.mark.usefixtures("tracking")
def test_an_unknown_run_is_an_error(opened):
    """Nothing is started or shown."""
    with pytest.raises(RunNotUsable):
        browse.open_pages("0" * 32, 5000)
    assert opened == []


def test_a_port_that_is_taken_is_passed_over(tracking, record, monkeypatch):
    """The next one is tried; where all are taken, the option that names others is told."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert browse._free_port(port) > port
        monkeypatch.setattr(browse, "MAX_PORTS", 1)
        with pytest.raises(StoreUnavailable, match=rf"from {port} to {port} .* --port"):
            browse.open_pages(record.run_id, port)


def test_pages_that_do_not_come_up_are_an_error(tracking, record, monkeypatch):
    """What was started ends at once: no process stays behind."""
    monkeypatch.setattr(browse.sys, "executable", shutil.which("false"))
    with pytest.raises(StoreUnavailable, match="did not come up on port"):
        browse.open_pages(record.run_id, 20_000)
