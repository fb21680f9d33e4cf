"""Using a checkpoint of a run outside its training: opening one, and logging it as a model."""

from __future__ import annotations

import functools
from typing import NamedTuple

from onward.checkpoint.content import Content
from onward.checkpoint.manifest import Manifest
from onward.checkpoint.policy import find_best
from onward.errors import UsageError
from onward.opening.source import find_store, pick
from onward.publish.results import log_checkpoint, register_checkpoint
from onward.run.subject import Stored, require_kind, stored_of
from onward.tracking.client import Tracking
from onward.tracking.record import RunRecord
from onward.words.language import _
from train.kind import TaskKind


class Opened(NamedTuple):
    """A checkpoint that was verified, with its run."""

    record: RunRecord
    manifest: Manifest
    content: Content
    stored: Stored


def open_checkpoint(tracking: Tracking, kind: TaskKind, run_id: str, epoch: str | None) -> Opened:
    """Return a checkpoint of the run.

    Args:
        tracking: The server.
        kind: What the run trains.
        run_id: The run.
        epoch: Which checkpoint; see `source.pick`. Default: the best, or the newest where none is.

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged.
        RunNotUsable: The run trains something else.
    """
    record, _folder, store = find_store(tracking, run_id)
    manifests = store.list(index=record.index_sha256)
    epoch = epoch or ("best" if find_best(manifests) else "latest")
    manifest = pick(record.run_id, manifests, epoch)
    content = store.get(manifest)
    require_kind(record.run_id, content.data, kind)
    options = kind.declared.from_dict(content.config)
    return Opened(record, manifest, content, stored_of(tracking, record, options))


def publish(
    tracking: Tracking, kind: TaskKind, run_id: str, epoch: str | None, register: str | None
) -> Manifest:
    """Log a checkpoint of the run as its model, and register it if a name is given.

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged.
        UsageError: What the run trains makes no model.
    """
    record, manifest, content, stored = open_checkpoint(tracking, kind, run_id, epoch)
    maker = kind.open_model(stored.options, stored)
    make = functools.partial(maker.model, content)
    model_id = log_checkpoint(tracking, record, manifest, content, make, register)
    if model_id is None:
        told = _("the task '{name}' makes no model: it has no method model(content, folder)")
        raise UsageError(told.format(name=kind.name))
    if register:
        register_checkpoint(tracking, record, model_id, manifest, register)
    return manifest
