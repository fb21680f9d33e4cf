"""The share of each rank in a batch, and the weights by which the shares add up again."""

from __future__ import annotations

import collections
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from onward.run.signals import SIGNALS
from onward.words.language import _
from onward.world import World

log = logging.getLogger(__name__)


def share_of(indices: torch.Tensor, world: World) -> tuple[torch.Tensor, float]:
    """Return a rank's part of a batch, and the weight of its mean.

    Where there are fewer samples than ranks, one without any has the first of them, by weight 0:
    it has to take part in the step.

    Shape:
        int64 [B] -> int64 [b], 1 <= b <= B

    >>> from onward.system.environment import Ranks
    >>> share_of(torch.arange(5), World(Ranks(rank=0, size=2)))
    (tensor([0, 1, 2]), 1.2)
    """
    own = indices.tensor_split(world.size)[world.rank]
    weight = len(own) * world.size / len(indices)
    return (own if len(own) else indices[:1]), weight


def is_divisible(loader: Any) -> bool:
    """Tell whether the batches of a loader can be divided without reading them.

    One that keeps its own place, or has a sampler that divides, is taken as it is.
    """
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        return False
    is_other = divides(loader) or hasattr(loader, "state_dict")
    return not (is_other or isinstance(loader.dataset, IterableDataset))


def divides(loader: Any) -> bool:
    """Tell whether a loader has a sampler that gives each rank samples of its own."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    samplers = (getattr(loader, "sampler", None), getattr(batch_sampler, "sampler", None))
    return any(isinstance(sampler, DistributedSampler) for sampler in samplers)


def tell_undivided(loader: Any) -> None:
    """Warn of a loader that nobody divides, as far as can be told."""
    if not (is_divisible(loader) or divides(loader)):
        log.warning(
            _("%s cannot be divided here: each rank trains on all that it yields there. Let it "
              "yield each rank's own, or take a DataLoader over a dataset that is indexed"),
            type(loader).__name__,
        )  # fmt: skip


class Shares:
    """A batch sampler that yields one rank's part of each batch.

    Args:
        inner: That of the loader.
        world: The ranks.
        num_done: Batches to leave out at the beginning.
        before: Called before the order is drawn.
        then: Called once it is, and what is left out is behind.

    Attributes:
        weights: Of the batches that were drawn and are not trained on yet.
    """

    def __init__(
        self,
        inner: Any,
        world: World,
        num_done: int,
        before: Callable[[], object],
        then: Callable[[], object],
    ) -> None:
        self._inner, self._world, self._num_done = inner, world, num_done
        self._before, self._then = before, then
        self.weights: collections.deque[float] = collections.deque()

    def __iter__(self) -> Iterator[list[Any]]:
        self._before()
        batches = iter(self._inner)
        first = next(batches, None)
        for _number in range(self._num_done):
            first = next(batches, None)
        self._then()
        while first is not None:
            yield self._part(list(first))
            first = next(batches, None)

    def _part(self, batch: Sequence[Any]) -> list[Any]:
        own, weight = share_of(torch.arange(len(batch)), self._world)
        self.weights.append(weight)
        return [batch[index] for index in own.tolist()]

    def __len__(self) -> int:
        return len(self._inner)


class _Shielded:
    """What a loader's worker begins with: it outlives the signals that are for the whole job.

    An agent, a service manager and a terminal send them to every process of a group, and a save
    that is under way may still need the batch that is. Its own parent may end it at any time.
    """

    def __init__(self, inner: Callable[[int], object] | None) -> None:
        self.inner = inner

    def __call__(self, number: int) -> None:
        for sent in SIGNALS:
            if sent != signal.SIGTERM:
                signal.signal(sent, signal.SIG_IGN)
        if sys.platform == "linux":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            threading.Thread(target=_end_with_parent, daemon=True).start()
        if self.inner is not None:
            self.inner(number)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    while True:
        sent = signal.sigwaitinfo([signal.SIGTERM])
        if parent is None or sent.si_pid == parent.pid:
            os._exit(0)


def shield(loader: Any) -> None:
    """Let the workers of a loader outlive signals that are meant for the training."""
    has_workers = isinstance(loader, DataLoader) and loader.num_workers
    if has_workers and not isinstance(loader.worker_init_fn, _Shielded):
        loader.worker_init_fn = _Shielded(loader.worker_init_fn)
