"""What lies behind an error of MLflow, a store's client or a database: looked up, not told."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlparse

# By the package that cannot be imported; of any other the name is the same.
_PIP = {
    "azure": "azure-storage-blob azure-storage-file-datalake azure-identity",
    "botocore": "boto3",
    "databricks": "databricks-sdk",
    "google": "google-cloud-storage",
    "MySQLdb": "mysqlclient",
    "paramiko": "'paramiko<4' pysftp",
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "pysftp": "'paramiko<4' pysftp",
    "pyodbc": "pyodbc",
    "requests_auth_aws_sigv4": "requests-auth-aws-sigv4",
}
_HTML = re.compile(r"<(?:!doctype|html|head|body)\b.*?(?:</html>|\Z)", re.DOTALL | re.IGNORECASE)
_TITLE = re.compile(r"<(title|h1)\b[^>]*>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
_STATUS = re.compile(
    r"\b([45]\d\d) (?:Client|Server) Error|error code ([45]\d\d) != 2\d\d|occurred \((403|401)\)"
)
_BY_NAME = {
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "AccessDenied": 403,
    "InvalidAccessKeyId": 403,
    "SignatureDoesNotMatch": 403,
    "ExpiredToken": 403,
    "AuthorizationFailure": 403,
}


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and those that it was raised from, each once."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that a server or store has answered with, None if it has not."""
    for cause in chain(error):
        answer = getattr(cause, "response", None)
        if isinstance(answer, dict):  # of botocore
            code = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = code or _BY_NAME.get(str(answer.get("Error", {}).get("Code")))
        else:
            places = ((answer, "status_code"), (cause, "status_code"), (cause, "code"))
            codes = [getattr(holder, name, None) for holder, name in places]
            code = next((code for code in codes if isinstance(code, int) and code), None)
        code = code or _BY_NAME.get(str(getattr(cause, "error_code", None)))
        if isinstance(code, int) and 400 <= code < 600:
            return int(code)
        found = _STATUS.search(str(cause))
        if found:
            return int(next(filter(None, found.groups())))
    return None


def missing_package(error: BaseException) -> str | None:
    """Return what `pip install` is to be given, None if nothing is missing."""
    for cause in chain(error):
        if isinstance(cause, ImportError) and cause.name:
            name = cause.name.partition(".")[0]
            if isinstance(cause, ModuleNotFoundError) or name in _PIP:  # or another version of it
                return _PIP.get(name, name)
    return None


def proxy_in_between(error: BaseException, uri: str) -> tuple[str, str] | None:
    """Return the (variable, address) of the proxy that failed on the way to `uri`, or None."""
    if not any("ProxyError" in f"{type(cause).__name__} {cause}" for cause in chain(error)):
        return None
    scheme = urlparse(uri).scheme
    proxies = urllib.request.getproxies()
    for name in (scheme, "all"):
        if name in proxies:
            return f"{name.upper()}_PROXY", proxies[name]
    return None


def without_html(text: str) -> str:
    """Return `text` with a page in it, such as a proxy's error page, cut down to its title.

    >>> without_html("it said: <html><head><title>413 Too Large</title></head>…</html>")
    'it said: 413 Too Large'
    """

    def title(page: re.Match[str]) -> str:
        found = _TITLE.search(page[0])
        return re.sub(r"<[^>]*>", " ", found[2]).strip() if found else "an HTML page"

    return _HTML.sub(title, text)
