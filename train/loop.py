"""The training story."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_

from onward.errors import NonFinite, UsageError
from onward.options.command import Standing, train_command
from onward.run import rng
from onward.run.run import Run
from onward.system import environment
from onward.words.language import _
from train.schedule import Schedule
from train.strategy import Strategy, gradient_norm, spread, strategy_for
from train.subject import TaskSubject
from train.task import Task

log = logging.getLogger(f"onward.{__name__}")

# A norm with this margin below the limit would be scaled by 1, which `clip_grads_with_norm_` does.
_MARGIN = 1.001
_ADDED = 1e-6  # by torch, to the norm


def train(run: Run) -> None:
    """Train the run's task until it has all its epochs.

    ::

        build the model, the optimizer and the schedule; go back to where the run was
        for each epoch that is left:
            set the learning rate
            train on every batch, in the epoch's own order
            evaluate
            log the epoch's metrics

    Raises:
        NonFinite: Loss or gradients are not finite; the update was not made.
        Interrupted: A signal asked to stop; all steps completed are saved.
        UsageError: The task does not report the metric that is to decide.
    """
    subject = run.subject
    assert isinstance(subject, TaskSubject)
    task, options = subject.task, subject.options
    environment.set_threads(options.threads)
    rng.seed_all(rng.derive_seed("weights", options.seed))

    model = task.build_model()
    spread(model, run, options)
    optimizer = build_optimizer(task, model, options)
    schedule = Schedule(options, subject.plateau)
    run.restore({"model": model, "optimizer": optimizer, "scheduler": schedule})
    if not hasattr(task, "build_optimizer"):
        for group in optimizer.param_groups:  # a fork may have another than the checkpoint
            group["weight_decay"] = options.weight_decay
    _warn_of_horizon(run, schedule, options)
    strategy = strategy_for(run, model, options)

    for epoch in run.epochs(range(1, options.epochs + 1)):
        lr = schedule.lr(epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        train_epoch(run, task, model, optimizer, strategy, options)
        with run.interruptible():
            metrics = run.shared(task.evaluate(model))
        _require_reported(metrics, run.monitor.name, subject.plateau.name)
        schedule.observe(metrics[subject.plateau.name])
        run.log(train_loss=run.mean("train_loss").value, **metrics, lr=lr)


def build_optimizer(task: Task, model: nn.Module, options: Any) -> torch.optim.Optimizer:
    """Return the task's own optimizer, or AdamW."""
    own = getattr(task, "build_optimizer", None)
    if own is not None:
        built: torch.optim.Optimizer = own(model)
        return built
    return torch.optim.AdamW(model.parameters(), lr=options.lr, fused=True)


def train_epoch(
    run: Run,
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    strategy: Strategy,
    options: Any,
) -> None:
    """Make one pass over the training samples, or the rest of one."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    order = strategy.order(task.num_samples, options.batch_size)
    if options.shuffle_window:
        order.window = options.shuffle_window
    for indices in order:
        optimizer.zero_grad(set_to_none=True)
        loss, num_samples = strategy.backward(task, indices)
        norm = gradient_norm(parameters)
        # IMPORTANT: refused before the step, so that the weights are never touched by NaN.
        norm_value = _require_finite(loss, norm, run, optimizer)
        if options.max_grad_norm and _MARGIN * (norm_value + _ADDED) > options.max_grad_norm:
            clip_grads_with_norm_(parameters, options.max_grad_norm, norm)
        optimizer.step()
        run.mean("train_loss").add(loss, num_samples)


def _require_reported(metrics: Mapping[str, float], *wanted: str) -> None:
    missing = [name for name in wanted if name not in metrics]
    if missing:
        raise UsageError(
            _("{metric} is to be watched, and the task reports {found}: name one of these, as in "
              "monitor={example}:min").format(
                metric=missing[0], found=", ".join(metrics), example=next(iter(metrics), "val_loss")
            )
        )  # fmt: skip


def _warn_of_horizon(run: Run, schedule: Schedule, options: Any) -> None:
    if run.state.epoch >= options.epochs or not schedule.is_past_horizon(options.epochs):
        return
    log.warning(
        _(
            "epochs=%d is past schedule_epochs=%d: from there the learning rate stays at its "
            "floor, %.3g"
        ),
        options.epochs,
        schedule.horizon_epochs,
        schedule.lr(options.epochs),
    )
    if run.state.epoch:  # else there is nothing to fork
        stretched = {"epochs": options.epochs, "schedule_epochs": options.epochs, "fork": True}
        standing = Standing.by_options(run.run_id, False, run.state.epoch, run.options, None)
        fork = train_command(standing.in_place() | stretched)
        log.warning(_("A fork may stretch it: %s"), fork)


def _require_finite(
    loss: torch.Tensor, norm: torch.Tensor, run: Run, optimizer: torch.optim.Optimizer
) -> float:
    """Return the norm of the gradients; refuse what no step can be made of."""
    found = {"loss": loss.item(), "gradient norm": norm.item()}
    for what, value in found.items():
        if not math.isfinite(value):
            lr = optimizer.param_groups[0]["lr"]
            raise NonFinite(what, value, run.state.epoch + 1, run.step + 1, lr)
    return found["gradient norm"]
