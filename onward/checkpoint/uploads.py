"""The files of a checkpoint on their way up: in parts that the way takes, each of them once."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from onward.checkpoint.artifacts import Artifacts
from onward.checkpoint.format import cut_again
from onward.checkpoint.manifest import ROOT, FileEntry, Manifest
from onward.checkpoint.parts import PartSize, Smaller, send_once
from onward.checkpoint.spool import CUT, UPLOADED_FILE
from onward.checkpoint.transfers import NUM_TRANSFERS, line, noted, retried
from onward.system.files import open_own
from onward.system.threads import each


class Uploads:
    """The uploads of one run's checkpoints.

    Args:
        artifacts: The run's files.
    """

    def __init__(self, artifacts: Artifacts) -> None:
        self.artifacts = artifacts
        self.part_size = PartSize()
        self.moved = 0.0  # when a file has arrived, on the monotonic clock
        self._clean: set[str] = set()  # those that held nothing when their upload began
        self._cut: dict[str, Manifest] = {}  # those that were cut into smaller parts

    def move(self) -> None:
        """Note that something goes on: a file has arrived, or others send theirs."""
        self.moved = time.monotonic()

    def bring(
        self,
        folder: Path,
        manifest: Manifest,
        check_lease: Callable[[], object],
        clear: Callable[[], bool],
        begin: Callable[[], object] = lambda: None,
    ) -> tuple[Path, Manifest]:
        """Bring all files of a checkpoint but its manifest to the store.

        Files go up several at a time, each retried by itself. What of `folder` is uploaded is
        noted in it, so that an interrupted upload goes on with what is missing. Where the way takes
        no file of that size, or takes minutes for one, it is cut into smaller parts first.

        Args:
            folder: What `write_checkpoint` wrote.
            manifest: What it returned.
            check_lease: Called before each file; raises to stop.
            clear: Makes the name free before the first file; tells whether nothing is left there.
            begin: Called once it is free.

        Returns:
            The folder of the files that went up, and the manifest that lists them.
        """
        cut_folder = folder.with_name(f"{folder.name}{CUT}")
        while True:
            here, cut = folder, manifest
            if manifest.name in self._cut and cut_folder.exists():
                here, cut = cut_folder, self._cut[manifest.name]
            if max(entry.bytes for entry in cut.files) > self.part_size.bytes:
                cut = cut_again(folder, manifest, cut_folder, self.part_size.bytes)
                here, self._cut[manifest.name] = cut_folder, cut
                # What went up whole is cleared away for the parts: it must not count as there.
                (folder / UPLOADED_FILE).unlink(missing_ok=True)
            try:
                self._send_all(here, cut, check_lease, clear, begin)
            except Smaller:
                continue
            return here, cut

    def forget(self, folder: Path, name: str) -> None:
        """Remove what was made for the upload of `folder`, which is committed."""
        self._cut.pop(name, None)
        shutil.rmtree(folder.with_name(f"{folder.name}{CUT}"), ignore_errors=True)

    def _send_all(
        self,
        folder: Path,
        manifest: Manifest,
        check_lease: Callable[[], object],
        clear: Callable[[], bool],
        begin: Callable[[], object],
    ) -> None:
        name, artifacts, part_size = manifest.name, self.artifacts, self.part_size
        remote = f"{ROOT}/{name}"
        check_lease()
        done = noted(folder)
        if not (done and artifacts.list(remote)):
            done = set()
            (self._clean.add if clear() else self._clean.discard)(name)
        is_clean = name in self._clean
        begin()

        def send(entry: FileEntry) -> None:
            check_lease()
            file, target = folder / entry.path, f"{remote}/{entry.path}"
            retried(lambda: send_once(artifacts, file, target, entry, part_size, is_clean))
            self.move()
            with os.fdopen(open_own(folder / UPLOADED_FILE), "a") as noted_in:
                noted_in.write(f"{line(entry)}\n")

        # IMPORTANT: a rank's index comes after its files; by it others know that they are there.
        indexes = manifest.indexes
        for entries in ([e for e in manifest.files if e not in indexes], indexes):
            list(each(send, [e for e in entries if line(e) not in done], NUM_TRANSFERS))
