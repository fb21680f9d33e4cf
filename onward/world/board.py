"""Notes that ranks leave one another, from any thread, on a store of torch's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from onward.errors import RankLost
from onward.words.language import _


class Board:
    """Short notes by name, which end with the life of the ranks: what is to last is elsewhere.

    Each method raises `RankLost` where the store is gone, and rank 0 with it.

    Args:
        store: That of the ranks.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def post(self, name: str, note: str = "") -> None:
        """Leave a note, in place of the one of that name."""
        with self._there():
            self._store.set(name, note)

    def has(self, *names: str) -> bool:
        """Tell whether there are notes of all those names."""
        with self._there():
            return bool(self._store.check(list(names)))

    def read(self, name: str) -> str | None:
        """Return a note; None: there is none yet."""
        with self._there():
            # What is there is returned at once; for the rest `get` would wait.
            return self._store.get(name).decode() if self._store.check([name]) else None

    def count(self, name: str, number: int = 0) -> int:
        """Add to a number that all ranks count by; return it."""
        with self._there():
            return int(self._store.add(name, number))

    @contextlib.contextmanager
    def _there(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RankLost([0], _("its store is gone")) from error
