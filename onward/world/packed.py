"""A state as the bytes that go from rank to rank."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def packed(state: Mapping[str, Any]) -> torch.Tensor:
    """Return a state, tensors and builtins, as bytes."""
    import torch

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)


def unpacked(packed: torch.Tensor) -> Mapping[str, Any]:
    """Return what `packed` was called on; nothing in it is executed."""
    import torch

    file = io.BytesIO(packed.numpy().tobytes())
    state: Mapping[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state
