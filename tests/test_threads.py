"""Threads that no end of the process waits for."""

import subprocess
import sys
import threading
import time

import pytest

from onward.system.threads import bounded, each


def test_the_results_come_in_the_order_of_the_items():
    """Whichever is done first."""
    second = threading.Event()

    def act(item):
        if item == 1:
            assert second.wait(60)
        if item == 2:
            second.set()
        return 10 * item

    assert list(each(act, [1, 2, 3], 2)) == [10, 20, 30]
    assert list(each(act, [], 2)) == []


def test_after_an_error_nothing_more_is_begun():
    """What is under way is waited for, so that nobody meets it when it is tried again."""
    begun, ended, failed = [], [], threading.Event()

    def act(item):
        begun.append(item)
        if item == 2:
            failed.set()
            raise ValueError("two")
        assert failed.wait(60)
        ended.append(item)

    with pytest.raises(ValueError, match="two"):
        list(each(act, range(1, 100), 2))
    assert 1 in ended
    assert sorted(begun) == sorted([2, *ended])
    assert len(begun) < 10


def test_where_no_thread_can_be_begun_it_is_done_at_once(monkeypatch):
    """As while the interpreter ends, from Python 3.12 on."""

    def refuse(self):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert list(each(lambda item: 10 * item, [1, 2, 3], 2)) == [10, 20, 30]
    with pytest.raises(ZeroDivisionError):
        list(each(lambda item: 1 // item, [1, 0], 2))
    assert bounded(lambda: None, 60)
    with pytest.raises(ZeroDivisionError):
        bounded(lambda: 1 // 0, 60)


def test_what_takes_too_long_is_left():
    """Its end is told, and so is its error."""
    free = threading.Event()
    try:
        assert not bounded(free.wait, 0.01)
    finally:
        free.set()
    assert bounded(lambda: None, 60)

    def time_out():
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        bounded(time_out, 60)


STUCK = """
import atexit, sys, threading
from concurrent.futures import ThreadPoolExecutor
from onward.system import threads
from train import __main__
for_ever = threading.Event()
{stuck}
def main(prog_name):
    print("done")
    {end}
__main__.main = main
threads.END_SECONDS = 0.1
__main__.console()
"""


@pytest.mark.parametrize(
    "stuck",
    [
        "ThreadPoolExecutor().submit(for_ever.wait)",
        "threading.Thread(target=for_ever.wait).start()",
        "atexit.register(for_ever.wait)",
    ],
)
@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(75)", 75),
        ("sys.exit('one line')", 1),
        ("return", 0),
        ("1 / 0", 1),
    ],
)
def test_the_process_ends_whatever_a_library_waits_for(stuck, end, code):
    """Its exit code is what it was to be, and all that it has said is there."""
    program = STUCK.format(stuck=stuck, end=end)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    assert done.stdout == "done\n"


def test_a_process_that_ends_by_itself_is_not_waited_for():
    """The bound costs nothing."""
    program = STUCK.format(stuck="atexit.register(print, 'as ever')", end="sys.exit(3)")
    program = program.replace("END_SECONDS = 0.1", "END_SECONDS = 300")
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "done\nas ever\n")
    assert time.monotonic() - started < 60
