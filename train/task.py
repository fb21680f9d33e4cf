"""What is trained: the protocol that the training loop sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Task(Protocol):
    """Data, a model for it, and how good the model is.

    The loop decides which samples, in which order, and what to do with the loss; a task knows
    what a sample is.
    """

    @property
    def name(self) -> str:
        """Name of the task, a part of a run's fingerprint."""
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
