"""Finishing what several machines have brought of a checkpoint, and nobody has committed.

Rank 0, or its machine, may be gone by then, and so may the others: what they have brought is in the
store. A machine that is there again may still have to bring what it has on its disk.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from onward.attempts.attempt import ENDED_WORDS
from onward.attempts.heartbeat import wait_until_free
from onward.checkpoint.artifacts import Artifacts
from onward.checkpoint.bringing import bring_part, parts_in, remove_part, step_of
from onward.checkpoint.manifest import Manifest
from onward.checkpoint.spool import RunFolder
from onward.checkpoint.store import CheckpointStore
from onward.checkpoint.uploads import Uploads
from onward.errors import (
    CheckpointDamaged,
    CheckpointError,
    RankFilesMissing,
    RunNotUsable,
    StoreUnavailable,
)
from onward.opening.waiting import lost_journal, publish_waiting
from onward.run.subject import Kind
from onward.tracking.client import Tracking
from onward.tracking.record import RunRecord
from onward.words.language import _

log = logging.getLogger(__name__)

Ask = Callable[[Mapping[str, Any]], object]


def require_newest(tracking: Tracking, run_id: str, attempt: int) -> None:
    """Make sure that the newest attempt of a run is still that one.

    Raises:
        RunNotUsable: It is another.
    """
    if tracking.get_run(run_id).attempts != attempt:
        raise RunNotUsable(run_id, _("was taken over by another attempt meanwhile"))


def bring_waiting(
    folder: RunFolder,
    attempt: int,
    artifacts: Artifacts,
    names: Collection[str],
    check_lease: Callable[[], object],
) -> None:
    """Bring to the store what ranks of an attempt have left on this disk.

    What earlier attempts have left, nobody can complete: it is removed.

    Args:
        folder: This disk's folder for the run.
        attempt: The newest attempt.
        artifacts: The run's files.
        names: The checkpoints that are to be completed.
        check_lease: Called before each file; raises to stop.

    Raises:
        StoreUnavailable: The store does not answer.
    """
    uploads = Uploads(artifacts)
    for number, part in parts_in(folder):
        if number == attempt and part.name in names:
            try:
                bring_part(uploads, part, check_lease)
            except CheckpointDamaged as error:
                log.warning(_("%s: it is not published"), error)
        if number <= attempt:
            remove_part(part)


def finish_drafts(
    tracking: Tracking,
    record: RunRecord,
    store: CheckpointStore,
    folder: RunFolder,
    kind: Kind | None,
    is_free: bool = False,
    ask: Ask = lambda question: None,
) -> bool:
    """Commit what lacks its commit alone, unless the run is being trained.

    Args:
        tracking: The server.
        record: The run, just read.
        store: Its checkpoints.
        folder: This disk's folder for it, acquired.
        kind: What it trains.
        is_free: Whether nobody is known to work on the run; else that is waited for.
        ask: Lets other machines bring what they have.

    Returns:
        Whether anything was.
    """
    drafts = find_drafts(record, store)
    if not drafts:
        return False
    if not is_free:
        try:
            record = wait_until_free(tracking, record, take_over=False)
        except RunNotUsable as error:
            log.info("%s", error)
            return False
    names = [draft.name for draft in drafts]
    ask({"bring": names, "run_id": record.run_id, "attempt": record.attempts,
         "uri": record.artifact_uri})  # fmt: skip
    spool, num_adopted = folder.spool(record.attempts), 0
    for draft in drafts:
        try:
            store.gathering.adopt(draft, spool.path(draft.name))
            num_adopted += 1
        except (CheckpointError, OSError) as error:
            if isinstance(error, StoreUnavailable) and not isinstance(error, RankFilesMissing):
                raise
            log.warning(_("%s. It is not committed"), error)
    if not num_adopted:
        return False
    if not spool.read_journal():
        status = {"status": record.status} if record.status in ENDED_WORDS else {}
        spool.write_journal(lost_journal(tracking, record) | status)
    publish_waiting(tracking, record, store, folder, kind)
    return True


def find_drafts(record: RunRecord, store: CheckpointStore) -> list[Manifest]:
    """Return what the newest attempt has left without a commit, and is newer than any that has one.

    With a key there are none: who signed what the ranks have brought could not be told.
    """
    if store.has_key or not record.attempts:
        return []
    found = store.list(logging.DEBUG, record.index_sha256)
    committed = {m.name: m for m in found}
    newest = max((m.order for m in committed.values()), default=(-1, -1))
    drafts = store.gathering.drafts(store.names - committed.keys())
    return [d for d in drafts if d.attempt == record.attempts and d.order > newest]


def finish_elsewhere(
    tracking: Tracking,
    record: RunRecord,
    store: CheckpointStore,
    folder: RunFolder,
    kind: Kind | None,
) -> None:
    """Bring what is on this disk, and finish what that completes, unless the run is being trained.

    Raises:
        StoreUnavailable: The store does not answer.
    """
    parts = [part for _number, part in parts_in(folder)]
    committed = store.list(logging.DEBUG, record.index_sha256) if parts else []
    newest = max((manifest.step for manifest in committed), default=-1)
    wanted = [part.name for part in parts if step_of(part) > newest]

    if parts:
        files, newest_attempt = store.gathering.artifacts, record.attempts
        check_lease = functools.partial(require_newest, tracking, record.run_id, newest_attempt)
        bring_waiting(folder, newest_attempt, files, wanted, check_lease)
    finish_drafts(tracking, record, store, folder, kind)
