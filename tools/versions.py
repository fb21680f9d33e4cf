"""Try the project with the lowest, or the newest, versions of what it needs; or pin other ones.

    python tools/versions.py lowest     the lowest version that each range of pyproject.toml has
    python tools/versions.py newest     the newest that are to be had
    python tools/versions.py pinned     those of constraints.txt
    python tools/versions.py servers    MLflow servers of older versions, with the client of here
    python tools/versions.py pin        no test: write constraints.txt, and conda.yaml's pins, anew

Each makes a virtual environment in `build/versions`, and runs the fast tests in it, or what stands
after `--`: the words are pytest's. `--python python3.12` chooses the Python, `--set mlflow==3.16.1`
one version. Whichever torch is meant is installed first, so that nothing else decides on it.
Of `servers` it chooses another one than 2.22.0 and 3.1.0. `pin` keeps what is pinned, but for what
`--set` says and what must change with it; with `--all` it takes the newest of everything but torch.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
CONDA = ROOT / "conda.yaml"
HEAD = """\
# Exact versions, also of what the requirements in pyproject.toml need themselves: make and CI
# install by them. Written by `make pin`; conda.yaml has those of the requirements.
"""
SERVERS = ("2.22.0", "3.1.0")
OF_CUDA = re.compile(r"nvidia-(?!ml-py)|cuda-|triton$")  # what a build of torch chooses for itself


def project() -> dict:
    """Return the table `project` of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements() -> dict[str, Requirement]:
    """Return what the program needs, by name."""
    found = map(Requirement, project()["dependencies"])
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def pins(text: str) -> dict[str, str]:
    """Return the versions in the lines name==version of a text, by name."""
    found = re.findall(r"^(?:\s*- )?([\w.-]+)==([\w.+!-]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def lowest() -> dict[str, str]:
    """Return the lower end of each range, by name."""
    found = {}
    for name, requirement in requirements().items():
        [found[name]] = [s.version for s in requirement.specifier if s.operator == ">="]
    return found


def make_environment(folder: Path, python: str, versions: dict[str, str], extra: str) -> Path:
    """Make a virtual environment with the project, and return its Python.

    Args:
        folder: Where.
        python: The Python to make it with.
        versions: Exact versions, by name; of what is not in it pip chooses the newest.
        extra: "[dev]", or "".
    """
    print(f"Installing into {folder} (takes minutes) ...", flush=True)
    run = subprocess.run
    run([python, "-m", "venv", "--clear", folder], check=True)
    python, constraints = str(folder / "bin" / "python"), folder / "constraints.txt"
    constraints.write_text("".join(f"{name}=={v}\n" for name, v in sorted(versions.items())))
    pip = [python, "-m", "pip", "install", "--quiet", "-c", constraints]
    run([*pip, "torch", "setuptools"], check=True)
    run([*pip, "--no-build-isolation", "-e", f"{ROOT}{extra}"], check=True)
    run([python, "-m", "pip", "check"], check=True)
    return Path(python)


def installed(python: Path) -> dict[str, str]:
    """Return the versions of all that is installed, but for this project and pip."""
    command = [python, "-m", "pip", "list", "--format", "json", "--exclude-editable"]
    listed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    found = {canonicalize_name(one["name"]): one["version"].partition("+")[0] for one in listed}
    return {n: v for n, v in sorted(found.items()) if n != "pip" and not OF_CUDA.match(n)}


def write_pins(found: dict[str, str]) -> None:
    """Write constraints.txt, and the same versions of the requirements into conda.yaml."""
    lines = [f"{name}=={version}\n" for name, version in found.items()]
    CONSTRAINTS.write_text(HEAD + "".join(lines))
    text = CONDA.read_text()
    head = text[: text.index("  - pip:\n")]
    CONDA.write_text(
        head + "  - pip:\n" + "".join(f"      - {name}=={found[name]}\n" for name in requirements())
    )


def test(python: Path, which: str, words: list[str]) -> int:
    """Run tests in an environment, after telling what is in it; return pytest's exit code."""
    found = installed(python)
    shown = " ".join(f"{name}=={found[name]}" for name in requirements())
    version = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout
    print(f"{which}: {version.strip()}, {shown}", flush=True)
    words = words or ["-q", "-n", "2", "-m", "not slow"]
    # Those that compare with constraints.txt are about the pinned versions.
    env = {**os.environ, "TRIED_VERSIONS": which}
    env.pop("PYTHONPATH", None)
    code = subprocess.run([python, "-m", "pytest", *words], cwd=ROOT, env=env).returncode
    print(f"{which}: {'passed' if code == 0 else 'FAILED'} with {version.strip()}, {shown}")
    return code


def test_servers(python: str, versions: list[str]) -> int:
    """Run the main job against a server of each version; return the number of those that failed."""
    num_failed = 0
    for version in versions:
        folder = ROOT / "build" / "versions" / f"server-{version}"
        if not (folder / "bin" / "mlflow").exists():
            print(f"Installing into {folder} (takes minutes) ...", flush=True)
            subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
            pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
            # These were made before SQLAlchemy 2.1, which no longer has what they import.
            subprocess.run([*pip, f"mlflow=={version}", "sqlalchemy<2.1"], check=True)
        env = {**os.environ, "SERVER_BIN": str(folder / "bin"), "PYTHONPATH": str(ROOT)}
        words = [sys.executable, "-m", "pytest", "-q", "-s", "tests/contract/server_versions.py"]
        failed = subprocess.run(words, cwd=ROOT, env=env).returncode != 0
        num_failed += failed
        print(f"MLflow server {version}: {'FAILED' if failed else 'passed'}", flush=True)
    return num_failed


def main() -> int:
    """Do what the command line says; return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", choices=["lowest", "newest", "pinned", "pin", "servers"])
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--set", action="append", default=[], metavar="NAME==VERSION")
    parser.add_argument("--all", action="store_true")
    own, words = sys.argv[1:], []
    if "--" in own:
        own, words = own[: own.index("--")], own[own.index("--") + 1 :]
    given = parser.parse_args(own)
    if given.which == "servers":
        chosen = pins("\n".join(given.set)).get("mlflow")
        return test_servers(given.python, [chosen] if chosen else list(SERVERS))
    pinned = pins(CONSTRAINTS.read_text())
    tools = {canonicalize_name(Requirement(r).name) for r in dev_requirements()}
    if given.which == "lowest":
        versions = {n: v for n, v in pinned.items() if n in tools} | lowest()
    elif given.which == "newest":
        versions = {n: v for n, v in pinned.items() if n in tools}
    elif given.which == "pin" and given.all:
        versions = {"torch": pinned["torch"]}
    else:
        versions = pinned
    versions |= pins("\n".join(given.set))
    folder = ROOT / "build" / "versions" / f"{given.which}-{Path(given.python).name}"
    python = make_environment(folder, given.python, versions, "[dev]")
    if given.which == "pin":
        write_pins(installed(python))
        return 0
    return test(python, given.which, words)


def dev_requirements() -> list[str]:
    """Return what the development of the project needs."""
    return project()["optional-dependencies"]["dev"]


if __name__ == "__main__":
    sys.exit(main())
