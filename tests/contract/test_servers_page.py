"""The commands of docs/servers.md start what they say, one after the other."""

import re
import subprocess
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from servers.programs import free_ports
from servers.tracking import Nginx
from support import (
    ROOT,
    SMALL,
    client,
    environment,
    group_of,
    start_logged,
    wait_for,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # it starts servers

PAGE = (ROOT / "docs" / "servers.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
INSTALL, SERVER, USER, TRAIN, ONE_MACHINE = (text for kind, text in BLOCKS if kind == "sh")
[INI] = (text for kind, text in BLOCKS if kind == "ini")
[SITE] = (text for kind, text in BLOCKS if kind == "nginx")
PASSWORDS = {"<admin-password>": "of-the-administrator", "<password-of-anna>": "of-anna-of-anna"}


def test_what_is_to_be_installed_is_what_the_tests_have():
    """The server's packages, and the extras of its clients."""
    words = [word.strip("'") for word in INSTALL.split()[2:]]
    for requirement in map(Requirement, words):
        assert requirement.specifier.contains(version(requirement.name)), requirement
    extras = set(re.findall(r"pip install '\.\[(\w+)\]'", PAGE))
    assert extras == {"s3", "gcs", "azure", "sftp"}


class Site:
    """What the page says, with the names of this test in it.

    Args:
        folder: For the files of the server.
    """

    def __init__(self, folder, postgres, s3):
        [self.port] = free_ports(1)
        self.folder = folder
        (folder / "auth.ini").write_text(
            INI.replace("/var/lib/mlflow/auth.db", f"{folder}/auth.db")
        )
        site = SITE.replace("listen 443", "listen 127.0.0.1:{port}").replace("5000", "{server}")
        self.nginx = Nginx(folder / "nginx", self.port, site.replace("/etc/mlflow", "{folder}"))
        key, secret = (
            s3.variables[f"AWS_{name}"] for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")
        )
        self._names = {
            "mlflow:<database-password>@<database>/mlflow": postgres.uri.partition("//")[2],
            "https://<store>": s3.address, "s3://<bucket>": s3.uri,
            "<key>": key, "<secret>": secret, **PASSWORDS, "<any-words>": "words",
            "mlflow.example.com": f"127.0.0.1:{self.nginx.port}",
            "/etc/mlflow/auth.ini": str(folder / "auth.ini"), "/var/lib/mlflow": str(folder),
            "/etc/mlflow/certificate.pem": str(self.nginx.certificate),
            "--port 5000": f"--port {self.port}", "--workers 4": "--workers 1",
        }  # fmt: skip

    def words(self, text):
        """Return the commands of a block."""
        for name, value in self._names.items():
            text = text.replace(name, value)
        assert "<" not in text
        return text

    def serve(self, text):
        """Start the server by a block, and wait until it answers."""
        env = environment(self.folder, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
        command = ["bash", "-ec", self.words(text)]
        process = start_logged(
            command, self.folder / "output", cwd=self.folder, env=env, start_new_session=True
        )
        asked = ["curl", "-fs", "--cacert", self.nginx.certificate, f"{self.nginx.address}/health"]

        def answers():
            assert process.poll() is None, process.output.read_text()
            return subprocess.run(asked, capture_output=True).returncode == 0

        return process, answers

    def run(self, text):
        """Run a block to its end; return what is printed."""
        env = environment(self.folder / "home")
        done = subprocess.run(
            ["bash", "-ec", self.words(text)], cwd=self.folder, env=env, capture_output=True,
            text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def site(tmp_path, postgres, s3):
    """The page, and nginx as it says."""
    found = Site(tmp_path, postgres, s3)
    found.nginx.start()
    yield found
    found.nginx.close()


def test_the_page_for_a_team(site, table, monkeypatch):
    """Server, proxy, user, training: the run is hers, its files are in the bucket, and no password
    is told. The server of one machine starts by the lines that it is told to."""
    process, answers = site.serve(SERVER)
    with group_of(process):
        wait_for(answers)
        site.run(USER)
        words = f"train run --epochs 4 --data {table} --target price {' '.join(SMALL)}"
        printed = site.run(TRAIN.replace("train run --epochs 4", words))
        assert "FINISHED after epoch 4" in printed
        variables = dict(re.findall(r"(MLFLOW_\w+)='?([^'\s]*)", site.words(TRAIN)))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        api = client(site.nginx.address)
        [run] = api.search_runs([api.get_experiment_by_name("annas-runs").experiment_id])
        assert run.data.tags["mlflow.user"]
        assert api.list_artifacts(run.info.run_id, "checkpoints/epoch_4")
        told = printed + process.output.read_text() + str(run.to_dictionary())
        for secret in PASSWORDS.values():
            assert secret not in told
    lines = SERVER.splitlines(keepends=True)
    process, answers = site.serve(ONE_MACHINE + "".join(lines[4:]))
    with group_of(process):
        wait_for(answers)
    assert (site.folder / "mlflow.db").exists()
