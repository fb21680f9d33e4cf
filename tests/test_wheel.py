"""The package as people install it: the sdist, the wheel built from it, and its commands."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile

import pytest
from support import ROOT, SMALL, client, environment, write_table

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]
SCRIPTS = list(PROJECT["scripts"])  # each has the commands `--version` and `list`
PACKAGES = ("onward", "train")
SHORT = ("--target", "price", "--epochs", "2", *SMALL)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build the sdist, and the wheel from it; return their folder.

    From a copy, for setuptools leaves its own files beside the sources.
    """
    top = tmp_path_factory.mktemp("built")
    source = top / "source"
    source.mkdir()
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in (*PACKAGES, "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", top / "dist", source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return top / "dist"


@pytest.fixture(scope="module")
def wheel(built):
    """Return the path of the wheel."""
    [path] = built.glob("*.whl")
    return path


def pip(*words):
    """Run pip; return what it printed."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def new_environment(folder):
    """Make a virtual environment with nothing in it; return its folder of programs."""
    command = [sys.executable, "-m", "venv", "--without-pip", folder]
    subprocess.run(command, check=True)
    return folder / "bin"


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel into an environment that has only the requirements; return its programs.

    The requirements are those of this environment, which stand on the path without what the
    project's own installation put there: the sources of this folder are not to be found.
    """
    folder = tmp_path_factory.mktemp("installed") / "venv"
    programs = new_environment(folder)
    pip("--python", programs / "python", "install", "--no-deps", "--no-index", wheel)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


def run(programs, script, *words, cwd, uri=None, **more):
    """Run a console script as a user does."""
    env = environment(cwd / "home", uri, **more)
    del env["PYTHONPATH"]
    env["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
    command = [programs / script, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)


@pytest.fixture
def folder(tmp_path):
    """Return a folder to work in, which has modules of the user's that are named as our packages.

    They end whoever imports them.
    """
    for name in PACKAGES:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('these are mine')\n")
    return tmp_path


def test_the_wheel_holds_all_of_both_packages_and_nothing_else(wheel):
    """Every file of the packages, data, translations and marks of types included."""
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if not name.endswith("/")}
    info = f"onward-{VERSION}.dist-info/"
    assert wheel.name == f"onward-{VERSION}-py3-none-any.whl"
    ours = {name for name in found if not name.startswith(info)}
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()]
    expected = {
        path.relative_to(ROOT).as_posix() for path in files if path.parent.name != "__pycache__"
    }
    assert ours == expected
    assert {f"{name}/py.typed" for name in PACKAGES} <= ours
    assert f"{info}licenses/LICENSE" in found


def test_the_sdist_has_what_a_wheel_is_built_from(built):
    """No tests, which need the repository, and nothing of who built it."""
    with tarfile.open(built / f"onward-{VERSION}.tar.gz") as archive:
        found = {name.partition("/")[2].partition("/")[0] for name in archive.getnames()} - {""}
    assert found == {
        *PACKAGES, "onward.egg-info", "CHANGELOG.md", "LICENSE", "MANIFEST.in", "PKG-INFO",
        "README.md", "pyproject.toml", "setup.cfg",
    }  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_command_tells_the_version_of_the_package(installed, folder, script):
    """The one that pyproject.toml has."""
    done = run(installed, script, "--version", cwd=folder)
    assert (done.returncode, done.stdout) == (0, f"{script}, version {VERSION}\n"), done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_command_lists_runs_from_any_folder(installed, folder, tracking, script):
    """Also from one that holds a `train.py`: a console script looks for no modules there."""
    done = run(installed, script, "list", cwd=folder, uri=tracking.uri)
    assert done.returncode == 0, done.stdout + done.stderr


def check_training(programs, folder, uri):
    """Train on a small table by the console script; the run has the version of the package."""
    table = write_table(folder / "table.csv")
    done = run(programs, "train", "run", "--data", table, *SHORT, cwd=folder, uri=uri)
    assert done.returncode == 0, done.stdout + done.stderr
    [made] = client(uri).search_runs(["0"])
    assert made.info.status == "FINISHED"
    assert made.data.tags["train.version.onward"] == VERSION


def test_it_trains_from_any_folder(installed, folder, tracking):
    """Also from one that holds a `train.py`."""
    check_training(installed, folder, tracking.uri)


def test_the_messages_are_translated(installed, tmp_path):
    """The catalog is in the wheel, and is found."""
    done = run(installed, "train", "--help", cwd=tmp_path, LC_ALL="zh_CN.UTF-8")
    assert re.search(r"[\u4e00-\u9fff]", done.stdout), done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_it_installs_into_an_empty_environment(wheel, tmp_path):
    """From the registry, with all that it says it needs, in the versions of constraints.txt."""
    programs = new_environment(tmp_path / "venv")
    target = ("--python", programs / "python")
    pip(*target, "install", "--quiet", "--no-compile", "-c", ROOT / "constraints.txt", wheel)
    pip(*target, "check")
    work = tmp_path / "work"
    work.mkdir()
    uri = f"sqlite:///{work}/mlflow.db"
    for script in SCRIPTS:
        done = run(programs, script, "list", cwd=work, uri=uri)
        assert done.returncode == 0, done.stdout + done.stderr
    check_training(programs, work, uri)
