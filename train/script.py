"""Plain checkpoint files: those of the script version, and our own, downloaded or exported.

The script's files hold numbers and arrays of NumPy; nothing of NumPy is called to read them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from onward.checkpoint.content import Content
from onward.checkpoint.format import is_readable, upgraded
from onward.errors import CheckpointError, CheckpointFileNotFound, UsageError
from onward.metrics import History, Point
from onward.monitor import UNDECLARED
from onward.options.declare import ORDER, covered_by
from onward.options.run_options import RunOptions
from onward.run import rng
from onward.run.state import MISFITS
from onward.run.subject import Subject
from onward.system.streams import private_copy
from onward.system.tensors import as_number, load_tensors
from onward.system.untrusted import shown
from onward.words.language import _
from train.schedule import Schedule

log = logging.getLogger(f"onward.{__name__}")

_OUR_KEYS = {"step", "scheduler_state_dict", "best_epoch", "history", "rng", "config"}
_HISTORIES = {"train_losses": "train_loss", "val_losses": "val_loss", "aucs": UNDECLARED.name}


def read_checkpoint_file(
    path: Path,
    given: Mapping[str, Any],
    declared: type[RunOptions],
    weights_only: bool = False,
) -> tuple[RunOptions, Content]:
    """Read a plain checkpoint file as a checkpoint of this format.

    Args:
        path: The file.
        given: The options that were given. Those that were not are the file's own where it is of
            our format, and the defaults where it is the script's, which holds none.
        declared: The class of the options.
        weights_only: Take nothing but the weights; the file may then be a bare `state_dict`.

    Returns:
        The options of the run that starts from it, and the checkpoint; the states of its optimizer
        and schedule are None where a fresh one is to begin.

    Raises:
        CheckpointFileNotFound: There is no such file.
        CheckpointDamaged: It cannot be read, or holds code.
        CheckpointError: It lacks what training needs, or it is of another kind.
    """
    if path.is_dir():
        raise CheckpointError(
            _("'{path}' is a folder: resume_from takes a file in it, such as a .pth").format(
                path=path.absolute()
            )
        )
    if not path.is_file():
        raise CheckpointFileNotFound(str(path), str(path.absolute()))
    saved = _load(path)
    if weights_only:
        is_own = is_readable(saved)
        options = _own_options(saved, given, declared, path) if is_own else declared(**given)
        weights = _weights(saved.get("model_state_dict", saved), path)
        log.warning(
            _("Of '%s' the weights alone are taken: optimizer, schedule and history begin anew"),
            path,
        )
        parts = {"model": weights, "optimizer": None, "scheduler": None}
        return options, _fresh(options, 0, parts, History())
    _require({"epoch", "model_state_dict", "optimizer_state_dict"}, saved, path)
    if is_readable(saved):
        _require(_OUR_KEYS, saved, path)
        content = upgraded(saved)
        for name in ("epoch", "step", "epoch_step"):
            if type(content[name]) is not int or not 0 <= content[name] < 2**53:
                told = _("{name} is {value}, and should be a whole number from 0")
                value = shown(repr(content[name]), 40)
                raise _unusable(path, told.format(name=name, value=value))
        content["model_state_dict"] = _weights(saved["model_state_dict"], path)
        options = _own_options(saved, given, declared, path)
        try:
            return options, Content.from_dict(content)
        except MISFITS as error:
            found = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise _unusable(path, found) from error
    log.warning(
        _(
            "'%s' holds no random state and no data order: training goes on from its weights, but "
            "not exactly as it would have without the stop"
        ),
        path,
    )
    options = declared(**given)
    return options, _converted(saved, path, options)


def _own_options(
    saved: Mapping[str, Any], given: Mapping[str, Any], declared: type[RunOptions], path: Path
) -> RunOptions:
    options = saved.get("config")
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise _unusable(path, _("it lacks {key}").format(key="config"))
    return declared.from_dict({**options, **given})


def _require(keys: set[str], saved: dict[str, Any], path: Path) -> None:
    missing = sorted(keys - set(saved))
    if missing:
        raise CheckpointError(
            _("checkpoint file '{path}' lacks {missing}; it holds {found}").format(
                path=path,
                missing=", ".join(missing),
                found=", ".join(map(str, sorted(saved, key=str))) or _("nothing"),
            )
        )


def _load(path: Path) -> dict[str, Any]:
    with private_copy(path) as copy:  # what is looked at first is what is loaded
        saved = load_tensors([copy], _("file '{path}'").format(path=path), from_script=True)
    if not isinstance(saved, dict):
        raise CheckpointError(
            _("checkpoint file '{path}' holds a {kind}, no dict").format(
                path=path, kind=type(saved).__name__
            )
        )
    return saved


def _unusable(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        _("checkpoint file '{path}' cannot be used ({found})").format(path=path, found=found)
    )


def _converted(saved: dict[str, Any], path: Path, options: RunOptions) -> Content:
    series = {key: _series(saved, name, path) for name, key in _HISTORIES.items()}
    counted = _count(saved["epoch"])
    if counted is None:
        told = _("{name} is {value}, and should be a whole number from 0")
        raise _unusable(path, told.format(name="epoch", value=shown(repr(saved["epoch"]), 40)))
    # The script counted from 0 or from 1; its lists tell how many epochs were done.
    epoch = len(series["train_loss"]) or counted
    end_ms = int(path.stat().st_mtime * 1000)
    history = History(
        Point(key, step, end_ms - epoch + step, value)
        for key, values in series.items()
        for step, value in enumerate(values, start=1)
    )
    return _fresh(
        options,
        epoch,
        {
            "model": _weights(saved["model_state_dict"], path),
            "optimizer": saved["optimizer_state_dict"],
            "scheduler": _schedule(saved.get("scheduler_state_dict"), epoch, options),
        },
        history,
        step=_steps(saved["optimizer_state_dict"], path),
    )


def _schedule(theirs: Any, epoch: int, options: Any) -> Any:
    """Return the state of the script's schedule if it is one of ours; None: a fresh one begins."""
    if isinstance(theirs, dict) and set(theirs) - {"watched"} == Schedule.KEYS:
        return theirs
    if theirs:
        log.warning(
            _("The state of its schedule is not used: from epoch %d the rate follows schedule=%s"),
            epoch + 1, options.schedule,
        )  # fmt: skip
    return None


def _fresh(
    options: RunOptions, epoch: int, parts: Mapping[str, Any], history: History, step: int = 0
) -> Content:
    """Return a checkpoint whose run begins after `epoch`."""
    return Content(
        epoch=epoch,
        step=step,
        parts=parts,
        history=history,
        best_epoch=None,  # by its history
        rng=rng.fresh("file", options.seed, epoch),
    )


def _weights(state: Any, path: Path) -> dict[str, torch.Tensor]:
    if not isinstance(state, dict) or not state:
        told = _("its model_state_dict is a {kind}, and should be a dict of tensors")
        raise _unusable(path, told.format(kind=type(state).__name__))
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            told = _("{name} is a {kind}, and should be a tensor")
            name = shown(str(name), 40)
            raise _unusable(path, told.format(name=name, kind=type(value).__name__))
    return state


def _series(saved: dict[str, Any], name: str, path: Path) -> list[float]:
    """Return one of the script's curves: a number for each epoch."""
    values = saved.get(name)
    if isinstance(values, torch.Tensor) and values.ndim == 1 and not values.is_complex():
        values = values.tolist()
    numbers = list(map(as_number, values)) if isinstance(values, list | tuple) else [None]
    if values is None or not numbers:
        return []
    found = [number for number in numbers if number is not None]
    if len(found) < len(numbers):
        kind = type(values).__name__
        told = _("{name} is a {kind}, and should be a list of one number for each epoch")
        if isinstance(values, list | tuple):
            kind = type(values[numbers.index(None)]).__name__
            told = _("{name} holds a {kind}, and should be a list of one number for each epoch")
        raise _unusable(path, told.format(name=name, kind=kind))
    return found


def _count(value: Any) -> int | None:
    """Return a whole number from 0, also where it is a tensor; None where it is none."""
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        value = value.item()
    return value if type(value) is int and 0 <= value < 2**53 else None


def _steps(state: Any, path: Path) -> int:
    """Return how many steps an optimizer has made; `fits` looks at the rest of its state."""
    states = state.get("state") if isinstance(state, dict) else None
    if not isinstance(states, dict):
        told = _(
            "its optimizer_state_dict is a {kind} without states; resume_from_weights_only=true "
            "starts from its weights alone"
        )
        raise _unusable(path, told.format(kind=type(state).__name__))
    steps = [as_number(one.get("step")) for one in states.values() if isinstance(one, dict)]
    return int(max((step for step in steps if step is not None and 0 <= step < 2**53), default=0))


def check_order(content: Content, subject: Subject, path: Path) -> None:
    """Refuse options that change the batches of an epoch that the file is in the middle of.

    Args:
        content: What `read_checkpoint_file` returned.
        subject: What is trained from it on.
        path: The file.

    Raises:
        UsageError: Names what is not as it was.
    """
    if not content.epoch_step:
        return
    now = subject.options.to_dict()
    ordered = covered_by(type(subject.options), ORDER)
    changed = [name for name in ordered if content.config.get(name) != now.get(name)]
    if content.data.get("fingerprint") != subject.data_fingerprint:
        changed.append("data")
    if changed:
        raise UsageError(
            _(
                "'{path}' lies inside epoch {epoch}, and with another {changed} the rest of the "
                "epoch would not be the rest of its samples: leave that as it was, or start from "
                "a file of an epoch's end"
            ).format(path=path, epoch=content.epoch + 1, changed=", ".join(sorted(changed)))
        )
