"""The files of a checkpoint on their way down: bounded, and verified as they come."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from onward.checkpoint.artifacts import Artifacts
from onward.checkpoint.hashed import require_same, verify_file
from onward.checkpoint.manifest import CHECKPOINT_FILE, ROOT, FileEntry, Manifest
from onward.checkpoint.transfers import NUM_TRANSFERS, retried
from onward.errors import CheckpointDamaged, CheckpointError, TooLarge, UnsafeFile
from onward.system.files import PRIVATE, create, size_in_words
from onward.system.streams import Region
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

    def receive(entry: FileEntry) -> None:
        remote = f"{ROOT}/{manifest.name}/{entry.path}"
        target = places.get(entry, folder / entry.path)
        for is_last in (False, True):
            try:
                with moved.growing(target):
                    found = retried(lambda: artifacts.download(remote, target, entry.bytes))
                if isinstance(target, Path):
                    verify_file(folder, entry, title, found)
                else:
                    require_same(entry, title, target.num_bytes, found)
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
        with _joined(folder, manifest.files if joins else ()) as places:
            list(each(receive, manifest.files, NUM_TRANSFERS))
    except FileNotFoundError as error:
        raise CheckpointDamaged(title, _("{path} is missing").format(path=error)) from error
    except UnsafeFile as error:
        raise CheckpointDamaged(title, str(error)) from error


@contextlib.contextmanager
def _joined(folder: Path, entries: Iterable[FileEntry]) -> Iterator[Mapping[FileEntry, Region]]:
    """Make the file that the parts become, if there are any, and yield where each goes in it."""
    parts = [entry for entry in entries if entry.path.startswith(f"{CHECKPOINT_FILE}/")]
    parts.sort(key=lambda entry: entry.path)
    if not parts:
        yield {}
        return
    starts = itertools.accumulate((entry.bytes for entry in parts), initial=0)
    turn = threading.Lock()
    with create(folder / CHECKPOINT_FILE, PRIVATE) as file:
        yield {e: Region(file, start, turn) for e, start in zip(parts, starts, strict=False)}


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
