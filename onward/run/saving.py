"""What a run saves, and when: its state, set aside to be written in the background."""

from __future__ import annotations

import dataclasses
import time

from onward.checkpoint.handover import Saver
from onward.checkpoint.policy import SavePolicy
from onward.checkpoint.staging import changed_by_step
from onward.metrics import STEP, timing_prefix
from onward.options.run_options import RunOptions
from onward.run.ranks import of_rank
from onward.run.sharded import is_spread_inside, split_parts
from onward.run.state import TrainState
from onward.run.subject import Subject, facts_of
from onward.run.updates import Updates
from onward.system import environment
from onward.tracking.client import now_ms
from onward.world import ALONE, World

LAYOUT = "fsdp"  # of a state of which ranks have pieces


class Saving:
    """Sets the state of one attempt aside.

    Args:
        run_id: The run.
        subject: What is trained.
        pipeline: Writes and commits in the background.
        world: The ranks, each of which has something of its own to be saved.
    """

    def __init__(
        self, run_id: str, subject: Subject, pipeline: Saver, world: World = ALONE
    ) -> None:
        options, self._run_id = subject.options, run_id
        self._subject, self._pipeline, self._world = subject, pipeline, world
        self._config, self._data = options.to_dict(), facts_of(subject)
        device = environment.choose_device(options.device)
        self._environment = environment.describe(device, options.threads, world.size)
        self._policy = SavePolicy(
            options.checkpoint_freq, options.checkpoint_steps, 60 * options.checkpoint_minutes
        )
        self._saved = (0, 0)  # epoch and step of the newest state that is set aside
        self._saved_at = self._unit_began = time.monotonic()
        self._num_samples = 0  # of the epoch under way, if the run knows
        self._is_waiting = False  # to save, until gradients have become an update
        self._updates = Updates()
        self._is_spread = False  # whether ranks have pieces of the state

    def begin(self, state: TrainState, options: RunOptions) -> None:
        """Begin to train, by options that are complete now."""
        self._config, self._updates = options.to_dict(), state.updates
        self._is_spread = any(is_spread_inside(part) for part in state.parts.values())
        self._saved, self._saved_at = (state.epoch, state.step), time.monotonic()

    def begin_unit(self) -> None:
        """Begin an epoch, or a step."""
        self._unit_began = time.monotonic()

    def know_samples(self, number: int) -> None:
        """Know how many samples the epoch under way has."""
        self._num_samples = number

    def is_due(self, step: int) -> bool:
        """Tell whether to save after that step, which ends no epoch.

        Where gradients are added up over several batches that waits until they are used.
        """
        self._is_waiting |= self._policy.is_due(step, time.monotonic() - self._saved_at)
        return self._is_waiting and self._updates.is_whole()

    def keeps(self, number: int, is_last: bool, is_step: bool) -> bool:
        """Tell whether the checkpoint of that epoch, or step, is kept for good."""
        return self._policy.keeps(number, is_last, is_step)

    def is_saved(self, state: TrainState) -> bool:
        """Tell whether nothing was trained since the newest state that is set aside."""
        return (state.epoch, state.step) == self._saved

    def set_aside(self, state: TrainState, kept: bool = False, required: bool = False) -> None:
        """Set the state aside; see `Pipeline.save`. All ranks do it at the same step."""
        captured = state.capture()
        parts, pieces, layout = captured.parts, None, ""
        if self._is_spread:
            parts, pieces = split_parts(parts)
            layout = LAYOUT
        own = of_rank(captured, state.parts if self._is_spread else {})
        content = dataclasses.replace(
            captured,
            parts=parts,
            world=self._world.size if layout else 1,
            layout=layout,
            ranks=() if self._world.is_alone else self._world.gather(own),
            config=self._config,
            data=self._data,
            environment=self._environment,
            timestamp=now_ms() / 1000,
            epoch_seconds=self._unit_seconds(state) if state.epoch_step else 0.0,
            extras=self._subject.extras(state.history, state.best),
        )
        self._is_waiting = False
        optimizers = state.optimizers if self._subject.copies_in_background else []
        may_wait = changed_by_step(*optimizers) if optimizers else None
        required |= self._is_spread  # by all ranks, or by none
        # Only rank 0 publishes, and writes this.
        is_ours = self._world.is_leader
        document = content.to_dict(self._pipeline.publisher.published if is_ours else state.history)
        if self._pipeline.save(document, content.metrics, kept, may_wait, required, pieces):
            self._saved, self._saved_at = (state.epoch, state.step), time.monotonic()
            self._world.lives.remember(self._run_id, state.step)

    def costs(self, state: TrainState) -> dict[str, float]:
        """Return what the unit under way and the newest commit took, by the name of the metric."""
        seconds = self._unit_seconds(state)
        costs = {"epoch_seconds": seconds}
        if state.unit == STEP:
            num = state.step - self._saved[1]
            costs = {"steps_per_second": num / max(time.monotonic() - self._saved_at, 1e-9)}
        elif self._num_samples:
            costs["samples_per_second"] = self._num_samples / max(seconds, 1e-9)
        if self._pipeline.timings:
            costs |= self._pipeline.timings.as_metrics()
        published = self._pipeline.publisher.published.keys()
        prefix = timing_prefix([*state.history.keys(), *published])
        return {f"{prefix}{name}": value for name, value in costs.items()}

    def _unit_seconds(self, state: TrainState) -> float:
        """Return how long the unit under way has taken, in all attempts."""
        return state.epoch_seconds + time.monotonic() - self._unit_began
