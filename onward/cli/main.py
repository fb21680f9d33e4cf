"""The command `onward`: runs and their checkpoints, whatever was trained."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onward.cli.commandline import Group, say
from onward.cli.helptext import RunParameter
from onward.cli.planning import plan
from onward.errors import CheckpointError, RunNotUsable, TrainError
from onward.system import environment
from onward.system.files import size_in_words
from onward.words.language import _
from onward.words.redact import redact

if TYPE_CHECKING:
    from onward.run.subject import Kind

F = TypeVar("F", bound=Callable[..., Any])

WHICH = "N|global_step_N|latest|best"  # checkpoint


@click.group(cls=Group)
@click.version_option(package_name="onward")
def main() -> None:
    """Look after runs and their checkpoints in MLflow."""
    environment.prepare_process()


@main.command("list")
@click.argument("run", type=RunParameter(), required=False)
@click.option("--json", "as_json", is_flag=True, help="For scripts: JSON, times as Unix seconds.")
def list_command(run: str | None, as_json: bool) -> None:
    """List the experiment's runs that can be resumed, or the checkpoints of RUN."""
    environment.expect_small_downloads()
    from onward.cli import listing
    from onward.tracking.client import Tracking

    with log_shown(as_json):
        tracking = Tracking()
        rows = listing.checkpoint_rows(tracking, run) if run else listing.run_rows(tracking)
    listing.show(rows, run, as_json)


@contextlib.contextmanager
def log_shown(as_json: bool = False) -> Iterator[None]:
    """Show the log, and bars, of a command.

    What a program reads is the result only: the log goes to stderr, unless stdout is a terminal.
    """
    from rich.console import Console

    from onward.terminal.report import Reporter

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
    from onward.cli import listing
    from onward.opening import maintenance
    from onward.tracking.client import Tracking

    with log_shown(as_json):
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
    from onward.opening import maintenance
    from onward.tracking.client import Tracking

    tracking = Tracking()
    retention = maintenance.retention_of(tracking, run, keep_last, keep_best, keep_every)
    with log_shown():
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
@click.option("--epoch", default="latest", metavar=WHICH, help="Which one.  [latest]")
@click.option("--to", required=True, type=click.Path(dir_okay=False), help="The file to write.")
def export(run: str, epoch: str, to: str) -> None:
    """Write a checkpoint of RUN as one plain .pth file, with the script version's keys."""
    from onward.opening import maintenance
    from onward.opening.source import find_run
    from onward.tracking.client import Tracking

    tracking = Tracking()
    with log_shown():
        run = find_run(tracking, run).run_id  # it may have been asked for as "latest"
        manifest = maintenance.export(tracking, run, epoch, Path(to))
    say(_("{name} of run {run} is in {to}").format(name=manifest.name, run=run, to=to))


@main.command()
@click.argument("run", type=RunParameter())
@click.option("--epoch", default="latest", metavar=WHICH, help="Which one.  [latest]")
@click.option("--json", "as_json", is_flag=True, help="For scripts: one JSON object.")
def show(run: str, epoch: str, as_json: bool) -> None:
    """Show what a checkpoint of RUN holds: manifest, state, options, environment."""
    from onward.cli import listing
    from onward.opening import maintenance
    from onward.tracking.client import Tracking

    with log_shown(as_json):
        found = maintenance.describe(Tracking(), run, epoch)
    if as_json:
        click.echo(json.dumps(found, indent=1, default=str))
        return
    listing.show_checkpoint(found)


def launch_options(command: F) -> F:
    """Give a command the options of those that start several ranks."""
    nproc = click.option(
        "--nproc", default="auto", metavar="N|auto", help="How many.  [one for each GPU]"
    )
    restarts = click.option(
        "--max_restarts",
        type=click.IntRange(0),
        default=3,
        help="How often to start anew without a checkpoint in between.  [3]",
    )
    return nproc(restarts(command))


@main.command(context_settings={"allow_interspersed_args": False})
@launch_options
@click.argument("words", nargs=-1, required=True, metavar="SCRIPT [ARGUMENTS ...]")
@click.pass_context
def launch(ctx: click.Context, nproc: str, max_restarts: int, words: tuple[str, ...]) -> None:
    """Train as several ranks of this machine by a script of your own, through every death."""
    ctx.exit(launched(words, nproc, max_restarts))


def launched(words: Sequence[str], nproc: str, max_restarts: int) -> int:
    """Run a program as so many ranks; return the exit code."""
    from onward.cli.launching import launch, number_of

    with log_shown():
        return launch(words, number_of(nproc), max_restarts)


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
    from onward.cli.browse import open_pages

    with log_shown():
        open_pages(run, port)


@main.command()
@click.argument("run", type=RunParameter(), required=False)
@click.pass_context
def sync(ctx: click.Context, run: str | None) -> None:
    """Publish what waits on this disk: of RUN, or of every run of the server."""
    publish_waiting(ctx, run, False, None)


def publish_waiting(ctx: click.Context, run: str | None, as_fork: bool, kind: Kind | None) -> None:
    """Publish what waits on this disk, and end with the code of what went wrong.

    Args:
        ctx: Of the command.
        run: The run; None: every run of the server.
        as_fork: Whether to make a run of what a later attempt has overtaken.
        kind: What the runs train that are of no loop of somebody's own; None: that is not known.
    """
    from onward.opening.sync import sync_run
    from onward.opening.waiting import waiting_runs
    from onward.script.kind import kind_of
    from onward.terminal.report import Reporter
    from onward.tracking.client import Tracking

    reporter = Reporter()
    reporter.open_log()
    try:
        tracking = Tracking()
        run_ids = [run] if run else waiting_runs(environment.home(), tracking.uri)
        failed: TrainError | None = None
        for run_id in run_ids:
            try:
                sync_run(tracking, run_id, as_fork, kind_of(tracking, run_id, kind), reporter)
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


main.add_command(plan)
