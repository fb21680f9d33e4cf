"""The terminal session shown in docs/terminal.md is what the program prints today.

`make screenshots` records it anew.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest
from support import (
    ROOT,
    client,
    environment,
    group_of,
    mlflow_server,
    only_run,
    start_command,
    wait_for,
)

MACHINE = Path(__file__).parent / "machine.py"
PAGE = ROOT / "docs" / "terminal.md"
IS_RECORDING = "SCREENSHOTS" in os.environ
SERVER = "http://server:5000"

pytestmark = pytest.mark.slow


class Session:
    """What is typed on several machines, and what they answer.

    Args:
        folder: Where each machine has a folder of its own.
        address: The server that all use.
    """

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address, self.lines = folder, address, []

    def start(self, machine: str, command: str):
        """Type a command."""
        self.lines.append(f"{machine}$ {command}")
        folder = self.folder / machine
        folder.mkdir(exist_ok=True)
        words = shlex.split(command)
        if words[0] == "train":
            words = [sys.executable, str(MACHINE), machine, *words[1:]]
        env = environment(folder / "home", self.address, CUDA_VISIBLE_DEVICES="")
        if IS_RECORDING:
            env["REAL_TIMES"] = "yes"
        return start_command(
            words, cwd=folder, env=env,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def end(self, process, code: int = 0) -> None:
        """Note what the command printed."""
        printed, _ = process.communicate(timeout=240)
        assert process.returncode == code, printed
        self.lines += [line.rstrip() for line in printed.replace(self.address, SERVER).splitlines()]

    def run(self, machine: str, command: str) -> None:
        """Type a command and let it end."""
        with group_of(self.start(machine, command)) as process:
            self.end(process)


def play(folder: Path) -> list[str]:
    """Train, lose the machine, go on with another one; return all that is seen."""
    (folder / "laptop").mkdir()
    table = ROOT / "train" / "tabular" / "data" / "diamonds.csv.gz"
    (folder / "laptop" / "diamonds.csv.gz").write_bytes(table.read_bytes())
    with mlflow_server(folder / "server") as server:
        session = Session(folder, server.address)
        options = "--checkpoint_freq 5 --epochs 20"
        with group_of(session.start("node-1", f"train run {options}")) as process:
            wait_for(lambda: epoch_of(server.address) >= 5, 120)
            process.send_signal(signal.SIGKILL)
            session.end(process, -signal.SIGKILL)
        session.lines.append("Killed")
        run_id = only_run(server.address).info.run_id
        session.run("node-2", f"train run --resume_run {run_id}")
        session.run("laptop", "train list")
        session.run("laptop", f"train verify {run_id}")
        session.run("laptop", f"train predict {run_id} diamonds.csv.gz --to out.csv")
        session.run("laptop", "head -n 3 out.csv")
    return session.lines


def epoch_of(address: str) -> int:
    """Return the epoch of the newest checkpoint that is committed, 0 where none is."""
    runs = client(address).search_runs(["0"])
    return int(runs[0].data.tags.get("train.epoch", 0)) if runs else 0


def shape(lines: list[str]) -> list[str]:
    """Return the lines without what another run, or another machine, has otherwise.

    Names, numbers, units and marks go; of lines that are alike then one is left, since how many
    epochs are done when the machine is lost is left to chance. So is whether a transfer takes so
    long, on a busy machine, that it shows how far it is.
    """
    alike = []
    for line in lines:
        if re.search(r" of [\d.]+ MB, [\d.]+ MB/s, .* left$", line):
            continue
        line = re.sub(r"\b[0-9a-f]{32}\b", "ID", line)
        line = re.sub(r"\b[a-z]+-[a-z]+-\d+\b", "NAME", line)
        line = re.sub(r"\d[\d.,:e-]*", "0", line)
        line = re.sub(r" \(best(: epoch 0)?\)| \[kept\]", "", line)
        line = re.sub(r"\b0 (s|min) ago", "AGE", line)
        line = re.sub(r"\b0 (kB|MB)$", "SIZE", line)
        alike.append(" ".join(line.split()))
    return [line for line, _ in groupby(alike)]


def test_the_recorded_session_is_what_is_seen_today(tmp_path):
    """Line by line, but for names and numbers."""
    lines = play(tmp_path)
    page = PAGE.read_text()
    if IS_RECORDING:
        block = "```text\n" + "\n".join(lines) + "\n```"
        page = re.sub(r"```text\n.*?\n```", lambda _: block, page, flags=re.DOTALL)
        PAGE.write_text(page)
    recorded = re.search(r"```text\n(.*?)\n```", page, re.DOTALL)[1].splitlines()
    assert shape(lines) == shape(recorded)
