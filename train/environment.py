"""This process and its machine: environment variables, folders, threads, versions, code.

The only module that reads or sets `os.environ`.
"""

from __future__ import annotations

import getpass
import hashlib
import importlib.metadata
import os
import platform
import re
import socket
import subprocess
from functools import cache
from pathlib import Path

from train.errors import UsageError

PACKAGES = ("torch", "numpy", "mlflow", "scipy", "resumable-train")


def prepare_process() -> None:
    """Set what must be set before torch and mlflow are imported; what the user set stays.

    Idle OpenMP threads sleep instead of spinning (on a loaded machine spinning costs tens of
    seconds an epoch), CUDA's sums have a fixed order, a server that does not answer is reported
    after seconds, not after minutes, and MLflow's retries draw no number from the global
    generator, which belongs to the training.
    """
    for name, value in {
        "OMP_WAIT_POLICY": "PASSIVE",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)


def expect_small_downloads() -> None:
    """Save MLflow the call by which it asks the server whether it can download in parts."""
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")


def home() -> Path:
    """Return TRAIN_HOME: where the data cache and the spool live; not created here.

    Default: `resumable-train` in the user's cache folder. It is never the working directory,
    which under `mlflow run` of a git URI is gone after the run.
    """
    chosen = os.environ.get("TRAIN_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "resumable-train"


def run_folder(tracking_uri: str, run_id: str) -> Path:
    """Return this disk's folder for the run: what is on its way to the store, or stays here."""
    server = tracking_uri.rstrip("/").lower().replace("://localhost", "://127.0.0.1")
    key = hashlib.sha256(server.encode()).hexdigest()[:12]
    return home() / "runs" / f"{key}-{run_id}"


def launched_run_id() -> str | None:
    """Return the run that `mlflow run` made for this process, or None."""
    return os.environ.get("MLFLOW_RUN_ID") or None


def experiment() -> tuple[str | None, str | None]:
    """Return the (ID, name) of the experiment that MLflow's variables choose."""
    return (
        os.environ.get("MLFLOW_EXPERIMENT_ID") or None,
        os.environ.get("MLFLOW_EXPERIMENT_NAME") or None,
    )


def hostname() -> str:
    """Return this machine's name."""
    return socket.gethostname()


def redact(text: str) -> str:
    """Return `text` without the user name and password of any URL in it."""
    return re.sub(r"(\w+://)[^/\s]+@", r"\1***@", text)


def versions() -> dict[str, str]:
    """Return package name to version, Python included."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # running from a folder, not installed
            continue
    return found


@cache
def code_version() -> str | None:
    """Return the git commit of this program, with "+changes" if files differ, or None."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not somebody else's repository
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def source_tags() -> dict[str, str]:
    """Return MLflow's tags for a run that `mlflow run` did not make: who, what, which commit."""
    tags = {
        "mlflow.source.name": "python -m train",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": getpass.getuser(),
    }
    commit = code_version()
    return tags if commit is None else tags | {"mlflow.source.git.commit": commit[:40]}


def num_cpus() -> int:
    """Return how many cores this process may use, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(name: str) -> str:
    """Return the device of that name, or for "auto" the first GPU, or the CPU.

    Raises:
        UsageError: There is no such device here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        found = " ".join(str(error).split())[:100]
        raise UsageError(f"device='{name}' cannot be used here ({found}): try auto") from error
    return name


def set_threads(num_threads: int) -> None:
    """Let torch compute with `num_threads` CPU threads, and in an order that repeats."""
    import torch

    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True, warn_only=True)


def describe() -> dict[str, object]:
    """Return what a checkpoint says of the machine it was made on."""
    return {
        "host": hostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "code": code_version(),
        "versions": versions(),
    }
