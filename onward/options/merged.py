"""The options of a run from those of its parts: one flat namespace."""

from __future__ import annotations

import dataclasses
import functools

from onward.errors import UsageError
from onward.options.declare import KINDS, kind_of, options_of
from onward.options.run_options import RunOptions
from onward.words.language import _


@functools.cache
def merged(own: type, *others: type) -> type[RunOptions]:
    """Return a class with the options of all.

    Args:
        own: A frozen dataclass of `option` fields: those of what is trained.
        others: Those that are there anyway, `RunOptions` last.

    Raises:
        UsageError: A name is there twice, or `own` is not made of options.
    """
    require_options(own)
    taken = {name for other in others for name in options_of(other)}
    twice = sorted(taken & set(options_of(own)))
    if twice:
        raise UsageError(
            _("{name}: the option {options} is there already: call it something else").format(
                name=own.__name__, options=", ".join(twice)
            )
        )
    made = type("Options", (own, *others), {"__annotations__": {}, "__doc__": own.__doc__})
    return dataclasses.dataclass(frozen=True, kw_only=True)(made)


def require_options(own: type) -> None:
    """Refuse a class that is no frozen dataclass whose fields are all options.

    Raises:
        UsageError: It says which field is wrong.
    """
    is_frozen = dataclasses.is_dataclass(own) and own.__dataclass_params__.frozen  # type: ignore[attr-defined]
    if not is_frozen:
        told = _("{name} is to be a dataclass with frozen=True and kw_only=True")
        raise UsageError(told.format(name=own.__name__))
    for field in dataclasses.fields(own):
        if "option" not in field.metadata:
            told = _("{name}.{field} is to be made by option(default, help, group)")
            raise UsageError(told.format(name=own.__name__, field=field.name))
        if kind_of(field).removesuffix(" | None") not in KINDS:
            told = _("{name}.{field} is of {kind}, and options are of {kinds}")
            raise UsageError(
                told.format(
                    name=own.__name__, field=field.name, kind=kind_of(field), kinds=", ".join(KINDS)
                )
            )
