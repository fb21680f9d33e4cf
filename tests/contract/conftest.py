"""What all contract tests need."""

import contextlib
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # for support.py


@pytest.fixture
def tracking_uri(tracking):
    """A fresh SQLite store, chosen by MLflow's variable."""
    return tracking.uri


@pytest.fixture
def table(tmp_path):
    """A small table."""
    from support import write_table

    return write_table(tmp_path / "table.csv")


# Real servers, each started once in a process that runs tests, when the first test asks for it.


@contextlib.contextmanager
def running(make, *args, **options):
    """Run a server. Where it cannot be had tests are skipped, but fail in CI, which installs it."""
    from servers.programs import Missing

    server = None
    try:
        server = make(*args, **options)
        server.start()
        yield server
    except Missing as missing:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(missing))
    finally:
        if server is not None:
            getattr(server, "close", server.stop)()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory):
    """PostgreSQL with an empty database."""
    from servers.databases import PostgreSQL

    with running(PostgreSQL, tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory):
    """MariaDB with an empty database."""
    from servers.databases import MariaDB

    with running(MariaDB, tmp_path_factory.mktemp("mariadb")) as server:
        yield server


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """A store that speaks S3, with a bucket."""
    from servers.stores import S3

    with running(S3, tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def gcs(tmp_path_factory):
    """A store that speaks as Google's does, with a bucket."""
    from servers.stores import GCS

    with running(GCS, tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture(scope="session")
def azure(tmp_path_factory):
    """A store that speaks as Azure's does, with a container."""
    from servers.stores import Azure

    with running(Azure, tmp_path_factory.mktemp("azure")) as server:
        yield server


@pytest.fixture(scope="session")
def sftp(tmp_path_factory):
    """OpenSSH, for files alone."""
    from servers.stores import SFTP

    with running(SFTP, tmp_path_factory.mktemp("sftp")) as server:
        yield server


@pytest.fixture(scope="session")
def team_server(tmp_path_factory, postgres, s3):
    """MLflow's server of docs/servers.md: PostgreSQL, and S3 that only it has the keys of."""
    from support import Server

    folder = tmp_path_factory.mktemp("team_server")
    options = {"backend": postgres.uri, "artifacts": f"{s3.uri}/team", "variables": s3.variables}
    with running(Server, folder, **options) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server(tmp_path_factory, mariadb):
    """MLflow's server with MariaDB."""
    from support import Server

    with running(Server, tmp_path_factory.mktemp("server"), backend=mariadb.uri) as server:
        yield server


@pytest.fixture(scope="session")
def sqlite_server(tmp_path_factory):
    """MLflow's server with SQLite and a folder; it may name SFTP to its clients, too."""
    from support import Server

    may = {"MLFLOW_ALLOWED_HOST_ADDRESSED_ARTIFACT_SCHEMES": "sftp"}
    with running(Server, tmp_path_factory.mktemp("server"), variables=may) as server:
        yield server


@pytest.fixture(scope="session")
def login_server(tmp_path_factory):
    """MLflow's server with its own login."""
    from servers.tracking import login_server

    with running(login_server, tmp_path_factory.mktemp("login")) as server:
        yield server


@pytest.fixture(scope="session")
def nginx(tmp_path_factory, sqlite_server):
    """nginx before MLflow's server: a path, TLS, and its own limits."""
    from servers.tracking import Nginx

    with running(Nginx, tmp_path_factory.mktemp("nginx"), sqlite_server.port) as server:
        yield server
