"""The spool: what of a run is on this disk and not yet in the store.

    lock                                held by a process that works on the run, while it lives
    artifacts/checkpoints/…             the run's checkpoints, with upload=off
    attempt_3/attempt_3.log             the attempt's log
    attempt_3/journal.json              which attempt this is, and how it ended
    attempt_3/epoch_12/                 a whole checkpoint that waits for its upload, or
    attempt_3/global_step_4321/         one inside an epoch
    attempt_3/epoch_12/uploaded.txt     hash and path of each of its files that is there already
    attempt_3/epoch_12.cut/             the same in smaller parts, while they go up
    attempt_3/rank_1/epoch_12/          what another rank has of it, on whatever disk that writes to

All of it is fsynced before it counts, and any of it can be published again: the journal, the
checkpoints, and in each checkpoint the metrics with their recorded times, see `History.state_dict`.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onward.checkpoint.manifest import MANIFEST_FILE, NAME, Manifest, parse_manifest
from onward.errors import CheckpointError
from onward.system.files import FolderLock, atomic_write, make_folder, read_json, read_plain

JOURNAL_FILE = "journal.json"
UPLOADED_FILE = "uploaded.txt"
MAX_DOCUMENT_BYTES = 16 << 20  # of a manifest or a journal
CUT = ".cut"  # behind the name of a checkpoint that is cut into smaller parts for its upload
_ATTEMPT = re.compile(r"attempt_([1-9][0-9]{0,8})")


class RunFolder:
    """This disk's folder for one run.

    Args:
        path: Where it is; made when something is put into it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FolderLock | None = None

    def acquire(self) -> bool:
        """Take the run for this process; False if another process on this machine has it."""
        if self._lock is None:
            lock = FolderLock(self.path)
            if lock.acquire():
                self._lock = lock
            else:
                lock.release()
        return self._lock is not None

    def release(self) -> None:
        """Give the run back."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def artifacts(self) -> Path:
        """Return where checkpoints stay that are not uploaded."""
        return self.path / "artifacts"

    def spool(self, attempt: int) -> Spool:
        """Return the attempt's part of it."""
        return Spool(self.path / f"attempt_{attempt}", attempt)

    def waiting(self) -> list[Spool]:
        """Return the spools of attempts whose publication is not complete, oldest first."""
        return [spool for spool in self.all_spools() if (spool.folder / JOURNAL_FILE).exists()]

    def clear_before(self, attempt: int) -> None:
        """Remove what ranks of earlier attempts have left, where no checkpoint can come of it."""
        for spool in self.all_spools():
            if spool.attempt < attempt and not spool.read_journal() and not spool.list():
                spool.discard()

    def all_spools(self) -> list[Spool]:
        """Return the spools of all attempts of which there is anything, oldest first."""
        names = [path.name for path in self.path.glob("attempt_*")]
        numbers = [int(found[1]) for found in map(_ATTEMPT.fullmatch, names) if found]
        return [self.spool(number) for number in sorted(numbers)]


class Spool:
    """What one attempt has on this disk.

    Args:
        folder: Where it lies; made when something is put into it.
        attempt: The number of the attempt.
    """

    def __init__(self, folder: Path, attempt: int) -> None:
        self.folder, self.attempt = folder, attempt
        self.removed: Callable[[str], object] = lambda name: None  # is told what is not needed

    @property
    def log_file(self) -> Path:
        """Where the attempt's log is written."""
        return self.folder / f"attempt_{self.attempt}.log"

    def log_files(self) -> list[Path]:
        """Return the logs that there are: the attempt's, and those of its other ranks."""
        return sorted(self.folder.glob(f"{self.log_file.stem}*.log"))

    def path(self, name: str) -> Path:
        """Return the folder of the checkpoint `name`, whether it is there or not."""
        return self.folder / name

    def list(self) -> list[Manifest]:
        """Return the manifests of the whole checkpoints that wait, oldest first."""
        found = []
        for path in self.folder.glob("*"):
            if NAME.fullmatch(path.name):
                try:
                    text = read_plain(path / MANIFEST_FILE, MAX_DOCUMENT_BYTES)
                    found.append(parse_manifest(text, path.name))
                except (OSError, ValueError, CheckpointError):
                    continue  # a broken folder is nothing
        return sorted(found, key=lambda m: m.order)

    def remove(self, name: str) -> None:
        """Remove a checkpoint, which is in the store or not needed any more."""
        # IMPORTANT: the manifest goes first; what is left without one is no checkpoint.
        with contextlib.suppress(OSError):  # as `rmtree` does
            (self.path(name) / MANIFEST_FILE).unlink()
        for path in (self.path(name), self.path(f"{name}{CUT}")):
            shutil.rmtree(path, ignore_errors=True)
        self.removed(name)

    def free_bytes(self) -> int:
        """Return how much room the disk has."""
        make_folder(self.folder)
        return shutil.disk_usage(self.folder).free

    def write_journal(self, entry: Mapping[str, Any]) -> None:
        """Record, durably, which attempt this is and how it stands."""
        text = json.dumps(entry, indent=1).encode()
        atomic_write(self.folder / JOURNAL_FILE, lambda file: file.write(text))

    def read_journal(self) -> dict[str, Any]:
        """Return what was recorded; {} if nothing was."""
        try:
            entry = read_json(self.folder / JOURNAL_FILE, MAX_DOCUMENT_BYTES)
        except (OSError, ValueError):
            return {}
        return entry if isinstance(entry, dict) else {}

    def discard(self) -> None:
        """Remove all of it: it is published."""
        # IMPORTANT: the journal goes last; by it `RunFolder.waiting` finds what is left.
        for path in self.folder.glob("*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != JOURNAL_FILE:
                with contextlib.suppress(OSError):  # as `rmtree` does
                    path.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)
