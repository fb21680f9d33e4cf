"""The command `train`: training, using what was trained, and the commands of `onward`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from onward.cli import main as onward
from onward.cli.commandline import Group, say
from onward.cli.helptext import RunParameter
from onward.cli.main import WHICH, launch_options, launched, log_shown, publish_waiting
from onward.errors import Interrupted, RankLost, RankStopped
from onward.options.declare import options_of
from onward.options.request import Launch
from onward.system import environment
from onward.system.garbage import seldom_searched, stop_searching
from onward.words import shell
from onward.words.language import _
from onward.world import World
from train.kind import TaskKind, find_task
from train.loop_options import TABULAR
from train.run_command import RunCommand

_EXAMPLES = """\b
Train, and go on after the machine is lost:
  train run --checkpoint_freq 3
  train run --resume_run latest
"""
_EPILOG = """\b
Through MLflow each option is a parameter:
  mlflow run . --env-manager local -P checkpoint_freq=3
  mlflow run . --env-manager local -P resume_run=<id>
  mlflow run . --env-manager local -P resume_run=latest -P epochs=40
"""

_TASK = click.option(
    "--task", default=TABULAR, metavar="tabular|FILE", help="What RUN trains.  [tabular]"
)


@click.group(cls=Group, epilog=_EXAMPLES)
@click.version_option(package_name="onward")
def main() -> None:
    """Train on one machine, lose it, go on from the run ID on another."""
    shell.set_program("train")
    environment.prepare_process()


def _kind(task: str) -> TaskKind:
    """Return what is trained, which the commands that are told have to name."""
    shell.set_task("" if task == TABULAR else task)
    return find_task(task)


def _run_command(**values: Any) -> None:
    """Train: a fresh run, or with --resume_run from where a run was left."""
    given = dict(item for item in values.values() if item is not None)
    launch = Launch(**{k: given.pop(k) for k in options_of(Launch) if k in given})
    kind = _kind(given.get("task", TABULAR))
    kind.declared(**given)  # refuses bad values before anything is imported or opened

    from onward.run.signals import ignore, stop_at_once
    from onward.terminal.report import Reporter

    world = World(environment.ranks())
    reporter = Reporter() if world.is_leader else Reporter.silent()
    reporter.open_log()
    stop_at_once()
    try:
        logging.getLogger("onward").info(_("Loading torch and MLflow …"))
        with seldom_searched():
            from onward.opening.together import open_run
            from train.loop import train

            run = open_run(kind, given, launch, reporter, world)
        stop_searching()
        with run:
            train(run)
        # Else a scheduler would be told to start a run again that is finished.
        ignore()
    except (Interrupted, RankLost, RankStopped) as error:
        if world.is_leader:
            raise
        sys.exit(error.exit_code)  # rank 0 tells, or whoever started the ranks
    finally:
        reporter.close_log()


@main.command()
@click.argument("run", type=RunParameter())
@click.argument("data", metavar="FILE")
@click.option("--epoch", metavar=WHICH, help="Which checkpoint.  [best]")
@click.option("--to", type=click.Path(dir_okay=False), help="A CSV, or .parquet.  [stdout]")
def predict(run: str, data: str, epoch: str | None, to: str | None) -> None:
    """Predict each row of FILE by RUN's model; write it as CSV with one more column."""
    from onward.tracking.client import Tracking
    from train.tabular import serving

    with log_shown(as_json=to is None):
        table = serving.predict_table(Tracking(), find_task(), run, epoch, data)
        serving.write(table, sys.stdout.buffer if to is None else Path(to))
    if to:
        told = _("{num_rows:,} rows with {name} are in {to}")
        say(told.format(num_rows=table.num_rows, name=table.column_names[-1], to=to))


@main.command()
@click.argument("run", type=RunParameter())
@click.option("--epoch", metavar=WHICH, help="Which checkpoint.  [best]")
@click.option("--register", metavar="NAME", help="Register the model too, by this name.")
@_TASK
def publish(run: str, epoch: str | None, register: str | None, task: str) -> None:
    """Log a checkpoint of RUN as its MLflow model, such as one that takes raw rows."""
    from onward.opening.source import find_run
    from onward.tracking.client import Tracking
    from train import served

    tracking = Tracking()
    with log_shown():
        run = find_run(tracking, run).run_id  # it may have been asked for as "latest"
        manifest = served.publish(tracking, _kind(task), run, epoch, register)
    say(_("runs:/{run}/model is the model of {name}").format(run=run, name=manifest.name))


@main.command()
@click.argument("run", type=RunParameter(), required=False)
@click.option("--as_fork", is_flag=False, flag_value="true", default="false", type=click.BOOL,
              help="Make a new run of what a later attempt has overtaken.")  # fmt: skip
@_TASK
@click.pass_context
def sync(ctx: click.Context, run: str | None, as_fork: bool, task: str) -> None:
    """Publish what waits on this disk: of RUN, or of every run of the server."""
    publish_waiting(ctx, run, as_fork, _kind(task))


@main.command(context_settings={"allow_interspersed_args": False})
@launch_options
@click.argument("words", nargs=-1, required=True, metavar="run [OPTIONS]")
@click.pass_context
def launch(ctx: click.Context, nproc: str, max_restarts: int, words: tuple[str, ...]) -> None:
    """Run a command of this program, such as `run`, as several ranks, through every death."""
    ctx.exit(launched(["-m", "train", *words], nproc, max_restarts))


for _name, _command in onward.main.commands.items():
    if _name not in main.commands:
        main.add_command(_command)
main.add_command(RunCommand("run", _run_command, _EPILOG))
