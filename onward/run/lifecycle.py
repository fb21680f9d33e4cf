"""The life of an attempt in its process: from the signals taken over to a true status."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from onward.attempts.attempt import Attempt
from onward.attempts.heartbeat import Heartbeat
from onward.checkpoint.pipeline import Pipeline
from onward.checkpoint.spool import RunFolder
from onward.errors import RankLost, RankStopped
from onward.options.run_options import RunOptions
from onward.run.closing import Closing, abandon
from onward.run.signals import StopRequest
from onward.run.state import TrainState
from onward.system import environment, invocation
from onward.world import ALONE, World
from onward.world.machines import OtherMachines

log = logging.getLogger(__name__)


class Lifecycle:
    """What lives as long as an attempt: signals, heartbeat, threads, the folder's lock.

    Args:
        attempt: The attempt.
        pipeline: Of its checkpoints.
        folder: This disk's folder for the run, acquired.
        options: Those of the run.
        finish: Called when training is finished, in the background: what is made of its result.
        world: The ranks.

    Attributes:
        folder: Where the attempt's files are on this disk.
        artifact_uri: Where they go.
        progress: What the heartbeat tells.
        stop: Whether a signal has asked to stop.
        on_close: Called at the very end.
    """

    def __init__(
        self,
        attempt: Attempt,
        pipeline: Pipeline,
        folder: RunFolder,
        options: RunOptions,
        finish: Callable[[], None],
        world: World = ALONE,
    ) -> None:
        self._attempt, self._pipeline, self._folder = attempt, pipeline, folder
        self._world, self.folder = world, pipeline.spool.folder
        self.artifact_uri = pipeline.publisher.store.uri
        self.stop = StopRequest(environment.seconds_left(options.max_minutes), world.has_agent)
        pipeline.seconds_left = lambda: self.stop.seconds_left(options.grace_seconds)
        self.progress: Mapping[str, float] = {}
        self.on_close: Callable[[], object] = lambda: None
        others = OtherMachines(world).sample
        self._heartbeat = Heartbeat(attempt, lambda: self.progress, pipeline.fail, others)
        self._closing = Closing(attempt, pipeline, self._heartbeat, options, finish)

    def know_options(self, options: RunOptions) -> None:
        """Know options that are complete now."""
        self._closing.options = options

    def open(self) -> None:
        """Take over the signals, and start the threads."""
        self.stop.install()
        self._pipeline.open()
        self._heartbeat.start()

    def abandon(self, status: str = "KILLED") -> None:
        """End an attempt that was opened, and never entered."""
        abandon(self._attempt, self._pipeline.spool, status)
        self.release()

    def release(self) -> None:
        """Give the folder back."""
        self._folder.release()

    def close(self, error: BaseException | None, state: TrainState | None) -> None:
        """End the attempt; see `Closing.close`."""
        try:
            if isinstance(error, SystemExit) and invocation.script() is not None:
                log.warning("%s", error)  # nobody else tells: a script ends by it without a word
            self._world.end(error)
            files = self._pipeline.uploader.rank_files
            if files is not None and isinstance(error, RankLost | RankStopped):
                files.lose()
            self._closing.close(error, state)
        finally:
            self._heartbeat.stop()
            self.stop.uninstall()
            try:
                # IMPORTANT: an upload under way keeps the folder: no other process may publish
                # what is in it meanwhile.
                self._pipeline.let_go(self.release)
            finally:
                self._world.closed()
                self._world.close()
                self.on_close()

    def require_saved(self) -> None:
        """Make sure that the newest epochs could be written; see `Closing.require_saved`."""
        self._closing.require_saved()
