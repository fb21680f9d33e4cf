"""What is trained: the protocol of a task.

A task is a module with

    Options                         a frozen dataclass of `option` fields; may be missing
    open_task(options, stored)      returns a `Task`; `stored` is None for a fresh run
    NAME                            what it is, in a word; default: the name of its file

The table that is shipped, `train.tabular.task`, is one of them. More than the protocol asks for is
used where a task has it: each of `OPTIONAL` is a method that may be missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from onward.monitor import Monitor

if TYPE_CHECKING:
    import torch

# Methods of a task that may be missing, each with what stands for it.
OPTIONAL: Mapping[str, str] = {
    "options": "those that it was opened with",
    "fingerprint": "the same for all data",
    "plateau": "its monitor",  # which metric schedule=plateau watches
    "build_optimizer": "AdamW",
    "facts": "nothing",
    "in_words": "nothing",
    "dataset_info": "none",
    "keep": "nothing is kept",
    "extras": "none",
    "figures": "none",
    "model": "none is served",
}


class Task(Protocol):
    """Data, a model for it, and how good the model is.

    The loop decides which samples, in which order, and what to do with the loss; a task knows
    what a sample is.
    """

    @property
    def monitor(self) -> Monitor:
        """The metric of `evaluate` that decides which epoch is best."""
        ...

    @property
    def num_samples(self) -> int:
        """Number of training samples, at least 1; `loss` takes indices below it."""
        ...

    def build_model(self) -> torch.nn.Module:
        """Return a new model on the task's device.

        Its weights are drawn from torch's global random state: seed it before.
        """
        ...

    def loss(self, model: torch.nn.Module, indices: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of the given training samples, with its graph.

        Args:
            model: A model of `build_model`, in the mode (train or eval) the caller set.
            indices: int64 [B], on any device, B >= 1.

        Shape:
            scalar
        """
        ...

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        """Return the metrics over the validation samples.

        Guarantees:
            The model's mode is the same after as before, and no random number is drawn.
        """
        ...
