"""Options: text and back, limits, what a resume may change, and what a fingerprint covers."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.errors import UsageError
from onward.options.declare import OnResume, options_of, parse, to_text
from onward.options.run_options import Config, Launch

CONFIG_OPTIONS = [
    "epochs", "batch_size", "accumulation_steps", "lr", "weight_decay", "schedule",
    "schedule_epochs", "max_grad_norm", "early_stopping", "max_minutes", "precision", "seed",
    "threads", "device",
    "hidden_size", "num_layers", "dropout",
    "data", "target", "drop", "keep_index", "odd_values", "val_fraction", "split_seed",
    "target_scale", "upload_data",
    "strict", "checkpoint_freq", "checkpoint_minutes", "checkpoint_steps", "keep_last", "keep_best",
    "upload", "max_spool_bytes", "drain_seconds", "grace_seconds", "log_model", "register",
    "upload_diff",
]  # fmt: skip
LAUNCH_OPTIONS = [
    "resume_run", "resume_epoch", "resume_from", "resume_from_weights_only", "checkpoint_key",
    "take_over", "fork", "run_name", "tags", "description",
]  # fmt: skip
RESUME_MAY_CHANGE = {
    "epochs", "early_stopping", "max_minutes", "device", "upload_data",
    "strict", "checkpoint_freq", "checkpoint_minutes", "checkpoint_steps", "keep_last", "keep_best",
    "upload", "max_spool_bytes", "drain_seconds", "grace_seconds", "log_model", "register",
    "upload_diff",
}  # fmt: skip
NOT_EVEN_A_FORK_MAY_CHANGE = {
    "hidden_size",
    "num_layers",
    "target",
    "drop",
    "keep_index",
    "odd_values",
    "target_scale",
}
# Another value than the default for every option.
OTHER = {
    "epochs": 7, "batch_size": 64, "accumulation_steps": 2, "lr": 0.5, "weight_decay": 0.0,
    "schedule": "none", "schedule_epochs": 9, "max_grad_norm": 0.0, "early_stopping": 3,
    "max_minutes": 1.5,
    "precision": "bf16", "seed": 1, "threads": 2, "device": "cpu", "hidden_size": 8,
    "num_layers": 1, "dropout": 0.5, "data": "other.csv", "target": "y", "drop": ("a", "b"),
    "keep_index": True, "odd_values": "text",
    "val_fraction": 0.5, "split_seed": 1, "target_scale": "log", "upload_data": "no",
    "strict": True, "checkpoint_freq": 2, "checkpoint_minutes": 0.5, "checkpoint_steps": 100,
    "keep_last": 2, "keep_best": 3, "upload": "sync", "max_spool_bytes": 0, "drain_seconds": 1.5,
    "grace_seconds": 5.0, "log_model": False, "register": "prices",
    "upload_diff": "no",
}  # fmt: skip
OF_THE_DATA = {
    "data",
    "target",
    "drop",
    "keep_index",
    "odd_values",
    "val_fraction",
    "split_seed",
    "target_scale",
}
CHOSEN_BY_THE_MACHINE = {"threads"}

plain_text = st.text(
    st.characters(blacklist_categories=["C", "Z"], blacklist_characters=","), min_size=1
).filter(lambda text: text.lower() != "none")


@st.composite
def options(draw, config_class):
    """Draw (name, value) of any option, within its limits."""
    name = draw(st.sampled_from(sorted(options_of(config_class))))
    field, opt = options_of(config_class)[name]
    kind = str(field.type)
    if opt.choices:
        value = st.sampled_from(opt.choices)
    elif kind.startswith("int"):
        value = st.integers(int(opt.minimum), int(opt.maximum or 2**63))
    elif kind.startswith("float"):
        value = st.floats(opt.minimum, opt.maximum, allow_infinity=False)
    elif kind.startswith("bool"):
        value = st.booleans()
    elif kind.startswith("tuple"):
        value = st.lists(plain_text).map(tuple)
    else:
        value = plain_text
    return name, draw(st.none() | value if "None" in kind else value)


def test_no_option_appears_by_accident():
    """The options are these, in this order: adding one means adding it here."""
    assert list(options_of(Config)) == CONFIG_OPTIONS
    assert list(options_of(Launch)) == LAUNCH_OPTIONS


@given(st.sampled_from([Config, Launch]).flatmap(lambda c: st.tuples(st.just(c), options(c))))
def test_text_and_back_gives_the_same_value(drawn):
    """`parse` undoes `to_text` for every value that an option can have."""
    config_class, (name, value) = drawn
    assert parse(config_class, name, to_text(value)) == value


@given(st.lists(options(Config)))
def test_dict_and_back_gives_an_equal_config(drawn):
    """`from_dict` undoes `to_dict`, also by way of JSON, and tuples stay tuples."""
    config = Config(**dict(drawn))
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(Config.from_dict(config.to_dict())) == hash(config)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("epochs", " 12 ", 12),
        ("lr", "1e-3", 1e-3),
        ("drop", "a, b ,,c", ("a", "b", "c")),
        ("drop", "", ()),
        ("target", "None", None),
        ("schedule_epochs", "none", None),
        ("fork", "YES", True),
        ("fork", "0", False),
    ],
)
def test_parse_takes_what_people_type(name, text, value):
    """Blanks, upper case, empty lists and "none" mean what they look like."""
    config_class = Launch if name in LAUNCH_OPTIONS else Config
    assert parse(config_class, name, text) == value


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("epochs", "ten", "a whole number"),
        ("epochs", "1.5", "a whole number"),
        ("schedule_epochs", "x", "a whole number"),
        ("lr", "fast", "a number"),
        ("fork", "maybe", "true or false"),
    ],
)
def test_parse_names_the_text_it_cannot_use(name, text, wanted):
    """Text of the wrong type is refused with the option, the text and what is wanted."""
    config_class = Launch if name in LAUNCH_OPTIONS else Config
    with pytest.raises(UsageError, match=f"^{name}={text!r} is not {wanted}"):
        parse(config_class, name, text)


@pytest.mark.parametrize("name", ["epochs", "target", "schedule_epochs", "fork", "data"])
@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_value_is_refused(name, text):
    """An unset variable of the shell is not taken for a value, where empty means nothing."""
    config_class = Launch if name in LAUNCH_OPTIONS else Config
    with pytest.raises(UsageError, match=f"^{name}= has no value: leave it out"):
        parse(config_class, name, text)


def beyond_limits():
    """Return (name, value just outside its limits) for every limit."""
    found = []
    for name, (field, opt) in options_of(Config).items():
        is_int = str(field.type).startswith("int")
        for limit, direction in ((opt.minimum, -1), (opt.maximum, 1)):
            if limit is not None:
                beyond = int(limit) + direction
                if not is_int:
                    beyond = math.nextafter(limit, direction * math.inf)
                found.append((name, beyond))
    return found


@pytest.mark.parametrize(("name", "value"), beyond_limits())
def test_a_value_outside_its_limits_is_refused_by_name(name, value):
    """One more or one less than allowed is refused, with the option and the value."""
    with pytest.raises(UsageError) as caught:
        Config(**{name: value})
    assert str(caught.value).startswith(f"{name}={value} is too ")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "name", ["lr", "weight_decay", "max_grad_norm", "dropout", "drain_seconds"]
)
def test_a_number_that_is_not_finite_is_refused(name, value):
    """NaN, for which no comparison holds, and infinity are outside every limit."""
    with pytest.raises(UsageError, match=f"{name}={value}"):
        Config(**{name: value})


@pytest.mark.parametrize("name", [n for n, (_, o) in options_of(Config).items() if o.choices])
def test_an_unknown_choice_is_refused_with_the_known_ones(name):
    """A word that is no choice is refused, and the choices are listed."""
    with pytest.raises(UsageError, match=f"{name}='x' is not one of ") as caught:
        Config(**{name: "x"})
    assert all(choice in str(caught.value) for choice in options_of(Config)[name][1].choices)


def test_replace_validates():
    """A copy with a change is checked like a new config."""
    assert Config().replace(epochs=3) == Config(epochs=3)
    with pytest.raises(UsageError, match="epochs=0"):
        Config().replace(epochs=0)


def test_options_of_a_newer_version_are_refused_by_name():
    """An option that this version does not know is not dropped without a word."""
    with pytest.raises(UsageError, match="does not know: sharpness, zeal"):
        Config.from_dict({**Config().to_dict(), "zeal": 1, "sharpness": 2})


def test_options_of_an_older_version_get_their_defaults():
    """A config from before an option existed is still read."""
    assert Config.from_dict({"epochs": 3}) == Config(epochs=3)


def test_what_a_resume_may_change():
    """Only options that leave the training the same are free on a resume."""
    kinds = {name: opt.on_resume for name, (_, opt) in options_of(Config).items()}
    assert {n for n, kind in kinds.items() if kind is OnResume.CHANGE} == RESUME_MAY_CHANGE
    assert {n for n, k in kinds.items() if k is OnResume.NEVER} == NOT_EVEN_A_FORK_MAY_CHANGE


@pytest.mark.parametrize("name", CONFIG_OPTIONS)
def test_the_fingerprint_changes_with_what_may_not_change(name):
    """An option changes the fingerprint if and only if it makes another training.

    Options of the data are left out: the data's own fingerprint covers them. So is what a machine
    chooses by itself.
    """
    changed = Config(**{name: OTHER[name]})
    assert changed != Config()
    differs = changed.fingerprint("tabular", "d1") != Config().fingerprint("tabular", "d1")
    assert differs == (name not in RESUME_MAY_CHANGE | OF_THE_DATA | CHOSEN_BY_THE_MACHINE)


def test_the_fingerprint_covers_task_and_data():
    """The same options on another table, or for another task, are another training."""
    prints = {Config().fingerprint(task, data) for task in ("a", "b") for data in ("c", "d")}
    assert len(prints) == 4
    assert Config().fingerprint("a", "c") in prints


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resume_epoch": "5"}, "resume_epoch needs resume_run"),
        ({"fork": True}, "fork needs resume_run"),
        ({"resume_from": "a.pth", "fork": True}, "fork needs resume_run"),
        ({"resume_run": "r", "resume_from": "a.pth"}, "either resume_run or resume_from"),
        ({"resume_from_weights_only": True}, "resume_from_weights_only needs resume_from"),
        ({"resume_run": "r", "resume_epoch": "five"}, "resume_epoch='five' is not an epoch"),
        ({"resume_run": "r", "resume_epoch": "-1"}, "resume_epoch='-1' is not an epoch"),
        ({"resume_run": "r", "resume_epoch": "global_step_x"}, "'global_step_x' is not an epoch"),
        ({"resume_run": "r", "resume_epoch": "global_step_"}, "'global_step_' is not an epoch"),
        ({"resume_run": "r", "resume_epoch": "global_step_best"}, "such as 'global_step_4321'"),
        ({"resume_run": "r", "resume_epoch": "epoch_4"}, "resume_epoch='epoch_4' is not an epoch"),
    ],
)
def test_launch_refuses_what_does_not_go_together(options, message):
    """Options that need or exclude each other are refused, and both are named."""
    with pytest.raises(UsageError, match=message):
        Launch(**options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"resume_from": "a.pth"},
        {"resume_from": "a.pth", "resume_from_weights_only": True},
        {"resume_run": "latest"},
        {"resume_run": "r", "resume_epoch": "best", "fork": True},
        {"resume_run": "r", "resume_epoch": "latest"},
        {"resume_run": "r", "resume_epoch": "12"},
        {"resume_run": "r", "resume_epoch": "global_step_4321"},
    ],
)
def test_launch_takes_what_goes_together(options):
    """The documented ways to start are accepted."""
    launch = Launch(**options)
    assert all(getattr(launch, name) == value for name, value in options.items())


def test_every_option_has_a_sentence_of_help():
    """`--help` and the tables of docs/options.md are made from these sentences."""
    for config_class in (Config, Launch):
        for name, (_, opt) in options_of(config_class).items():
            assert opt.help.endswith((".", "…")), name
            assert opt.help[0].isupper(), name
