"""Finding what to go on from: a run, and a verified checkpoint of it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterable
from datetime import datetime

from onward.checkpoint.chain import find_break
from onward.checkpoint.content import Content
from onward.checkpoint.manifest import Manifest
from onward.checkpoint.policy import find_best
from onward.checkpoint.spool import RunFolder
from onward.checkpoint.store import CheckpointStore
from onward.errors import (
    CheckpointDamaged,
    CheckpointError,
    CheckpointNotFound,
    RunNotUsable,
    StoreUnavailable,
)
from onward.opening.restored import Doubted, options_of_saved, options_of_unsaved
from onward.options.run_options import RunOptions
from onward.run.subject import Kind, require_kind
from onward.system import environment
from onward.system.untrusted import path_part, run_id_in, shown
from onward.tracking.artifact_folder import require_local_artifacts
from onward.tracking.artifacts import Artifacts
from onward.tracking.client import Tracking
from onward.tracking.names import (
    EPOCH_TAG,
    HOST_TAG,
    LATEST_CHECKPOINT_TAG,
    MANIFEST_TAG,
    PARENT_TAG,
    USER_TAG,
)
from onward.tracking.record import UNKNOWN, RunRecord
from onward.tracking.translate import local_uri
from onward.words.language import _
from onward.words.redact import redact
from onward.words.shell import command

log = logging.getLogger(__name__)

Get = Callable[[Manifest], Content]


@dataclasses.dataclass(frozen=True)
class Source:
    """A run, and the checkpoint of it to go on from.

    Args:
        record: The run.
        store: Its checkpoints.
        manifests: Those that are not known to be damaged, oldest first.
        manifest: The chosen one; None if the run died before its first commit.
        content: What it holds, verified; None likewise.
        options: The run's options.
        gone: What is missing of the run's newest checkpoints, in half a line; None if nothing is.
        doubted: Options that only the run's tag tells, and that do not count; see `restored`.
    """

    record: RunRecord
    store: CheckpointStore
    manifests: list[Manifest]
    manifest: Manifest | None
    content: Content | None
    options: RunOptions
    gone: str | None = None
    doubted: Doubted = dataclasses.field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self.manifest.epoch if self.manifest else 0

    @property
    def epochs_begun(self) -> int:
        """Epochs completed, and the one under way."""
        return self.epoch + bool(self.manifest and self.manifest.epoch_step)

    @property
    def data_fingerprint(self) -> str:
        """What the run's data must be."""
        if self.content is not None:
            return self.content.data_fingerprint
        return self.record.data_fingerprint

    @property
    def is_newest(self) -> bool:
        """Whether nothing newer can be gone on from."""
        return not self.manifests or self.manifest == self.manifests[-1]


def find_run(tracking: Tracking, wanted: str) -> RunRecord:
    """Return the run of that ID, or for "latest" the unfinished one that was worked on last.

    Args:
        tracking: The server.
        wanted: "latest", the ID, or the address of the run's page.

    Raises:
        RunNotUsable: There is none.
    """
    wanted = run_id_in(wanted)
    if wanted != "latest":
        record = tracking.get_run(wanted)
        parent_id = record.tags.get(PARENT_TAG)
        if parent_id is None or record.is_ours:
            return record
        parent = tracking.get_run(path_part(parent_id, PARENT_TAG))
        if record.run_id not in map(parent.child_of, range(1, parent.attempts + 1)):
            return record  # it says so, and that run knows nothing of it
        told = _("Run '%s' is an attempt of run '%s', which is the one to use")
        log.info(told, wanted, parent_id)
        return parent
    experiment_id = tracking.experiment_id()
    for record in tracking.search_runs(experiment_id, is_unfinished=True):
        log.info(_("The newest unfinished run is '%s' (%s)"), record.run_id, whose(record))
        return record
    raise RunNotUsable(
        wanted,
        _("was asked for, but experiment {experiment_id} has no unfinished run with a checkpoint: "
          "`{command}` shows the runs, MLFLOW_EXPERIMENT_NAME chooses the experiment")
        .format(experiment_id=experiment_id, command=command("list")),
    )  # fmt: skip


def whose(record: RunRecord) -> str:
    """Return a run's name, whose it is, and when it was started: it may be somebody else's."""
    started = record.started
    return _("{name} of {user}, started {started}").format(
        name=shown(record.name),
        user=shown(record.tags.get(USER_TAG) or _("somebody unknown")),
        started=UNKNOWN if started is None else f"{datetime.fromtimestamp(started):%Y-%m-%d %H:%M}",
    )


def local_folder(tracking: Tracking, record: RunRecord) -> RunFolder:
    """Return this disk's folder for the run."""
    return RunFolder(environment.run_folder(tracking.uri, record.run_id))


def find_store(tracking: Tracking, run_id: str) -> tuple[RunRecord, RunFolder, CheckpointStore]:
    """Return a run, this disk's folder for it, and its checkpoints.

    Raises:
        RunNotUsable: There is no such run.
        StoreUnavailable: Its checkpoints cannot be reached from here.
    """
    record = find_run(tracking, run_id)
    folder = local_folder(tracking, record)
    return record, folder, open_store(tracking, record, folder)


def open_store(tracking: Tracking, record: RunRecord, folder: RunFolder) -> CheckpointStore:
    """Return the run's checkpoints: in its artifacts, or on this disk with upload=off.

    Raises:
        StoreUnavailable: They are on another machine's disk, or their folder was moved away.
    """
    host, key = record.tags.get(HOST_TAG), environment.checkpoint_key()
    if host is None:
        require_local_artifacts(record)
        return CheckpointStore(tracking.artifacts(record), record.run_id, key)
    if host != environment.hostname():
        raise StoreUnavailable(
            _("the checkpoints of run '{run_id}' were not uploaded (upload=off): they are on the "
              "disk of '{host}', and this is '{hostname}'. Go on there")
            .format(run_id=record.run_id, host=host, hostname=environment.hostname())
        )  # fmt: skip
    return CheckpointStore(Artifacts(local_uri(folder.artifacts())), record.run_id, key)


def find_source(
    record: RunRecord,
    store: CheckpointStore,
    resume_epoch: str | None,
    kind: Kind,
    get: Get | None = None,
) -> Source:
    """Choose a checkpoint, download it, verify it, load it.

    Args:
        record: The run.
        store: Its checkpoints.
        resume_epoch: An epoch, "best", the name of a checkpoint inside an epoch, or None or
            "latest" for the newest: then a damaged one is passed over with a warning, and the next
            older is taken.
        kind: What it trains.
        get: Downloads a checkpoint and verifies it; default: as the store does.

    Raises:
        RunNotUsable: It is not of this program, or trains something else.
        CheckpointNotFound: The run has no checkpoint of that epoch.
        CheckpointDamaged: The one that was asked for is damaged, or all are.
        StoreUnavailable: The store does not answer.
    """
    manifests = store.list(index=record.index_sha256)
    if not manifests:
        return _never_committed(record, store, resume_epoch, kind)
    newest_wanted, get = resume_epoch in (None, "latest"), get or store.get
    if newest_wanted:
        manifest, content = _newest_good(get, manifests)
    else:
        manifest = pick(record.run_id, manifests, str(resume_epoch))
        content = _get_or_name_others(get, manifest, manifests)
    good = [m for m in manifests if not newest_wanted or m.order <= manifest.order]
    if manifest.hmac is not None and not store.has_key:
        log.warning(
            _("The checkpoints of run '%s' are signed, and no checkpoint_key is given: whose they "
              "are is not checked, and what is saved from here on is not signed"),
            record.run_id,
        )  # fmt: skip
    require_kind(record.run_id, content.data, kind)
    saved = kind.declared.from_dict(content.config)
    options, doubted = options_of_saved(record, saved)
    reached = manifest if newest_wanted else manifests[-1]
    gone = find_break(manifests, reached, record.manifest_sha256)
    return Source(record, store, good, manifest, content, options, gone, doubted)


def _never_committed(
    record: RunRecord, store: CheckpointStore, resume_epoch: str | None, kind: Kind
) -> Source:
    require_committed(record, store, [])
    if record.is_ours:
        require_kind(record.run_id, record.task_facts, kind)
    options, doubted = options_of_unsaved(record, kind.declared) if record.is_ours else (None, {})
    if options is None:
        raise RunNotUsable(
            record.run_id,
            _("has no checkpoint of this program: `{command}` shows the runs that can be resumed")
            .format(command=command("list")),
        )  # fmt: skip
    if resume_epoch not in (None, "latest"):
        wanted = _("epoch {wanted}").format(wanted=resume_epoch)
        raise CheckpointNotFound(record.run_id, wanted, [])
    return Source(record, store, [], None, None, options, doubted=doubted)


def require_committed(record: RunRecord, store: CheckpointStore, found: Collection[object]) -> None:
    """Refuse a run that has committed checkpoints of which none is `found`.

    Raises:
        CheckpointNotFound: It has.
        CheckpointError: It has some, none of which the key that was given has signed.
    """
    if not found and store.has_key and store.names:
        raise CheckpointError(
            _("no checkpoint of run '{run_id}' is signed by the key that was given: give the one "
              "that it was trained with").format(run_id=record.run_id)
        )  # fmt: skip
    if {EPOCH_TAG, MANIFEST_TAG, LATEST_CHECKPOINT_TAG} & set(record.tags) and not found:
        wanted = _(
            "any epoch, though it had some (the newest of epoch {epoch}), at {where}"
        ).format(
            epoch=UNKNOWN if record.epoch is None else record.epoch,
            where=shown(redact(store.where)),
        )
        raise CheckpointNotFound(record.run_id, wanted, [])


def pick(run_id: str, manifests: list[Manifest], wanted: str) -> Manifest:
    """Return the checkpoint that is meant by an epoch, "latest", "best", or its name.

    Raises:
        CheckpointNotFound: There is none; the message lists those there are.
    """
    if wanted == "latest" and manifests:
        return manifests[-1]
    if wanted == "best":
        best = find_best(manifests)
        if best is not None:
            return best
        raise CheckpointNotFound(run_id, _("a best epoch"), [m.key for m in manifests])
    for manifest in manifests:
        if manifest.key == wanted:
            return manifest
    named = _("any epoch") if wanted == "latest" else _("epoch {wanted}").format(wanted=wanted)
    raise CheckpointNotFound(run_id, named, [m.key for m in manifests])


def _get_or_name_others(get: Get, manifest: Manifest, manifests: list[Manifest]) -> Content:
    try:
        return get(manifest)
    except CheckpointDamaged as error:
        others = [m.key for m in manifests if m != manifest]
        raise CheckpointDamaged(error.name, error.found, others) from error


def _newest_good(get: Get, manifests: list[Manifest]) -> tuple[Manifest, Content]:
    first_error: CheckpointDamaged | None = None
    for manifest in reversed(manifests):
        try:
            return manifest, get(manifest)
        except CheckpointDamaged as error:
            first_error = first_error or error
            log.warning(_("%s. Falling back to the one before it"), error)
    assert first_error is not None
    raise first_error


def find_gone(
    tracking: Tracking,
    record: RunRecord,
    manifests: list[Manifest],
    damaged: Iterable[Manifest] = (),
) -> str | None:
    """Return what is missing of a run's newest checkpoints, in half a line; None if nothing is.

    Args:
        tracking: The server.
        record: The run, as it was before `manifests` were read.
        manifests: Its checkpoints, by their stored manifests, oldest first.
        damaged: Others, which are told of as that.
    """
    if not manifests:
        return None
    known = [*manifests, *damaged]
    gone = find_break(known, manifests[-1], record.manifest_sha256)
    return gone if gone and not is_trained(tracking, record) else None


def is_trained(tracking: Tracking, record: RunRecord) -> bool:
    """Tell whether the run's newest checkpoint has become another since `record` was read.

    Then what was read of its checkpoints is of another moment.
    """
    now = tracking.get_run(record.run_id)
    return now.tags.get(MANIFEST_TAG) != record.tags.get(MANIFEST_TAG)
