"""The options of a run, each declared once: default, meaning, limits, and what a resume may do.

`Config` is what a run *is*: it is stored in every checkpoint and shown as MLflow params.
`Launch`, of `train.request`, is what one command asks for: which run to resume, from where.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from onward.errors import UsageError
from onward.options.declare import OnResume, option, options_of, validate
from onward.options.request import Launch as Launch
from onward.system.untrusted import shown
from onward.words.language import _

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
    accumulation_steps: int = option(
        1,
        "Forward and backward passes of an optimizer step: its rows are cut into so many parts, "
        "one after the other in memory, whose gradients are added.",
        "Training",
        minimum=1,
        on_resume=FORK,
    )
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
    max_minutes: float = option(
        0.0,
        "Stop so many minutes after the start of this process, as a signal would: saved, and to be "
        "resumed; 0: never.",
        "Training",
        minimum=0,
        maximum=1_000_000,
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
        "The table: a path to CSV or TSV (also .gz), Excel (.xlsx), Parquet (file or folder) or "
        ".npz, or 'diamonds', which is shipped.",
        "Data",
        on_resume=FORK,
        by_tag=False,
    )
    target: str | None = option(
        None, "Column to predict; required for a table of your own.", "Data", on_resume=NEVER
    )
    drop: tuple[str, ...] = option(
        (), "Columns to leave out, separated by commas (leaks, keys).", "Data", on_resume=NEVER
    )
    keep_index: bool = option(
        False,
        "Take a saved pandas index for a feature too; default: it is left out, as a row number.",
        "Data",
        on_resume=NEVER,
    )
    odd_values: str = option(
        "refuse",
        "Where a column of a CSV or Excel file is numbers or dates but for a few values: refuse "
        "the table, or let such values count as missing, or leave the column text.",
        "Data",
        choices=("refuse", "missing", "text"),
        on_resume=NEVER,
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
        by_tag=False,
    )

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

    def to_dict(self) -> dict[str, Any]:
        """Return plain builtins, from which `from_dict` makes an equal config."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Make a config from what `to_dict` returned, also from an older version's.

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

    def replace(self, **changes: Any) -> Config:
        """Return a copy with `changes`, validated."""
        return dataclasses.replace(self, **changes)

    def fingerprint(self, task: str, data_fingerprint: str) -> str:
        """Return a hash of what may not change in a run: task, data, and the fixed options.

        Options that only say where the data was read are covered by the data's fingerprint. The
        number of threads is left out, since it is chosen by the machine if it is not given.
        """
        fixed = {
            name: getattr(self, name)
            for name, (_field, opt) in options_of(Config).items()
            if opt.on_resume is not OnResume.CHANGE and opt.group != "Data" and name != "threads"
        }
        document = json.dumps([task, data_fingerprint, fixed], sort_keys=True, default=str)
        return hashlib.sha256(document.encode()).hexdigest()
