"""What the clients of servers and stores draw at random is none of what training draws."""

import importlib
import random
import sys
from types import ModuleType

import rich.style

import onward.terminal
from onward.tracking.artifacts import Artifacts
from onward.tracking.draws import draw_apart


def test_an_upload_to_google_leaves_training_its_random_numbers(tracking, tmp_path):
    """Its client draws the border between the parts of a request; MLflow draws names."""
    from google.cloud.storage._media import _upload

    Artifacts(str(tmp_path))
    before = random.getstate()
    assert len({_upload.get_boundary() for _ in range(9)}) == 9
    tracking.create_run("0", "", {})
    assert random.getstate() == before


def test_what_shows_the_progress_leaves_a_script_its_random_numbers(monkeypatch):
    """It is imported as a run is opened, when they may be seeded, and draws as it is imported."""
    here = rich.style
    monkeypatch.setattr(rich, "style", here)
    monkeypatch.delitem(sys.modules, "rich.style")
    before = random.getstate()
    importlib.reload(onward.terminal)
    assert sys.modules["rich.style"] is not here
    assert random.getstate() == before


def test_whatever_a_client_imports_of_it_is_its_own(monkeypatch):
    """The module and its functions; also of a module that only looks like one; others keep it."""
    client, other = ModuleType("urllib3.of_this_test"), ModuleType("of_somebody")
    for module in (client, other):
        module.random, module.randint, module.seeded = random, random.randint, random.Random(3)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "urllib3.no_module", object())
    seeded = client.seeded
    draw_apart()
    before = random.getstate()
    assert 0 <= client.random.random() < 1
    assert client.randint(3, 3) == 3
    assert random.getstate() == before
    assert client.seeded is seeded, "a generator of its own stays"
    assert client.random.Random is not None
    assert (other.random, other.randint) == (random, random.randint)
