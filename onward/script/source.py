"""The script itself: what it is called, what it says, and what of it has changed since."""

from __future__ import annotations

import difflib
import hashlib
import tempfile
from pathlib import Path

from onward.errors import StoreUnavailable, TooLarge
from onward.system import invocation
from onward.tracking.artifacts import Artifacts
from onward.words.redact import redact_code

MAX_CODE_BYTES = 1 << 20
CODE_FILE, PATCH_FILE = "script.py", "script.patch"  # in `code/` of an attempt


def script_name() -> str:
    """Return what the program is called that this process runs: a file's name, or "notebook"."""
    path = invocation.script_path()
    return path.name if path is not None else "notebook"


def script_code() -> str:
    """Return what the script says, without what looks like a secret; "" if that is not known."""
    path = invocation.script_path()
    try:
        if path is None or path.stat().st_size > MAX_CODE_BYTES:
            return ""
        return redact_code(path.read_text("utf-8", errors="replace"))
    except OSError:
        return ""


def digest_of(code: str) -> str:
    """Return the SHA-256 of a script's code, in hex; "" if it is not known."""
    return hashlib.sha256(code.encode()).hexdigest() if code else ""


def difference(artifacts: Artifacts, code: str) -> str:
    """Return how a script differs from the one that is stored with a run, as a patch."""
    lines = difflib.unified_diff(
        _stored(artifacts).splitlines(keepends=True), code.splitlines(keepends=True), "before",
        "now",
    )  # fmt: skip
    return "".join(lines)


def _stored(artifacts: Artifacts) -> str:
    with tempfile.TemporaryDirectory(prefix="train-") as folder:
        file = Path(folder) / CODE_FILE
        try:
            artifacts.download(f"code/{CODE_FILE}", file, MAX_CODE_BYTES)
            return file.read_text("utf-8", errors="replace")
        except (OSError, StoreUnavailable, TooLarge):  # all of it is new then
            return ""
