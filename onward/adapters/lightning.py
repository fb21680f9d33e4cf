"""`Resumable`: a run that PyTorch Lightning's Trainer works on, by the hooks it calls.

An epoch is saved when the next one begins, or training ends: only then has every hook and every
schedule seen it. Inside an epoch the moment is that at which the next batch is asked for.
"""

from __future__ import annotations

import copy
import logging
import signal
import threading
from collections.abc import Collection
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from onward.adapters.lightning_checks import require_usable, require_watched, why_not_inside
from onward.adapters.lightning_logger import EpochLogger
from onward.adapters.lightning_state import (
    add_sums,
    capture_metrics,
    capture_sums,
    grab,
    restore_metrics,
    storable,
)
from onward.adapters.opened import OpenedRun
from onward.adapters.watched import Watched, end_pass
from onward.errors import UsageError
from onward.run.feeds import tell_doubts
from onward.run.run import Run
from onward.run.signals import SIGNALS
from onward.words.language import _

log = logging.getLogger(__name__)

_OWN = "onward"  # in a checkpoint of Lightning's: what it leaves out
_LOOP, _SCHEDULES = "fit_loop", "epoch_loop.scheduler_progress"


class Resumable(Checkpoint):
    """Makes a Trainer resumable: it commits to an MLflow run, and goes on from one.

    ::

        resumable = onward.lightning.Resumable(config=vars(args), minimize="val_loss")
        trainer = Trainer(max_epochs=50, callbacks=[resumable], logger=resumable.logger)
        trainer.fit(model, loader, ckpt_path=resumable.ckpt_path, weights_only=True)

    The run is opened when `ckpt_path` is read, and closed when `fit` ends: FINISHED, KILLED by a
    signal, or FAILED.

    Args:
        config: What is logged as params; see `onward.open_run`.
        maximize: The metric that decides which epoch is best, where higher is better.
        minimize: The same, where lower is better.
        config_ignore: Names in `config` that differ at each start, such as an output folder.
        task: What `resume_run="auto"` knows the training by beside its config.
        options: Of the run, as `onward.open_run` takes them: resume_run, checkpoint_freq, …
    """

    def __init__(
        self,
        *,
        config: Any = None,
        maximize: str | None = None,
        minimize: str | None = None,
        config_ignore: Collection[str] = (),
        task: str | None = None,
        **options: Any,
    ) -> None:
        given = {
            "config": config, "maximize": maximize, "minimize": minimize,
            "config_ignore": config_ignore, "task": task, **options,
        }  # fmt: skip
        self.logger = EpochLogger()
        self._opened = OpenedRun(given, self._capture)
        self._trainer: Trainer | None = None
        self._is_loaded = False
        self._handlers: dict[signal.Signals, Any] = {}  # of signals, before Lightning's own
        self._loops: dict[str, Any] = {}  # Lightning's counts at the end of the newest epoch
        self._sums: dict[str, Any] = {}  # of the epoch under way, by the attempt before
        self._num_loaders = 0  # made in this round
        self._is_in_batch = self._is_after_batch = self._is_validated = False
        self._has_epoch = False  # one that has ended and is not saved
        self._saves_inside = False
        self._step_before = 0  # Lightning's count of steps before the batch

    # --- the run ---

    @property
    def run(self) -> Run:
        """The run, which is opened when it is first asked for.

        Raises:
            UsageError: It is over: `fit` has ended. `onward.open_run` tells the others.
        """
        run = self._opened.run
        if run.options.early_stopping:
            told = _("early_stopping is for loops of one's own: give the Trainer an EarlyStopping")
            self._close(error := UsageError(told))
            raise error
        self.logger.run = run
        return run

    @property
    def ckpt_path(self) -> str | None:
        """What `fit` is to be given as `ckpt_path`: a file, or None where the run is fresh.

        Raises:
            UsageError: See `run`.
        """
        return self._opened.file() if self.run else None

    def _close(self, error: BaseException | None) -> None:
        if self._trainer is not None:
            self._leave(self._trainer)
        self.logger.run = None
        self._opened.close(error)

    def _enter(self, trainer: Any) -> None:
        """Take a place before all other callbacks, and between Lightning and its loaders."""
        self._trainer = self.logger.trainer = trainer
        trainer.callbacks = [_First(self), *trainer.callbacks]
        usual = trainer.strategy.process_dataloader

        def process(loader: object) -> object:
            processed = usual(loader)
            return self._watched(processed) if trainer.training else processed

        trainer.strategy.process_dataloader = process

    def _leave(self, trainer: Any) -> None:
        """Take back what `_enter` has put in."""
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, _First)]
        vars(trainer.strategy).pop("process_dataloader", None)
        self._trainer = self.logger.trainer = None

    def _watched(self, loader: Any) -> Watched:
        number, state = self._num_loaders, self.run.state
        self._num_loaders += 1
        name = f"lightning {number}"
        if name not in state.feeds:
            tell_doubts(loader)
        feed = state.feed(name, loader)
        before = self.before_batch if number == 0 else _nothing
        return Watched(loader, feed, before, lambda: state.epoch)

    # --- Lightning's hooks, in the order of a training ---

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the Trainer, if it can be resumed.

        Raises:
            UsageError: It cannot.
        """
        if stage != "fit":
            return
        run = self.run
        require_usable(trainer, self, run.run_id)
        self._enter(trainer)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note that the run's checkpoint is what Lightning loads.

        Raises:
            UsageError: It is another one.
        """
        if _OWN not in checkpoint or self._opened.saved is None:
            raise UsageError(
                _("trainer.fit goes on from another checkpoint than the run: give it "
                  "ckpt_path=resumable.ckpt_path, and load weights to start from into the model")
            )  # fmt: skip
        self._is_loaded = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell how long the run is.

        Raises:
            UsageError: `fit` was not given the checkpoint.
        """
        if self._opened.saved is not None and not self._is_loaded:
            raise UsageError(
                _("run {run_id} has a checkpoint, and trainer.fit begins anew: give it "
                  "ckpt_path=resumable.ckpt_path, weights_only=True")
                .format(run_id=self.run.run_id)
            )  # fmt: skip
        self._opened.remove_file()
        self._num_loaders = 0
        assert trainer.max_epochs is not None
        self.run.expect(trainer.max_epochs)
        if self._opened.saved is not None and self._opened.saved[_OWN]["should_stop"]:
            trainer.should_stop = True
        # Lightning puts handlers of its own over ours next.
        self._handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals back: an epoch that Lightning leaves early would pass for a whole."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                if handler is not None:
                    signal.signal(number, handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put back what Lightning leaves out of a checkpoint."""
        self.on_sanity_check_start(trainer, pl_module)
        self._num_loaders = 0
        require_watched(trainer)
        self._saves_inside = True
        self._refuse_inside(why_not_inside(trainer))
        if self._opened.saved is not None:
            own = self._opened.saved[_OWN]
            device = trainer.strategy.root_device
            values = {key: value.to(device) for key, value in own["callback_metrics"].items()}
            trainer.callback_metrics.update(values)
            restore_metrics(pl_module, own["metrics"])
            if self.run.state.epoch_step:
                self._sums = dict(own["sums"])
                self.logger.values = dict(own["values"])
                trainer.accumulate_grad_batches = own["accumulate_grad_batches"]
                self.run.begin_unit()
            self._opened.saved = None
        self._capture()  # what cannot be stored is told now

    def begin_epoch(self, trainer: Trainer) -> None:
        """Save the epoch before, if there is one; called before any other hook of the epoch."""
        self._num_loaders = 0
        self.end_epoch()
        self._opened.restore_random_state()
        self.run.begin_unit()
        self.logger.begin_epoch()

    def begin_batch(self, trainer: Trainer) -> None:
        """Note where a batch begins."""
        self._is_in_batch, self._is_validated = True, False
        self._step_before = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note that a batch is trained on; its other hooks come yet."""
        self._is_in_batch, self._is_after_batch = False, True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note a validation inside the epoch."""
        self._is_validated = not trainer.sanity_checking

    def before_batch(self) -> None:
        """Save or stop where that is asked for: the batch before is over, with all its hooks.

        Raises:
            Interrupted: A signal asked to stop.
        """
        trainer, run = self._trainer, self.run
        assert trainer is not None
        self._opened.restore_random_state()
        if self._is_in_batch:
            self._refuse_inside(_("training_step fetches its batches itself"))
            return
        if not self._is_after_batch:
            return
        add_sums(trainer, self._sums)
        self._is_after_batch = False
        if trainer.global_step == self._step_before:
            return  # gradients are being accumulated, and nothing stores them
        if not self._saves_inside:
            run.step_done(run.state.epoch_step + 1)
            run.stop_if_asked(save=False)
        elif self._is_validated and _steps_by_plateau(trainer):
            run.step_done(run.state.epoch_step + 1)  # the next batch is a better place
        else:
            run.step_done()
            run.stop_if_asked()

    def _refuse_inside(self, why: str | None) -> None:
        """Save nothing inside epochs, if there is a reason why not, and tell it once."""
        if why is not None and self._saves_inside:
            self._saves_inside = False
            log.warning(
                _("Nothing is saved inside an epoch, and a stop there goes back to its beginning: "
                  "%s"), why
            )  # fmt: skip

    def note_epoch_end(self, trainer: Trainer) -> None:
        """Complete what Lightning has of the epoch; called before any other hook of its end."""
        add_sums(trainer, self._sums)
        if self._is_after_batch:
            self._is_after_batch = False
            self.run.step_done(self.run.state.epoch_step + 1)
        trainer.callback_metrics.update(self.logger.end_epoch(self._sums))
        self._sums = {}
        # A schedule that waits for a metric would pass over an epoch that was gone on with.
        trainer.fit_loop.restarting = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note Lightning's counts, which are to be those of now; the rest of the state comes."""
        self._loops = copy.deepcopy(trainer.fit_loop.state_dict())
        self._has_epoch = True

    def end_epoch(self) -> None:
        """Publish and save the epoch that has ended, if there is one."""
        if not self._has_epoch:
            return
        self._has_epoch = False
        run = self.run
        for feed in run.state.feeds.values():
            end_pass(feed)
        run.log(**self.logger.take())
        run.end_unit()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the run as finished."""
        if stage == "fit" and self._opened.is_open:
            self._close(None)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the run as what it is: KILLED, or FAILED."""
        self._close(exception)

    # --- the state ---

    def _capture(self) -> dict[str, Any]:
        """Return what Lightning saves, and what it leaves out."""
        trainer, run = self._trainer, self.run
        assert trainer is not None
        module, content = trainer.lightning_module, grab(trainer)
        is_inside = run.state.epoch_step > 0
        loops = content["loops"]
        if not is_inside and self._loops:
            # What a schedule by metric has done since, the counts at the epoch's end lack.
            loops[_LOOP] = {**self._loops, _SCHEDULES: loops[_LOOP][_SCHEDULES]}
        elif self._is_validated:  # Lightning counts the batch again where it goes on
            loops[_LOOP]["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
        loops[_LOOP]["state_dict"].pop("combined_loader", None)
        content[_OWN] = {
            "should_stop": trainer.should_stop,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "callback_metrics": dict(trainer.callback_metrics),
            "metrics": capture_metrics(module),
            "sums": {**self._sums, **capture_sums(trainer)} if is_inside else {},
            "values": dict(self.logger.values) if is_inside else {},
        }
        return storable(content)


def _steps_by_plateau(trainer: Trainer) -> bool:
    """Tell whether a validation inside an epoch changes a learning rate, which it would twice."""
    return any(s.reduce_on_plateau and s.interval == "step" for s in trainer.lr_scheduler_configs)


def _nothing() -> None:
    """Do nothing, before a batch of a loader beside the first."""


class _First(Callback):
    """Calls `Resumable` before the hooks of all other callbacks; Lightning puts it after them."""

    def __init__(self, resumable: Resumable) -> None:
        self._resumable = resumable

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._resumable.begin_epoch(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._resumable.begin_batch(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._resumable.note_epoch_end(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._resumable.end_epoch()
