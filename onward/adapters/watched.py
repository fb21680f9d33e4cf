"""A loader as a trainer of others iterates it: it tells when the next batch is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from onward.run.feeds import Feed

_END = object()
_OWN = {"_loader", "_feed", "_before_batch", "_epoch", "_is_rest"}


class Watched:
    """A loader that goes on inside an epoch; to others it looks like the loader itself.

    The next batch is asked for when all that belongs to the one before is over, hooks and
    schedules included: no other moment between two batches is as complete.

    Args:
        loader: The loader.
        feed: Where it is.
        before_batch: Called before each batch is fetched.
        epoch: Returns how many epochs are complete.
    """

    def __init__(
        self,
        loader: Any,
        feed: Feed,
        before_batch: Callable[[], object],
        epoch: Callable[[], int],
    ) -> None:
        self._loader, self._feed = loader, feed
        self._before_batch, self._epoch = before_batch, epoch
        self._is_rest = feed.taken > 0  # of a pass that another process has begun

    def __iter__(self) -> Iterator[Any]:
        # Nothing is drawn until the first batch is asked for: hooks may draw before that.
        batches: Iterator[Any] | None = None
        while True:
            self._before_batch()
            if batches is None:
                if not self._is_rest:
                    end_pass(self._feed)
                self._is_rest = False
                batches = self._feed.iterate(self._epoch())
            batch = next(batches, _END)
            if batch is _END:
                end_pass(self._feed)
                return
            yield batch

    def __len__(self) -> int:
        return len(self._loader)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: where the loader is, the run itself knows."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing back."""

    def __getattr__(self, name: str) -> Any:
        """Return what the loader has, such as its `dataset`."""
        if name in _OWN:
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Change the loader, such as its `worker_init_fn`."""
        if name in _OWN:
            super().__setattr__(name, value)
        else:
            setattr(self._loader, name, value)


def end_pass(feed: Feed) -> None:
    """Take a pass as complete, also one that was left before its end."""
    if feed.taken:
        feed.end_pass()
