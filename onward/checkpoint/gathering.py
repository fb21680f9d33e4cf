"""Taking what several machines have brought to the store into one checkpoint.

Rank 0 brings `checkpoint.pth`, what the ranks on its disk hold, and then `draft.json`: a manifest
that lacks the files of the other ranks. Each of those brings its own, and its index last. Once all
indexes are there, and are of this attempt and step, they tell the files that are missing in the
draft: with them it is the manifest. Nothing else is needed for that, so that whoever has the run
can finish the checkpoint, also where the machines that wrote it are gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from onward.checkpoint.artifacts import Artifacts
from onward.checkpoint.downloads import fetch_files
from onward.checkpoint.format import load_content
from onward.checkpoint.index import MAX_INDEX_BYTES, Origin, index_file, parse_index
from onward.checkpoint.manifest import (
    DRAFT_FILE,
    MANIFEST_FILE,
    ROOT,
    Manifest,
    is_own_file,
    parse_manifest,
)
from onward.checkpoint.others import LOOK_SECONDS, Others
from onward.checkpoint.shards import Shards, with_ranks
from onward.checkpoint.spool import UPLOADED_FILE
from onward.checkpoint.transfers import line, retried
from onward.errors import CheckpointDamaged, CheckpointError, RankFilesMissing
from onward.system.files import atomic_folder, atomic_write, read_plain
from onward.terminal.progress import Moved
from onward.words.language import _


class Gathering:
    """Checkpoints of one run that several machines bring.

    Args:
        artifacts: The run's files.
        read: Returns what a small file of them holds.

    Attributes:
        artifacts: The run's files.
        others: The ranks that are asked to bring their files, and waited for; None: what is in the
            store is all there is.
    """

    def __init__(self, artifacts: Artifacts, read: Callable[[str], bytes]) -> None:
        self.artifacts, self._read = artifacts, read
        self.others: Others | None = None

    def answering(
        self, manifest: Manifest, check_lease: Callable[[], object]
    ) -> contextlib.AbstractContextManager[None]:
        """Let those ranks upload as long as the attempt has the run, while the block runs."""
        if self.others is None or not manifest.missing_ranks:
            return contextlib.nullcontext()
        return self.others.answering(check_lease)

    def begin(self, manifest: Manifest) -> None:
        """Let those ranks begin."""
        if self.others is not None and manifest.missing_ranks:
            self.others.ask(manifest.name)

    def clear(self, manifest: Manifest) -> bool:
        """Make a name free but for what other ranks have brought already; tell whether they have.

        They have where nobody waits for them: their machines may have been there before this one.
        """
        ranks = manifest.missing_ranks if self.others is None else []
        spared = tuple(f"shard-{rank:05d}" for rank in ranks)
        remote = f"{ROOT}/{manifest.name}"
        if not ranks or all(self._index_of(manifest, rank) is None for rank in ranks):
            return False
        # IMPORTANT: the manifest goes first; what is left without one is no checkpoint.
        self.artifacts.delete(f"{remote}/{MANIFEST_FILE}")
        self.artifacts.delete(remote, lambda path: is_own_file(path) and path[:11] not in spared)
        return True

    def complete(
        self,
        folder: Path,
        manifest: Manifest,
        check_lease: Callable[[], object],
        moved: Callable[[], object],
    ) -> Manifest:
        """Return the manifest with what all other ranks have brought.

        Args:
            folder: What of the checkpoint is on this disk.
            manifest: What lists that; all of it is in the store.
            check_lease: Raises where the attempt does not have the run any more.
            moved: Called now and then while the others are waited for.

        Raises:
            RankFilesMissing: Not all of it is there. What there is can be completed later.
        """
        missing = set(manifest.missing_ranks)
        if not missing:
            return manifest
        name, remote = manifest.name, f"{ROOT}/{manifest.name}"
        draft = folder / DRAFT_FILE
        atomic_write(draft, lambda file: file.write(manifest.to_json()))
        check_lease()
        # IMPORTANT: after the files that it lists. With it others can do what follows.
        retried(lambda: self.artifacts.upload(draft, remote, give_away=True))
        texts = {rank: self._awaited(manifest, rank, moved) for rank in sorted(missing)}
        for rank, text in texts.items():
            (folder / index_file(rank)).write_bytes(text)
        try:
            whole = self._whole(folder, manifest)
            parts = load_content(folder, manifest, name, is_whole=False).parts
            Shards(folder, whole, name, is_verified=True).require(parts)
            if self.others is None:  # nobody who wrote it has told what it is to be
                self._compare(whole, manifest)
        except CheckpointDamaged as error:
            raise RankFilesMissing(min(missing), name, str(error)) from error
        sizes = self.artifacts.sizes(remote)
        for entry in whole.shard_files:
            if sizes.get(entry.path, -1) not in (None, entry.bytes):
                told = _("{path} is missing").format(path=entry.path)
                raise RankFilesMissing(int(entry.path[6:11]), name, told)
        return whole

    def _compare(self, whole: Manifest, own: Manifest) -> None:
        """Compare what the others have brought with what their indexes say of it."""
        files = tuple(entry for entry in whole.shard_files if entry not in own.files)
        with tempfile.TemporaryDirectory(prefix="train-") as folder:
            brought = dataclasses.replace(whole, files=files)
            fetch_files(self.artifacts, brought, Path(folder), whole.name, Moved())

    def _awaited(self, manifest: Manifest, rank: int, moved: Callable[[], object]) -> bytes:
        others, sha256 = self.others, None
        while others is not None and not others.is_lost and sha256 is None:
            others.require_lease()
            moved()
            sha256 = others.brought(rank, manifest.name)
            if sha256 is None:
                time.sleep(LOOK_SECONDS)
        return self._required_index(manifest, rank, sha256)

    def _required_index(self, manifest: Manifest, rank: int, sha256: str | None = None) -> bytes:
        """Return a rank's index in the store, which is what the rank has told, if it has."""
        text = self._index_of(manifest, rank)
        if text is None or (sha256 and hashlib.sha256(text).hexdigest() != sha256):
            told = _("nothing of it is at {uri}").format(uri=self.artifacts.uri)
            raise RankFilesMissing(rank, manifest.name, told)
        return text

    def _index_of(self, manifest: Manifest, rank: int) -> bytes | None:
        """Return a rank's index in the store; None: there is none of this attempt and step."""
        try:
            text = self._read(f"{ROOT}/{manifest.name}/{index_file(rank)}")
            origin = parse_index(text, rank, manifest.name).origin
        except (FileNotFoundError, CheckpointError):
            return None
        expected = Origin(rank, manifest.world, manifest.attempt, manifest.step)
        return text if origin == expected else None

    def _whole(self, folder: Path, manifest: Manifest) -> Manifest:
        ranks = range(manifest.world)
        return with_ranks(
            manifest, [read_plain(folder / index_file(rank), MAX_INDEX_BYTES) for rank in ranks]
        )

    def drafts(self, names: Iterable[str]) -> list[Manifest]:
        """Return the drafts of those checkpoints, which have no manifest, oldest first."""
        found = []
        for name in names:
            with contextlib.suppress(FileNotFoundError, CheckpointError):
                draft = parse_manifest(self._read(f"{ROOT}/{name}/{DRAFT_FILE}"), name)
                if draft.missing_ranks:
                    found.append(draft)
        return sorted(found, key=lambda draft: draft.order)

    def adopt(self, draft: Manifest, folder: Path) -> Manifest:
        """Make of a draft, and what ranks have brought, a checkpoint that lacks its commit alone.

        Args:
            draft: What is in the store.
            folder: Of a spool: all of it is there afterwards, verified, and noted as uploaded.

        Returns:
            Its manifest.

        Raises:
            RankFilesMissing: A rank has not brought its files.
            CheckpointDamaged: A file is not what its index says.
        """
        name = draft.name
        with atomic_folder(folder) as temporary:
            ranks = range(draft.world)
            whole = with_ranks(draft, [self._required_index(draft, rank) for rank in ranks])
            fetch_files(self.artifacts, whole, temporary, name, Moved())
            content = load_content(temporary, whole, name, is_whole=False)
            Shards(temporary, whole, name, is_verified=True).check(content.parts)
            (temporary / UPLOADED_FILE).write_text("".join(f"{line(e)}\n" for e in whole.files))
            (temporary / MANIFEST_FILE).write_bytes(whole.to_json())
        return whole
