"""What is not as it was when a checkpoint was made: code, packages, processor, threads."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from onward.errors import RunNotUsable
from onward.words.language import _

log = logging.getLogger(__name__)

# Where these differ, results can differ in their last bits.
_EXACTNESS = ("device", "instructions", "threads", "ranks", "torch", "numpy", "python", "cuda")
_NOT_COMPARED = {"host", "platform", "cpus"}  # another machine of the same kind is no news


class Difference(NamedTuple):
    """One thing that is not as it was."""

    what: str
    then: str
    now: str


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Return in what two environments differ; see `environment.describe`.

    What one of them does not tell, as an older checkpoint, is not compared. An older one may tell
    a package's version and not which build of it: it is then any build.
    """
    flat_then, flat_now = _flat(then), _flat(now)
    packages = _versions(now)
    return [
        Difference(key, str(flat_then[key]), str(flat_now[key]))
        for key in sorted(set(flat_then) & set(flat_now) - _NOT_COMPARED)
        if flat_then[key] != flat_now[key]
        and not (key in packages and flat_then[key] == str(flat_now[key]).partition("+")[0])
    ]


def _flat(environment: Any) -> dict[str, Any]:
    if not isinstance(environment, Mapping):
        return {}
    return {**environment, **_versions(environment), "versions": None}


def _versions(environment: Any) -> Mapping[str, Any]:
    found = environment.get("versions") if isinstance(environment, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def report(run_id: str, found: list[Difference], strict: bool, fork_command: str) -> None:
    """Show the differences as a short table.

    Args:
        run_id: The run.
        found: What `differences` returned.
        strict: Whether they are an error.
        fork_command: What goes on all the same, as a run of its own.

    Raises:
        RunNotUsable: There are some, and `strict` is set.
    """
    if not found:
        return
    if strict:
        changes = ", ".join(
            _("{what} was {then} and is {now}").format(what=d.what, then=d.then, now=d.now)
            for d in found
        )
        raise RunNotUsable(
            run_id,
            _("is not continued with strict=true: {changes}. Fork it: {command}").format(
                changes=changes, command=fork_command
            ),
        )
    log.warning(_("Not everything is as it was at the checkpoint:"))
    width = max(len(d.what) for d in found)
    for what, then, now in found:
        log.warning("  %-*s  %s -> %s", width, what, _short(then), _short(now))
    if any(d.what in _EXACTNESS for d in found):
        log.warning(
            _(
                "So what follows may differ in its last bits from what it would have been "
                "(strict=true would refuse)"
            )
        )


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
