"""What a cluster is like, as far as saving is concerned: how often it fails, how fast it writes."""

from __future__ import annotations

from dataclasses import dataclass

STAGING_BYTES_PER_SECOND = 10e9  # of a node: from its devices into its memory


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A training on several machines, of which each holds an equal part of the state.

    The defaults are assumptions, for an 8 B model with Adam on 64 GPUs: replace them by your own.
    """

    nodes: int = 8
    """Machines; when one fails, all begin again at the newest checkpoint."""

    mtbf_hours: float = 6000.0
    """Mean time between two failures of one machine. Llama 3 had 419 in 54 days on 2,048 machines
    of 8 GPUs, one in 6,300 h (Grattafiori et al., 2024, section 3.3.4)."""

    step_seconds: float = 1.0
    """How long an optimizer step takes."""

    state_bytes: float = 8e9 * 12
    """A checkpoint, of all machines together."""

    node_bytes_per_second: float = 1e9
    """What one machine writes to the store, and reads from it."""

    store_bytes_per_second: float = 20e9
    """What the store takes, and gives, in all."""

    commit_seconds: float = 2.0
    """What a commit takes besides its bytes: the requests around them, and the manifest."""

    restart_seconds: float = 120.0
    """From a failure to the next step, but for reading the state: notice it, find a machine,
    import, meet, compile."""

    stall_seconds: float | None = None
    """How long training waits for each checkpoint; None: as long as the copy into memory takes."""

    load_seconds: float | None = None
    """How long reading the state takes; None: as long as writing it."""

    keep_last: int = 1
    """How many of the newest checkpoints stay in the store."""

    @property
    def failures_per_second(self) -> float:
        """How often any of the machines fails."""
        return self.nodes / (3600 * self.mtbf_hours)

    @property
    def node_bytes(self) -> float:
        """A machine's part of the state."""
        return self.state_bytes / self.nodes

    @property
    def transfer_seconds(self) -> float:
        """How long the state takes to the store or back, all machines at once."""
        rate = min(self.nodes * self.node_bytes_per_second, self.store_bytes_per_second)
        return self.state_bytes / rate

    @property
    def stall(self) -> float:
        """How long training waits for each checkpoint, in seconds."""
        if self.stall_seconds is not None:
            return self.stall_seconds
        return self.node_bytes / STAGING_BYTES_PER_SECOND

    @property
    def commit(self) -> float:
        """How long after it was set aside a checkpoint is committed, in seconds."""
        return self.commit_seconds + self.transfer_seconds

    @property
    def restart(self) -> float:
        """How long after a failure training goes on, in seconds."""
        load = self.transfer_seconds if self.load_seconds is None else self.load_seconds
        return self.restart_seconds + load
