"""The files of a run, as far as checkpoints use them: a store of bytes under names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from onward.system.streams import Target


class Artifacts(Protocol):
    """What a store has to do, and no more: any that does can hold checkpoints.

    Each method raises `StoreUnavailable` where the store does not answer, or refuses.
    """

    uri: str

    @property
    def folder(self) -> Path | None:
        """Where the files lie, if that is a folder of this machine."""
        ...

    def list(self, path: str = "") -> list[str]:
        """Return the names of what is directly in a folder; [] where there is none."""
        ...

    def upload(self, local_file: Path, folder: str, give_away: bool = False) -> None:
        """Store a file under its own name, whole or not at all.

        Args:
            local_file: The file.
            folder: Where to put it.
            give_away: It is not changed any more.
        """
        ...

    def size(self, path: str) -> int | None:
        """Return the size of a file in bytes; None where it is not told."""
        ...

    def sizes(self, path: str) -> Mapping[str, int | None]:
        """Return name and size of the files directly in a folder; None where it is not told."""
        ...

    def download(self, path: str, target: Target, max_bytes: int) -> str:
        """Fetch a file, to one of our own or a piece of one; return its SHA-256.

        Raises:
            FileNotFoundError: There is none.
            TooLarge: It is longer than `max_bytes`.
        """
        ...

    def delete(self, path: str, is_own: Callable[[str], bool] | None = None) -> Sequence[str]:
        """Remove a file, or what is in a folder; return what stays, as not `is_own`."""
        ...
