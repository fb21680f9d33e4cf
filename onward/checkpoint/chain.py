"""Which checkpoints are a run's own, which follows which, and which is the newest.

As it is committed, a manifest gets the ID of its run, and the digest of the manifest that was the
newest until then: what that proves is order. Those between may be pruned, so that a link to one
that is gone is no fault; only the newest is held, by the run's tag `train.manifest`.

Hashes are against accidents: who can write both the store and the tag can make them agree. A
signature, by a key that the store never sees, is against that too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
from collections.abc import Iterable, Mapping

from onward.checkpoint.manifest import Manifest
from onward.errors import CheckpointDamaged
from onward.words.language import _


def linked(
    manifest: Manifest, run_id: str, previous: Manifest | None, key: bytes | None
) -> Manifest:
    """Return the manifest as it is committed to a run.

    Args:
        manifest: What was saved.
        run_id: The run.
        previous: The newest manifest of the run so far, if it has one.
        key: Signs it, if there is one.
    """
    before = None if previous is None else previous.digest
    bound = dataclasses.replace(manifest, run_id=run_id, previous=before, hmac=None)
    return bound if key is None else dataclasses.replace(bound, hmac=_signature(bound, key))


def require_own(manifest: Manifest, run_id: str, key: bytes | None, name: str) -> None:
    """Refuse what is of another run, or with a key what that has not signed.

    Raises:
        CheckpointDamaged: It is.
    """
    if manifest.run_id not in (None, run_id):
        raise CheckpointDamaged(name, _("it belongs to run '{run}'").format(run=manifest.run_id))
    if key is not None and not hmac.compare_digest(manifest.hmac or "", _signature(manifest, key)):
        raise CheckpointDamaged(name, _("not signed by this key"))


def is_own(manifest: Manifest, run_id: str, key: bytes | None, name: str) -> bool:
    """Tell whether `require_own` takes it."""
    with contextlib.suppress(CheckpointDamaged):
        require_own(manifest, run_id, key, name)
        return True
    return False


def _signature(manifest: Manifest, key: bytes) -> str:
    return hmac.new(key, manifest.canonical, hashlib.sha256).hexdigest()


def _follows(reached: Manifest, anchor: str, by_digest: Mapping[str, Manifest]) -> bool:
    """Tell whether the commits since the one of that digest lead to `reached`.

    There are several where the tag could not be set for a while: nothing is pruned before it is, so
    that those between are all there.
    """
    before = by_digest.get(reached.previous or "")
    while before is not None:
        if before.previous == anchor:
            return True
        before = by_digest.get(before.previous or "")
    return False


def find_break(manifests: Iterable[Manifest], reached: Manifest, anchor: str | None) -> str | None:
    """Return, in half a line, what is missing or out of order; None if nothing is.

    Args:
        manifests: Those in the store.
        reached: The one that counts as the newest.
        anchor: The digest that the run names as its newest's; None if it names none, as in an
            earlier version of this program.
    """
    if anchor in (reached.digest, reached.previous):
        return None  # the latter is an attempt that died between the commit and the tag
    by_digest = {manifest.digest: manifest for manifest in manifests}
    if anchor is not None and _follows(reached, anchor, by_digest):
        return None
    if anchor is None:
        before = by_digest.get(reached.previous or "")
        if before is not None and before.run_id is None:
            return None  # the first commit to a run of an earlier version, and died likewise
        return _("its tag that names the newest checkpoint is gone: {name} may not be it").format(
            name=reached.name
        )
    named = by_digest.get(anchor)
    if named is None:
        return _(
            "the newest checkpoint that its tag names is gone, or is not what it was: the newest "
            "that is left is {name}"
        ).format(name=reached.name)
    if named.order > reached.order:
        return None  # it is damaged, which is told as that
    return _(
        "{name} does not follow {named}, which its tag names as the newest: an earlier version of "
        "this program saved it, or somebody put it there"
    ).format(name=reached.name, named=named.name)
