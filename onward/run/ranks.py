"""What each rank has of its own in a checkpoint, and what becomes of it with another number."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from onward.checkpoint.content import Content
from onward.errors import CheckpointError
from onward.run import rng
from onward.run.sharded import own_of, put_own
from onward.run.state import MISFITS, Start, TrainState
from onward.words.language import _
from onward.world import World

_BUFFERS = "buffers"
_OWN = ("rng", "feeds", "epoch_sums")  # rank 0's are where those of a single process are


def of_rank(content: Content, spread: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what of a content is this rank's own.

    Args:
        content: What this rank has captured.
        spread: The parts of which ranks have pieces: their buffers are each rank's own.
    """
    own = {name: getattr(content, name) for name in _OWN}
    buffers = {name: own_of(part) for name, part in (spread or {}).items()}
    return own | ({_BUFFERS: buffers} if any(buffers.values()) else {})


def restore_on_rank(state: TrainState, start: Start, world: World, seed: int) -> None:
    """Bring a state to where a checkpoint is, as this rank is to go on; see `for_rank`.

    Args:
        state: Of this rank.
        start: Where the attempt begins: at a checkpoint.
        world: The ranks.
        seed: The run's.

    Raises:
        CheckpointError: It does not fit.
    """
    assert start.content is not None, "else there is nothing to restore"
    files = start.files
    try:
        content = for_rank(start.content, world, seed)
    except MISFITS as error:  # whoever can write to the store writes there what they like
        raise CheckpointError(_("what the checkpoint has of each rank cannot be read")) from error
    state.restore(content, None if files is None else files.shards())
    if len(content.ranks) == world.size:  # else the model has rank 0's
        buffers = content.ranks[world.rank].get(_BUFFERS, {})
        for name, part in state.parts.items():
            if isinstance(buffers, Mapping) and isinstance(buffers.get(name), Mapping):
                put_own(part, buffers[name], name)
    if files is not None:
        world.agree([0.0])  # all on this machine have read theirs
        if world.leads_host:
            files.remove()


def for_rank(content: Content, world: World, seed: int) -> Content:
    """Return a content as this rank is to go on with it.

    With as many ranks as before each gets back what it had. With another number, rank 0 does, and
    all running sums; the others begin new random numbers, which are a function of where the run is.

    Args:
        content: Rank 0's, which holds what each had.
        world: The ranks.
        seed: The run's.

    Raises:
        CheckpointError: A loader has a place of its own on each rank, which another number of
            them cannot take over.
    """
    saved = content.ranks
    if len(saved) == world.size:
        return dataclasses.replace(content, **_own(saved[world.rank]))
    if max(len(saved), 1) == world.size:
        return content
    inside = [feed for feed in content.feeds.values() if feed["taken"]]
    if any(feed["place"] is not None for feed in inside):
        raise CheckpointError(
            _("the checkpoint lies inside an epoch of a loader that has its own place on each of "
              "{then} ranks, and there are {now}: resume it with {then}, or fork from the end of "
              "an epoch (resume_epoch=N, fork=True)")
            .format(then=max(len(saved), 1), now=world.size)
        )  # fmt: skip
    if world.is_leader:
        sums = [_own(own)["epoch_sums"] for own in saved] or [content.epoch_sums]
        return dataclasses.replace(content, epoch_sums=_added(sums))
    fresh = rng.fresh("rank", seed, content.epoch, content.step, world.rank)
    return dataclasses.replace(content, rng=fresh, epoch_sums={})


def _own(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint has of a rank."""
    found = {name: saved.get(name) for name in _OWN}
    if not all(isinstance(value, Mapping) for value in found.values()):
        raise CheckpointError(_("what the checkpoint has of each rank cannot be read"))
    return found


def _added(sums: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    added: dict[str, torch.Tensor] = {}
    for own in sums:
        for name, value in own.items():
            added[name] = value.cpu() + added[name] if name in added else value.cpu().clone()
    return added
