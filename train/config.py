"""The options of a run, each declared once: default, meaning, limits, and what a resume may do.

`Config` is what a run *is*: it is stored in every checkpoint and shown as MLflow params.
`Launch` is what one command asks for: which run to resume, from where.
The command line, ``--help``, the README's table and MLflow's params are all made from them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

from train.errors import UsageError


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


def option(default: Any, help: str, group: str, **limits: Any) -> Any:
    """Declare a field that is an option; see `Option` for `limits`."""
    return dataclasses.field(
        default=default, metadata={"option": Option(help=help, group=group, **limits)}
    )


def options_of(config_class: type) -> dict[str, tuple[dataclasses.Field[Any], Option]]:
    """Return name to (field, option), in the order of declaration."""
    return {f.name: (f, f.metadata["option"]) for f in dataclasses.fields(config_class)}


def parse(config_class: type, name: str, text: str) -> Any:
    """Turn the text of a command line into the value of the option `name`.

    Raises:
        UsageError: The text is not of the option's type.
    """
    field, _ = options_of(config_class)[name]
    kind = str(field.type)
    if not text.strip() and not kind.startswith("tuple"):
        raise UsageError(f"{name}= has no value: leave it out, or see that its variable is set")
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
        wanted = {"bool": "true or false", "int": "a whole number", "float": "a number"}
        raise UsageError(
            f"{name}={text!r} is not {wanted[kind.split(' ')[0]]} "
            f"(the default is {to_text(field.default)})"
        ) from None
    return text


def to_text(value: Any) -> str:
    """Return the text from which `parse` makes `value` again."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def _validate(config: Any) -> None:
    for name, (_, opt) in options_of(type(config)).items():
        value = getattr(config, name)
        if value is None:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{name}={value} is not a finite number")
        if opt.choices and value not in opt.choices:
            raise UsageError(f"{name}={value!r} is not one of {', '.join(opt.choices)}")
        if opt.minimum is not None and not value >= opt.minimum:  # `not >=` refuses NaN too
            raise UsageError(f"{name}={value} is too small: the least is {opt.minimum:g}")
        if opt.maximum is not None and not value <= opt.maximum:
            raise UsageError(f"{name}={value} is too large: the most is {opt.maximum:g}")


FORK, NEVER = OnResume.FORK, OnResume.NEVER


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that defines a run.

    Raises:
        UsageError: On construction, a value is outside its limits.
    """

    epochs: int = option(
        20,
        "Epochs of the whole run, those before a resume included.",
        "Training",
        minimum=1,
    )
    batch_size: int = option(512, "Rows per optimizer step.", "Training", minimum=1, on_resume=FORK)
    lr: float = option(
        2e-3,
        "Highest learning rate of AdamW.",
        "Training",
        minimum=0,
        maximum=10,
        on_resume=FORK,
    )
    weight_decay: float = option(
        1e-2, "Decoupled weight decay of AdamW.", "Training", minimum=0, on_resume=FORK
    )
    schedule: str = option(
        "cosine",
        "How the learning rate moves: cosine (down to 1 % at schedule_epochs), plateau (a third "
        "whenever val_loss has not improved for 3 epochs), none.",
        "Training",
        choices=("cosine", "plateau", "none"),
        on_resume=FORK,
    )
    schedule_epochs: int | None = option(
        None,
        "Epochs over which the cosine runs, however often the run is extended; "
        "default: the epochs of the first attempt.",
        "Training",
        minimum=1,
        on_resume=FORK,
    )
    max_grad_norm: float = option(
        1.0,
        "Gradients are scaled down to this norm; 0: never.",
        "Training",
        minimum=0,
        on_resume=FORK,
    )
    early_stopping: int = option(
        0,
        "Stop after so many epochs without a better val_pearson; 0: never.",
        "Training",
        minimum=0,
    )
    precision: str = option(
        "fp32",
        "Arithmetic of the forward pass: fp32, or bf16 (autocast; the weights stay fp32).",
        "Training",
        choices=("fp32", "bf16"),
        on_resume=FORK,
    )
    seed: int = option(
        0,
        "Seed of the initial weights, the order of the batches and dropout.",
        "Training",
        minimum=0,
        maximum=2**63 - 1,
        on_resume=FORK,
    )
    threads: int = option(
        0,
        "CPU threads of torch, a part of the state since sums depend on it; "
        "0: chosen by model size.",
        "Training",
        minimum=0,
        maximum=1024,
        on_resume=FORK,
    )
    device: str = option("auto", "Where to compute: auto, cpu, cuda, cuda:1, …", "Training")

    hidden_size: int = option(
        192, "Width of the hidden layers.", "Model", minimum=1, on_resume=NEVER
    )
    num_layers: int | None = option(
        None,
        "Number of hidden layers, beside a linear path; default: 3, or 0 where the table has at "
        "least as many columns as rows to train on.",
        "Model",
        minimum=0,
        maximum=64,
        on_resume=NEVER,
    )
    dropout: float | None = option(
        None,
        "Part of the hidden units dropped in training; default: by the number of rows, from 0.5 "
        "for hundreds to 0 for many thousands.",
        "Model",
        minimum=0,
        maximum=0.95,
        on_resume=FORK,
    )

    data: str = option(
        "diamonds",
        "The table: a path to CSV, CSV.gz, Parquet (file or folder) or .npz, "
        "or 'diamonds', which is shipped.",
        "Data",
        on_resume=FORK,
    )
    target: str | None = option(
        None, "Column to predict; required for a table of your own.", "Data", on_resume=NEVER
    )
    drop: tuple[str, ...] = option(
        (), "Columns to leave out, separated by commas (leaks, keys).", "Data", on_resume=NEVER
    )
    val_fraction: float = option(
        0.2,
        "Part of the rows kept for validation.",
        "Data",
        minimum=0.01,
        maximum=0.9,
        on_resume=FORK,
    )
    split_seed: int = option(
        0,
        "Seed of the split into training and validation rows.",
        "Data",
        minimum=0,
        maximum=2**63 - 1,
        on_resume=FORK,
    )
    target_scale: str = option(
        "auto",
        "Scale the target is trained on: linear, log, or auto (log for a skewed positive "
        "target); metrics are always on the original scale.",
        "Data",
        choices=("auto", "linear", "log"),
        on_resume=NEVER,
    )
    upload_data: str = option(
        "auto",
        "Whether the preprocessed data goes to the run's artifacts, so that a resume elsewhere "
        "needs nothing else: yes, no, auto (up to 1 GiB).",
        "Data",
        choices=("auto", "yes", "no"),
    )

    checkpoint_freq: int = option(
        5,
        "Every so many epochs a checkpoint is kept for good; the newest and the best are there "
        "always.",
        "Checkpoints",
        minimum=1,
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

    def __post_init__(self) -> None:
        """Refuse values outside their limits."""
        _validate(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain builtins, from which `from_dict` makes an equal config."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Make a config from what `to_dict` returned, also from an older version's.

        Raises:
            UsageError: There are options that this version does not know.
        """
        unknown = sorted(set(values) - set(options_of(cls)))
        if unknown:
            raise UsageError(
                f"the run has options that this version does not know: {', '.join(unknown)}. "
                "Resume it with the version that made it, or a newer one"
            )
        known: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**known)

    def replace(self, **changes: Any) -> Config:
        """Return a copy with `changes`, validated."""
        return dataclasses.replace(self, **changes)

    def fingerprint(self, task: str, data_fingerprint: str) -> str:
        """Return a hash of what may not change in a run: task, data, and the fixed options.

        Options that only say where the data was read are covered by the data's fingerprint.
        """
        fixed = {
            name: getattr(self, name)
            for name, (_, opt) in options_of(Config).items()
            if opt.on_resume is not OnResume.CHANGE and opt.group != "Data"
        }
        document = json.dumps([task, data_fingerprint, fixed], sort_keys=True, default=str)
        return hashlib.sha256(document.encode()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """What one command asks for: where to go on from.

    Raises:
        UsageError: On construction, options that exclude or need each other.
    """

    resume_run: str | None = option(
        None,
        "Go on with this run: its ID, or 'latest' for the newest unfinished one of the experiment.",
        "Resume",
        metavar="RUN",
    )
    resume_epoch: str | None = option(
        None,
        "Checkpoint to go on from: an epoch, latest, or best; one that is not the latest forks.",
        "Resume",
        metavar="N|latest|best",
    )
    resume_from: str | None = option(
        None,
        "Start a new run from a plain checkpoint file (.pth), such as the script version's.",
        "Resume",
        metavar="FILE",
    )
    fork: bool = option(
        False,
        "Start a new run from the checkpoint and leave the old one as it is; "
        "options may then differ.",
        "Resume",
    )

    def __post_init__(self) -> None:
        """Refuse options that exclude or need each other."""
        if self.resume_run is None:
            for name in ("resume_epoch", "fork"):
                if getattr(self, name):
                    raise UsageError(f"{name} needs resume_run=<id>: which run to start from")
        elif self.resume_from is not None:
            raise UsageError("give either resume_run or resume_from, not both")
        if self.resume_epoch not in (None, "latest", "best") and not self.resume_epoch.isdecimal():
            raise UsageError(
                f"resume_epoch={self.resume_epoch!r} is not an epoch number, 'latest' or 'best'"
            )
