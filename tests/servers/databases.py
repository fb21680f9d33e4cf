"""PostgreSQL and MariaDB, each with an empty database and a password."""

from __future__ import annotations

from pathlib import Path

from servers.programs import IS_ROOT, Program, find, free_ports, listens

PASSWORD = "p%40stgres-5ecret"  # as an address has it; "@" and "%" are what breaks others


class PostgreSQL(Program):
    """`uri` is what MLflow is given as its backend store."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, as_nobody=True)
        self.secrets = (PASSWORD, PASSWORD.replace("%40", "@"))
        self._program = find("postgres", self.debian)
        [self.port] = free_ports(1)
        self.uri = f"postgresql://team:{PASSWORD}@127.0.0.1:{self.port}/postgres"
        password = self.write("password", self.secrets[1])
        self.call(
            find("initdb", self.debian), "-D", self.folder / "data", "-U", "team",
            "-A", "scram-sha-256", "--pwfile", password, "--no-sync", "-E", "UTF8", "--locale", "C",
        )  # fmt: skip

    def command(self) -> list:
        """Return the words that start it; fsync costs the tests seconds."""
        return [
            self._program, "-D", self.folder / "data", "-h", "127.0.0.1", "-p", self.port,
            "-k", self.folder, "-F",
        ]  # fmt: skip

    def ready(self) -> bool:
        """Tell whether it has come up: it listens a moment before."""
        return "ready to accept connections" in self.output() and listens(self.port)


class MariaDB(Program):
    """`uri` is what MLflow is given as its backend store."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.secrets = (PASSWORD, PASSWORD.replace("%40", "@"))
        self._program = find("mariadbd", self.debian)
        [self.port] = free_ports(1)
        self.uri = f"mysql+pymysql://team:{PASSWORD}@127.0.0.1:{self.port}/mlflow"
        self._base = self._program.parents[1]  # usr
        self._fill()
        self._accounts = self.write(
            "accounts.sql",
            "CREATE DATABASE IF NOT EXISTS mlflow CHARACTER SET utf8mb4;\n"
            f"CREATE USER IF NOT EXISTS team@127.0.0.1 IDENTIFIED BY '{self.secrets[1]}';\n"
            "GRANT ALL ON mlflow.* TO team@127.0.0.1;\n",
        )

    def _fill(self) -> None:
        """Make the tables it keeps its accounts in."""
        (self.folder / "data").mkdir()
        scripts = [
            (self._base / "share" / "mysql" / f"{name}.sql").read_text()
            for name in ("mysql_system_tables", "mysql_system_tables_data")
        ]
        text = "\n".join(["CREATE DATABASE mysql;", "USE mysql;", *scripts])
        self.call(*self._words(), "--bootstrap", input=text)

    def _words(self) -> list:
        return [
            self._program, "--no-defaults", "--basedir", self._base,
            "--datadir", self.folder / "data", *(["--user=root"] if IS_ROOT else []),
            "--lc-messages-dir", self._base / "share" / "mysql",
            "--innodb-flush-log-at-trx-commit=0",
        ]  # fmt: skip

    def command(self) -> list:
        """Return the words that start it."""
        return [
            *self._words(), "--bind-address=127.0.0.1", f"--port={self.port}",
            "--skip-name-resolve", f"--socket={self.folder}/s", f"--pid-file={self.folder}/pid",
            f"--init-file={self._accounts}",
        ]  # fmt: skip

    def ready(self) -> bool:
        """Tell whether it has come up."""
        return "ready for connections" in self.output() and listens(self.port)
