"""Each script of docs/frameworks.md, stopped inside an epoch and resumed, ends the same."""

import re
import runpy
from pathlib import Path

import pytest
from support import ROOT, curves, differences
from torch.optim.optimizer import register_optimizer_step_post_hook

PAGE = (ROOT / "docs" / "frameworks.md").read_text()
SCRIPTS = re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", PAGE, re.M | re.S)
NUM_STEPS = 60  # of each


class Stopped(Exception):
    """Stands for whatever ends a process."""


def run(text, die_after=None):
    """Run a script as `python` does; return what its model and its optimizer are in the end."""
    Path("script.py").write_text(text)
    done = 0

    def count(*_):
        nonlocal done
        done += 1
        if done == die_after:
            raise Stopped

    handle = register_optimizer_step_post_hook(count)
    try:
        names = runpy.run_path("script.py", run_name="__main__")
    finally:
        handle.remove()
    return done, names["model"].state_dict(), names["optimizer"].state_dict()


def test_every_framework_has_a_script():
    """They are found on the page."""
    assert [title for title, _ in SCRIPTS] == re.findall(r"^## (.*)$", PAGE, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
@pytest.mark.parametrize(("title", "text"), SCRIPTS, ids=[title for title, _ in SCRIPTS])
def test_stopped_and_resumed_it_ends_the_same(title, text, tracking, monkeypatch):
    """Weights, moments and curve are those of the script that was not stopped."""
    for module in re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE):
        pytest.importorskip(module)
    for name, value in {"UPLOAD": "sync", "CHECKPOINT_STEPS": "4", "LOG_MODEL": "false"}.items():
        monkeypatch.setenv(f"ONWARD_{name}", value)
    number, *straight = run(text)
    assert number == NUM_STEPS
    with pytest.raises(Stopped):
        run(text, die_after=25)
    stopped, whole = tracking.client.search_runs(["0"], order_by=["attributes.start_time DESC"])
    monkeypatch.setenv("ONWARD_RESUME_RUN", stopped.info.run_id)
    with pytest.raises(Stopped):
        run(text, die_after=10)
    number, *resumed = run(text)
    assert number < NUM_STEPS - 24
    assert differences(straight, resumed) == []
    assert curves(tracking.uri, stopped.info.run_id) == curves(tracking.uri, whole.info.run_id)
