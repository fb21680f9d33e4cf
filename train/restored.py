"""The options that a run is gone on with: those of its checkpoint, and what of its tag may count.

Anybody who may write to the server can write the tag `train.options`. So it changes what a resume
may change anyway, and never what uses the rights of whoever resumes: where data is read, what is
given away, and where to.
"""

from __future__ import annotations

import logging
import shlex
from typing import Any

from train.config import Config
from train.declare import OnResume, options_of, parse, to_text
from train.errors import UsageError
from train.language import _
from train.tracking import OPTIONS_TAG, RunRecord
from train.untrusted import shown

log = logging.getLogger(__name__)


def options_of_saved(record: RunRecord, saved: Config) -> Config:
    """Return the options to go on with from a checkpoint.

    Args:
        record: The run.
        saved: The checkpoint's own options.
    """
    tag = record.options()
    if tag is None:
        return saved
    declared = options_of(Config)
    by_tag = {n for n, (_f, o) in declared.items() if o.by_tag and o.on_resume is OnResume.CHANGE}
    _warn(record, tag, {n: getattr(saved, n) for n in declared if n not in by_tag})
    return saved.replace(**{name: getattr(tag, name) for name in by_tag})


def options_of_unsaved(record: RunRecord) -> Config | None:
    """Return the options of a run that died before its first checkpoint; None if it has none.

    The tag alone tells them. What is not its to say is taken from the params, which the first
    attempt wrote and nobody can write again; else it is the default.
    """
    tag = record.options()
    if tag is None:
        return None
    own = {}
    for name, (field, opt) in options_of(Config).items():
        if not opt.by_tag:
            own[name] = _by_param(record, name, getattr(tag, name), field.default)
    _warn(record, tag, own)
    return tag.replace(**own)


def _by_param(record: RunRecord, name: str, value: Any, default: Any) -> Any:
    param, text = record.params.get(name), to_text(value)
    if param is None:
        return default
    if param in (text, shlex.quote(text)):  # `mlflow run` logs it quoted
        return value
    try:
        return parse(Config, name, param)
    except UsageError:
        return default


def _warn(record: RunRecord, tag: Config, taken: dict[str, Any]) -> None:
    """Tell which options of the tag do not count, if there are any."""
    told = [
        f"{name}={shown(to_text(getattr(tag, name)), 60)}"
        for name, value in taken.items()
        if getattr(tag, name) != value
    ]
    if told:
        log.warning(
            _("Of run '%s' only the tag %s says %s, and anybody may have written it: that does not "
              "count. Give what you want of it as options"),
            record.run_id, OPTIONS_TAG, ", ".join(told),
        )  # fmt: skip
