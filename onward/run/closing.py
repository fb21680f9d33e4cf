"""How an attempt ends: with all in the store, or a word on what waits; and with a true status."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping

from onward.attempts.attempt import Attempt
from onward.attempts.heartbeat import Heartbeat
from onward.attempts.last_word import status_after
from onward.checkpoint.pipeline import Pipeline
from onward.checkpoint.spool import Spool
from onward.errors import CheckpointError, Superseded
from onward.options.run_options import RunOptions
from onward.run.state import TrainState
from onward.run.summary import tell_costs, tell_end, tell_kept, tell_late, tell_waiting
from onward.words.language import _

log = logging.getLogger(__name__)


def abandon(attempt: Attempt, spool: Spool, status: str) -> None:
    """End an attempt that was claimed, and has trained nothing."""
    last_epoch = attempt.first_epoch - 1
    attempt.try_to_end(status, last_epoch)
    _record(spool, attempt.journal(status, last_epoch))


def _record(spool: Spool, journal: Mapping[str, object]) -> None:
    try:
        spool.write_journal(journal)
    except OSError as full:  # the end can still reach the server, where it counts
        log.warning(_("The end of the attempt is not recorded on this disk: %s"), full)


class Closing:
    """The end of one attempt.

    Args:
        attempt: The attempt.
        pipeline: Of its checkpoints.
        heartbeat: Beats until the end.
        options: Those of the run.
        finish: Called when training is finished, in the background: what is made of its result.
    """

    def __init__(
        self,
        attempt: Attempt,
        pipeline: Pipeline,
        heartbeat: Heartbeat,
        options: RunOptions,
        finish: Callable[[], None],
    ) -> None:
        self._attempt, self._pipeline, self._heartbeat = attempt, pipeline, heartbeat
        self.options, self._finish = options, finish
        self._spool = pipeline.spool
        self._is_finishing = self._has_finished = False

    def close(self, error: BaseException | None, state: TrainState | None) -> None:
        """End the attempt.

        Args:
            error: What ended training; None: it is finished.
            state: Where it stands; None if it had not begun.

        Raises:
            BaseException: What ended one of the threads, if `error` is None.
        """
        status = "FINISHED" if error is None else status_after(error)
        last_epoch = state.epoch if state else self._attempt.first_epoch - 1
        failure = self._pipeline.end_writing(self.options.drain_seconds)
        if status == "FINISHED" and (failure or self._pipeline.is_paused):
            status = "FAILED"  # its last epochs are nowhere but in this process
        if not isinstance(error or failure, Superseded):
            tell_end(self._attempt, self.options, state, status, last_epoch)
        try:
            self._close(status, last_epoch)
        except BaseException as failure:  # of a thread; the run must not stay RUNNING
            self._close_after(failure, last_epoch)
            if error is None:
                raise
            if failure is not error:  # what ended training is the one to tell
                log.warning(_("The run could not be closed as %s: %s"), status, failure)

    def require_saved(self) -> None:
        """Make sure that the newest epochs could be written.

        Raises:
            CheckpointError: They could not.
        """
        if self._pipeline.is_paused:
            raise CheckpointError(
                _("the newest epochs of run '{run_id}' could not be saved: make room on the disk "
                  "of '{folder}' and resume it").format(
                    run_id=self._attempt.run_id, folder=self._spool.folder
                )
            )  # fmt: skip

    def _close(self, status: str, last_epoch: int) -> None:
        """Wait until all is in the store, or tell what waits."""
        journal = self._attempt.journal(status, last_epoch)
        _record(self._spool, journal | {"system": self._heartbeat.waiting()})
        ending = functools.partial(self._end, status, last_epoch)
        is_closed = self._pipeline.close(ending, self.options.drain_seconds)
        tell_costs(self._pipeline.uploader.totals, self._pipeline.publisher.manifests)
        if is_closed:
            return
        if self._is_finishing and not self._pipeline.condition:
            # All of the run is in the store; only what is made of it is late.
            self._attempt.try_to_end(status, last_epoch)
            tell_late(self._attempt.run_id)
        else:
            folder, number = self._spool.folder, self._pipeline.num_waiting
            tell_waiting(self._attempt.run_id, folder, number)

    def _close_after(self, failure: BaseException, last_epoch: int) -> None:
        """Close the run after one of the threads has ended with an error."""
        if isinstance(failure, Superseded):
            tell_kept(self._attempt.run_id, self._spool.folder)
        self._attempt.try_to_end(status_after(failure), last_epoch)

    def _end(self, status: str, last_epoch: int) -> None:
        if status == "FINISHED" and not self._has_finished:
            # Before the run is: killed here, it is unfinished, and the next attempt does it.
            self._is_finishing = True
            self._finish()
            self._is_finishing, self._has_finished = False, True
        self._heartbeat.stop()
        self._attempt.end(status, last_epoch)  # before the log: it is true where that cannot go up
        self._heartbeat.publish()
        with contextlib.suppress(Superseded):  # by one that has the finished run already
            self._pipeline.publisher.show()
        # Else it stays here, for `train sync`.
        if self._pipeline.publisher.upload_log() and not self._pipeline.uploader.has_left:
            self._spool.discard()
