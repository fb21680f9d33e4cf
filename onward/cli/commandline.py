"""What the commands are made of: groups and options of click that speak as this program does.

Options come from the classes that declare them; an error becomes one line and an exit code; what
is said is one line that no terminal takes for anything else.
"""

from __future__ import annotations

import errno
import io
import sys
from typing import Any

import click

from onward.cli.helptext import Command, Context
from onward.errors import TrainError
from onward.system import environment
from onward.system.untrusted import told
from onward.words import language
from onward.words.language import _


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


def set_debug(ctx: click.Context, param: click.Parameter, text: str | None) -> None:
    """Remember what `--debug` says."""
    if text is not None:
        ctx.meta["train.debug"] = text.lower() == "true"
