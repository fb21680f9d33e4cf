"""A long transfer shows how far it is; a short one nothing, and no program reads any of it."""

import io
import json
import logging
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from rich.console import Console
from support import cli

from onward.checkpoint import downloads
from onward.errors import CheckpointDamaged
from onward.terminal import progress
from onward.terminal.progress import Moved, show_transfer
from onward.terminal.report import Reporter

TOTAL = 4_800_000_000


class Transfer:
    """A transfer of `seconds` at 120 MB/s; both the clock and what says that it is over."""

    def __init__(self, seconds):
        self.seconds, self.now = seconds, 0.0

    def monotonic(self):
        return self.now

    def wait(self, seconds):
        self.now = min(round(self.now + seconds, 6), self.seconds)
        return self.now >= self.seconds

    def num_bytes(self):
        return round(120e6 * self.now)

    def show(self, title="Downloading epoch_12"):
        progress._show(title, TOTAL, self.num_bytes, self)


@pytest.fixture
def transfer(monkeypatch):
    """Return a function that makes a transfer, whose clock is the one that is looked at."""

    def start(seconds, kind=Transfer):
        made = kind(seconds)
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=made.monotonic))
        return made

    return start


@pytest.fixture
def lines(caplog):
    """Return a function that lists the lines of the log."""
    caplog.set_level(logging.INFO, "onward.terminal.progress")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def console():
    """Return a terminal of 80 columns."""
    options = {"force_terminal": True, "force_interactive": True, "width": 80}
    return Console(file=io.StringIO(), **options)


@pytest.fixture
def reporter(console):
    """Return what shows the log on it."""
    reporter = Reporter(console)
    reporter.open_log()
    yield reporter
    reporter.close_log()


@pytest.fixture
def terminal(console, reporter):
    """Return what was written to a terminal that shows the log."""
    return console.file


@pytest.fixture
def at_once(monkeypatch):
    """Let every transfer be a long one."""
    monkeypatch.setattr(progress, "DELAY_SECONDS", 0.0)


def drawn(out):
    """Return each state of the bar as it was drawn, without colours and the like."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n")
    return [line for line in plain.splitlines() if "of 4.8 GB" in line]


@pytest.mark.parametrize("seconds", [0.0, 1.0, 1.99])
def test_a_short_transfer_shows_nothing(transfer, lines, terminal, seconds):
    """What is over within two seconds leaves no line, and no bar."""
    transfer(seconds).show()
    assert lines() == []
    assert terminal.getvalue() == ""


def test_a_long_transfer_logs_a_line_after_two_seconds_and_then_every_ten(transfer, lines):
    """A log is not flooded, and tells amount, speed and what is left."""
    transfer(33.0).show()
    assert lines() == [
        "Downloading epoch_12: 0.2 of 4.8 GB, 120.0 MB/s, 0:00:38 left",
        "Downloading epoch_12: 1.4 of 4.8 GB, 120.0 MB/s, 0:00:28 left",
        "Downloading epoch_12: 2.6 of 4.8 GB, 120.0 MB/s, 0:00:18 left",
        "Downloading epoch_12: 3.8 of 4.8 GB, 120.0 MB/s, 0:00:08 left",
    ]


def test_a_transfer_that_has_brought_nothing_yet_has_no_speed(transfer, lines):
    """Where whole files count, a tiny one may come long before the first large one."""
    stuck = transfer(13.0)
    stuck.num_bytes = lambda: 212 if stuck.now > 5 else 0
    stuck.show()
    assert lines() == [
        "Downloading epoch_12: 0.0 of 4.8 GB, for 0:00:02",
        "Downloading epoch_12: 0.0 of 4.8 GB, for 0:00:12",
    ]


def test_what_is_shown_never_goes_back_and_never_exceeds_the_total(transfer, lines):
    """A file that is fetched anew does not undo what was shown."""
    uneven = transfer(24.0)
    uneven.num_bytes = lambda: int({2: 3e9, 12: 1e9, 22: 9e9}.get(int(uneven.now), 0))
    uneven.show()
    assert [line.split(",")[0] for line in lines()] == [
        "Downloading epoch_12: 3.0 of 4.8 GB",
        "Downloading epoch_12: 3.0 of 4.8 GB",
        "Downloading epoch_12: 4.8 of 4.8 GB",
    ]


def test_the_bar_appears_only_after_the_delay_and_is_gone_at_the_end(transfer, terminal):
    """On a terminal there is a bar from the third second on, in place of the log's lines."""
    seen = []

    class Watched(Transfer):
        def wait(self, seconds):
            seen.append((self.now, len(drawn(terminal))))
            return super().wait(seconds)

    transfer(4.0, Watched).show()
    assert seen[:3] == [(0.0, 0), (2.0, 1), (2.2, 2)]
    assert drawn(terminal)[0].startswith("Downloading epoch_12 ╸━━━━━━━━━ 0.2 of 4.8 GB")
    assert terminal.getvalue().count("\n") == 1
    assert terminal.getvalue().endswith("\r\x1b[1A\x1b[2K"), "its line is not erased"


def test_the_bar_fits_into_eighty_columns(transfer, terminal):
    """A long title gives way; the numbers are shown whole."""
    transfer(3.0).show(f"Downloading epoch_12 of run '{'a' * 32}'")
    for line in drawn(terminal):
        assert line.startswith("Downloading epoch_12 of run … ╸━")
        assert line.endswith(" left")
        assert len(line) <= 80


def test_messages_come_above_the_bar(transfer, terminal):
    """What is logged meanwhile stays on the terminal."""

    class Talking(Transfer):
        def num_bytes(self):
            if self.now == 3.0:
                logging.getLogger("onward.some.module").warning("look out")
            return super().num_bytes()

    transfer(4.0, Talking).show()
    assert terminal.getvalue().count("warning: look out\n") == 1


def test_a_terminals_log_file_holds_the_lines(transfer, terminal, reporter, tmp_path):
    """Where a bar takes their place, the lines are in the file all the same."""
    transfer(5.0).show()
    reporter.log_to(tmp_path / "a.log")
    assert "INFO Downloading epoch_12: 0.2 of 4.8 GB" in (tmp_path / "a.log").read_text()
    assert "Downloading epoch_12: " not in terminal.getvalue()


def test_a_short_transfer_is_not_measured_and_does_not_wait(lines):
    """Nothing is asked of it, and its thread ends with it."""
    measured = []
    with show_transfer("Downloading", TOTAL, lambda: measured.append(True) or 0):
        pass
    assert (measured, lines()) == ([], [])
    assert not any("_show" in thread.name for thread in threading.enumerate())


def test_where_no_thread_can_be_begun_nothing_is_shown(monkeypatch, lines):
    """As while the interpreter ends, from Python 3.12 on."""

    def refuse(self):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done = []
    with show_transfer("Uploading", TOTAL, lambda: 0):
        done.append(True)
    assert (done, lines()) == ([True], [])


def test_where_there_is_nothing_to_do_nothing_is_shown(transfer, lines):
    """A total of zero has no parts."""
    made = transfer(5.0)
    progress._show("Uploading", 0, made.num_bytes, made)
    assert lines() == []


def test_a_transfer_that_fails_takes_its_bar_away(at_once, terminal):
    """The error passes, and the cursor is shown again."""
    measured = threading.Event()

    def fail():
        with show_transfer("Downloading", TOTAL, lambda: measured.set() or 0):
            assert measured.wait(60)
            raise CheckpointDamaged("epoch_12", "it has 3 bytes")

    with pytest.raises(CheckpointDamaged):
        fail()
    assert drawn(terminal)
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")


class Interrupting(int):
    """A number that lets other threads run in the middle of being added."""

    def __radd__(self, other):
        time.sleep(0)
        return int(other) + int(self)


def test_the_bytes_of_several_threads_are_all_counted():
    """Files arrive several at a time."""
    moved = Moved()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(moved.add, [Interrupting(3)] * 2000))
    assert moved.num_bytes() == 6000


def test_a_file_counts_as_far_as_it_is_written(tmp_path):
    """Not before it is there, not where it has holes, and not after the block."""
    moved, file = Moved(), tmp_path / "part"
    with moved.growing(file):
        assert moved.num_bytes() == 0
        file.write_bytes(os.urandom(1 << 20))
        assert moved.num_bytes() == 1 << 20
        os.truncate(file, 1 << 30)
        assert 1 << 20 <= moved.num_bytes() < 1 << 21
    assert moved.num_bytes() == 0


@pytest.fixture
def long(at_once, monkeypatch):
    """Let every check of a file last until how far it is was asked for."""
    measured = threading.Event()
    num_bytes, verify_file = Moved.num_bytes, downloads.verify_file

    def measure(self):
        measured.set()
        return num_bytes(self)

    def verify_slowly(*arguments):
        assert measured.wait(60)
        verify_file(*arguments)

    monkeypatch.setattr(Moved, "num_bytes", measure)
    monkeypatch.setattr(downloads, "verify_file", verify_slowly)


@pytest.mark.parametrize(
    ("command", "title"),
    [("verify", "Verifying run '{}': 0.0 of"), ("show", "Verifying epoch_2 of run '{}': 0.0 of")],
)
def test_json_is_alone_on_stdout(record, commit_to, long, command, title):
    """What a script reads holds nothing else, however long it takes."""
    commit_to(record, {1: 0.1, 2: 0.9})
    result = cli(command, record.run_id, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)
    assert title.format(record.run_id) in result.stderr


def test_the_lines_of_a_result_are_alone_on_stdout(record, commit_to, long, tmp_path):
    """Where stdout is no terminal, the log goes to stderr."""
    commit_to(record, {1: 0.1, 2: 0.9})
    result = cli("verify", record.run_id)
    assert [line.split()[:2] for line in result.stdout.splitlines()] == [
        ["checkpoint", "status"],
        ["epoch_1", "ok"],
        ["epoch_2", "ok"],
    ]
    assert "Verifying" in result.stderr
    result = cli("export", record.run_id, "--to", tmp_path / "a.pth")
    assert result.stdout == f"epoch_2 of run {record.run_id} is in {tmp_path / 'a.pth'}\n"
    assert "Verifying epoch_2" in result.stderr


def test_a_title_is_shown_as_its_characters(transfer, reporter, terminal):
    """The name of a file or a checkpoint does nothing to the terminal."""
    transfer(5.0).show("Downloading a\x1b]0;b\x07")
    assert "\x1b]0;" not in terminal.getvalue()
    assert "Downloading a\\x1b]0;b\\x07" in terminal.getvalue()
