"""Passwords of addresses are in nothing that is stored or told."""

import pytest

from onward.errors import StoreUnavailable
from onward.opening.identity import hide_secrets
from onward.tracking.artifacts import Artifacts
from train.tabular.options import Config

ADDRESS = "https://me:hun/ter@2@host/x?token=hunter3"


def test_what_a_launch_wrote_is_mended(tracking, caplog):
    """`mlflow run https://me:password@…` stores that address in tags; params it warns of."""
    tags = {"mlflow.source.name": ADDRESS, "mlflow.gitRepoURL": ADDRESS, "mine": ADDRESS}
    launched = tracking.create_run("0", "a run", {**tags, "mlflow.source.git.commit": "4f1c"})
    tracking.log_params(launched.run_id, {"data": ADDRESS, "epochs": "3"}, known=())
    hide_secrets(tracking, tracking.get_run(launched.run_id))
    after = tracking.get_run(launched.run_id).tags
    assert (
        after["mlflow.source.name"] == after["mlflow.gitRepoURL"] == "https://***@host/x?token=***"
    )
    assert after["mine"] == ADDRESS, "it is not MLflow's"
    assert after["mlflow.source.git.commit"] == "4f1c"
    [warning] = caplog.records
    assert "-P data looks like a password" in warning.getMessage()


def test_a_launch_without_secrets_is_left_alone(tracking, record, caplog):
    """Most are."""
    before = tracking.get_run(record.run_id)
    hide_secrets(tracking, before)
    assert tracking.get_run(record.run_id) == before
    assert not caplog.records


def test_params_hold_no_password():
    """They are written once, and shown to everybody."""
    assert Config(data=ADDRESS, target="y").in_words()["data"] == "https://***@host/x?token=***"


@pytest.mark.parametrize("verb", ["list", "upload", "download", "delete"])
def test_an_error_of_the_artifact_store_tells_no_password(tmp_path, monkeypatch, verb):
    """Whatever address the store has, and its library quotes."""

    class Repository:
        def __getattr__(self, name):
            raise OSError(f"cannot reach {ADDRESS}")

    artifacts = Artifacts(str(tmp_path))
    monkeypatch.setattr(artifacts, "_repository", Repository())
    monkeypatch.setattr(artifacts, "folder", None)
    monkeypatch.setattr(artifacts, "uri", ADDRESS)
    file = tmp_path / "file"
    file.write_text("")
    calls = {
        "list": [""], "upload": [file, "x"], "download": ["x/file", file, 9], "delete": ["x"]
    }  # fmt: skip
    with pytest.raises(StoreUnavailable, match="host/x") as caught:
        getattr(artifacts, verb)(*calls[verb])
    assert "hun" not in str(caught.value)
    assert "ter" not in str(caught.value)
