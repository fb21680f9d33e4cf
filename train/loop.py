"""The training story."""

from __future__ import annotations

import logging
import math

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from onward.errors import NonFinite
from onward.options.command import train_command
from onward.run import rng
from onward.run.order import batches, num_batches
from onward.run.run import Run
from onward.run.state import TrainState
from onward.system import environment
from onward.words.language import _
from train.schedule import Schedule
from train.task import Task

log = logging.getLogger(f"onward.{__name__}")


def train(run: Run, task: Task) -> None:
    """Train `task` until the run has all its epochs.

    ::

        build the model, the optimizer and the schedule; go back to where the run was
        for each epoch that is left:
            set the learning rate
            train on every batch, in the epoch's own order
            evaluate
            log the epoch's metrics
            save

    Raises:
        NonFinite: Loss or gradients are not finite; the update was not made.
        Interrupted: A signal asked to stop; all steps completed are saved.
    """
    config = run.config
    environment.set_threads(config.threads)
    rng.seed_all(rng.derive_seed("weights", config.seed))

    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, fused=True)
    schedule = Schedule(config)
    run.restore(TrainState(model, optimizer, schedule))
    if run.state.epoch < config.epochs and schedule.is_past_horizon(config.epochs):
        log.warning(
            _(
                "epochs=%d is past schedule_epochs=%d: from there the learning rate stays at its "
                "floor, %.3g"
            ),
            config.epochs,
            schedule.horizon_epochs,
            schedule.lr(config.epochs),
        )
        if run.state.epoch:  # else there is nothing to fork
            stretched = {"epochs": config.epochs, "schedule_epochs": config.epochs, "fork": True}
            fork = train_command({"resume_run": run.run_id, **stretched})
            log.warning(_("A fork may stretch it: %s"), fork)

    for epoch in run.epochs():
        lr = schedule.lr(epoch)
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr, config.weight_decay
        train_loss = train_epoch(run, task, model, optimizer, epoch)
        with run.interruptible():
            metrics = task.evaluate(model)
        schedule.observe(metrics["val_loss"])
        run.log({"train_loss": train_loss, **metrics, "lr": lr}, task.num_samples)
        run.save()


def train_epoch(
    run: Run, task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int
) -> float:
    """Make one pass over the training samples, or the rest of one; return their mean loss."""
    config, num_done = run.config, run.state.epoch_step
    parameters = [p for p in model.parameters() if p.requires_grad]
    total_loss = run.state.running_sum("train_loss", parameters[0].device)
    left = batches(task.num_samples, config.batch_size, config.seed, epoch, start=num_done)
    for indices in run.steps(left, num_batches(task.num_samples, config.batch_size)):
        optimizer.zero_grad(set_to_none=True)
        loss = _backward(task, model, indices, config.accumulation_steps)
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        # IMPORTANT: refused before the step, so that the weights are never touched by NaN.
        _refuse_non_finite(loss, norm, run, optimizer, epoch)
        if config.max_grad_norm:
            clip_grads_with_norm_(parameters, config.max_grad_norm, norm)
        optimizer.step()
        total_loss += loss * len(indices)
    return (total_loss / task.num_samples).item()


def _backward(task: Task, model: nn.Module, indices: torch.Tensor, num_parts: int) -> torch.Tensor:
    """Add up the gradient of a batch's mean loss, part by part; return that loss."""
    losses = []
    for part in indices.tensor_split(min(num_parts, len(indices))):
        loss = task.loss(model, part) * (len(part) / len(indices))
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def _refuse_non_finite(
    loss: torch.Tensor,
    norm: torch.Tensor,
    run: Run,
    optimizer: torch.optim.Optimizer,
    epoch: int,
) -> None:
    if math.isfinite((loss + norm).item()):  # one transfer for both
        return
    lr = optimizer.param_groups[0]["lr"]
    for what, value in (("loss", loss.item()), ("gradient norm", norm.item())):
        if not math.isfinite(value):
            raise NonFinite(what, value, epoch, run.step + 1, lr)
