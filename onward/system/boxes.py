"""Boxes: the regions of a tensor that ranks hold, and the tensors that are spread over ranks.

A box is an offset and a shape. What is here needs no other rank: which box of a tensor a rank
holds follows from the tensor's placements and the rank's place in the mesh.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from onward.errors import CheckpointError
from onward.words.language import _

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.tensor import DTensor

MAX_CUT_DIMENSIONS = 6  # of one tensor: each doubles the corners that are counted


class Box(NamedTuple):
    """A region of a tensor.

    >>> Box((2, 0), (3, 4)).num_elements
    12
    """

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """How many elements of the tensor lie in it."""
        return math.prod(self.shape)


def whole(shape: Iterable[int]) -> Box:
    """Return the box that is all of a tensor of that shape."""
    shape = tuple(shape)
    return Box((0,) * len(shape), shape)


def overlap(one: Box, other: Box) -> Box | None:
    """Return what lies in both; None if nothing does.

    >>> overlap(Box((0,), (4,)), Box((3,), (4,)))
    Box(offset=(3,), shape=(1,))
    """
    low = tuple(map(max, one.offset, other.offset))
    ends = (tuple(a + n for a, n in zip(*box, strict=True)) for box in (one, other))
    shape = tuple(end - start for start, end in zip(low, map(min, *ends), strict=True))
    return Box(low, shape) if all(n > 0 for n in shape) else None


def region(tensor: Tensor, held: Box, wanted: Box) -> Tensor:
    """Return `wanted`, which lies in `held`, of a tensor that is all of `held`; it is a view."""
    for dim, (start, length) in enumerate(zip(wanted.offset, wanted.shape, strict=True)):
        tensor = tensor.narrow(dim, start - held.offset[dim], length)
    return tensor


def cut(box: Box, max_elements: int) -> Iterator[Box]:
    """Yield boxes of at most so many elements, which together are `box`.

    >>> [list(b.offset) for b in cut(Box((5, 0), (3, 4)), 8)]
    [[5, 0], [7, 0]]
    """
    if box.num_elements <= max(max_elements, 1):
        yield box
        return
    dim = next(d for d, length in enumerate(box.shape) if length > 1)
    step = max(1, max_elements // math.prod(box.shape[dim + 1 :]))
    for start in range(0, box.shape[dim], step):
        length = min(step, box.shape[dim] - start)
        offset = (*box.offset[:dim], box.offset[dim] + start, *box.offset[dim + 1 :])
        yield from cut(Box(offset, (*box.shape[:dim], length, *box.shape[dim + 1 :])), max_elements)


def covers_once(shape: tuple[int, ...], boxes: Iterable[Box]) -> bool:
    """Tell whether every element of a tensor lies in exactly one of the boxes, none of them empty.

    A box is known by its corners, each with a sign: they tell where it begins and where it ends.
    The boxes add up to the whole if and only if their corners do, in a time that grows with their
    number and not with its square.

    >>> covers_once((4,), [Box((0,), (1,)), Box((1,), (3,))])
    True
    >>> covers_once((4,), [Box((0,), (2,)), Box((1,), (3,))])
    False
    """
    boxes = list(boxes)
    cut_dims = [
        d for d, n in enumerate(shape) if any((b.offset[d], b.shape[d]) != (0, n) for b in boxes)
    ]
    if len(cut_dims) > MAX_CUT_DIMENSIONS or not all(b.num_elements for b in boxes):
        return False
    corners: Counter[tuple[int, ...]] = Counter()
    for offset, lengths, sign in [*((*b, 1) for b in boxes), (*whole(shape), -1)]:
        edges = (((offset[d], 1), (offset[d] + lengths[d], -1)) for d in cut_dims)
        for corner in itertools.product(*edges):
            at = tuple(position for position, _sign in corner)
            corners[at] += sign * math.prod(s for _position, s in corner)
    return not any(corners.values()) and bool(boxes)


def is_spread(tensor: Any) -> TypeGuard[DTensor]:
    """Tell whether it is a tensor of which each rank holds a box: a DTensor, as FSDP2 makes them.

    Where nothing has imported DTensors there are none; to import them takes a while.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_of(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor, without a copy; all of it where it is not spread."""
    return tensor.to_local() if is_spread(tensor) else tensor


def box_of(tensor: DTensor) -> tuple[Box, bool]:
    """Return which box of a tensor this rank holds, and whether it is the one to write it.

    Where several ranks hold the same, the first of them writes it. A box can be empty.

    Raises:
        CheckpointError: It is spread in a way that is no box for each rank.
    """
    from torch.distributed.tensor import Replicate, Shard

    coordinate = tensor.device_mesh.get_coordinate()
    offset, lengths = [0] * tensor.ndim, list(tensor.shape)
    if coordinate is None:  # a rank that has no part in it
        return Box(tuple(offset), (0,) * tensor.ndim), False
    is_first = True
    for at, size, placement in zip(
        coordinate, tensor.device_mesh.shape, tensor.placements, strict=True
    ):
        if type(placement) is Shard:
            length = lengths[placement.dim]
            step = -(-length // size)  # as torch.chunk
            start = min(length, at * step)
            offset[placement.dim] += start
            lengths[placement.dim] = min(length, start + step) - start
        elif type(placement) is Replicate:
            is_first &= at == 0
        else:
            raise _unknown(tensor)
    box = Box(tuple(offset), tuple(lengths))
    if tuple(tensor.to_local().shape) != box.shape:
        raise _unknown(tensor)
    return box, is_first


def spread(local: Tensor, like: DTensor, shape: tuple[int, ...]) -> DTensor:
    """Return the tensor of that shape, of which this rank holds `local`, spread as `like` is."""
    import torch
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local.to(like.device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=torch.empty(shape, device="meta").stride(),
    )


def spread_whole(tensor: Tensor, like: DTensor) -> DTensor:
    """Return a tensor, of which this rank has all, as one that each rank of a mesh has all of."""
    from torch.distributed.tensor import DTensor, Replicate

    placements = [Replicate()] * like.device_mesh.ndim
    return DTensor.from_local(tensor.to(like.device), like.device_mesh, placements, run_check=False)


def _unknown(tensor: DTensor) -> CheckpointError:
    told = _(
        "a tensor is spread over ranks by {placements}, and only Shard and Replicate are saved in "
        "pieces: use FSDP2 without tensor parallelism on the same dimension"
    )
    return CheckpointError(told.format(placements=tensor.placements))
