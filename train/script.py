"""Plain checkpoint files: those of the script version, and our own, downloaded or exported.

The script's files hold NumPy scalars; the three names those need are allowed, nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train import rng
from train.checkpoint.format import is_readable, upgraded
from train.config import Config
from train.errors import (
    CheckpointError,
    CheckpointFileNotFound,
    UsageError,
)
from train.files import private_copy
from train.language import _
from train.metrics import MONITOR, History, Point
from train.schedule import Schedule
from train.tasks import Task
from train.tensors import load_tensors

log = logging.getLogger(__name__)

_OUR_KEYS = {
    "step", "scheduler_state_dict", "best_corr", "best_epoch", "history", "rng", "config",
}  # fmt: skip
_HISTORIES = {"train_losses": "train_loss", "val_losses": "val_loss", "aucs": MONITOR}


def read_checkpoint_file(path: Path, given: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """Read a plain checkpoint file as a checkpoint of this format.

    Args:
        path: The file.
        given: The options that were given. Those that were not are the file's own where it is of
            our format, and the defaults where it is the script's, which holds none.

    Returns:
        The options of the run that starts from it, and the checkpoint.

    Raises:
        CheckpointFileNotFound: There is no such file.
        CheckpointDamaged: It cannot be read, or holds code.
        CheckpointError: It lacks what training needs.
    """
    if not path.is_file():
        raise CheckpointFileNotFound(str(path), str(path.absolute()))
    saved = _load(path)
    _require({"epoch", "model_state_dict", "optimizer_state_dict"}, saved, path)
    if is_readable(saved):
        _require(_OUR_KEYS, saved, path)
        return Config.from_dict({**saved["config"], **given}), upgraded(saved)
    log.warning(
        _(
            "'%s' holds no random state and no data order: training goes on from its weights, but "
            "not exactly as it would have without the stop"
        ),
        path,
    )
    config = Config(**given)
    try:
        return config, _converted(saved, path, config)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        found = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(
            _("checkpoint file '{path}' cannot be used ({found})").format(path=path, found=found)
        ) from error


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


def _converted(saved: dict[str, Any], path: Path, config: Config) -> dict[str, Any]:
    series = {k: [float(v) for v in saved.get(name) or []] for name, k in _HISTORIES.items()}
    # The script counted from 0 or from 1; its lists tell how many epochs were done.
    epoch = len(series["train_loss"]) or int(saved["epoch"])
    end_ms = int(path.stat().st_mtime * 1000)
    history = History(
        Point(key, step, end_ms - epoch + step, value)
        for key, values in series.items()
        for step, value in enumerate(values, start=1)
    )
    scores = series[MONITOR]
    best_corr = max((s for s in scores if s == s), default=None)
    steps = [s["step"] for s in saved["optimizer_state_dict"]["state"].values() if "step" in s]
    schedule = Schedule(config)
    if set(saved.get("scheduler_state_dict") or {}) == set(schedule.state_dict()):
        schedule.load_state_dict(saved["scheduler_state_dict"])
    elif saved.get("scheduler_state_dict"):
        log.warning(
            _("The state of its schedule is not used: from epoch %d the rate follows schedule=%s"),
            epoch + 1, config.schedule,
        )  # fmt: skip
    converted = {
        "epoch": epoch,
        "step": int(max(steps, default=0)),
        "model_state_dict": dict(saved["model_state_dict"].items()),
        "optimizer_state_dict": saved["optimizer_state_dict"],
        "scheduler_state_dict": schedule.state_dict(),
        "best_corr": best_corr,
        "best_epoch": scores.index(best_corr) + 1 if best_corr is not None else None,
        "history": history.state_dict(),
        "rng": rng.fresh("file", config.seed, epoch),
    }
    return upgraded(converted)


def check_fits(checkpoint: dict[str, Any], task: Task, path: Path) -> None:
    """Refuse a checkpoint file whose model is not of the shape that the options make.

    Raises:
        CheckpointError: Names the first difference.
    """
    expected = {k: tuple(v.shape) for k, v in task.build_model().state_dict().items()}
    found = {k: tuple(v.shape) for k, v in checkpoint["model_state_dict"].items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                _(
                    "the model of '{path}' is not the one that the options make: '{name}' has "
                    "shape {found} in the file, {expected} here. Give the data and the model "
                    "options that it was trained with"
                ).format(
                    path=path,
                    name=name,
                    found=found.get(name, _("none")),
                    expected=expected.get(name, _("none")),
                )
            )


def check_order(
    checkpoint: Mapping[str, Any], config: Config, data_fingerprint: str, path: Path
) -> None:
    """Refuse options that change the batches of an epoch that the file is in the middle of.

    Args:
        checkpoint: What `read_checkpoint_file` returned.
        config: The options of the run that starts from it.
        data_fingerprint: That of the table it is to be trained on.
        path: The file.

    Raises:
        UsageError: Names what is not as it was.
    """
    if not checkpoint["epoch_step"]:
        return
    then = {**checkpoint["config"], "data": checkpoint.get("data", {}).get("fingerprint")}
    now = {**config.to_dict(), "data": data_fingerprint}
    changed = [name for name in ("batch_size", "data", "seed") if then.get(name) != now[name]]
    if changed:
        raise UsageError(
            _(
                "'{path}' lies inside epoch {epoch}, and with another {changed} the rest of the "
                "epoch would not be the rest of its samples: leave that as it was, or start from "
                "a file of an epoch's end"
            ).format(path=path, epoch=checkpoint["epoch"] + 1, changed=", ".join(changed))
        )
