"""The checkpoints of one MLflow run: list, put, get, delete.

A checkpoint exists if and only if its `manifest.json` does and every file has the size and
hash that it lists. So the manifest is uploaded last and deleted first, and a folder without one
(a killed upload, a half-done deletion) is nothing.

`index.json` holds the manifests of all checkpoints, but for a few of the newest, so that a listing
costs few calls. What is gone on from, deleted or given away is chosen by it only where the run's
tag proves it (see `listed`); else by the manifests themselves.
"""

from __future__ import annotations

import functools
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from onward.checkpoint import chain, listed
from onward.checkpoint.artifacts import Artifacts
from onward.checkpoint.content import Content
from onward.checkpoint.downloads import fetch_files
from onward.checkpoint.foreign import Foreign
from onward.checkpoint.format import load_content
from onward.checkpoint.gathering import Gathering
from onward.checkpoint.listed import INDEX_FILE
from onward.checkpoint.manifest import (
    MANIFEST_FILE,
    NAME,
    ROOT,
    Manifest,
    is_own_file,
    parse_manifest,
)
from onward.checkpoint.shards import Shards
from onward.checkpoint.transfers import NUM_TRANSFERS, retried
from onward.checkpoint.uploads import Uploads
from onward.errors import CheckpointDamaged, StoreUnavailable, TooLarge, UnsafeFile
from onward.system.files import atomic_write
from onward.system.threads import each
from onward.terminal.progress import Moved, show_transfer
from onward.words.language import _

log = logging.getLogger(__name__)

MAX_MANIFEST_BYTES = 16 << 20  # a manifest of 20 TB in parts; nothing larger is read
VOID = b'{"deleted": true}'  # in place of a manifest that the store refuses to delete


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        artifacts: The run's files.
        run_id: The run.
        key: Signs what is committed; what it has not signed counts as damaged.
    """

    def __init__(self, artifacts: Artifacts, run_id: str, key: bytes | None = None) -> None:
        self._artifacts = artifacts
        self.run_id, self._key = run_id, key
        self._names: set[str] = set()  # folders in the store, committed or not
        self._unfinished: set[str] = set()  # those whose upload this object has begun, not ended
        self._foreign = Foreign(artifacts, run_id)
        self.uploads = Uploads(artifacts)
        self.gathering = Gathering(artifacts, self._read)
        self._told: set[str] = set()  # what the store refuses, and that was told

    @property
    def folder(self) -> Path | None:
        """Where the files lie, if that is a folder of this machine."""
        return self._artifacts.folder

    @property
    def uri(self) -> str:
        """The address of the run's files."""
        return self._artifacts.uri

    @property
    def where(self) -> str:
        """Where the files lie, for messages."""
        return str(self.folder or self.uri)

    def list(self, level: int = logging.WARNING, index: str | None = None) -> list[Manifest]:
        """Return the manifests of all committed checkpoints, oldest first.

        Costs three calls where the index is the one that is named, and one for each checkpoint that
        it lacks; else a call, and one for each. What cannot be read, or is not the run's own,
        counts as none.

        Args:
            level: How that is logged.
            index: The digest by which the run names its index; None: each manifest is read.
        """
        self._names = self._find_names()
        known = self._proven(index) if index and self._names else {}
        return [m for m in self._read_all(known, level).values() if m is not None]

    def indexed(self) -> Sequence[Manifest]:
        """Return the same as the index tells it, to be looked at only.

        Costs two calls, and one for each checkpoint that the index does not have.
        """
        return [m for m in self.examine(logging.WARNING).values() if m is not None]

    def examine(self, level: int = logging.DEBUG) -> dict[str, Manifest | None]:
        """Return folder name to manifest, oldest first; before them those that have none.

        Args:
            level: How a manifest that cannot be read is logged.
        """
        self._names = self._find_names()
        return self._read_all(self._read_index() if self._names else {}, level)

    def _find_names(self) -> set[str]:
        return {n for n in self._artifacts.list(ROOT) if NAME.fullmatch(n)}

    def _read_all(self, known: Mapping[str, Manifest], level: int) -> dict[str, Manifest | None]:
        def read(name: str) -> tuple[str, Manifest | None]:
            return name, known.get(name) or self._find_manifest(name, level)

        found = dict(each(read, sorted(self._names), NUM_TRANSFERS))
        return dict(sorted(found.items(), key=lambda item: item[1].order if item[1] else (-1, -1)))

    def linked(self, manifest: Manifest, previous: Manifest | None) -> Manifest:
        """Return the manifest as it is committed here; see `chain.linked`."""
        return chain.linked(manifest, self.run_id, previous, self._key)

    @property
    def names(self) -> frozenset[str]:
        """The folders of checkpoints, committed or not, at the last listing."""
        return frozenset(self._names)

    @property
    def has_key(self) -> bool:
        """Whether signatures are made and checked."""
        return self._key is not None

    def check(self, name: str, folder: Path, moved: Moved | None = None) -> Manifest | None:
        """Verify one checkpoint, downloaded into `folder`; None if it was never committed.

        It is loaded too: what has the right hash may still be no checkpoint.

        Args:
            name: The checkpoint.
            folder: A local folder.
            moved: As `fetch` has it.

        Raises:
            CheckpointDamaged: It is not what its manifest says, or the manifest is no such.
        """
        try:
            manifest = self._read_manifest(name)
        except FileNotFoundError:
            return None
        stored, title = self.fetch(manifest, folder, moved), self._title(manifest)
        content = load_content(folder, stored, title, is_whole=False)
        if stored.shard_files:
            Shards(folder, stored, title, is_verified=True).check(content.parts)
        return stored

    def put(
        self,
        folder: Path,
        manifest: Manifest,
        check_lease: Callable[[], object] = lambda: None,
        link: Callable[[Manifest], Manifest] = lambda cut: cut,
    ) -> Manifest:
        """Upload the checkpoint in the local `folder`, the manifest last: then it exists.

        See `Uploads.bring` for how the files get there.

        Args:
            folder: What `write_checkpoint` wrote.
            manifest: What it returned. Ranks that it lacks are waited for; see `gathering`.
            check_lease: Called before each file and before the manifest; raises to stop.
            link: Makes of the manifest, whose files are those that went up, the one to commit.

        Returns:
            The manifest as it is stored.
        """
        name = manifest.name

        def clear() -> bool:
            # IMPORTANT: a name is written again only after its manifest is gone. So is the rest: an
            # earlier upload may have been cut into other parts.
            is_clear = name not in self._names or self._clear(manifest)
            self._unfinished.add(name)
            self._names.add(name)
            return is_clear

        begin = functools.partial(self.gathering.begin, manifest)
        with self.gathering.answering(manifest, check_lease):
            here, cut = self.uploads.bring(folder, manifest, check_lease, clear, begin)
            cut = self.gathering.complete(here, cut, check_lease, self.uploads.move)
        check_lease()
        linked = link(cut)
        text = linked.to_json()
        atomic_write(here / MANIFEST_FILE, lambda file: file.write(text))
        # IMPORTANT: the manifest comes last; it is the commit.
        remote = f"{ROOT}/{name}"
        retried(lambda: self._artifacts.upload(here / MANIFEST_FILE, remote, give_away=True))
        self._unfinished.discard(name)
        self.uploads.forget(folder, name)
        return linked

    def get(self, manifest: Manifest) -> Content:
        """Download a checkpoint, verify it, and only then load it.

        Raises:
            CheckpointDamaged: It is not what its manifest says, or half of it is gone.
        """
        with tempfile.TemporaryDirectory(prefix="train-") as folder:
            stored = self.fetch(manifest, Path(folder))
            # Mapped tensors outlive the name of their file.
            return load_content(Path(folder), stored, self._title(stored))

    def fetch(self, manifest: Manifest, folder: Path, moved: Moved | None = None) -> Manifest:
        """Download a checkpoint into `folder` and verify it; return its manifest as stored.

        The parts of its `checkpoint.pth` become one file.

        Args:
            manifest: The checkpoint.
            folder: A local folder.
            moved: Counts what was verified; default: how far it is is shown here.

        Raises:
            CheckpointDamaged: It is not what its manifest says, or half of it is gone.
        """
        title = self._title(manifest)
        if moved is None:
            here, is_local = Moved(), self._artifacts.folder is not None
            doing = _("Verifying {title}") if is_local else _("Downloading {title}")
            with show_transfer(doing.format(title=title), manifest.bytes, here.num_bytes):
                return self.fetch(manifest, folder, here)

        try:
            stored = self._read_manifest(manifest.name)
        except FileNotFoundError as error:
            found = _("{path} is missing").format(path=error)
            raise CheckpointDamaged(title, found) from error
        if stored != manifest:
            raise CheckpointDamaged(title, _("its manifest is not the one that was chosen"))
        fetch_files(self._artifacts, stored, folder, title, moved, joins=True)
        return stored

    def delete(self, name: str) -> None:
        """Remove a checkpoint, or what is left of one; what somebody else put there stays."""
        remote = f"{ROOT}/{name}"
        # IMPORTANT: the manifest goes first; what is left without one is no checkpoint.
        self._artifacts.delete(f"{remote}/{MANIFEST_FILE}")
        foreign = self._artifacts.delete(remote, is_own_file)
        self._names.discard(name)
        self._unfinished.discard(name)
        self._foreign.tell(name, foreign)

    def _clear(self, manifest: Manifest) -> bool:
        """Make a name free for another upload, also where the store refuses to delete.

        There its manifest is replaced by one that lists nothing: from then on it is no checkpoint,
        whatever else lies there, as if the manifest had been deleted.

        Returns:
            Whether nothing is left there.
        """
        name = manifest.name
        try:
            if self.gathering.clear(manifest):
                return False
            self.delete(name)
            return True
        except StoreUnavailable as error:
            log.debug("%s", error)
            with tempfile.TemporaryDirectory() as folder:
                voided = Path(folder) / MANIFEST_FILE
                voided.write_bytes(VOID)
                retried(lambda: self._artifacts.upload(voided, f"{ROOT}/{name}"))
            return False

    def try_to(self, what: str, act: Callable[[], object]) -> bool:
        """Do what nothing has to wait for: where the store refuses it, that is told once.

        Args:
            what: What it is, by which it is known that it was told.
            act: Does it.

        Returns:
            Whether it is done.

        Raises:
            StoreUnavailable: The store does not answer at all. Call again later.
        """
        try:
            if what in self._told:
                act()
            else:
                retried(act)
        except OSError as error:
            if not self._answers():
                raise  # all is to wait until it is back
            if what not in self._told:
                self._told.add(what)
                log.warning(_("%s. Training and publishing go on without it"), error)
            return False
        self._told.discard(what)
        return True

    def _answers(self) -> bool:
        try:
            self._artifacts.list(ROOT)
        except StoreUnavailable:
            return False
        return True

    def leftovers(self, manifests: Iterable[Manifest]) -> Sequence[str]:
        """Return the folders that have no manifest at all, or one that was given up.

        A manifest may have arrived though the upload failed, since its answer was lost. A folder
        that holds what no checkpoint does is none of ours: it is told, once.

        Args:
            manifests: Those that are known to have one.
        """
        unknown = sorted(self._names - {m.name for m in manifests} - self._foreign.names)
        return [name for name in unknown if name in self._unfinished or self._foreign.is_left(name)]

    def write_index(self, text: bytes, folder: Path) -> None:
        """Replace the index, by way of a file in the local `folder`."""
        atomic_write(folder / INDEX_FILE, lambda file: file.write(text))
        self._artifacts.upload(folder / INDEX_FILE, ROOT)

    def delete_index(self) -> None:
        """Remove the index: a listing reads the manifests themselves."""
        self._artifacts.delete(f"{ROOT}/{INDEX_FILE}")

    def upload(self, local_file: Path, folder: str) -> None:
        """Store a file of the run that is no part of a checkpoint, as it is now.

        A copy goes up: another thread may write the file, whose length is told to the store before
        its bytes are read.
        """
        with tempfile.TemporaryDirectory(dir=local_file.parent, prefix="sent-") as private:
            copy = Path(private) / local_file.name
            shutil.copyfile(local_file, copy)
            self._artifacts.upload(copy, folder)

    def _title(self, manifest: Manifest) -> str:
        told = _("{name} of run '{run_id}'")
        return told.format(name=manifest.name, run_id=self.run_id)

    def _read(self, path: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "file"
            try:
                retried(lambda: self._artifacts.download(path, local, MAX_MANIFEST_BYTES))
            except (TooLarge, UnsafeFile) as error:
                raise CheckpointDamaged(path, str(error)) from error
            return local.read_bytes()

    def _read_manifest(self, name: str) -> Manifest:
        path = f"{ROOT}/{name}/{MANIFEST_FILE}"
        text = self._read(path)
        if text == VOID:
            raise FileNotFoundError(path)
        manifest = parse_manifest(text, name)
        chain.require_own(manifest, self.run_id, self._key, name)
        return manifest

    def _find_manifest(self, name: str, level: int) -> Manifest | None:
        try:
            return self._read_manifest(name)
        except FileNotFoundError:
            return None
        except CheckpointDamaged as error:
            log.log(level, _("%s: it counts as none"), error)
            return None  # but not one of a newer version: that would be silently less

    def _read_index(self, digest: str | None = None) -> Mapping[str, Manifest]:
        """Return what the index lists; nothing if another digest than its own is given."""
        try:
            text = self._read(f"{ROOT}/{INDEX_FILE}")
        except (FileNotFoundError, CheckpointDamaged):
            return {}
        return listed.from_text(text) if digest in (None, listed.digest(text)) else {}

    def _proven(self, digest: str) -> Mapping[str, Manifest]:
        """Return what the index of that digest lists; nothing if the store has changed since.

        That is seen by its newest manifest. A change of another one is found where that is used.
        """
        found = self._read_index(digest)
        newest = max(found.values(), key=lambda manifest: manifest.order, default=None)
        stored = newest and self._find_manifest(newest.name, logging.DEBUG)
        if not (newest and stored) or stored.to_dict() != newest.to_dict():
            return {}
        own = functools.partial(chain.is_own, run_id=self.run_id, key=self._key)
        return {name: manifest for name, manifest in found.items() if own(manifest, name=name)}
