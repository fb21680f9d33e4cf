"""The files around the package agree with each other."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def conda():
    return yaml.safe_load((ROOT / "conda.yaml").read_text())


def test_conda_and_pyproject_pin_the_same_runtime_versions(project, conda):
    """Whichever file an environment is built from, it gets the same packages."""
    pip_pins = conda["dependencies"][-1]["pip"]
    differing = set(pip_pins) ^ set(project["dependencies"])
    assert not differing, f"only in one of conda.yaml and pyproject.toml: {sorted(differing)}"


def test_every_dependency_has_an_exact_version(project):
    """Every runtime and development dependency is pinned with `==`."""
    pins = project["dependencies"] + project["optional-dependencies"]["dev"]
    loose = [pin for pin in pins if not re.fullmatch(r"[a-z0-9_-]+==\d+(\.\d+)*", pin)]
    assert not loose, f"expected name==version, got: {loose}"


def test_conda_names_an_exact_python_that_the_project_accepts(project, conda):
    """MLflow's env managers `uv` and `virtualenv` build an exact Python that we support."""
    [python] = [pin for pin in conda["dependencies"] if str(pin).startswith("python=")]
    version = python.removeprefix("python=")
    assert re.fullmatch(r"\d+\.\d+\.\d+", version), f"expected python=X.Y.Z, got {python}"
    assert version in SpecifierSet(project["requires-python"])


def test_makefile_installs_the_pinned_torch_first(project):
    """The torch that the Makefile installs first is the one that pyproject.toml pins."""
    [torch] = [pin for pin in project["dependencies"] if pin.startswith("torch==")]
    installs = re.findall(r"pip install --quiet (.*)", (ROOT / "Makefile").read_text())
    assert installs[0] == torch, f"Makefile installs {installs[0]} first, pyproject pins {torch}"


def test_mlproject_declares_no_parameters():
    """The program sees only the options that were given, because MLflow knows no defaults."""
    mlproject = yaml.safe_load((ROOT / "MLproject").read_text())
    assert mlproject["conda_env"] == "conda.yaml"
    assert mlproject["entry_points"] == {"main": {"command": "python -m train run"}}


def test_changelog_leads_from_unreleased_down_to_older_versions(project):
    """The changelog opens with unreleased changes and knows no version above the project's."""
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    released = [Version(heading) for heading in headings[1:]]
    assert released == sorted(released, reverse=True), f"not newest first: {headings}"
    assert all(version <= Version(project["version"]) for version in released)
