"""The parts of a state: whatever a loop brings, as what is stored of it and put back in place."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, MutableMapping, MutableSequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from onward.checkpoint.plain import to_plain
from onward.errors import CheckpointError, UsageError
from onward.system.boxes import local_of
from onward.words.language import _

_COMPILED = "_orig_mod."  # in a name of what torch.compile has wrapped
_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)


@runtime_checkable
class Stateful(Protocol):
    """Whatever tells its state and takes it back: a model, an optimizer, a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as tensors and builtins."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Go back to a state that `state_dict` returned; raise if it does not fit."""


class Part:
    """What has no `state_dict` of its own, such as an environment: two functions in its place.

    Args:
        get: Returns the state: tensors, arrays and builtins.
        set: Goes back to what `get` returned.
        is_checked: Whether what `get` returns right after `set` must be what was set; any part
            may have such an attribute.

    >>> position = [3]
    >>> part = Part(lambda: {"x": position[0]}, lambda state: position.__setitem__(0, state["x"]))
    >>> part.load_state_dict({"x": 5})
    >>> position
    [5]
    """

    def __init__(
        self, get: Callable[[], Any], set: Callable[[Any], object], is_checked: bool = True
    ) -> None:
        self.state_dict, self.load_state_dict, self.is_checked = get, set, is_checked


def require_parts(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a state without those that are None.

    Raises:
        UsageError: One cannot be put back in place, changes what is in no part, or is not ready.
    """
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise UsageError(
            _("state is to be a dict of named parts, such as {example}").format(
                example='{"model": model, "optimizer": optimizer}'
            )
        )
    parts = {name: part for name, part in state.items() if part is not None}
    for name, part in parts.items():
        if not _is_known(part):
            raise UsageError(_why_not(name, part))
    _require_ready(parts)
    _require_owned(parts)
    return parts


def _is_known(part: Any) -> bool:
    kinds = (
        Stateful, torch.Generator, np.random.Generator, np.random.RandomState, random.Random,
        torch.Tensor, np.ndarray, MutableMapping, MutableSequence,
    )  # fmt: skip
    return isinstance(part, kinds)


def _why_not(name: str, part: Any) -> str:
    kind = type(part).__name__
    if isinstance(part, bool | int | float | str | bytes | tuple | frozenset | np.generic):
        told = _("state['{name}'] is a value of type {kind}, which cannot be put back in place: "
                 "put it into a dict, as in state['loop'] = {{'{name}': ...}}")  # fmt: skip
    else:
        told = _("state['{name}'] is a {kind}, which has no state_dict and load_state_dict: give "
                 "onward.Part(get, set), two functions that return its state and take it "
                 "back")  # fmt: skip
    return told.format(name=name, kind=kind)


def _require_ready(parts: Mapping[str, Any]) -> None:
    for path, module in _of_kind(parts, nn.Module):
        for name, parameter in module.named_parameters():
            if isinstance(parameter, nn.UninitializedParameter):
                raise UsageError(
                    _("state['{path}']: {name} has no shape yet, as it is made lazily: let the "
                      "model see one batch before open_run").format(path=path, name=name)
                )  # fmt: skip


def _require_owned(parts: Mapping[str, Any]) -> None:
    """Refuse an optimizer that changes what nothing stores."""
    stored = {
        id(tensor)
        for _path, module in _of_kind(parts, nn.Module)
        for tensor in (*module.parameters(), *module.buffers())
    }
    stored |= {id(tensor) for _path, tensor in _of_kind(parts, torch.Tensor)}
    others = [part for _path, part in _leaves(parts) if not isinstance(part, torch.optim.Optimizer)]
    if any(isinstance(part, Part) or _is_foreign(part) for part in others):
        return  # what such a part stores is not to be seen from here
    for path, optimizer in _of_kind(parts, torch.optim.Optimizer):
        changed = [p for group in optimizer.param_groups for p in group["params"]]
        missing = [p for p in changed if id(p) not in stored]
        if missing:
            raise UsageError(
                _("state['{path}'] changes {number} of its {total} tensors that are in no part of "
                  "the state: is it the optimizer of another model? Give the model, or the "
                  "tensors, as a part too")
                .format(path=path, number=len(missing), total=len(changed))
            )  # fmt: skip


def _is_foreign(part: Any) -> bool:
    """Tell whether a part is of a kind that may hold weights, and that nobody here knows."""
    known = (nn.Module, torch.optim.lr_scheduler.LRScheduler, torch.amp.GradScaler)
    is_foreign = isinstance(part, Stateful) and not isinstance(part, known)
    return is_foreign and hasattr(part, "parameters")


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what a state is made of, with where it is."""
    if isinstance(value, MutableMapping) and not isinstance(value, Stateful):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, MutableSequence) and not isinstance(value, Stateful):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{index}]")
    else:
        yield path, value


def _of_kind(parts: Mapping[str, Any], kind: type) -> Iterator[tuple[str, Any]]:
    for path, part in _leaves(dict(parts)):
        if isinstance(part, kind):
            yield path, part


def optimizers_of(parts: Mapping[str, Any]) -> list[torch.optim.Optimizer]:
    """Return those of the parts, wherever they lie, that change weights by their steps."""
    return [_stepping(part) for _path, part in _of_kind(parts, torch.optim.Optimizer)]


def _stepping(optimizer: Any) -> torch.optim.Optimizer:
    """Return an optimizer, or the one in a wrapper without hooks of its own, as accelerate's is."""
    while not hasattr(optimizer, "_optimizer_step_pre_hooks") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def weights_of(parts: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return the parameters of the models among the parts."""
    modules = _of_kind(parts, nn.Module)
    return [parameter for _path, module in modules for parameter in module.parameters()]


def bare(module: Any) -> Any:
    """Return a model without what wraps it: torch.compile, DistributedDataParallel, DataParallel.

    Its keys are the same then, whatever it is wrapped in.
    """
    while True:
        if isinstance(module, _WRAPPERS):
            module = module.module
        elif isinstance(module, nn.Module) and hasattr(module, "_orig_mod"):
            module = module._orig_mod
        else:
            return module


def capture(part: Any) -> Any:
    """Return the state of a part; tensors are not copied."""
    part = bare(part)
    if isinstance(part, torch.Generator):
        return part.get_state()
    if isinstance(part, np.random.Generator):
        return _numbers_as_text(to_plain(dict(part.bit_generator.state)))
    if isinstance(part, np.random.RandomState):
        return to_plain(part.get_state(legacy=True))
    if isinstance(part, random.Random):
        version, words, gauss = part.getstate()
        return [version, list(words), gauss]
    if isinstance(part, nn.Module):
        return {name.replace(_COMPILED, ""): value for name, value in part.state_dict().items()}
    if isinstance(part, Stateful):
        return part.state_dict()
    if isinstance(part, MutableMapping):
        return {key: _inner(value) for key, value in part.items()}
    if isinstance(part, MutableSequence):
        return [_inner(value) for value in part]
    return part


def _inner(value: Any) -> Any:
    return capture(value) if _is_known(value) else value


def put_back(part: Any, saved: Any, path: str) -> None:
    """Bring a part to a state that `capture` returned.

    Args:
        part: The part.
        saved: The state.
        path: Where the part is, for messages.

    Raises:
        CheckpointError: It does not fit.
    """
    part = bare(part)
    if isinstance(part, torch.Generator):
        part.set_state(saved)
    elif isinstance(part, np.random.Generator):
        part.bit_generator.state = _text_as_numbers(saved)
    elif isinstance(part, np.random.RandomState):
        name, keys, *rest = saved
        part.set_state((name, keys.numpy().astype(np.uint32), *rest))
    elif isinstance(part, random.Random):
        part.setstate((saved[0], tuple(saved[1]), saved[2]))
    elif isinstance(part, nn.Module):
        names = {name.replace(_COMPILED, ""): name for name in part.state_dict()}
        part.load_state_dict({names.get(name, name): value for name, value in saved.items()})
    elif isinstance(part, torch.optim.Optimizer):
        part.load_state_dict(saved)
        _restore_dtypes(part, saved)
    elif isinstance(part, Stateful):
        part.load_state_dict(saved)
    elif isinstance(part, torch.Tensor | np.ndarray):
        _copy_into(part, saved, path)
    elif isinstance(part, MutableMapping):
        _put_items(part, saved, path)
    else:
        _put_list(part, saved, path)


def _copy_into(part: Any, saved: Any, path: str) -> None:
    if not isinstance(saved, torch.Tensor) or tuple(saved.shape) != tuple(part.shape):
        shape = list(saved.shape) if isinstance(saved, torch.Tensor) else type(saved).__name__
        raise CheckpointError(
            _("state['{path}'] has the shape {shape}, and in the checkpoint it is {saved}").format(
                path=path, shape=list(part.shape), saved=shape
            )
        )
    if isinstance(part, np.ndarray):
        np.copyto(part, saved.numpy())
    else:
        with torch.no_grad():
            part.copy_(saved)


def _put_items(part: MutableMapping[Any, Any], saved: Mapping[Any, Any], path: str) -> None:
    restored = {key: _value(part.get(key), value, f"{path}.{key}") for key, value in saved.items()}
    part.clear()
    part.update(restored)


def _put_list(part: MutableSequence[Any], saved: list[Any], path: str) -> None:
    now = list(part)
    restored = [
        _value(now[index] if index < len(now) else None, value, f"{path}[{index}]")
        for index, value in enumerate(saved)
    ]
    part.clear()
    part.extend(restored)


def _value(now: Any, saved: Any, path: str) -> Any:
    """Return what takes the place of `now` in a dict or a list."""
    if isinstance(now, torch.Tensor) and isinstance(saved, torch.Tensor):
        if isinstance(now, nn.Parameter) or now.requires_grad:
            _copy_into(now, saved, path)  # an optimizer may know it
            return now
        return saved.to(now.device, copy=True)
    if isinstance(now, np.ndarray) and isinstance(saved, torch.Tensor):
        return saved.numpy().copy()
    if isinstance(now, np.generic) and not isinstance(saved, torch.Tensor):
        return type(now)(saved)
    if _is_known(now) and not isinstance(now, torch.Tensor | np.ndarray):
        put_back(now, saved, path)
        return now
    return saved.clone() if isinstance(saved, torch.Tensor) else saved


def _restore_dtypes(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Put back what `load_state_dict` has cast to the weights' dtype, such as fp32 moments."""
    groups = zip(optimizer.param_groups, saved["param_groups"], strict=True)
    for group, saved_group in groups:
        for parameter, number in zip(group["params"], saved_group["params"], strict=True):
            state = optimizer.state.get(parameter, {})
            for key, value in saved["state"].get(number, {}).items():
                now = state.get(key)
                if (
                    isinstance(value, torch.Tensor)
                    and isinstance(now, torch.Tensor)
                    and now.dtype != value.dtype
                ):
                    state[key] = value.to(now.device, copy=True)


def _numbers_as_text(value: Any) -> Any:
    """Return the state of a generator of NumPy's, whose numbers may have 128 bits, to be stored."""
    if isinstance(value, dict):
        return {key: _numbers_as_text(inner) for key, inner in value.items()}
    return f"{value:x}" if type(value) is int else value


def _text_as_numbers(saved: Any, key: str = "") -> Any:
    if isinstance(saved, Mapping):
        return {name: _text_as_numbers(inner, name) for name, inner in saved.items()}
    if isinstance(saved, str) and key != "bit_generator":
        return int(saved, 16)
    return saved.numpy().astype(np.uint64) if isinstance(saved, torch.Tensor) else saved


def ties_of(state: Any) -> set[frozenset[str]]:
    """Return which tensors of a state share their memory: sets of where they are."""
    found: dict[tuple[Any, ...], set[str]] = {}
    for path, tensor in _leaves(state):
        if isinstance(tensor, torch.Tensor):
            tensor = local_of(tensor)
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
            found.setdefault(key, set()).add(path)
    return {frozenset(paths) for paths in found.values() if len(paths) > 1}
