"""What the end of training says: how it went, what was saved, and how to go on from there."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from onward.attempts.attempt import Attempt
from onward.checkpoint.handover import Totals
from onward.checkpoint.manifest import Manifest
from onward.errors import RunNotUsable
from onward.metrics import Point, in_words
from onward.options.command import Standing, train_command
from onward.options.run_options import RunOptions
from onward.run.state import TrainState
from onward.system.files import size_in_words
from onward.words.language import _
from onward.words.shell import command
from onward.words.units import counted

log = logging.getLogger(__name__)


def tell_end(
    attempt: Attempt, options: RunOptions, state: TrainState | None, status: str, epoch: int
) -> None:
    """Log how training ended, and the commands that go on from there.

    Args:
        attempt: What ended.
        options: Those of its run.
        state: Where it stands; None if training had not begun.
        status: FINISHED, KILLED or FAILED.
        epoch: Epochs, or steps, completed.
    """
    run_id = attempt.run_id
    best = ""
    if state is not None and state.best is not None:
        best = _(", best {metric} {value} ({when})").format(
            metric=state.monitor.name,
            value=in_words(state.best.value),
            when=counted(state.unit, state.best.epoch),
        )
    unit = state.unit if state else attempt.unit
    log.info(_("%s after %s%s"), status, counted(unit, epoch), best)
    best_epoch = state.best_epoch if state else None
    is_finished = status == "FINISHED" or attempt.leaves_finished(status)
    standing = Standing.by_options(run_id, is_finished, epoch, options, best_epoch)
    in_place = train_command(standing.in_place())
    if status != "FINISHED":
        if is_finished:
            log.info(_("Nothing was trained: the run is FINISHED, as it was"))
        log.info(_("Go on with: %s"), in_place)
    elif standing.script is not None:
        is_whole = epoch >= options.epochs
        told = _("Train longer, with a longer range: %s")
        log.info(told if is_whole else _("Go on all the same: %s"), in_place)
    elif epoch < options.epochs:
        waited = epoch - (best_epoch or 0)
        metric = state.monitor.name if state else ""
        log.info(_("Stopped early: %s has not become better for %d epochs"), metric, waited)
        log.info(_("Go on all the same: %s"), in_place)
    else:
        log.info(_("Train longer, at the last learning rate: %s"), in_place)
        if standing.horizon:
            longer = train_command(standing.anew())
            log.info(_("Train longer, as a fork with a new schedule: %s"), longer)


def tell_difference(run_id: str, options: RunOptions, published: Point, point: Point) -> None:
    """Log that an epoch that was trained again gave another value than the one published.

    Raises:
        RunNotUsable: With `strict`, it is refused.
    """
    if options.strict:
        standing = Standing.by_options(run_id, False, point.step, options, None)
        raise RunNotUsable(
            run_id,
            _("is not continued with strict=true: epoch {epoch}, trained again, gave "
              "{key}={value:.9g}, and {published:.9g} was published before. Fork it: {command}")
            .format(
                epoch=point.step, key=point.key, value=point.value, published=published.value,
                command=train_command(standing.as_fork()),
            ),
        )  # fmt: skip
    log.warning(
        _("Epoch %d, trained again, gave %s=%.9g; %.9g was published before and stays. "
          "Other hardware or other versions compute differently"),
        point.step, point.key, point.value, published.value,
    )  # fmt: skip


def tell_costs(totals: Totals, stored: Sequence[Manifest]) -> None:
    """Log what the attempt's checkpoints cost.

    Args:
        totals: Of all its checkpoints.
        stored: The checkpoints that the run has now.
    """
    log.info(
        _("Took %s; training waited %.2f s of it for %d checkpoints (in the background: %.1f s "
          "writing, %.1f s uploading)"),
        timedelta(seconds=round(time.monotonic() - totals.started)),
        totals.stall_seconds, totals.num_saved, totals.write_seconds, totals.upload_seconds,
    )  # fmt: skip
    size = size_in_words(sum(manifest.bytes for manifest in stored))
    log.info(_("Checkpoints in the store: %d, %s"), len(stored), size)


def tell_waiting(run_id: str, folder: Path, num_checkpoints: int) -> None:
    """Warn that something could not be published, and say where it is."""
    log.warning(
        _("%d checkpoints and the end of run %s wait on this disk (%s): `%s` publishes them"),
        num_checkpoints, run_id, folder, command("sync", run_id),
    )  # fmt: skip


def tell_late(run_id: str) -> None:
    """Warn that there was no time for what is made of the result."""
    log.warning(
        _("The model and the figures were not done in time: `%s` makes them"),
        command("sync", run_id),
    )


def tell_kept(run_id: str, folder: Path) -> None:
    """Warn that a later attempt has the run, and say where this one's work is."""
    log.warning(
        _("What this attempt had not published is kept in '%s': `%s` makes a run of it"),
        folder, command("sync", run_id, "--as_fork", "true"),
    )  # fmt: skip
