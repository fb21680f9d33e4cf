"""`onward.checkpoints`: the checkpoints of a run, from Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from onward.checkpoint.content import Content
from onward.checkpoint.manifest import Manifest
from onward.opening import maintenance
from onward.opening.source import find_store, pick, require_committed
from onward.system import environment
from onward.tracking.client import Tracking
from onward.words import language


class Checkpoints(Sequence[Manifest]):
    """The checkpoints of a run, oldest first; each tells its name, epoch, step, metrics, bytes.

    Args:
        run_id: The run, "latest", or the address of its page.

    Raises:
        RunNotUsable: There is no such run.
        CheckpointNotFound: It has committed some, and none is there.
        StoreUnavailable: The server, or the store, does not answer.
    """

    def __init__(self, run_id: str) -> None:
        language.choose(environment.languages())
        environment.prepare_process()
        self._tracking = Tracking()
        record, _folder, self._store = find_store(self._tracking, run_id)
        self.run_id = record.run_id
        self._manifests = self._store.list(index=record.index_sha256)
        require_committed(record, self._store, self._manifests)

    @overload
    def __getitem__(self, index: int) -> Manifest: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Manifest]: ...

    def __getitem__(self, index: int | slice) -> Manifest | Sequence[Manifest]:
        return self._manifests[index]

    def __len__(self) -> int:
        return len(self._manifests)

    def find(self, which: int | str = "latest") -> Manifest:
        """Return one of them.

        Args:
            which: An epoch, "best", "latest", or a name such as "global_step_4321".

        Raises:
            CheckpointNotFound: There is none; the message lists those there are.
        """
        return pick(self.run_id, self._manifests, str(which))

    def load(self, which: int | str = "latest") -> dict[str, Any]:
        """Download a checkpoint, verify it, and return the state of each of its parts.

        Nothing in it is executed. The tensors are on the CPU.

        Args:
            which: See `find`.

        Returns:
            Name of a part to its state, as for `model.load_state_dict(parts["model"])`.

        Raises:
            CheckpointNotFound: There is none.
            CheckpointDamaged: It is not what was saved.
        """
        return dict(self.content(which).parts)

    def content(self, which: int | str = "latest") -> Content:
        """Return all that a checkpoint holds: parts, history of metrics, config; see `load`."""
        return self._store.get(self.find(which))

    def verify(self) -> Iterator[dict[str, Any]]:
        """Download and check each; yield its name, whether it is "ok", and what was found."""
        yield from maintenance.verify_rows(self._tracking, self.run_id)

    def export(self, which: int | str, to: str | Path) -> Manifest:
        """Write one of them as one plain file for `torch.load(to, weights_only=True)`.

        Raises:
            CheckpointNotFound: There is none.
            CheckpointDamaged: It is not what was saved.
        """
        return maintenance.export(self._tracking, self.run_id, str(which), Path(to))


def checkpoints(run_id: str) -> Checkpoints:
    """Return the checkpoints of a run, oldest first.

    ::

        for checkpoint in onward.checkpoints(run_id):
            print(checkpoint.name, checkpoint.metrics)
        model.load_state_dict(onward.checkpoints(run_id).load("best")["model"])

    Args:
        run_id: The run, "latest", or the address of its page in MLflow.

    Raises:
        RunNotUsable: There is no such run.
        StoreUnavailable: The server, or the store, does not answer.
    """
    return Checkpoints(run_id)
