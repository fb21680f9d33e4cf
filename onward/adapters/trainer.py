"""What a Trainer changes as it goes: taken from it, and put back into another one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onward.adapters.fetches import Fetches
from onward.adapters.logs import Logs
from onward.errors import CheckpointError, TrainError
from onward.run.differences import first_difference
from onward.run.parts import Part, capture, put_back
from onward.run.state import MISFITS
from onward.words.language import _

# Of Trainer: the loss since the last log, its sum, since when, from where on, and operations.
PRIVATE = (
    "_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "_initial_global_step",
    "current_flos",
)  # fmt: skip
STATE_FILE, WEIGHTS_FILE = "trainer_state.json", "pytorch_model.bin"
_LARGE = ("model", "optimizer", "scheduler")  # what is put back by itself


@dataclasses.dataclass
class Place:
    """Where a Trainer is in its data.

    Args:
        number: Of the pass over the data, from 0.
        step: Optimizer steps done in it.
        length: Batches of a pass; None: nobody knows.
        accumulation: Batches of a step.
        made: The random numbers when the loader was made, which takes its seed from them.
        begin: The random numbers when the pass began; None: it has not.
        is_cut: Whether training has ended inside the pass, by `max_steps`.
        is_over: Whether a callback has ended training.
    """

    number: int = 0
    step: int = 0
    length: int | None = None
    accumulation: int = 1
    made: dict[str, Any] | None = None
    begin: dict[str, Any] | None = None
    is_cut: bool = False
    is_over: bool = False

    @property
    def num_batches(self) -> int:
        """How many batches of the pass are trained on."""
        return self.step * self.accumulation

    def require_same(self, now: Place) -> None:
        """Make sure that a pass of which a part is done has the same batches now.

        Raises:
            CheckpointError: It has others.
        """
        if self.begin is None or self._shape == now._shape:
            return
        raise CheckpointError(
            _("the checkpoint lies inside an epoch of {then} batches, {then_together} to a step, "
              "and it would be {now}, {now_together} to a step: the rest would be of another "
              "order. Make it as it was, or fork from the end of an epoch (resume_epoch=N, "
              "fork=True)")
            .format(
                then=self.length, then_together=self.accumulation, now=now.length,
                now_together=now.accumulation,
            )
        )  # fmt: skip

    @property
    def _shape(self) -> tuple[int | None, int]:
        return self.length, self.accumulation


class Parts:
    """The parts of a run's state that a Trainer is made of.

    Args:
        trainer: The Trainer; its model, optimizer and schedule are there once it trains.
        exportable: The class of callbacks with a state.

    Attributes:
        place: Where it is in its data.
        fetches: What is read ahead; None where nobody knows.
        logs: What is logged of the epoch under way.
        saved: What a checkpoint has of it; empty: there is none.
    """

    def __init__(self, trainer: Any, exportable: type) -> None:
        self._trainer, self._exportable = trainer, exportable
        self.place = Place()
        self.fetches: Fetches | None = None
        self.logs: Logs | None = None
        self.saved: dict[str, Any] = {}

    def as_state(self) -> dict[str, Part]:
        """Return them for `open_run`; what is put back waits until the Trainer has made them."""

        def part(name: str) -> Part:
            def keep(saved: Any) -> None:
                self.saved[name] = saved

            return Part(lambda: self._captured(name), keep, is_checked=False)

        return {name: part(name) for name in (*_LARGE, "trainer")}

    def _captured(self, name: str) -> Any:
        return capture(self._large(name)) if name in _LARGE else self._small()

    def _large(self, name: str) -> Any:
        return getattr(self._trainer, {"scheduler": "lr_scheduler"}.get(name, name))

    def _small(self) -> dict[str, Any]:
        trainer, place = self._trainer, self.place
        document = dataclasses.asdict(trainer.state) | {"stateful_callbacks": {}}
        fetches = self.fetches if place.begin is not None else None
        scaler = getattr(trainer.accelerator, "scaler", None)
        return {
            "state": json.dumps(document, default=_number),
            "counted": {name: getattr(trainer, name) for name in PRIVATE},
            "callbacks": {
                name: [callback.state().get("attributes", {}) for callback in callbacks]
                for name, callbacks in self._callbacks().items()
            },
            "scaler": None if scaler is None else scaler.state_dict(),
            "place": {f.name: getattr(place, f.name) for f in dataclasses.fields(place)},
            "fetched": fetches.since(place.num_batches) if fetches is not None else {},
            "by_epoch": dict(self.logs.by_epoch) if self.logs is not None else {},
        }

    def _callbacks(self) -> dict[str, list[Any]]:
        """Return the callbacks that have a state, by the name of their class."""
        found: dict[str, list[Any]] = {}
        for callback in self._trainer.callback_handler.callbacks:
            if isinstance(callback, self._exportable):
                found.setdefault(type(callback).__name__, []).append(callback)
        return found

    def write_folder(self, folder: Path) -> None:
        """Write what Trainer reads: the weights, and how far it is; the rest is put back by us."""
        # By the names that they have now: torch.compile gives them others.
        names = {name.replace("_orig_mod.", ""): name for name in self._trainer.model.state_dict()}
        weights = {names.get(name, name): value for name, value in self.saved["model"].items()}
        torch.save(weights, folder / WEIGHTS_FILE)
        (folder / STATE_FILE).write_text(json.dumps(self.document))

    def write_place(self, folder: Path, number: int, steps: int, num_steps: int) -> None:
        """Let Trainer begin after so many passes, and steps of the next one.

        It divides the steps done by those of a pass, as if none had ever been left out.

        Args:
            folder: That Trainer reads.
            number: Passes that are done.
            steps: Of the next one.
            num_steps: Of every pass.
        """
        document = self.document | {"global_step": number * num_steps + steps}
        (folder / STATE_FILE).write_text(json.dumps(document))

    @property
    def document(self) -> dict[str, Any]:
        """What a checkpoint has in place of Trainer's `trainer_state.json`."""
        return dict(json.loads(self.saved["trainer"]["state"]))

    def put_back(self) -> None:
        """Put everything back, into a Trainer that is about to train.

        Raises:
            CheckpointError: It does not fit, or is not what it was.
        """
        trainer, small = self._trainer, self.saved["trainer"]
        try:
            for name in _LARGE:
                self._put_back_large(name)
            if small["scaler"] is not None and trainer.accelerator.scaler is not None:
                put_back(trainer.accelerator.scaler, small["scaler"], "scaler")
            for name, value in small["counted"].items():
                if isinstance(value, torch.Tensor):
                    value = value.to(trainer.args.device, copy=True)
                setattr(trainer, name, value)
        except MISFITS as error:
            raise CheckpointError(
                _("the checkpoint does not fit this program's Trainer: {reason}").format(
                    reason=" ".join(str(error).split())[:300]
                )
            ) from error
        trainer.state.global_step = self.document["global_step"]
        self.put_back_callbacks()

    def _put_back_large(self, name: str) -> None:
        saved, part = self.saved[name], self._large(name)
        if name == "model" and first_difference(saved, capture(part), name) is None:
            return  # Trainer has read it already
        put_back(part, saved, name)
        found = first_difference(saved, capture(part), name)
        if found is not None:
            raise CheckpointError(
                _("the Trainer's {name} was restored, and is not what was saved: {found}. A resume "
                  "would not go on as if nothing had happened").format(name=name, found=found)
            )  # fmt: skip

    def put_back_callbacks(self) -> None:
        """Put back the callbacks that have a state; one that is new keeps its own."""
        now = self._callbacks()
        for name, states in self.saved["trainer"]["callbacks"].items():
            for callback, attributes in zip(now.get(name, []), states, strict=False):
                for attribute, value in attributes.items():
                    setattr(callback, attribute, value)

    def saved_place(self) -> Place:
        """Return where a checkpoint lies."""
        return Place(**self.saved["trainer"]["place"])


def require_known(trainer: Any, version: str) -> None:
    """Make sure that the Trainer has what nobody promises that it has.

    Raises:
        TrainError: It has not.
    """
    # Trainer itself sets the first ones when it trains; that its class reads them is all there is.
    names = set(_names_in(type(trainer)))
    missing = [name for name in PRIVATE if name not in names and not hasattr(trainer, name)]
    needed = ("callback_handler", "get_train_dataloader", "set_initial_training_values")
    missing += [name for name in needed if not hasattr(trainer, name)]
    if missing:
        raise TrainError(
            _("Trainer of transformers {version} has no {names}, without which a resume is not "
              "exact: use a version from 5.24 on, before 6, or a newer onward")
            .format(version=version, names=", ".join(missing))
        )  # fmt: skip


def _names_in(kind: type) -> list[str]:
    """Return the names of attributes that the methods of a class use."""
    return [
        name
        for base in kind.__mro__
        for method in vars(base).values()
        if hasattr(method, "__code__")
        for name in method.__code__.co_names
    ]


def _number(value: Any) -> Any:
    """Return a number of NumPy's or torch's as Python's, for JSON."""
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        return value.tolist()
    return str(value)
