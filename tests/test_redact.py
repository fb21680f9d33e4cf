"""No password, token or key is left in what is said, stored or given away."""

import time

import pytest

from onward.words.redact import redact, without_login

KEY = "AKIA" + "ABCDEFGH12345678"
SECRET = "hun/ter@2"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("http://me:secret@host:5000/x", "http://***@host:5000/x"),
        ("postgresql+psycopg2://me:a/b@c@db:5432/m", "postgresql+psycopg2://***@db:5432/m"),
        ("redis://:pw@h", "redis://***@h"),
        ("https://token@github.com/me/it", "https://***@github.com/me/it"),
        ("git+https://me:x@h/r.git@v1", "git+https://***@v1"),  # in doubt, too much
        ("http://h/?a=1&password=p%40w&b=2", "http://h/?a=1&password=***&b=2"),
        ("http://h/?token=abc", "http://h/?token=***"),
        ("s3://b/k?X-Amz-Signature=0f&X-Amz-Date=1", "s3://b/k?X-Amz-Signature=***&X-Amz-Date=1"),
        ("X-Amz-Security-Token=abc/+=&x", "X-Amz-Security-Token=***&x"),
        ("access_key=abc secret_access_key = x/y+z", "access_key=*** secret_access_key = ***"),
        ("AccountName=n;AccountKey=ab==;End=x", "AccountName=n;AccountKey=***;End=x"),
        ("BlobEndpoint=h;SharedAccessSignature=sv=1", "BlobEndpoint=h;SharedAccessSignature=***"),
        ("https://a.blob/c?sv=2&sig=a%2Bb%3D&se=3", "https://a.blob/c?sv=2&sig=***&se=3"),
        ("mssql:///?odbc_connect=UID%3Dsa%3BPWD%3Dp%40%3BApp%3Dx",
         "mssql:///?odbc_connect=UID%3Dsa%3BPWD%3D***%3BApp%3Dx"),
        ("DRIVER={x};UID=sa;PWD={a;b};", "DRIVER={x};UID=sa;PWD=***;"),
        ("Authorization: Bearer abcdef", "Authorization: ***"),
        ("{'Authorization': 'Basic bWU6cHc='}", "{'Authorization': '***'}"),
        ("sent bearer abcdefgh12", "sent bearer ***"),
        ('{"password": "a b", "user": "me"}', '{"password": ***, "user": "me"}'),
        (f"key {KEY} is unknown", "key *** is unknown"),
        ("ghp_" + "a1" * 12, "***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nab\n-----END RSA PRIVATE KEY-----",
         "-----BEGIN RSA PRIVATE KEY-----***-----END RSA PRIVATE KEY-----"),
    ],
)  # fmt: skip
def test_a_secret_is_taken_out(text, redacted):
    """What is around it stays, so that a message still tells; twice is as once."""
    assert redact(text) == redacted
    assert redact(redacted) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/experiments/0/runs/4f1c?workflowType=machine_learning",
        "epoch 3  train_loss 0.25000  val_loss 0.5 (best)",
        "train run --resume_run 4f1c --schedule_epochs 40 --fork true",
        "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        "MLFLOW_TRACKING_URI=sqlite:////home/me/mlflow.db",
        "basic authentication failed: token expired",
        "max_tokens=5 design=2 models:/name@alias me@example.org",
    ],
)
def test_what_is_no_secret_stays(text):
    """Addresses, commands and prose are as they were."""
    assert redact(text) == text


def test_an_address_for_a_browser_can_be_opened():
    """It has neither login nor token, and no asterisks in place of them."""
    assert without_login(f"https://me:{SECRET}@host:1/a#/b") == "https://host:1/a#/b"


@pytest.mark.parametrize("piece", ["a_", "x://a:", "password", "http://", "'password':'", "-"])
def test_a_long_text_is_looked_through_in_little_time(piece):
    """Whatever a server sends: no pattern takes the square of its length."""
    start = time.process_time()
    redact(piece * (200_000 // len(piece)))
    assert time.process_time() - start < 10
