"""One attempt at a run, open for training: what a training loop talks to.

::

    with open_run(kind, options, Launch(), Reporter()) as run:
        run.restore({"model": model, "optimizer": optimizer, "scheduler": schedule})
        for epoch in run.epochs(range(1, 51)):
            for indices in run.order(num_samples, batch_size):
                ...
                run.mean("train_loss").add(loss, len(indices))
            run.log(train_loss=run.mean("train_loss").value, val_loss=...)

An epoch is done or was never begun: it ends when the loop asks for the next one, and is saved
then. Nothing here knows what is trained.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn

import torch

from onward.attempts.attempt import Attempt
from onward.attempts.heartbeat import Heartbeat
from onward.checkpoint.content import Content
from onward.checkpoint.pipeline import Pipeline
from onward.checkpoint.policy import SavePolicy
from onward.checkpoint.spool import RunFolder
from onward.checkpoint.staging import changed_by_step
from onward.errors import CheckpointError, Interrupted
from onward.metrics import History, Point, is_wall_clock, same_value, timing_prefix
from onward.monitor import UNDECLARED, Best, Monitor
from onward.run.closing import Closing
from onward.run.order import batches, num_batches
from onward.run.signals import StopNow, StopRequest
from onward.run.state import MISFITS, Mean, Stateful, TrainState
from onward.run.subject import Subject, facts_of
from onward.run.summary import tell_difference
from onward.system import environment
from onward.terminal.report import Reporter
from onward.tracking.client import now_ms
from onward.words.language import _

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where an attempt begins.

    Args:
        content: The checkpoint to go on from; None: from the beginning.
        published: The metric values that MLflow has of the run already.
        monitor: The metric that decides which epoch is best.
    """

    content: Content | None
    published: History
    monitor: Monitor = UNDECLARED


class Run:
    """One attempt at a run; a context manager that closes it with a truthful status.

    Args:
        subject: What is trained.
        attempt: The claimed attempt.
        pipeline: Commits its checkpoints; its threads are started with the run.
        folder: This disk's folder for the run, acquired; released when the run is closed.
        start: Where it begins.
        reporter: What the terminal shows.
        finish: Called when training is finished, in the background: what is made of its result.
    """

    def __init__(
        self,
        subject: Subject,
        attempt: Attempt,
        pipeline: Pipeline,
        folder: RunFolder,
        start: Start,
        reporter: Reporter,
        finish: Callable[[], None],
    ) -> None:
        self.subject, self.options = subject, subject.options
        self.attempt, self._pipeline = attempt, pipeline
        self._folder, self._start, self._reporter = folder, start, reporter
        options = self.options
        device = environment.choose_device(options.device)
        self._config, self._data = options.to_dict(), facts_of(subject)
        self._environment = environment.describe(device, options.threads)
        self._policy = SavePolicy(
            options.checkpoint_freq, options.checkpoint_steps, 60 * options.checkpoint_minutes
        )
        self._state: TrainState | None = None
        self._stop = StopRequest(environment.seconds_left(options.max_minutes))
        pipeline.seconds_left = lambda: self._stop.seconds_left(options.grace_seconds)
        self._saved = (0, 0)  # epoch and step of the newest state that is set aside
        self._saved_at = time.monotonic()
        self._progress: Mapping[str, float] = {}
        self._heartbeat = Heartbeat(attempt, lambda: self._progress, pipeline.fail)
        self._closing = Closing(attempt, pipeline, self._heartbeat, options, finish)
        self._differs_reported = False
        self._epoch_started = 0.0
        self._measured_ms = 0  # when the metrics of the epoch under way were logged first
        self._num_epochs = options.epochs
        self._num_samples = 0  # of the epoch under way, if the run knows
        self._is_under_way = False  # whether an epoch is, which the loop has not ended

    @property
    def run_id(self) -> str:
        """The MLflow run that is worked on."""
        return self.attempt.run_id

    @property
    def state(self) -> TrainState:
        """What training changes as it goes."""
        assert self._state is not None, "restore() comes first"
        return self._state

    @property
    def monitor(self) -> Monitor:
        """The metric that decides which epoch is best."""
        return self._start.monitor

    @property
    def step(self) -> int:
        """Optimizer steps completed."""
        return self.state.step

    @property
    def best(self) -> Best | None:
        """The best value of the monitored metric so far, and its epoch."""
        return self.state.best

    def restore(self, parts: Mapping[str, Stateful]) -> None:
        """Take charge of all that training changes, and put it to where the run was.

        Args:
            parts: Name to what has a `state_dict` and a `load_state_dict`.

        Raises:
            CheckpointError: The checkpoint does not fit the model or the optimizer.
        """
        state = self._state = TrainState(parts, self.monitor)
        for optimizer in state.optimizers:
            # What is being set aside must be whole before a step changes it.
            optimizer.register_step_pre_hook(lambda *_: self._pipeline.hold_update())
        content = self._start.content
        if content is None:
            return
        try:
            state.restore(content)
        except MISFITS as error:
            raise CheckpointError(
                _("the checkpoint of epoch {epoch} does not fit this program's model: {reason}")
                .format(epoch=content.epoch, reason=" ".join(str(error).split())[:300])
            ) from error  # fmt: skip
        self._saved = (state.epoch, state.step)

    def epochs(self, numbers: Sequence[int]) -> Iterator[int]:
        """Yield what is left of `numbers`, one for each epoch of the whole run.

        An epoch ends, and is saved, when the next one is asked for; after a `break`, when the run
        is closed. An error leaves it as if it had not begun.

        Raises:
            Interrupted: A signal asked to stop.
        """
        self._num_epochs = len(numbers)
        self._reporter.begin(len(numbers), self.state.epoch, self.monitor)
        self._saved_at = time.monotonic()
        while self.state.epoch < len(numbers) and not self._stops_early():
            self._stop_if_asked()
            self._epoch_started, self._is_under_way = time.monotonic(), True
            self._measured_ms = 0
            yield numbers[self.state.epoch]
            self._end_epoch()

    def order(self, num_samples: int, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield the samples of each batch that is left of the epoch; count a step after each.

        The order is a function of the seed and the epoch. Inside the epoch it is saved where that
        is due.

        Args:
            num_samples: How many the epoch has.
            batch_size: The most in a batch; see `order.batches`.

        Shape:
            int64 [B], B <= batch_size

        Raises:
            Interrupted: A signal asked to stop; between two steps nothing is half done.
            Superseded: A later attempt has the run.
        """
        state, num = self.state, num_batches(num_samples, batch_size)
        self._num_samples, seed = num_samples, self.options.seed
        state.know_counts(num_samples, num)
        # Counted from 1, as it always was.
        left = batches(num_samples, batch_size, seed, state.epoch + 1, start=state.epoch_step)
        for indices in left:
            self._stop_if_asked()
            yield indices
            state.step += 1
            state.epoch_step += 1
            self._reporter.advance(state.epoch + state.epoch_step / num)
            # What ends an epoch is saved at its end.
            is_last = state.epoch_step == num
            if not is_last and self._policy.is_due(state.step, time.monotonic() - self._saved_at):
                self._set_aside(kept=False)

    def mean(self, name: str) -> Mean:
        """Return a running mean over the epoch under way, which a stop inside it does not lose."""
        return self.state.mean(name)

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

    def log(self, **metrics: float) -> None:
        """Record metrics of the epoch under way; they are published when it is committed.

        A value that is published already stays: where the new one differs (other hardware, after
        a fallback to an older checkpoint), that is reported once.
        """
        epoch = self.state.epoch + 1
        self._record(epoch, metrics)
        monitored = self.state.history.get(self.monitor.name, epoch)
        if monitored is not None:
            self.state.note_best(monitored.value, epoch)
        self._progress = {"epoch": epoch, "step": self.step, **metrics}

    def _record(self, epoch: int, metrics: Mapping[str, float]) -> None:
        history = self.state.history
        if not self._measured_ms:  # all values of an epoch have one time
            self._measured_ms = max(now_ms(), history.last_timestamp_ms() + 1)
        for key, value in metrics.items():
            point = Point(key, epoch, self._measured_ms, float(value))
            published = self._start.published.get(key, epoch)
            if published is None:
                if history.get(key, epoch) is None:  # the first value stays
                    self._pipeline.publisher.add([point])
            elif (
                not (is_wall_clock(key) or same_value(published.value, point.value))
                and not self._differs_reported
            ):
                self._differs_reported = True
                tell_difference(self.run_id, self.options, published, point)
            history.add(published or point)

    def _end_epoch(self) -> None:
        """Complete the epoch: set its checkpoint aside, to be committed in the background.

        Its metrics are published after that. While the store is away everything waits on local
        disk, and training goes on.
        """
        state = self.state
        self._record(state.epoch + 1, {**self._costs(), **self._best_values()})
        state.end_epoch()
        self._is_under_way = False
        is_last = state.epoch == self._num_epochs or self._stops_early()
        kept = self._policy.keeps(state.epoch, is_last)
        self._set_aside(kept)
        note = self._pipeline.condition or (_("kept") if kept else "")
        self._reporter.epoch(state.epoch, state.history.at(state.epoch), state.best_epoch, note)

    def _costs(self) -> dict[str, float]:
        """Return what the epoch under way and the newest commit took, by the name of the metric."""
        history, seconds = self.state.history, self._epoch_seconds()
        costs = {"epoch_seconds": seconds}
        if self._num_samples:
            costs["samples_per_second"] = self._num_samples / max(seconds, 1e-9)
        if self._pipeline.timings:
            costs |= self._pipeline.timings.as_metrics()
        prefix = timing_prefix([*history.keys(), *self._start.published.keys()])
        return {f"{prefix}{name}": value for name, value in costs.items()}

    def _best_values(self) -> dict[str, float]:
        best = self.state.best
        if best is None:
            return {}
        return {f"best_{self.monitor.name}": best.value, "best_epoch": float(best.epoch)}

    def _set_aside(self, kept: bool, required: bool = False) -> None:
        state = self.state
        content = dataclasses.replace(
            state.capture(),
            config=self._config,
            data=self._data,
            environment=self._environment,
            timestamp=now_ms() / 1000,
            epoch_seconds=self._epoch_seconds() if state.epoch_step else 0.0,
            extras=self.subject.extras(state.history, state.best),
        )
        may_wait = changed_by_step(*state.optimizers) if state.optimizers else None
        if self._pipeline.save(content.to_dict(), content.metrics, kept, may_wait, required):
            self._saved, self._saved_at = (state.epoch, state.step), time.monotonic()

    def _epoch_seconds(self) -> float:
        """Return how long the epoch under way has taken, in all attempts."""
        return self.state.epoch_seconds + time.monotonic() - self._epoch_started

    def should_stop(self, patience: int) -> bool:
        """Tell whether the last `patience` epochs were no better than the best before; 0: never."""
        return bool(patience) and self.state.epoch - (self.state.best_epoch or 0) >= patience

    def _stops_early(self) -> bool:
        return self.should_stop(self.options.early_stopping)

    def __enter__(self) -> Run:
        """Take over the signals: from here they stop training between two steps."""
        self._stop.install()
        if self._start.content is not None:
            # What was committed and not published when the attempt before died.
            missing = self._start.content.history.missing_from(self._start.published)
            self._pipeline.publisher.add(missing)
        self._pipeline.open()
        self._heartbeat.start()
        log.info(_("Run %s, attempt %d: %s"), self.run_id, self.attempt.number, self.attempt.link)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the run: FINISHED, KILLED by a signal, or FAILED."""
        try:
            if error is None and self._is_under_way:
                self._end_epoch()  # the loop was left by `break`
        except BaseException as late:  # the run must not stay RUNNING
            error = late
            raise
        finally:
            self._close(error)
        if error is None:
            self._closing.require_saved()

    def _close(self, error: BaseException | None) -> None:
        self._reporter.end()
        try:
            self._closing.close(error, self._state)
        finally:
            self._heartbeat.stop()
            self._stop.uninstall()
            self._folder.release()
