"""The folder of this machine in which MLflow keeps a run's files, where that is one."""

from __future__ import annotations

import logging
from pathlib import Path

from onward.errors import StoreUnavailable
from onward.tracking.names import EPOCH_TAG
from onward.tracking.record import RunRecord
from onward.tracking.translate import local_path
from onward.words.language import _
from onward.words.shell import quoted

log = logging.getLogger(__name__)


def require_local_artifacts(record: RunRecord) -> None:
    """Refuse a run whose files are kept in a local folder that is gone.

    MLflow records full paths, so a project that was moved leaves them behind. Nothing is made at
    the old place, and "gone" is never taken for "has no checkpoints".

    Raises:
        StoreUnavailable: The message names the folder, and where the files lie now.
    """
    root = local_path(record.artifact_uri)  # …/mlruns/<experiment>/<run>/artifacts
    if root is None or len(root.parents) < 4:
        return
    store, project = root.parents[2], root.parents[3]
    if root.exists():
        return
    # MLflow may have recorded a folder that it reads as another one, which it then makes.
    is_here = project.exists() or Path(record.artifact_uri).parents[3].exists()
    if is_here and EPOCH_TAG not in record.tags:
        return
    moved = Path.cwd() / store.name
    linking = f"{quoted('mkdir', '-p', project)} && {quoted('ln', '-s', moved, store)}"
    if (moved / root.relative_to(store)).exists():
        found = _("they lie in '{moved}'. Move the project back, or leave a link: {command}")
    else:
        found = _(
            "it was moved or deleted. Bring '{project}' back, or a link to it; for a new run "
            "MLFLOW_EXPERIMENT_NAME=<new name> keeps its files in this folder"
        )
    raise StoreUnavailable(
        _("the files of run '{run_id}' are recorded at '{root}', which does not exist: {found}")
        .format(
            run_id=record.run_id, root=root,
            found=found.format(moved=moved, project=project, command=linking),
        )
    )  # fmt: skip


def warn_of_percent(record: RunRecord) -> None:
    """Say so where MLflow reads the folder that it recorded as another one."""
    root = local_path(record.artifact_uri)
    if record.artifact_uri.startswith("/") and root != Path(record.artifact_uri):
        log.warning(
            _("MLflow reads %%20 and the like in the name of a folder as the character they stand "
              "for: it keeps this run's files in '%s', not in '%s'. Another name for the folder "
              "avoids that"),
            root, record.artifact_uri,
        )  # fmt: skip
