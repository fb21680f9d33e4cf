"""What `onward plan` says, in lines."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from onward.planning.cluster import Cluster
from onward.planning.plan import Plan
from onward.planning.simulation import Simulated
from onward.planning.waste import daly_seconds, young_seconds
from onward.system.files import size_in_words
from onward.words.language import _


def lines(plan: Plan, simulated: Simulated | None, given: Collection[str]) -> Iterator[str]:
    """Yield the lines.

    Args:
        plan: What is told of.
        simulated: What it was checked by.
        given: The fields of the cluster that were given, and not assumed.
    """
    yield from _interval(plan)
    yield from _losses(plan)
    yield from _store(plan)
    told = _("were commits done at once: {young} by Young's formula, {daly} by Daly's")
    young, daly = young_seconds(plan.cluster), daly_seconds(plan.cluster)
    yield told.format(young=time_in_words(young), daly=time_in_words(daly))
    if simulated is not None:
        told = _("simulated, {number:,} failures: {lost} ± {error} of the time is lost")
        lost, error = share_in_words(simulated.lost), share_in_words(simulated.error)
        yield told.format(number=len(simulated.lives), lost=lost, error=error)
    values = _values(plan.cluster)
    if named := [f"{values[name][0]}={values[name][1]}" for name in values if name not in given]:
        told = _("assumed, since not given: {options}")
        yield told.format(options=" ".join(named))


def _interval(plan: Plan) -> Iterator[str]:
    told = _("save every {time}: checkpoint_steps={steps}")
    yield told.format(time=time_in_words(plan.interval_seconds), steps=plan.steps)
    if not plan.is_best:
        best = Plan.of(plan.cluster)
        told = _("best of those that commits keep up with: {time}, checkpoint_steps={steps}; "
                 "{lost} is lost")  # fmt: skip
        time, lost = time_in_words(best.interval_seconds), share_in_words(best.shares.lost)
        yield told.format(time=time, steps=best.steps, lost=lost)


def _losses(plan: Plan) -> Iterator[str]:
    shares = plan.shares
    told = _("lost: {lost} of the time; {again} is work done again, {restart} restarts, {stall} "
             "waits for checkpoints")  # fmt: skip
    yield told.format(
        lost=share_in_words(shares.lost),
        again=share_in_words(shares.again),
        restart=share_in_words(shares.restart),
        stall=share_in_words(shares.stall),
    )
    told = _("failures: {number:.3g} a day, one in {mean}; it undoes {again} in the mean, {worst} "
             "at most, and after {restart} training goes on")  # fmt: skip
    yield told.format(
        number=plan.failures_per_day,
        mean=time_in_words(1 / plan.cluster.failures_per_second),
        again=time_in_words(plan.again_seconds),
        worst=time_in_words(plan.worst_seconds),
        restart=time_in_words(plan.cluster.restart),
    )


def _store(plan: Plan) -> Iterator[str]:
    cluster = plan.cluster
    told = _("commits: {commit} each, done before the next begins; one is under way {busy} of the "
             "time")  # fmt: skip
    if not plan.keeps_up:
        told = _("commits: {commit} each, longer than the interval, so that checkpoints are passed "
                 "over; one is under way {busy} of the time")  # fmt: skip
    yield told.format(commit=time_in_words(cluster.commit), busy=share_in_words(plan.busy))
    told = _("store: {kept} are kept, {peak} while one is committed; {daily} are written a day")
    yield told.format(
        kept=size_in_words(plan.kept_bytes),
        peak=size_in_words(plan.kept_bytes + cluster.state_bytes),
        daily=size_in_words(plan.bytes_per_day),
    )


def _values(cluster: Cluster) -> dict[str, tuple[str, str]]:
    """Return each field as an option and its value."""
    rates = [cluster.node_bytes_per_second, cluster.store_bytes_per_second]
    node, store = (f"{size_in_words(rate)}/s".replace(" ", "") for rate in rates)
    load = cluster.restart - cluster.restart_seconds
    return {
        "nodes": ("nodes", f"{cluster.nodes}"),
        "mtbf_hours": ("mtbf_hours", f"{cluster.mtbf_hours:g}"),
        "step_seconds": ("step_seconds", f"{cluster.step_seconds:g}"),
        "state_bytes": ("state", size_in_words(cluster.state_bytes).replace(" ", "")),
        "node_bytes_per_second": ("node_throughput", node),
        "store_bytes_per_second": ("store_throughput", store),
        "commit_seconds": ("commit_seconds", f"{cluster.commit_seconds:g}"),
        "restart_seconds": ("restart_seconds", f"{cluster.restart_seconds:g}"),
        "load_seconds": ("load_seconds", f"{load:.3g}"),
        "stall_seconds": ("stall_seconds", f"{cluster.stall:.3g}"),
        "keep_last": ("keep_last", f"{cluster.keep_last}"),
    }


def share_in_words(share: float) -> str:
    """Return a share of the time.

    >>> share_in_words(0.12345), share_in_words(0.00001234)
    ('12.3 %', '0.00123 %')
    """
    percent = 100 * share
    return f"{percent:.3g} %" if percent >= 1e-4 or not percent else f"{percent:.0e} %"


def time_in_words(seconds: float) -> str:
    """Return a length of time in the unit that suits it.

    >>> [time_in_words(seconds) for seconds in (0.5, 100, 3000, 90_000, 900_000)]
    ['0.5 s', '1.7 min', '50 min', '25 h', '10 days']
    """
    units = [(90, 1, _("{number:.2g} s")), (5400, 60, _("{number:.2g} min"))]
    units.append((172_800, 3600, _("{number:.2g} h")))
    for most, length, told in units:
        if seconds < most:
            return told.format(number=seconds / length)
    return _("{number:,.0f} days").format(number=seconds / 86_400)
