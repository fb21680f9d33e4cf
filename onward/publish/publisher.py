"""What follows once a checkpoint is whole on local disk: upload → commit → publish → point → prune.

Each step begins when the one before is done, so that whenever the process dies, what the store
shows is true: metrics only of epochs that can be resumed, a pointer only to what is committed.
What follows the commit may be done for several checkpoints at once.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections.abc import Iterable, Sequence

from onward.attempts.attempt import Attempt
from onward.checkpoint import listed
from onward.checkpoint.content import Content
from onward.checkpoint.manifest import ROOT, Manifest
from onward.checkpoint.policy import Retention, find_best
from onward.checkpoint.spool import Spool
from onward.checkpoint.store import CheckpointStore
from onward.metrics import History, Point
from onward.publish.checkpoint_page import checkpoint_page
from onward.system.files import atomic_write
from onward.tracking.names import (
    BEST_EPOCH_TAG,
    EPOCH_TAG,
    INDEX_TAG,
    LATEST_CHECKPOINT_TAG,
    MANIFEST_TAG,
)
from onward.words.language import _

log = logging.getLogger(__name__)

Order = tuple[int, int]  # of a checkpoint among those of its run

PAGE_FILE = "index.html"
PAGE_SECONDS = 60.0
LOG_SECONDS = 10.0
COMMIT_LEASE_SECONDS = 0.1  # for which an answer that the attempt has its run is enough to commit
PRUNE_SECONDS = 60.0  # until a store that refuses to delete is asked again
LISTED_SHARE = 100  # the index may lack one of so many checkpoints: a long one costs time


class Publisher:
    """Brings a run's store in line with its newest checkpoint; every step can be repeated.

    Args:
        attempt: On whose behalf: nothing is published once a later one was claimed.
        store: The run's checkpoints.
        spool: Where the local files of the run lie.
        retention: Which checkpoints stay.
        manifests: The good checkpoints that the store has already, oldest first. One known to be
            damaged must not be among them: it would count as the newest, or as the best.
        points_here: Whether the store is where MLflow's pointer looks.
        published: What MLflow has of the run's metrics already.
        sweeps: Whether folders without a commit are removed. They may be what several machines have
            brought, which the one that publishes does not wait for.
    """

    def __init__(
        self,
        attempt: Attempt,
        store: CheckpointStore,
        spool: Spool,
        retention: Retention,
        manifests: Iterable[Manifest] = (),
        points_here: bool = True,
        published: Iterable[Point] = (),
        sweeps: bool = True,
    ) -> None:
        self._attempt, self._tracking = attempt, attempt.tracking
        self.store, self._spool = store, spool
        self.retention, self._points_here, self.sweeps = retention, points_here, sweeps
        self._require_lease = attempt.require_lease
        self._lock = threading.Lock()
        self._unpublished: list[tuple[Point, Order | None]] = []
        self.manifests = list(manifests)
        self.tags: dict[str, str] = {}  # what the next commit is to say of the run besides
        self.published = History(published)  # what MLflow has of the run, as far as is known
        self._page_at = self._log_at = -math.inf
        self._prune_at = -math.inf  # when the store is asked again to delete
        self._is_tidy = True  # whether the store has refused nothing of it
        self._is_stale = False  # whether the index has another one of a name that was committed
        self._num_unlisted = 1 + len(self.manifests)  # that the index lacks, as far as is known

    def add(self, points: Iterable[Point], order: Order | None = None) -> None:
        """Note metric values, to be published once a checkpoint that holds them is committed.

        Args:
            points: The values.
            order: That of the oldest checkpoint that can hold them, see `Manifest.order`; None:
                their steps are epochs, and the checkpoint is that of the epoch.
        """
        with self._lock:
            self._unpublished += [(point, order) for point in points]

    def add_held(self, content: Content) -> None:
        """Note what a committed checkpoint holds and MLflow has not, as far as is known."""
        for point in content.history.missing_from(self.published):
            self.add([point], (0, 0) if point.key in content.axes else None)

    def commit(self, manifest: Manifest) -> None:
        """Upload the spooled checkpoint, and do all that follows; what is done is not repeated.

        Raises:
            StoreUnavailable: Call again later.
            Superseded: A later attempt was claimed; nothing more may be published.
        """
        self.put(manifest)
        self.settle()

    def put(self, manifest: Manifest) -> None:
        """Upload the spooled checkpoint, if it is not in the store: then it exists.

        Raises:
            StoreUnavailable: Call again later.
            Superseded: A later attempt was claimed; nothing more may be published.
        """
        known = next((m for m in self.manifests if m.name == manifest.name), None)
        if known is None or not known.is_same(manifest):
            previous = self.manifests[-1] if self.manifests else None

            def link(cut: Manifest) -> Manifest:
                self._attempt.require_lease(COMMIT_LEASE_SECONDS)
                return self.store.linked(cut, previous)

            folder = self._spool.path(manifest.name)
            stored = self.store.put(folder, manifest, self._require_lease, link)
            self._is_stale |= known is not None
            self.manifests = [*(m for m in self.manifests if m is not known), stored]
            self._num_unlisted += 1
        if self._is_stale:
            self.settle()

    def settle(self, is_last: bool = False) -> None:
        """Do what follows commits: publish, point, prune.

        A resume begins with it, since the attempt before may have died in between.

        Args:
            is_last: Whether the index is to have all; else it may lack a few of the newest, which a
                listing reads one by one.

        Raises:
            StoreUnavailable: Call again later.
        """
        if not self.manifests:
            return
        newest, gone = self.manifests[-1], self.retention.to_prune(self.manifests)
        may_lack = 0 if is_last else len(self.manifests) // LISTED_SHARE
        index = None
        if gone or self._is_stale or not self._is_tidy or self._num_unlisted > may_lack:
            index = listed.to_text(m for m in self.manifests if m not in gone)
        # IMPORTANT: the lease is checked before each change, since an attempt may have been frozen
        # at any point; a request that was under way then is all that can still land.
        self._require_lease()
        self._publish(newest, index)
        if index is not None:
            self._require_lease()
            self._prune(gone, index)

    def _publish(self, newest: Manifest, index: bytes | None) -> None:
        """Publish what a checkpoint holds, and point to it.

        IMPORTANT: metrics follow the commit, the pointer follows the metrics.
        """

        def is_due(point: Point, order: Order | None) -> bool:
            return point.step <= newest.epoch if order is None else order <= newest.order

        with self._lock:
            due = [point for point, order in self._unpublished if is_due(point, order)]
        self._tracking.log_points(self.store.run_id, due, self._pointers(newest, index))
        for point in due:
            self.published.add(point)
        with self._lock:
            self._unpublished = [row for row in self._unpublished if not is_due(*row)]

    def _pointers(self, newest: Manifest, index: bytes | None) -> dict[str, str]:
        """Return the tags by which the run names its newest checkpoint, its best, and its index."""
        tags = {**self.tags, EPOCH_TAG: str(newest.epoch), MANIFEST_TAG: newest.digest}
        if index is not None:
            tags[INDEX_TAG] = listed.digest(index)
        if self._points_here:
            name = newest.files[0].path.split("/")[0]
            tags[LATEST_CHECKPOINT_TAG] = f"{ROOT}/{newest.name}/{name}"
        best = find_best(self.manifests)
        if best is not None:
            tags[BEST_EPOCH_TAG] = str(best.epoch)
        return tags

    def _prune(self, gone: Sequence[Manifest], index: bytes) -> None:
        """Delete what need not stay, and what is left of a killed upload or deletion.

        The index is written first and without it, so that it never names what is gone; one that
        cannot be written, as it is too long for a gateway, goes. A store that refuses to delete is
        asked again now and then: nothing waits for it.
        """
        self._is_tidy = False
        write_index = functools.partial(self.store.write_index, index, self._spool.folder)
        is_written = self.store.try_to("index", write_index)
        if is_written:
            self._num_unlisted = 0
        elif not self.store.try_to("old index", self.store.delete_index):
            return
        self._is_stale = False
        if time.monotonic() < self._prune_at:
            return
        left = self.store.leftovers(self.manifests) if self.sweeps else []
        for name in [*(m.name for m in gone), *left]:
            self._attempt.check_lease()  # nothing brings back what is deleted
            if not self.store.try_to("prune", functools.partial(self.store.delete, name)):
                self._prune_at = time.monotonic() + PRUNE_SECONDS
                return
            self.manifests = [m for m in self.manifests if m.name != name]
        self._is_tidy = is_written

    def tidy(self) -> None:
        """Write the index and prune once more, where it lacks some or the store has refused it.

        Raises:
            StoreUnavailable: Call again later.
            Superseded: A later attempt was claimed.
        """
        if self._num_unlisted or not self._is_tidy:
            self._prune_at = -math.inf
            self.settle(is_last=True)

    def silent_seconds(self) -> float:
        """Return for how long the tracking server has owed an answer."""
        return self._tracking.silent_seconds()

    def refresh_page(self) -> None:
        """Bring the page up to date, at most once a minute."""
        if time.monotonic() - self._page_at >= PAGE_SECONDS:
            self._page_at = time.monotonic()
            self.show()

    def show(self) -> None:
        """Write the page of the checkpoints, and while the run is RUNNING its description.

        Raises:
            StoreUnavailable: The server does not answer. Call again later.
            Superseded: A later attempt has the run.
        """
        record = self._attempt.check_lease()
        try:
            page = checkpoint_page(
                record.standing, record.name, record.status, self.manifests, self.published,
                record.monitor,
            )  # fmt: skip
        except Exception as error:  # a fault in what is only looked at must not end training
            log.warning(_("The page of the checkpoints is not up to date: %r"), error)
            return
        self._upload_page(page)
        if record.status == "RUNNING":  # the end is told by the attempt itself
            self._attempt.describe(record)

    def _upload_page(self, page: str) -> None:
        if self._points_here:
            file = self._spool.folder / PAGE_FILE
            atomic_write(file, lambda out: out.write(page.encode()))
            self.store.try_to("page", lambda: self.store.upload(file, ROOT))

    def refresh_log(self) -> None:
        """Bring the stored log up to date, at most every ten seconds."""
        if time.monotonic() - self._log_at >= LOG_SECONDS:
            self._log_at = time.monotonic()
            self.upload_log()

    def upload_log(self) -> bool:
        """Store the attempt's log, as far as it is written; return whether it is."""
        store = self.store
        uploads = [functools.partial(store.upload, at, "logs") for at in self._spool.log_files()]
        return all([store.try_to("log", upload) for upload in uploads])  # noqa: C419  (each one)
