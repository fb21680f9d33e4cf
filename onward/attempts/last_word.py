"""The last word to the server on a run, when something else has failed."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from onward.errors import Interrupted, Superseded, TrainError
from onward.system.threads import bounded
from onward.tracking.client import Tracking
from onward.words.language import _

log = logging.getLogger(__name__)

END_SECONDS = 10.0  # that it may take


def status_after(error: BaseException) -> str:
    """Return the status of a run whose process ends by this error."""
    stopped = isinstance(error, Interrupted | KeyboardInterrupt | Superseded)
    return "KILLED" if stopped else "FAILED"


def try_to_set(tracking: Tracking, run_id: str, status: str) -> None:
    """Set the status of a run that stands for no attempt, as far as the server answers."""
    at_last(functools.partial(tracking.set_status, run_id, status), status)


def at_last(act: Callable[[], object], status: str) -> bool:
    """Set a status where another error, or the end of time, is what is told.

    Args:
        act: Sets it.
        status: Which one.

    Returns:
        Whether it is set, as far as the server has answered.
    """
    try:
        if bounded(act, END_SECONDS):
            return True
        why = _("the server has not answered for {seconds:.0f} s")
        found = why.format(seconds=END_SECONDS)
    except (TrainError, OSError) as error:
        found = str(error)
    log.warning(_("The run could not be closed as %s: %s"), status, found)
    return False
