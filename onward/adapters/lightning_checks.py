"""What of Lightning is taken: refused in one line before training, or told in a warning."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.strategies import SingleDeviceStrategy

from onward.adapters.lightning_logger import EpochLogger
from onward.adapters.lightning_state import has_sums
from onward.adapters.watched import Watched
from onward.errors import UsageError
from onward.words.language import _

TESTED = "2.6.6"  # the version of Lightning that all of this was tried with


def require_usable(trainer: Any, resumable: Callback, run_id: str) -> None:
    """Refuse what could not be gone on with, or would end up in the run twice.

    Args:
        trainer: The Trainer that `fit` was called of.
        resumable: The callback that asks.
        run_id: Its run.

    Raises:
        UsageError: There is such a thing.
    """
    told = _why_not(trainer, resumable)
    if told is not None:
        raise UsageError(told.format(run_id=run_id))


def _why_not(trainer: Any, resumable: Callback) -> str | None:
    callbacks, loggers = trainer.callbacks, trainer.loggers
    if not isinstance(trainer, Trainer):
        return _("the Trainer is not that of lightning.pytorch, such as pytorch_lightning's: "
                 "import lightning.pytorch in its place")  # fmt: skip
    if not isinstance(trainer.strategy, SingleDeviceStrategy) or trainer.world_size > 1:
        return _("training on several devices is not supported yet: give the Trainer devices=1, "
                 "and no strategy")  # fmt: skip
    if trainer.max_epochs is None or trainer.max_epochs < 0 or trainer.max_steps != -1:
        return _("a run counts epochs: give the Trainer max_epochs, and no max_steps")
    others = [c for c in callbacks if isinstance(c, type(resumable)) and c is not resumable]
    if others:
        return _("the Trainer has two Resumables, and works on one run: leave one of them out")
    if any(isinstance(logger, MLFlowLogger) for logger in loggers):
        return _("an MLFlowLogger would record the metrics a second time, before what they measure "
                 "is safe: leave it out, resumable.logger has them in run {run_id}")  # fmt: skip
    if not any(isinstance(logger, EpochLogger) for logger in loggers):
        return _("the run would have no metrics: give the Trainer logger=resumable.logger, alone "
                 "or in a list")  # fmt: skip
    return None


def require_watched(trainer: Any) -> None:
    """Make sure that the loader to train on is watched.

    Raises:
        UsageError: It is not, since Lightning has changed.
    """
    loaders = trainer.train_dataloader
    while isinstance(loaders, dict | list | tuple) and loaders:
        loaders = next(iter(loaders.values() if isinstance(loaders, dict) else loaders))
    if not isinstance(loaders, Watched):
        raise UsageError(
            _("this version of Lightning takes its loaders elsewhere, so that no resume would be "
              "exact: install lightning {version}").format(version=TESTED)
        )  # fmt: skip


def why_not_inside(trainer: Any) -> str | None:
    """Return why nothing can be saved inside an epoch, None if it can be."""
    if not has_sums(trainer):
        return _("this version of Lightning keeps its sums of what is logged elsewhere")
    if any(isinstance(c, StochasticWeightAveraging) for c in trainer.callbacks):
        return _("StochasticWeightAveraging cannot go on there")
    if math.isinf(trainer.num_training_batches):
        return _("the loader has no length, so its batches are fetched ahead; give the Trainer "
                 "limit_train_batches")  # fmt: skip
    return None
