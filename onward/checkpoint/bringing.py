"""Bringing to the store what one rank has written on its own disk.

attempt_3/rank_1/epoch_12/      what rank 1 has of a checkpoint, in the run's folder
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from onward.checkpoint.index import MAX_INDEX_BYTES, index_file, parse_index
from onward.checkpoint.manifest import NAME, ROOT, FileEntry, Manifest
from onward.checkpoint.spool import CUT, UPLOADED_FILE, RunFolder
from onward.checkpoint.transfers import noted
from onward.checkpoint.uploads import Uploads
from onward.errors import CheckpointError
from onward.system.files import read_plain

_RANK = re.compile(r"rank_(0|[1-9][0-9]{0,4})")


def rank_folder(attempt_folder: Path, rank: int) -> Path:
    """Return where a rank writes what it holds, below what its attempt has on its disk."""
    return attempt_folder / f"rank_{rank}"


def parts_in(folder: RunFolder) -> list[tuple[int, Path]]:
    """Return what ranks have written to this disk, and nobody has removed: attempt and folder."""
    return [
        (spool.attempt, part)
        for spool in folder.all_spools()
        for part in sorted(spool.folder.glob("rank_*/*"))
        if _RANK.fullmatch(part.parent.name)
        and NAME.fullmatch(part.name)
        and (part / index_file(_rank_of(part))).is_file()
    ]


def _rank_of(part: Path) -> int:
    return int(part.parent.name.removeprefix("rank_"))


def step_of(part: Path) -> int:
    """Return the optimizer steps of which a part is; -1 where it cannot be read."""
    try:
        return _manifest_of(part).step
    except (OSError, ValueError, CheckpointError):
        return -1


def remove_part(part: Path) -> None:
    """Remove what a rank has of a checkpoint, and the folders that are empty then."""
    for path in (part, part.with_name(f"{part.name}{CUT}")):
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        part.parent.rmdir()
        part.parent.parent.rmdir()


def bring_part(uploads: Uploads, part: Path, check_lease: Callable[[], object]) -> str:
    """Bring what a rank has of a checkpoint to the store, its index last.

    What is there already is not sent again.

    Args:
        uploads: Those of the run.
        part: The folder, as `parts_in` has it.
        check_lease: Called before each file; raises to stop.

    Returns:
        The SHA-256 of the index.

    Raises:
        StoreUnavailable: The store does not answer.
        CheckpointDamaged: The folder does not hold what its index says.
        OSError: It cannot be read.
    """
    manifest = _manifest_of(part)
    there = uploads.artifacts.sizes(f"{ROOT}/{manifest.name}")
    for folder in (part, part.with_name(f"{part.name}{CUT}")):
        sent = {text.partition(" ")[2] for text in noted(folder)}
        if not sent <= there.keys():  # the name was cleared since
            (folder / UPLOADED_FILE).unlink()
    _here, cut = uploads.bring(part, manifest, check_lease, lambda: False)
    return cut.indexes[0].sha256


def _manifest_of(part: Path) -> Manifest:
    """Return a manifest that lists what a rank has written, and no more."""
    rank = _rank_of(part)
    text = read_plain(part / index_file(rank), MAX_INDEX_BYTES)
    index = parse_index(text, rank, str(part))
    own = FileEntry(index_file(rank), len(text), hashlib.sha256(text).hexdigest())
    kind, _bar, number = part.name.rpartition("_")
    is_epoch = kind == "epoch"
    return Manifest(
        epoch=int(number) if is_epoch else 0, epoch_step=int(not is_epoch),
        step=index.origin.step, attempt=index.origin.attempt, world=index.origin.world,
        created=datetime.now(UTC).isoformat(timespec="seconds"), kept=False, metrics={},
        files=(*index.files, own),
    )  # fmt: skip
