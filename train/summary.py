"""What the end of training says: how it went, and the commands that go on from there."""

from __future__ import annotations

import logging
from typing import Any

from train.commands import train_command
from train.config import Config
from train.state import TrainState

log = logging.getLogger(__name__)


def tell_end(run_id: str, config: Config, state: TrainState | None, status: str) -> None:
    """Log how training ended.

    Args:
        run_id: The run.
        config: Its options.
        state: Where it stands; None if training had not begun.
        status: FINISHED, KILLED or FAILED.
    """
    epoch = state.epoch if state else 0
    best = ""
    if state is not None and state.best_corr is not None:
        best = f", best correlation {state.best_corr:.5f} (epoch {state.best_epoch})"
    log.info("%s after epoch %d%s", status, epoch, best)
    options: dict[str, Any] = {"resume_run": run_id}
    if status != "FINISHED":
        log.info("Go on with: %s", train_command(options))
    elif state is not None and epoch < config.epochs:
        waited = epoch - (state.best_epoch or 0)
        log.info("Stopped early: val_pearson has not risen for %d epochs", waited)
        go_on = {**options, "early_stopping": 0, "epochs": config.epochs}
        log.info("Go on all the same: %s", train_command(go_on))
    else:
        longer = {**options, "epochs": 2 * epoch}
        log.info("Train longer, at the last learning rate: %s", train_command(longer))
        if config.schedule == "cosine":
            longer |= {"schedule_epochs": 2 * epoch, "fork": True}
            log.info("Train longer, as a fork with a new schedule: %s", train_command(longer))
