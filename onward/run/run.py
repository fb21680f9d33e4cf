"""One attempt at a run, open for training: what a training loop talks to.

::

    for epoch in run.epochs(range(1, 51)):
        for indices in run.order(num_samples, batch_size):
            ...
            run.mean("train_loss").add(loss, len(indices))
        run.log(train_loss=run.mean("train_loss").value, val_loss=...)

An epoch is done or was never begun: it ends when the loop asks for the next one, and is saved
then. What is trained, nobody here knows.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from onward.attempts.attempt import Attempt
from onward.checkpoint.handover import Saver
from onward.errors import Interrupted
from onward.metrics import EPOCH, STEP
from onward.monitor import Best, Monitor
from onward.run import rng
from onward.run.agreement import Agreement
from onward.run.following import Followed, Following
from onward.run.lifecycle import Lifecycle
from onward.run.parts import require_parts, weights_of
from onward.run.passes import Order, Passes
from onward.run.ranks import restore_on_rank
from onward.run.recording import Recorder
from onward.run.saving import Saving
from onward.run.signals import StopNow
from onward.run.state import Mean, Start, TrainState
from onward.run.subject import Subject
from onward.run.units import require_expected, require_range
from onward.terminal.report import Reporter
from onward.tracking.names import OPTIONS_TAG, UNIT_TAG
from onward.words.language import _
from onward.world import ALONE, World

log = logging.getLogger(__name__)


class Run:
    """One attempt at a run; a context manager that closes it with a truthful status.

    Args:
        subject: What is trained.
        attempt: The claimed attempt.
        pipeline: Commits its checkpoints; its threads are started with the run.
        life: From its beginning in this process to its end.
        start: Where it begins.
        reporter: What the terminal shows.
        world: The ranks, of which this process is one.
    """

    def __init__(
        self,
        subject: Subject,
        attempt: Attempt | Followed,
        pipeline: Saver,
        life: Lifecycle | Following,
        start: Start,
        reporter: Reporter,
        world: World = ALONE,
    ) -> None:
        self.subject, self.options = subject, subject.options
        self.attempt, self._pipeline, self.life = attempt, pipeline, life
        self.start, self._reporter, self.world = start, reporter, world
        self._saving = Saving(attempt.run_id, subject, pipeline, world)
        self._state: TrainState | None = None
        self._passes = Passes(self.stop_if_asked, self.step_done, world)
        self._agreement = Agreement(world, life.stop, pipeline)
        known = start.published
        self._recorder = Recorder(attempt.run_id, subject.options, known, pipeline.publisher)
        self._num_units = subject.options.epochs
        self._is_under_way = False  # whether a unit is, which the loop has not ended
        self.is_entered = self._is_expecting = False
        self._is_best = self._is_judged = self._is_kept = False  # the unit under way
        # Of a loop of one's own: what is restored once it is entered, and its random numbers.
        self.parts: Mapping[str, Any] | None = None
        self.random_state: dict[str, Any] | None = None

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
        return self.start.monitor

    @property
    def step(self) -> int:
        """Optimizer steps completed."""
        return self.state.step

    @property
    def is_best(self) -> bool:
        """Whether the epoch under way, once its metric is logged, is the best so far."""
        return self._is_best

    @property
    def best(self) -> Best | None:
        """The best value of the monitored metric so far, and its epoch."""
        return self.state.best

    def restore(self, parts: Mapping[str, Any]) -> None:
        """Take charge of all that training changes, and put it to where the run was.

        Args:
            parts: Name to what can be stored and put back; see `onward.run.parts`.

        Raises:
            UsageError: There is something that cannot be.
            CheckpointError: The checkpoint does not fit the model or the optimizer.
        """
        state = self._state = TrainState(require_parts(parts), self.monitor)
        self._passes.state = state
        for optimizer in state.optimizers:
            # What is being set aside must be whole before a step changes it.
            optimizer.register_step_pre_hook(lambda *_: self._pipeline.hold_update())
        state.updates.watch(state.optimizers)
        state.updates.watch_others(weights_of(state.parts))
        if self.start.content is not None:
            restore_on_rank(state, self.start, self.world, self.options.seed)

    def epochs(self, numbers: Sequence[int]) -> Iterator[int]:
        """Yield what is left of `numbers`, one for each epoch of the whole run.

        An epoch ends, and is saved, when the next one is asked for; after a `break`, when the run
        is closed. An error leaves it as if it had not begun. Metrics are shown by the number of
        epochs completed, whatever `numbers` begin with.

        Args:
            numbers: Those of all epochs, also of those that are done, such as range(50).

        Raises:
            UsageError: The run's units are iterated already.
            Interrupted: A signal asked to stop.
        """
        return self._units(numbers, EPOCH)

    def steps(self, numbers: Sequence[int]) -> Iterator[int]:
        """Yield what is left of `numbers`, one for each step of a loop that has no epochs.

        A step is done once the next one is asked for. It is saved where `checkpoint_steps` or
        `checkpoint_minutes` say so, where it is the best so far, and at the end.

        Args:
            numbers: Those of all steps, also of those that are done, such as range(100_000).
        """
        return self._units(numbers, STEP)

    def _units(self, numbers: Any, unit: str) -> Iterator[int]:
        self.expect(len(require_range(numbers, unit)), unit)
        while self.has_unit_left():
            self.begin_unit()
            yield numbers[self.state.epoch]
            self.end_unit()

    def expect(self, number: int, unit: str = EPOCH) -> None:
        """Say how many units the whole run has; `epochs` and `steps` do it.

        Raises:
            UsageError: That was said before, or the run is not entered.
        """
        done = self.state.epoch if self.is_entered else 0
        require_expected(number, unit, done, self.is_entered, self._is_expecting)
        self._is_expecting = True
        self.state.count(unit)
        self._num_units = number
        if self.options.epochs != number:  # which a loop of one's own tells only now
            self.options = self.options.replace(epochs=number)
            self.life.know_options(self.options)
            self._pipeline.publisher.tags[OPTIONS_TAG] = json.dumps(self.options.to_dict())
        self.attempt.unit = unit
        if unit != EPOCH:
            self._pipeline.publisher.tags[UNIT_TAG] = unit
        self._reporter.begin(number, self.state.epoch, self.monitor, unit)
        self._saving.begin(self.state, self.options)

    def has_unit_left(self) -> bool:
        """Tell whether there is an epoch, or a step, to train."""
        done, patience = self.state.epoch, self.options.early_stopping
        return done < self._num_units and not self.state.waits_for(patience, done)

    def begin_unit(self) -> None:
        """Begin an epoch, or a step; raise `Interrupted` if a signal asked to stop."""
        if self.state.unit != STEP:
            self._agreement.look()
        if self.state.unit != STEP or self.state.updates.is_whole():
            self.stop_if_asked()
        self._is_under_way = self.attempt.has_trained = True
        self._is_best = False
        self._saving.begin_unit()
        self._recorder.begin_unit()
        self._passes.begin_unit(self.state)

    def order(self, num_samples: int, batch_size: int, is_whole: bool = False) -> Order:
        """Return the samples of each batch that is left of the epoch; each is a step.

        The order is a function of the seed and the epoch. Inside the epoch it is saved where that
        is due. It can be the `batch_sampler` of a loader for `batches` as well.

        Args:
            num_samples: How many the epoch has.
            batch_size: The most in a batch, of all ranks together; see `order.batches`.
            is_whole: Whether each rank gets all of a batch, and not its own share.

        Raises: `Interrupted`, and `Superseded` where a later attempt has the run.
        """
        self._saving.know_samples(num_samples)
        return self._passes.order(num_samples, batch_size, self.options.seed, is_whole)

    def batches(self, loader: Any, repeat: bool = False) -> Any:
        """Return the loader's batches that are left in the epoch; each is a step.

        A stop inside the epoch loses none and repeats none, in the order that the loader itself has
        drawn, with the random numbers that go with it. A map-style `DataLoader` leaves out what is
        done without reading it; a loader with `state_dict` and `load_state_dict` goes on by these;
        anything else is read again and thrown away.

        Args:
            loader: Any iterable; what is returned has its length and its attributes.
            repeat: Go on from the beginning at its end, for ever: for a loop by steps, which calls
                next() on what is returned.

        Raises:
            UsageError: It is iterated outside an epoch, or after another pass has ended in it.
            CheckpointError: The checkpoint lies inside an epoch of a loader of another length.
        """
        return self._passes.repeated(loader) if repeat else self._passes.once(loader)

    def step_done(self, num_steps: int | None = None) -> None:
        """Count a step of the epoch, of `num_steps` if that is known; save it where that is due."""
        state = self.state
        state.step, state.epoch_step = state.step + 1, state.epoch_step + 1
        is_last = num_steps is not None and state.epoch_step >= num_steps
        if num_steps is not None:
            self._reporter.advance(state.epoch + state.epoch_step / num_steps)
        if self._agreement.look(not is_last and self._saving.is_due(state.step)):
            self._saving.set_aside(state)

    def mean(self, name: str) -> Mean:
        """Return a running mean over the epoch under way, which a stop inside it does not lose."""
        return self.state.mean(name, self.world)

    @property
    def batch_weight(self) -> float:
        """What to multiply a mean loss by where the parts of ranks differ in size; else 1."""
        return self._passes.batch_weight

    def shared(self, value: Any) -> Any:
        """Return rank 0's value, which JSON can have, on all ranks; each has to ask."""
        return self.world.from_leader("shared", lambda: value)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal end the block where it comes, by `Interrupted`: it must change no state.

        Inside a batch, or a step of a loop without epochs, the signal waits until that is done.
        """
        if not (self._passes.is_whole and self.world.is_alone):
            yield
            return
        try:
            with self.life.stop.at_once():
                yield
        except StopNow:
            self._stop_here()

    def stop_if_asked(self, save: bool = True) -> None:
        """Save and stop, if a signal has asked for it; call it where nothing is half done.

        Args:
            save: Whether what was trained since the last save can be; else it is trained again.

        Raises: `Interrupted`, and `Superseded` where a later attempt has the run.
        """
        self._pipeline.check()
        if self._agreement.is_stopping:
            self._stop_here(save)

    def _stop_here(self, save: bool = True) -> NoReturn:
        state, stopped_by = self.state, self.life.stop.received_name
        if save and self._agreement.is_needed(not self._saving.is_saved(state)):
            self._saving.set_aside(state, required=True)
        raise Interrupted(stopped_by, state.epoch, state.epoch_step, state.unit == STEP)

    def log(self, *, step: float | None = None, **metrics: Any) -> None:
        """Record metrics of the epoch under way; they are published when it is committed.

        A value that is published already stays: where the new one differs (other hardware, after
        a fallback to an older checkpoint), that is reported once.

        Args:
            step: Where the values lie on an axis of the loop's own, such as the steps that an
                environment has made; None: at the epoch. A metric has one axis.
            metrics: Name to number, or to a tensor with one element.

        Raises:
            UsageError: What is no number, is logged twice in an epoch, or on two axes.
        """
        state = self.state
        values = self._recorder.log(state, metrics, step)
        epoch = state.epoch + 1
        if self.monitor.name in metrics:
            monitored = state.history.get(self.monitor.name, epoch)
            assert monitored is not None
            state.note_best(monitored.value, epoch)
            self._is_judged = True
            self._is_best = self.world.from_leader("best", lambda: state.best_epoch == epoch)
        self.life.progress = {"epoch": epoch, "step": self.step, **values}

    def keep(self) -> None:
        """Keep the checkpoint of the epoch, or step, under way for good, whatever the options."""
        self._is_kept = True

    def end_unit(self) -> None:
        """Complete the epoch, or step: set its checkpoint aside, to be committed in the background.

        Its metrics are published after that. While the store is away everything waits on local
        disk, and training goes on.
        """
        self._passes.end_unit(self.state)
        state, number = self.state, self.state.epoch + 1
        is_step = state.unit == STEP
        state.step += is_step
        is_last = number == self._num_units or self.state.waits_for(
            self.options.early_stopping, number
        )
        kept = self._is_kept or self._saving.keeps(number, is_last, is_step)
        is_due = not is_step or kept or self._is_best or self._saving.is_due(number)
        is_due = self._agreement.look(is_due, state)
        if is_due:
            self._recorder.record(state, self._saving.costs(state))
        if self._is_judged or not is_step:
            self._recorder.record_best(state)
        state.end_epoch()
        self._is_under_way = self._is_kept = self._is_judged = False
        if is_due:
            self._recorder.tell_monitor(state)
            self._saving.set_aside(state, kept, required=self._is_best)
        if is_due or self._recorder.has_logged:
            note = self._pipeline.condition or (_("kept") if kept else "")
            self._reporter.epoch(number, state.history.at(number), state.best_epoch, note)

    def should_stop(self, patience: int) -> bool:
        """Tell whether the last `patience` epochs were no better than the best before; 0: never."""
        number = self.state.epoch + self._is_under_way
        return self.shared(self.state.waits_for(patience, number))

    def __enter__(self) -> Run:
        """Take over the signals: from here they stop training between two steps."""
        if self.start.content is not None:
            self._recorder.publish_missing(self.start.content)
        self.life.open()
        log.info(_("Run %s, attempt %d: %s"), self.run_id, self.attempt.number, self.attempt.link)
        self.is_entered = True
        if self.parts is not None:
            try:
                if self.start.content is None and self.random_state is not None:
                    rng.restore(self.random_state)
                self.restore(self.parts)
            except BaseException:  # the run does not stay open
                self.__exit__(*sys.exc_info())
                raise
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Close the run: FINISHED, KILLED by a signal, or FAILED."""
        try:
            if error is None and self._is_under_way:
                self.end_unit()  # the loop was left by `break`
        except BaseException as late:  # the run must not stay RUNNING
            error = late
            raise
        finally:
            lost = self.world.blame(error)
            self._reporter.end()
            self._passes.state.updates.close()
            self.life.close(lost or error, self._state)
        if lost is not None:
            raise lost from error
        if error is None:
            self.life.require_saved()
