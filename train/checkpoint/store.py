"""The checkpoints of one MLflow run: list, put, get, delete.

A checkpoint exists if and only if its `manifest.json` does and every file has the size and
hash that it lists. So the manifest is uploaded last and deleted first, and a folder without one
(a killed upload, a half-done deletion) is nothing.

`index.json` holds the manifests of all checkpoints, so that a listing costs two calls. It is
derived: what it lacks is looked up, what it names wrongly is found out before it is used.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from train.checkpoint.format import (
    CHECKPOINT_FILE,
    FORMAT_VERSION,
    MANIFEST_FILE,
    NAME,
    Manifest,
    load_checkpoint,
    parse_manifest,
    verify,
)
from train.errors import CheckpointDamaged, CheckpointError
from train.files import atomic_write
from train.tracking import Artifacts

ROOT = "checkpoints"
INDEX_FILE = "index.json"


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        artifacts: The run's files.
        run_id: The run, for messages.
    """

    def __init__(self, artifacts: Artifacts, run_id: str) -> None:
        self._artifacts = artifacts
        self.run_id = run_id
        self._seen: set[str] = set()  # folders in the store, committed or not

    def list(self) -> list[Manifest]:
        """Return the manifests of all committed checkpoints, oldest first.

        Costs two calls, and one for each checkpoint that the index does not have.
        A manifest that cannot be read counts as none.
        """
        names = [n for n in self._artifacts.list(ROOT) if NAME.fullmatch(n)]
        self._seen.update(names)
        if not names:
            return []
        indexed = self._read_index()
        found = [indexed.get(name) or self._find_manifest(name) for name in names]
        return sorted((m for m in found if m is not None), key=lambda m: (m.step, m.epoch))

    def put(self, folder: Path, manifest: Manifest) -> None:
        """Upload the files in `folder`, the manifest last: then the checkpoint exists."""
        remote = f"{ROOT}/{manifest.name}"
        # IMPORTANT: a name is written again only after its manifest is gone.
        if manifest.name in self._seen:
            self._artifacts.delete(f"{remote}/{MANIFEST_FILE}")
        self._seen.add(manifest.name)
        for entry in manifest.files:
            self._artifacts.upload(folder / entry.path, remote)
        # IMPORTANT: the manifest comes last; it is the commit.
        self._artifacts.upload(folder / MANIFEST_FILE, remote)

    def get(self, manifest: Manifest, folder: Path) -> dict[str, Any]:
        """Download a checkpoint into `folder`, verify it, and only then load it.

        Raises:
            CheckpointDamaged: It is not what its manifest says, or half of it is gone.
        """
        name = f"{manifest.name} of run '{self.run_id}'"
        try:
            stored = self._read_manifest(manifest.name)
            for entry in stored.files:
                self._artifacts.download(f"{ROOT}/{stored.name}/{entry.path}", folder / entry.path)
        except FileNotFoundError as error:
            raise CheckpointDamaged(name, f"{error} is missing") from error
        verify(folder, stored, name)
        checkpoint = load_checkpoint(folder / CHECKPOINT_FILE, name)
        found = (checkpoint.get("epoch"), checkpoint.get("step"))
        if found != (stored.epoch, stored.step):
            raise CheckpointDamaged(
                name, f"it holds epoch {found[0]}, step {found[1]}, not what its manifest says"
            )
        return checkpoint

    def delete(self, manifest: Manifest) -> None:
        """Remove a checkpoint."""
        remote = f"{ROOT}/{manifest.name}"
        # IMPORTANT: the manifest goes first; what is left without one is no checkpoint.
        self._artifacts.delete(f"{remote}/{MANIFEST_FILE}")
        self._artifacts.delete(remote)

    def write_index(self, manifests: Iterable[Manifest], folder: Path) -> None:
        """Replace the index, by way of a file in the local `folder`."""
        document = {
            "format_version": FORMAT_VERSION,
            "checkpoints": [manifest.to_dict() for manifest in manifests],
        }
        text = json.dumps(document, allow_nan=False).encode()
        atomic_write(folder / INDEX_FILE, lambda file: file.write(text))
        self._artifacts.upload(folder / INDEX_FILE, ROOT)

    def upload(self, local_file: Path, folder: str) -> None:
        """Store a file of the run that is no part of a checkpoint."""
        self._artifacts.upload(local_file, folder)

    def _read(self, path: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "file"
            self._artifacts.download(path, local)
            return local.read_bytes()

    def _read_manifest(self, name: str) -> Manifest:
        text = self._read(f"{ROOT}/{name}/{MANIFEST_FILE}")
        return parse_manifest(text, name)

    def _find_manifest(self, name: str) -> Manifest | None:
        try:
            return self._read_manifest(name)
        except (FileNotFoundError, CheckpointDamaged):
            return None  # but not one of a newer version: that would be silently less

    def _read_index(self) -> Mapping[str, Manifest]:
        try:
            document = json.loads(self._read(f"{ROOT}/{INDEX_FILE}"))
            entries = [(f"epoch_{entry['epoch']}", entry) for entry in document["checkpoints"]]
            return {name: Manifest.from_dict(entry, name) for name, entry in entries}
        except (
            FileNotFoundError,
            CheckpointError,
            ValueError,
            KeyError,
            TypeError,
            RecursionError,
        ):
            return {}  # it is derived: the manifests themselves are read instead
