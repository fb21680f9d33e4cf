"""A signal stops training at the next step; a second one ends the process as usual."""

import contextlib
import math
import os
import random
import signal
import subprocess
import sys
import threading

import pyarrow.csv
import pytest
from support import ROOT, wait_for

from onward.run import signals
from onward.run.signals import SIGNALS, StopNow, StopRequest, stop_at_once


@pytest.fixture
def untouched():
    """Let the signals be those of a process that nobody has prepared."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def stop(untouched):
    """Return a stop request that is installed during the test."""
    request = StopRequest()
    request.install()
    yield request
    request.uninstall()


def others(number):
    return [other for other in SIGNALS if other is not number]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_until_it_is_asked_for(stop, number, capfd):
    """Nothing happens at the signal itself but a line that says what comes."""
    assert stop.received is None
    signal.raise_signal(number)
    assert stop.received is number
    expected = f"{number.name}: saving what is under way, then stopping\n"
    assert capfd.readouterr().err == expected


def test_a_signal_while_a_loop_reads_a_csv_is_remembered(untouched, capfd):
    """pyarrow would take it over in the main thread, and make an error of it or nothing."""
    draw, table = random.Random(0), b"a,b\n" + b"1.5,x\n" * 4000
    try:
        for _ in range(20):
            stop = StopRequest()
            stop.install()
            delay, own = draw.uniform(0, 0.004), (os.getpid(), signal.SIGTERM)
            send = threading.Timer(delay, os.kill, own)
            send.start()
            while send.is_alive():
                assert len(pyarrow.csv.read_csv(pyarrow.BufferReader(table))) == 4000
            wait_for(lambda stop=stop: stop.received is signal.SIGTERM)
            stop.uninstall()
    finally:
        pyarrow.enable_signal_handlers(True)
    assert capfd.readouterr().err.count("SIGTERM: saving") == 20


@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_of_a_kind_is_the_defaults(stop, number):
    """Whoever sends it twice means it: the second one ends the process at once."""
    signal.raise_signal(number)
    assert signal.getsignal(number) is signal.SIG_DFL
    assert all(signal.getsignal(other) is not signal.SIG_DFL for other in others(number))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_of_another_kind_changes_nothing(stop, number, capfd):
    """`mlflow run` answers Ctrl-C with a SIGTERM of its own: that is no second order."""
    signal.raise_signal(number)
    left = stop.seconds_left(25.0)
    for other in others(number):
        signal.raise_signal(other)
    assert stop.received is number
    assert stop.seconds_left(25.0) <= left, "the time that is left began anew"
    assert len(capfd.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("number", SIGNALS)
def test_an_ignored_signal_stays_ignored(number):
    """Under `nohup` a hangup does not stop training, neither before it begins nor later."""
    signal.signal(number, signal.SIG_IGN)
    stop_at_once()
    signal.raise_signal(number)
    stop = StopRequest()
    stop.install()
    with stop.at_once():
        signal.raise_signal(number)
    assert stop.received is None
    stop.uninstall()
    assert signal.getsignal(number) is signal.SIG_IGN


def test_the_signals_are_given_back():
    """After a run the handlers are those from before, also when a signal came."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    stop = StopRequest()
    stop.install()
    assert all(signal.getsignal(number) != handler for number, handler in before.items())
    signal.raise_signal(signal.SIGHUP)
    stop.uninstall()
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    stop.uninstall()
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_block_that_can_be_left_is_left_where_the_signal_comes(stop, number):
    """What changes nothing of the training need not be waited for."""
    done = []

    def work():
        done.append("before")
        signal.raise_signal(number)
        done.append("after")

    with pytest.raises(StopNow), stop.at_once():
        work()
    assert done == ["before"]
    assert stop.received is number


def test_a_block_is_not_begun_after_a_signal(stop):
    """A signal that came just before the block is not forgotten in it."""
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(StopNow), stop.at_once():
        pytest.fail("the block was begun")


def test_a_signal_beyond_the_block_only_asks(stop):
    """Before and after the block a signal ends nothing: a step may be half done there."""
    with stop.at_once():
        pass
    signal.raise_signal(signal.SIGTERM)
    assert stop.received is signal.SIGTERM
    with pytest.raises(StopNow), stop.at_once():
        pass
    signal.raise_signal(signal.SIGHUP)  # after a block that was left, too


def test_a_second_kind_of_signal_does_not_disturb_the_way_out(stop):
    """What tidies up while the block is being left is not interrupted again."""
    done = []

    def work():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)
            done.append("tidied up")

    with pytest.raises(StopNow), stop.at_once():
        work()
    assert done == ["tidied up"]


def test_leaving_a_block_is_taken_for_no_error(stop):
    """No `except Exception` within evaluation can swallow it."""
    assert not issubclass(StopNow, Exception)


def test_the_time_that_is_left_counts_from_the_signal(stop, monkeypatch):
    """`grace_seconds` is how long the process may take to end from then; never less than 0."""
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    assert stop.seconds_left(25.0) == math.inf, "nobody has asked"
    signal.raise_signal(signal.SIGTERM)
    now[0] = 110.0
    assert stop.seconds_left(25.0) == 15.0
    now[0] = 200.0
    assert stop.seconds_left(25.0) == 0.0


@pytest.mark.parametrize("number", SIGNALS)
def test_before_training_a_signal_raises_where_it_comes(untouched, number, capfd):
    """Until there is something to save, nothing is waited for."""
    stop_at_once()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert capfd.readouterr().err.startswith(f"{number.name}: stopping\n")


def test_a_signal_whose_exception_got_lost_stops_training(untouched):
    """It came in a place where Python lets no exception out, such as a weak reference's end."""
    stop_at_once()
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    request = StopRequest()
    request.install()
    assert request.received == signal.SIGTERM
    assert request.seconds_left(25.0) <= 25.0
    request.uninstall()


def test_once_held_it_is_remembered_for_training(untouched):
    """Between what opens a run and what enters it there is nobody who would close it."""
    stop_at_once()
    signals.hold()
    signal.raise_signal(signal.SIGTERM)
    request = StopRequest()
    request.install()
    assert request.received == signal.SIGTERM
    request.uninstall()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("handler", ["ours", "Python's"])
def test_a_block_that_must_not_be_left_is_done_first(untouched, number, handler):
    """What it was about to remember is remembered; then the signal does as ever."""
    if handler == "ours":
        stop_at_once()
    else:
        signal.signal(number, signal.default_int_handler)
    before, done = signal.getsignal(number), []

    def work():
        with signals.held():
            signal.raise_signal(number)
            done.append("remembered")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["remembered"]
    assert signal.getsignal(number) is before


def test_such_a_block_is_left_by_the_second_signal_of_a_kind(untouched):
    """A server that never answers keeps nobody; of another kind it is what `mlflow run` adds."""
    stop_at_once()
    done = []

    def work():
        with signals.held():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            done.append("both")
            signal.raise_signal(signal.SIGINT)
            done.append("left too late")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["both"]


def test_such_a_block_leaves_what_raises_nothing_alone(untouched):
    """A process that nobody has prepared ends by the signal at once, in a thread it may be too."""
    with signals.held():
        assert {signal.getsignal(number) for number in SIGNALS} == {signal.SIG_DFL}
    in_thread = threading.Thread(target=lambda: signals.held().__enter__())
    in_thread.start()
    in_thread.join()
    assert {signal.getsignal(number) for number in SIGNALS} == {signal.SIG_DFL}


def test_a_signal_inside_of_exec_leaves_the_exit_code_alone(tmp_path):
    """As while a library makes its classes: else a scheduler would not start it again."""
    (tmp_path / "child.py").write_text(EXEC)
    done = subprocess.run(
        [sys.executable, "-m", "child"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 75


EXEC = """
import signal, sys
from onward.run.signals import stop_at_once
stop_at_once()
try:
    exec("signal.raise_signal(signal.SIGINT)")
except KeyboardInterrupt:
    sys.exit(75)
"""
CHILD = """
import time
from onward.run.signals import StopRequest
stop = StopRequest()
stop.install()
print("ready", flush=True)
while True:
    time.sleep(0.01)
    if stop.received is not None:
        print(stop.received.name, flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_of_the_same_kind_ends_the_process(number):
    """As if there were no handler: a process that hangs while it saves can still be stopped."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        assert child.stdout.readline() == f"{number.name}\n"
        child.send_signal(number)
        assert child.wait(30) == -number
    finally:
        child.kill()
        child.stdout.close()
        child.wait()
