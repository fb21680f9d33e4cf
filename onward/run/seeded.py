"""Augmentation that needs no state: random numbers by seed, epoch and sample."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset, get_worker_info

from onward.run import rng


class Seeded(Dataset[Any]):
    """A dataset whose random numbers are a function of seed, epoch and index; see `seeded`."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        # Shared, so that workers that outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draw from here on what belongs to that epoch; `run.batches` does it."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        seed = rng.derive_seed("sample", self.seed, int(self._epoch), _plain(index))
        if get_worker_info() is not None:  # its generators are nobody else's
            rng.seed_all(seed)
            return self.dataset[index]
        before = rng.capture()
        rng.seed_all(seed)
        try:
            return self.dataset[index]
        finally:
            rng.restore(before)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)


def _plain(index: Any) -> Any:
    return int(index) if hasattr(index, "__index__") else index


def seeded(dataset: Any, seed: int) -> Seeded:
    """Return a map-style dataset whose augmentation a resume repeats to the bit.

    What is drawn for a sample, by `random`, by NumPy's or by torch's global generators, is a
    function of the seed, the epoch and the sample's index. So it is the same whichever worker
    loads it, and however many there are. Iterate its loader through `run.batches`, which tells it
    the epoch.

    Args:
        dataset: With `__getitem__` and `__len__`.
        seed: Of the run; another one gives other numbers.

    >>> class Noise:
    ...     def __len__(self):
    ...         return 2
    ...
    ...     def __getitem__(self, index):
    ...         return float(torch.rand(()))
    >>> data = seeded(Noise(), seed=1)
    >>> data[0] == data[0], data[0] == data[1]
    (True, False)
    """
    return Seeded(dataset, seed)


def seeded_within(dataset: Any) -> Seeded | None:
    """Return the `Seeded` that a dataset is, or holds; None if there is none."""
    for _depth in range(10):
        if isinstance(dataset, Seeded):
            return dataset
        dataset = getattr(dataset, "dataset", None)
    return None
