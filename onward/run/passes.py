"""What a loop iterates inside an epoch: a loader's batches, or indices in the run's own order."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

from onward.errors import UsageError
from onward.metrics import STEP
from onward.run import order as orders
from onward.run.feeds import Feed, tell_doubts
from onward.run.shares import share_of, tell_undivided
from onward.run.state import TrainState
from onward.words.language import _
from onward.world import ALONE, World

log = logging.getLogger(__name__)

_END = object()
_INSIDE = "batches"  # in the names of feeds whose pass is that of an epoch
_FIRST = f"{_INSIDE} 0"  # the one whose batches are the steps


class Batches:
    """The batches of a loader that are left in the epoch under way; iterate it once.

    Args:
        loader: Any iterable.
        begin: Returns an iterator over what is left.
    """

    def __init__(self, loader: Any, begin: Callable[[], Iterator[Any]]) -> None:
        self._loader, self._begin = loader, begin

    def __iter__(self) -> Iterator[Any]:
        return self._begin()

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        """Return what the loader has, such as its `dataset`."""
        return getattr(self._loader, name)


class Order:
    """The samples of each batch of an epoch, in an order by seed and epoch.

    Iterated by a loop, each batch is a step; as the `batch_sampler` of a `DataLoader` that goes
    through `run.batches` it only tells the order.

    Args:
        num_samples: How many the epoch has.
        batch_size: The most in a batch; see `order.batches`.
        seed: The run's.
        epoch: Returns the number of the epoch under way, from 1.
        walk: Iterates it as a loop does.

    Attributes:
        window: How many are shuffled among each other, 0: all; see `order.epoch_order`. It is set
            before the order is gone through.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
        walk: Callable[[Order], Iterator[torch.Tensor]],
    ) -> None:
        self.num_samples, self.batch_size, self.window = num_samples, batch_size, 0
        self._seed, self._epoch, self._walk = seed, epoch, walk
        self.is_sampler = False

    def __len__(self) -> int:
        return orders.num_batches(self.num_samples, self.batch_size)

    def after(self, start: int) -> Iterator[torch.Tensor]:
        """Yield the batches after the first `start`; nothing is counted."""
        counts = self.num_samples, self.batch_size
        return orders.batches(*counts, self._seed, self._epoch(), start, self.window)

    def __iter__(self) -> Iterator[Any]:
        if self.is_sampler:
            return (indices.tolist() for indices in self.after(0))
        return self._walk(self)


class Passes:
    """The passes of a run over its loaders.

    Args:
        stop_if_asked: Saves and stops, if a signal has asked for it.
        step_done: Counts a step of the epoch, of so many; None: that is not known.
        world: The ranks, each of which has a share of every batch.

    Attributes:
        state: Where training is; set once it is restored.
        batch_weight: See `Run.batch_weight`.
    """

    def __init__(
        self,
        stop_if_asked: Callable[[], object],
        step_done: Callable[[int | None], object],
        world: World = ALONE,
    ) -> None:
        self._stop_if_asked, self._step_done, self._world = stop_if_asked, step_done, world
        self.batch_weight = 1.0
        self.state = TrainState({})
        self._is_under_way = False  # a unit of the run
        self._num_begun = self._num_repeated = 0  # passes of the unit, and endless ones of the run
        self._has_ended = False  # one of the unit's
        self._is_inside = False  # a batch, of which nobody can tell how much is done
        self._has_told_doubts = self._has_told_rest = self._has_told_gradients = False
        self._has_told_undivided = False

    def begin_unit(self, state: TrainState) -> None:
        """Begin an epoch, or a step."""
        self._is_under_way, self._has_ended, self._num_begun = True, False, 0
        self._is_inside = False
        if state.unit == STEP:
            state.updates.begin()

    @property
    def is_whole(self) -> bool:
        """Whether what is counted as done is all that is done, so that it may be saved.

        It is not inside a batch, also one by which the pass was left, nor inside a step of a loop
        without epochs.
        """
        is_inside_step = self.state.unit == STEP and self._is_under_way
        return not (self._is_inside or is_inside_step) and self.state.updates.is_whole()

    def end_unit(self, state: TrainState) -> None:
        """End it; what a pass has left is not trained on, and that is told once."""
        self._is_under_way = False
        first = state.feeds.get(_FIRST)
        if self._is_inside and first is not None and first.taken == first.length:
            self._is_inside = False  # its last batch: the loop went by the length, not to the end
            self._step_done(first.length)
        if not (state.unit == STEP or state.updates.is_whole() or self._has_told_gradients):
            self._has_told_gradients = True
            log.warning(
                _("Epoch %d ended with gradients that no optimizer has used: they are not saved, "
                  "and a resume there differs. Make a step with the last batch of an epoch"),
                state.epoch + 1,
            )  # fmt: skip
        for name, feed in state.feeds.items():
            if not (feed.taken and name.startswith(_INSIDE)):
                continue
            if not (feed.is_exhausted or feed.taken == feed.length or self._has_told_rest):
                self._has_told_rest = True
                log.warning(
                    _("Epoch %d ended after %d of %s batches of its loader; it counts as done"),
                    state.epoch + 1, feed.taken, feed.length,
                )  # fmt: skip
            feed.end_pass()

    def order(self, num_samples: int, batch_size: int, seed: int, is_whole: bool) -> Order:
        """Return an order of samples; see `Run.order`."""
        walk = functools.partial(self._walk, is_whole=is_whole)
        # Counted from 1, as it always was.
        return Order(num_samples, batch_size, seed, lambda: self.state.epoch + 1, walk)

    def _walk(self, order: Order, is_whole: bool) -> Iterator[torch.Tensor]:
        state, num = self.state, len(order)
        state.know_counts(order.num_samples, num)
        self._stop_if_asked()
        for indices in order.after(state.epoch_step):
            state.updates.begin()
            self._is_inside = True
            if not (is_whole or self._world.is_alone):
                indices, self.batch_weight = share_of(indices, self._world)
            yield indices
            self._is_inside = False
            self._step_done(num)
            # What ends an epoch is saved at its end, also where a signal asks to stop.
            if state.epoch_step < num and state.updates.is_whole():
                self._stop_if_asked()

    def repeated(self, loader: Any) -> Iterator[Any]:
        """Return the loader's batches, for ever."""
        name = f"repeated {self._num_repeated}"
        self._num_repeated += 1
        self._tell_doubts(loader)
        return self._repeat(self.state.feed(name, loader, self._world))

    def _repeat(self, feed: Feed) -> Iterator[Any]:
        while True:
            yield from self._each(feed, feed.num_passes)
            feed.end_pass()
            if feed.length == 0:
                raise UsageError(_("the loader to be repeated has no batches"))

    def once(self, loader: Any) -> Batches:
        """Return the loader's batches that are left in the epoch."""
        return Batches(loader, functools.partial(self._pass, loader))

    def _pass(self, loader: Any) -> Iterator[Any]:
        state = self.state
        if not self._is_under_way:
            raise UsageError(
                _("run.batches is iterated outside an epoch: it belongs into the loop over "
                  "run.epochs, and evaluation takes its loader as it is")
            )  # fmt: skip
        if state.unit == STEP:  # nothing is saved inside it
            yield from self._each(Feed(loader, self._world), state.epoch)
            return
        if self._has_ended:
            raise UsageError(
                _("run.batches is iterated a second time in the epoch, which is one pass over it: "
                  "evaluation takes its loader as it is; two loaders side by side are zipped")
            )  # fmt: skip
        is_first, name = not self._num_begun, f"{_INSIDE} {self._num_begun}"
        self._num_begun += 1
        self._tell_doubts(loader)
        batch_sampler = getattr(loader, "batch_sampler", None)
        if isinstance(batch_sampler, Order):
            batch_sampler.is_sampler = True
        feed = state.feed(name, loader, self._world)
        num_batches = feed.length
        self._stop_if_asked()
        for batch in self._each(feed, state.epoch):
            if is_first:
                state.updates.begin()
            self._is_inside = True
            yield batch
            self._is_inside = False
            if is_first:
                self._step_done(num_batches)
                if state.updates.is_whole():
                    self._stop_if_asked()
        self._has_ended = True

    def _each(self, feed: Feed, epoch: int) -> Iterator[Any]:
        """Yield the batches of a pass, as many on each rank."""
        batches = feed.iterate(epoch)
        if self._world.is_alone:
            yield from batches
            return
        is_divided = feed.is_divided
        while True:
            batch = next(batches, _END)
            is_over = batch is _END
            if not is_divided:  # one rank may have fewer
                is_over = bool(self._world.agree([is_over])[0])
            if is_over:
                return
            self.batch_weight = feed.batch_weight
            yield batch

    def _tell_doubts(self, loader: Any) -> None:
        if not (self._world.is_alone or self._has_told_undivided):
            tell_undivided(loader)
            self._has_told_undivided = True
        self._has_told_doubts = self._has_told_doubts or tell_doubts(loader)
