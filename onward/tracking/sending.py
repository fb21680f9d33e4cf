"""Sending a file to an artifact server once, for who tries again by himself."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any


def send(repository: Any, local_file: Path, folder: str) -> None:
    """Store `local_file` in `folder`, as the repository does; an HTTP server is asked only once.

    MLflow's own function sends all of it again, several times, without a look whether it has
    arrived, and sleeps for as long as a server's Retry-After says.
    """
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
    from mlflow.utils.mime_type_utils import _guess_mime_type
    from mlflow.utils.request_utils import augmented_raise_for_status
    from mlflow.utils.rest_utils import http_request

    if not isinstance(repository, HttpArtifactRepository):
        repository.log_artifact(str(local_file), folder)
        return
    headers = {"Content-Type": _guess_mime_type(local_file.name)}
    with local_file.open("rb") as file:
        answer = http_request(
            repository._host_creds,
            posixpath.join("/", folder, local_file.name),
            "PUT",
            data=file,
            extra_headers=headers,
            max_retries=0,
            raise_on_status=False,
        )
    augmented_raise_for_status(answer)
