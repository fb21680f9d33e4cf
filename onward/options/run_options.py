"""The options of every run, whatever it trains: each declared once, with what a resume may do.

`RunOptions` is what a run *is*, as far as it is the same for all: a training adds options of its
own to it (see `merged`). All of them are stored in every checkpoint and shown as MLflow params.
`Launch`, of `request`, is what one command asks for: which run to resume, from where.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Self

from onward.errors import UsageError
from onward.monitor import Monitor
from onward.options.declare import (
    DATA,
    MACHINE,
    ORDER,
    OnResume,
    covered_by,
    option,
    options_of,
    to_text,
    validate,
)
from onward.system.untrusted import shown
from onward.words.language import _
from onward.words.redact import redact

FORK = OnResume.FORK


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a run that decide how it is saved, stopped and judged.

    Raises:
        UsageError: On construction, a value is outside its limits.
    """

    epochs: int = option(
        20,
        "Epochs of the whole run, those before a resume included.",
        "Training",
        minimum=1,
    )
    early_stopping: int = option(
        0,
        "Stop after so many epochs without a better value of the monitored metric; 0: never.",
        "Training",
        minimum=0,
    )
    monitor: str | None = option(
        None,
        "Metric that decides which epoch is best, and which way, such as val_rmse:min; default: "
        "the one of what is trained.",
        "Training",
        metavar="NAME:max|min",
        on_resume=FORK,
        is_new=True,
    )
    max_minutes: float = option(
        0.0,
        "Stop so many minutes after the start of this process, as a signal would: saved, and to be "
        "resumed; 0: never.",
        "Training",
        minimum=0,
        maximum=1_000_000,
    )
    seed: int = option(
        0,
        "Seed of the initial weights, the order of the batches and dropout.",
        "Training",
        minimum=0,
        maximum=2**63 - 1,
        on_resume=FORK,
        covers=ORDER,
    )
    threads: int = option(
        0,
        "CPU threads of torch, a part of the state since sums depend on it; "
        "0: chosen by model size.",
        "Training",
        minimum=0,
        maximum=1024,
        on_resume=FORK,
        covers=MACHINE,
    )
    device: str = option("auto", "Where to compute: auto, cpu, cuda, cuda:1, …", "Training")
    strict: bool = option(
        False,
        "Refuse to go on where code, packages or device are not those of the checkpoint, or an "
        "epoch trained again gives other numbers.",
        "Resume",
        by_tag=False,
    )
    checkpoint_freq: int = option(
        5,
        "Every so many epochs a checkpoint is kept for good; the newest and the best are there "
        "always.",
        "Checkpoints",
        minimum=1,
    )
    checkpoint_minutes: float = option(
        10.0,
        "Inside a long epoch a checkpoint is saved when the last one is so old; 0: never.",
        "Checkpoints",
        minimum=0,
    )
    checkpoint_steps: int = option(
        0,
        "Inside an epoch a checkpoint is saved after so many optimizer steps of the run; 0: never.",
        "Checkpoints",
        minimum=0,
    )
    keep_last: int = option(
        1, "Besides those, how many of the newest checkpoints stay.", "Checkpoints", minimum=1
    )
    keep_best: int = option(
        1, "Besides those, how many of the best checkpoints stay.", "Checkpoints", minimum=1
    )
    upload: str = option(
        "async",
        "How checkpoints get to the store: async (while training goes on), sync (training waits "
        "for each), off (not at all: they stay on this machine's disk).",
        "Checkpoints",
        choices=("async", "sync", "off"),
        by_tag=False,
    )
    max_spool_bytes: int = option(
        20_000_000_000,
        "How much may wait on local disk for its upload before training waits too.",
        "Checkpoints",
        minimum=0,
    )
    drain_seconds: float = option(
        60.0,
        "How long the end of training waits for what is not uploaded yet; what is left then is "
        "published by `train sync`, or by the next resume on this disk.",
        "Checkpoints",
        minimum=0,
    )
    grace_seconds: float = option(
        25.0,
        "The same after a signal that stops training, such as a scheduler's SIGTERM: less than the "
        "time it leaves before it kills.",
        "Checkpoints",
        minimum=0,
    )
    rank_minutes: float = option(
        10.0,
        "With several ranks: how long they wait for one another, as in a step, before the job ends "
        "as FAILED, to be gone on with.",
        "Training",
        minimum=0.01,
        is_new=True,
        covers=MACHINE,
    )
    log_model: bool = option(
        True,
        "When training is finished, log the best checkpoint as a model that takes raw rows, with "
        "figures.",
        "Results",
    )
    register: str | None = option(
        None,
        "Register that model too, by this name, with the alias 'newest'.",
        "Results",
        metavar="NAME",
        by_tag=False,
    )
    upload_diff: str = option(
        "yes",
        "Whether what was changed in the program's own files since their commit is stored with "
        "each attempt, without what looks like a secret: yes, no.",
        "Results",
        choices=("yes", "no"),
    )

    def __post_init__(self) -> None:
        """Refuse values outside their limits."""
        validate(self)
        if self.monitor is not None:
            try:
                Monitor.parse(self.monitor)
            except ValueError:
                raise UsageError(
                    _("monitor={monitor!r} is not a metric and its direction, such as val_loss:min")
                    .format(monitor=shown(self.monitor, 60))
                ) from None  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return plain builtins, from which `from_dict` makes equal options.

        A new option is left out at its default: an older program can go on with the run.
        """
        values = {name: getattr(self, name) for name in self._told()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make options from what `to_dict` returned, also from an older version's.

        Raises:
            UsageError: There are options that this version does not know, or a value is not
                within the limits that hold for one that is given.
        """
        unknown = sorted(shown(str(name), 60) for name in set(values) - set(options_of(cls)))
        if unknown:
            raise UsageError(
                _("the run has options that this version does not know: {names}. Resume it with "
                  "the version that made it, or a newer one").format(names=", ".join(unknown[:10]))
            )  # fmt: skip
        known: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**known)

    @classmethod
    def known_of(cls, values: Mapping[str, Any]) -> Self:
        """Make options from those of a run that has others too, which are passed over.

        Raises:
            UsageError: As for `from_dict`.
        """
        return cls.from_dict({name: values[name] for name in options_of(cls) if name in values})

    def in_words(self) -> dict[str, str]:
        """Return every option as MLflow shows it."""
        return {name: redact(to_text(getattr(self, name))) for name in options_of(type(self))}

    def replace(self, **changes: Any) -> Self:
        """Return a copy with `changes`, validated."""
        return dataclasses.replace(self, **changes)

    def fingerprint(self, task: str, data_fingerprint: str) -> str:
        """Return a hash of what may not change in a run: task, data, and the fixed options.

        Left out is what the data's fingerprint covers, and what a machine may choose. So is a new
        option at its default: the fingerprints of older runs stay what they were.
        """
        left_out = covered_by(type(self), DATA, MACHINE)
        fixed = {
            name: getattr(self, name)
            for name in self._told()
            if options_of(type(self))[name][1].on_resume is not OnResume.CHANGE
            and name not in left_out
        }
        document = json.dumps([task, data_fingerprint, fixed], sort_keys=True, default=str)
        return hashlib.sha256(document.encode()).hexdigest()

    def _told(self) -> list[str]:
        """Return the options that are stored: all but new ones at their defaults."""
        return [
            name
            for name, (field, opt) in options_of(type(self)).items()
            if not (opt.is_new and getattr(self, name) == field.default)
        ]
