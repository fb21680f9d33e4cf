"""The options that a run is gone on with: those of its checkpoint, and what of its tag may count.

Anybody who may write to the server can write the tag `train.options`. So it changes what a resume
may change anyway, and never what uses the rights of whoever resumes: where data is read, what is
given away, and where to.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from typing import Any, TypeVar

from onward.errors import UsageError
from onward.options.declare import OnResume, options_of, parse, to_text
from onward.options.run_options import RunOptions
from onward.system.untrusted import shown
from onward.tracking.names import OPTIONS_TAG
from onward.tracking.record import RunRecord
from onward.words.language import _

log = logging.getLogger(__name__)


Options = TypeVar("Options", bound=RunOptions)
Doubted = Mapping[str, str]  # option to what the tag alone says of it, as text


def options_of_saved(record: RunRecord, saved: Options) -> tuple[Options, Doubted]:
    """Return the options to go on with from a checkpoint, and what of the tag does not count.

    Args:
        record: The run.
        saved: The checkpoint's own options.
    """
    tag = record.options(type(saved))
    if tag is None:
        return saved, {}
    declared = options_of(type(saved))
    by_tag = {n for n, (_f, o) in declared.items() if o.by_tag and o.on_resume is OnResume.CHANGE}
    doubted = _doubted(tag, {n: getattr(saved, n) for n in declared if n not in by_tag})
    return saved.replace(**{name: getattr(tag, name) for name in by_tag}), doubted


def options_of_unsaved(
    record: RunRecord, declared: type[Options]
) -> tuple[Options | None, Doubted]:
    """Return the same of a run that died before its first checkpoint; None if it has no options.

    The tag alone tells them. What is not its to say is taken from the params, which the first
    attempt wrote and nobody can write again; else it is the default.
    """
    tag = record.options(declared)
    if tag is None:
        return None, {}
    own = {}
    for name, (field, opt) in options_of(declared).items():
        if not opt.by_tag:
            own[name] = _by_param(record, declared, name, getattr(tag, name), field.default)
    return tag.replace(**own), _doubted(tag, own)


def _by_param(
    record: RunRecord, declared: type[RunOptions], name: str, value: Any, default: Any
) -> Any:
    param, text = record.params.get(name), to_text(value)
    if param is None:
        return default
    if param in (text, shlex.quote(text)):  # `mlflow run` logs it quoted
        return value
    try:
        return parse(declared, name, param)
    except UsageError:
        return default


def _doubted(tag: RunOptions, taken: Mapping[str, Any]) -> Doubted:
    return {
        name: to_text(getattr(tag, name))
        for name, value in taken.items()
        if getattr(tag, name) != value
    }


def report_doubted(record: RunRecord, doubted: Doubted, given: Mapping[str, Any]) -> None:
    """Tell what only the tag says, but for what the command gives itself."""
    told = [f"{name}={shown(text, 60)}" for name, text in doubted.items() if name not in given]
    if told:
        log.warning(
            _("Of run '%s' only the tag %s says %s, and anybody may have written it: that does not "
              "count. Give what you want of it as options"),
            record.run_id, OPTIONS_TAG, ", ".join(told),
        )  # fmt: skip
