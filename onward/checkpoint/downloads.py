"""The files of a checkpoint on their way down: bounded, and verified as they come."""

from __future__ import annotations

import shutil
from pathlib import Path

from onward.checkpoint.artifacts import Artifacts
from onward.checkpoint.hashed import verify_file
from onward.checkpoint.manifest import ROOT, FileEntry, Manifest
from onward.checkpoint.transfers import NUM_TRANSFERS, retried
from onward.errors import CheckpointDamaged, CheckpointError, TooLarge, UnsafeFile
from onward.system.files import size_in_words
from onward.system.threads import each
from onward.terminal.progress import Moved
from onward.words.language import _


def fetch_files(
    artifacts: Artifacts, manifest: Manifest, folder: Path, title: str, moved: Moved
) -> None:
    """Download the files of a checkpoint into `folder`, and verify them.

    Several at a time, each verified by itself and fetched again where it differs, since a download
    can be cut short without an error.

    Args:
        artifacts: The run's files.
        manifest: What is to be there.
        folder: A local folder.
        title: What the checkpoint is called in messages.
        moved: Counts what was verified.

    Raises:
        CheckpointDamaged: One is missing, or is not what the manifest says.
        CheckpointError: The disk has no room for them.
    """
    _require_room(folder, manifest, title)

    def receive(entry: FileEntry) -> None:
        remote = f"{ROOT}/{manifest.name}/{entry.path}"
        path = folder / entry.path
        for is_last in (False, True):
            try:
                with moved.growing(path):
                    found = retried(lambda: artifacts.download(remote, path, entry.bytes))
                verify_file(folder, entry, title, found)
                moved.add(entry.bytes)
                return
            except TooLarge as error:
                told = _("{path} has more than {expected:,} bytes, which its manifest says")
                longer = told.format(path=entry.path, expected=entry.bytes)
                raise CheckpointDamaged(title, longer) from error
            except CheckpointDamaged:
                if is_last or artifacts.folder:
                    raise

    try:
        list(each(receive, manifest.files, NUM_TRANSFERS))
    except FileNotFoundError as error:
        raise CheckpointDamaged(title, _("{path} is missing").format(path=error)) from error
    except UnsafeFile as error:
        raise CheckpointDamaged(title, str(error)) from error


def _require_room(folder: Path, manifest: Manifest, title: str) -> None:
    """Refuse to fetch what the disk cannot hold, whether it is there or only promised."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if manifest.bytes > free:
        raise CheckpointError(
            _(
                "checkpoint {name} has {needed} by its manifest, and the disk of '{folder}' has "
                "{free} free: make room there, or set TMPDIR to a folder on a larger disk"
            ).format(
                name=title, folder=folder,
                needed=size_in_words(manifest.bytes), free=size_in_words(free),
            )
        )  # fmt: skip
