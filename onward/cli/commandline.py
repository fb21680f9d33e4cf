"""What the commands are made of: groups and options of click that speak as this program does.

Options come from `Config` and `Launch`; an error becomes one line and an exit code; what is said
is one line that no terminal takes for anything else.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import re
import sys
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from onward.cli.helptext import Command, Context
from onward.errors import TrainError
from onward.options.declare import parse, to_text
from onward.system import environment
from onward.system.untrusted import told
from onward.words import language
from onward.words.language import _

_NAMED = re.compile(r"[A-Za-z][\w-]*=")


def say(text: object, err: bool = False) -> None:
    """Print one line: what others wrote in it is escaped, and no secret is in it."""
    click.echo(told(text), err=err)


class Group(click.Group):
    """Ends with one line and the error's exit code; `--debug` shows where it came from."""

    command_class = Command
    context_class = Context

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        # The script version wrote --checkpoint-freq. Of every command, by way of its context.
        spelling = {"token_normalize_func": lambda name: name.replace("-", "_")}
        super().__init__(*arguments, context_settings=spelling, **settings)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Choose the language first."""
        # Here, since this shows the help, and refuses options, before `main` is called.
        language.choose(environment.languages())
        if isinstance(sys.stdout, io.TextIOWrapper):  # what it cannot show is no error
            sys.stdout.reconfigure(errors="replace")
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what goes wrong is one line and an exit code."""
        try:
            return super().invoke(ctx)
        except TrainError as error:
            if ctx.meta.get("train.debug"):
                raise
            say(_("error: {error}").format(error=error), err=True)
            ctx.exit(error.exit_code)
        except click.UsageError as error:
            below = f"{ctx.command_path} {ctx.invoked_subcommand or ''}".rstrip()
            command = error.ctx.command_path if error.ctx else below
            message = error.format_message().removesuffix(".").replace("'?", "'")
            line = _("error: {message}. `{command} --help` lists what there is")
            say(line.format(message=message, command=command), err=True)
            ctx.exit(error.exit_code)
        except OSError as error:  # such as a full disk, or a folder that cannot be written
            if ctx.meta.get("train.debug"):
                raise
            if error.errno == errno.EPIPE:  # whoever read our output has had enough
                raise
            hint = _(". TRAIN_HOME names another folder for the cache and the spool")
            hint = hint if ctx.invoked_subcommand == "run" else ""
            say(_("error: {error}").format(error=error) + hint, err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            say(_("error: stopped by a signal"), err=True)
            ctx.exit(75)


class OptionCommand(Command):
    """Takes `name=value` for `--name value`; shows its options under their headings."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read what was typed: messages, like MLflow's -P, have options as `name=value`."""
        _options, rest, _order = self.make_parser(ctx).parse_args(list(args))
        for word in filter(_NAMED.match, rest):
            args.remove(word)
            name, _equals, value = word.partition("=")
            args += [f"--{name}", value]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write them."""
        headings: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                group = getattr(param, "heading", _("Other"))
                headings.setdefault(group, []).append(record)
        for heading, records in headings.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class ConfigOption(click.Option):
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
        self.heading, self._choices = opt.group, opt.choices or (("true", "false") * is_bool)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer the values that begin like `incomplete`; a file's name for anything else."""
        if not self._choices:
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(value) for value in self._choices if value.startswith(incomplete)]


def _metavar(kind: str) -> str:
    names = {"int": "N", "float": "X", "bool": "true|false", "tuple[str, ...]": "A,B,…"}
    return names.get(kind.removesuffix(" | None"), "TEXT")


def _parser(config_class: type, name: str) -> Callable[[click.Context, Any, str | None], Any]:
    def convert(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
        return None if text is None else (name, parse(config_class, name, text))

    return convert


def set_debug(ctx: click.Context, param: click.Parameter, text: str | None) -> None:
    """Remember what `--debug` says."""
    if text is not None:
        ctx.meta["train.debug"] = text.lower() == "true"
