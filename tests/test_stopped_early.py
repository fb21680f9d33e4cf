"""A signal that comes while a run is opened leaves none RUNNING, whenever it comes."""

import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from support import SMALL, cli, write_table

import onward
from onward.opening.begin import Opening
from onward.opening.source import local_folder
from onward.publish.publisher import Publisher
from onward.run.run import Run
from onward.run.signals import SIGNALS
from onward.script import open as script_open

CODE = str(Path(onward.__file__).parent)
NUM_MOMENTS = 10
FIRST_CHANGES = {Opening.new_run.__code__, Opening.next_attempt.__code__}


class Calls:
    """Counts calls of our functions from the first change on the server to that of `last`.

    Args:
        last: The function where it ends.
        number: What comes: a signal.
        chosen: At which call, counted from 0; None: at none.
    """

    def __init__(self, last=Run.epochs, number=signal.SIGTERM, chosen=None):
        self._last, self._number, self._chosen = last.__code__, number, chosen
        self.count, self._is_counting, self.where = 0, False, None

    def __call__(self, frame, event, argument):
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(CODE):
            return
        self._is_counting |= code in FIRST_CHANGES
        if code is self._last:
            sys.setprofile(None)
        elif self._is_counting:
            if self.count == self._chosen:
                sys.setprofile(None)
                self.where = code.co_name
                signal.raise_signal(self._number)
            self.count += 1

    def during(self, act):
        """Do it; return what comes of it."""
        sys.setprofile(self)
        try:
            return act()
        finally:
            sys.setprofile(None)


def statuses(tracking):
    """Return the status of each run by its ID."""
    return {run.info.run_id: run.info.status for run in tracking.client.search_runs(["0"])}


def train(*words):
    for number in SIGNALS:  # which a command that has ended ignores
        signal.signal(number, signal.SIG_DFL)
    return cli("run", *words)


def stopped_at_each(words):
    """Run a command that is stopped at moments spread over its opening; yield where that was."""
    counted = Calls()
    assert counted.during(lambda: train(*words, "--epochs", "3")).exit_code == 0
    assert counted.count > 500
    for part in range(NUM_MOMENTS):
        calls = Calls(chosen=counted.count * part // NUM_MOMENTS)
        result = calls.during(lambda: train(*words, "--epochs", "4"))
        assert calls.where is not None
        assert result.exit_code == 75, (calls.where, result.stderr)
        yield calls.where


@pytest.fixture
def fresh(tracking, tmp_path):
    """Return the words for a run that is small, of which there is one."""
    table = write_table(tmp_path / "table.csv", 120)
    words = [*SMALL, "--data", table, "--target", "price"]
    assert train(*words, "--epochs", "2").exit_code == 0
    return words


def test_a_fresh_run_is_killed(tracking, fresh):
    """The run that was made is closed, at whatever moment the signal comes."""
    num_made = 0
    for where in stopped_at_each(fresh):
        ended = list(statuses(tracking).values())
        assert set(ended) <= {"KILLED", "FINISHED"}, where
        num_made = ended.count("KILLED")
    assert num_made > NUM_MOMENTS / 2


def test_a_finished_run_that_is_extended_stays_finished(tracking, fresh):
    """What was made for the attempt is closed; the run is as it was, and can be gone on with."""
    (run_id,) = statuses(tracking)
    words = ["--resume_run", run_id]
    for where in stopped_at_each(words):
        now = statuses(tracking)
        assert now.pop(run_id) == "FINISHED", where
        assert set(now.values()) <= {"KILLED", "FINISHED"}, where
    assert train(*words, "--epochs", "4").exit_code == 0


def test_a_fork_of_what_waits_that_is_stopped_is_killed(tracking, fresh, tmp_path, monkeypatch):
    """The run that `sync --as_fork true` makes is closed where it does not come to its end."""
    (run_id,) = statuses(tracking)
    spool = local_folder(tracking, tracking.get_run(run_id)).spool(1)
    (stored,) = (tmp_path / "mlruns").rglob("checkpoints/epoch_2")
    shutil.copytree(stored, spool.path("epoch_2"))
    spool.write_journal({})
    tracking.claim_attempt(run_id, 2, run_id)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Publisher, "commit", stop)
    assert cli("sync", run_id, "--as_fork", "true").exit_code == 75
    assert sorted(statuses(tracking).values()) == ["FINISHED", "KILLED"]


def test_ctrl_c_in_a_loop_of_ones_own_does_the_same(tracking):
    """Until `open_run` has returned; what it has returned is closed as the process ends."""

    def open_one():
        model = torch.nn.Linear(3, 1)
        return onward.open_run({"model": model})

    signal.signal(signal.SIGINT, signal.default_int_handler)
    last = script_open._remembered
    counted = Calls(last)
    counted.during(open_one).life.abandon()
    script_open._open = None
    assert counted.count > 300
    for part in range(NUM_MOMENTS):
        calls = Calls(last, signal.SIGINT, counted.count * part // NUM_MOMENTS)
        with pytest.raises(KeyboardInterrupt):
            calls.during(open_one)
        assert set(statuses(tracking).values()) == {"KILLED"}, calls.where
