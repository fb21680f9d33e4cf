"""This process and its machine: environment variables, folders, threads, versions, code.

The only module that reads or sets `os.environ`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import math
import os
import platform
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from onward.errors import UsageError
from onward.system import git, hardware
from onward.system.files import require_own
from onward.system.overrides import BOUNDED, FORCED
from onward.words.language import _
from onward.words.shell import quoted

log = logging.getLogger(__name__)

MIN_KEY_BYTES, MAX_KEY_BYTES = 16, 1 << 16  # of a checkpoint_key
PACKAGES = ("torch", "numpy", "mlflow", "scipy", "onward")
_WORK_PER_THREAD = 2**27  # weights times samples of a step: some 10 ms
_PREFIX = "ONWARD_"  # of variables that stand for options
LIVES_FILE, LAUNCHER = "_ONWARD_LIVES", "_ONWARD_LAUNCHER"  # set by `onward launch`
_STARTED = time.monotonic()  # this process, but for some milliseconds


def prepare_process() -> None:
    """Set what must be set before torch and mlflow are imported.

    Idle OpenMP threads sleep instead of spinning (on a loaded machine spinning costs tens of
    seconds an epoch), and CUDA's sums have a fixed order. What the user set of these stays. Of
    MLflow's settings those stay that leave its calls what is relied on: synchronous, tried again
    within bounds, and without a report to MLflow's makers.
    """
    for name, value in {
        "OMP_WAIT_POLICY": "PASSIVE",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)
    for name, forced in FORCED.items():
        _override(name, forced)
    for name, (low, high, default) in BOUNDED.items():
        if not _is_between(os.environ.get(name), low, high):
            _override(name, default)


def _is_between(text: str | None, low: float, high: float) -> bool:
    """Tell whether a variable is a whole number within bounds, as MLflow reads it."""
    try:
        return text is not None and low <= int(text) <= high
    except ValueError:
        return False


def _override(name: str, value: str | None) -> None:
    """Set a variable, or remove it; what the user had set is told to whoever debugs."""
    before = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
    if before not in (None, value):
        log.debug("%s=%s of the environment is not used, but %s", name, before, value)


class Ranks(NamedTuple):
    """What torchrun, or the like, tells a process that it starts with others.

    Args:
        rank: The number of this process.
        size: How many there are, on all machines.
        local_rank: The number of this process on its machine.
        life: How often the agent has started them anew.
        has_agent: Whether there is one, that sends its signals on and ends them all together.
        lives_file: Where one life tells the next, on rank 0's machine, what to go on with.
        launcher: The words before the script that start all of them again; none: not known.
        local_size: How many there are on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    life: int = 0
    has_agent: bool = False
    lives_file: str = ""
    launcher: tuple[str, ...] = ()
    local_size: int = 1


def ranks() -> Ranks:
    """Return what the environment says of this process among others that train with it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT", "LOCAL_WORLD_SIZE")
    texts = [os.environ.get(name, "") for name in names]
    rank, size, local_rank, life, local_size = (
        int(text) if text.isdecimal() else 0 for text in texts
    )
    has_agent = "TORCHELASTIC_RUN_ID" in os.environ
    if size > 1 and not rank < size:
        told = _("WORLD_SIZE={size} and RANK={rank}: ranks are numbered from 0")
        raise UsageError(told.format(size=size, rank=rank))
    lives_file, launcher = (os.environ.get(name, "") for name in (LIVES_FILE, LAUNCHER))
    if has_agent and not lives_file:
        job = hashlib.sha256(os.environ["TORCHELASTIC_RUN_ID"].encode()).hexdigest()[:16]
        lives_file = str(home() / "lives" / f"{job}.json")
    return Ranks(
        rank, max(size, 1), local_rank, life, has_agent, lives_file, tuple(launcher.split()),
        max(local_size, 1),
    )  # fmt: skip


def prepare_ranks(num_ranks: int, lives: Path, signals: str) -> None:
    """Set what processes of this one that train together find, and the agent that starts them.

    Args:
        num_ranks: How many there are; each gets its share of the cores, unless the user set it.
        lives: By which each life of them knows the run of the one before.
        signals: Those that are sent on to them, a list with commas.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_cpus() // num_ranks)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost peer is told in one line
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = signals
    os.environ[LIVES_FILE] = str(lives)
    os.environ[LAUNCHER] = f"onward launch --nproc {num_ranks}"


def require_one_process() -> None:
    """Refuse to be one of several processes that torchrun, or the like, has started.

    Raises:
        UsageError: Each of them would train a run of its own.
    """
    size = ranks().size
    if size > 1:
        raise UsageError(
            _("WORLD_SIZE={number}: torchrun, or the like, starts this program {number} times, and "
              "each would train a run of its own: a Resumable is for one process so far. Start it "
              "once, or bring the loop to onward.open_run, which is for any number")
            .format(number=size)
        )  # fmt: skip


def expect_small_downloads() -> None:
    """Save MLflow the call by which it asks the server whether it can download in parts."""
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")


def seconds_left(max_minutes: float) -> float:
    """Return what is left of the minutes that this process may run; ∞ for 0."""
    if not max_minutes:
        return math.inf
    return 60 * max_minutes - (time.monotonic() - _STARTED)


def languages() -> list[str]:
    """Return the languages to speak, the dearest first, as gettext would choose them.

    The locale is that of LC_ALL, LC_MESSAGES or LANG, whichever is set first. LANGUAGE, a list
    with colons, stands in its place, unless the locale is C or POSIX, or none is set.
    """
    settings = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    locale = next(filter(None, settings), "C")
    if locale.split(".")[0] in ("C", "POSIX"):
        return []
    listed = os.environ.get("LANGUAGE", "").split(":")
    return [language for language in listed if language] or [locale]


def home() -> Path:
    """Return TRAIN_HOME: where the data cache and the spool live; not created here.

    Default: `resumable-train` in the user's cache folder. It is never the working directory,
    which under `mlflow run` of a git URI is gone after the run.

    Raises:
        UsageError: Others may write to it, and so to what is trained.
    """
    chosen = os.environ.get("TRAIN_HOME") or os.environ.get("ONWARD_HOME")
    if chosen:
        folder = Path(chosen).expanduser().absolute()
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = Path(cache).expanduser().absolute() / "onward"
    require_own(folder / "runs")
    require_own(folder / "data")
    # A volume is as whoever mounted it made it, often writable for a group; what is in it is ours.
    if not (folder.is_mount() and folder.stat().st_uid == 0):
        require_own(folder)
    return folder


def run_prefix(tracking_uri: str) -> str:
    """Return how the names of the folders begin that are of runs of that server."""
    server = tracking_uri.rstrip("/").lower().replace("://localhost", "://127.0.0.1")
    return f"{hashlib.sha256(server.encode()).hexdigest()[:12]}-"


def run_folder(tracking_uri: str, run_id: str) -> Path:
    """Return this disk's folder for the run: what is on its way to the store, or stays here.

    Args:
        tracking_uri: The server.
        run_id: The run, as a `RunRecord` has it: checked.

    Raises:
        UsageError: Others may write to it.
    """
    folder = home() / "runs" / f"{run_prefix(tracking_uri)}{run_id}"
    require_own(folder)
    return folder


def set_checkpoint_key(path: str) -> None:
    """Let the whole process use the key in this file."""
    os.environ["TRAIN_CHECKPOINT_KEY"] = path


def checkpoint_key() -> bytes | None:
    """Return the key by which checkpoints are signed, None if none is given.

    Raises:
        UsageError: Its file cannot be read, or holds none.
    """
    path = os.environ.get("TRAIN_CHECKPOINT_KEY")
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            key = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise UsageError(
            _("checkpoint_key='{path}' cannot be read: {reason}").format(
                path=path, reason=error.strerror or error
            )
        ) from error
    if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise UsageError(
            _("checkpoint_key='{path}' is no key: it has {num_bytes} bytes, and {least} to {most} "
              "are needed. `{command}` makes one")
            .format(
                path=path, num_bytes=len(key), least=MIN_KEY_BYTES, most=MAX_KEY_BYTES,
                command=f"head -c 32 /dev/urandom > {quoted(path)}",
            )
        )  # fmt: skip
    return key


def option_texts() -> dict[str, str]:
    """Return what ONWARD_ variables say of options: name to text."""
    names = (name for name in os.environ if name.startswith(_PREFIX))
    found = {name.removeprefix(_PREFIX).lower(): os.environ[name] for name in names}
    return {name: text for name, text in found.items() if name != "home"}


def launched_run_id() -> str | None:
    """Return the run that `mlflow run` made for this process, or None."""
    return os.environ.get("MLFLOW_RUN_ID") or None


def run_name() -> str | None:
    """Return the name that MLflow's variable chooses for a new run, or None."""
    return os.environ.get("MLFLOW_RUN_NAME") or None


def experiment() -> tuple[str | None, str | None]:
    """Return the (ID, name) of the experiment that MLflow's variables choose."""
    get = os.environ.get
    return get("MLFLOW_EXPERIMENT_ID") or None, get("MLFLOW_EXPERIMENT_NAME") or None


def tunes_malloc() -> bool:
    """Tell whether whoever started this process has set what glibc's malloc does."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return "glibc.malloc" in tunables or any(name.startswith("MALLOC_") for name in os.environ)


def hostname() -> str:
    """Return this machine's name."""
    return socket.gethostname()


def with_variables(**values: str) -> dict[str, str]:
    """Return this process's environment with `values` set, for another one."""
    return {**os.environ, **values}


def has_screen() -> bool:
    """Tell whether a browser can be opened without taking the terminal over."""
    named = any(os.environ.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"))
    return named or sys.platform in ("darwin", "win32")


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return package name to version, Python included; not of what is not installed.

    Of torch also which build it is, as in 2.13.0+cu130.
    """
    found = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # run from a folder
            found[name] = importlib.metadata.version(name)
    if "torch" in found:
        import torch

        # What pip knows of PyPI's wheels does not name the build: they may not have such a version.
        found["torch"] = str(torch.__version__)
    return found


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
        told = _("device='{name}' cannot be used here ({found}): try auto")
        raise UsageError(told.format(name=name, found=found)) from error
    return name


def choose_threads(num_weights: int, batch_size: int, available: int) -> int:
    """Return the number of CPU threads worth using: 1 for small models, all for large ones.

    On an idle machine a second thread is up to 1.9 times as fast, on a busy one a fifth as fast
    or worse: the threads wait for each other several hundred times a step. So it has to pay.

    Args:
        num_weights: Of the model.
        batch_size: Samples per step.
        available: Number of cores this process may use, at least 1.
    """
    return max(1, min(available, num_weights * batch_size // _WORK_PER_THREAD))


def set_threads(num_threads: int) -> None:
    """Let torch compute with `num_threads` CPU threads, and in an order that repeats."""
    import torch

    torch.set_num_threads(num_threads)
    if "torch._inductor" in sys.modules:
        torch.use_deterministic_algorithms(True, warn_only=True)
    else:  # does the same, without importing torch's compiler, which takes more than a second
        os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")  # for whoever compiles later
        torch.set_deterministic_debug_mode("warn")
    # Else each tensor that an operation makes is filled with NaN first, a hundredth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def describe(device: str, threads: int, num_ranks: int = 1) -> dict[str, object]:
    """Return what a checkpoint says of the machine it was made on.

    Args:
        device: Where torch computes.
        threads: With how many CPU threads.
        num_ranks: How many processes train together.
    """
    import torch

    is_gpu = device.startswith("cuda")
    # A virtual machine's processor of the same name may have fewer of them: other sums.
    instructions = torch.backends.cpu.get_cpu_capability()
    on_cpu = {"device": f"{device} ({hardware.cpu_name()})", "instructions": instructions}
    return {
        "host": hostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        **({"device": torch.cuda.get_device_name(device)} if is_gpu else on_cpu),
        "threads": threads,
        "ranks": num_ranks,
        "cuda": torch.version.cuda if is_gpu else None,
        "code": git.code_version(),
        "versions": versions(),
    }
