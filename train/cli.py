"""The command line: options become a run, errors become one line and an exit code."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from train import environment
from train.commandline import ConfigOption, Group, OptionCommand, say, set_debug
from train.config import Config, Launch
from train.declare import options_of
from train.errors import CheckpointError, RunNotUsable, TrainError
from train.files import size_in_words
from train.helptext import RunParameter
from train.language import _
from train.redact import redact

_WHICH = "N|global_step_N|latest|best"  # checkpoint

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


@click.group(cls=Group, epilog=_EXAMPLES)
@click.version_option(package_name="onward")
def main() -> None:
    """Train on one machine, lose it, go on from the run ID on another."""
    environment.prepare_process()


def _run_command(**values: Any) -> None:
    """Train: a fresh run, or with --resume_run from where a run was left."""
    given = dict(item for item in values.values() if item is not None)
    environment.require_one_process()
    launch = Launch(**{k: given.pop(k) for k in options_of(Launch) if k in given})
    Config(**given)  # refuses bad values before anything is imported or opened

    from train.report import Reporter
    from train.signals import ignore, stop_at_once

    reporter = Reporter()
    reporter.open_log()
    stop_at_once()
    try:
        logging.getLogger("train").info(_("Loading torch and MLflow …"))
        from train.launch import open_run
        from train.loop import train

        run, task = open_run(given, launch, reporter)
        with run:
            train(run, task)
        # Else a scheduler would be told to start a run again that is finished.
        ignore()
    finally:
        reporter.close_log()


@main.command("list")
@click.argument("run", type=RunParameter(), required=False)
@click.option("--json", "as_json", is_flag=True, help="For scripts: JSON, times as Unix seconds.")
def list_command(run: str | None, as_json: bool) -> None:
    """List the experiment's runs that can be resumed, or the checkpoints of RUN."""
    environment.expect_small_downloads()
    from train import listing
    from train.tracking import Tracking

    with _log_shown(as_json):
        tracking = Tracking()
        rows = listing.checkpoint_rows(tracking, run) if run else listing.run_rows(tracking)
    listing.show(rows, run, as_json)


@contextlib.contextmanager
def _log_shown(as_json: bool = False) -> Iterator[None]:
    """Show the log, and bars, of a command.

    What a program reads is the result only: the log goes to stderr, unless stdout is a terminal.
    """
    from rich.console import Console

    from train.report import Reporter

    reporter = Reporter(Console(stderr=as_json or not sys.stdout.isatty()))
    reporter.open_log()
    try:
        yield
    finally:
        reporter.close_log()


@main.command()
@click.argument("run", type=RunParameter())
@click.option("--json", "as_json", is_flag=True, help="For scripts: one JSON array.")
@click.pass_context
def verify(ctx: click.Context, run: str, as_json: bool) -> None:
    """Download and check every checkpoint of RUN; exit code 4 if one is damaged."""
    from train import listing, maintenance
    from train.tracking import Tracking

    with _log_shown(as_json):
        rows = list(maintenance.verify_rows(Tracking(), run))
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        listing.show_verified(rows, run)
    ctx.exit(CheckpointError.exit_code if any(r["status"] == "damaged" for r in rows) else 0)


@main.command()
@click.argument("run", type=RunParameter())
@click.option("--keep_last", type=click.IntRange(1), help="The newest so many.  [the run's]")
@click.option("--keep_best", type=click.IntRange(1), help="The best so many.  [the run's]")
@click.option("--keep_every", type=click.IntRange(1), help="Every so-many-th epoch.  [as saved]")
@click.option("--dry_run", is_flag=True, help="Only tell what would be deleted.")
@click.option("--take_over", is_flag=True, help="Do not wait to see whether RUN is being trained.")
def prune(
    run: str,
    keep_last: int | None,
    keep_best: int | None,
    keep_every: int | None,
    dry_run: bool,
    take_over: bool,
) -> None:
    """Delete checkpoints of RUN; the newest good one and the best stay always."""
    from train import maintenance
    from train.tracking import Tracking

    tracking = Tracking()
    retention = maintenance.retention_of(tracking, run, keep_last, keep_best, keep_every)
    with _log_shown():
        gone = maintenance.prune(tracking, run, retention, dry_run, take_over)
    told = _("would delete {name}  {size}") if dry_run else _("deleted {name}  {size}")
    for manifest in gone:
        say(told.format(name=manifest.name, size=size_in_words(manifest.bytes)))
    total = size_in_words(sum(manifest.bytes for manifest in gone))
    number = _("1 checkpoint") if len(gone) == 1 else _("{number} checkpoints")
    told = _("would delete {what}, {size}") if dry_run else _("deleted {what}, {size}")
    say(told.format(what=number.format(number=len(gone)), size=total))


@main.command()
@click.argument("run", type=RunParameter())
@click.option("--epoch", default="latest", metavar=_WHICH, help="Which one.  [latest]")
@click.option("--to", required=True, type=click.Path(dir_okay=False), help="The file to write.")
def export(run: str, epoch: str, to: str) -> None:
    """Write a checkpoint of RUN as one plain .pth file, with the script version's keys."""
    from train import maintenance
    from train.source import find_run
    from train.tracking import Tracking

    tracking = Tracking()
    with _log_shown():
        run = find_run(tracking, run).run_id  # it may have been asked for as "latest"
        manifest = maintenance.export(tracking, run, epoch, Path(to))
    say(_("{name} of run {run} is in {to}").format(name=manifest.name, run=run, to=to))


@main.command()
@click.argument("run", type=RunParameter())
@click.option("--epoch", default="latest", metavar=_WHICH, help="Which one.  [latest]")
@click.option("--json", "as_json", is_flag=True, help="For scripts: one JSON object.")
def show(run: str, epoch: str, as_json: bool) -> None:
    """Show what a checkpoint of RUN holds: manifest, state, options, environment."""
    from train import listing, maintenance
    from train.tracking import Tracking

    with _log_shown(as_json):
        found = maintenance.describe(Tracking(), run, epoch)
    if as_json:
        click.echo(json.dumps(found, indent=1, default=str))
        return
    listing.show_checkpoint(found)


@main.command()
@click.argument("run", type=RunParameter())
@click.argument("data", metavar="FILE")
@click.option("--epoch", metavar=_WHICH, help="Which checkpoint.  [best]")
@click.option("--to", type=click.Path(dir_okay=False), help="A CSV, or .parquet.  [stdout]")
def predict(run: str, data: str, epoch: str | None, to: str | None) -> None:
    """Predict each row of FILE by RUN's model; write it as CSV with one more column."""
    from train import serving
    from train.tracking import Tracking

    with _log_shown(as_json=to is None):
        table = serving.predict_table(Tracking(), run, epoch, data)
        serving.write(table, sys.stdout.buffer if to is None else Path(to))
    if to:
        told = _("{num_rows:,} rows with {name} are in {to}")
        say(told.format(num_rows=table.num_rows, name=table.column_names[-1], to=to))


@main.command()
@click.argument("run", type=RunParameter())
@click.option("--epoch", metavar=_WHICH, help="Which checkpoint.  [best]")
@click.option("--register", metavar="NAME", help="Register the model too, by this name.")
def publish(run: str, epoch: str | None, register: str | None) -> None:
    """Log a checkpoint of RUN as its MLflow model, which takes raw rows."""
    from train import serving
    from train.source import find_run
    from train.tracking import Tracking

    tracking = Tracking()
    with _log_shown():
        run = find_run(tracking, run).run_id  # it may have been asked for as "latest"
        manifest = serving.publish(tracking, run, epoch, register)
    say(_("runs:/{run}/model is the model of {name}").format(run=run, name=manifest.name))


@main.command()
@click.argument("run", type=RunParameter(), required=False)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=5000,
    metavar="N",
    help="Where to serve the pages.  [5000]",
)
def ui(run: str | None, port: int) -> None:
    """Open MLflow's pages in the browser, with RUN (default: the newest) in front."""
    from train.browse import open_pages

    with _log_shown():
        open_pages(run, port)


@main.command()
@click.argument("run", type=RunParameter(), required=False)
@click.option("--as_fork", is_flag=False, flag_value="true", default="false", type=click.BOOL,
              help="Make a new run of what a later attempt has overtaken.")  # fmt: skip
@click.pass_context
def sync(ctx: click.Context, run: str | None, as_fork: bool) -> None:
    """Publish what waits on this disk: of RUN, or of every run of the server."""
    from train.launch import sync_run
    from train.report import Reporter
    from train.sync import waiting_runs
    from train.tracking import Tracking

    reporter = Reporter()
    reporter.open_log()
    try:
        tracking = Tracking()
        run_ids = [run] if run else waiting_runs(environment.home(), tracking.uri)
        failed: TrainError | None = None
        for run_id in run_ids:
            try:
                sync_run(tracking, run_id, as_fork, reporter)
            except RunNotUsable as error:  # it must not keep the others from being published
                failed = error
                say(_("error: {error}").format(error=error), err=True)
        if not run_ids:
            uri = redact(tracking.uri)
            say(_("nothing of {uri} waits on this disk").format(uri=uri))
        if failed is not None:
            ctx.exit(failed.exit_code)
    finally:
        reporter.close_log()


main.add_command(
    OptionCommand(
        "run",
        callback=_run_command,
        params=[
            *(
                ConfigOption(c, f)
                for c in (Launch, Config)
                for f, _option in options_of(c).values()
            ),
            click.Option(
                ["--debug"],
                is_flag=False,
                flag_value="true",
                expose_value=False,
                callback=set_debug,
                metavar="true|false",
                help="Show where an error came from.",
            ),
        ],
        help=_run_command.__doc__,
        epilog=_EPILOG,
    )
)
