"""The files of a run."""

from __future__ import annotations

import posixpath
from pathlib import Path

from train.errors import StoreUnavailable
from train.files import link_or_copy
from train.language import _
from train.redact import redact
from train.tracking.translate import local_path, one_line, translated


class Artifacts:
    """The files of one run, at paths relative to its artifact root.

    Args:
        uri: The run's artifact URI.
        tracking_uri: The server through which `mlflow-artifacts:` URIs go.
    """

    def __init__(self, uri: str, tracking_uri: str | None = None) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        self.uri = uri
        self.folder = local_path(uri)
        self._repository = get_artifact_repository(uri, tracking_uri=tracking_uri)

    def list(self, path: str = "") -> list[str]:
        """Return the names directly below `path`; [] if there is no such folder."""
        with translated(_("listing '{path}' at {uri}").format(path=path, uri=self.uri)):
            found = self._repository.list_artifacts(path or None)
        return [posixpath.basename(info.path) for info in found]

    def upload(self, local_file: Path, folder: str, give_away: bool = False) -> None:
        """Store `local_file` under its own name in `folder`, replacing what is there.

        Args:
            local_file: The file; it stays where it is.
            folder: Where to put it.
            give_away: The file is not changed any more: a store in a local folder may then give
                it a second name in place of writing its bytes a second time.
        """
        path = f"{folder}/{local_file.name}"
        with translated(_("uploading '{path}' to {uri}").format(path=path, uri=self.uri)):
            if give_away and self.folder is not None:
                link_or_copy(local_file, self.folder / folder / local_file.name)
                return
            self._repository.log_artifact(str(local_file), folder)

    def download(self, path: str, local_file: Path) -> None:
        """Fetch the file at `path`; nothing about its content is checked.

        What comes from a local folder may be the same file under a second name: it is to be read,
        not written.

        Raises:
            FileNotFoundError: There is no such file.
            StoreUnavailable: The store does not answer.
        """
        local_file.parent.mkdir(parents=True, exist_ok=True)
        if self.folder is not None:
            if {"..", "/"} & {*Path(path).parts} or not (self.folder / path).exists():
                raise FileNotFoundError(path)
            doing = _("downloading '{path}' from {uri}").format(path=path, uri=self.uri)
            with translated(doing):
                link_or_copy(self.folder / path, local_file)
            return
        try:
            self._repository._download_file(path, str(local_file))
        except Exception as error:  # each store raises its own kind for "no such file"
            if posixpath.basename(path) not in self.list(posixpath.dirname(path)):
                raise FileNotFoundError(path) from error
            told = _("downloading '{path}' from {uri} failed: {reason}")
            raise StoreUnavailable(
                told.format(path=path, uri=redact(self.uri), reason=one_line(error))
            ) from error

    def delete(self, path: str) -> None:
        """Remove the file or folder at `path`; it may be gone already."""
        with translated(_("deleting '{path}' at {uri}").format(path=path, uri=self.uri)):
            self._repository.delete_artifacts(path)
