"""A loop of one's own as the library sees it: what it trains is known by its script and config."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from onward.checkpoint.content import Content
from onward.errors import RunNotUsable, UsageError
from onward.metrics import History
from onward.monitor import NO_MONITOR, Best, Monitor
from onward.opening.source import find_run
from onward.options.declare import option
from onward.options.run_options import RunOptions
from onward.run.state import require_same_names
from onward.run.subject import DatasetInfo, Kind, RunFiles, Stored
from onward.script.source import CODE_FILE, PATCH_FILE, difference, digest_of
from onward.system.untrusted import shown
from onward.tracking.artifacts import Artifacts
from onward.tracking.client import Tracking
from onward.tracking.models import ServedModel
from onward.tracking.names import TASK_TAG
from onward.words.language import _
from onward.words.redact import redact

log = logging.getLogger(__name__)

NAME = "own-loop"  # of what all such runs train
MAX_PARAMS = 1_000
_PARAM_CHARS = re.compile(r"[^\w./\- ]")
_MAX_KEY_CHARS, _MAX_VALUE_CHARS = 250, 6_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScriptOptions(RunOptions):
    """The options of a loop of one's own; how long it is, its range tells."""

    epochs: int = option(
        0, "How many epochs, or steps, the run has: told by its loop.", "Training", minimum=0,
        is_new=True,
    )  # fmt: skip
    log_model: bool = option(True, "When training is finished, draw its curves.", "Results")


@dataclasses.dataclass(frozen=True)
class Script:
    """A loop of one's own.

    Args:
        name: Of the script, or what stands for it.
        config: Name to value: what is logged as params, and known by `auto`.
        ignored: Names in `config` that may differ between two starts of the same training.
        monitor: The metric that decides which unit is best.
        copies_in_background: Whether only steps of optimizers change weights.
        code: What the script says; "" if that is not known.
        parts: The names of what it brings.
    """

    name: str
    config: Mapping[str, Any]
    ignored: Collection[str] = ()
    monitor: Monitor = NO_MONITOR
    copies_in_background: bool = False
    code: str = ""
    parts: Collection[str] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what it is known by, in hex."""
        kept = {name: text for name, text in self.config.items() if name not in self.ignored}
        document = json.dumps([self.name, kept], sort_keys=True, default=str)
        return hashlib.sha256(document.encode()).hexdigest()

    @property
    def params(self) -> dict[str, str]:
        """The config as MLflow takes it, without secrets."""
        return {
            _PARAM_CHARS.sub("_", key)[:_MAX_KEY_CHARS]: _value(key, text)
            for key, text in list(self.config.items())[:MAX_PARAMS]
        }


def _value(key: str, text: str) -> str:
    """Return a value without a secret, which its name may tell it to be."""
    return redact(f"{key}={text}").removeprefix(f"{key}=")[:_MAX_VALUE_CHARS]


def config_of(given: Any) -> dict[str, str]:
    """Return a config as names and texts, what is nested by its path.

    Args:
        given: A mapping, what argparse returns, or a dataclass; None: an empty one.

    Raises:
        UsageError: It is none of these.

    >>> config_of({"lr": 0.1, "model": {"width": 8, "layers": [1, 2]}})
    {'lr': '0.1', 'model.width': '8', 'model.layers': '[1, 2]'}
    """
    if given is None:
        return {}
    if isinstance(given, argparse.Namespace):
        given = vars(given)
    elif dataclasses.is_dataclass(given) and not isinstance(given, type):
        given = dataclasses.asdict(given)
    if not isinstance(given, Mapping):
        raise UsageError(
            _("config is a {kind}: give a dict, such as vars(args)").format(
                kind=type(given).__name__
            )
        )
    found: dict[str, str] = {}
    for key, value in given.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": text for inner, text in config_of(value).items()}
        else:
            found[str(key)] = str(value)
    return found


class ScriptSubject:
    """What a loop of one's own trains; see `onward.run.subject.Subject`.

    Args:
        script: The loop.
        options: Those of the run.
        patch: How the script differs from the one that the run began with; "": it does not.
        fingerprint: What the run is known by, where a command looks after it without its loop.
    """

    name = NAME

    def __init__(
        self, script: Script, options: RunOptions, patch: str = "", fingerprint: str | None = None
    ) -> None:
        self._script, self.options = script, options
        self._patch, self._fingerprint = patch, fingerprint

    @property
    def monitor(self) -> Monitor:
        """The metric that decides which unit is best."""
        return self._script.monitor

    @property
    def copies_in_background(self) -> bool:
        """Whether only steps of optimizers change weights."""
        return self._script.copies_in_background

    @property
    def data_fingerprint(self) -> str:
        """What the loop is known by: nobody here knows its data."""
        return self._fingerprint or self._script.fingerprint

    def params(self) -> Mapping[str, str]:
        """Return the config, as MLflow takes it."""
        return self._script.params

    def code(self) -> Mapping[str, bytes]:
        """Return the script, and how it differs."""
        files = {CODE_FILE: self._script.code, PATCH_FILE: self._patch}
        return {name: text.encode() for name, text in files.items() if text}

    def facts(self) -> Mapping[str, Any]:
        """Return what a checkpoint says of the loop."""
        script = self._script
        return {
            "script": script.name,
            "script_sha256": digest_of(script.code),
            "config": dict(script.params),
        }

    def in_words(self) -> Iterable[str]:
        """Return what is trained, in a line."""
        yield _("Script: {name}").format(name=self._script.name)

    def dataset_info(self) -> DatasetInfo | None:
        """Return nothing: the data is the loop's own."""
        return None

    def keep(self, files: RunFiles) -> None:
        """Keep nothing: the data is the loop's own."""

    def extras(self, history: History, best: Best | None) -> Mapping[str, Any]:
        """Return nothing besides the parts."""
        return {}

    def figures(self, content: Content, is_best: bool) -> Mapping[str, bytes]:
        """Return no pictures besides the curves, which every run has."""
        return {}

    def model(self, content: Content, folder: Path) -> ServedModel | None:
        """Return none: what its parts make is known to the loop alone."""
        return None


class ScriptKind:
    """Opens what a loop of one's own trains; see `onward.run.subject.Kind`.

    Args:
        script: The loop; None where a command looks after runs of any.
    """

    name, declared, knows_length = NAME, ScriptOptions, False

    def __init__(self, script: Script | None = None) -> None:
        self._script, self._patch = script, ""

    def open(self, options: RunOptions, stored: Stored | None) -> ScriptSubject:
        """Return what is to be trained."""
        if self._script is None:
            assert stored is not None
            return ScriptSubject(Script("", {}), options, fingerprint=stored.data_fingerprint)
        return ScriptSubject(self._script, options, self._patch)

    def compare(
        self, run_id: str, content: Content, options: RunOptions, artifacts: Artifacts
    ) -> None:
        """Tell what of the loop is not as it was when a checkpoint was saved.

        Raises:
            CheckpointError: The parts of its state are others.
            RunNotUsable: Something else is, and `strict` refuses it.
        """
        script, data = self._script, content.data
        if script is None:
            return
        require_same_names(script.parts, content.parts, str(data.get("script")), script.name)
        differ = list(_differences(content, script))
        then, now = data.get("script_sha256"), digest_of(script.code)
        if now and then and then != now:
            self._patch = difference(artifacts, script.code)
            differ.append(_("the script was edited (code/script.patch of the attempt tells how)"))
        if not differ:
            return
        listed = "; ".join(differ[:10])
        if options.strict:
            raise RunNotUsable(
                run_id,
                _("is not continued with strict=True, since this is not as it was: {listed}. Fork "
                  "it with fork=True").format(listed=listed),
            )  # fmt: skip
        log.warning(
            _("Not as it was in run '%s': %s. Going on all the same; what the state holds, such as "
              "an optimizer's rate, is the run's"), run_id, listed,
        )  # fmt: skip

    def from_file(
        self, path: Path, given: Mapping[str, Any], weights_only: bool
    ) -> tuple[ScriptSubject, Content]:
        """Refuse: only the loop knows what is in a file that this library has not made."""
        raise UsageError(
            _("resume_from={path} is for the trainer's own runs: load the file into the model "
              "before open_run").format(path=path)
        )  # fmt: skip

    def is_source_of(self, options: RunOptions, data_fingerprint: str) -> bool:
        """Tell whether the options name the data: they do not."""
        return False


def _differences(content: Content, script: Script) -> Iterator[str]:
    """Yield what differs of the script's name, its metric and its config."""
    data = content.data
    if data.get("script") != script.name:
        yield _("the script was {then} and is {now}").format(
            then=shown(str(data.get("script")), 60), now=shown(script.name, 60)
        )
    if content.monitor != script.monitor:
        yield _("{what} decided which is best, and {now} is given: the run's stays").format(
            what=content.monitor, now=script.monitor
        )
    then = data.get("config")
    then, now = then if isinstance(then, Mapping) else {}, script.params
    for name in [*then, *(name for name in now if name not in then)]:
        if name not in script.ignored and then.get(name) != now.get(name):
            yield _("{name} was {then} and is {now}").format(
                name=shown(str(name), 60), then=shown(str(then.get(name, "-")), 60),
                now=shown(str(now.get(name, "-")), 60),
            )  # fmt: skip


def kind_of(tracking: Tracking, run_id: str, otherwise: Kind | None) -> Kind | None:
    """Return what a run trains that is of a loop of one's own, as far as can be told; else another.

    Raises:
        RunNotUsable: There is no such run.
    """
    is_own = find_run(tracking, run_id).tags.get(TASK_TAG) == NAME
    return ScriptKind() if is_own else otherwise
