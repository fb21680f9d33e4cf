"""The list of a run's checkpoints: `index.json`, which holds the manifests of all.

It is derived. The run's tag `train.index` names it by its digest: the file that has this digest is
what an attempt of the run wrote, so that its manifests need not be read one by one; those of the
newest checkpoints, which it may lack, are. Any other is for looking only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from onward.checkpoint.manifest import Manifest, checkpoint_name
from onward.errors import CheckpointError
from onward.system.untrusted import parse_json

INDEX_FILE = "index.json"
_VERSION = 2


def to_text(manifests: Iterable[Manifest]) -> bytes:
    """Return what the file holds."""
    listed = ", ".join(manifest.line for manifest in manifests)
    return f'{{"format_version": {_VERSION}, "checkpoints": [{listed}]}}'.encode()


def digest(text: bytes) -> str:
    """Return what a run's tag names the file by."""
    return hashlib.sha256(text).hexdigest()


def from_text(text: bytes) -> Mapping[str, Manifest]:
    """Return folder name to manifest; nothing where the file is not what it should be."""
    try:
        document = parse_json(text)
        entries = [(checkpoint_name(entry), entry) for entry in document["checkpoints"]]
        return {name: Manifest.from_dict(entry, name) for name, entry in entries}
    except (CheckpointError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # the manifests themselves are read instead
