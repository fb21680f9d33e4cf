"""The files of a checkpoint on their way down: bounded, and verified as they come."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path

from onward.checkpoint.artifacts import Artifacts
from onward.checkpoint.hashed import require_sha256, verify_file
from onward.checkpoint.manifest import CHECKPOINT_FILE, ROOT, FileEntry, Manifest
from onward.checkpoint.transfers import NUM_TRANSFERS, retried
from onward.errors import CheckpointDamaged, CheckpointError, TooLarge, UnsafeFile
from onward.system.files import PRIVATE, create, size_in_words
from onward.system.threads import each
from onward.terminal.progress import Moved
from onward.words.language import _


def fetch_files(
    artifacts: Artifacts,
    manifest: Manifest,
    folder: Path,
    title: str,
    moved: Moved,
    joins: bool = False,
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
        joins: Whether the parts of `checkpoint.pth` become one file, which can be mapped.

    Raises:
        CheckpointDamaged: One is missing, or is not what the manifest says.
        CheckpointError: The disk has no room for them.
    """
    _require_room(folder, manifest, title)
    offsets = _join(folder, manifest) if joins else {}

    def receive(entry: FileEntry) -> None:
        remote = f"{ROOT}/{manifest.name}/{entry.path}"
        offset = offsets.get(entry)
        path = folder / (entry.path if offset is None else CHECKPOINT_FILE)
        for is_last in (False, True):
            try:
                # A file that all parts go into tells of none alone.
                with moved.growing(path) if offset is None else contextlib.nullcontext():
                    found = retried(lambda: artifacts.download(remote, path, entry.bytes, offset))
                if offset is None:
                    verify_file(folder, entry, title, found)
                    moved.add(entry.bytes)
                else:
                    require_sha256(entry, title, found)
                return
            except TooLarge as error:
                told = _("{path} has more than {expected:,} bytes, which its manifest says")
                longer = told.format(path=entry.path, expected=entry.bytes)
                raise CheckpointDamaged(title, longer) from error
            except CheckpointDamaged:
                if is_last or artifacts.folder:
                    raise

    try:
        with moved.growing(folder / CHECKPOINT_FILE) if offsets else contextlib.nullcontext():
            list(each(receive, manifest.files, NUM_TRANSFERS))
        moved.add(sum(entry.bytes for entry in offsets))
    except FileNotFoundError as error:
        raise CheckpointDamaged(title, _("{path} is missing").format(path=error)) from error
    except UnsafeFile as error:
        raise CheckpointDamaged(title, str(error)) from error


def _join(folder: Path, manifest: Manifest) -> Mapping[FileEntry, int]:
    """Make the file that the parts become, if there are any; return where each begins in it."""
    parts = sorted(
        (entry for entry in manifest.files if entry.path.startswith(f"{CHECKPOINT_FILE}/")),
        key=lambda entry: entry.path,
    )
    starts = [0, *itertools.accumulate(entry.bytes for entry in parts)]
    if parts:
        with create(folder / CHECKPOINT_FILE, PRIVATE) as file:
            file.truncate(starts[-1])
    return dict(zip(parts, starts, strict=False))


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
