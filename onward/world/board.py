"""Notes that ranks leave one another, from any thread, on a store of torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from onward.errors import RankLost
from onward.system.threads import bounded
from onward.words.language import _

T = TypeVar("T")


class Board:
    """Short notes by name, which end with the life of the ranks: what is to last is elsewhere.

    Each method raises `RankLost` where the store is gone, and rank 0 with it, or where it does not
    answer: a link that was cut is told by nobody, and the store's own client waits for ever.

    Args:
        store: That of the ranks.
        seconds: How long it may take to answer.
    """

    def __init__(self, store: Any, seconds: float) -> None:
        self._store, self._seconds = store, seconds

    def within(self, seconds: float) -> Board:
        """Return the same board, for someone who waits so long at most."""
        return Board(self._store, seconds)

    def post(self, name: str, note: str = "") -> None:
        """Leave a note, in place of the one of that name."""
        self._answered(lambda: self._store.set(name, note))

    def has(self, *names: str) -> bool:
        """Tell whether there are notes of all those names."""
        return bool(self._answered(lambda: self._store.check(list(names))))

    def read(self, name: str) -> str | None:
        """Return a note; None: there is none yet."""

        def find() -> str | None:
            # What is there is returned at once; for the rest `get` would wait.
            return self._store.get(name).decode() if self._store.check([name]) else None

        return self._answered(find)

    def count(self, name: str, number: int = 0) -> int:
        """Add to a number that all ranks count by; return it."""
        return int(self._answered(lambda: self._store.add(name, number)))

    def _answered(self, act: Callable[[], T]) -> T:
        found: list[T] = []
        try:
            bounded(lambda: found.append(act()), self._seconds)
        except RuntimeError as error:
            raise RankLost([0], _("its store is gone")) from error
        if not found:
            raise RankLost([0], _("its store does not answer"))
        return found[0]
