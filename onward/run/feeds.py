"""A loader's batches, those of them that are left: how the inside of an epoch is exact.

A loader draws where its workers begin and the order of its samples from the global random numbers,
or from a generator of its own, before the first batch. So what these were is kept. A resume puts
them back, lets the sampler run past the batches that are done without reading them, and puts the
checkpoint's own random numbers back between the order and the first batch.
"""

from __future__ import annotations

import collections
import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from onward.errors import CheckpointError
from onward.run import rng
from onward.run.parts import Stateful
from onward.run.seeded import seeded_within
from onward.run.shares import Shares, is_divisible, shield
from onward.words.language import _
from onward.world import ALONE, World

log = logging.getLogger(__name__)

_END = object()


class Feed:
    """One pass after another over a loader, and where it is.

    Args:
        loader: Any iterable that can be iterated anew for each pass.
        world: The ranks, each of which gets a part of each batch.
    """

    def __init__(self, loader: Any, world: World = ALONE) -> None:
        self._loader, self._world = loader, world
        self._weights: collections.deque[float] = collections.deque()
        self._is_renewed = False  # whether the loop makes its loader anew for each pass
        self.taken = 0  # batches of the pass under way
        self.num_passes = 0  # complete
        self.is_exhausted = False  # the pass under way
        self._start: dict[str, Any] | None = None  # random numbers at the beginning of the pass
        self._place: dict[str, Any] | None = None  # of a loader that keeps its own
        self._rest: Any = None  # stands for a loader whose workers persist, after a resume

    @property
    def loader(self) -> Any:
        """The loader."""
        return self._loader

    @loader.setter
    def loader(self, loader: Any) -> None:
        if loader is not self._loader:
            self._is_renewed, self._rest = True, None
        self._loader = loader

    @property
    def length(self) -> int | None:
        """How many batches a pass has, if the loader tells."""
        try:
            return len(self.loader)
        except TypeError:
            return None

    def state_dict(self) -> dict[str, Any]:
        """Return where it is."""
        # Between two passes torchdata's loader has no place: it would be that of an empty pass.
        has_place = self.taken or not isinstance(self.loader, DataLoader)
        return {
            "taken": self.taken,
            "passes": self.num_passes,
            "length": self.length,
            "start": self._start,
            "place": self.loader.state_dict() if has_place and self._keeps_place else None,
            "generators": [] if self._is_renewed else _generators_of(self.loader),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where a feed was, of the same loader; the next pass is the rest of one.

        Raises:
            CheckpointError: The loader is another one.
        """
        is_like_that = state["place"] is None or self._keeps_place
        if state["taken"] and not (state["length"] == self.length and is_like_that):
            raise CheckpointError(
                _("the checkpoint lies inside an epoch, after batch {taken} of {then} of a loader, "
                  "and the loader has {now} batches now: the rest would be of another order. Make "
                  "it as it was, or fork from the end of an epoch (resume_epoch=N, fork=True)")
                .format(taken=state["taken"], then=state["length"], now=self.length)
            )  # fmt: skip
        self.taken, self.num_passes = state["taken"], state["passes"]
        self._start = state["start"]
        self._place = state["place"] if is_like_that else None
        _set_generators(self.loader, state["generators"])

    def end_pass(self) -> None:
        """Take the pass under way as complete: what follows is the next one."""
        self.taken, self._start, self._place = 0, None, None
        self.num_passes += 1

    def iterate(self, epoch: int) -> Iterator[Any]:
        """Yield the batches of one pass that are left; `end_pass` is the caller's.

        Args:
            epoch: By which augmentation is seeded, see `seeded`.
        """
        now = rng.capture()
        shield(self.loader)
        seeded = seeded_within(getattr(self.loader, "dataset", None))
        if seeded is not None:
            seeded.set_epoch(epoch)
        if self._place is not None:
            self.loader.load_state_dict(self._place)
            batches = iter(self.loader)
            rng.restore(now)
        elif self.is_divided:
            batches = self._divided(now)
        elif self.taken:
            batches = self._skipped(now)
        else:
            self._start = {"rng": now, "generators": _generators_of(self.loader)}
            batches = iter(self._with_workers())
        self._place = None
        self.is_exhausted = False
        for batch in batches:
            self.taken += 1
            yield batch
        self.is_exhausted = True

    @property
    def is_divided(self) -> bool:
        """Whether each rank gets a part of each batch; else each iterates the loader as it is."""
        return not self._world.is_alone and is_divisible(self.loader)

    @property
    def batch_weight(self) -> float:
        """That of the batch which was read last; to be asked once."""
        return self._weights.popleft() if self._weights else 1.0

    def _divided(self, now: dict[str, Any]) -> Iterator[Any]:
        """Return an iterator over this rank's parts, in the order that rank 0 draws."""
        loader, own, is_fresh = self.loader, _generators_of(self.loader), not self.taken
        before, divided = now, copy.copy(loader)
        if is_fresh:
            start = {"rng": now, "generators": own}
            self._start = dict(self._world.broadcast(start) or start)

        def draw_order() -> None:
            nonlocal before
            if not (is_fresh and self._world.is_leader):  # whose own numbers are those of the order
                before = rng.capture()
                self._draw_order()
                # As `iter` does for the workers, before anything else.
                torch.empty((), dtype=torch.int64).random_(generator=loader.generator)

        def return_to_own() -> None:
            if not is_fresh:
                rng.restore(now)
                _set_generators(loader, own)
            elif not self._world.is_leader:
                rng.restore(before)

        shares = Shares(loader.batch_sampler, self._world, self.taken, draw_order, return_to_own)
        # Past `__setattr__`, as for `_without_first`. Workers that persist would keep the sampler.
        divided.__dict__.update(batch_sampler=shares, persistent_workers=False, _iterator=None)
        self._weights = shares.weights
        batches = iter(divided)
        if not is_fresh:
            rng.restore(now)
        return batches

    @property
    def _keeps_place(self) -> bool:
        """Whether the loader itself can go on where it was."""
        return isinstance(self.loader, Stateful)

    def _with_workers(self) -> Any:
        """Return the loader, its workers as they would be in a process that was never stopped.

        Where they persist, only the first pass of a process draws a seed for them. So in a process
        that begins with a later pass, that draw is taken back.
        """
        if self._rest is not None:
            return self._rest
        if (
            self.num_passes
            and getattr(self.loader, "persistent_workers", False)
            and (getattr(self.loader, "_iterator", None) is None)
        ):
            self._rest = _without_first(self.loader, 0, self._draw_order, lambda: None)
            return self._rest
        return self.loader

    def _draw_order(self) -> None:
        """Put back the random numbers by which the order of the pass under way is drawn."""
        assert self._start is not None
        rng.restore(self._start["rng"])
        _set_generators(self.loader, self._start["generators"])

    def _skipped(self, now: dict[str, Any]) -> Iterator[Any]:
        """Return an iterator over the rest of a pass, with the random numbers as they are now."""
        own, loader = _generators_of(self.loader), self.loader
        self._draw_order()

        def return_to_now() -> None:
            rng.restore(now)
            _set_generators(loader, own)

        if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
            persists = loader.persistent_workers
            before = self._draw_order if persists and self.num_passes else lambda: None
            rest = _without_first(loader, self.taken, before, return_to_now)
            self._rest = rest if persists else None
            batches = iter(rest)
            if loader.num_workers:  # it has drawn the order already
                return_to_now()
            return batches
        log.warning(
            _("%s can neither go on where it was nor leave out batches: %d are read and thrown "
              "away"),
            type(loader).__name__, self.taken,
        )  # fmt: skip
        batches = iter(loader)
        for _number in range(self.taken):
            if next(batches, _END) is _END:
                break
        return_to_now()
        return batches


def _without_first(
    loader: Any, number: int, before: Callable[[], None], then: Callable[[], None]
) -> Any:
    """Return the loader, whose next pass is without its first batches: these are not read.

    Args:
        loader: A map-style `DataLoader`.
        number: How many to leave out.
        before: Called before the order is drawn.
        then: Called once it is, and what is left out is behind.
    """
    rest = copy.copy(loader)
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    # Past `__setattr__`, which refuses it of a loader that is made: this one is nobody else's.
    rest.__dict__[name] = _Rest(getattr(loader, name), number, before, then)
    rest.__dict__["_iterator"] = None
    return rest


class _Rest:
    """A sampler that once leaves out what it yields first."""

    def __init__(
        self, inner: Any, number: int, before: Callable[[], None], then: Callable[[], None]
    ) -> None:
        self._inner, self._number, self._hooks = inner, number, [before, then]

    def __iter__(self) -> Iterator[Any]:
        number, self._number = self._number, 0
        before, then = self._hooks or (lambda: None, lambda: None)
        self._hooks = []
        before()
        indices = iter(self._inner)
        for _number in range(number):
            if next(indices, _END) is _END:
                break
        then()
        yield from indices

    def __len__(self) -> int:
        return len(self._inner)


def _owners(loader: Any) -> list[Any]:
    """Return what may have a generator of its own: the loader, and what chooses its samples."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    return [loader, getattr(loader, "sampler", None), getattr(batch_sampler, "sampler", None)]


def _generators_of(loader: Any) -> list[torch.Tensor | None]:
    """Return the states of the loader's own generators, None where it has none."""
    found = [getattr(owner, "generator", None) for owner in _owners(loader)]
    return [g.get_state() if isinstance(g, torch.Generator) else None for g in found]


def _set_generators(loader: Any, states: list[torch.Tensor | None]) -> None:
    for owner, state in zip(_owners(loader), states, strict=False):
        generator = getattr(owner, "generator", None)
        if state is not None and isinstance(generator, torch.Generator):
            generator.set_state(state)


def _doubts_of(loader: Any) -> str | None:
    """Return why a stop inside an epoch may not be exact with this loader, None if it is."""
    if not isinstance(loader, DataLoader) or not loader.num_workers:
        return None
    if seeded_within(loader.dataset) is not None:
        return None
    if loader.persistent_workers:
        return _(
            "its persistent workers keep random numbers that no checkpoint can have: after a "
            "resume augmentation differs"
        )
    if isinstance(loader, Stateful) or not isinstance(loader.dataset, IterableDataset):
        return _(
            "it has workers, so what its dataset draws at random differs after a resume inside an "
            "epoch"
        )
    return None


def tell_doubts(loader: Any) -> bool:
    """Warn if a stop inside an epoch may not be exact with a loader; return whether it was told."""
    doubts = _doubts_of(loader)
    if doubts is None:
        return False
    log.warning(
        _("The loader: %s. onward.seeded(dataset, seed) around its dataset makes it exact"), doubts
    )
    return True
