"""The command line: options become a run, errors become one line and an exit code."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import click

from train import environment
from train.config import Config, Launch, options_of, parse, to_text
from train.errors import TrainError

_EPILOG = """\b
Through MLflow each option is a parameter:
  mlflow run . --env-manager local -P checkpoint_freq=3
  mlflow run . --env-manager local -P resume_run=<id>
  mlflow run . --env-manager local -P resume_run=latest -P epochs=40
"""


class _Group(click.Group):
    """Ends with one line and the error's exit code; `--debug` shows where it came from."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TrainError as error:
            if ctx.params.get("debug") or ctx.meta.get("train.debug"):
                raise
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "train"
            message = error.format_message().removesuffix(".").replace("'?", "'")
            click.echo(f"error: {message}. `{command} --help` lists what there is", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("error: stopped by SIGINT", err=True)
            ctx.exit(75)


class _OptionCommand(click.Command):
    """Shows its options under the headings of `Option.group`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        headings: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                group = getattr(param, "heading", "Other")
                headings.setdefault(group, []).append(record)
        for heading, records in headings.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class _ConfigOption(click.Option):
    """One field of `Config` or `Launch`."""

    def __init__(self, config_class: type, field: dataclasses.Field[Any]) -> None:
        opt = field.metadata["option"]
        # A flag may stand alone; through MLflow it always has a value.
        is_bool = str(field.type) == "bool"
        flag: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if is_bool else {}
        shown = field.default is not None and field.default is not False and field.default != ()
        default = f"  [{to_text(field.default)}]" if shown else ""
        super().__init__(
            [f"--{field.name}"],
            help=opt.help + default,
            metavar=opt.metavar or ("|".join(opt.choices) or _metavar(str(field.type))),
            callback=_parser(config_class, field.name),
            **flag,
        )
        self.heading = opt.group


def _metavar(kind: str) -> str:
    names = {"int": "N", "float": "X", "bool": "true|false", "tuple[str, ...]": "A,B,…"}
    return names.get(kind.removesuffix(" | None"), "TEXT")


def _parser(config_class: type, name: str) -> Callable[[click.Context, Any, str | None], Any]:
    def convert(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
        return None if text is None else (name, parse(config_class, name, text))

    return convert


def _debug(ctx: click.Context, param: click.Parameter, text: str | None) -> None:
    if text is not None:
        ctx.meta["train.debug"] = text.lower() == "true"


@click.group(cls=_Group)
@click.version_option(package_name="resumable-train")
def main() -> None:
    """Train on one machine, lose it, go on from the run ID on another."""
    environment.prepare_process()


def _run_command(**values: Any) -> None:
    """Train: a fresh run, or with --resume_run from where a run was left."""
    given = dict(item for item in values.values() if item is not None)
    launch = Launch(**{k: given.pop(k) for k in options_of(Launch) if k in given})
    Config(**given)  # refuses bad values before anything is imported or opened

    from train.report import Reporter

    reporter = Reporter()
    reporter.open_log()
    try:
        logging.getLogger("train").info("Loading torch and MLflow …")
        from train.launch import open_run
        from train.loop import train

        run, task = open_run(given, launch, reporter)
        with run:
            train(run, task)
    finally:
        reporter.close_log()


@main.command("list")
@click.argument("run", required=False)
@click.option("--json", "as_json", is_flag=True, help="For scripts: JSON, times as Unix seconds.")
def list_command(run: str | None, as_json: bool) -> None:
    """List the experiment's runs that can be resumed, or the checkpoints of RUN."""
    environment.expect_small_downloads()

    from train import listing
    from train.tracking import Tracking

    tracking = Tracking()
    rows = listing.checkpoint_rows(tracking, run) if run else listing.run_rows(tracking)
    listing.show(rows, run, as_json)


main.add_command(
    _OptionCommand(
        "run",
        callback=_run_command,
        params=[
            *(_ConfigOption(c, f) for c in (Launch, Config) for f, _ in options_of(c).values()),
            click.Option(
                ["--debug"],
                is_flag=False,
                flag_value="true",
                expose_value=False,
                callback=_debug,
                metavar="true|false",
                help="Show where an error came from.",
            ),
        ],
        help=_run_command.__doc__,
        epilog=_EPILOG,
    )
)
