"""Publishing what a run left on this disk: by the next resume, or by `train sync`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onward.attempts.attempt import ENDED_WORDS, VANISHED, Attempt
from onward.attempts.spans import first_epochs
from onward.checkpoint.bringing import parts_in
from onward.checkpoint.format import load_content
from onward.checkpoint.hashed import verify
from onward.checkpoint.manifest import Manifest
from onward.checkpoint.policy import Retention
from onward.checkpoint.spool import RunFolder, Spool
from onward.checkpoint.store import CheckpointStore
from onward.checkpoint.transfers import show_upload
from onward.errors import CheckpointDamaged, CheckpointError, RankFilesMissing, RunNotUsable
from onward.metrics import EPOCH, UNITS, Point
from onward.opening.source import find_source
from onward.options.run_options import RunOptions
from onward.publish.publisher import Publisher
from onward.publish.results import Results, publish_results
from onward.run.subject import Kind, stored_of
from onward.system import environment
from onward.system.untrusted import is_path_part
from onward.tracking.client import Tracking
from onward.tracking.names import HOST_TAG
from onward.tracking.record import RunRecord
from onward.tracking.ui import run_link
from onward.words.language import _
from onward.words.shell import command
from onward.words.units import counted

log = logging.getLogger(__name__)


def waiting_runs(home: Path, tracking_uri: str) -> list[str]:
    """Return the IDs of the runs of that server of which something waits on this disk."""
    prefix = environment.run_prefix(tracking_uri)
    runs = home.glob(f"runs/{prefix}*")
    found = [run for run in runs if RunFolder(run).waiting() or parts_in(RunFolder(run))]
    names = {run.name.removeprefix(prefix) for run in found}
    return sorted(name for name in names if is_path_part(name))


def publish_waiting(
    tracking: Tracking,
    record: RunRecord,
    store: CheckpointStore,
    folder: RunFolder,
    kind: Kind | None,
) -> list[Spool]:
    """Publish what the run's newest attempt left on this disk, and close that attempt.

    The caller has acquired the folder. A process that died without a word was killed: its run
    can be resumed. What the run trains is asked only for the results of one that is finished.

    Returns:
        The spools that were overtaken: a later attempt has been claimed, so that theirs may not
        be published any more. They are kept.

    Raises:
        StoreUnavailable: The store does not answer; what is left stays on this disk.
    """
    overtaken = []
    for spool in folder.waiting():
        if spool.attempt != record.attempts:
            if whole_checkpoints(spool):
                overtaken.append(spool)
            else:
                spool.discard()  # it left nothing that could be a run
            continue
        journal = spool.read_journal()
        if not is_journal(journal, record, spool.attempt):
            journal = lost_journal(tracking, record)
        attempt = Attempt.from_journal(tracking, journal)
        manifests = _publish(tracking, record, store, spool, attempt)
        for log_file in spool.log_files():
            store.try_to("log", functools.partial(store.upload, log_file, "logs"))
        vanished = journal["status"] == "RUNNING"
        status = "KILLED" if vanished else str(journal["status"])
        epochs = [m.epoch for m in manifests if m.attempt == spool.attempt]
        try:
            last_epoch = max([int(journal["last_epoch"]), *epochs])
            attempt.end(status, last_epoch, VANISHED if vanished else None)
            _show(tracking, store, spool, attempt)
            tracking.log_points(attempt.child_id, [Point(*p) for p in journal.get("system", [])])
        except RunNotUsable as error:  # somebody deleted its child; the run itself is closed
            log.warning("%s", error)
        log.info(
            _("Published what attempt %d of run '%s' left on this disk: up to %s, status %s"),
            spool.attempt, record.run_id, counted(record.unit, max([0, *epochs])), status,
        )  # fmt: skip
        if status == "FINISHED" and kind is None:
            again = command("publish", record.run_id)
            log.warning(_("The model and the figures are not made: `%s` makes the model"), again)
        elif status == "FINISHED" and kind is not None:
            _finish(tracking, record, store, attempt, kind)
        spool.discard()
    return overtaken


def tell_overtaken(record: RunRecord, spool: Spool) -> None:
    """Warn that a later attempt has overtaken one, and say where its work is."""
    log.warning(
        _("Attempt %d of run '%s' was overtaken by attempt %d, so what it left in '%s' is kept and "
          "not published: `%s` makes a run of it"),
        spool.attempt, record.run_id, record.attempts, spool.folder,
        command("sync", record.run_id, "--as_fork", "true"),
    )  # fmt: skip


def _finish(
    tracking: Tracking, record: RunRecord, store: CheckpointStore, attempt: Attempt, kind: Kind
) -> None:
    """Do what the process did not come to that finished the training."""
    try:
        options = find_source(record, store, None, kind).options
    except (CheckpointError, RunNotUsable) as error:
        log.warning("%s", error)
        return

    def find() -> Results:
        return kind.open(options, stored_of(tracking, record, options))

    publish_results(tracking, record.run_id, store, options, find, attempt.check_lease)


def _publish(
    tracking: Tracking, record: RunRecord, store: CheckpointStore, spool: Spool, attempt: Attempt
) -> list[Manifest]:
    """Commit the checkpoints that are still needed, oldest first, with their metrics.

    Returns:
        All that the store and the spool held.
    """
    # What the attempt did not go on from was damaged when it began: it is not the newest.
    stored = [
        m
        for m in store.list(index=record.index_sha256)
        if m.attempt >= spool.attempt or m.epoch < attempt.first_epoch
    ]
    newest = stored[-1].order if stored else (-1, -1)
    # The newest in the store too: it may be committed, and its metrics not yet published.
    waiting = [m for m in good_checkpoints(spool) if m.order >= newest]
    if waiting:
        folder = spool.path(waiting[-1].name)
        content = load_content(folder, waiting[-1], str(folder), is_whole=False)
        retention = Retention.of(RunOptions.known_of(content.config))
        published = tracking.published(record.run_id, record.metrics)
        publisher = Publisher(
            attempt, store, spool, retention, stored, HOST_TAG not in record.tags, published,
            sweeps=waiting[-1].world == 1,
        )  # fmt: skip
        publisher.add_held(content)
        new = [m for m in waiting if not any(m.is_same(n) for n in stored)]
        gone = retention.to_prune([*stored, *new])
        needed = [m for m in waiting if m not in gone]
        with show_upload(spool, needed):
            for manifest in needed:
                if manifest.missing_ranks and store.has_key:
                    told = _(
                        "%s lacks what other ranks have, which no key has signed: it is left out"
                    )
                    log.warning(told, manifest.name)
                    continue
                try:
                    publisher.commit(manifest)
                except RankFilesMissing as error:
                    log.warning(
                        _("%s. What is here of it is there: it is committed once they are"), error
                    )
        publisher.tidy()
        waiting = [m for m in waiting if any(m.is_same(n) for n in publisher.manifests)]
    return [*stored, *waiting]


def _show(tracking: Tracking, store: CheckpointStore, spool: Spool, attempt: Attempt) -> None:
    """Bring what people see of the run up to date."""
    record = tracking.get_run(attempt.run_id)
    retention = Retention.of(record.run_options())
    published = tracking.published(record.run_id, record.metrics)
    points_here = HOST_TAG not in record.tags
    stored = store.list(index=record.index_sha256)
    Publisher(attempt, store, spool, retention, stored, points_here, published).show()


def lost_journal(tracking: Tracking, record: RunRecord) -> dict[str, Any]:
    """Return what can be told of the run's newest attempt without what it recorded."""
    number = record.attempts
    child_id = record.child_of(number) or record.run_id
    first = first_epochs(record.tags).get(number, 1)
    attempt = Attempt(tracking, record.run_id, number, first, child_id, run_link(tracking, record))
    return attempt.journal("RUNNING", first - 1)


def is_journal(entry: Mapping[str, Any], record: RunRecord, number: int) -> bool:
    """Tell whether an entry is one that `Attempt.journal` wrote of this attempt of the run.

    What lies on the disk may be damaged, or of somebody who could write there once: it names no
    other run than those the server names for the attempt.
    """
    counts = (entry.get("number"), entry.get("first_epoch"), entry.get("last_epoch"))
    child_id, stray_id = entry.get("child_id"), entry.get("stray_id")
    return (
        all(type(count) is int and count >= 0 for count in counts)
        and entry["number"] == number
        and entry.get("run_id") == record.run_id
        and child_id == record.child_of(number)
        and (stray_id is None or is_path_part(stray_id))
        and isinstance(entry.get("link"), str)
        and entry.get("unit", EPOCH) in UNITS
        and all(type(entry.get(key, False)) is bool for key in ("was_finished", "has_trained"))
        and entry.get("status") in ("RUNNING", *ENDED_WORDS)
        and _are_points(entry.get("system", []))
    )


def _are_points(rows: object) -> bool:
    """Tell whether they are the fields of metric values: key, step, timestamp, value."""
    return isinstance(rows, list) and all(
        isinstance(row, list)
        and [type(field) for field in row[:3]] == [str, int, int]
        and len(row) == 4
        and type(row[3]) in (int, float)
        for row in rows
    )


def good_checkpoints(spool: Spool) -> list[Manifest]:
    """Return what is whole of the checkpoints in the spool, verified, oldest first.

    Of some the files of other ranks may be elsewhere.
    """
    good = []
    for manifest in spool.list():
        folder = spool.path(manifest.name)
        try:
            verify(folder, manifest, str(folder))
            good.append(manifest)
        except CheckpointDamaged as error:
            log.warning(_("%s: it is not published"), error)
    return good


def whole_checkpoints(spool: Spool) -> list[Manifest]:
    """Return those of which all is in the spool."""
    return [manifest for manifest in good_checkpoints(spool) if not manifest.missing_ranks]
