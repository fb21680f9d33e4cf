"""One attempt at a run, open for training: what a training loop talks to.

::

    with open_run(options, Launch()) as run:
        run.restore(TrainState(model, optimizer, schedule))
        for epoch in run.epochs():
            for batch in run.steps(batches_left, num_batches):
                ...
            run.log({"train_loss": ..., "val_loss": ..., "val_pearson": ...})
            run.save()

The order of the words is the order of the work. Nothing here knows what is trained.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import torch

from onward.attempts.attempt import Attempt
from onward.attempts.heartbeat import Heartbeat
from onward.checkpoint.pipeline import Pipeline
from onward.checkpoint.policy import SavePolicy
from onward.checkpoint.spool import RunFolder
from onward.checkpoint.staging import changed_by_step
from onward.errors import CheckpointError, Interrupted, Superseded
from onward.metrics import MONITOR, History, Point, is_wall_clock, same_value, timing_prefix
from onward.options.run_options import Config
from onward.publish.page import refresh
from onward.run.signals import StopNow, StopRequest
from onward.run.state import MISFITS, TrainState
from onward.run.summary import (
    tell_costs,
    tell_difference,
    tell_end,
    tell_kept,
    tell_late,
    tell_waiting,
)
from onward.system import environment
from onward.terminal.report import Reporter
from onward.tracking.client import now_ms
from onward.words.language import _

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Start:
    """Where an attempt begins.

    Args:
        checkpoint: The content of the checkpoint to go on from; None: from the beginning.
        published: The metric values that MLflow has of the run already.
    """

    checkpoint: Mapping[str, Any] | None
    published: History


class Run:
    """One attempt at a run; a context manager that closes it with a truthful status.

    Args:
        config: The options in force.
        attempt: The claimed attempt.
        pipeline: Commits its checkpoints; its threads are started with the run.
        folder: This disk's folder for the run, acquired; released when the run is closed.
        start: Where it begins.
        data: What checkpoints say of the data.
        reporter: What the terminal shows.
        finish: Called when training is finished, in the background: what is made of its result.
    """

    def __init__(
        self,
        config: Config,
        attempt: Attempt,
        pipeline: Pipeline,
        folder: RunFolder,
        start: Start,
        data: Mapping[str, Any],
        reporter: Reporter,
        finish: Callable[[], None],
    ) -> None:
        self.config = config
        self.attempt = attempt
        self._pipeline = pipeline
        self._folder = folder
        self._spool = pipeline.spool
        self._start, self._finish = start, finish
        self._constants = {
            "config": config.to_dict(),
            "data": dict(data),
            "environment": environment.describe(
                environment.choose_device(config.device), config.threads
            ),
        }
        self._reporter = reporter
        self._policy = SavePolicy(
            config.checkpoint_freq, config.checkpoint_steps, 60 * config.checkpoint_minutes
        )
        self._state: TrainState | None = None
        self._stop = StopRequest(environment.seconds_left(config.max_minutes))
        pipeline.seconds_left = lambda: self._stop.seconds_left(config.grace_seconds)
        self._saved = (0, 0)  # epoch and step of the newest state that is set aside
        self._saved_at = time.monotonic()
        self._progress: Mapping[str, float] = {}
        self._heartbeat = Heartbeat(attempt, lambda: self._progress, pipeline.fail)
        self._differs_reported = False
        self._epoch_started = 0.0
        self._is_finishing = self._has_finished = False

    @property
    def run_id(self) -> str:
        """The MLflow run that is worked on."""
        return self.attempt.run_id

    @property
    def state(self) -> TrainState:
        """The state that `restore` was given."""
        assert self._state is not None, "restore() comes first"
        return self._state

    @property
    def step(self) -> int:
        """Optimizer steps completed."""
        return self.state.step

    def restore(self, state: TrainState) -> None:
        """Take charge of `state`, and put it to where the run was.

        Raises:
            CheckpointError: The checkpoint does not fit the model or the optimizer.
        """
        self._state = state
        if isinstance(state.optimizer, torch.optim.Optimizer):
            # What is being set aside must be whole before a step changes it.
            state.optimizer.register_step_pre_hook(lambda *_: self._pipeline.hold_update())
        checkpoint = self._start.checkpoint
        if checkpoint is None:
            return
        try:
            state.restore(checkpoint)
        except MISFITS as error:
            raise CheckpointError(
                _("the checkpoint of epoch {epoch} does not fit this program's model: {reason}")
                .format(epoch=checkpoint.get("epoch"), reason=" ".join(str(error).split())[:300])
            ) from error  # fmt: skip
        self._saved = (state.epoch, state.step)

    def epochs(self) -> Iterator[int]:
        """Yield the number of each epoch that is left, from 1; `save` must end each.

        Raises:
            Interrupted: A signal asked to stop.
        """
        self._reporter.begin(self.config, self.state.epoch)
        self._saved_at = time.monotonic()
        while self.state.epoch < self.config.epochs and not self._stops_early():
            self._stop_if_asked()
            epoch = self.state.epoch + 1
            self._epoch_started = time.monotonic()
            yield epoch
            assert self.state.epoch == epoch, "save() ends an epoch"

    def steps(self, batches: Iterable[T], num_batches: int) -> Iterator[T]:
        """Yield each batch, and count an optimizer step after it; save where it is due.

        Args:
            batches: Those of the epoch that are left: `state.epoch_step` are done.
            num_batches: How many the whole epoch has.

        Raises:
            Interrupted: A signal asked to stop; between two steps nothing is half done.
            Superseded: A later attempt has the run.
        """
        state = self.state
        for batch in batches:
            self._stop_if_asked()
            yield batch
            state.step += 1
            state.epoch_step += 1
            self._reporter.advance(state.epoch + state.epoch_step / num_batches)
            # What ends an epoch is saved by `save`.
            is_last = state.epoch_step == num_batches
            if not is_last and self._policy.is_due(state.step, time.monotonic() - self._saved_at):
                self._set_aside(kept=False)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal end the block where it comes: it must change no state of the training.

        Raises:
            Interrupted: A signal asked to stop.
        """
        try:
            with self._stop.at_once():
                yield
        except StopNow:
            self._stop_here()

    def _stop_if_asked(self) -> None:
        self._pipeline.check()
        if self._stop.received is not None:
            self._stop_here()

    def _stop_here(self) -> NoReturn:
        state, stopped_by = self.state, self._stop.received_name
        if (state.epoch, state.step) != self._saved:
            self._set_aside(kept=False, required=True)
        raise Interrupted(stopped_by, state.epoch, state.epoch_step)

    def log(self, metrics: Mapping[str, float], num_samples: int) -> None:
        """Record the metrics of the epoch under way; they are published when it is committed.

        Args:
            metrics: Name to value.
            num_samples: Training samples of the epoch, for its speed.

        A value that is published already stays: where the new one differs (other hardware, after
        a fallback to an older checkpoint), that is reported once.
        """
        state, epoch = self.state, self.state.epoch + 1
        seconds = self._epoch_seconds()
        cost = self._pipeline.timings.as_metrics() if self._pipeline.timings else {}
        speed = num_samples / max(seconds, 1e-9)
        timed = {"epoch_seconds": seconds, "samples_per_second": speed, **cost}
        prefix = timing_prefix([*state.history.keys(), *self._start.published.keys()])
        measured = {**metrics, **{f"{prefix}{name}": value for name, value in timed.items()}}
        now = max(now_ms(), state.history.last_timestamp_ms() + 1)
        for key, value in measured.items():
            self._record(Point(key, epoch, now, float(value)))
        monitored = state.history.get(MONITOR, epoch)
        if monitored is not None:
            state.note_best(monitored.value, epoch)
        if state.best_corr is not None and state.best_epoch is not None:
            self._record(Point(f"best_{MONITOR}", epoch, now, state.best_corr))
            self._record(Point("best_epoch", epoch, now, float(state.best_epoch)))
        self._progress = {"epoch": epoch, "step": state.step, **metrics}

    def _record(self, point: Point) -> None:
        published = self._start.published.get(point.key, point.step)
        if published is None:
            self._pipeline.publisher.add([point])
        elif (
            not (is_wall_clock(point.key) or same_value(published.value, point.value))
            and not self._differs_reported
        ):
            self._differs_reported = True
            tell_difference(self.run_id, self.config.strict, published, point)
        self.state.history.add(published or point)

    def save(self) -> None:
        """Complete the epoch: set its checkpoint aside, to be committed in the background.

        Its metrics are published after that. While the store is away everything waits on local
        disk, and training goes on.
        """
        state = self.state
        state.end_epoch()
        is_last = state.epoch == self.config.epochs or self._stops_early()
        kept = self._policy.keeps(state.epoch, is_last)
        self._set_aside(kept)
        note = self._pipeline.condition or (_("kept") if kept else "")
        self._reporter.epoch(state.epoch, state.history.at(state.epoch), state.best_epoch, note)

    def _set_aside(self, kept: bool, required: bool = False) -> None:
        state = self.state
        checkpoint = {**state.capture(), **self._constants, "timestamp": now_ms() / 1000}
        metrics = {} if state.epoch_step else state.history.at(state.epoch)
        if state.epoch_step:
            checkpoint["epoch_seconds"] = self._epoch_seconds()
        optimizer = state.optimizer
        may_wait = None
        if isinstance(optimizer, torch.optim.Optimizer):
            may_wait = changed_by_step(optimizer)
        if self._pipeline.save(checkpoint, metrics, kept, may_wait, required):
            self._saved, self._saved_at = (state.epoch, state.step), time.monotonic()

    def _epoch_seconds(self) -> float:
        """Return how long the epoch under way has taken, in all attempts."""
        return self.state.epoch_seconds + time.monotonic() - self._epoch_started

    def _stops_early(self) -> bool:
        patience, state = self.config.early_stopping, self.state
        return bool(patience) and state.epoch - (state.best_epoch or 0) >= patience

    def __enter__(self) -> Run:
        """Take over the signals: from here they stop training between two steps."""
        self._stop.install()
        if self._start.checkpoint is not None:
            # What was committed and not published when the attempt before died.
            history = History()
            history.load_state_dict(self._start.checkpoint["history"])
            self._pipeline.publisher.add(history.missing_from(self._start.published))
        attempt, publisher = self.attempt, self._pipeline.publisher
        publisher.published = History(self._start.published)
        publisher.page = functools.partial(refresh, attempt, publisher)
        self._pipeline.open()
        self._heartbeat.start()
        log.info(_("Run %s, attempt %d: %s"), attempt.run_id, attempt.number, attempt.link)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the run: FINISHED, KILLED by a signal, or FAILED."""
        self._reporter.end()
        status = "FINISHED"
        if error is not None:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt | Superseded)
            status = "KILLED" if stopped else "FAILED"
        last_epoch = self._state.epoch if self._state else self.attempt.first_epoch - 1
        failure = self._pipeline.end_writing(self.config.drain_seconds)
        if status == "FINISHED" and (failure or self._pipeline.is_paused):
            status = "FAILED"  # its last epochs are nowhere but in this process
        if not isinstance(error or failure, Superseded):
            tell_end(self.run_id, self.config, self._state, status)
        try:
            self._close(status, last_epoch)
        except BaseException as failure:  # of a thread; the run must not stay RUNNING
            self._close_after(failure, last_epoch)
            if error is None:
                raise
            if failure is not error:  # what ended training is the one to tell
                log.warning(_("The run could not be closed as %s: %s"), status, failure)
        finally:
            self._heartbeat.stop()
            self._stop.uninstall()
            self._folder.release()
        if error is None and self._pipeline.is_paused:
            raise CheckpointError(
                _("the newest epochs of run '{run_id}' could not be saved: make room on the disk "
                  "of '{folder}' and resume it").format(
                    run_id=self.run_id, folder=self._spool.folder
                )
            )  # fmt: skip

    def _close(self, status: str, last_epoch: int) -> None:
        """Wait until all is in the store, or tell what waits."""
        try:
            self._spool.write_journal(
                self.attempt.journal(status, last_epoch) | {"system": self._heartbeat.waiting()}
            )
        except OSError as full:  # the end can still reach the server, where it counts
            log.warning(_("The end of the attempt is not recorded on this disk: %s"), full)
        ending = functools.partial(self._end, status, last_epoch)
        is_closed = self._pipeline.close(ending, self.config.drain_seconds)
        tell_costs(self._pipeline.totals, self._pipeline.publisher.manifests)
        if is_closed:
            return
        if self._is_finishing and not self._pipeline.condition:
            self._end_without_results(status, last_epoch)
        else:
            tell_waiting(self.run_id, self._spool.folder, self._pipeline.num_waiting)

    def _end_without_results(self, status: str, last_epoch: int) -> None:
        """Close the run, all of which is in the store; only what is made of it is late."""
        self.attempt.try_to_end(status, last_epoch)
        tell_late(self.run_id)

    def _close_after(self, failure: BaseException, last_epoch: int) -> None:
        """Close the run after one of the threads has ended with an error."""
        status = "FAILED"
        if isinstance(failure, Superseded):
            status = "KILLED"
            tell_kept(self.run_id, self._spool.folder)
        self.attempt.try_to_end(status, last_epoch)

    def _end(self, status: str, last_epoch: int) -> None:
        if status == "FINISHED" and not self._has_finished:
            # Before the run is: killed here, it is unfinished, and the next attempt does it.
            self._is_finishing = True
            self._finish()
            self._is_finishing, self._has_finished = False, True
        self._heartbeat.stop()
        self.attempt.end(status, last_epoch)  # before the log: it is true where that cannot go up
        self._heartbeat.publish()
        with contextlib.suppress(Superseded):  # by one that has the finished run already
            self._pipeline.publisher.page()
        if self._pipeline.publisher.upload_log():  # else it stays here, for `train sync`
            self._spool.discard()
