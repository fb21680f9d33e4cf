"""docs/scale.md says what `onward plan` computes and what the program is.

`python tools/scale.py` writes its tables anew.
"""

import json
import re
import sys

import pytest
from click.testing import CliRunner
from support import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import scale

from onward.attempts import heartbeat
from onward.checkpoint.manifest import FileEntry, Manifest
from onward.cli import main as onward_cli
from onward.metrics import History, Point
from onward.run import rng

TEXT = scale.PAGE.read_text()


def test_the_tables_are_those_that_the_functions_make():
    """No number of them is written by hand."""
    assert scale.written(TEXT) == TEXT, "run `python tools/scale.py` to write them anew"
    assert all(scale.TABLES[name]() in TEXT for name in scale.TABLES)


def test_a_row_is_what_the_command_says():
    """The plan of a case is that of `onward plan` with the same numbers."""
    case = next(c for c in scale.CASES if (c.model.name, c.ranks) == ("70 B", 256))
    cluster = case.plan.cluster
    words = ["--nodes", "32", "--params", "70B", "--step_seconds", str(cluster.step_seconds)]
    words += ["--commit_seconds", str(cluster.commit_seconds), "--json"]
    done = CliRunner().invoke(onward_cli.main, ["plan", *words])
    assert json.loads(done.stdout) == {
        **case.plan.to_dict(), "simulated_lost": None, "simulated_error": None
    }  # fmt: skip


def test_each_constant_says_where_it_is_from_and_shows_its_value():
    """Its number begins as what is computed with, in whatever unit."""
    for constant in scale.CONSTANTS.values():
        assert constant.source in (scale.HERE, scale.READ, scale.TRIAL, scale.ASSUMED)
        shown = re.match(r"[\d.,]+", constant.shown)[0].replace(",", "")
        digits = f"{constant.value:.12e}".partition("e")[0].replace(".", "")
        significant = shown.replace(".", "").strip("0")
        assert abs(int(digits[: len(significant)]) - int(significant)) <= 1, constant


def test_what_can_be_counted_is_as_the_constants_say(tmp_path, monkeypatch):
    """Bytes of a manifest's file, a value and a random state; requests of a heartbeat."""
    import torch

    def manifest(number):
        files = [FileEntry(f"shard-{i:05}.pth/part-00000", 2**28, "a" * 64) for i in range(number)]
        facts = {"epoch": 1, "step": 1, "attempt": 1, "kept": True, "metrics": {}}
        return len(Manifest(**facts, created="2026-01-01", files=tuple(files)).to_json())

    assert (manifest(900) - manifest(0)) / 900 == pytest.approx(scale.value("entry"), rel=0.02)
    history = History(Point("loss", i, i, 0.5) for i in range(1000))
    num_bytes = sum(t.numel() * t.element_size() for t in history.state_dict().values())
    assert num_bytes == 1000 * scale.value("value")
    torch.save(rng.capture(), tmp_path / "rng.pth")
    saved = (tmp_path / "rng.pth").stat().st_size
    assert saved == pytest.approx(scale.value("random"), rel=0.1)


class Asked:
    """An attempt and its server, which count what they are asked for."""

    def __init__(self):
        self.number, self.run_id, self.child_id, self.calls = 1, "r", "c", 0
        self.tracking = self

    def _count(self, *_):
        self.calls += 1

    check_lease = set_tags = log_points = _count


def test_a_heartbeat_is_so_many_requests():
    """The lease, the beat, and what the machine does."""
    asked = Asked()
    beats = heartbeat.Heartbeat(asked, dict, lambda error: None)
    beats._sample()
    beats._beat()
    assert asked.calls == scale.value("beat")


def test_the_sums_of_the_text_are_those_of_the_tables():
    """What the prose takes from a table is in it."""
    by = {(case.model.name, case.ranks): case for case in scale.CASES}
    words = re.sub(r"\s+", " ", TEXT)
    largest = by["400 B", 1024]
    assert f"{largest.num_files:,} files, 3 MB" in words
    assert f"at most {100 * max(c.plan.busy for c in scale.CASES if c.fits):.0f} %" in words
    for name, ranks, seconds in (("1 B", 1024, "7.2"), ("8 B", 1024, "11"), ("8 B", 256, "8")):
        assert f"{by[name, ranks].plan.cluster.commit:.2g}" == seconds
        assert re.search(rf"of {seconds} (s|and)", words)
    assert f"{by['1 B', 1024].metric_rate:.0f} values a second" in words
    steps = {(c.model.name, c.plan.steps) for c in scale.CASES if c.fits}
    assert len(steps) == len(scale.MODELS), "the interval in steps depends on the ranks"
    random_states = by["8 B", 256].ranks * scale.value("random")
    assert f"{random_states / 1e6:.0f} MB in 24 ms" in words
