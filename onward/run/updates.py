"""Whether gradients are being added up for an update that is not made yet: nothing stores those."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from onward.words.language import _

log = logging.getLogger(__name__)

MAX_PARTS = 256  # batches that are waited for at most: a loop may make its updates by hand


class Updates:
    """The updates that optimizers make, from one batch of a loop to the next."""

    def __init__(self) -> None:
        self._optimizers: list[torch.optim.Optimizer] = []
        self._num_parts = 0  # batches since the last update, the one under way included
        self._is_made = True
        self._others: RemovableHandle | None = None

    def watch(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Know when one of these makes a step."""
        self._optimizers = list(optimizers)
        for optimizer in optimizers:
            optimizer.register_step_post_hook(self._note)

    def watch_others(self, weights: Iterable[torch.Tensor]) -> None:
        """Warn if an optimizer that is not among those changes some of the weights."""
        known, ids = {id(optimizer) for optimizer in self._optimizers}, {id(w) for w in weights}

        def look(optimizer: torch.optim.Optimizer, *_args: object) -> None:
            if id(optimizer) in known:
                return
            known.add(id(optimizer))
            groups = optimizer.param_groups
            if any(id(p) in ids for group in groups for p in group["params"]):
                log.warning(
                    _("A %s changes the model and is in no part of the state: its moments are lost "
                      "in a resume, which differs then. Add it to the state"),
                    type(optimizer).__name__,
                )  # fmt: skip

        self._others = register_optimizer_step_post_hook(look)

    def close(self) -> None:
        """Look at no optimizer any more."""
        if self._others is not None:
            self._others.remove()

    def _note(self, *_: object) -> None:
        self._is_made, self._num_parts = True, 0

    def begin(self) -> None:
        """Begin a batch."""
        self._is_made = False
        self._num_parts += 1

    def is_whole(self) -> bool:
        """Tell whether no gradient waits: one of the optimizers has stepped, or there is none."""
        if self._is_made or self._num_parts > MAX_PARTS:
            return True
        groups = (group for optimizer in self._optimizers for group in optimizer.param_groups)
        return all(p.grad is None for group in groups for p in group["params"])
