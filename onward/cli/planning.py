"""`onward plan`: how often to save on a cluster, and what is lost to failures then."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from onward.cli import planned
from onward.cli.commandline import say
from onward.cli.helptext import Command
from onward.errors import UsageError
from onward.planning.cluster import Cluster
from onward.planning.plan import Plan
from onward.planning.simulation import simulate
from onward.system.files import PUBLIC, atomic_write
from onward.system.untrusted import shown
from onward.words.language import _

ADAM_BYTES = 12.0  # a parameter, and Adam's two moments, of 4 bytes each
PICTURES = (".svg", ".png")
_MOST = 1e30  # of anything: beyond, sums of them are wrong

# As powers of 1,000, which disks and networks are sold by; with an i, of 1,024. 8B are 8 billion.
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "b": 3, "t": 4, "p": 5}
_NUMBER = r"([0-9]*\.?[0-9]+(?:e[0-9]+)?) *"
_FLAGS = re.ASCII | re.IGNORECASE


class _Amount(click.ParamType[float]):
    """A number that can have a unit.

    Args:
        name: What the help shows.
        units: Pattern of the unit: what it multiplies by, and an i for powers of 1,024.
        example: How it may be written.
        above_0: Whether 0 is none.
    """

    def __init__(self, name: str, units: str, example: str, above_0: bool = True) -> None:
        self.name, self._example, self._above_0 = name, example, above_0
        self._pattern = re.compile(_NUMBER + units, _FLAGS)

    def convert(self, value: Any, param: click.Parameter | None, ctx: object) -> float:
        """Return the number.

        Raises:
            UsageError: It is none.
        """
        found = self._pattern.fullmatch(str(value).strip()[:60])
        if found:
            number, unit, binary = found.groups()
            amount = float(number) * (1024.0 if binary else 1000.0) ** _POWERS[unit.lower()]
            if amount < _MOST and (amount > 0 or not self._above_0):
                return amount
        told = _("{name}={value!r} is no number, or too small or too large; write it as {example}")
        name = param.opts[0].removeprefix("--") if param else self.name
        value = shown(str(value), 60)
        raise UsageError(told.format(name=name, value=value, example=self._example))


_BYTES = r"([kmgtp]?)(i?)b?"
SIZE, RATE = _Amount("size", _BYTES, "14GB"), _Amount("size/s", rf"{_BYTES}(?:/s)?", "500MB/s")
COUNT = _Amount("number", r"([kmbt]?)()", "8B")
HOURS, STEP = _Amount("hours", "()()", "6000"), _Amount("seconds", "()()", "0.5")
SECONDS = _Amount("seconds", "()()", "120", above_0=False)
BYTES = _Amount("bytes", "()()", "12")
WHOLE = click.IntRange(1, 10**9)

_OPTIONS = [
    click.option("--nodes", type=WHOLE, metavar="N",
                 help="Machines; one that fails stops all.  [8]"),
    click.option("--mtbf_hours", type=HOURS,
                 help="Mean time between two failures of one machine.  [6000]"),
    click.option("--step_seconds", type=STEP, help="How long an optimizer step takes.  [1]"),
    click.option("--state", "state_bytes", type=SIZE,
                 help="Size of a checkpoint, of all machines together, such as 14GB.  [96GB]"),
    click.option("--params", type=COUNT,
                 help="Parameters of the model, such as 8B, in place of --state."),
    click.option("--bytes_per_param", type=BYTES,
                 help="What is saved of each: weight and Adam's two moments, 4 bytes each.  [12]"),
    click.option("--node_throughput", "node_bytes_per_second", type=RATE,
                 help="What one machine writes to the store, and reads.  [1GB/s]"),
    click.option("--store_throughput", "store_bytes_per_second", type=RATE,
                 help="What the store takes in all, and gives.  [20GB/s]"),
    click.option("--commit_seconds", type=SECONDS,
                 help="What a commit takes besides its bytes: requests, the manifest.  [2]"),
    click.option("--restart_seconds", type=SECONDS,
                 help="From a failure to the next step, but for reading the state: a new machine, "
                      "imports, rendezvous, compiling.  [120]"),
    click.option("--load_seconds", type=SECONDS, help="Reading the state.  [as long as writing]"),
    click.option("--stall_seconds", type=SECONDS,
                 help="How long training waits for each checkpoint.  [a copy at 10 GB/s]"),
    click.option("--keep_last", type=WHOLE, metavar="N",
                 help="The newest so many stay in the store.  [1]"),
    click.option("--steps", type=WHOLE, metavar="N",
                 help="Steps between two checkpoints.  [those that lose least]"),
    click.option("--simulate", "num_failures", type=click.IntRange(2, 1_000_000), metavar="N",
                 help="Check it by a simulation with so many failures."),
    click.option("--seed", type=click.IntRange(0), default=0, metavar="N",
                 help="Seed of that.  [0]"),
    click.option("--plot", type=click.Path(dir_okay=False), metavar="FILE",
                 help="Draw what is lost by the interval: .svg or .png."),
    click.option("--json", "as_json", is_flag=True, help="For scripts: one JSON object."),
]  # fmt: skip


@click.command(cls=Command)
def plan(
    steps: int | None,
    num_failures: int | None,
    seed: int,
    plot: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Plan how often to save on a cluster that fails, and what is lost then."""
    values = _fields(given)
    cluster = Cluster(**values)
    file = Path(plot) if plot else None
    if file is not None and file.suffix.lower() not in PICTURES:
        told = _("plot={plot} is neither .svg nor .png")
        raise UsageError(told.format(plot=shown(str(file), 60)))
    made = Plan.of(cluster, steps)
    simulated = simulate(cluster, made.steps, num_failures, seed) if num_failures else None
    if file is not None:
        from onward.cli.planned_figure import draw

        picture = draw(made, file.suffix.lower().removeprefix("."))
        atomic_write(file, lambda target: target.write(picture), PUBLIC)
    if as_json:
        checked = {
            "simulated_lost": simulated.lost if simulated else None,
            "simulated_error": simulated.error if simulated else None,
        }
        click.echo(json.dumps(made.to_dict() | checked, indent=1))
        return
    for line in planned.lines(made, simulated, given=values):
        say(line)


for _option in _OPTIONS:
    plan = _option(plan)


def _fields(given: dict[str, Any]) -> dict[str, Any]:
    """Return what was given of a cluster, by its fields.

    Raises:
        UsageError: Options contradict each other.
    """
    params, each = given.pop("params"), given.pop("bytes_per_param")
    if params is not None:
        if given["state_bytes"] is not None:
            raise UsageError(_("give either state or params: each says how large a checkpoint is"))
        given["state_bytes"] = params * (ADAM_BYTES if each is None else each)
    elif each is not None:
        raise UsageError(_("bytes_per_param needs params, such as params=8B"))
    return {name: value for name, value in given.items() if value is not None}
