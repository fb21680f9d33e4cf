"""A cluster that trains, saves and fails, event by event: it checks what `waste` computes."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from onward.planning.cluster import Cluster


@dataclass(frozen=True)
class Life:
    """What happened between two failures."""

    seconds: float
    began: int  # the step that it went on from
    reached: int  # steps completed, of the run
    durable: int  # the step of the newest checkpoint that was committed when it died

    @property
    def num_lost(self) -> int:
        """Steps that are to be trained again."""
        return self.reached - self.durable


@dataclass(frozen=True)
class Simulated:
    """The lives of a run, one after another."""

    lives: tuple[Life, ...]
    step_seconds: float

    @property
    def lost(self) -> float:
        """The share of time that came to nothing."""
        return 1.0 - self._work() / self._seconds()

    @property
    def error(self) -> float:
        """The standard error of `lost`: lives are independent, and it is a ratio of two sums."""
        ratio = 1.0 - self.lost
        deviations = (self._useful(life) - ratio * life.seconds for life in self.lives)
        return math.sqrt(sum(d * d for d in deviations)) / self._seconds()

    def _useful(self, life: Life) -> float:
        return (life.durable - life.began) * self.step_seconds

    def _work(self) -> float:
        return sum(map(self._useful, self.lives))

    def _seconds(self) -> float:
        return sum(life.seconds for life in self.lives)


def simulate(cluster: Cluster, steps: int, num_failures: int, seed: int = 0) -> Simulated:
    """Train until so many failures have come.

    Args:
        cluster: What fails and is saved.
        steps: After how many a checkpoint is due.
        num_failures: At least 1.
        seed: Draws the moments of failure, of a generator of its own.
    """
    lengths = itertools.islice(_lengths(cluster, random.Random(seed)), num_failures)
    return Simulated(tuple(lives(cluster, steps, lengths)), cluster.step_seconds)


def lives(cluster: Cluster, steps: int, lengths: Iterable[float]) -> Iterator[Life]:
    """Yield the lives of a run that have these lengths, in seconds; each goes on from the last."""
    durable = 0
    for seconds in lengths:
        life = _live(cluster, steps, seconds, durable)
        durable = life.durable
        yield life


def _lengths(cluster: Cluster, draw: random.Random) -> Iterator[float]:
    while True:
        yield draw.expovariate(cluster.failures_per_second)


def _live(cluster: Cluster, every: int, ends: float, began: int) -> Life:
    """Start again at a step, train and save, until the failure."""
    step = durable = began
    now = cluster.restart
    committed_at, committing = math.inf, began  # the checkpoint under way
    while now < ends:
        num = every - step % every
        due = now + num * cluster.step_seconds
        if committed_at <= min(due, ends):
            durable, committed_at = committing, math.inf
        if due > ends:
            step += int((ends - now) / cluster.step_seconds)
            break
        step, now = step + num, due
        if committed_at < math.inf:  # passed over: one is under way
            continue
        now += cluster.stall
        if now > ends:
            break
        committed_at, committing = now + cluster.commit, step
    return Life(ends, began, step, durable)
