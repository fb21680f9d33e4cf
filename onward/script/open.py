"""`onward.open_run`: a run for a loop of one's own."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Collection, Mapping
from typing import Any

from onward.errors import TrainError, UsageError
from onward.monitor import NO_MONITOR, Monitor
from onward.opening.together import open_run as open_any
from onward.options.declare import options_of, parse
from onward.options.request import Launch
from onward.run import rng
from onward.run.parts import require_parts
from onward.run.run import Run
from onward.script import source
from onward.script.kind import Script, ScriptKind, ScriptOptions, config_of
from onward.system import environment, invocation
from onward.system.garbage import seldom_searched
from onward.terminal.report import Reporter
from onward.words import language
from onward.words.language import _
from onward.world import World
from onward.world.lives import tell_launcher

log = logging.getLogger(__name__)

_NOT_HERE = {"epochs", "monitor", "threads", "device", "register", "resume_from",
             "resume_from_weights_only"}  # fmt: skip
_open: Run | None = None  # the run that this process has open


def open_run(
    state: Mapping[str, Any],
    *,
    config: Any = None,
    maximize: str | None = None,
    minimize: str | None = None,
    config_ignore: Collection[str] = (),
    task: str | None = None,
    background_copy: bool = False,
    **options: Any,
) -> Run:
    """Open a run for a loop of your own: a fresh one, or one to go on with.

    ::

        state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        with onward.open_run(state, config=vars(args), maximize="val_acc") as run:
            for epoch in run.epochs(range(50)):
                for x, y in run.batches(loader):
                    ...
                run.log(train_loss=loss, val_acc=accuracy)

    Started again as `ONWARD_RESUME_RUN=<id> python script.py`, on any machine, it goes on as if
    nothing had happened. Every option can be given that way, by ONWARD_ and its name in capitals;
    the environment wins.

    Args:
        state: All that changes as training goes, by name: what has `state_dict` and
            `load_state_dict`, generators of random numbers, tensors, arrays, dicts, lists, and
            `onward.Part` for the rest; None is passed over. It is put back in place. The global
            random numbers are always saved.
        config: What is logged as params, such as vars(args); `resume_run="auto"` goes on with the
            newest unfinished run of the same script and config.
        maximize: The metric that decides which epoch is best, where higher is better.
        minimize: The same, where lower is better.
        config_ignore: Names in `config` that differ at each start, such as an output folder.
        task: What `auto` knows the training by beside its config; default: the script's name.
        background_copy: Copy weights aside while training goes on. Only for loops that change them
            by `optimizer.step()` alone: not with weight clipping, or weights swapped by hand.
        options: Of the run: resume_run, resume_epoch, fork, take_over, checkpoint_freq,
            checkpoint_steps, checkpoint_minutes, keep_last, keep_best, early_stopping, seed,
            upload, strict, run_name, tags, description, and the others of docs/options.md.

    Returns:
        The run, to be entered by `with`.

    Raises:
        UsageError: An option, or a part of the state, cannot be used; or a run is open already.
        RunNotUsable: The run to go on with is not there, or belongs to another training.
        CheckpointError: It has no checkpoint that can be gone on from.
        StoreUnavailable: MLflow's server does not answer.
    """
    random_state = rng.capture()  # what follows may draw
    language.choose(environment.languages())
    environment.prepare_process()
    ranks = environment.ranks()
    tell_launcher(ranks)
    _require_closed()
    invocation.set_script(ranks.launcher)
    world = World(ranks)
    reporter = Reporter(has_bar=False) if world.is_leader else Reporter.silent()
    reporter.open_log()
    run = None
    try:
        given = _given(options)
        launch = Launch(**{k: given.pop(k) for k in options_of(Launch) if k in given})
        ScriptOptions(**given)  # refuses bad values before anything is opened
        parts = require_parts(state)
        code = source.script_code() if given.get("upload_diff") != "no" else ""
        script = Script(
            task or source.script_name(), config_of(config), frozenset(config_ignore),
            _monitor_of(maximize, minimize), background_copy, code, tuple(parts),
        )  # fmt: skip
        with seldom_searched():
            run = open_any(ScriptKind(script), given, launch, reporter, world)
        run.parts, run.random_state = parts, random_state
        return _remembered(run, reporter)
    except BaseException as error:  # whatever it is, nothing is logged from here on
        if run is not None:  # Ctrl-C, at the last moment
            run.life.abandon()
        reporter.close_log()
        if isinstance(error, TrainError):  # its line says it all
            raise error from None
        raise


def _require_closed() -> None:
    if _open is not None:
        raise UsageError(
            _("run {run_id} is open in this process already: leave its `with` block first")
            .format(run_id=_open.run_id)
        )  # fmt: skip


def _remembered(run: Run, reporter: Reporter) -> Run:
    """Let the process have one run open at a time, until it is closed."""
    global _open

    def forget() -> None:
        global _open
        _open = None
        atexit.unregister(abandon)
        reporter.close_log()

    def abandon() -> None:
        """Leave no run RUNNING that was opened, and never entered."""
        if _open is run and not run.is_entered:
            run.life.abandon()

    run.life.on_close = forget
    atexit.register(abandon)
    _open = run
    return run


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are given: by keyword, or by the environment, which wins."""
    declared = {
        name: kind
        for kind in (Launch, ScriptOptions)
        for name in options_of(kind)
        if name not in _NOT_HERE
    }
    unknown = sorted(set(options) - set(declared))
    if unknown:
        raise UsageError(
            _("open_run has no option {names}: there are {known}").format(
                names=", ".join(unknown), known=", ".join(sorted(declared))
            )
        )
    given = {name: value for name, value in options.items() if value is not None}
    for name, text in environment.option_texts().items():
        if name in declared:
            given[name] = parse(declared[name], name, text)
        else:
            log.warning(_("ONWARD_%s is no option, and is not used"), name.upper())
    return given


def _monitor_of(maximize: str | None, minimize: str | None) -> Monitor:
    if maximize is not None and minimize is not None:
        raise UsageError(_("give either maximize or minimize: one metric decides which is best"))
    name, direction = (maximize, "max") if minimize is None else (minimize, "min")
    if name is None:
        return NO_MONITOR
    try:
        return Monitor.parse(f"{name}:{direction}")
    except ValueError:
        raise UsageError(_("{name!r} is no name of a metric").format(name=name)) from None
