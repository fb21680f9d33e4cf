"""The files of a run."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import posixpath
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from pathlib import Path

from onward.errors import StoreUnavailable, TooLarge
from onward.system.files import CHUNK_BYTES, make_folder
from onward.system.streams import Target, chunks_of, write_hashed
from onward.tracking.draws import draw_apart
from onward.tracking.sending import send
from onward.tracking.translate import local_path, translated
from onward.tracking.tree import Tree
from onward.words.language import _
from onward.words.redact import redact

# Every file that this program puts among those of a run; in a folder some may not be whole yet.
_LAYOUT = re.compile(
    r"""(?: checkpoints/ (?: index\.(?:json|html)
                         | (?:epoch|global_step)_[0-9]+/
                           (?: checkpoint\.pth (?:/part-[0-9]{5})?
                             | shard-[0-9]{5}(?:\.json|-[0-9]{5}\.pth)
                             | (?:manifest|draft|checkpoint_metrics)\.json ) )
          | data/processed_data\.(?:json|npz (?:/part-[0-9]{5,})?)
          | logs/attempt_[0-9]+(?:_rank_[0-9]+)?\.log
          | figures/[a-z_]+\.png
          | code/(?:diff\.patch|script\.(?:py|patch)) ) (?:\.tmp)?""",
    re.VERBOSE,
)


def is_of_a_run(path: str) -> bool:
    """Tell whether this program puts a file of that path among those of a run.

    >>> is_of_a_run("checkpoints/epoch_3/checkpoint.pth"), is_of_a_run("thesis.tex")
    (True, False)
    """
    return _LAYOUT.fullmatch(path) is not None


WATCH_SECONDS = 0.05  # between two looks at a file that another's client is writing


class Artifacts:
    """The files of one run, at paths relative to its artifact root.

    Args:
        uri: The run's artifact URI.
        tracking_uri: The server through which `mlflow-artifacts:` URIs go.
    """

    def __init__(self, uri: str, tracking_uri: str | None = None) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
        from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

        self.uri, self._shown = uri, redact(uri)
        self.folder = local_path(uri)
        with self._translated(_("opening the files at {uri}"), ""):
            if uri.startswith("s3:"):
                importlib.import_module("boto3")  # MLflow misses it only as a file is moved
            self._repository = get_artifact_repository(uri, tracking_uri=tracking_uri)
        draw_apart()
        self._is_http = isinstance(self._repository, HttpArtifactRepository)

    def _translated(self, doing: str, path: str) -> contextlib.AbstractContextManager[None]:
        doing = doing.format(path=path, uri=self._shown)
        return translated(doing, store=self.uri)

    @property
    def _tree(self) -> Tree | None:
        return None if self.folder is None else Tree(self.folder)

    def list(self, path: str = "") -> list[str]:
        """Return the names directly below `path`; [] if there is no such folder."""
        with self._translated(_("listing '{path}' at {uri}"), path):
            if self._tree is not None:
                return [name for name, _is_folder in self._tree.items(path)]
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
        with self._translated(_("uploading '{path}' to {uri}"), path):
            if self._tree is not None:
                self._tree.put(local_file, folder, give_away)
                return
            if give_away:
                send(self._repository, local_file, folder)
                return
            self._repository.log_artifact(str(local_file), folder)

    def size(self, path: str) -> int | None:
        """Return the size of the file at `path`, None if there is none or it is not told."""
        return self.sizes(posixpath.dirname(path)).get(posixpath.basename(path))

    def sizes(self, path: str) -> dict[str, int | None]:
        """Return name and size of the files directly in a folder; None where it is not told."""
        with self._translated(_("listing '{path}' at {uri}"), path):
            found = self._repository.list_artifacts(path or None)
        return {posixpath.basename(i.path): i.file_size for i in found if not i.is_dir}

    def download(self, path: str, target: Target, max_bytes: int) -> str:
        """Fetch the file at `path`; return the SHA-256 of what came.

        Nothing else about its content is checked. It is a copy also of a file in a local folder:
        what is done to that one later does not reach what was hashed.

        Args:
            path: The file.
            target: Where to put it: a file of our own, or a piece of one.
            max_bytes: How long it may be.

        Raises:
            FileNotFoundError: There is no such file; a folder is none.
            TooLarge: It is longer than `max_bytes`; no more than that is ever on the disk.
            StoreUnavailable: The store does not answer.
            UnsafeFile: In a local folder: it is a link, a pipe, a device, or lies behind a link.
        """
        doing = _("downloading '{path}' from {uri}")
        if self._tree is not None:
            with (
                self._translated(doing, path),
                contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError),
            ):
                return self._tree.fetch(path, target, max_bytes)
            raise FileNotFoundError(path)
        try:
            if self._is_http:  # once: a server before an object store says 500 of what is absent
                return write_hashed(self._stream(path, 0), target, max_bytes, path)
            return self._fetch_by_client(path, target, max_bytes)
        except TooLarge:
            raise
        except Exception as error:  # each store raises its own kind for "no such file"
            if not self._has_file(path):
                raise FileNotFoundError(path) from error
            with self._translated(doing, path):
                if self._is_http:
                    return write_hashed(self._stream(path), target, max_bytes, path)
                raise

    def _has_file(self, path: str) -> bool:
        with self._translated(_("listing '{path}' at {uri}"), path):
            found = self._repository.list_artifacts(posixpath.dirname(path) or None)
        name = posixpath.basename(path)
        return any(posixpath.basename(info.path) == name and not info.is_dir for info in found)

    def _stream(self, path: str, max_retries: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a file behind an HTTP server, as they come.

        Args:
            path: The file.
            max_retries: How often it is asked for again; default: as MLflow's variables say.
        """
        from mlflow.utils.rest_utils import http_request

        # As it is: a compressed answer could unfold to any size.
        plain = {"Accept-Encoding": "identity"}
        server = self._repository._host_creds  # type: ignore[attr-defined] # of HTTP repositories
        more = {} if max_retries is None else {"max_retries": max_retries, "raise_on_status": False}
        with http_request(
            server, f"/{path}", "GET", stream=True, extra_headers=plain, **more
        ) as response:
            response.raise_for_status()
            yield from response.iter_content(CHUNK_BYTES)

    def _fetch_by_client(self, path: str, target: Target, max_bytes: int) -> str:
        if isinstance(target, Path):
            make_folder(target.parent)
            self._fetch_watched(path, target, max_bytes)
            with target.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        # What a client still writes, that is not waited for, may be in the way of removing it.
        with tempfile.TemporaryDirectory(prefix="train-", ignore_cleanup_errors=True) as folder:
            file_of_client = Path(folder) / "file"
            self._fetch_watched(path, file_of_client, max_bytes)
            with file_of_client.open("rb") as file:
                return write_hashed(chunks_of(file), target, max_bytes, path)

    def _fetch_watched(self, path: str, local_file: Path, max_bytes: int) -> None:
        """Fetch a file by the store's own client, which knows no limit: it is looked at meanwhile.

        What the client does once the file is too long cannot be stopped, but it is not waited for,
        and what it has written is cut off.
        """
        listed = self._repository.list_artifacts(posixpath.dirname(path) or None)
        sizes = {posixpath.basename(info.path): info.file_size for info in listed}
        if (sizes.get(posixpath.basename(path)) or 0) > max_bytes:
            raise TooLarge(path, max_bytes)
        local_file.unlink(missing_ok=True)
        fetched: Future[None] = Future()

        def fetch() -> None:
            try:
                fetched.set_result(self._repository._download_file(path, str(local_file)))
            except BaseException as error:  # it is raised where the result is waited for
                fetched.set_exception(error)

        threading.Thread(target=fetch, name="download", daemon=True).start()
        is_done = False
        while not is_done:
            is_done = bool(wait([fetched], WATCH_SECONDS).done)
            if local_file.exists() and local_file.stat().st_size > max_bytes:
                os.truncate(local_file, 0)
                local_file.unlink()
                raise TooLarge(path, max_bytes)
        fetched.result()

    def delete(self, path: str, is_own: Callable[[str], bool] | None = None) -> Sequence[str]:
        """Remove the file or folder at `path`; it may be gone already.

        Args:
            path: The file or folder.
            is_own: Tells of a file in the folder, by its path in it, whether it may be removed.
                Default: all may.

        Returns:
            The files that stay, by their paths in the folder.
        """
        with self._translated(_("deleting '{path}' at {uri}"), path):
            files = dict(self._walk(path)) if is_own else {}
            foreign = [name for name in files.values() if is_own and not is_own(name)]
            gone = [file for file, name in files.items() if name not in foreign]
            for file in gone if foreign else [path]:
                self._delete(file)
        return foreign

    def _delete(self, path: str) -> None:
        if self._tree is not None:
            self._tree.delete(path)
            return
        try:
            self._repository.delete_artifacts(path)
        except Exception:  # some kinds of store raise where there is nothing
            folder, name = posixpath.split(path)
            with contextlib.suppress(StoreUnavailable):
                if name not in self.list(folder):
                    return
            raise

    def find_foreign(self, run_id: str) -> str | None:
        """Return a file of a local folder that is none of that run, None if all are.

        None of them is where the folder is not named after the run, as MLflow names them.
        """
        if self.folder is None:
            return None
        is_named_so = self.folder.parts[-2:] == (run_id, "artifacts")
        with self._translated(_("listing '{path}' at {uri}"), ""):
            for _file, name in self._walk(""):
                if not (is_named_so and is_of_a_run(name)):
                    return name
        return None

    def _walk(self, path: str, prefix: str = "") -> Iterator[tuple[str, str]]:
        """Yield the path of each file below the folder `path`, whole and in that folder."""
        found: Iterable[tuple[str, bool]]
        if self._tree is not None:
            found = self._tree.items(path)
        else:
            listed = self._repository.list_artifacts(path)
            found = [(posixpath.basename(info.path), info.is_dir) for info in listed]
        for name, is_folder in found:
            if is_folder:
                yield from self._walk(posixpath.join(path, name), f"{prefix}{name}/")
            else:
                yield posixpath.join(path, name), f"{prefix}{name}"
