"""What the server knows of a run, read field by field: whoever may write there can write anything.

A value that is none that this program writes counts as unknown, with one warning, so that one bad
run neither ends a command nor hides the others.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from onward.errors import RunNotUsable, TrainError, UnsafeValue
from onward.metrics import EPOCH, UNITS
from onward.monitor import UNDECLARED, Monitor
from onward.options.command import Standing, horizon_of, script_of, task_of
from onward.options.run_options import RunOptions
from onward.system.untrusted import fingerprint, parse_json, path_part, shown, whole_number
from onward.tracking.names import (
    ATTEMPT_PARAM,
    COMMAND_TAG,
    DATA_TAG,
    EPOCH_TAG,
    FINGERPRINT_TAG,
    HEARTBEAT_TAG,
    INDEX_TAG,
    MANIFEST_TAG,
    MONITOR_TAG,
    OPTIONS_TAG,
    TASK_TAG,
    UNIT_TAG,
)
from onward.words.language import _

UNKNOWN = "?"
Options = TypeVar("Options", bound=RunOptions)
STATUSES = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")
MAX_TIME_MS = 1e14  # a year of five digits, which no clock shows

log = logging.getLogger(__name__)

_told: set[tuple[str, str]] = set()  # (run, field) that a warning named already


@dataclass(frozen=True)
class RunRecord:
    """What the server knows of a run, at one moment.

    `params`, `tags` and `metrics` are as somebody wrote them; the properties are sound.
    """

    run_id: str
    name: str
    experiment_id: str
    status: str  # RUNNING, FINISHED, FAILED, KILLED
    artifact_uri: str
    start_time_ms: int
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]

    @classmethod
    def of(cls, run: Any) -> RunRecord:
        """Return the record of a run as MLflow's client returns it; its IDs may be parts of paths.

        Raises:
            UnsafeValue: They are not.
        """
        info, data = run.info, run.data
        return cls(
            run_id=path_part(info.run_id, _("run ID")),
            name=info.run_name or "",
            experiment_id=path_part(info.experiment_id, _("experiment ID")),
            status=info.status if info.status in STATUSES else UNKNOWN,
            artifact_uri=info.artifact_uri,
            start_time_ms=info.start_time or 0,
            params=data.params,
            tags=data.tags,
            metrics=data.metrics,
        )

    @property
    def is_ours(self) -> bool:
        """Whether this program made the run (and it is not the child of an attempt)."""
        return FINGERPRINT_TAG in self.tags

    @property
    def attempts(self) -> int:
        """Number of the newest attempt that was claimed; 0 if none was.

        Attempts are claimed one after the other, so that a number beyond a gap is none of them. A
        claim counts whatever its value: a param is never written again, so its number is taken.
        """
        number = 0
        while f"{ATTEMPT_PARAM}{number + 1}" in self.params:
            number += 1
        claims = {f"{ATTEMPT_PARAM}{n}" for n in range(1, number + 1)}
        beyond = (k for k in self.params if k.startswith(ATTEMPT_PARAM) and k not in claims)
        for key in islice(beyond, 1):
            self.warn(key, self.params[key])
        return number

    @property
    def attempts_to_claim(self) -> list[int]:
        """Numbers that the next attempt has to claim to be the newest one; it is the last of them.

        It is one, unless somebody has written later ones ahead.
        """
        numbers = [self.attempts + 1]
        while f"{ATTEMPT_PARAM}{numbers[-1] + 1}" in self.params:
            following = numbers[-1] + 1
            while f"{ATTEMPT_PARAM}{following}" in self.params:
                following += 1
            numbers.append(following)
        return numbers

    def child_of(self, attempt: int) -> str | None:
        """Return the ID of the run that stands for an attempt, None if its claim names none."""
        key = f"{ATTEMPT_PARAM}{attempt}"
        try:
            return path_part(self.params[key], key)
        except KeyError:
            return None
        except TrainError:
            self.warn(key, self.params[key])
            return None

    @property
    def epoch(self) -> int | None:
        """Epoch of the newest checkpoint, if the run tells."""
        return self._number(EPOCH_TAG, self.tags.get(EPOCH_TAG))

    @property
    def epochs(self) -> int | None:
        """How many the newest attempt trains to, if the run tells."""
        found = self._options().get("epochs")
        if found is None:
            return None
        try:
            return RunOptions(epochs=found).epochs
        except TrainError:
            self.warn(OPTIONS_TAG, self.tags[OPTIONS_TAG])
            return None

    @property
    def monitor(self) -> Monitor:
        """The metric that decides which checkpoint is best."""
        text = self.tags.get(MONITOR_TAG)
        if text is None:
            return UNDECLARED
        try:
            return Monitor.parse(text)
        except ValueError:
            self.warn(MONITOR_TAG, text)
            return UNDECLARED

    @property
    def best(self) -> float | None:
        """The best value of the monitored metric, if there is one."""
        key = f"best_{self.monitor.name}"
        value = self.metrics.get(key)
        if value is None or math.isnan(value):
            return None
        score = self.monitor.score(value)
        if score is None:
            self.warn(key, value)
        return score

    @property
    def best_epoch(self) -> int | None:
        """Its epoch."""
        value = self.metrics.get("best_epoch")
        if value is None or math.isnan(value):
            return None
        return self._number("best_epoch", f"{value:.0f}" if value == value // 1 else str(value))

    @property
    def started(self) -> float | None:
        """When the run was made, in seconds since 1970, if that can have been."""
        time_ms = self.start_time_ms
        if isinstance(time_ms, int) and 0 <= time_ms < MAX_TIME_MS:
            return time_ms / 1000
        self.warn("start_time", time_ms)
        return None

    @property
    def last_active(self) -> float:
        """When somebody worked on it last, in seconds since 1970: by the clock of that machine.

        Without a heartbeat that can be read, when it began.
        """
        started = self.started or 0.0
        try:
            told = parse_json(self.tags[HEARTBEAT_TAG])["time"]
            is_time = not isinstance(told, bool) and 0 <= told < MAX_TIME_MS / 1000
            return max(started, float(told)) if is_time else started
        except (KeyError, ValueError, TypeError):
            return started

    @property
    def standing(self) -> Standing:
        """How the run stands, by what is committed."""
        options = self.run_options()
        told = self._options()
        return Standing(
            self.run_id,
            self.status == "FINISHED",
            self.epoch or 0,
            self.epochs,
            options.early_stopping if options else 0,
            self.best_epoch,
            horizon_of(told) if options else None,
            task_of(told),
            self._script(),
        )

    def _script(self) -> tuple[str, ...] | None:
        """Return the words that start the loop of one's own that the run is of, if it is one."""
        if COMMAND_TAG not in self.tags:
            return None
        text = self.tags[COMMAND_TAG]
        try:
            found = script_of(parse_json(text))
        except ValueError:
            found = None
        if found is None:
            self.warn(COMMAND_TAG, text)
        return found or ("python", "<script>")

    @property
    def unit(self) -> str:
        """What the run counts: epochs, or steps."""
        unit = self.tags.get(UNIT_TAG, EPOCH)
        return unit if unit in UNITS else EPOCH

    @property
    def task_facts(self) -> dict[str, str]:
        """What the run says it trains, as a checkpoint says it."""
        name = self.tags.get(TASK_TAG)
        return {} if name is None else {"task": name}

    @property
    def manifest_sha256(self) -> str | None:
        """SHA-256 of the newest checkpoint's manifest, if the run tells."""
        return self._sha256(MANIFEST_TAG)

    @property
    def index_sha256(self) -> str | None:
        """SHA-256 of the list of checkpoints, if the run tells."""
        return self._sha256(INDEX_TAG)

    def _sha256(self, tag: str) -> str | None:
        value = self.tags.get(tag)
        try:
            return None if value is None else fingerprint(value, tag)
        except TrainError:
            self.warn(tag, value)
            return None

    @property
    def data_fingerprint(self) -> str:
        """Fingerprint of the run's data.

        Raises:
            RunNotUsable: The run does not tell.
            UnsafeValue: What it tells is none.
        """
        if DATA_TAG not in self.tags:
            why = _("does not say by which data it was trained: its tag {tag} is gone")
            raise RunNotUsable(self.run_id, why.format(tag=DATA_TAG))
        return fingerprint(self.tags[DATA_TAG], _("data fingerprint"))

    def run_options(self) -> RunOptions | None:
        """Return those options of the newest attempt that every run has; see `options`."""
        return self._read(RunOptions.known_of)

    def options(self, declared: type[Options]) -> Options | None:
        """Return the options that the newest attempt ran with, None if the tag does not tell.

        Anybody may have written them: see `opening.restored`.

        Args:
            declared: The class of the options of what the run trains.
        """
        return self._read(declared.from_dict)

    def _read(self, made_of: Callable[[Mapping[str, Any]], Options]) -> Options | None:
        found = self._options()
        try:
            return made_of(found) if found else None
        except TrainError as error:
            self.warn(OPTIONS_TAG, error)
            return None

    def _options(self) -> Mapping[str, Any]:
        text = self.tags.get(OPTIONS_TAG)
        if text is None:
            return {}
        try:
            found = parse_json(text)
        except ValueError:
            found = None
        if isinstance(found, dict):
            return found
        self.warn(OPTIONS_TAG, text)
        return {}

    def _number(self, field: str, text: str | None) -> int | None:
        if text is None:
            return None
        number = whole_number(text)
        if number is None:
            self.warn(field, text)
        return number

    def warn(self, field: str, value: object) -> None:
        """Tell once that what `field` holds counts as unknown."""
        key = (self.run_id, field)
        if key not in _told:
            _told.add(key)
            log.warning(
                _("Of run '%s' %s counts as unknown: '%s' is none that this program writes"),
                self.run_id, shown(field, 60), shown(str(value), 60),
            )  # fmt: skip


def records_of(runs: Iterable[Any]) -> list[RunRecord]:
    """Return those of the runs that can be used; what is told of another hides none."""
    records = []
    for run in runs:
        try:
            records.append(RunRecord.of(run))
        except UnsafeValue as error:
            log.warning("%s", error)
    return records
