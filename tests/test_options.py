"""Options that are given for a run that exists: taken, refused with the way out, or a fork."""

import dataclasses

import pytest

from onward.checkpoint.content import Content
from onward.checkpoint.manifest import FileEntry, Manifest
from onward.errors import ForkNeeded, RunNotUsable, UsageError
from onward.metrics import History
from onward.monitor import UNDECLARED, Monitor
from onward.opening import changes
from onward.opening.changes import forked_options, require_epochs_left, resumed_options
from onward.opening.source import Source
from onward.options.declare import OnResume, option, options_of
from onward.options.merged import merged
from onward.options.run_options import RunOptions
from onward.tracking.record import RunRecord
from train.kind import TaskKind, find_task
from train.loop_options import LoopOptions
from train.tabular.data.dataset import source_fingerprint
from train.tabular.options import Config

CONFIG = Config(epochs=10, data="t.csv", target="y", seed=3)
TABLE = find_task()


def resumed(run, given, kind=TABLE):
    return resumed_options(run, given, kind)


def forked(run, given, kind=TABLE):
    return forked_options(run, given, kind)


def changes_data(run, given):
    return changes.changes_data(run, given, TABLE)


def manifest(epoch, epoch_step=0):
    return Manifest(
        epoch=epoch, step=10 * epoch + epoch_step, epoch_step=epoch_step, attempt=1,
        created="2026-01-02T03:04:05+00:00", kept=True, metrics={},
        files=(FileEntry("checkpoint.pth", 1, "a" * 64),),
    )  # fmt: skip


def content(manifest, fingerprint, monitor=UNDECLARED):
    return Content(
        epoch=manifest.epoch, step=manifest.step, epoch_step=manifest.epoch_step, parts={}, rng={},
        history=History(), monitor=monitor, data={"fingerprint": fingerprint},
    )  # fmt: skip


def source(
    options=CONFIG,
    epoch=4,
    status="KILLED",
    fingerprint="d" * 64,
    epoch_step=0,
    before=(),
    monitor=UNDECLARED,
):
    """Return a run that got that far, with checkpoints of the epochs `before`."""
    record = RunRecord("r1", "", "0", status, "/nowhere", 0, {}, {}, {})
    newest = manifest(epoch, epoch_step)
    manifests = [*map(manifest, before), newest]
    saved = content(newest, fingerprint, monitor)
    return Source(record, None, manifests, newest, saved, options)


def of_kind(kind):
    return sorted(n for n, (_, o) in options_of(Config).items() if o.on_resume is kind)


def other(name):
    """Return another value than the run's for an option."""
    field, opt = options_of(Config)[name]
    now = getattr(CONFIG, name)
    if name == "monitor":
        return "val_rmse:min"
    if opt.choices:
        return next(choice for choice in opt.choices if choice != now)
    if str(field.type).startswith("tuple"):
        return ("a",)
    if "str" in str(field.type):
        return "cpu" if name == "device" else "other"
    if isinstance(now, bool):
        return not now
    if isinstance(now, float):
        return now / 2
    return opt.maximum if now in (None, 0) and opt.maximum else (now or 0) + 1


def test_without_options_the_run_keeps_its_own():
    """Options that are not given keep the run's values (design 2)."""
    assert resumed(source(), {}) == CONFIG
    assert forked(source(), {}) == CONFIG


@pytest.mark.parametrize("name", [n for n in of_kind(OnResume.CHANGE) if n != "upload"])
def test_what_leaves_the_training_the_same_is_taken(name):
    """Given options win where that is sound, and no fork is needed."""
    given = {name: other(name)}
    assert resumed(source(), given) == CONFIG.replace(**given)
    assert forked(source(), given) == CONFIG.replace(**given)


@pytest.mark.parametrize("name", of_kind(OnResume.FORK))
def test_what_makes_it_another_training_is_refused_with_the_fork(name, tmp_path):
    """Both values and the whole command are in the refusal; the fork itself takes them."""
    given = {name: other(name)}
    if name == "data":
        (tmp_path / "other").write_text("x,y\n1,2\n")
    with pytest.raises(ForkNeeded) as caught:
        resumed(source(), given)
    assert list(caught.value.changes) == [name]
    assert "--resume_run r1" in caught.value.command
    assert "--fork true" in caught.value.command
    assert f"--{name} " in caught.value.command
    assert forked(source(), given) == CONFIG.replace(**given)


@pytest.mark.parametrize("name", of_kind(OnResume.NEVER))
def test_another_model_is_refused_by_resume_and_fork(name):
    """No command is offered that would be refused in turn."""
    for decide in (resumed, forked):
        with pytest.raises(UsageError, match=f"^{name} is .* in run 'r1' and ") as caught:
            decide(source(), {name: other(name)})
        assert not isinstance(caught.value, ForkNeeded)


@pytest.mark.parametrize("name", sorted(options_of(Config)))
def test_the_runs_own_value_may_be_given(name):
    """Giving an option the value that it has changes nothing."""
    given = {name: getattr(CONFIG, name)}
    assert resumed(source(), given) == CONFIG


@pytest.mark.parametrize(
    ("own", "given", "is_refused"),
    [
        ("async", "sync", False),
        ("sync", "async", False),
        ("off", "off", False),
        ("async", "off", True),
        ("sync", "off", True),
        ("off", "async", True),
        ("off", "sync", True),
    ],
)
def test_a_runs_checkpoints_stay_in_one_place(own, given, is_refused):
    """`upload` may change its pace on a resume, not whether checkpoints leave this disk."""
    run = source(CONFIG.replace(upload=own))
    if not is_refused:
        assert resumed(run, {"upload": given}).upload == given
        return
    with pytest.raises(ForkNeeded) as caught:
        resumed(run, {"upload": given})
    assert caught.value.changes == {"upload": (own, given)}
    assert forked(run, {"upload": given}).upload == given


def test_the_same_table_in_another_place_is_no_change(tmp_path):
    """On another machine the table lies elsewhere; its content decides."""
    (tmp_path / "moved.csv").write_text("x,y\n1,2\n3,4\n")
    config = CONFIG.replace(data="moved.csv")
    run = source(fingerprint=source_fingerprint(config))
    assert resumed(run, {"data": "moved.csv"}) == config
    (tmp_path / "moved.csv").write_text("x,y\n1,2\n3,5\n")
    with pytest.raises(ForkNeeded):
        resumed(run, {"data": "moved.csv"})


def test_a_fork_inside_an_epoch_may_find_the_same_table_in_another_place(tmp_path):
    """Its rows are the same, so is the rest of the epoch; nothing is split anew."""
    (tmp_path / "moved.csv").write_text("x,y\n1,2\n3,4\n")
    config = CONFIG.replace(data="moved.csv")
    run = source(fingerprint=source_fingerprint(config), epoch_step=3)
    assert forked(run, {"data": "moved.csv"}) == config
    assert not changes_data(run, {"data": "moved.csv"})


@pytest.mark.parametrize(
    "given",
    [{"threads": 0}, {"num_layers": None}, {"dropout": None}, {"schedule_epochs": None},
     {"target": None}],
)  # fmt: skip
def test_what_is_left_to_choose_was_chosen_by_the_run(given):
    """A command line that a scheduler starts again says the same each time."""
    chosen = CONFIG.replace(threads=2, num_layers=3, dropout=0.1, schedule_epochs=10)
    assert resumed(source(chosen), given) == chosen


def test_a_finished_run_wants_more_epochs():
    """There is nothing left to train without them, and the message has the command."""
    done = source(epoch=10, status="FINISHED")
    with pytest.raises(RunNotUsable, match=r"finished after 10 epochs.*--epochs 20"):
        resumed(done, {})
    assert resumed(done, {"epochs": 11}).epochs == 11


def test_fewer_epochs_than_there_are_is_refused():
    """`epochs` counts from the run's beginning, and the message says so."""
    with pytest.raises(UsageError, match="epochs=3 is fewer than the 4"):
        resumed(source(), {"epochs": 3})
    assert resumed(source(), {"epochs": 4}).epochs == 4


def test_fewer_epochs_than_were_begun_is_refused():
    """An epoch under way counts: `epochs` cannot end the run in the middle of it."""
    inside = source(epoch_step=3)
    with pytest.raises(UsageError, match="epochs=4 is fewer than the 5 that run 'r1' has begun"):
        resumed(inside, {"epochs": 4})
    assert resumed(inside, {"epochs": 5}).epochs == 5
    assert inside.epochs_begun == 5
    assert source().epochs_begun == 4


ORDER = [
    "batch_size",
    "data",
    "seed",
    "shuffle_window",
    "split_seed",
    "val_fraction",
]  # of samples in an epoch


@pytest.mark.parametrize("name", ORDER)
def test_a_fork_from_inside_an_epoch_keeps_the_order_of_its_batches(name, tmp_path):
    """The rest of the epoch must be the rest of its samples; where to fork instead is said."""
    (tmp_path / "other").write_text("x,y\n1,2\n")
    given = {name: other(name)}
    inside = source(epoch_step=3, before=[1, 2, 3, 4])
    with pytest.raises(UsageError) as caught:
        forked(inside, given)
    message = str(caught.value)
    assert f"lies inside epoch 5, and with another {name} the rest" in message
    assert message.endswith("resume_epoch=2|3|4")
    assert not isinstance(caught.value, ForkNeeded)
    with pytest.raises(UsageError, match=f"no checkpoint at the end of an epoch yet, so {name} "):
        forked(source(epoch=0, epoch_step=3), given)
    at_the_end = source(before=[1, 2, 3])
    assert forked(at_the_end, given) == CONFIG.replace(**given)


@pytest.mark.parametrize("name", sorted(set(of_kind(OnResume.FORK)) - set(ORDER)))
def test_a_fork_from_inside_an_epoch_may_change_the_rest(name):
    """What does not change which samples a batch has is as free as at an epoch's end."""
    given = {name: other(name)}
    assert forked(source(epoch_step=3), given) == CONFIG.replace(**given)


def test_all_that_would_change_the_order_is_named():
    """Whoever gives several such options is told all of them."""
    with pytest.raises(UsageError, match="with another batch_size, seed the rest"):
        forked(source(epoch_step=3, before=[4]), {"seed": 9, "batch_size": 7, "lr": 0.5})


@pytest.mark.parametrize(
    ("run", "given", "options"),
    [
        ({}, {"lr": 0.5}, "--fork true --lr 0.5"),
        ({"epoch": 9}, {"lr": 0.5}, "--fork true --epochs 18 --schedule_epochs 18 --lr 0.5"),
        ({"epoch": 9}, {"lr": 0.5, "epochs": 11}, "--fork true --lr 0.5 --epochs 11"),
        ({"epoch_step": 3, "before": [3, 4]}, {"seed": 5}, "--fork true --resume_epoch 4 --seed 5"),
        ({"epoch_step": 3}, {"lr": 0.5}, "--fork true --lr 0.5"),
        ({"options": CONFIG.replace(early_stopping=2)}, {"lr": 0.5},
         "--fork true --early_stopping 0 --lr 0.5"),
    ],
)  # fmt: skip
def test_the_fork_that_is_offered_is_not_refused(run, given, options):
    """It has an epoch to train, and begins where it may: what is shown can be typed."""
    settings = {"options": CONFIG, **run}
    settings["options"] = settings["options"].replace(epochs=9)
    with pytest.raises(ForkNeeded) as caught:
        resumed(source(**settings), given)
    assert caught.value.command == f"train run --resume_run r1 {options}"


def test_a_run_without_a_checkpoint_is_offered_a_fresh_start():
    """There is nothing to fork: the command trains with the run's options and those given."""
    record = RunRecord("r1", "", "0", "FAILED", "/nowhere", 0, {}, {}, {})
    config = CONFIG.replace(hidden_size=7, threads=3, schedule_epochs=CONFIG.epochs)
    died = Source(record, None, [], None, None, config)
    with pytest.raises(ForkNeeded, match="It has no checkpoint yet") as caught:
        resumed(died, {"lr": 0.5})
    command = caught.value.command
    assert command.endswith("--lr 0.5")
    assert "--hidden_size 7" in command
    assert not {"--resume_run", "--threads", "--schedule_epochs"} & set(command.split())


@pytest.mark.parametrize("epochs", [3, 4])
def test_a_fork_without_an_epoch_left_is_refused(epochs):
    """A fork that has nothing to train would be a copy."""
    with pytest.raises(UsageError, match=f"run 'r1' has 4 epochs behind it and epochs={epochs}"):
        forked(source(), {"epochs": epochs})
    require_epochs_left(CONFIG, 9, "it")
    with pytest.raises(UsageError, match="of it has 10 epochs"):
        require_epochs_left(CONFIG, 10, "it")


def test_a_value_outside_its_limits_is_refused_first():
    """A bad value is told as such, not as a fork."""
    with pytest.raises(UsageError, match="batch_size=0 is too small") as caught:
        resumed(source(), {"batch_size": 0})
    assert not isinstance(caught.value, ForkNeeded)


def test_what_is_about_the_data_is_known(tmp_path):
    """Only options of the group "Data" ask for the table again."""
    (tmp_path / "other").write_text("x,y\n1,2\n")
    for name, (_, opt) in options_of(Config).items():
        is_about = opt.group == "Data" and opt.on_resume is not OnResume.CHANGE
        assert changes_data(source(), {name: other(name)}) is is_about, name
    assert not changes_data(source(), {"data": CONFIG.data})


RMSE = Monitor("val_rmse", "min")


@pytest.mark.parametrize(
    ("own", "declared", "given", "is_refused"),
    [
        (UNDECLARED, None, "val_pearson:max", False),  # that of the table, now said
        (RMSE, "val_rmse:min", "val_rmse:min", False),
        (RMSE, None, "val_rmse:min", False),  # that of a task of somebody's own
        (RMSE, "val_rmse:min", None, False),  # a command line that leaves it out
        (UNDECLARED, None, "val_pearson:min", True),
        (UNDECLARED, None, "val_rmse:min", True),
        (RMSE, "val_rmse:min", "val_rmse:max", True),
        (RMSE, "val_rmse:min", "val_pearson:max", True),
    ],
)
def test_another_monitor_wants_a_fork_and_the_runs_own_does_not(own, declared, given, is_refused):
    """By which metric a run is judged is a part of it; to name it once more changes nothing."""
    run = source(CONFIG.replace(monitor=declared), monitor=own)
    if not is_refused:
        expected = declared if given is None else given
        assert resumed(run, {"monitor": given}).monitor == expected
        return
    with pytest.raises(ForkNeeded) as caught:
        resumed(run, {"monitor": given})
    assert list(caught.value.changes) == ["monitor"]
    assert caught.value.command.endswith(f"--fork true --monitor {given}")
    assert forked(run, {"monitor": given}).monitor == given


@dataclasses.dataclass(frozen=True, kw_only=True)
class Own:
    """Options of a task of somebody's own."""

    depth: int = option(2, "Layers.", "Model", on_resume=OnResume.NEVER)
    rate: float = option(0.5, "Share.", "Model", on_resume=OnResume.FORK)
    width: int = option(8, "Of an order.", "Model", on_resume=OnResume.FORK, covers="order")
    loud: bool = option(True, "Whether to tell.", "Model")


@pytest.mark.parametrize("others", [(LoopOptions, RunOptions), (RunOptions,)])
def test_options_of_a_task_of_ones_own_are_looked_at_as_the_others(others):
    """Each by what is declared of it: taken, refused with the fork, or refused."""
    declared = merged(Own, *others)
    kind = TaskKind("own", declared, lambda: None)
    run = source(declared(epochs=10), epoch_step=3, before=[3, 4])
    assert resumed(run, {"loud": False}, kind) == declared(epochs=10, loud=False)
    with pytest.raises(UsageError, match=r"^depth is 2 in run 'r1' and 3 was given"):
        resumed(run, {"depth": 3}, kind)
    with pytest.raises(UsageError, match=r"^depth is 2 in run 'r1' and 3 was given"):
        forked(run, {"depth": 3}, kind)
    with pytest.raises(ForkNeeded) as caught:
        resumed(run, {"rate": 0.25}, kind)
    assert caught.value.changes == {"rate": ("0.5", "0.25")}
    assert caught.value.command == "train run --resume_run r1 --fork true --rate 0.25"
    assert forked(run, {"rate": 0.25}, kind).rate == 0.25
    with pytest.raises(UsageError, match="with another width the rest"):
        forked(run, {"width": 9}, kind)
    assert forked(source(declared(epochs=10)), {"width": 9}, kind).width == 9


def test_nothing_here_changes_the_source():
    """Deciding is a pure function: the source is what it was."""
    run = source()
    before = dataclasses.asdict(run.options)
    resumed(run, {"epochs": 99})
    assert dataclasses.asdict(run.options) == before
