"""`train sync`: publishing what waits on this disk, and making runs of what was overtaken."""

from __future__ import annotations

import logging

from onward.attempts.last_word import status_after
from onward.checkpoint.bringing import parts_in
from onward.checkpoint.format import load_content
from onward.checkpoint.spool import Spool
from onward.errors import RunNotUsable
from onward.opening.begin import Opening
from onward.opening.copies import forked_from, from_contents
from onward.opening.finishing import finish_elsewhere
from onward.opening.source import find_run, local_folder, open_store
from onward.opening.waiting import publish_waiting, tell_overtaken, whole_checkpoints
from onward.options.command import train_command
from onward.options.request import Launch
from onward.publish.results import with_all_history
from onward.run.subject import Kind, require_kind, stored_of
from onward.terminal.report import Reporter
from onward.tracking.client import Tracking
from onward.tracking.record import RunRecord
from onward.words.language import _

log = logging.getLogger(__name__)


def sync_run(
    tracking: Tracking, run_id: str, as_fork: bool, kind: Kind | None, reporter: Reporter
) -> None:
    """Publish what waits of a run on this disk.

    Args:
        tracking: The server.
        run_id: The run.
        as_fork: Make a new run of what a later attempt has overtaken.
        kind: What the run trains; None: that is not known, and no run can be made.
        reporter: Where the log goes.

    Raises:
        RunNotUsable: A process on this machine is working on the run, and publishes it itself.
    """
    record = find_run(tracking, run_id)
    run_id = record.run_id
    folder = local_folder(tracking, record)
    if not folder.acquire():
        why = _("is being trained by a process here, which publishes it itself")
        raise RunNotUsable(run_id, why)
    try:
        if not folder.waiting() and not parts_in(folder):
            log.info(_("Nothing of run '%s' waits on this disk"), run_id)
        store = open_store(tracking, record, folder)
        for spool in publish_waiting(tracking, record, store, folder, kind):
            if as_fork and kind is not None:
                new_id = fork_spool(tracking, record, spool, kind, reporter)
                go_on = train_command(tracking.get_run(new_id).standing.in_place())
                log.info(
                    _("Attempt %d is now run %s: go on with `%s`"), spool.attempt, new_id, go_on
                )  # fmt: skip
            else:
                tell_overtaken(record, spool)
        finish_elsewhere(tracking, tracking.get_run(run_id), store, folder, kind)
    finally:
        folder.release()


def fork_spool(
    tracking: Tracking, record: RunRecord, spool: Spool, kind: Kind, reporter: Reporter
) -> str:
    """Make a run of the checkpoints that an overtaken attempt left on this disk.

    Returns:
        The ID of the new run, which is KILLED: it can be resumed.
    """
    manifests = whole_checkpoints(spool)
    paths = [spool.path(manifest.name) for manifest in manifests]
    contents = [
        load_content(path, manifest, str(path))
        for path, manifest in zip(paths, manifests, strict=True)
    ]
    newest = contents[-1]
    require_kind(record.run_id, newest.data, kind)
    options = kind.declared.from_dict(newest.config)
    subject = kind.open(options, stored_of(tracking, record, options, newest.data_fingerprint))
    opening = Opening(tracking, Launch(), None, reporter)
    tags = forked_from(record.run_id, newest.epoch)
    contents[-1] = with_all_history(tracking, record.run_id, newest)
    try:
        run = from_contents(opening, subject, contents, tags, record.experiment_id)
    except BaseException as error:  # a stop by Ctrl-C must close the run too
        opening.abandon(status_after(error))
        raise
    opening.abandon("KILLED")
    opening.folder(tracking.get_run(run.run_id)).spool(1).discard()
    spool.discard()
    return run.run_id
