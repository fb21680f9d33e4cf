"""The command `train run`, whose options are those of what is trained."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from onward.cli.commandline import set_debug
from onward.cli.helptext import Command
from onward.options.declare import kind_of, options_of, parse, to_text
from onward.options.request import Launch
from onward.words.language import _
from train.kind import find_task
from train.loop_options import TABULAR

_KIND = "train.task"  # of the context: what is trained, if it is not the table
_NAMED = re.compile(r"[A-Za-z][\w-]*=")


class RunCommand(Command):
    """Takes the options of what is trained, also as `name=value`; shows them under headings.

    Args:
        name: Of the command.
        callback: Gets them.
        epilog: What the help ends with.
    """

    def __init__(self, name: str, callback: Callable[..., None], epilog: str) -> None:
        debug = click.Option(
            ["--debug"],
            is_flag=False,
            flag_value="true",
            expose_value=False,
            callback=set_debug,
            metavar="true|false",
            help="Show where an error came from.",
        )
        own: list[click.Parameter] = [
            *_options_of(Launch),
            *_options_of(find_task().declared),
            debug,
        ]
        super().__init__(name, callback=callback, params=own, help=callback.__doc__, epilog=epilog)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the parameters: of another task than the table, those of that task."""
        params = super().get_params(ctx)
        kind = ctx.meta.get(_KIND)
        if kind is None:
            return params
        names = {option.name for option in _options_of(find_task().declared)}
        return [
            *(param for param in params if param.name not in names),
            *_options_of(kind.declared),
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read what was typed: messages, like MLflow's -P, have options as `name=value`."""
        self._find_task(ctx, args)
        _options, rest, _order = self.make_parser(ctx).parse_args(list(args))
        for word in filter(_NAMED.match, rest):
            args.remove(word)
            name, _equals, value = word.partition("=")
            args += [f"--{name}", value]
        return super().parse_args(ctx, args)

    def _find_task(self, ctx: click.Context, args: list[str]) -> None:
        """Load the task that is named, so that its options are known."""
        for word, following in zip(args, [*args, ""][1:], strict=True):
            name, equals, value = word.lstrip("-").partition("=")
            text = value if equals else following
            if name == "task" and text not in ("", TABULAR):
                ctx.meta[_KIND] = find_task(text)

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


def _options_of(declared: type) -> list[ConfigOption]:
    return [ConfigOption(declared, field) for field, _option in options_of(declared).values()]


class ConfigOption(click.Option):
    """One field of a class that declares options."""

    def __init__(self, config_class: type, field: dataclasses.Field[Any]) -> None:
        opt = field.metadata["option"]
        # A flag may stand alone; through MLflow it always has a value.
        kind = kind_of(field)
        is_bool = kind == "bool"
        flag: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if is_bool else {}
        shown = field.default is not None and field.default is not False and field.default != ()
        default = f"  [{to_text(field.default)}]" if shown else ""
        super().__init__(
            [f"--{field.name}"],
            help=opt.help + default,
            metavar=opt.metavar or ("|".join(opt.choices) or _metavar(kind)),
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
