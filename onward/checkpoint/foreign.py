"""What somebody else has put among a run's checkpoints: told once, and left alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from onward.checkpoint.artifacts import Artifacts
from onward.checkpoint.manifest import CHECKPOINT_FILE, MANIFEST_FILE, ROOT, is_own_file
from onward.errors import UnsafeFile
from onward.words.language import _

log = logging.getLogger(__name__)


class Foreign:
    """The folders among the checkpoints of one run that hold what is not this program's.

    Args:
        artifacts: The run's files.
        run_id: The run, for messages.
    """

    def __init__(self, artifacts: Artifacts, run_id: str) -> None:
        self._artifacts, self._run_id = artifacts, run_id
        self.names: set[str] = set()  # that were told

    def is_left(self, name: str) -> bool:
        """Tell whether a folder is what a killed upload left: no manifest, no file of others."""
        try:
            files = self._artifacts.list(f"{ROOT}/{name}")
            parts = self._artifacts.list(f"{ROOT}/{name}/{CHECKPOINT_FILE}")  # [] of a file
        except UnsafeFile as error:
            self.names.add(name)
            log.warning("%s", error)
            return False
        if MANIFEST_FILE in files:
            return False
        if parts:
            files = [*files, *(f"{CHECKPOINT_FILE}/{part}" for part in parts)]
        foreign = [file for file in files if not is_own_file(file)]
        self.tell(name, foreign)
        return not foreign

    def tell(self, name: str, files: Sequence[str]) -> None:
        """Say, once, that the folder `name` holds `files` of others, if there are any."""
        if files and name not in self.names:
            self.names.add(name)
            log.warning(
                _("'%s' of run '%s' holds '%s', which is not of this program: it is left alone"),
                f"{ROOT}/{name}", self._run_id, files[0],
            )  # fmt: skip
