"""The program's own code: its commit, and what was changed since."""

from __future__ import annotations

import getpass
import hashlib
import os
import subprocess
from functools import cache
from pathlib import Path

from onward.words.redact import redact_code

# Of such a file, or one in such a folder, nothing is copied into a run's artifacts.
SECRET_FILES = (
    ".env*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.tfvars",
    "*.tfstate", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*secret*", "*credential*",
    "*password*", "*token*", ".netrc", ".npmrc", ".pypirc", ".htpasswd", "kubeconfig*", ".aws",
    ".ssh",
)  # fmt: skip
MAX_DIFF_BYTES = 1 << 20
# Plain: a program that the user's configuration names may decrypt what it shows.
_DIFF = ("diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color", "--submodule=short")
PACKAGES = ("onward", "train")
# What makes the program, beside its packages; nothing else of a repository is anybody's business.
SOURCE_FILES = ("MLproject", "conda.yaml", "constraints.txt", "pyproject.toml")


@cache
def code_version() -> str | None:
    """Return the program's git commit, with "+changes" and a hash if files differ, or None.

    Only the program's own files count, and what git does not know is no change.
    """
    here = Path(__file__)
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)  # not somebody else's
        commit = _git(here.parent, "rev-parse", "HEAD").decode().strip()
        changes = _git(here.parents[2], *_DIFF, "--", *PACKAGES, *SOURCE_FILES)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + (f"+changes.{hashlib.sha256(changes).hexdigest()[:8]}" if changes else "")


@cache
def code_diff() -> bytes:
    """Return what was changed in the program's own files since their commit; b"" if nothing was.

    Of a file that may hold a secret nothing is returned, nor of one that git does not know; what
    looks like a secret in the others is replaced.
    """
    if "+changes" not in (code_version() or ""):
        return b""
    hidden = [
        f":(exclude,icase,glob)**/{name}{inside}" for name in SECRET_FILES for inside in ("", "/**")
    ]
    try:
        found = _git(Path(__file__).parents[2], *_DIFF, "--", *PACKAGES, *SOURCE_FILES, *hidden)
    except (OSError, subprocess.SubprocessError):
        return b""
    cut = b"\n... cut: the rest is left out\n" if len(found) > MAX_DIFF_BYTES else b""
    text = found[:MAX_DIFF_BYTES].decode("utf-8", "surrogateescape")
    return redact_code(text).encode("utf-8", "surrogateescape") + cut


def _git(folder: Path, *arguments: str) -> bytes:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, check=True, timeout=10
    ).stdout


def source_tags(name: str = "train") -> dict[str, str]:
    """Return MLflow's tags for a run that `mlflow run` did not make: who, what, which commit.

    Args:
        name: What the program is called.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user that has no name
        user = str(os.getuid())
    tags = {
        "mlflow.source.name": name,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": user,
    }
    commit = code_version()
    return tags if commit is None else tags | {"mlflow.source.git.commit": commit[:40]}
