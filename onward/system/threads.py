"""Threads that no end of the process waits for.

An executor's threads are joined when the interpreter ends: one that waits for a server which never
answers keeps the process alive for as long. Those here are daemons, and what a library left
running is given a few seconds.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from onward.system.garbage import own_process, stop_searching

END_SECONDS = 3.0  # that libraries may take to end, once all of ours has

T = TypeVar("T")
R = TypeVar("R")


def each(act: Callable[[T], R], items: Iterable[T], num_threads: int) -> Iterator[R]:
    """Yield `act(item)` of each item, in order, several at a time.

    After an error nothing more is begun, and what is under way is waited for; it is not after what
    stops the process, as Ctrl-C does.

    Raises:
        Exception: The first one, in the order of the items.
    """
    made: list[Future[R]] = []
    todo: deque[tuple[T, Future[R]]] = deque()
    for item in items:
        made.append(Future())
        todo.append((item, made[-1]))
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            try:
                item, result = todo.popleft()
            except IndexError:
                return
            try:
                result.set_result(act(item))
            except BaseException as error:  # raised again where it is waited for
                over.set()
                result.set_exception(error)

    threads = [_start(work) for _ in range(min(num_threads, len(made)))]
    try:
        for result in made:
            yield result.result()
    except Exception:  # of whatever kind `act` raises
        for thread in filter(None, threads):
            thread.join()
        raise
    finally:
        over.set()


def _start(work: Callable[[], object]) -> threading.Thread | None:
    """Do it in a thread; where none can be begun, do it here, which takes as long as it takes.

    That is so while the interpreter ends, from Python 3.12 on.
    """
    thread = threading.Thread(target=work, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        work()
        return None
    return thread


def bounded(act: Callable[[], object], seconds: float) -> bool:
    """Do it, and wait so long at most; return whether it is done.

    While the interpreter ends it may be waited for as long as it takes: see `_start`.

    Raises:
        BaseException: What it raised in that time.
    """
    done: Future[object] = Future()

    def work() -> None:
        try:
            done.set_result(act())
        except BaseException as error:  # raised again where it is waited for
            done.set_exception(error)

    _start(work)
    try:
        done.result(seconds)
    except TimeoutError:
        if not done.done():
            return False
        done.result()  # it was done right then, or raised one of its own
    return True


def act_after(thread: threading.Thread, act: Callable[[], object]) -> None:
    """Do it once a thread has ended: now, or in a thread that waits for it.

    While the interpreter ends there may be no such thread any more, and it is left undone.
    """

    def wait() -> None:
        thread.join()
        act()

    if not thread.is_alive():
        act()
        return
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=wait, daemon=True).start()


def end_within(seconds: float, code: Any) -> None:
    """Let the process end with the exit code `code` in that time, whatever still runs in it.

    The interpreter ends as ever, which joins the threads of libraries and calls what they have
    registered; only where that takes longer it is cut short.

    Args:
        seconds: The time.
        code: As `sys.exit` takes it.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # gone, or closed
            stream.flush()
    number = code if isinstance(code, int) else int(code is not None)

    def cut_short() -> None:
        time.sleep(seconds)
        os._exit(number & 0xFF)

    threading.Thread(target=cut_short, daemon=True).start()


def run_to_its_end(main: Callable[[], object]) -> None:
    """Run a command line as the whole of a process, which ends when it has done its work."""
    own_process()
    code: object = 1  # of a traceback
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code
        raise
    finally:
        stop_searching()
        end_within(END_SECONDS, code)
