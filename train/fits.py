"""Whether what a checkpoint file holds fits the model and the optimizer that the options make."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from onward.checkpoint.content import Content
from onward.errors import CheckpointError
from onward.run import rng
from onward.run.parts import Stateful
from onward.run.state import MISFITS, TrainState
from onward.system.tensors import as_number
from onward.system.untrusted import shown
from onward.words.language import _
from train.loop import build_optimizer
from train.schedule import Schedule
from train.subject import TaskSubject

_OF_ADAMW = ("betas", "eps", "weight_decay", "amsgrad")  # that decide the arithmetic, beside lr


def fitted(content: Content, subject: TaskSubject, path: Path) -> Content:
    """Return a checkpoint whose every part was tried on a model and an optimizer of the run.

    Where it has no optimizer state, since only weights were asked for, it gets a fresh one.

    Args:
        content: What `read_checkpoint_file` returned.
        subject: What is trained from it on.
        path: The file.

    Raises:
        CheckpointError: Names the first thing that does not fit.
    """
    random_state = rng.capture()
    try:
        return _tried(content, subject, path)
    finally:
        rng.restore(random_state)


def _tried(content: Content, subject: TaskSubject, path: Path) -> Content:
    task, options = subject.task, subject.options
    model = task.build_model()
    _check_model(content.parts["model"], model, path)
    optimizer = build_optimizer(task, model, options)
    schedule = Schedule(options, subject.plateau)
    parts = dict(content.parts)
    if parts["optimizer"] is None:
        parts["optimizer"] = optimizer.state_dict()
    elif type(optimizer) is torch.optim.AdamW:
        weights = dict(model.named_parameters())
        adopted = _Adopted(path, weights, list(weights))
        parts["optimizer"] = adopted.state(parts["optimizer"], optimizer)
    if parts["scheduler"] is None:
        parts["scheduler"] = schedule.state_dict()
    content = dataclasses.replace(content, parts=parts)
    live: dict[str, Stateful] = {"model": model, "optimizer": optimizer, "scheduler": schedule}
    try:
        TrainState(live, subject.monitor).restore(content)
    except (*MISFITS, CheckpointError) as error:
        found = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(
            _("checkpoint file '{path}' cannot be used ({found})").format(path=path, found=found)
        ) from error
    return content


def _check_model(state: Mapping[str, Any], model: torch.nn.Module, path: Path) -> None:
    expected = model.state_dict()
    for name in [*expected, *state]:
        own, found = expected.get(name), state.get(name)
        shapes = [None if value is None else tuple(value.shape) for value in (own, found)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                _(
                    "the model of '{path}' is not the one that the options make: '{name}' has "
                    "shape {found} in the file, {expected} here. Give the data and the model "
                    "options that it was trained with"
                ).format(
                    path=path, name=name,
                    found=shapes[1] if shapes[1] is not None else _("none"),
                    expected=shapes[0] if shapes[0] is not None else _("none"),
                )
            )  # fmt: skip
        assert own is not None
        assert found is not None
        if found.is_floating_point() != own.is_floating_point() or found.is_complex():
            raise CheckpointError(
                _("the model of '{path}' is not one of this program: '{name}' is of {found}, and "
                  "{expected} is needed").format(
                    path=path, name=name, found=_kind(found), expected=_kind(own)
                )
            )  # fmt: skip
        if not torch.isfinite(found).all():
            raise CheckpointError(
                _("the model of '{path}' has diverged: '{name}' holds values that are not finite. "
                  "Start from an earlier file").format(path=path, name=name)
            )  # fmt: skip


def _kind(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


class _Adopted:
    """The optimizer state of a file, as one of this program's AdamW.

    Taken are the moments and the steps of each weight, and what decides the arithmetic. How it is
    computed (`foreach`, `fused`, `capturable`, `differentiable`) is this program's own.
    """

    def __init__(
        self, path: Path, parameters: Mapping[str, torch.Tensor], names: list[str]
    ) -> None:
        self._path, self._parameters, self._names = path, parameters, names

    def _refuse(self, found: str) -> NoReturn:
        raise CheckpointError(
            _(
                "the optimizer state of '{path}' is none of AdamW for this model: {found}. "
                "resume_from_weights_only=true starts from its weights alone"
            ).format(path=self._path, found=found)
        )

    def state(self, saved: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return what `optimizer` can load.

        Raises:
            CheckpointError: It is of another kind, or of another model.
        """
        groups = saved.get("param_groups") if isinstance(saved, dict) else None
        states = saved.get("state") if isinstance(saved, dict) else None
        if not isinstance(groups, list) or not isinstance(states, dict):
            self._refuse(_("it has no groups and states"))
        if len(groups) != 1 or not isinstance(groups[0], dict):
            self._refuse(
                _("it has {number} groups of weights, and 1 is needed").format(number=len(groups))
            )
        own = optimizer.state_dict()["param_groups"][0]
        group = {**own, **self._options(groups[0])}
        keys = groups[0].get("params")
        if not isinstance(keys, list) or len(keys) != len(self._names):
            number = len(keys) if isinstance(keys, list) else 0
            self._refuse(
                _("it is of {number} weights, and the model has {expected}").format(
                    number=number, expected=len(self._names)
                )
            )
        unknown = [key for key in states if key not in keys]
        if unknown or len(set(map(repr, keys))) < len(keys):
            self._refuse(_("its states are not those of its weights"))
        return {
            "state": {
                index: self._of_weight(name, states[key], group["amsgrad"])
                for index, (name, key) in enumerate(zip(self._names, keys, strict=True))
                if key in states
            },
            "param_groups": [group],
        }

    def _options(self, group: Mapping[str, Any]) -> dict[str, Any]:
        missing = [name for name in _OF_ADAMW if name not in group]
        if missing:
            self._refuse(_("it lacks {missing}").format(missing=", ".join(missing)))
        betas = group["betas"]
        pair = list(map(as_number, betas)) if isinstance(betas, list | tuple) else []
        eps, decay = as_number(group["eps"]), as_number(group["weight_decay"])
        values = {
            "betas": len(pair) == 2 and all(b is not None and 0 <= b < 1 for b in pair),
            "eps": eps is not None and 0 <= eps < math.inf,
            "weight_decay": decay is not None and 0 <= decay < math.inf,
            "amsgrad": isinstance(group["amsgrad"], bool),
            "maximize": group.get("maximize", False) is False,
        }
        wrong = [name for name, fits in values.items() if not fits]
        if wrong:
            value = shown(repr(group[wrong[0]]), 40)
            self._refuse(_("its {name} is {value}").format(name=wrong[0], value=value))
        return {
            "betas": tuple(pair), "eps": eps, "weight_decay": decay, "amsgrad": group["amsgrad"],
        }  # fmt: skip

    def _of_weight(self, name: str, state: Any, amsgrad: bool) -> dict[str, torch.Tensor]:
        moments = ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else []))
        expected = {"step", *moments}
        if not isinstance(state, dict) or set(state) != expected:
            found = sorted(map(str, state)) if isinstance(state, dict) else [type(state).__name__]
            self._refuse(
                _("for '{name}' it holds {found}, and AdamW has {expected}").format(
                    name=name, found=", ".join(found) or _("nothing"),
                    expected=", ".join(sorted(expected)),
                )
            )  # fmt: skip
        step = as_number(state["step"])
        if step is None or not 0 <= step < 2**53 or step != int(step):
            value = shown(repr(state["step"]), 40)
            self._refuse(_("its {name} is {value}").format(name="step", value=value))
        shape = tuple(self._parameters[name].shape)
        for moment in moments:
            tensor = state[moment]
            if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != shape:
                given = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else _("none")
                self._refuse(
                    _("{moment} of '{name}' has shape {found}, and {expected} is needed").format(
                        moment=moment, name=name, found=given, expected=shape
                    )
                )
            is_sound = tensor.is_floating_point() and torch.isfinite(tensor).all()
            if not is_sound or (moment != "exp_avg" and (tensor < 0).any()):
                self._refuse(
                    _("{moment} of '{name}' holds values that AdamW cannot have").format(
                        moment=moment, name=name
                    )
                )
        return {"step": torch.tensor(step, dtype=torch.float32), **{m: state[m] for m in moments}}
