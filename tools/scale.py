"""Write the tables of docs/scale.md anew, from `onward plan`'s functions and the constants below.

    python tools/scale.py

The constants that are measured come from benchmarks/scale.py; tests/test_scale.py compares.
"""

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from onward.attempts.heartbeat import BEAT_SECONDS  # noqa: E402
from onward.checkpoint.format import PART_BYTES  # noqa: E402
from onward.checkpoint.store import MAX_MANIFEST_BYTES  # noqa: E402
from onward.checkpoint.transfers import NUM_TRANSFERS  # noqa: E402
from onward.cli.planned import share_in_words, time_in_words  # noqa: E402
from onward.cli.planning import ADAM_BYTES  # noqa: E402
from onward.planning.cluster import STAGING_BYTES_PER_SECOND, Cluster  # noqa: E402
from onward.planning.plan import Plan  # noqa: E402
from onward.system.files import size_in_words  # noqa: E402
from onward.tracking.client import MAX_BATCH_METRICS  # noqa: E402

PAGE = ROOT / "docs" / "scale.md"
RANKS = (8, 64, 256, 1024)
HERE, READ, TRIAL, ASSUMED = "measured", "read in the code", "earlier trial", "assumed"


@dataclass(frozen=True)
class Constant:
    """A number that the tables rest on: what it is in words, and where it comes from."""

    value: float
    shown: str
    what: str
    source: str


CONSTANTS = {
    "write": Constant(244e6, "244 MB/s", "writing a checkpoint: bytes, SHA-256, fsync", HERE),
    "hash": Constant(792e6, "792 MB/s", "SHA-256, on one thread", HERE),
    "read": Constant(811e6, "811 MB/s", "reading files from memory, with SHA-256", HERE),
    "manifest": Constant(168, "168 B", "a manifest without files", HERE),
    "entry": Constant(153, "153 B", "a file in a manifest", HERE),
    "value": Constant(24, "24 B", "a value of a metric, in each checkpoint", HERE),
    "random": Constant(15_557, "15.6 kB", "the random state of a rank", HERE),
    "gather": Constant(
        0.74e-3 / 8, "0.09 ms", "gathering it at rank 0 (0.74 ms of 8 processes, gloo)", HERE
    ),
    "ask": Constant(0.0177, "18 ms", "a request that reads, to a local `mlflow server`", HERE),
    "tags": Constant(0.0063, "6 ms", "a request that sets a tag", HERE),
    "metrics": Constant(0.0416, "42 ms", "a request with 100 values of metrics", HERE),
    "tracking": Constant(3, "3", "requests to the tracking API by each commit", HERE),
    "artifacts": Constant(
        4, "4", "requests to the store by each commit, but for files of tensors and deleting", HERE
    ),
    "beat": Constant(3, "3", f"requests of a heartbeat, every {BEAT_SECONDS:.0f} s", READ),
    "delete": Constant(1000, "1,000", "files that MLflow deletes on S3 by two requests", READ),
    "index": Constant(162, "162 B", "a tensor in the index of a rank, of 60,000", HERE),
    "agree": Constant(
        0.15e-3, "0.15 ms", "one all_reduce of 5 numbers a step, 2 processes, gloo", TRIAL
    ),
    "restart": Constant(
        3.3, "3.3 s", "a killed worker is up again, 2 processes; up to 2.9 s are imports", TRIAL
    ),
    "adam": Constant(ADAM_BYTES, "12 B", "a parameter: weight, two moments, 4 bytes each", ASSUMED),
    "gpus": Constant(8, "8", "GPUs, and ranks, of a node", ASSUMED),
    "memory": Constant(80e9, "80 GB", "memory of a GPU, 60 % of it for that", ASSUMED),
    "node": Constant(1e9, "1 GB/s", "what a node brings to the store, by way of its disk", ASSUMED),
    "store": Constant(20e9, "20 GB/s", "what the store takes in all", ASSUMED),
    "stage": Constant(
        STAGING_BYTES_PER_SECOND, "10 GB/s", "a node copies its part aside, training waits", ASSUMED
    ),
    "flops": Constant(400e12, "400 TFLOP/s", "a GPU, of 6 × parameters × tokens", ASSUMED),
    "tokens": Constant(4e6, "4 million", "tokens of a step", ASSUMED),
    "mtbf": Constant(Cluster().mtbf_hours, "6,000 h", "between two failures of a node", ASSUMED),
    "begin": Constant(
        Cluster().restart_seconds,
        "120 s",
        "from a failure to the next step, but for reading",
        ASSUMED,
    ),
    "logged": Constant(5, "5", "metrics logged at each step", ASSUMED),
    "look": Constant(2, "2 s", "between two looks of rank 0 for the others' files", ASSUMED),
}


def value(name: str) -> float:
    """Return a constant."""
    return CONSTANTS[name].value


@dataclass(frozen=True)
class Model:
    """A dense transformer: its parameters and its tensors, of which Adam makes three each."""

    name: str
    params: float
    num_tensors: int


# Tensors of Llama's shapes: 9 a layer and 3 more; 16, 32, 80, 126 layers.
MODELS = (
    Model("1 B", 1e9, 147), Model("8 B", 8e9, 291),
    Model("70 B", 70e9, 723), Model("400 B", 400e9, 1137),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model on so many ranks."""

    model: Model
    ranks: int

    @property
    def state_bytes(self) -> float:
        return self.model.params * value("adam")

    @property
    def rank_bytes(self) -> float:
        return self.state_bytes / self.ranks

    @property
    def fits(self) -> bool:
        """Whether weights and moments leave room on the GPU."""
        return self.rank_bytes <= 0.6 * value("memory")

    @property
    def rank_files(self) -> int:
        """A rank's files: parts, and its index."""
        return math.ceil(self.rank_bytes / PART_BYTES) + 1

    @property
    def num_files(self) -> int:
        return self.ranks * self.rank_files

    @property
    def index_bytes(self) -> float:
        """Of one rank: an entry for each tensor, of which Adam makes three."""
        return 3 * self.model.num_tensors * value("index")

    @property
    def manifest_bytes(self) -> float:
        return value("manifest") + value("entry") * self.num_files

    @property
    def commit_requests_seconds(self) -> float:
        """What rank 0 does alone: look, read each rank's index, the requests of a commit."""
        read = self.ranks * value("ask") / NUM_TRANSFERS
        return value("look") + read + value("tracking") * value("ask")

    @property
    def delete_requests(self) -> float:
        """What deleting the checkpoint before takes."""
        return 2 * math.ceil(self.num_files / value("delete"))

    @property
    def plan(self) -> Plan:
        return Plan.of(
            Cluster(
                nodes=max(1, self.ranks // int(value("gpus"))),
                mtbf_hours=value("mtbf"),
                step_seconds=6 * self.model.params * value("tokens") / self.ranks / value("flops"),
                state_bytes=self.state_bytes,
                node_bytes_per_second=value("node"),
                store_bytes_per_second=value("store"),
                commit_seconds=self.commit_requests_seconds,
                restart_seconds=value("begin"),
            )
        )

    @property
    def beat_rate(self) -> float:
        """Requests per second of the heartbeat."""
        return value("beat") / BEAT_SECONDS

    @property
    def commit_rate(self) -> float:
        """Requests per second to the tracking API by commits, metrics included."""
        plan = self.plan
        batches = math.ceil(plan.steps * value("logged") / MAX_BATCH_METRICS)
        cycle = plan.interval_seconds + plan.cluster.stall
        return (value("tracking") - 1 + batches) / cycle

    @property
    def metric_rate(self) -> float:
        """Values of metrics per second."""
        return value("logged") / self.plan.cluster.step_seconds

    @property
    def store_rate(self) -> float:
        """Requests per second to the store: files, rank 0's reading of indexes, deleting."""
        plan = self.plan
        cycle = plan.interval_seconds + plan.cluster.stall
        return (value("artifacts") + self.num_files + self.ranks + self.delete_requests) / cycle


CASES = [Case(model, ranks) for model in MODELS for ranks in RANKS]


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def constants() -> str:
    """Return the table of the constants, by where they come from."""
    rows = [[c.shown, c.what, c.source] for c in CONSTANTS.values()]
    return table(["Value", "Of", "Source"], rows)


def intervals() -> str:
    """Return what `onward plan` says of each case."""
    headings = ["Model", "Ranks", "A rank's part", "A step", "Commit", "Save every"]
    headings += ["Failures a day", "Lost", "Commits under way"]
    rows = []
    for case in CASES:
        row = [case.model.name, f"{case.ranks:,}", size_in_words(case.rank_bytes)]
        plan, cluster = case.plan, case.plan.cluster
        found = [
            time_in_words(cluster.step_seconds),
            time_in_words(cluster.commit),
            f"{time_in_words(plan.interval_seconds)}, {plan.steps:,} steps",
            f"{plan.failures_per_day:.2g}",
            share_in_words(plan.shares.lost),
            share_in_words(plan.busy),
        ]
        rows.append([*row, *(found if case.fits else ["does not fit", *"–––––"])])
    return table(headings, rows)


def documents() -> str:
    """Return how much there is beside the tensors."""
    headings = ["Model", "Ranks", "Files", "Manifest", "Of its limit", "A rank's index"]
    headings += ["All indexes", "All random states", "Their gather", "Rank 0 alone, a commit"]
    rows = [
        [
            case.model.name,
            f"{case.ranks:,}",
            f"{case.num_files:,}",
            size_in_words(case.manifest_bytes),
            share_in_words(case.manifest_bytes / MAX_MANIFEST_BYTES),
            size_in_words(case.index_bytes),
            size_in_words(case.ranks * case.index_bytes),
            size_in_words(case.ranks * value("random")),
            f"{1e3 * case.ranks * value('gather'):.2g} ms",
            time_in_words(case.commit_requests_seconds),
        ]
        for case in CASES
        if case.fits
    ]
    return table(headings, rows)


def load() -> str:
    """Return what the server and the store are asked for, each second."""
    headings = [
        "Model",
        "Ranks",
        "Heartbeat",
        "Commits",
        "Values of metrics",
        "Of the server's time",
    ]
    headings += ["If every rank asked", "Of its time then", "Store"]
    rows = []
    for case in (case for case in CASES if case.fits):
        asked = case.beat_rate + case.commit_rate
        busy = asked * value("ask") + case.metric_rate * value("metrics") / 100
        row = [f"{case.beat_rate:.2g}", f"{case.commit_rate:.2g}", f"{case.metric_rate:.2g}"]
        all_of_them = [f"{case.ranks * asked:,.0f}", f"{100 * case.ranks * busy:,.0f} %"]
        row += [share_in_words(busy), *all_of_them, f"{case.store_rate:.2g}"]
        rows.append([case.model.name, f"{case.ranks:,}", *row])
    return table(headings, rows)


TABLES = {"constants": constants, "intervals": intervals, "documents": documents, "load": load}


def written(page: str) -> str:
    """Return the page with its tables made anew."""
    for name, make in TABLES.items():
        between = rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)"
        made = f"\n{make()}\n\n"
        page = re.sub(between, lambda _, made=made: made, page, flags=re.DOTALL)
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
