"""`train ui`: MLflow's pages on the store that is in use, with a run in front."""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser

from onward.errors import StoreUnavailable
from onward.opening.source import find_run
from onward.run.signals import stop_at_once
from onward.system import environment
from onward.tracking.client import Tracking
from onward.tracking.ui import AS_TRAINING, run_page, runs_page
from onward.words.language import _
from onward.words.redact import without_login

log = logging.getLogger(__name__)

MAX_PORTS = 20  # looked at, from the first on
START_SECONDS = 60.0
LOOK_SECONDS = 0.2


def open_pages(run_id: str | None, port: int) -> None:
    """Show a run's page in the browser; where there is none, say its address.

    Where the store is a database, MLflow's pages are served by this process, until Ctrl-C.

    Args:
        run_id: The run; default: the one with a checkpoint that was worked on last.
        port: The first port to try for pages that are served here.

    Raises:
        RunNotUsable: There is no such run.
        StoreUnavailable: No port is free, or the pages do not come up.
    """
    tracking = Tracking()
    if run_id is not None:
        found = [find_run(tracking, run_id)]
    else:
        found = tracking.search_runs(tracking.experiment_id())
    if found:
        page = f"{run_page(found[0])}?{AS_TRAINING}"
        all_runs = runs_page(found[0].experiment_id)
    else:
        page = all_runs = runs_page(tracking.experiment_id())
    if tracking.uri.startswith("http"):
        _show(tracking.uri.rstrip("/"), page, all_runs)
        return
    port = _free_port(port)
    log.info(_("Starting MLflow's pages …"))
    stop_at_once()
    # Not on the command line, which others on this machine can read: it may hold a password.
    env = environment.with_variables(MLFLOW_BACKEND_STORE_URI=tracking.uri)
    command = [sys.executable, "-m", "mlflow", "ui", "--port", str(port)]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=quiet, stderr=quiet, env=env)
    try:
        _wait_until_served(server, port)
        _show(f"http://127.0.0.1:{port}", page, all_runs)
        log.info(_("Ctrl-C ends it"))
        server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.terminate()
        server.wait()


def _show(server: str, page: str, all_runs: str) -> None:
    # A browser asks for the login itself: its command line can be read by others on this machine.
    server = without_login(server)
    log.info("%s", f"{server}/{page}")
    log.info(_("All runs: %s"), f"{server}/{all_runs}")
    if environment.has_screen():
        webbrowser.open(f"{server}/{page}")


def _free_port(first: int) -> int:
    for port in range(first, first + MAX_PORTS):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise StoreUnavailable(
        _("no port from {first} to {last} is free: give another one with --port").format(
            first=first, last=first + MAX_PORTS - 1
        )
    )


def _wait_until_served(server: subprocess.Popen[bytes], port: int) -> None:
    ends = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < ends:
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        time.sleep(LOOK_SECONDS)
    raise StoreUnavailable(
        _("MLflow's pages did not come up on port {port}: `mlflow ui` says why").format(port=port)
    )
