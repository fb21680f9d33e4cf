"""Declaring options: one field of a dataclass each, with default, meaning and limits.

The command line, ``--help``, the tables of docs/options.md and MLflow's params are all made from
them.
"""

from __future__ import annotations

import dataclasses
import math
from enum import Enum
from typing import Any

from onward.errors import UsageError
from onward.system.untrusted import shown
from onward.words.language import _

MAX_BITS = 64  # of a whole number
# What an option can be a matter of, see `Option.covers`.
DATA = "data"  # what is trained on: the fingerprint of the data tells it
ORDER = "order"  # in which the samples come
MACHINE = "machine"  # which chooses it where it is not given
KINDS = ("bool", "int", "float", "str", "tuple[str, ...]")  # each also with `| None`


class OnResume(Enum):
    """What happens when an option is given on a resume with another value than the run's."""

    CHANGE = "the given value wins"
    FORK = "refused: only a fork may change it"
    NEVER = "refused, also by a fork: another model, or other inputs, make another run"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """What is known about an option besides its name, type and default."""

    help: str
    group: str
    on_resume: OnResume = OnResume.CHANGE
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    covers: str = ""  # DATA, ORDER, MACHINE
    is_new: bool = False  # whether there are runs of a program that did not have it
    by_tag: bool = True  # whether a resume takes it from the run's tag, which anybody may write


def option(default: Any, help: str, group: str, **limits: Any) -> Any:
    """Declare a field that is an option; see `Option` for `limits`."""
    return dataclasses.field(
        default=default, metadata={"option": Option(help=help, group=group, **limits)}
    )


def options_of(config_class: type) -> dict[str, tuple[dataclasses.Field[Any], Option]]:
    """Return name to (field, option), in the order of declaration."""
    return {f.name: (f, f.metadata["option"]) for f in dataclasses.fields(config_class)}


def covered_by(config_class: type, *what: str) -> set[str]:
    """Return the names of the options that are a matter of `what`."""
    return {name for name, (_field, opt) in options_of(config_class).items() if opt.covers in what}


def kind_of(field: dataclasses.Field[Any]) -> str:
    """Return the type of an option as it is written, such as "int | None"."""
    return field.type.__name__ if isinstance(field.type, type) else str(field.type)


def parse(config_class: type, name: str, text: str) -> Any:
    """Turn the text of a command line into the value of the option `name`.

    Raises:
        UsageError: The text is not of the option's type.
    """
    field = options_of(config_class)[name][0]
    kind = kind_of(field)
    if not text.strip() and not kind.startswith("tuple"):
        raise UsageError(
            _("{name}= has no value: leave it out, or see that its variable is set").format(
                name=name
            )
        )
    if "None" in kind and text.strip().lower() == "none":
        return None
    try:
        if kind.startswith("tuple"):
            return tuple(part.strip() for part in text.split(",") if part.strip())
        if kind.startswith("bool"):
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                text.strip().lower()
            ]
        if kind.startswith("int"):
            return int(text)
        if kind.startswith("float"):
            return float(text)
    except (ValueError, KeyError):
        wanted = {"bool": _("true or false"), "int": _("a whole number"), "float": _("a number")}
        raise UsageError(
            _("{name}={text!r} is not {wanted} (the default is {default})").format(
                name=name,
                text=text,
                wanted=wanted[kind.split(" ")[0]],
                default=to_text(field.default),
            )
        ) from None
    return text


def to_text(value: Any) -> str:
    """Return the text from which `parse` makes `value` again."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def _require_kind(name: str, value: Any, kind: str) -> None:
    """Refuse a value of another type than its option has, as a document of somebody may hold."""
    if value is None and "None" in kind:
        return
    kind = kind.partition(" ")[0].partition("[")[0]
    kinds = {"bool": bool, "int": int, "float": int | float, "tuple": tuple, "str": str}
    fits = isinstance(value, kinds[kind]) and (kind == "bool" or not isinstance(value, bool))
    if fits and isinstance(value, int):
        fits = value.bit_length() <= MAX_BITS
    if fits and kind == "tuple":
        fits = all(isinstance(part, str) for part in value)
    if not fits:
        wanted = {
            "bool": _("true or false"), "int": _("a whole number"), "float": _("a number"),
            "tuple": _("a list of words"), "str": _("a word"),
        }  # fmt: skip
        raise UsageError(
            _("{name}={value} is not {wanted}").format(
                name=name, value=_in_short(value), wanted=wanted[kind]
            )
        )


def _in_short(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        return "…"  # Python refuses to write thousands of digits
    if isinstance(value, list | tuple | dict):  # nested in itself, perhaps
        return f"<{type(value).__name__}>"
    return shown(repr(value), 60)


def validate(config: Any) -> None:
    """Refuse values outside their limits.

    Raises:
        UsageError: Names the option, the value and the limit.
    """
    for name, (field, opt) in options_of(type(config)).items():
        value = getattr(config, name)
        _require_kind(name, value, kind_of(field))
        if value is None:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(
                _("{name}={value} is not a finite number").format(name=name, value=value)
            )
        if opt.choices and value not in opt.choices:
            raise UsageError(
                _("{name}={value!r} is not one of {choices}").format(
                    name=name, value=value, choices=", ".join(opt.choices)
                )
            )
        if opt.minimum is not None and not value >= opt.minimum:  # `not >=` refuses NaN too
            raise UsageError(
                _("{name}={value} is too small: the least is {minimum:g}").format(
                    name=name, value=value, minimum=opt.minimum
                )
            )
        if opt.maximum is not None and not value <= opt.maximum:
            raise UsageError(
                _("{name}={value} is too large: the most is {maximum:g}").format(
                    name=name, value=value, maximum=opt.maximum
                )
            )
