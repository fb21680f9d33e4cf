"""Options: text and back, limits, what a resume may change, and what a fingerprint covers."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.errors import UsageError
from onward.monitor import DIRECTIONS
from onward.options.declare import DATA, OnResume, option, options_of, parse, to_text
from onward.options.merged import merged
from onward.options.request import Launch
from onward.options.run_options import RunOptions
from train.loop_options import LoopOptions
from train.tabular.options import Config

CONFIG_OPTIONS = [
    "epochs", "early_stopping", "monitor", "max_minutes", "seed", "threads", "device",
    "strict", "checkpoint_freq", "checkpoint_minutes", "checkpoint_steps", "keep_last", "keep_best",
    "upload", "max_spool_bytes", "drain_seconds", "grace_seconds", "rank_minutes", "log_model",
    "register",
    "upload_diff",
    "task", "batch_size", "shuffle_window", "accumulation_steps", "strategy", "parts", "lr",
    "weight_decay", "schedule",
    "schedule_epochs", "max_grad_norm", "precision",
    "hidden_size", "num_layers", "dropout",
    "data", "target", "drop", "keep_index", "odd_values", "val_fraction", "split_seed",
    "target_scale", "upload_data",
]  # fmt: skip
LAUNCH_OPTIONS = [
    "resume_run", "resume_epoch", "resume_from", "resume_from_weights_only", "checkpoint_key",
    "take_over", "fork", "run_name", "tags", "description",
]  # fmt: skip
RESUME_MAY_CHANGE = {
    "epochs", "early_stopping", "max_minutes", "device", "upload_data",
    "strict", "checkpoint_freq", "checkpoint_minutes", "checkpoint_steps", "keep_last", "keep_best",
    "upload", "max_spool_bytes", "drain_seconds", "grace_seconds", "rank_minutes", "log_model",
    "register",
    "upload_diff",
    "task",  # what of the run it was trained by is looked at by its name
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
    "shuffle_window": 100,
    "schedule": "none", "schedule_epochs": 9, "max_grad_norm": 0.0, "early_stopping": 3,
    "max_minutes": 1.5,
    "precision": "bf16", "seed": 1, "threads": 2, "device": "cpu", "hidden_size": 8,
    "num_layers": 1, "dropout": 0.5, "data": "other.csv", "target": "y", "drop": ("a", "b"),
    "keep_index": True, "odd_values": "text",
    "val_fraction": 0.5, "split_seed": 1, "target_scale": "log", "upload_data": "no",
    "strict": True, "checkpoint_freq": 2, "checkpoint_minutes": 0.5, "checkpoint_steps": 100,
    "keep_last": 2, "keep_best": 3, "upload": "sync", "max_spool_bytes": 0, "drain_seconds": 1.5,
    "grace_seconds": 5.0, "rank_minutes": 1.0, "log_model": False, "register": "prices",
    "strategy": "parts", "parts": 4,
    "upload_diff": "no", "task": "./my_task.py", "monitor": "val_rmse:min",
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
    elif name == "monitor":
        value = st.tuples(plain_text, st.sampled_from(DIRECTIONS)).map(":".join)
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


GOLDEN = {
    "d69c4d9a3d25387e2c958ee1697ffcb155590668a629d8c743993431621bdc61": {},
    "d9495a797d6d3351c7c4b5c4f5c4f72bdbadd2b6745aa2143dbd1c3472dc7d7b": {
        "target": "price", "seed": 3, "lr": 0.01, "batch_size": 64, "drop": ("a", "b"),
        "num_layers": 0, "dropout": 0.25, "threads": 2, "epochs": 7, "schedule_epochs": 9,
        "precision": "bf16",
    },
}  # fmt: skip


@pytest.mark.parametrize("expected", GOLDEN)
def test_fingerprints_are_what_they_were(expected):
    """By them runs of every version are found again: these are of the first ones."""
    assert Config(**GOLDEN[expected]).fingerprint("tabular", "ab" * 32) == expected


@dataclasses.dataclass(frozen=True, kw_only=True)
class Own:
    """Options of a task of somebody's own."""

    depth: int = option(2, "Layers.", "Model", minimum=1, on_resume=OnResume.NEVER)
    rate: float = option(0.5, "Share.", "Model", on_resume=OnResume.FORK)
    folder: str = option("here", "Where.", "Data", on_resume=OnResume.FORK, covers=DATA)
    words: tuple[str, ...] = option(("a",), "Some.", "Model", on_resume=OnResume.FORK)
    loud: bool = option(True, "Whether to tell.", "Model")
    late: int | None = option(None, "Came later.", "Model", on_resume=OnResume.FORK, is_new=True)


MERGED = merged(Own, LoopOptions, RunOptions)


@pytest.mark.parametrize(
    ("name", "value", "is_fixed"),
    [
        ("depth", 3, True),
        ("rate", 0.25, True),
        ("words", ("a", "b"), True),
        ("late", 7, True),
        ("folder", "there", False),
        ("loud", False, False),
        ("lr", 0.5, True),
        ("epochs", 3, False),
    ],
)
def test_options_of_a_task_of_ones_own_count_as_the_others(name, value, is_fixed):
    """In the fingerprint, in what is stored, and in MLflow's params; those of every run too."""
    plain, changed = MERGED(), MERGED(**{name: value})
    differs = changed.fingerprint("own", "d1") != plain.fingerprint("own", "d1")
    assert differs is is_fixed
    assert MERGED.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed
    assert changed.in_words()[name] == to_text(value)
    assert list(changed.in_words()) == list(options_of(MERGED))
    assert isinstance(changed, RunOptions)


@pytest.mark.parametrize(
    ("made", "name", "value"),
    [(MERGED, "late", 7), (MERGED, "monitor", "acc:max"), (Config, "monitor", "val_rmse:min")],
)
def test_a_new_option_at_its_default_is_not_there(made, name, value):
    """Older programs go on with such a run, and its fingerprint is what it was; else it counts."""
    default, changed = made(), made(**{name: value})
    assert name not in default.to_dict()
    assert changed.to_dict() == {**default.to_dict(), name: value}
    assert changed.fingerprint("t", "d") != default.fingerprint("t", "d")


def test_which_task_it_is_comes_with_its_name():
    """The option is a place, which may be another one on a resume; the name is in the hash."""
    assert "task" not in Config().to_dict()
    assert Config(task="./my.py").to_dict()["task"] == "./my.py"
    moved = Config(task="./my.py").fingerprint("my", "d")
    assert moved == Config(task="/other/my.py").fingerprint("my", "d")
    assert moved != Config().fingerprint("tabular", "d")


def test_a_fingerprint_does_not_know_options_that_are_not_there():
    """A class without an option hashes as one with a new option at its default."""
    without = dataclasses.make_dataclass(
        "Without",
        [(f.name, f.type, f) for f in dataclasses.fields(Own) if f.name != "late"],
        frozen=True,
        kw_only=True,
    )
    older = merged(without, LoopOptions, RunOptions)
    assert older().fingerprint("own", "d") == MERGED().fingerprint("own", "d")
    assert older().to_dict() == MERGED().to_dict()


def declared(**fields):
    """Return a frozen dataclass of these fields."""
    made = type("Declared", (), {"__annotations__": {k: v for k, (v, _) in fields.items()}})
    for name, (_, default) in fields.items():
        setattr(made, name, default)
    return dataclasses.dataclass(frozen=True, kw_only=True)(made)


@pytest.mark.parametrize("name", ["epochs", "monitor", "lr", "task"])
def test_a_name_that_is_taken_is_refused(name):
    """All options are in one namespace: what is there already would be another one in silence."""
    own = declared(
        mine=("int", option(1, "Mine.", "Model")), **{name: ("int", option(1, "x", "x"))}
    )
    with pytest.raises(
        UsageError, match=f"^Declared: the option {name} is there already"
    ) as caught:
        merged(own, LoopOptions, RunOptions)
    assert "mine" not in str(caught.value)


def test_what_is_no_option_is_refused():
    """By name, before anything is trained: a plain field, a type that no command line can tell."""
    with pytest.raises(UsageError, match=r"^Declared\.size is to be made by option\("):
        merged(declared(size=("int", 3)), RunOptions)
    with pytest.raises(
        UsageError, match=r"^Declared\.size is of dict, and options are of bool, int"
    ):
        merged(declared(size=("dict", option(None, "x", "x"))), RunOptions)
    with pytest.raises(UsageError, match=r"^int is to be a dataclass with frozen=True"):
        merged(int, RunOptions)

    @dataclasses.dataclass
    class Thawed:
        size: int = 3

    with pytest.raises(UsageError, match=r"^Thawed is to be a dataclass with frozen=True"):
        merged(Thawed, RunOptions)


def test_options_of_every_run_alone_are_enough():
    """A training without a loop of ours has those of `RunOptions`, and what else is passed over."""
    assert merged(RunOptions)().to_dict() == RunOptions().to_dict()
    known = RunOptions.known_of({**Config(epochs=7, lr=0.5).to_dict(), "zeal": 1})
    assert known == RunOptions(epochs=7)
    with pytest.raises(UsageError, match="epochs=0"):
        RunOptions.known_of({"epochs": 0})


@pytest.mark.parametrize("text", ["val_rmse", "val_rmse:", ":min", "val_rmse:down", " x:max", ""])
def test_a_monitor_that_is_none_is_refused(text):
    """A name and a direction; the message has an example."""
    with pytest.raises(UsageError, match=r"^monitor='.*' is not .* such as val_loss:min"):
        Config(monitor=text)


def test_a_name_of_a_metric_may_have_a_colon():
    """The direction is what is behind the last one."""
    assert Config(monitor="val/acc: top 1:max").monitor == "val/acc: top 1:max"
