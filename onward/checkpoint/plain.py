"""What a checkpoint may hold: tensors and builtins, and beside tensors only as much as is read."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any

from onward.errors import CheckpointError
from onward.system.boxes import is_spread
from onward.system.files import size_in_words
from onward.system.pickled import MAX_PICKLE_BYTES
from onward.words.language import _

_BUILTINS = frozenset({type(None), bool, int, float, str, bytes})


def to_plain(
    value: Any, where: str = "checkpoint", tensor: Callable[[str, Any], Any] | None = None
) -> Any:
    """Return `value` with NumPy's numbers and arrays as Python's and torch's.

    Args:
        value: Tensors, numbers, strings, nested in dicts, lists and tuples.
        where: The name of `value`, for messages.
        tensor: Maps (where, tensor) to what stands for the tensor; default: the tensor.

    Raises:
        CheckpointError: Something is neither a tensor nor a builtin, so that
            `weights_only=True` could not load it again; or a tensor is spread over ranks, and
            nothing stands for it.
    """
    import numpy as np
    import torch

    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))
    if isinstance(value, torch.Tensor):
        return whole_tensor(where, value) if tensor is None else tensor(where, value)
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in _BUILTINS:
        return value
    if isinstance(value, Mapping):
        return {
            to_plain(k, f"a key of {where}"): to_plain(v, f"{where}[{k!r}]", tensor)
            for k, v in value.items()
        }
    if type(value) in (list, tuple):
        if _BUILTINS.issuperset(map(type, value)):  # such as losses, one of each epoch so far
            return type(value)(value)
        return type(value)(to_plain(v, f"{where}[{i}]", tensor) for i, v in enumerate(value))
    raise CheckpointError(
        _(
            "{where} is a {kind}, and a checkpoint holds only tensors and builtins: "
            "let its state_dict() return those"
        ).format(where=where, kind=f"{type(value).__module__}.{type(value).__qualname__}")
    )


def whole_tensor(where: str, tensor: Any) -> Any:
    """Return a tensor without its graph, of which this process has all.

    Raises:
        CheckpointError: It is one of which it has a piece.
    """
    if is_spread(tensor):
        told = _("{where} is spread over ranks, and only a piece of it is here: it is to be saved "
                 "in pieces, by each rank its own")  # fmt: skip
        raise CheckpointError(told.format(where=where))
    return tensor.detach()


class _Measure(pickle.Pickler):
    """Counts the bytes of a pickle, in which a tensor is some 200, whatever its size."""

    def __init__(self) -> None:
        self.num_bytes = self._num_tensors = 0
        super().__init__(self, protocol=2)  # as torch.save

    def write(self, data: bytes) -> int:
        """Count what is written."""
        self.num_bytes += len(data)
        return len(data)

    def persistent_id(self, value: Any) -> int | None:
        """Leave tensors out, but for what the pickle says of them."""
        import torch

        if not isinstance(value, torch.Tensor):
            return None
        self.num_bytes += 200
        self._num_tensors += 1
        return self._num_tensors


def require_readable(plain: Mapping[str, Any]) -> None:
    """Refuse what no reader would take, while the one before is still the newest."""
    measure = _Measure()
    measure.dump(plain)
    if measure.num_bytes > MAX_PICKLE_BYTES:
        raise CheckpointError(
            _("the state has {size} beside its tensors, and at most {most} are read again: put "
              "long lists of numbers, such as a replay buffer, into tensors or arrays")
            .format(
                size=size_in_words(measure.num_bytes), most=size_in_words(MAX_PICKLE_BYTES)
            )
        )  # fmt: skip
