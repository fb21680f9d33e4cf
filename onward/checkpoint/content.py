"""What a checkpoint holds, with names and types: `Content`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onward.checkpoint.manifest import FORMAT_VERSION, READABLE_VERSIONS, checkpoint_name
from onward.metrics import EPOCH, UNITS, History
from onward.monitor import UNDECLARED, Monitor

_SUFFIX = "_state_dict"  # of a part's key in the file
_FIELDS = ("epoch", "step", "epoch_step", "epoch_sums", "epoch_seconds", "best_epoch", "rng",
           "config", "data", "environment", "timestamp")  # fmt: skip
# Of an epoch under way: every version has them, since `upgraded` gives them to the first.
_UNDER_WAY = ("epoch_step", "epoch_sums", "epoch_seconds")
_OPTIONAL: Mapping[str, Any] = {
    "unit": EPOCH, "axes": {}, "feeds": {}, "ranks": [], "world": 1, "layout": "",
}  # fmt: skip
# What a program that knows no version 3 takes out of a file.
_PARTS_OF_VERSION_2 = {"model", "optimizer", "scheduler"}
_NEEDED_BY_VERSION_2 = "best_corr"


@dataclass(frozen=True, kw_only=True)
class Content:
    """A checkpoint, read or about to be written: all that a resume needs.

    Args:
        epoch: Epochs completed.
        step: Optimizer steps completed.
        epoch_step: Those of the epoch under way; 0 between two epochs.
        epoch_sums: Its running sums, by name.
        epoch_seconds: What it has taken so far.
        parts: Name to what the `state_dict` of that part returned.
        rng: The state of the random number generators.
        history: Every metric so far; as it was read, of each the newest values: see `to_dict`.
        best_epoch: The best epoch so far, None if there is none.
        monitor: By which it is the best.
        config: The options of the run.
        data: What the run was trained on: `fingerprint`, and more to be looked at.
        environment: Where it was saved; see `environment.describe`.
        timestamp: When, in seconds since 1970.
        extras: What else the task wants to be found in the file.
        unit: What the run counts: "epoch", or "step" where its loop has no epochs. Then `epoch`
            counts steps too.
        axes: Of metrics that are not logged by unit: name to what their steps are.
        feeds: Where each loader is, by name.
        ranks: What each rank of several had of its own, such as random numbers; rank 0's first.
        world: How many ranks have trained it.
        layout: How the model was spread over them, "" where it was not. Then a marker stands for
            each tensor of which ranks have pieces; see `shards`.
    """

    epoch: int
    step: int
    parts: Mapping[str, Any]
    rng: Mapping[str, Any]
    history: History
    epoch_step: int = 0
    epoch_sums: Mapping[str, Any] = field(default_factory=dict)
    epoch_seconds: float = 0.0
    best_epoch: int | None = None
    monitor: Monitor = UNDECLARED
    config: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    timestamp: float = 0.0
    extras: Mapping[str, Any] = field(default_factory=dict)
    unit: str = EPOCH
    axes: Mapping[str, str] = field(default_factory=dict)
    feeds: Mapping[str, Any] = field(default_factory=dict)
    ranks: Sequence[Mapping[str, Any]] = ()
    world: int = 1
    layout: str = ""

    @property
    def name(self) -> str:
        """The folder of the checkpoint."""
        return checkpoint_name({name: getattr(self, name) for name in (*_FIELDS[:3], "unit")})

    @property
    def data_fingerprint(self) -> str:
        """What the run's data must be."""
        return str(self.data["fingerprint"])

    @property
    def metrics(self) -> dict[str, float]:
        """Those of the epoch just completed; none inside an epoch."""
        if self.epoch_step:
            return {}
        found = self.history.at(self.epoch)
        return {key: value for key, value in found.items() if key not in self.axes}

    @property
    def format_version(self) -> int:
        """The oldest version of the format that can say all of it."""
        is_of_2 = (
            self.monitor == UNDECLARED
            and set(self.parts) == _PARTS_OF_VERSION_2
            and _NEEDED_BY_VERSION_2 in self.extras
            and not self._told
        )
        return FORMAT_VERSION if is_of_2 else READABLE_VERSIONS[-1]

    @property
    def _told(self) -> dict[str, Any]:
        """What is in the file only where it is not what it mostly is."""
        return {
            name: getattr(self, name)
            for name, default in _OPTIONAL.items()
            if getattr(self, name) and getattr(self, name) != default
        }

    def to_dict(self, published: History | None = None) -> dict[str, Any]:
        """Return what the file holds.

        Args:
            published: What need not be in it, but the newest of each metric and the best; see
                `History.state_dict`. Default: all of the history is.
        """
        declared = {} if self.monitor == UNDECLARED else {"monitor": str(self.monitor)}
        best = (self.monitor.name, self.best_epoch or 0)
        return {
            "format_version": self.format_version,
            **{name: getattr(self, name) for name in _FIELDS},
            **declared,
            **self._told,
            **{f"{name}{_SUFFIX}": state for name, state in self.parts.items()},
            "history": self.history.state_dict(published, best),
            **self.extras,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Content:
        """Return what `to_dict` was called on.

        Raises:
            KeyError: Something is missing.
            ValueError: Something cannot be what it should; other errors of Python's likewise.
        """
        for name in ("epoch", "step", "epoch_step"):
            if type(document[name]) is not int:
                raise ValueError(f"{name} is no whole number")
        seconds = document["epoch_seconds"]
        if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
            raise ValueError("epoch_seconds is no time")
        history = History()
        history.load_state_dict(document["history"])
        parts = {
            key.removesuffix(_SUFFIX): state
            for key, state in document.items()
            if key.endswith(_SUFFIX)
        }
        optional = {name: document.get(name, default) for name, default in _OPTIONAL.items()}
        if optional["unit"] not in UNITS or not all(
            isinstance(optional[name], Mapping) for name in ("axes", "feeds")
        ):
            raise ValueError("it counts in no unit that there is")
        if not isinstance(optional["ranks"], list) or not all(
            isinstance(own, Mapping) for own in optional["ranks"]
        ):
            raise ValueError("what its ranks had cannot be read")
        if type(optional["world"]) is not int or type(optional["layout"]) is not str:
            raise ValueError("it is of no number of ranks that there can be")
        known = {*_FIELDS, *_OPTIONAL, "history", "monitor", "format_version"}
        monitor = document.get("monitor")
        document = {**document, "epoch_seconds": float(seconds)}
        return cls(
            **{name: document[name] for name in _FIELDS if name in document or name in _UNDER_WAY},
            **optional,
            parts=parts,
            history=history,
            monitor=UNDECLARED if monitor is None else Monitor.parse(monitor),
            extras={
                key: value
                for key, value in document.items()
                if key not in known and not key.endswith(_SUFFIX)
            },
        )
