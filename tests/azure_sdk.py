"""What of Azure's SDK MLflow's own repository calls, with the blobs in a dict."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

URI = "wasbs://box@account.blob.core.windows.net/0/run/artifacts"


class ResourceNotFoundError(Exception):
    """As the SDK has it."""


class BlobPrefix(SimpleNamespace):
    """As the SDK has it: what lies deeper."""


class Blobs:
    """A service with one container."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    def get_container_client(self, container: str) -> Blobs:
        return self

    def upload_blob(self, name: str, file, overwrite: bool, timeout: float) -> None:
        self.content[name] = file.read()

    def list_blobs(self, name_starts_with: str):
        names = sorted(n for n in self.content if n.startswith(name_starts_with))
        return [SimpleNamespace(name=n, size=len(self.content[n])) for n in names]

    def walk_blobs(self, name_starts_with: str):
        seen = set()
        for blob in self.list_blobs(name_starts_with):
            head, slash, _ = blob.name.removeprefix(name_starts_with).partition("/")
            if not slash:
                yield blob
            elif head not in seen:
                seen.add(head)
                yield BlobPrefix(name=f"{name_starts_with}{head}/")

    def delete_blob(self, name: str) -> None:
        if name not in self.content:
            raise ResourceNotFoundError("The specified blob does not exist.")
        del self.content[name]

    def download_blob(self, name: str):
        if name not in self.content:
            raise ResourceNotFoundError("The specified blob does not exist.")
        return SimpleNamespace(readinto=lambda file: file.write(self.content[name]))


def install(monkeypatch) -> Blobs:
    """Let MLflow import this in place of the SDK; return the blobs of every client."""
    blobs = Blobs()
    modules = {
        "azure": {},
        "azure.core": {},
        "azure.core.exceptions": {"ResourceNotFoundError": ResourceNotFoundError},
        "azure.storage": {},
        "azure.storage.blob": {
            "BlobPrefix": BlobPrefix,
            "BlobServiceClient": lambda **options: blobs,
        },
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("AZURE_STORAGE_ACCESS_KEY", "secret")
    return blobs
