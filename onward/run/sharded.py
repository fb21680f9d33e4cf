"""State that is spread over ranks: taken apart into pieces, and put together for another layout.

`split` and `join` talk to no other rank. What `capture` returns of a model under FSDP2 and of its
optimizer has a DTensor wherever each rank has a piece; the names, and an optimizer's numbers, are
those of one process. Only `state_dict` is called: torch's `get_optimizer_state_dict` takes a step
of the optimizer where it has none yet.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, MutableSequence
from typing import Any

import torch
from torch import nn

from onward.checkpoint.content import Content
from onward.checkpoint.pieces import Marker, Piece, marker_in
from onward.checkpoint.plain import to_plain
from onward.checkpoint.shards import Shards
from onward.errors import CheckpointError
from onward.run.parts import Stateful, bare, capture
from onward.system.boxes import (
    box_of,
    is_spread,
    local_of,
    region,
    spread,
    spread_whole,
    whole,
)
from onward.words.language import _


def split(tree: Any, where: str) -> tuple[Any, list[Piece]]:
    """Take what is spread over ranks out of a state.

    Args:
        tree: What `capture` returned of a part.
        where: What the part is called: a tensor's key begins with it.

    Returns:
        The state, with a marker for each tensor that is spread, the same on each rank; and what
        this rank is to write of them. Nothing is copied: a piece is the memory of the weight, or of
        the moment, so that `changed_by_step` knows it.

    Raises:
        CheckpointError: Something cannot be saved.
    """
    pieces: list[Piece] = []
    shared: dict[tuple[Any, ...], Marker] = {}  # tied weights have one key

    def take(path: str, tensor: torch.Tensor) -> Any:
        if not is_spread(tensor):
            return tensor.detach()
        held = local_of(tensor.detach())
        storage = held.untyped_storage()
        place = (storage.data_ptr(), held.storage_offset(), tensor.shape, held.stride(), held.dtype)
        if storage.nbytes() and place in shared:
            return shared[place].to_dict()
        box, is_first = box_of(tensor)
        shape = tuple(tensor.shape)
        marker = Marker(path, str(tensor.dtype).removeprefix("torch."), shape)
        shared[place] = marker
        if is_first and held.numel():
            pieces.append(Piece(key=path, shape=shape, offset=box.offset, tensor=held))
        return marker.to_dict()

    return to_plain(tree, where, take), pieces


def split_parts(parts: Mapping[str, Any]) -> tuple[dict[str, Any], list[Piece]]:
    """Take what is spread over ranks out of the states of all parts; see `split`."""
    split_states = {name: split(state, name) for name, state in parts.items()}
    pieces = [piece for _state, found in split_states.values() for piece in found]
    return {name: state for name, (state, _found) in split_states.items()}, pieces


def join(tree: Any, part: Any, where: str, shards: Shards | None = None) -> Any:
    """Return a state as the part takes it back, in the layout that the part has now.

    Args:
        tree: What `split` returned, or a whole state of one process.
        part: The live part; it is only looked at.
        where: What it is called, for messages.
        shards: Where the pieces are; None: there are none.

    Returns:
        The state. What the part has spread over ranks is spread the same way, of which this rank
        has read its own piece; the rest are whole tensors. What an optimizer has not made yet is
        spread as the weight is that it belongs to.

    Raises:
        CheckpointError: A tensor has another shape than the part's, or its pieces are not at hand.
    """
    like = _like(part, shards is not None)
    return _Join(shards)(tree, like, where)


def join_parts(
    saved: Content, parts: Mapping[str, Any], shards: Shards | None = None
) -> dict[str, Any]:
    """Return the states of parts as they take them back; see `join`.

    Where nothing is spread, neither in the checkpoint nor in the parts, they are as they are.
    """
    is_split = shards is not None or bool(saved.layout)
    return {
        name: join(saved.parts[name], part, name, shards)
        if is_split or is_spread_inside(part)
        else saved.parts[name]
        for name, part in parts.items()
    }


def is_spread_inside(part: Any) -> bool:
    """Tell whether ranks have pieces of what a part holds."""
    part = bare(part)
    if isinstance(part, torch.optim.Optimizer):
        return any(is_spread(p) for group in part.param_groups for p in group["params"])
    if isinstance(part, nn.Module):
        return any(map(is_spread, (*part.parameters(), *part.buffers())))
    if isinstance(part, MutableMapping) and not isinstance(part, Stateful):
        return any(map(is_spread_inside, part.values()))
    if isinstance(part, MutableSequence) and not isinstance(part, Stateful):
        return any(map(is_spread_inside, part))
    return is_spread(part)


class _OfParameter:
    """Stands for an optimizer's state of one parameter."""

    def __init__(self, parameter: torch.Tensor, made: Mapping[str, Any]) -> None:
        self._parameter, self._made = parameter, made

    def get(self, key: Any) -> Any:
        """Return what is laid out like the state of that name: itself, or the parameter."""
        if isinstance(self._made.get(key), torch.Tensor):
            return self._made[key]
        return None if key == "step" else self._parameter


def _like(part: Any, is_deep: bool) -> Any:
    """Return the state of a live part, complete for an optimizer that has not made it yet.

    What is neither a model nor an optimizer is asked for its state only where it may be needed.
    """
    part = bare(part)
    if isinstance(part, torch.optim.Optimizer):
        document = part.state_dict()
        numbers = [n for group in document["param_groups"] for n in group["params"]]
        parameters = [p for group in part.param_groups for p in group["params"]]
        pairs = enumerate(zip(numbers, parameters, strict=True))
        made = document["state"]
        return {"state": {at: _OfParameter(p, made.get(n, {})) for at, (n, p) in pairs}}
    if isinstance(part, nn.Module) or (isinstance(part, Stateful) and is_deep):
        return capture(part)
    if isinstance(part, Stateful):
        return None
    if isinstance(part, MutableMapping):
        return {key: _like(value, is_deep) for key, value in part.items()}
    if isinstance(part, MutableSequence):
        return [_like(value, is_deep) for value in part]
    return part


def _inside(like: Any, key: Any) -> Any:
    if isinstance(like, Mapping | _OfParameter):
        return like.get(key)
    if isinstance(like, list | tuple) and isinstance(key, int) and key < len(like):
        return like[key]
    return None


class _Join:
    """Walks a saved state beside the live one."""

    def __init__(self, shards: Shards | None) -> None:
        self._shards = shards
        self._made: dict[Any, Any] = {}  # what is tied stays tied

    def __call__(self, tree: Any, like: Any, where: str) -> Any:
        try:
            marker = marker_in(tree)
        except ValueError as error:
            raise CheckpointError(f"{where}: {error}") from error
        if marker is not None:
            return self._once(marker.key, like, lambda: self._read(marker, like, where))
        if isinstance(tree, torch.Tensor):
            if not is_spread(like) or is_spread(tree):
                return tree
            return self._once(id(tree), like, lambda: self._spread(tree, like, where))
        if isinstance(tree, Mapping):
            return {k: self(v, _inside(like, k), f"{where}[{k!r}]") for k, v in tree.items()}
        if isinstance(tree, list | tuple):
            items = (self(v, _inside(like, i), f"{where}[{i}]") for i, v in enumerate(tree))
            return type(tree)(items)
        return tree

    def _once(self, key: Any, like: Any, make: Any) -> Any:
        way = (like.device_mesh, like.placements) if is_spread(like) else None
        if (key, way) not in self._made:
            self._made[key, way] = make()
        return self._made[key, way]

    def _read(self, marker: Marker, like: Any, where: str) -> torch.Tensor:
        if self._shards is None:
            told = _("{where} was saved in pieces, and they are not at hand")
            raise CheckpointError(told.format(where=where))
        if not is_spread(like):
            return self._shards.read(marker, whole(marker.shape))
        if tuple(like.shape) != marker.shape:
            found = self._shards.read(marker, whole(marker.shape))
            return spread_whole(found, like)
        box, _is_first = box_of(like)
        return spread(self._shards.read(marker, box), like, marker.shape)

    def _spread(self, tensor: torch.Tensor, like: Any, where: str) -> torch.Tensor:
        shape = tuple(tensor.shape)
        if tuple(like.shape) != shape:
            return tensor  # what is not of the weight's shape is the same on each rank
        box, _is_first = box_of(like)
        return spread(region(tensor, whole(shape), box).clone(), like, shape)


def own_of(part: Any) -> dict[str, torch.Tensor]:
    """Return what each rank has for itself in the models of a part: buffers that are not spread.

    FSDP2 leaves a model's buffers alone, so that running means, say, differ between ranks.
    """
    return {
        f"{path}{name}": buffer.detach()
        for path, module in _modules(part, "")
        for name, buffer in module.named_buffers()
        if not is_spread(buffer) and _is_saved(module, name)
    }


def put_own(part: Any, own: Mapping[str, Any], where: str) -> None:
    """Put back what `own_of` returned on the same rank.

    Raises:
        CheckpointError: A buffer is missing, or has another shape.
    """
    now = own_of(part)
    for name, buffer in now.items():
        saved = own.get(name)
        if not isinstance(saved, torch.Tensor) or saved.shape != buffer.shape:
            told = _("{where}: the rank's own {name} is not in the checkpoint")
            raise CheckpointError(told.format(where=where, name=name))
        buffer.copy_(saved)


def _modules(part: Any, path: str) -> list[tuple[str, nn.Module]]:
    part = bare(part)
    if isinstance(part, nn.Module):
        return [(path, part)]
    if isinstance(part, Stateful) or not isinstance(part, MutableMapping | MutableSequence):
        return []
    items = part.items() if isinstance(part, MutableMapping) else enumerate(part)
    return [found for key, value in items for found in _modules(value, f"{path}{key}.")]


def _is_saved(module: nn.Module, name: str) -> bool:
    owner, _dot, last = name.rpartition(".")
    return last not in module.get_submodule(owner)._non_persistent_buffers_set
