"""A run is named, tagged and described by whoever starts it, and by who resumes it."""

import re

import pytest
from support import SMALL, cli, write_table

from onward.errors import UsageError
from onward.options.request import Launch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tags": ("team",)}, "tags: 'team': it is to be name=value"),
        ({"tags": ("=x",)}, "tags: '=x': it is to be name=value"),
        ({"tags": ("a\nb=x",)}, "it is to be name=value"),
        ({"tags": ("mlflow.user=root",)}, "names that begin with mlflow. or train. are taken"),
        ({"tags": ("a=b", "train.epoch=9")}, "tags: 'train.epoch=9': names that begin with"),
        ({"tags": ("a=" + "b" * 3001,)}, "it is longer than 3000 characters"),
        ({"run_name": "n" * 251}, "run_name is longer than 250 characters"),
        ({"description": "d" * 3001}, "description is longer than 3000 characters"),
    ],
)
def test_names_that_cannot_be_used_are_refused(options, message):
    """Before anything is opened: MLflow would refuse them later, or cut them."""
    with pytest.raises(UsageError, match=re.escape(message)):
        Launch(**options)


def test_tags_are_what_was_given():
    """A value may hold an equals sign; no password is in a description."""
    launch = Launch(tags=("team=a", "note=x=y"), description="see http://me:pw@host")
    assert launch.run_tags() == {
        "team": "a", "note": "x=y", "train.description": "see http://***@host"
    }  # fmt: skip
    assert Launch().run_tags() == {}


@pytest.mark.slow
def test_a_run_has_the_names_it_was_given(tracking, tmp_path, monkeypatch):
    """A new run by option or variable, a resumed one by option only; its fingerprint stays."""
    table = ["--data", write_table(tmp_path / "t.csv", 200), "--target", "price", *SMALL]
    monkeypatch.setenv("MLFLOW_RUN_NAME", "of the environment")
    assert cli("run", *table, "--epochs", 1).exit_code == 0
    [run] = tracking.search_runs("0")
    assert run.name == "of the environment"
    monkeypatch.setenv("MLFLOW_RUN_NAME", "another")
    resume = ["--resume_run", run.run_id, "--epochs", 2]
    assert cli("run", *resume).exit_code == 0
    assert tracking.get_run(run.run_id).name == "of the environment"
    names = ["--run-name", "mine [x](y)", "--tags", "team=a,site=b", "--description", "**Why**: x"]
    resume[-1] = 3
    assert cli("run", *resume, *names).exit_code == 0
    after = tracking.get_run(run.run_id)
    assert (after.name, after.tags["team"], after.tags["site"]) == ("mine [x](y)", "a", "b")
    note = after.tags["mlflow.note.content"]
    assert note.startswith("**Why**: x\n\n---\n\n**finished**: epoch 3")
    assert after.tags["train.fingerprint"] == run.tags["train.fingerprint"]
    assert cli("run", *table, "--epochs", 1, "--run_name", "by option").exit_code == 0
    assert {r.name for r in tracking.search_runs("0")} == {"mine [x](y)", "by option"}
