"""Staging: copying the state aside, so that training can go on while it is written.

The buffers are kept and used again: a copy into memory that is there already runs at the
memory's speed, one into new memory at a tenth of it. There is one set of them, so that a
process holds its state at most once more than training alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

from onward.checkpoint.plain import to_plain, whole_tensor
from onward.system.boxes import local_of

Copy = tuple[torch.Tensor, torch.Tensor]  # (buffer, source)
MayWait = Callable[[torch.Tensor], bool]


class Staged:
    """A state set aside: whole once `wait` returns, valid until `release`."""

    def __init__(self, on_release: Callable[[], None]) -> None:
        self.state: dict[str, Any] = {}
        self._on_release = on_release
        self._copied = threading.Event()
        self._events: list[torch.cuda.Event] = []
        self._error: BaseException | None = None

    def hold_update(self) -> None:
        """Wait until the weights may change: right before an optimizer step.

        On a GPU only the GPU waits.
        """
        self._copied.wait()
        for event in self._events:
            torch.cuda.current_stream().wait_event(event)

    def wait(self) -> None:
        """Wait until the copy is complete, and raise what went wrong in it."""
        self._copied.wait()
        for event in self._events:
            event.synchronize()
        if self._error is not None:
            raise self._error

    def release(self) -> None:
        """Give the buffers back: the next state may be staged."""
        self.state = {}  # whoever still knows of this one keeps no memory
        self._on_release()


class Stager:
    """Owns the buffers, and lends them to one `Staged` at a time."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}
        self._free = threading.Event()
        self._free.set()

    @property
    def is_free(self) -> bool:
        """Whether `stage` would begin at once."""
        return self._free.is_set()

    def stage(self, state: Mapping[str, Any], may_wait: MayWait | None = None) -> Staged:
        """Copy `state` aside; block while the buffers are still lent.

        Args:
            state: Tensors and builtins, nested in dicts, lists and tuples.
            may_wait: Tells the tensors that nothing but an optimizer step changes: those are
                copied in the background, while the next batch is computed. Before the step
                the caller must call `Staged.hold_update`. Default: none are.

        Raises:
            CheckpointError: `state` holds something else.
        """
        self._free.wait()
        self._free.clear()
        staged = Staged(self._free.set)
        try:
            later = self._copy_now(state, staged, may_wait)
        except BaseException:  # the buffers must not stay lent
            self._free.set()
            raise
        threading.Thread(target=_copy_all, args=(later, staged), daemon=True).start()
        return staged

    def close(self) -> None:
        """Give the memory back, once nothing is staged any more: what follows may need it."""
        self._buffers.clear()

    def _copy_now(
        self, state: Mapping[str, Any], staged: Staged, may_wait: MayWait | None
    ) -> list[Copy]:
        later: list[Copy] = []
        # Tied weights stay tied. The source is held, so that no other gets its address meanwhile.
        shared: dict[tuple[Any, ...], Copy] = {}

        def set_aside(where: str, tensor: torch.Tensor) -> torch.Tensor:
            tensor = whole_tensor(where, tensor)
            key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
            if tensor.numel() and key in shared:
                return shared[key][0]
            buffer = self._buffer(where, tensor)
            shared[key] = (buffer, tensor)
            if may_wait is not None and may_wait(tensor):
                later.append((buffer, tensor))
            else:
                buffer.copy_(tensor)
            return buffer

        staged.state = to_plain(state, tensor=set_aside)
        return later

    def _buffer(self, where: str, tensor: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get(where)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            pinned = tensor.is_cuda
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            self._buffers[where] = buffer
        return buffer


def changed_by_step(*optimizers: torch.optim.Optimizer) -> MayWait:
    """Return the test for tensors that only steps of these change: weights and moments.

    A model's buffers, such as running means, are not among them: a forward pass changes those.
    Where weights are spread over ranks it knows what this rank holds of each, by its memory, as
    that stays where it is over a step: so the pieces that `onward.run.sharded.split` returns are
    copied in the background like whole tensors.
    """
    tensors: list[torch.Tensor] = []
    for optimizer in optimizers:
        tensors += [p for group in optimizer.param_groups for p in group["params"]]
        for state in optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    pointers = {local_of(tensor).data_ptr() for tensor in tensors} - {0}  # of empty ones
    return lambda tensor: tensor.data_ptr() in pointers


def _copy_all(copies: list[Copy], staged: Staged) -> None:
    """Copy in a thread of its own; torch lets the others run meanwhile."""
    try:
        devices = {source.device for _, source in copies if source.is_cuda}
        streams = {device: torch.cuda.Stream(device) for device in devices}
        for stream in streams.values():
            stream.wait_stream(torch.cuda.default_stream(stream.device))
        for buffer, source in copies:
            if source.is_cuda:
                with torch.cuda.stream(streams[source.device]):
                    buffer.copy_(source, non_blocking=True)
                    source.record_stream(streams[source.device])
            else:
                buffer.copy_(source)
        staged._events = [stream.record_event() for stream in streams.values()]
    except BaseException as error:  # raised in the thread that waits
        staged._error = error
    finally:
        staged._copied.set()
