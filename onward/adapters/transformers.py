"""Hugging Face's `Trainer` as a run that goes on, to the bit, wherever it was stopped.

::

    resumable = Resumable(config=vars(args), minimize="eval_loss", resume_run="auto")
    trainer = Trainer(..., args=TrainingArguments(..., save_strategy="no", report_to="none"))
    trainer = resumable.attach(trainer)
    trainer.train(resume_from_checkpoint=resumable.folder)

An epoch of the run is one of the Trainer's. What it changes is taken where it is complete: at an
epoch's end when the next one begins, or training ends; inside one, before a step begins.
"""

from __future__ import annotations

import atexit
import logging
import math
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import TrainerCallback
from transformers.integrations import MLflowCallback
from transformers.trainer_callback import ExportableState

from onward.adapters.fetches import Fetches, watch
from onward.adapters.logs import Logs
from onward.adapters.trainer import Parts, Place, require_known
from onward.errors import UsageError
from onward.run import rng
from onward.run.feeds import tell_doubts
from onward.run.run import Run
from onward.run.seeded import seeded_within
from onward.script.open import open_run
from onward.system import environment
from onward.words.language import _

log = logging.getLogger(__name__)

# What Trainer logs of the clock, of the machine, and of the axis itself.
_NOT_MEASURED = re.compile(r"epoch|total_flos|.*(_runtime|_per_second)|.*_mem_[cg]pu_.*")


class Resumable(TrainerCallback):
    """Makes a run of a Trainer's training, and goes on with it.

    Args:
        options: Those of `onward.open_run`: config, maximize or minimize, resume_run,
            checkpoint_steps, and the others. The metric that is maximized or minimized has the name
            that Trainer logs, such as eval_loss.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._trainer: Any = None
        self._run: Run | None = None
        self._folder: Path | None = None
        self._is_closed = False
        self._made: dict[str, Any] | None = None  # random numbers when the loader was
        self._num_steps: int | None = None  # of the epoch under way
        self._num_logged = 0  # entries of Trainer's own history that a checkpoint has
        self._is_under_way = False  # an epoch of the run
        self._has_step = False  # one that is done and not counted yet
        self._resumes = self._resumes_inside = False

    def attach(self, trainer: Any) -> Any:
        """Take charge of a Trainer, and return it.

        Raises:
            UsageError: It is set to do what a run does, or what cannot be gone on with.
            TrainError: This version of transformers is not known.
        """
        if self._trainer is not None:
            raise UsageError(_("a Resumable is for one Trainer: make another one"))
        require_known(trainer, transformers.__version__)
        _require_usable(trainer)
        self._trainer, self._parts = trainer, Parts(trainer, ExportableState)
        self._train, self._make_loader = trainer.train, trainer.get_train_dataloader
        trainer.train, trainer.get_train_dataloader = self._train_and_close, self._make_watched
        # First, and so before those that are added later: what others do as an epoch or a step
        # begins, they do again after a resume.
        trainer.callback_handler.callbacks.insert(0, self)
        return trainer

    @property
    def run(self) -> Run:
        """The run; it is opened when it is first asked for.

        Raises:
            UsageError: No Trainer is attached; see also `onward.open_run`.
        """
        if self._trainer is None:
            raise UsageError(_("no Trainer is attached: call attach(trainer) first"))
        if self._run is None:
            _require_no_patience(self._options)
            run = open_run(self._parts.as_state(), **self._options)
            self._run = run.__enter__()
            atexit.register(self._abandon)
            self._random_state = rng.capture()  # that of the checkpoint, if there is one
            self._logs = self._parts.logs = Logs(run, self._is_by_step)
        return self._run

    @property
    def folder(self) -> str | None:
        """What `trainer.train(resume_from_checkpoint=...)` takes; None: from the beginning.

        A temporary folder, as Trainer would have written it; it is gone once it is read.
        """
        if self.run is not None and self._parts.saved and not self._is_closed:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="train-"))
                self._parts.write_folder(self._folder)
            return str(self._folder)
        return None

    def _train_and_close(
        self, resume_from_checkpoint: Any = None, trial: Any = None, *more: Any, **named: Any
    ) -> Any:
        """Stand in for `trainer.train`: the run is closed with a truthful status."""
        if self._is_closed:
            raise UsageError(
                _("run {run_id} is closed, since its training has ended: make a Resumable and a "
                  "Trainer anew to go on with it").format(run_id=self.run.run_id)
            )  # fmt: skip
        folder = self.folder
        try:
            if trial is not None or resume_from_checkpoint not in (None, False, folder):
                raise UsageError(
                    _("trainer.train got {given}: a run goes on from its own checkpoint, with "
                      "resume_from_checkpoint=resumable.folder")
                    .format(given=f"{resume_from_checkpoint!r:.80}" if trial is None else "a trial")
                )  # fmt: skip
            result = self._train(folder, None, *more, **named)
        except BaseException:  # also a stop: the run must not stay RUNNING
            self._close(*sys.exc_info())
            raise
        self._close(None, None, None)
        return result

    def _close(self, *error: Any) -> None:
        atexit.unregister(self._abandon)
        self._is_closed = True
        self._remove_folder()
        self.run.__exit__(*error)

    def _abandon(self) -> None:
        """Close a run that is opened and never trained, as the process ends."""
        self._close(KeyboardInterrupt, KeyboardInterrupt(), None)

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _is_by_step(self, name: str) -> bool:
        args = self._trainer.args
        strategy = args.eval_strategy if name.startswith("eval_") else args.logging_strategy
        return bool(strategy == "steps")

    def _make_watched(self) -> Any:
        """Stand in for `trainer.get_train_dataloader`."""
        trainer, parts = self._trainer, self._parts
        if not (parts.saved and self._folder and self._folder.is_dir()):
            self._made = rng.capture()
            loader = self._make_loader()
            watch(loader)
            return loader
        place = parts.saved_place()
        if place.made is not None:
            rng.restore(place.made)
        loader = self._make_loader()
        watch(loader)
        num_epochs, num_steps, *_rest, max_steps = trainer.set_initial_training_values(
            trainer.args, loader
        )
        if place.is_over or parts.document["global_step"] >= max_steps:
            parts.write_place(self._folder, num_epochs, 0, num_steps)
        else:
            place.require_same(self._place_of(loader))
            parts.write_place(self._folder, place.number, place.step, num_steps)
        return loader

    def _place_of(self, loader: Any) -> Place:
        try:
            length = len(loader)
        except TypeError:
            length = None
        accumulation = self._trainer.args.gradient_accumulation_steps
        return Place(length=length, accumulation=accumulation, made=self._made)

    # -- what Trainer calls ------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put back what a checkpoint has, and tell how many epochs there are."""
        parts, loader = self._parts, kwargs["train_dataloader"]
        sampler = getattr(loader, "batch_sampler", None)
        parts.fetches = sampler if isinstance(sampler, Fetches) else None
        parts.place = self._place_of(loader)
        self._resumes = bool(parts.saved)
        if self._resumes:
            self._go_on(state)
        place, done = parts.place, self.run.state.epoch
        left = 1 if place.length is None else max(state.num_train_epochs - place.number, 0)
        self.run.expect(done + left)
        self._remove_folder()
        tell_doubts(loader)

    def _go_on(self, state: Any) -> None:
        parts = self._parts
        place, now = parts.saved_place(), parts.place
        parts.put_back()
        self._logs.by_epoch = dict(parts.saved["trainer"]["by_epoch"])
        self._num_logged = len(state.log_history)
        self._resumes_inside = place.begin is not None
        if self._resumes_inside and parts.fetches is not None:
            fetched = dict(parts.saved["trainer"]["fetched"])
            following = place.num_batches + len(fetched)
            if place.is_cut and following < len(parts.fetches):
                # Nothing was read yet for the step that follows.
                fetched[following], self._resumes_inside = self._random_state, False
            parts.fetches.go_on(place.num_batches, fetched)
        place.length, place.accumulation = now.length, now.accumulation
        if place.is_over or state.global_step >= state.max_steps:
            _forget_end(state.log_history)
        if place.is_over:
            log.info(_("Nothing is left to train: a callback of the Trainer has ended it early"))
        parts.place = place

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the epoch before, whose evaluation is done by now, and begin one."""
        if self._is_under_way:
            self._end_unit(state, control, is_last=False)
        self.run.begin_unit()
        self._is_under_way = True
        place = self._parts.place
        if self._resumes:
            if args.eval_on_start:  # which was done again, and counts for nothing
                del state.log_history[self._num_logged :]
                control.should_training_stop = False
            self._parts.put_back_callbacks()
            rng.restore(place.begin if place.begin is not None else self._random_state)
        self._resumes = False
        if place.begin is None:
            place.begin = rng.capture()
        seeded = seeded_within(getattr(kwargs["train_dataloader"], "dataset", None))
        if seeded is not None:
            seeded.set_epoch(place.number)
        if place.length is not None:
            num_steps = math.ceil(place.length / place.accumulation)
            self._num_steps = num_steps - place.step + self.run.state.epoch_step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step before, save where that is due, and stop if a signal has asked for it."""
        if self._resumes_inside:
            self._resumes_inside = False
            self._parts.put_back_callbacks()
            rng.restore(self._random_state)
        self._count_step(self._num_steps)
        parts = self._parts
        if parts.fetches is not None:
            parts.fetches.since(parts.place.num_batches)  # forgets those before
        if self._parts.saved:
            self._parts.saved = {}  # it is put back
        self.run.stop_if_asked()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember the step: its logs are still to come."""
        self._parts.place.step += 1
        self._has_step = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the last step, which is saved with the epoch."""
        self._count_step(self.run.state.epoch_step + 1)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take what is logged of the epoch under way."""
        if self._is_under_way:
            logs = kwargs["logs"]
            kept = {key: value for key, value in logs.items() if not _NOT_MEASURED.fullmatch(key)}
            self._logs.add(kept, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the last epoch."""
        if self._is_under_way:
            self.run.keep()
            self._end_unit(state, control, is_last=True)

    def _count_step(self, num_steps: int | None) -> None:
        if self._has_step:
            self._has_step = False
            self._logs.record_steps()
            self.run.step_done(num_steps)

    def _end_unit(self, state: Any, control: Any, is_last: bool) -> None:
        place = self._parts.place
        is_at_end = is_last and state.global_step >= state.max_steps
        has_more = place.length is None or place.num_batches < place.length
        place.is_cut = is_at_end and has_more
        if not place.is_cut:  # else a longer run goes on inside this pass
            place.number, place.step, place.begin = place.number + 1, 0, None
        place.is_over = is_last and not is_at_end and bool(control.should_training_stop)
        self._logs.record()
        self.run.end_unit()
        self._is_under_way = False


def _forget_end(history: list[dict[str, Any]]) -> None:
    """Take out what Trainer logs when it ends, which it does once more."""
    if history and "train_loss" in history[-1]:
        history.pop()


def _require_no_patience(options: Mapping[str, Any]) -> None:
    given = environment.option_texts().get("early_stopping") or options.get("early_stopping")
    if given not in (None, 0, "0"):
        raise UsageError(
            _("early_stopping={given} is not for a Trainer, which ends its epochs itself: give it "
              "transformers.EarlyStoppingCallback").format(given=given)
        )  # fmt: skip


def _require_usable(trainer: Any) -> None:
    """Make sure that the Trainer does nothing that would make a resume inexact, or twice.

    Raises:
        UsageError: It does.
    """
    args, told = trainer.args, ""
    if any(isinstance(callback, MLflowCallback) for callback in trainer.callback_handler.callbacks):
        told = _("the run is in MLflow already, and its curve would be there twice: give "
                 "report_to='none', and leave MLflowCallback out")  # fmt: skip
    elif args.enable_jit_checkpoint:
        told = _("enable_jit_checkpoint evaluates a part of an epoch when a signal comes, and the "
                 "run stops by itself: leave it out")  # fmt: skip
    elif args.save_strategy != "no":
        told = _("save_strategy='{value}' saves what the run saves already: give "
                 "save_strategy='no'").format(value=args.save_strategy.value)  # fmt: skip
    elif args.world_size > 1:
        told = _("it trains in {number} processes, and a run is one process so far").format(
            number=args.world_size
        )
    elif trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        told = _("DeepSpeed and FSDP keep weights and moments in parts, which a run does not save "
                 "so far")  # fmt: skip
    elif args.auto_find_batch_size:
        told = _("auto_find_batch_size changes the batches as it goes: give the size that it found")
    elif args.ignore_data_skip:
        told = _("ignore_data_skip trains the first batches of an epoch twice after a resume: "
                 "leave it out")  # fmt: skip
    if told:
        raise UsageError(_("the Trainer cannot be resumed exactly: {why}").format(why=told))
