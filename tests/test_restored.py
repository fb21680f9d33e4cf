"""The options tag may say what a resume may change, and uses nobody's rights."""

import json

import pytest

from onward.opening.restored import options_of_saved, options_of_unsaved, report_doubted
from onward.opening.source import find_source, find_store
from onward.tracking.names import FINGERPRINT_TAG, OPTIONS_TAG
from train.kind import find_task
from train.tabular.options import Config

SAVED = Config(data="mine.csv", target="y", lr=0.5, upload_data="no", strict=True)
# What uses the rights of whoever resumes, or is none of a resume's.
THEIRS = {
    "data": "/home/victim/private.csv", "register": "their-model", "upload_data": "yes",
    "upload": "off", "strict": False, "lr": 1.0, "seed": 9, "hidden_size": 10_000,
}  # fmt: skip


def tagged(tracking, record, options):
    tracking.client.set_tag(record.run_id, OPTIONS_TAG, json.dumps(options))
    return tracking.get_run(record.run_id)


@pytest.mark.parametrize("name", sorted(THEIRS))
def test_what_is_not_the_tags_to_say_is_the_checkpoints(tracking, record, caplog, name):
    """It is told in a line, and the rest of the tag counts."""
    options = {**SAVED.to_dict(), "epochs": 99, "keep_last": 3, name: THEIRS[name]}
    tagged_run = tagged(tracking, record, options)
    config, doubted = options_of_saved(tagged_run, SAVED)
    assert config == SAVED.replace(epochs=99, keep_last=3)
    report_doubted(tagged_run, doubted, {name: THEIRS[name]})
    assert not caplog.messages, "the command says so itself"
    report_doubted(tagged_run, doubted, {})
    [told] = caplog.messages
    assert told == (
        f"Of run '{record.run_id}' only the tag train.options says "
        f"{name}={str(THEIRS[name]).lower() if name == 'strict' else THEIRS[name]}, and anybody "
        "may have written it: that does not count. Give what you want of it as options"
    )


def test_a_tag_that_agrees_is_not_talked_about(tracking, record, caplog):
    """As it is on each healthy resume."""
    options = SAVED.replace(epochs=99).to_dict()
    config, doubted = options_of_saved(tagged(tracking, record, options), SAVED)
    assert config.epochs == 99
    assert not doubted
    assert not caplog.records


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": "40"}, {"epochs": True}, {"epochs": 0}, {"epochs": 10**30}, {"epochs": None},
        {"epochs": 2.5}, {"checkpoint_minutes": "5"}, {"drop": "abc"}, {"drop": [1]},
        {"drop": [["a"]]}, {"log_model": 1}, {"device": 5}, {"upload": "elsewhere"},
        {"keep_last": [3]}, {"drain_seconds": 10**400}, {"new": 1}, {"new\n": {"a": [1]}},
    ],
    ids=str,
)  # fmt: skip
def test_values_of_a_tag_pass_the_limits_of_options_given(tracking, record, change, caplog):
    """One wrong value, of a wrong type too, and the tag does not count."""
    text = json.dumps({**SAVED.to_dict(), "epochs": 99, **change})
    tracking.client.set_tag(record.run_id, OPTIONS_TAG, text)
    assert options_of_saved(tracking.get_run(record.run_id), SAVED) == (SAVED, {})
    [told] = caplog.messages
    assert "train.options counts as unknown" in told
    assert "\n" not in told


def test_a_resume_takes_its_rights_from_the_checkpoint(tracking, record, commit_to):
    """What `find_source` returns is what training, and publishing the model, go on with."""
    trained = commit_to(record, {1: 0.5})
    tagged(tracking, trained, {**Config().to_dict(), "register": "theirs", "epochs": 30})
    found, _folder, store = find_store(tracking, trained.run_id)
    config = find_source(found, store, None, find_task()).options
    assert (config.register, config.epochs) == (None, 30)


def test_before_the_first_checkpoint_the_params_have_the_say(tracking, record, caplog):
    """They were written once, by the first attempt; the tag can be written again."""
    tracking.log_params(record.run_id, SAVED.in_words(), known=())
    theirs = {**SAVED.to_dict(), "epochs": 99, **THEIRS}
    config, doubted = options_of_unsaved(tagged(tracking, record, theirs), Config)
    own = {name: getattr(SAVED, name) for name in ("data", "register", "upload_data", "upload")}
    assert {name: getattr(config, name) for name in own} == own
    assert (config.epochs, config.strict) == (99, True)
    assert doubted["data"] == "/home/victim/private.csv"


def test_a_param_as_mlflow_run_logs_it_is_the_same_value(tracking, record, caplog):
    """Quoted for a shell."""
    config = SAVED.replace(data="a b.csv")
    tracking.log_params(record.run_id, {**config.in_words(), "data": "'a b.csv'"}, known=())
    assert options_of_unsaved(tagged(tracking, record, config.to_dict()), Config) == (config, {})
    assert not caplog.records


def test_without_params_what_is_not_the_tags_to_say_is_the_default(tracking, record):
    """A run that died within its first second."""
    config, _doubted = options_of_unsaved(
        tagged(tracking, record, {**SAVED.to_dict(), **THEIRS}), Config
    )
    default = Config()
    assert (config.data, config.register) == (default.data, None)
    assert (config.lr, config.hidden_size) == (1.0, 10_000)


def test_a_tag_that_is_none_leaves_nothing_to_start_from(tracking, record):
    """Then the run cannot be resumed, and is said to be none of ours."""
    tracking.set_tags(record.run_id, {FINGERPRINT_TAG: "f" * 64})
    record = tagged(tracking, record, {"epochs": "x"})
    assert options_of_unsaved(record, Config) == (None, {})
