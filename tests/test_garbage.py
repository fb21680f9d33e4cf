"""Python searches for garbage seldom while it imports, and as ever in a process of others."""

import contextlib
import gc
import subprocess
import sys

import pytest

from onward.system import garbage


@pytest.fixture
def frozen(monkeypatch):
    """Whether the process was told to search no more."""
    told = []
    monkeypatch.setattr(gc, "freeze", lambda: told.append("frozen"))
    return told


def test_it_searches_as_before_once_all_is_imported():
    """The owner of the process may have chosen how often; an import that fails changes nothing."""
    before = gc.get_threshold()
    try:
        gc.set_threshold(123, 4, 5)
        with contextlib.suppress(ImportError), garbage.seldom_searched():
            assert gc.get_threshold()[0] > 10_000
            raise ImportError
        assert gc.get_threshold() == (123, 4, 5)
    finally:
        gc.set_threshold(*before)


def test_a_program_that_imports_us_keeps_its_garbage_collected(frozen, monkeypatch):
    """Only a command of ours is all ours."""
    garbage.stop_searching()
    assert frozen == []
    monkeypatch.setattr(garbage, "_is_own", False)
    garbage.own_process()
    garbage.stop_searching()
    assert frozen == ["frozen"]


def test_a_command_ends_without_a_search():
    """As a process of its own: what it had imported is set aside when it ends."""
    code = """
import atexit, gc, sys
from onward.__main__ import console
atexit.register(lambda: print(gc.get_freeze_count() > 10_000))
sys.argv = ["onward", "--help"]
console()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "True"


def test_what_was_imported_is_old_at_once(monkeypatch):
    """Else the next search goes through all of it, in the middle of training."""
    with garbage.seldom_searched():
        made = [[]]
    assert any(one is made for one in gc.get_objects(generation=2))
    assert gc.get_freeze_count() == 0
    monkeypatch.setattr(gc, "get_freeze_count", lambda: 1)
    with garbage.seldom_searched():
        later = [[]]
    assert not any(one is later for one in gc.get_objects(generation=2)), "somebody else's stay"
