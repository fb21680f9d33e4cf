"""PyTorch Lightning's Trainer made resumable: `Resumable`."""

from onward.adapters.lightning import Resumable

__all__ = ["Resumable"]
