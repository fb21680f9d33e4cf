"""The files around the package agree with each other."""

import itertools
import os
import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def conda():
    return yaml.safe_load((ROOT / "conda.yaml").read_text())


@pytest.fixture(scope="module")
def constraints():
    """Return the versions of constraints.txt, by name."""
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if x[0] != "#"]
    found = dict(line.split("==") for line in lines)
    assert len(found) == len(lines)
    return found


def requirements(words):
    """Return requirements by name."""
    found = map(Requirement, words)
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def test_conda_names_the_versions_of_the_constraints(project, conda, constraints):
    """Whichever file an environment is built from, it gets the same packages."""
    expected = [f"{name}=={constraints[name]}" for name in requirements(project["dependencies"])]
    assert conda["dependencies"][-1]["pip"] == expected


def test_every_requirement_has_an_exact_version_in_its_range(project, constraints):
    """Runtime and development: the constraints name a version, and the range has it."""
    needed = requirements(project["dependencies"] + project["optional-dependencies"]["dev"])
    for name, requirement in needed.items():
        assert re.fullmatch(r"\d+(\.\d+)*", constraints[name]), name
        assert constraints[name] in requirement.specifier, requirement


def test_every_runtime_requirement_is_a_range_with_a_lower_end(project):
    """What is installed elsewhere need not be what the tests here run with, but was tried."""
    for name, requirement in requirements(project["dependencies"]).items():
        operators = [specifier.operator for specifier in requirement.specifier]
        assert sorted(operators) in (["<", ">="], [">="]), name


@pytest.mark.skipif("TRIED_VERSIONS" in os.environ, reason="of other versions than the pinned ones")
def test_nothing_is_installed_in_another_version_than_the_constraints_name(constraints):
    """Also of what the requirements need: an environment that is made next year is the same."""
    waiting, seen = ["onward"], {}
    extras = {"onward": {"dev"}}
    while waiting:
        name = waiting.pop()
        for requirement in map(Requirement, distribution(name).requires or []):
            environments = [{"extra": extra} for extra in extras.get(name, {""})]
            if requirement.marker and not any(map(requirement.marker.evaluate, environments)):
                continue
            needed = canonicalize_name(requirement.name)
            # What a CUDA build of torch needs, it names by exact versions itself.
            if needed not in seen and (name != "torch" or needed in constraints):
                seen[needed] = distribution(needed).version.partition("+")[0]
                waiting.append(needed)
    assert {name: constraints.get(name) for name in seen} == seen


def test_conda_names_an_exact_python_that_the_project_accepts(project, conda):
    """MLflow's env managers `uv` and `virtualenv` build an exact Python that we support."""
    [python] = [pin for pin in conda["dependencies"] if str(pin).startswith("python=")]
    version = python.removeprefix("python=")
    assert re.fullmatch(r"\d+\.\d+\.\d+", version), f"expected python=X.Y.Z, got {python}"
    assert version in SpecifierSet(project["requires-python"])


def test_makefile_installs_torch_first_and_all_by_the_constraints():
    """No other package decides which torch is fetched, and no version is written twice."""
    makefile = (ROOT / "Makefile").read_text()
    installed = re.findall(r"pip install --quiet -c constraints.txt (.*)", makefile)
    assert makefile.count("pip install") == len(installed) == 5
    peers, own = installed[:3], installed[3:]  # those of `make bench` have an environment too
    assert "torch" in own[0].split()
    assert own[1] == "--no-build-isolation -e '.[dev]'"
    assert peers[0] == own[0]
    assert peers[1] == "--no-build-isolation -e ."
    assert not re.search(r"==\d", makefile)


def test_the_build_takes_the_setuptools_that_is_installed(project):
    """The tests, and `make`, build without a network: the same range stands in both places."""
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())
    dev = requirements(project["optional-dependencies"]["dev"])
    assert requirements(whole["build-system"]["requires"])["setuptools"] == dev["setuptools"]


def test_each_test_runs_in_one_of_the_two_speeds():
    """`make test` leaves out just what `make contract` runs, and CI runs both."""
    makefile = (ROOT / "Makefile").read_text()
    fast, rest = re.findall(r"^\t\$\(BIN\)/pytest .*-m '(.*)' -rs$", makefile, re.MULTILINE)
    for is_slow, is_smoke in itertools.product([False, True], repeat=2):
        names = {"slow": is_slow, "smoke": is_smoke}
        runs = [eval(expression, names.copy()) for expression in (fast, rest)]
        assert sorted(runs) == [False, True], names
    ran = re.findall(r"^make (\w+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert ran == ["test", "contract"]


def test_a_smoke_test_is_a_slow_one():
    """`-m 'not slow'` stays the way to the fast ones alone."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text()
        if "mark.smoke" in text:
            assert "mark.slow" in text, path


def test_mlproject_declares_no_options():
    """The program sees only the options that were given, because MLflow knows no defaults."""
    mlproject = yaml.safe_load((ROOT / "MLproject").read_text())
    assert mlproject["conda_env"] == "conda.yaml"
    main, distributed = (mlproject["entry_points"][name] for name in ("main", "distributed"))
    assert main == {"command": "python -m train run"}
    assert list(distributed["parameters"]) == ["nproc"]  # which is no option of the run
    assert distributed["command"] == "python -m train launch --nproc {nproc} -- run"


def test_changelog_leads_from_unreleased_down_to_older_versions(project):
    """The changelog opens with unreleased changes and knows no version above the project's."""
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    released = [Version(heading) for heading in headings[1:]]
    assert released == sorted(released, reverse=True), f"not newest first: {headings}"
    assert all(version <= Version(project["version"]) for version in released)
