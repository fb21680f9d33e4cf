"""A run that begins with checkpoints of another one, or of a file, as its own."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

from onward.checkpoint.content import Content
from onward.checkpoint.format import write_checkpoint
from onward.checkpoint.transfers import show_upload
from onward.metrics import STEP, History, Point, in_words
from onward.monitor import Best, Monitor
from onward.opening.begin import Opening, fresh_start, start_from
from onward.opening.identity import describe, identity
from onward.run.run import Run
from onward.run.subject import Subject, facts_of
from onward.tracking.artifact_folder import require_local_artifacts
from onward.tracking.names import FORKED_EPOCH_TAG, FORKED_RUN_TAG
from onward.words.language import _
from onward.words.units import counted

log = logging.getLogger(__name__)


def forked_from(run_id: str, epoch: int) -> dict[str, str]:
    """Return the tags of a run that was forked."""
    return {FORKED_RUN_TAG: run_id, FORKED_EPOCH_TAG: str(epoch)}


def from_contents(
    opening: Opening,
    subject: Subject,
    contents: Sequence[Content],
    tags: Mapping[str, str],
    experiment_id: str,
) -> Run:
    """Start a new run whose first act is to commit checkpoints of its own, with their history.

    It goes on from the last of `contents`.
    """
    record = opening.new_run(experiment_id)
    require_local_artifacts(record)
    owned = [_owned(content, subject) for content in contents]
    newest = owned[-1]
    attempt = opening.first_attempt(record, newest.epoch + 1)
    start = start_from(newest, newest.history)
    pipeline = opening.begin(subject, record, attempt, tags, fresh_start(subject))
    describe(opening.tracking, subject, record)
    pipeline.publisher.add_held(newest)
    for content in owned:
        path = pipeline.spool.path(content.name)
        kept = content is newest or not content.epoch_step
        manifest = write_checkpoint(
            path, content.to_dict(), attempt=1, kept=kept, metrics=content.metrics
        )
        with show_upload(pipeline.spool, [manifest]):
            pipeline.publisher.commit(manifest)
        pipeline.spool.remove(manifest.name)
    pipeline.publisher.tidy()
    # IMPORTANT: the run counts as one of ours only now: without its checkpoint it would start
    # again from epoch 1, and that is not what was asked for.
    opening.tracking.set_tags(record.run_id, identity(subject))
    announce(newest)
    return opening.run(subject, attempt, pipeline, start)


def _owned(content: Content, subject: Subject) -> Content:
    """Return a checkpoint of another run as one of a run with this subject."""
    monitor, history = subject.monitor, content.history
    if monitor != content.monitor:
        history = _judged(history, content.monitor, monitor)
    best = monitor.best(history.series(monitor.name))
    return dataclasses.replace(
        content,
        history=history,
        config=subject.options.to_dict(),
        data=facts_of(subject),
        monitor=monitor,
        best_epoch=best.epoch if best else None,
        extras={**content.extras, **subject.extras(history, best)},
    )


def _judged(history: History, then: Monitor, now: Monitor) -> History:
    """Return a history whose best values are those by another monitor than it was judged by."""
    derived = {f"best_{then.name}", "best_epoch"}
    judged = History(point for point in history if point.key not in derived)
    best: Best | None = None
    for epoch, value in history.series(now.name):
        if now.is_better(value, best.value if best else None):
            best = Best(value, epoch)
        point = history.get(now.name, epoch)
        if best is not None and point is not None:
            told = {f"best_{now.name}": best.value, "best_epoch": float(best.epoch)}
            for key, number in told.items():
                judged.add(Point(key, epoch, point.timestamp_ms, number))
    return judged


def announce(content: Content) -> None:
    """Log where training goes on."""
    if content.unit == STEP:
        number = content.epoch + 1
        log.info("Resuming training from step %d (恢复训练，从第 %d 步开始)", number, number)
        _announce_best(content)
        return
    epoch, done = content.epoch + 1, content.epoch_step
    inside, inside_zh = (f", step {done + 1} of it", f" 的第 {done + 1} 步") if done else ("", " ")
    log.info(
        "Resuming training from epoch %d%s (恢复训练，从 epoch %d%s开始)",
        epoch, inside, epoch, inside_zh,
    )  # fmt: skip
    _announce_best(content)


def _announce_best(content: Content) -> None:
    monitor = content.monitor
    best = monitor.best(content.history.series(monitor.name))
    if best is not None:
        value, when = in_words(best.value), counted(content.unit, best.epoch)
        log.info(_("Best %s so far: %s (%s)"), monitor.name, value, when)
