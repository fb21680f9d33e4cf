"""What share of its time a cluster loses, by how often it saves; exact for exponential failures.

Training saves after every tau seconds of work, waits sigma for each checkpoint, and goes on while
that is committed in the background, for C seconds. A failure takes it back to the newest checkpoint
that is committed: up to tau + sigma + C are lost. Then it needs R to start again, in which it may
fail once more. Failures come at random, at a rate of lambda.

So a life that ends X after its failure began has committed n checkpoints if X is at least
R + C + n (tau + sigma), which has the probability exp(-lambda (R + C + n (tau + sigma))). Their sum
is the mean number of checkpoints of a life, whose mean length is 1 / lambda. Useful is

    U(tau) = lambda tau exp(-lambda (R + C)) / (exp(lambda (tau + sigma)) - 1)

of the time. It is Daly's formula for checkpoints that training waits for, with R + C in place of
his R: to commit in the background costs as much as a slower restart. C therefore does not move the
best tau, at which lambda tau = 1 - exp(-lambda (tau + sigma)); but a checkpoint that is due before
the one before is committed is passed over, so that tau is best at least C. Where it is less, the
first checkpoint of a life comes after tau, and each later one after the next multiple of tau that
is at least C; `shares` has the sum for that too.

Source:
    J. W. Young, A first order approximation to the optimum checkpoint interval, CACM 17 (9), 1974.
    J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, Future
    Generation Computer Systems 22 (3), 2006.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from onward.planning.cluster import Cluster

_LONGEST = 700.0  # between two checkpoints, in failures: exp of more is no float
MAX_STEPS = 10**12  # between two checkpoints: more is never


@dataclass(frozen=True)
class Shares:
    """Where the time goes, as shares of it that add up to 1."""

    useful: float
    again: float  # work that a failure undid, with the stalls in it
    restart: float
    stall: float  # of checkpoints that were not undone

    @property
    def lost(self) -> float:
        """All but the useful share."""
        return 1.0 - self.useful


def keeps_up(cluster: Cluster, steps: int) -> bool:
    """Tell whether a checkpoint is committed before the next is due.

    Args:
        cluster: What fails and is saved.
        steps: Between two checkpoints.
    """
    return steps * cluster.step_seconds >= cluster.commit


def saved_every(cluster: Cluster, steps: int) -> int:
    """Return how many steps are between two checkpoints if every `steps` one is due.

    One that is due while another is on its way is passed over, but for the first of a life.

    >>> saved_every(Cluster(state_bytes=96e9), 5), saved_every(Cluster(state_bytes=96e9), 20)
    (15, 20)
    """
    return steps * max(1, math.ceil(cluster.commit / (steps * cluster.step_seconds)))


def shares(cluster: Cluster, steps: int) -> Shares:
    """Return where the time goes, in the long run.

    Args:
        cluster: What fails and is saved.
        steps: After how many a checkpoint is due, at least 1.

    Source:
        Young, Daly: see the top of the module.
    """
    rate, stall, second = cluster.failures_per_second, cluster.stall, cluster.step_seconds
    later = saved_every(cluster, steps)
    # The first checkpoint of a life is never passed over; each of the others takes `later` steps.
    first = math.exp(-rate * (cluster.restart + cluster.commit + steps * second + stall))
    others = first / math.expm1(min(rate * (later * second + stall), _LONGEST))
    useful = rate * second * (steps * first + later * others)
    stalled = rate * stall * (first + others)
    restarting = -math.expm1(-rate * cluster.restart)
    again = max(1.0 - useful - restarting - stalled, 0.0)
    return Shares(useful, again, restarting, stalled)


def best_steps(cluster: Cluster) -> int:
    """Return the number of steps between two checkpoints that loses least and keeps up."""
    least = max(1, math.ceil(cluster.commit / cluster.step_seconds))
    steps = min(best_seconds(cluster) / cluster.step_seconds, MAX_STEPS)
    around = {max(least, math.floor(steps)), max(least, math.ceil(steps))}
    return min(sorted(around), key=lambda number: shares(cluster, number).lost)


def best_seconds(cluster: Cluster) -> float:
    """Return the work between two checkpoints that loses least, were commits done at once.

    Example:
        >>> cluster = Cluster(nodes=1, mtbf_hours=24, stall_seconds=300)
        >>> round(best_seconds(cluster) / 60)  # Daly's figure 3, of M = 24 h and delta = 5 min
        117
    """
    rate, stall = cluster.failures_per_second, cluster.stall
    # The root of x + expm1(-x - d), which is convex: Newton's method from above goes straight down.
    delta = rate * stall
    x = math.sqrt(2 * delta) + delta
    for _number in range(50):
        slope = -math.expm1(-x - delta)
        if slope <= 0:
            return 0.0
        smaller = x - (x + math.expm1(-x - delta)) / slope
        if not 0 < smaller < x:
            break
        x = smaller
    return x / rate


def young_seconds(cluster: Cluster) -> float:
    """Return Young's approximation of `best_seconds`: sqrt(2 sigma / lambda)."""
    return math.sqrt(2 * cluster.stall / cluster.failures_per_second)


def daly_seconds(cluster: Cluster) -> float:
    """Return Daly's, of a higher order; he has it for stalls below twice the time of a failure."""
    mean, stall = 1 / cluster.failures_per_second, cluster.stall
    if stall >= 2 * mean:
        return mean
    part = math.sqrt(stall / (2 * mean))
    return math.sqrt(2 * stall * mean) * (1 + part / 3 + part**2 / 9) - stall
