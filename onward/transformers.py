"""Hugging Face's Trainer as a run: `from onward.transformers import Resumable`."""

from onward.adapters.transformers import Resumable as Resumable

__all__ = ["Resumable"]
