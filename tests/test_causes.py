"""What lies behind an error: a refusal, a dead proxy, a page in place of an answer."""

import json
import os
import socket

import pytest
from support import cli

from onward.errors import RequestTooLarge, StoreRefused, StoreUnavailable
from onward.tracking.artifacts import Artifacts
from onward.tracking.causes import missing_package, status_of, without_html
from onward.tracking.client import Tracking
from onward.tracking.translate import translated


class Answered(Exception):
    """As the clients of stores raise it."""

    def __init__(self, message="no", **fields):
        super().__init__(message)
        vars(self).update(fields)


class Response:
    status_code = 403


BOTO = {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
REFUSED = {
    "botocore": Answered("An error occurred (AccessDenied)", response=BOTO),
    "requests": Answered(response=Response()),
    "azure": Answered(status_code=403),
    "google": Answered(code=403),
    "signed": Answered("403 Client Error: Forbidden for url: https://b/x?X-Amz-Signature=s3cret"),
}


@pytest.mark.parametrize("store", REFUSED)
def test_a_refusal_of_the_artifact_store_is_told_as_one_of_it(tracking, store):
    """Not of the tracking server, whose login would change nothing."""
    with pytest.raises(StoreRefused) as caught, translated("uploading 'a'", store="s3://me:pw@b/0"):
        raise REFUSED[store]
    told = str(caught.value)
    assert told.startswith("uploading 'a' was refused by s3://***@b/0 with 403: the artifact store")
    assert "MLFLOW_TRACKING" not in told
    assert "s3cret" not in told


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Answered("API request to endpoint /api failed with error code 413 != 200. …"), 413),
        (Answered("An error occurred (403) when calling the HeadObject operation"), 403),
        (Answered("something 403 else"), None),
        (Answered(code="e3q8"), None),
        (OSError(403, "no status"), None),
    ],
)
def test_a_status_is_found_where_there_is_one(error, status):
    """A number in a text is none."""
    assert status_of(error) == status


def test_the_status_of_what_an_error_was_raised_from():
    """Libraries wrap each other's errors."""
    outer = RuntimeError("upload failed")
    outer.__cause__ = Answered(status_code=413)
    outer.__cause__.__context__ = outer
    assert status_of(outer) == 413


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModuleNotFoundError("No module named 'psycopg'", name="psycopg"), "'psycopg[binary]'"),
        (ModuleNotFoundError("No module named 'x.y'", name="x.y"), "x"),
        # What pysftp takes from paramiko is gone since version 4.
        (ImportError("cannot import 'DSSKey'", name="paramiko"), "'paramiko<4' pysftp"),
        (ImportError("cannot import 'a'", name="somebody"), None),
        (OSError("no"), None),
    ],
)
def test_a_package_that_is_missing_or_of_another_version_is_named(error, told):
    """As pip is to be given it."""
    assert missing_package(error) == told


PAGE = (
    "<!DOCTYPE html>\n<html><head><title>413 Request Entity Too Large</title></head>\n"
    "<body><h1>413</h1><script>alert(1)</script></body></html>\n"
)


@pytest.mark.parametrize(
    ("page", "told"),
    [
        (f"body: '{PAGE}'", "body: '413 Request Entity Too Large\n'"),
        ("<html><h1>Who <b>asks</b>?</h1>", "Who  asks ?"),
        ("<html><body>", "an HTML page"),
        ("a < b and <c>", "a < b and <c>"),
    ],
)
def test_of_a_page_only_the_title_is_told(page, told):
    """The message is a line for a person."""
    assert without_html(page) == told


@pytest.mark.parametrize("code", [400, 404, 413, 500, 502])
def test_no_page_of_a_server_stands_in_a_message(refusing, code):
    """Whatever the code: one line without a tag."""
    refusing(code, PAGE, "text/html")
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    with pytest.raises(StoreUnavailable) as caught:
        Tracking().probe()
    told = str(caught.value)
    assert "<" not in told
    assert "script" not in told
    assert "\n" not in told


def test_what_is_too_large_for_a_proxy_is_told_as_that(refusing, tmp_path):
    """Waiting would not help: the setting is named."""
    uri = refusing(413, PAGE, "text/html")
    (tmp_path / "a.txt").write_text("x")
    artifacts = Artifacts("mlflow-artifacts:/0/r/artifacts", os.environ["MLFLOW_TRACKING_URI"])
    with pytest.raises(RequestTooLarge, match="client_max_body_size") as caught:
        artifacts.upload(tmp_path / "a.txt", "logs")
    assert f"was refused by {uri} with 413" in str(caught.value)


@pytest.fixture
def closed():
    """Return an address of this machine at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_dead_proxy_is_named(closed, monkeypatch, variable):
    """The server behind it may be well: starting it would not help."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, f"http://me:secret@{closed}")
    os.environ["MLFLOW_TRACKING_URI"] = "http://mlflow.invalid:5000"
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    done = cli("list")
    assert done.exit_code == 7
    assert f"the proxy http://***@{closed} of {variable.upper()}" in done.stderr
    assert "NO_PROXY" in done.stderr
    assert "secret" not in done.stderr
    assert "start it" not in done.stderr


def test_a_certificate_that_is_not_trusted_is_told_as_that(tracking):
    """With the variable that names the right one."""
    error = Answered("Max retries exceeded (Caused by SSLError(SSLCertVerificationError(1, '…')))")
    with (
        pytest.raises(StoreRefused, match="MLFLOW_TRACKING_SERVER_CERT_PATH"),
        translated("asking"),
    ):
        raise error


def test_a_json_error_keeps_its_words(refusing):
    """What the server says of itself is told."""
    body = json.dumps({"error_code": "INVALID_STATE", "message": "the disk is full"})
    refusing(400, body, "application/json")
    with pytest.raises(StoreUnavailable, match="the disk is full"):
        Tracking().probe()
