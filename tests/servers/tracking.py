"""MLflow's server before those databases and stores, with a login, or behind nginx."""

from __future__ import annotations

import subprocess
from pathlib import Path

from support import Server

from servers.programs import IS_ROOT, Missing, Program, find, free_ports, listens
from servers.stores import needs

LOGIN = {"MLFLOW_TRACKING_USERNAME": "anna", "MLFLOW_TRACKING_PASSWORD": "annas-5ecret-password"}


def login_server(folder: Path) -> Server:
    """Return a server that asks for a password: MLflow's own `basic-auth`."""
    needs("flask_wtf")
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "auth.ini"
    config.write_text(
        "[mlflow]\ndefault_permission = NO_PERMISSIONS\n"
        f"database_uri = sqlite:///{folder}/auth.db\n"
        f"admin_username = {LOGIN['MLFLOW_TRACKING_USERNAME']}\n"
        f"admin_password = {LOGIN['MLFLOW_TRACKING_PASSWORD']}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 300\n"  # else each call costs 0.2 s
    )
    variables = {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-the-forms-of-the-login",
    }
    server = Server(folder, options=("--app-name", "basic-auth"), variables=variables)
    server.variables, server.secrets = LOGIN, (LOGIN["MLFLOW_TRACKING_PASSWORD"],)
    return server


PATH = "/team/mlflow"
SITE = f"""
server {{
    listen 127.0.0.1:{{port}} ssl;
    ssl_certificate {{folder}}/certificate.pem;
    ssl_certificate_key {{folder}}/key.pem;
    location {PATH}/ {{
        proxy_pass http://127.0.0.1:{{server}}/;
        proxy_set_header Host $http_host;
    }}
}}
"""


class Nginx(Program):
    """nginx before a server: below a path, by TLS with a certificate of its own, else as it comes.

    Args:
        folder: Its files.
        port: The server's.
        site: Its block `server` in place of that, with {port}, {folder} and {server} in it.
    """

    def __init__(self, folder: Path, port: int, site: str = SITE) -> None:
        super().__init__(folder)
        self._program = find("nginx")
        [self.port] = free_ports(1)
        path = PATH if site == SITE else ""
        self.address = f"https://127.0.0.1:{self.port}{path}"
        self.certificate = self.folder / "certificate.pem"
        self._make_certificate()
        self.variables = {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(self.certificate)}
        for word, value in (("port", self.port), ("folder", self.folder), ("server", port)):
            site = site.replace(f"{{{word}}}", str(value))
        self._config = self.write("nginx.conf", self._text(site))

    def _make_certificate(self) -> None:
        words = [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", self.folder / "key.pem", "-out", self.certificate,
        ]  # fmt: skip
        try:
            subprocess.run([*map(str, words)], check=True, capture_output=True)
        except FileNotFoundError as error:
            raise Missing("there is no openssl") from error

    def _text(self, site: str) -> str:
        temporary = "\n".join(
            f"  {kind}_temp_path {self.folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        return f"""
{"user root;" if IS_ROOT else ""}
daemon off;
worker_processes 1;
pid {self.folder}/pid;
error_log stderr;
events {{}}
http {{
  access_log {self.folder}/access.log;
{temporary}
{site}
}}
"""

    def command(self) -> list:
        """Return the words that start it in the foreground."""
        return [self._program, "-e", "stderr", "-c", self._config, "-p", self.folder]

    def ready(self) -> bool:
        """Tell whether it takes connections."""
        return listens(self.port)
