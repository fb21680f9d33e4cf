"""The order of the samples: a pure function of (seed, epoch, batch number).

Nothing here reads or changes a global random state, so a resumed run finds the batches that it
would have seen without the interruption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

import torch

_PLACES: Final = 16  # from which a window has its samples


def num_batches(num_samples: int, batch_size: int) -> int:
    """Return the number of batches, and so of optimizer steps, of an epoch."""
    return -(-num_samples // batch_size)


def epoch_order(num_samples: int, seed: int, epoch: int, window: int = 0) -> torch.Tensor:
    """Return the order in which an epoch goes through the samples.

    Args:
        num_samples: Number of samples, at least 1.
        seed: The run's seed.
        epoch: The epoch, counted as the caller likes, as long as it always does it so.
        window: So many samples are shuffled among each other, and then the next ones; they are
            taken from 16 places, drawn anew in each epoch, where they lie side by side. 0, or as
            many as there are: all.

    Shape:
        int64 [num_samples], a permutation, on the CPU
    """
    # Hashed, because seed + epoch would give run 1's second epoch to run 2 as its first.
    digest = hashlib.sha256(f"batches {seed} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    if not 0 < window < num_samples:
        return torch.randperm(num_samples, generator=generator)
    length = -(-window // _PLACES)
    places = torch.randperm(-(-num_samples // length), generator=generator)
    order = (places[:, None] * length + torch.arange(length)).flatten()
    order = order[order < num_samples]
    for samples in order.split(length * _PLACES):
        samples.copy_(samples[torch.randperm(len(samples), generator=generator)])
    return order


def batches(
    num_samples: int, batch_size: int, seed: int, epoch: int, start: int = 0, window: int = 0
) -> Iterator[torch.Tensor]:
    """Yield the sample indices of each batch of an epoch.

    The batches differ in size by one at most, so that no step is made on a small rest.

    Args:
        num_samples: Number of samples, at least 1.
        batch_size: The most samples in a batch, at least 1.
        seed: The run's seed.
        epoch: The epoch.
        start: Number of batches to leave out at the beginning: those already done.
        window: As for `epoch_order`.

    Shape:
        int64 [B], B <= batch_size

    Guarantees:
        The batches of an epoch hold every sample once. ``batches(..., start=k)`` are the batches
        of ``batches(...)`` after the first `k`.
    """
    order = epoch_order(num_samples, seed, epoch, window)
    parts = torch.tensor_split(order, num_batches(num_samples, batch_size))
    yield from parts[start:]
