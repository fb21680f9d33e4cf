"""What a rank other than 0 has in place of an attempt: it takes part, and speaks to nobody."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onward.attempts.heartbeat import BEAT_SECONDS
from onward.checkpoint.content import Content
from onward.checkpoint.handover import Noting, Timings
from onward.checkpoint.others import Bringer
from onward.checkpoint.pieces import Piece
from onward.checkpoint.rank_files import RankFiles, RankWriter
from onward.checkpoint.spool import RunFolder
from onward.checkpoint.staging import MayWait
from onward.errors import Interrupted, RankLost, RankStopped, UsageError
from onward.metrics import EPOCH, History, Point
from onward.options.run_options import RunOptions
from onward.run.signals import StopRequest
from onward.run.state import TrainState
from onward.system import environment
from onward.system.system_metrics import SystemMetrics
from onward.words.language import _
from onward.world import World
from onward.world.machines import Machine

log = logging.getLogger(__name__)


@dataclass
class Followed:
    """The attempt of rank 0.

    Args:
        run_id: The run.
        number: Of the attempt.
        first_epoch: The first that it trains.
        link: To what people look at.
        unit: What `first_epoch` counts.
        has_trained: Whether an epoch, or a step, was begun.
    """

    run_id: str
    number: int
    first_epoch: int
    link: str
    unit: str = EPOCH
    has_trained: bool = False


@dataclass
class _Unpublished:
    """In place of a `Publisher`: rank 0's publishes."""

    published: History = field(default_factory=History)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, points: Iterable[Point], order: tuple[int, int] | None = None) -> None:
        """Leave it to rank 0."""

    def add_held(self, content: Content) -> None:
        """Leave it to rank 0."""


class RankPipeline:
    """In place of a `Pipeline`: rank 0's has what all ranks have in common.

    Args:
        files: Where this rank puts its pieces of what is spread over all.
        bringer: Brings them to the store; None: rank 0 does, which sees them.
        is_refused: Whether they cannot come together: they are to stay on the disk of rank 0.
    """

    timings: Timings | None = None
    condition = ""

    def __init__(
        self, files: RankFiles, bringer: Bringer | None = None, is_refused: bool = False
    ) -> None:
        self.publisher: Noting = _Unpublished()
        self._writer, self._is_refused = RankWriter(files, bringer), is_refused

    def check(self) -> None:
        """Leave it to rank 0, which hears of it."""

    def hold_update(self) -> None:
        """Wait until this rank's pieces are set aside."""
        self._writer.hold_update()

    def save(
        self,
        state: Mapping[str, Any],
        metrics: Mapping[str, float],
        kept: bool,
        may_wait: MayWait | None = None,
        required: bool = False,
        pieces: Sequence[Piece] | None = None,
    ) -> bool:
        """Set this rank's pieces aside; the rest is rank 0's, which has been given it.

        Raises:
            UsageError: Rank 0 could never have them.
        """
        if pieces is not None and self._is_refused:
            raise UsageError(
                _("upload=off keeps checkpoints on the disk of rank 0, which this rank does not "
                  "see: ranks with sharded weights on several machines need a store that all of "
                  "them reach")
            )  # fmt: skip
        if pieces is not None:
            self._writer.save(state, pieces, may_wait)
        return True

    def close(self) -> None:
        """Write what is set aside."""
        self._writer.close()

    def end(self, log_file: Path) -> None:
        """Bring nothing more to the store but the rank's log."""
        self._writer.end(log_file)


class Following:
    """In place of a `Lifecycle`: from the signals taken over to the end of rank 0.

    Args:
        options: Those of the run.
        pipeline: Of this rank.
        world: The ranks.
        log_file: The rank's log.
        host: This disk's folder for the run, where rank 0 has another disk; else None.
    """

    def __init__(
        self,
        options: RunOptions,
        pipeline: RankPipeline,
        world: World,
        log_file: Path = Path(),
        host: RunFolder | None = None,
    ) -> None:
        self._options, self._pipeline, self._world = options, pipeline, world
        self._log_file, self._host = log_file, host
        self.stop = StopRequest(environment.seconds_left(options.max_minutes), world.has_agent)
        self.folder = Path()
        self.progress: Mapping[str, float] = {}
        self.on_close: Callable[[], object] = lambda: None
        self._machine = Machine(world, lambda: SystemMetrics().sample, BEAT_SECONDS)

    def know_options(self, options: RunOptions) -> None:
        """Know options that are complete now."""
        self._options = options

    def open(self) -> None:
        """Take over the signals."""
        self.stop.install()
        self._machine.open()

    def abandon(self, status: str = "KILLED") -> None:
        """Leave a run that was opened, and never entered."""
        self._leave()

    def _leave(self) -> None:
        self._world.close()
        if self._host is not None:
            self._host.release()
        self.on_close()

    def close(self, error: BaseException | None, state: TrainState | None) -> None:
        """Say how this rank ends, and wait for rank 0, if it is there."""
        self._machine.close()
        try:
            if isinstance(error, RankLost):
                log.warning("%s", error)
            self._world.end(error)
            self._pipeline.close()
            # After a fault of this rank the others wait for it in vain until its process has ended.
            if error is None or isinstance(error, Interrupted | RankStopped):
                grace = self._options.grace_seconds
                self._world.wait_for_leader(lambda: self.stop.seconds_left(grace))
        finally:
            self._pipeline.end(self._log_file)
            self.stop.uninstall()
            self._leave()

    def require_saved(self) -> None:
        """Leave it to rank 0."""
