"""What the random numbers are before each batch of a loader is read.

A loader that reads ahead has drawn for batches that are not trained on yet. To read these again
with the same augmentation, a resume puts back what the random numbers were before each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from onward.run import rng


class Fetches:
    """A loader's batch sampler, which keeps the random numbers before each batch is read.

    Args:
        inner: The batch sampler; what it has is found here too.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._kept: dict[int, dict[str, Any]] = {}
        self._anew: dict[int, Any] = {}
        self._first = 0  # batch of the pass that is to be read

    def __iter__(self) -> Iterator[Any]:
        first, anew = self._first, self._anew
        self._kept, self._anew, self._first = {}, {}, 0
        for number, indices in enumerate(self._inner):
            if number >= first:
                if number in anew:
                    rng.restore(anew[number])
                self._kept[number] = rng.capture()
            yield indices  # and the batch is read

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_inner":
            raise AttributeError(name)
        return getattr(self._inner, name)

    def since(self, number: int) -> dict[int, dict[str, Any]]:
        """Return the random numbers before each batch that is read, from that one on."""
        self._kept = {n: state for n, state in self._kept.items() if n >= number}
        return dict(self._kept)

    def go_on(self, number: int, kept: Mapping[int, Any]) -> None:
        """Leave out, in the next pass, what comes before a batch; read the next ones as then."""
        self._first, self._anew = number, dict(kept)


def watch(loader: Any) -> Fetches | None:
    """Keep the random numbers before each batch of a loader, from its next pass on.

    Args:
        loader: A `DataLoader`, or what accelerate makes of one.

    Returns:
        What keeps them; None where a dataset tells its own order, or workers draw for themselves.
    """
    loader = getattr(loader, "base_dataloader", loader)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    if loader.num_workers or loader.batch_sampler is None:
        return None
    fetches = Fetches(loader.batch_sampler)
    loader.__dict__["batch_sampler"] = fetches  # past `__setattr__`, which refuses it
    return fetches
