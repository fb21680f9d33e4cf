"""What the user sees: plain lines in a pipe, a bar on a terminal, everything in the log file."""

import io
import logging
import os
import re

import pytest
from rich.console import Console

from onward.monitor import UNDECLARED, Monitor
from onward.terminal.report import Reporter

METRICS = {"train_loss": 0.25, "val_loss": 0.5, "val_pearson": 0.9, "epoch_seconds": 1.25}
ESCAPE = "\x1b"
log = logging.getLogger("onward.some.module")


@pytest.fixture
def pipe():
    """Return (reporter, what it wrote) where the output is no terminal."""
    out = io.StringIO()
    reporter = Reporter(Console(file=out))
    reporter.open_log()
    yield reporter, out
    reporter.close_log()


@pytest.fixture
def terminal():
    """Return (reporter, what it wrote) on a terminal of 100 columns."""
    out = io.StringIO()
    reporter = Reporter(Console(file=out, force_terminal=True, width=100))
    reporter.open_log()
    yield reporter, out
    reporter.end()
    reporter.close_log()


def plain(out):
    """Return what a terminal was sent, without colours and what it was told to erase."""
    return re.sub(r".*\x1b\[2K|\x1b\[[?0-9;]*[a-zA-Z]", "", out.getvalue().replace("\r", ""))


def show_two_epochs(reporter):
    reporter.begin(2, epochs_done=0, monitor=UNDECLARED)
    reporter.advance(0.5)
    reporter.epoch(1, METRICS, 1, "")
    reporter.epoch(2, {**METRICS, "val_pearson": 0.8}, 1, "kept")
    reporter.end()


def test_a_pipe_gets_plain_lines(pipe):
    """Without a terminal each epoch is one line, with no escape code and no bar."""
    reporter, out = pipe
    show_two_epochs(reporter)
    assert out.getvalue().splitlines() == [
        "epoch 1  train_loss 0.25000  val_loss 0.50000  val_pearson 0.90000 (best)  1.2 s",
        "epoch 2  train_loss 0.25000  val_loss 0.50000  val_pearson 0.80000 (best: epoch 1)"
        "  [kept]  1.2 s",
    ]


def test_a_terminal_gets_a_bar_below_short_lines(terminal):
    """An epoch's line stays, short enough for 80 columns; the bar tells where training is."""
    reporter, out = terminal
    reporter.begin(2, epochs_done=0, monitor=UNDECLARED)
    reporter.advance(0.5)
    reporter._bar.refresh()
    assert re.search(r"epoch 1/2 .*━.* 25 % ETA", out.getvalue())
    reporter.epoch(1, METRICS, 1, "offline, 12 waiting")
    reporter._bar.refresh()
    assert re.search(r"epoch 2/2 best 1 \[offline, 12 waiting\] .*━.* 50 % ETA", out.getvalue())
    reporter.epoch(2, {**METRICS, "val_pearson": 0.8}, 1, "kept")
    reporter.end()
    lines = [line for line in plain(out).splitlines() if line.startswith("epoch") and " s" in line]
    assert lines == [
        "epoch 1/2 loss 0.5 pearson 0.9000 (best) [offline, 12 waiting] 1.2 s",
        "epoch 2/2 loss 0.5 pearson 0.8000 (best: epoch 1) [kept] 1.2 s",
    ]
    assert "train_loss" not in out.getvalue()


def test_an_epoch_is_told_by_the_metric_that_decides(terminal, tmp_path):
    """Whatever it is called; a loss that decides is not shown twice, one that is absent not."""
    reporter, out = terminal
    reporter.log_to(tmp_path / "a.log")
    for name, metrics in (
        ("val/acc", {"train_loss": 0.25, "val/acc": 0.75, "epoch_seconds": 1.25}),
        ("val_loss", {"train_loss": 0.25, "val_loss": 0.5, "epoch_seconds": 1.25}),
        ("val_rmse", {"val_loss": 0.5, "val_rmse": 3.0, "epoch_seconds": 1.25}),
    ):
        reporter.begin(1, epochs_done=0, monitor=Monitor(name, "min"))
        reporter.epoch(1, metrics, 1, "")
        reporter.end()
    lines = [line for line in plain(out).splitlines() if line.startswith("epoch") and " s" in line]
    assert lines == [
        "epoch 1/1 val/acc 0.7500 (best) 1.2 s",
        "epoch 1/1 loss 0.5000 (best) 1.2 s",
        "epoch 1/1 loss 0.5 rmse 3.0000 (best) 1.2 s",
    ]
    lines = (tmp_path / "a.log").read_text().splitlines()
    assert [line.split(" INFO ")[1] for line in lines] == [
        "epoch 1  train_loss 0.25000  val/acc 0.75000 (best)  1.2 s",
        "epoch 1  train_loss 0.25000  val_loss 0.50000 (best)  1.2 s",
        "epoch 1  val_loss 0.50000  val_rmse 3.00000 (best)  1.2 s",
    ]


def test_an_epoch_without_a_best_says_nothing_of_it(pipe):
    """Where the correlation is undefined there is no best epoch to name."""
    reporter, out = pipe
    reporter.epoch(1, {**METRICS, "val_pearson": float("nan")}, None, "")
    assert "val_pearson nan  1.2 s" in out.getvalue()


def test_messages_are_shown_whole_and_as_they_are(pipe):
    """Long lines are not wrapped, and square brackets are not taken for markup."""
    reporter, out = pipe
    log.info("a [bold]long[/bold] line " + "x" * 300)
    log.warning("look %s", "out")
    log.debug("not shown")
    lines = out.getvalue().splitlines()
    assert lines == ["a [bold]long[/bold] line " + "x" * 300, "warning: look out"]
    assert reporter is not None


def test_the_file_holds_the_log_from_its_first_line(pipe, tmp_path):
    """What was said before the file's place was known is in it too."""
    reporter, _ = pipe
    log.info("early")
    reporter.log_to(tmp_path / "deep" / "attempt_1.log")
    log.warning("late")
    reporter.epoch(1, METRICS, 1, "")
    lines = (tmp_path / "deep" / "attempt_1.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines[:2]] == ["INFO early", "WARNING late"]
    assert "epoch 1" in lines[2]
    assert len(lines) == 3


def test_a_terminals_file_holds_the_epochs(terminal, tmp_path):
    """The short lines are for the terminal, not for the file."""
    reporter, _ = terminal
    reporter.log_to(tmp_path / "a.log")
    show_two_epochs(reporter)
    assert "[kept]" in (tmp_path / "a.log").read_text()


def test_a_closed_log_writes_nowhere(pipe, tmp_path):
    """After a command its handlers are gone, so that the next one starts clean."""
    reporter, out = pipe
    reporter.log_to(tmp_path / "a.log")
    reporter.close_log()
    log.warning("after the end")
    assert "after the end" not in out.getvalue()
    assert (tmp_path / "a.log").read_text() == ""


def test_a_pipe_that_nobody_reads_any_more_ends_nothing(tmp_path, monkeypatch):
    """What is shown is lost, the file has it; the end of the process is no error either."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        reporter = Reporter()
        reporter.open_log()
        reporter.log_to(tmp_path / "a.log")
        log.info("read")
        os.close(read)
        log.info("lost")
        reporter.epoch(1, METRICS, 1, "")
        reporter.end()
        reporter.close_log()
    assert "epoch 1" in (tmp_path / "a.log").read_text()


def test_without_an_output_nothing_is_shown(tmp_path, monkeypatch):
    """As where a scheduler starts a process with it closed: the file has the log."""
    monkeypatch.setattr("sys.stdout", None)
    reporter = Reporter()
    reporter.open_log()
    reporter.log_to(tmp_path / "a.log")
    show_two_epochs(reporter)
    reporter.close_log()
    assert "epoch 2" in (tmp_path / "a.log").read_text()


def test_colours_alone_make_no_terminal(monkeypatch):
    """Where FORCE_COLOR is set in a pipe, as CI does, there are lines and no bar."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    reporter = Reporter()
    reporter.open_log()
    show_two_epochs(reporter)
    reporter.close_log()
    assert "train_loss 0.25000" in out.getvalue()
    assert "ETA" not in out.getvalue()


FORGED = "my run\n2026-01-01 00:00:00,000 INFO FINISHED \x1b[2J\x9b1A\u202e http://me:p@/ss@host"
SHOWN = "my run\\n2026-01-01 00:00:00,000 INFO FINISHED \\x1b[2J\\x9b1A\\u202e http://***@host"


def test_what_others_wrote_forges_no_line(pipe, tmp_path):
    """Terminal and log file show the characters of a name, not what they do; and no password."""
    reporter, out = pipe
    log.warning("before the file is open: %s", FORGED)
    reporter.log_to(tmp_path / "training.log")
    log.info("Run name: %s", FORGED)
    assert out.getvalue().splitlines() == [
        f"warning: before the file is open: {SHOWN}",
        f"Run name: {SHOWN}",
    ]
    lines = (tmp_path / "training.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        f"WARNING before the file is open: {SHOWN}",
        f"INFO Run name: {SHOWN}",
    ]


def test_a_bar_shows_what_others_wrote_as_characters(terminal):
    """What is said of an epoch's checkpoint, too, may hold a server's words."""
    reporter, out = terminal
    reporter.begin(3, epochs_done=0, monitor=UNDECLARED)
    reporter.epoch(1, METRICS, 1, "offline \x1b]0;mine\x07 [/red]")
    reporter.end()
    assert "\x1b]0;" not in out.getvalue()
    assert "\\x1b]0;mine\\x07 [/red]" in plain(out)
