"""What Lightning's Trainer has of state, as tensors and builtins, and put back.

Public API, but for the sums of what is logged inside an epoch (`fit_loop.epoch_loop._results`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.io import CheckpointIO
from torchmetrics import Metric

from onward.checkpoint.plain import to_plain
from onward.errors import CheckpointError
from onward.words.language import _

_HYPER_PARAMETERS = (
    "hyper_parameters",
    "hparams",
    "datamodule_hyper",
    "datamodule_hparams",
)  # beginnings of keys
_REDUCTIONS = ("is_mean_reduction", "is_sum_reduction", "is_max_reduction", "is_min_reduction")


class _Grab(CheckpointIO):
    """Keeps what is to be saved, in place of writing it."""

    content: dict[str, Any]

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        self.content = checkpoint

    def load_checkpoint(self, *_arguments: Any, **_options: Any) -> dict[str, Any]:
        raise NotImplementedError

    def remove_checkpoint(self, path: Any) -> None:
        pass


def grab(trainer: Trainer) -> dict[str, Any]:
    """Return what `trainer.save_checkpoint` would write; tensors are not copied."""
    strategy, io = trainer.strategy, _Grab()
    usual = strategy.checkpoint_io
    strategy.checkpoint_io = io
    try:
        trainer.save_checkpoint("unused", weights_only=False)
    finally:
        strategy.checkpoint_io = usual
    return io.content


def storable(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `grab` returned as tensors and builtins.

    Hyperparameters that are neither are left out: nothing is restored from them.

    Raises:
        CheckpointError: Something else is neither; it tells whose.
    """
    found: dict[str, Any] = {}
    for key, value in content.items():
        if key == "callbacks":
            found[key] = {
                name: to_plain(state, _("the state of the callback {name}").format(name=name))
                for name, state in value.items()
            }
            continue
        try:
            found[key] = to_plain(value, f"checkpoint[{key!r}]")
        except CheckpointError:
            if not key.startswith(_HYPER_PARAMETERS):
                raise
    return found


def has_sums(trainer: Trainer) -> bool:
    """Tell whether Lightning keeps the sums of what is logged where it always did."""
    results = _results(trainer)
    if results is None:
        return False
    return all(_is_known(result) for result in results.values())


def _is_known(result: Any) -> bool:
    meta = getattr(result, "meta", None)
    names = ("on_epoch", *_REDUCTIONS)
    if not hasattr(result, "is_tensor") or not all(hasattr(meta, name) for name in names):
        return False
    return not result.is_tensor or isinstance(getattr(result, "value", None), torch.Tensor)


def _results(trainer: Trainer) -> dict[str, Any] | None:
    results = getattr(getattr(trainer.fit_loop, "epoch_loop", None), "_results", None)
    return results if isinstance(results, dict) else None


def capture_sums(trainer: Trainer) -> dict[str, dict[str, torch.Tensor]]:
    """Return the sums of the epoch under way, by key."""
    return {
        key: {"value": result.value, "num": _num(result)}
        for key, result in (_results(trainer) or {}).items()
        if result.meta.on_epoch and result.is_tensor
    }


def add_sums(trainer: Trainer, saved: dict[str, Any]) -> None:
    """Add sums of before to those of now, and take them out of `saved`, where there are such."""
    for key, result in (_results(trainer) or {}).items():
        before = saved.pop(key, None)
        if before is None:
            continue
        value, meta = before["value"].to(result.value.device), result.meta
        if meta.is_mean_reduction:
            num = result.cumulated_batch_size
            result.cumulated_batch_size = before["num"].to(num.device) + num
        if meta.is_mean_reduction or meta.is_sum_reduction:
            result.value = value + result.value
        else:
            result.value = meta.reduce_fx(value, result.value)
        result._computed = None


def _num(result: Any) -> torch.Tensor:
    return result.cumulated_batch_size if result.meta.is_mean_reduction else torch.tensor(1)


def _metrics_of(module: LightningModule) -> Iterator[tuple[str, Metric]]:
    for name, inner in module.named_modules():
        if isinstance(inner, Metric):
            yield name, inner


def capture_metrics(module: LightningModule) -> dict[str, dict[str, Any]]:
    """Return the states of the torchmetrics in a module, which a `state_dict` leaves out."""
    return {name: dict(metric.metric_state) for name, metric in _metrics_of(module)}


def restore_metrics(module: LightningModule, saved: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the states of the torchmetrics back."""
    for name, metric in _metrics_of(module):
        for key, value in saved.get(name, {}).items():
            setattr(metric, key, _on(metric.device, value))


def _on(device: torch.device, value: Any) -> Any:
    if isinstance(value, list):
        return [_on(device, inner) for inner in value]
    return value.to(device, copy=True) if isinstance(value, torch.Tensor) else value
