"""What is done with the checkpoints of a run besides training: verify, prune, export, show."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onward.attempts.heartbeat import wait_until_free
from onward.checkpoint import listed
from onward.checkpoint.format import checkpoint_files, load_whole
from onward.checkpoint.manifest import Manifest
from onward.checkpoint.policy import Retention, ranked
from onward.checkpoint.store import CheckpointStore
from onward.errors import CheckpointDamaged, CheckpointError, RunNotUsable, StoreUnavailable
from onward.opening.source import find_gone, find_run, find_store, pick, require_committed
from onward.system.files import PUBLIC, atomic_write
from onward.system.streams import chunks_of
from onward.system.threads import each
from onward.terminal.progress import Moved, show_transfer
from onward.tracking.client import Tracking
from onward.tracking.names import INDEX_TAG, MANIFEST_TAG
from onward.words.language import _

log = logging.getLogger(__name__)

Row = dict[str, Any]

NUM_VERIFIED = 2  # checkpoints at a time, each with several transfers


def verify_rows(tracking: Tracking, run_id: str) -> Iterator[Row]:
    """Download and check every checkpoint of the run, and yield one row for each as it is done.

    `status` is ok, damaged (`found` tells how), or uncommitted: what is left of an upload or a
    deletion that was killed, and no checkpoint. A last row tells if the newest one is missing.

    Raises:
        CheckpointNotFound: It has committed some, and none is there; after the rows.
    """
    record, _folder, store = find_store(tracking, run_id)
    moved = Moved()

    def check(name: str, indexed: Manifest | None) -> Row:
        with tempfile.TemporaryDirectory(prefix="train-") as folder:
            try:
                manifest = store.check(name, Path(folder), moved)
            except CheckpointError as error:
                return {"name": name, "status": "damaged", "found": str(error), "bytes": None}
        if manifest is None and indexed is not None:
            found = _("its manifest.json is gone")
            return {"name": name, "status": "damaged", "found": found, "bytes": None}
        if manifest is None:
            found = _("no manifest")
            return {"name": name, "status": "uncommitted", "found": found, "bytes": None}
        return {"name": name, "status": "ok", "found": "", "bytes": manifest.bytes}

    stored, examined = store.list(logging.DEBUG), store.examine()
    num_bytes = sum(m.bytes for m in examined.values() if m is not None)
    title = _("Verifying run '{run_id}'").format(run_id=record.run_id)
    committed = []
    with show_transfer(title, num_bytes, moved.num_bytes):
        for row in each(lambda item: check(*item), examined.items(), NUM_VERIFIED):
            yield row
            committed += [row] if row["status"] != "uncommitted" else []
    ok = {row["name"] for row in committed if row["status"] == "ok"}
    known = [*stored, *filter(None, examined.values())]
    gone = find_gone(tracking, record, [m for m in stored if m.name in ok], known)
    if gone is not None:
        yield {"name": MANIFEST_TAG, "status": "damaged", "found": gone, "bytes": None}
    require_committed(record, store, committed)


def retention_of(
    tracking: Tracking, run_id: str, last: int | None, best: int | None, every: int | None
) -> Retention:
    """Return which checkpoints of the run are to stay: as given, else by the run's options."""
    own = Retention.of(find_run(tracking, run_id).run_options())
    return Retention(last or own.last, best or own.best, every)


def prune(
    tracking: Tracking, run_id: str, retention: Retention, dry_run: bool, take_over: bool = False
) -> list[Manifest]:
    """Delete the checkpoints that `retention` does not keep; return them.

    Never deleted are the newest good one and the best good one, nor what is damaged in their place.

    Raises:
        RunNotUsable: A process is working on the run.
    """
    record, folder, store = find_store(tracking, run_id)
    if not folder.acquire():
        why = _("is being trained by another process on this machine")
        raise RunNotUsable(record.run_id, why)
    try:
        record = wait_until_free(tracking, record, take_over)
        manifests = store.list()
        require_committed(record, store, manifests)
        gone_before = find_gone(tracking, record, manifests)
        if gone_before is not None:
            log.warning(_("Run '%s' is not as it was left: %s"), record.run_id, gone_before)
        gone = retention.to_prune(_guarded_by_good(store, manifests))
        if gone and not dry_run:
            # IMPORTANT: the index comes first, so that it never names what is gone.
            index = listed.to_text(m for m in manifests if m not in gone)
            with tempfile.TemporaryDirectory(prefix="train-") as temporary:
                store.write_index(index, Path(temporary))
            tracking.set_tags(record.run_id, {INDEX_TAG: listed.digest(index)})
            _delete(store, gone)
        return gone
    finally:
        folder.release()


def _delete(store: CheckpointStore, gone: list[Manifest]) -> None:
    for number, manifest in enumerate(gone):
        try:
            store.delete(manifest.name)
        except StoreUnavailable as error:
            with tempfile.TemporaryDirectory(prefix="train-") as temporary:
                found = store.list()  # raises if the store is away
                store.write_index(listed.to_text(found), Path(temporary))
            told = _("the store refuses to delete {name}, so {number} checkpoints stay: {reason}")
            raise StoreUnavailable(
                told.format(name=manifest.name, number=len(gone) - number, reason=error)
            ) from error


def _guarded_by_good(store: CheckpointStore, manifests: list[Manifest]) -> list[Manifest]:
    """Return them without damaged ones that would count as the newest, or as the best."""
    guards = {m.name: m for m in (*manifests[-1:], *ranked(manifests)[:1])}.values()
    for manifest in guards:
        try:
            store.get(manifest)
        except CheckpointDamaged:
            others = [m for m in manifests if m != manifest]
            return _guarded_by_good(store, others)
    return manifests


def export(tracking: Tracking, run_id: str, epoch: str, to: Path) -> Manifest:
    """Write one verified checkpoint as one plain file, as the script version did.

    Raises:
        CheckpointError: There is none of that epoch, or it is damaged.
    """
    import torch

    record, _folder, store = find_store(tracking, run_id)
    manifest = pick(record.run_id, store.list(index=record.index_sha256), epoch)
    with tempfile.TemporaryDirectory(prefix="train-") as temporary:
        stored = store.fetch(manifest, Path(temporary))
        if stored.shard_files:  # tensors that ranks have pieces of are put together
            title = _("{name} of run '{run_id}'").format(name=stored.name, run_id=record.run_id)
            whole = load_whole(Path(temporary), stored, title)
            atomic_write(to, lambda file: torch.save(whole, file), PUBLIC)
            return stored

        def join(file: Any) -> None:
            for part in checkpoint_files(Path(temporary), stored):
                with part.open("rb") as source:
                    for chunk in chunks_of(source):
                        moved.add(file.write(chunk))

        moved = Moved()
        title = _("Writing '{name}'").format(name=to.name)
        with show_transfer(title, stored.bytes, moved.num_bytes):
            atomic_write(to, join, PUBLIC)
    return stored


def describe(tracking: Tracking, run_id: str, epoch: str) -> Row:
    """Return what a checkpoint holds: manifest, state keys with shapes, options, environment."""
    record, _folder, store = find_store(tracking, run_id)
    manifest = pick(record.run_id, store.list(index=record.index_sha256), epoch)
    content = store.get(manifest)
    state = content.to_dict()
    for told_apart in ("config", "environment"):
        state.pop(told_apart)
    return {
        "run_id": record.run_id,
        "manifest": manifest.to_dict(),
        "state": dict(_leaves(state)),
        "options": content.config,
        "environment": content.environment if isinstance(content.environment, Mapping) else {},
    }


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path, what is there) of every leaf; long lists of numbers count as one."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{where}.{key}" if where else str(key))
    elif hasattr(value, "shape"):
        yield where, f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    elif isinstance(value, list | tuple):
        yield where, f"{type(value).__name__} of {len(value)}"
    else:
        yield where, repr(value)
