"""Writing what was set aside to the spool: one checkpoint, whatever ranks have parts of it."""

from __future__ import annotations

import functools
from collections.abc import Callable

from onward.checkpoint.format import write_checkpoint
from onward.checkpoint.handover import Item
from onward.checkpoint.manifest import Manifest, checkpoint_name
from onward.checkpoint.rank_files import RankFiles
from onward.checkpoint.shards import Shards
from onward.checkpoint.spool import Spool

PIECES = "onward.pieces"  # among what is set aside: what this rank holds


def write_item(
    item: Item,
    spool: Spool,
    part_bytes: int,
    ranks: RankFiles | None,
    seconds_left: Callable[[], float],
) -> Manifest:
    """Write a checkpoint to the spool.

    Args:
        item: What was set aside; whole.
        spool: Where to.
        part_bytes: A larger file becomes a folder of parts of this size.
        ranks: Where the other ranks put what they hold; None: there are no pieces.
        seconds_left: How long they may still be waited for.

    Raises:
        OSError: The disk is full, or a rank's files do not come.
        CheckpointError: It could not be read again.
    """
    state = dict(item.staged.state)
    pieces = state.pop(PIECES, None)
    name, shard = checkpoint_name(state), None
    if pieces is not None:
        assert ranks is not None, "somebody has to know where the ranks meet"
        shard = functools.partial(
            ranks.take, name=name, step=state["step"], pieces=pieces, seconds_left=seconds_left
        )
    manifest = write_checkpoint(
        spool.path(name), state, attempt=spool.attempt, kept=item.kept, metrics=item.metrics,
        part_bytes=part_bytes, shard=shard,
    )  # fmt: skip
    if pieces is not None and not manifest.missing_ranks:
        # No region is missing, and none there twice.
        Shards(spool.path(name), manifest, name, is_verified=True).require(state)
    return manifest
