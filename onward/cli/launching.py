"""The ranks of one machine, started together, and anew after a death: torchrun's agent in a loop.

The agent by itself makes every exit code of its workers a 1 and starts them anew on all of them,
also where a signal asked to stop; and with its store, which outlives them, new workers meet what
the old ones said.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from onward.errors import Interrupted, Superseded, UsageError
from onward.run.signals import SIGNALS
from onward.system import environment
from onward.words.language import _
from onward.world.lives import code_file

log = logging.getLogger(__name__)

# After these nothing is started anew: it would end the same, or was asked for.
FINAL = {0, *range(2, Superseded.exit_code + 1), Interrupted.exit_code}
_SIGNALS = ",".join(sent.name for sent in SIGNALS)  # that are sent on to all ranks
SHUTDOWN_SECONDS = 600  # that ranks may take to end after a signal: `grace_seconds` bounds it
MAX_RANKS = 1024


def launch(words: Sequence[str], num_ranks: int, max_restarts: int) -> int:
    """Run a Python program as so many ranks until it ends; return the exit code.

    A rank that dies ends the others; then all are started anew, and go on with the run that they
    had, from its newest checkpoint.

    Args:
        words: The program and its arguments, as they follow `python`.
        num_ranks: How many processes.
        max_restarts: How often to start them anew without a checkpoint in between.
    """
    with tempfile.TemporaryDirectory(prefix="onward-launch-") as folder:
        lives = Path(folder) / "lives.json"
        environment.prepare_ranks(num_ranks, lives, _SIGNALS)
        num_in_vain, reached = 0, -1
        while True:
            for rank in range(num_ranks):  # of the life before
                code_file(lives, rank).unlink(missing_ok=True)
            rank, code = _live(words, num_ranks)
            code = _code_of(lives, rank, code)
            if code in FINAL:
                return code
            newest = _step_of(lives)
            num_in_vain, reached = (0 if newest > reached else num_in_vain), newest
            if num_in_vain >= max_restarts:
                told = _("rank %d ended with code %d again, and no checkpoint came in between")
                log.error(told, rank, code)
                return code if code > 0 else 1
            num_in_vain += 1
            log.warning(
                _("rank %d ended with code %d: starting all anew, from the newest checkpoint"),
                rank, code,
            )  # fmt: skip


def _step_of(lives: Path) -> int:
    """Return the step of the newest state that the ranks have set aside; -1: there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return int(json.loads(lives.read_text())["step"])
    return -1


def _code_of(lives: Path, rank: int, code: int) -> int:
    """Return the code of the error that has ended a rank; `code` is that of the process."""
    if code in (1, -signal.SIGINT):  # of a traceback
        with contextlib.suppress(OSError, ValueError):
            return int(code_file(lives, rank).read_text())
    return code


def _live(words: Sequence[str], num_ranks: int) -> tuple[int, int]:
    """Start the ranks, and wait for their end; return which failed first, and its exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What it says of an end, we say ourselves, in a line.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        signals_to_handle=_SIGNALS,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    try:
        elastic_launch(config, sys.executable)("-u", *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return rank, failure.exitcode
    except SignalException:
        return 0, Interrupted.exit_code
    return 0, 0


def number_of(text: str) -> int:
    """Return how many ranks `nproc` asks for; "auto": one for each GPU, or one.

    Raises:
        UsageError: It is no number.
    """
    if text != "auto":
        if text.isdecimal() and 1 <= int(text) <= MAX_RANKS:
            return int(text)
        told = _("nproc={text} is no number of processes from 1 to {most}, nor auto")
        raise UsageError(told.format(text=text, most=MAX_RANKS))
    import torch

    return max(1, torch.cuda.device_count())
