"""The way of a checkpoint: write → upload → commit → publish → point → prune.

Each step begins when the one before is done, so that whenever the process dies, what the store
shows is true: metrics only of epochs that can be resumed, a pointer only to what is committed.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from train.checkpoint.format import CHECKPOINT_FILE, Manifest, write_checkpoint
from train.checkpoint.policy import find_best, to_prune
from train.checkpoint.store import ROOT, CheckpointStore
from train.metrics import Point
from train.tracking import EPOCH_TAG, LATEST_CHECKPOINT_TAG, Tracking

log = logging.getLogger(__name__)


class Pipeline:
    """Commits the checkpoints of one attempt.

    Args:
        tracking: Where metrics and tags go.
        store: The run's checkpoints.
        attempt: The number of this attempt.
        folder: Local folder for files on their way.
        manifests: The good checkpoints that the run has already, oldest first. One known to be
            damaged must not be among them: it would count as the newest, or as the best.
    """

    def __init__(
        self,
        tracking: Tracking,
        store: CheckpointStore,
        attempt: int,
        folder: Path,
        manifests: Iterable[Manifest] = (),
    ) -> None:
        self._tracking, self._store, self._attempt = tracking, store, attempt
        self._folder = folder
        self.manifests = list(manifests)
        self.unpublished: list[Point] = []

    def commit(
        self, checkpoint: Mapping[str, Any], metrics: Mapping[str, float], kept: bool
    ) -> Manifest:
        """Save one checkpoint and publish the metrics that it covers.

        Args:
            checkpoint: What `checkpoint.pth` is to hold.
            metrics: The epoch's own metrics, for the manifest.
            kept: Whether it stays for good, or until a newer one is committed.

        Raises:
            StoreUnavailable: The store does not answer; what was committed stays.
        """
        folder = self._folder / f"epoch_{checkpoint['epoch']}"
        manifest = write_checkpoint(
            folder, checkpoint, attempt=self._attempt, kept=kept, metrics=metrics
        )
        self._store.put(folder, manifest)
        self.manifests.append(manifest)
        self.settle()
        shutil.rmtree(folder, ignore_errors=True)
        return manifest

    def settle(self) -> None:
        """Do what follows a commit: publish, point, prune.

        A resume begins with it, since the attempt before may have died in between.
        """
        # IMPORTANT: metrics follow the commit, the pointer follows the metrics.
        self._tracking.log_points(self._store.run_id, self.unpublished)
        self.unpublished = []
        if self.manifests:
            self._point_to(self.manifests[-1])
            self._prune()

    @property
    def log_file(self) -> Path:
        """The attempt's log, on local disk."""
        return self._folder / f"attempt_{self._attempt}.log"

    def upload_log(self) -> None:
        """Store the attempt's log, as far as it is written."""
        self._store.upload(self.log_file, "logs")

    def _point_to(self, manifest: Manifest) -> None:
        best = find_best(self.manifests)
        tags = {
            LATEST_CHECKPOINT_TAG: f"{ROOT}/{manifest.name}/{CHECKPOINT_FILE}",
            EPOCH_TAG: str(manifest.epoch),
        }
        if best is not None:
            tags["train.best_epoch"] = str(best.epoch)
        self._tracking.set_tags(self._store.run_id, tags)

    def _prune(self) -> None:
        """Delete what need not stay.

        The index is written first and without it, so that it never names what is gone.
        """
        gone = to_prune(self.manifests)
        self.manifests = [m for m in self.manifests if m not in gone]
        self._store.write_index(self.manifests, self._folder)
        for manifest in gone:
            self._store.delete(manifest)
