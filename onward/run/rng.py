"""The random number generators of a process: seed, capture, restore.

Python's, NumPy's, torch's and each CUDA device's global generators are what dropout and a
user's own code draw from. (The order of batches does not come from them, see `order`.)
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch


def derive_seed(*parts: object) -> int:
    """Return a seed in [0, 2**63) that is a hash of `parts`: near parts give far seeds."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_all(seed: int) -> None:
    """Seed every global generator; `seed` in [0, 2**63)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # seeds all CUDA devices as well


def fresh(*parts: object) -> dict[str, Any]:
    """Seed every global generator by a hash of `parts`, and return what `capture` then sees."""
    seed_all(derive_seed(*parts))
    return capture()


def capture() -> dict[str, Any]:
    """Return the state of every global generator, in tensors and builtins only."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": (version, list(words), gauss),
        "numpy": (name, torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(state: dict[str, Any]) -> None:
    """Put every global generator back to what `capture` saw.

    A device that was not there at capture keeps its state; one that is gone is passed over:
    the device is the machine's, and the run says that it differs.
    """
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    for index, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(device_state, index)
