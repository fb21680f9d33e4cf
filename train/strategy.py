"""How one optimizer step is made by several ranks: what each computes, and how it is added up.

`ddp` and `fsdp` average the ranks' gradients as torch does; with `fsdp` each holds a piece of the
weights and moments. `parts` cuts each batch into a fixed number of
parts, whatever the number of ranks: each part has random numbers of its own, a function of seed,
step and part, and the gradients are added in a tree that is always the same. So 1, 2 and 4 ranks
give the same bits, which nothing else does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from onward.errors import UsageError
from onward.run import rng
from onward.run.passes import Order
from onward.run.run import Run
from onward.words.language import _
from onward.world import World
from train.task import Task

DDP, FSDP, PARTS = "ddp", "fsdp", "parts"


class Strategy(Protocol):
    """One way to make a step."""

    def order(self, num_samples: int, batch_size: int) -> Order:
        """Return the samples of each batch that this rank is to see."""
        ...

    def backward(self, task: Task, indices: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Leave the gradient of a batch's mean loss in the model.

        Returns:
            The mean loss of what this rank answers for, and of how many samples it is.
        """
        ...


def strategy_for(run: Run, model: nn.Module, options: Any) -> Strategy:
    """Return the strategy that the options name.

    Raises:
        UsageError: It is not possible with so many ranks.
    """
    if options.strategy == PARTS:
        return Parts(run, model, options)
    return Averaged(run, model, options)


def spread(model: nn.Module, run: Run, options: Any) -> None:
    """Leave each rank a piece of the model's weights, if the options say so: before an optimizer.

    Raises:
        UsageError: The model cannot be cut into pieces.
    """
    if options.strategy != FSDP or run.world.is_alone:
        return
    from torch.distributed.fsdp import fully_shard

    try:
        fully_shard(model)
    except ValueError as error:  # such as a parameter without dimensions
        told = _("strategy=fsdp cannot shard the model: {reason}")
        raise UsageError(told.format(reason=" ".join(str(error).split())[:300])) from error


def gradient_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """Return the norm of all gradients, of all pieces of them where ranks hold pieces."""
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    gather = getattr(norm, "full_tensor", None)
    return norm if gather is None else gather()


def require_parts(options: Any, num_ranks: int) -> None:
    """Refuse parts that cannot be dealt out to so many ranks.

    Raises:
        UsageError: They cannot.
    """
    parts = options.parts
    if parts & (parts - 1) or num_ranks & (num_ranks - 1) or num_ranks > parts:
        raise UsageError(
            _("parts={parts} cannot be dealt out to {num_ranks} ranks so that every number of them "
              "gives the same bits: take powers of two, and no more ranks than parts")
            .format(parts=parts, num_ranks=num_ranks)
        )  # fmt: skip
    if options.accumulation_steps > 1:
        told = _("accumulation_steps={number} is for strategy=ddp: parts are computed one by one")
        raise UsageError(told.format(number=options.accumulation_steps))


class Averaged:
    """Each rank has its own part of a batch, and torch averages gradients. Alone: nothing."""

    def __init__(self, run: Run, model: nn.Module, options: Any) -> None:
        self._run, self._num_parts = run, options.accumulation_steps
        self._model: Any = model
        self._is_sharded = options.strategy == FSDP and not run.world.is_alone
        if options.strategy == DDP and not run.world.is_alone:
            device = next(model.parameters()).device
            # Else the order of its sums changes after its first step, and a resume of 3 ranks or
            # more differs.
            device_ids = [device] if device.type == "cuda" else None
            self._model = DistributedDataParallel(
                model, device_ids=device_ids, find_unused_parameters=True
            )

    def order(self, num_samples: int, batch_size: int) -> Order:
        """Return this rank's share of each batch."""
        return self._run.order(num_samples, batch_size)

    def backward(self, task: Task, indices: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Add the gradient up, in `accumulation_steps` parts."""
        number = min(self._num_parts, len(indices))
        if number == 1:
            total = self._add_up(task, indices)
        else:
            losses = []
            for i, part in enumerate(indices.tensor_split(number), 1):
                with self._apart(i < number):
                    losses.append(self._add_up(task, part, len(part) / len(indices)))
            total = torch.stack(losses).sum()
        return total, len(indices) if self._run.batch_weight else 0

    def _add_up(self, task: Task, part: torch.Tensor, share: float = 1.0) -> torch.Tensor:
        """Add the gradient of a part of a batch up, and return what of the batch's loss it is."""
        loss, weight = task.loss(self._model, part), self._run.batch_weight
        if share != 1:
            loss = loss * share
        (loss if weight == 1 else loss * weight).backward()
        return loss.detach()

    @contextlib.contextmanager
    def _apart(self, is_apart: bool) -> Iterator[None]:
        """Leave the exchange of gradients for a later part.

        Ranks may have different numbers of parts: all exchange once in a step.
        """
        if is_apart and isinstance(self._model, DistributedDataParallel):
            with self._model.no_sync():
                yield
            return
        if self._is_sharded:
            # Whole gradients, and until the last part whole weights, which any backward pass has.
            self._model.set_requires_gradient_sync(not is_apart)
            self._model.set_reshard_after_backward(not is_apart)
        yield


class Parts:
    """Gradients of a fixed number of parts, added in a fixed tree by any number of ranks."""

    def __init__(self, run: Run, model: nn.Module, options: Any) -> None:
        require_parts(options, run.world.size)
        self._run, self._model, self._options = run, model, options
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def order(self, num_samples: int, batch_size: int) -> Order:
        """Return each batch, whole: what is dealt out are its parts."""
        return self._run.order(num_samples, batch_size, is_whole=True)

    def backward(self, task: Task, indices: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Compute this rank's parts, and add up those of all."""
        world, seed, step = self._run.world, self._options.seed, self._run.step
        parts = indices.tensor_split(self._options.parts)
        num_own = len(parts) // world.size
        first = world.rank * num_own

        def gradient_of(number: int) -> torch.Tensor:
            part = parts[number]
            rng.seed_all(rng.derive_seed("part", seed, step, number))
            self._model.zero_grad(set_to_none=True)
            if not len(part):
                return self._flat(indices.new_zeros((), dtype=torch.float32))
            loss = task.loss(self._model, part) * (len(part) / len(indices))
            loss.backward()
            return self._flat(loss.detach())

        total = tree_sum(gradient_of, first, num_own)
        self._put(add_over_ranks(total, world))
        loss = total[-1] if world.is_leader else total[-1] * 0
        return loss, len(indices) if world.is_leader else 0

    def _flat(self, loss: torch.Tensor) -> torch.Tensor:
        """Return all gradients, which of them there are, and the loss, in one line."""
        grads = [p.grad for p in self._parameters]
        device = self._parameters[0].device
        there = torch.tensor([float(g is not None) for g in grads], device=device)
        flat = [
            torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1)
            for p, g in zip(self._parameters, grads, strict=True)
        ]
        return torch.cat([*flat, there, loss.reshape(1).to(device)])

    def _put(self, total: torch.Tensor) -> None:
        sizes = [p.numel() for p in self._parameters]
        *grads, there, _loss = total.split([*sizes, len(sizes), 1])
        for parameter, grad, is_there in zip(self._parameters, grads, there.tolist(), strict=True):
            parameter.grad = grad.view_as(parameter) if is_there else None


def tree_sum(make: Callable[[int], torch.Tensor], first: int, number: int) -> torch.Tensor:
    """Return the sum of what is made for `number` numbers from `first` on, added in pairs of pairs.

    At most log2(number) + 1 of them are held at a time.

    >>> tree_sum(lambda n: torch.tensor([float(n)]), 4, 4)
    tensor([22.])
    """
    if number == 1:
        return make(first)
    half = number // 2
    left = tree_sum(make, first, half)
    return left.add_(tree_sum(make, first + half, number - half))


def add_over_ranks(total: torch.Tensor, world: World) -> torch.Tensor:
    """Go on with the tree over the ranks, in place: in each round a rank adds its partner's sum.

    a + b and b + a are the same bits, so all ranks end with the same.
    """
    distance = 1
    on_cpu = total.cpu()
    while distance < world.size:
        world.add_from(on_cpu, world.rank ^ distance)
        distance *= 2
    return total.copy_(on_cpu)
