"""Opening an SQLite store while other programs may be about to make the same one.

MLflow makes its tables in place and without a lock: two starts in an empty folder, or one and
`mlflow ui`, each migrate what the other has begun, both fail, and the file is broken for good. So a
new database is made under another name, whole, and then given its own; one that somebody else is
making is waited for.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import shlex
import sqlite3
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onward.errors import StoreRefused
from onward.system import environment
from onward.system.files import exclusively, name_if_free
from onward.tracking.causes import chain
from onward.words.language import _

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
QUIET_SECONDS = 10.0  # a file that nobody has changed for so long is not being made
JOURNAL_SECONDS = 60.0  # the same of SQLite's journal, in which a long change is prepared
MAX_WAIT_SECONDS = 120.0
MAX_TRIES = 7  # to reach another database; between them 0.1, 0.3, 0.7, … 6.3 s


def open_store(uri: str) -> Any:
    """Return MLflow's client of the store at `uri`; of an SQLite file, made first if need be.

    Raises:
        StoreRefused: The database would live in memory only, or is half made.
    """
    from mlflow import MlflowClient

    if uri.startswith(("http:", "https:")):
        return MlflowClient(uri)
    from sqlalchemy.engine import make_url  # a quarter of a second, which no server needs

    if not uri.startswith("sqlite"):
        with _few_tries():
            return MlflowClient(uri)
    name = make_url(uri).database
    if not name or name == ":memory:" or "mode=memory" in uri:
        raise StoreRefused(
            _(
                "'{uri}' is a database in the memory of this process, and gone with it: name a "
                "file, as in export MLFLOW_TRACKING_URI=sqlite:///mlflow.db"
            ).format(uri=uri)
        )
    path = Path(name).absolute()
    if name.startswith("file:") or _has_all_tables(path):
        return MlflowClient(uri)
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    with exclusively(environment.home() / "locks" / key):
        if not path.exists():
            _make(uri, path)
        return _open_when_made(uri, path)


@contextlib.contextmanager
def _few_tries() -> Iterator[None]:
    """Let MLflow try for 12 s to reach a database, in place of 102: whoever waits is to know."""
    from mlflow.store.db import utils

    usual = utils.MAX_RETRY_COUNT
    utils.MAX_RETRY_COUNT = min(usual, MAX_TRIES)
    try:
        yield
    finally:
        utils.MAX_RETRY_COUNT = usual


def _has_all_tables(path: Path) -> bool:
    """Tell whether the file has every table of MLflow's, so that MLflow would not begin to make it.

    Raises:
        sqlite3.DatabaseError: It is no database.
    """
    import mlflow.store.db.utils  # noqa: F401 - knows the tables
    from mlflow.store.db.base_sql_model import Base

    if not path.exists():
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            return set(Base.metadata.tables) <= {row[0] for row in rows}
    except sqlite3.OperationalError:  # locked, as by who makes it
        return False


def _make(uri: str, path: Path) -> None:
    """Make the database, so that its name never shows anything but the whole of it."""
    from mlflow import MlflowClient
    from sqlalchemy.engine import make_url

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        whole = make_url(uri).set(database=str(temporary)).render_as_string(hide_password=False)
        MlflowClient(whole)._tracking_client.store._dispose_engine()
        name_if_free(temporary, path)  # else somebody was faster, and is waited for
    finally:
        temporary.unlink(missing_ok=True)


def _open_when_made(uri: str, path: Path) -> Any:
    """Return the client once nobody is making the database any more.

    Raises:
        StoreRefused: It was left half made.
    """
    from mlflow import MlflowClient

    ends = time.monotonic() + MAX_WAIT_SECONDS
    is_told = False
    while True:
        is_over = time.monotonic() > ends or not _is_being_made(path)
        if is_over or _has_all_tables(path):
            try:
                return MlflowClient(uri)
            except Exception as error:  # each database driver raises its own
                if is_over:
                    _tell_half_made(path, error)
                    raise
        if not is_told:
            is_told = True
            log.info(_("Another program is making the database '%s': waiting for it"), path)
        time.sleep(LOOK_SECONDS)


def _is_being_made(path: Path) -> bool:
    for file, seconds in ((path, QUIET_SECONDS), (Path(f"{path}-journal"), JOURNAL_SECONDS)):
        with contextlib.suppress(OSError):
            if abs(time.time() - file.stat().st_mtime) < seconds:
                return True
    return False


def _tell_half_made(path: Path, error: Exception) -> None:
    told = " ".join(str(cause) for cause in chain(error))
    if re.search(
        "already exists|duplicate column|no such (table|column)|expected to match one row", told
    ):
        away = shlex.join(["mv", str(path), f"{path}.half-made"])
        raise StoreRefused(
            _(
                "the database '{path}' is half made, as two programs that make it at once leave "
                "it, and MLflow cannot go on with it: put a backup in its place, or move it away "
                "and start again: {away}"
            ).format(path=path, away=away)
        ) from error
