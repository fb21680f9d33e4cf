"""How often to save on a cluster, and what that costs: all that `onward plan` tells."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from onward.planning.cluster import Cluster
from onward.planning.waste import (
    Shares,
    best_steps,
    daly_seconds,
    keeps_up,
    saved_every,
    shares,
    young_seconds,
)

_DAY = 86400.0


@dataclass(frozen=True)
class Plan:
    """A cluster that saves every so many steps."""

    cluster: Cluster
    steps: int  # between two checkpoints
    shares: Shares
    is_best: bool  # whether no other interval that keeps up loses less

    @classmethod
    def of(cls, cluster: Cluster, steps: int | None = None) -> Self:
        """Make the plan that loses least, or that of an interval that is given."""
        best = best_steps(cluster)
        steps = best if steps is None else steps
        return cls(cluster, steps, shares(cluster, steps), steps == best)

    @property
    def interval_seconds(self) -> float:
        """The work between two checkpoints."""
        return self.steps * self.cluster.step_seconds

    @property
    def keeps_up(self) -> bool:
        """Whether a checkpoint is committed before the next is due."""
        return keeps_up(self.cluster, self.steps)

    @property
    def _cycle_seconds(self) -> float:
        steps = saved_every(self.cluster, self.steps)
        return steps * self.cluster.step_seconds + self.cluster.stall

    @property
    def failures_per_day(self) -> float:
        """How often training begins again."""
        return _DAY * self.cluster.failures_per_second

    @property
    def again_seconds(self) -> float:
        """The work that a failure undoes, in the mean."""
        return self.shares.again / self.cluster.failures_per_second

    @property
    def worst_seconds(self) -> float:
        """The most that it undoes: a failure right before a commit."""
        return self._cycle_seconds + self.cluster.commit

    @property
    def busy(self) -> float:
        """The share of time in which a commit is under way."""
        return min(self.cluster.commit / self._cycle_seconds, 1.0)

    @property
    def kept_bytes(self) -> float:
        """What stays in the store; one checkpoint more while it is committed."""
        return self.cluster.keep_last * self.cluster.state_bytes

    @property
    def bytes_per_day(self) -> float:
        """What is written to the store."""
        return self.cluster.state_bytes * _DAY / self._cycle_seconds

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, as plain numbers: what was assumed, and what follows."""
        cluster = self.cluster
        return {
            "cluster": dataclasses.asdict(cluster),
            "interval_steps": self.steps,
            "interval_seconds": self.interval_seconds,
            "is_best": self.is_best,
            "keeps_up": self.keeps_up,
            "lost": self.shares.lost,
            "lost_again": self.shares.again,
            "lost_restart": self.shares.restart,
            "lost_stall": self.shares.stall,
            "failures_per_day": self.failures_per_day,
            "again_seconds": self.again_seconds,
            "worst_seconds": self.worst_seconds,
            "stall_seconds": cluster.stall,
            "commit_seconds": cluster.commit,
            "restart_seconds": cluster.restart,
            "busy": self.busy,
            "kept_bytes": self.kept_bytes,
            "peak_bytes": self.kept_bytes + cluster.state_bytes,
            "bytes_per_day": self.bytes_per_day,
            "young_seconds": young_seconds(cluster),
            "daly_seconds": daly_seconds(cluster),
        }
