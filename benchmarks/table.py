"""Model, order, optimizer, schedule and evaluation of the workload 'table', in plain torch.

All ways but `train run` train with these; that the final losses agree shows that it is the same.

Shapes: N rows, D columns, B rows of a batch, H hidden units.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn
from workload import PREPARED, Workload

EVAL_ROWS = 8192
FLOOR = 0.01


class Residual(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, size), nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class Mlp(nn.Module):
    """That of the table task, for numbers alone: a linear path beside a residual MLP."""

    def __init__(self, width: int, size: int, num_layers: int, ridge: float) -> None:
        super().__init__()
        self.ridge = ridge
        self.linear = nn.Linear(width, 1)
        first = nn.Sequential(nn.Linear(width, size), nn.GELU())
        rest = (Residual(size) for _ in range(num_layers - 1))
        self.hidden = nn.Sequential(first, *rest, nn.LayerNorm(size))
        self.head = nn.Linear(size, 1)
        for layer in (self.linear, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.linear(x) + self.head(self.hidden(x))).squeeze(1)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        penalty = self.ridge * self.linear.weight.square().sum()
        return nn.functional.mse_loss(self(x), y) + penalty - penalty.detach()


class Table:
    """The prepared table, in memory, and what is done with it."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.workload = Workload.load(folder)
        arrays = dict(np.load(folder / PREPARED))
        self.x, self.y, self.val_x, self.val_y = (
            torch.from_numpy(arrays[name]) for name in ("train_x", "train_y", "val_x", "val_y")
        )
        self.val_target, (self.mean, self.std) = arrays["val_target"], arrays["scale"]
        self.num_steps = -(-len(self.y) // self.workload.batch_size)  # of an epoch

    def build(self) -> tuple[Mlp, torch.optim.Optimizer]:
        """Return a new model and its optimizer."""
        w = self.workload
        digest = hashlib.blake2b(repr(("weights", w.seed)).encode(), digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest, "little") >> 1)
        model = Mlp(self.x.shape[1], w.hidden_size, w.num_layers, self.x.shape[1] / len(self.y))
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=w.lr, weight_decay=w.weight_decay, fused=True
        )
        return model, optimizer

    def factor(self, epochs_done: int) -> float:
        """Return the part of the highest learning rate that the next epoch has."""
        cosine = math.cos(math.pi * min(epochs_done / self.workload.epochs, 1.0))
        return FLOOR + (1 - FLOOR) * (1 + cosine) / 2

    def batches(self, epoch: int) -> tuple[torch.Tensor, ...]:
        """Return the rows of each batch of an epoch, the first of which is 1: int64 [B]."""
        digest = hashlib.sha256(f"batches {self.workload.seed} {epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.randperm(len(self.y), generator=generator).tensor_split(self.num_steps)

    def step(self, model: Mlp, optimizer: torch.optim.Optimizer, rows: torch.Tensor) -> float:
        """Make an optimizer step on the rows of a batch; return their mean loss."""
        optimizer.zero_grad()
        loss = model.loss(self.x.index_select(0, rows), self.y.index_select(0, rows))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), self.workload.max_grad_norm)
        optimizer.step()
        return loss.item()

    def set_lr(self, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        """Set the learning rate of an epoch, the first of which is 1."""
        for group in optimizer.param_groups:
            group["lr"] = self.workload.lr * self.factor(epoch - 1)

    @torch.no_grad()
    def evaluate(self, model: Mlp) -> dict[str, float]:
        """Return the metrics over the validation rows."""
        model.eval()
        predicted = torch.cat([model(x) for x in self.val_x.split(EVAL_ROWS)])
        model.train()
        return self.metrics(predicted)

    def metrics(self, predicted: torch.Tensor) -> dict[str, float]:
        """Return the metrics of predictions for the validation rows."""
        predicted = predicted.double()
        decoded = predicted.numpy() * self.std + self.mean
        error = decoded - self.val_target
        return {
            "val_loss": (predicted - self.val_y).square().mean().item(),
            "val_pearson": float(np.corrcoef(decoded, self.val_target)[0, 1]),
            "val_spearman": float(np.corrcoef(ranks(decoded), ranks(self.val_target))[0, 1]),
            "val_rmse": float(np.sqrt(np.mean(error**2))),
            "val_mae": float(np.abs(error).mean()),
        }


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the mean rank of each value among all."""
    _sorted, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[place]


class EpochBatches:
    """A batch sampler: each pass is an epoch."""

    def __init__(self, table: Table) -> None:
        self.table, self.epoch = table, 0

    def __len__(self) -> int:
        return self.table.num_steps

    def __iter__(self):
        self.epoch += 1
        return iter(self.table.batches(self.epoch))


class BatchedRows(torch.utils.data.Dataset):
    """Rows that are fetched a batch at a time: nothing is done row by row."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitems__(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.as_tensor(rows)
        return self.x.index_select(0, rows), self.y.index_select(0, rows)


def as_is(batch):
    """Collate nothing: the batch is one already."""
    return batch


def train_loader(table: Table) -> torch.utils.data.DataLoader:
    """Return a loader of the same batches in the same order."""
    return torch.utils.data.DataLoader(
        BatchedRows(table.x, table.y), batch_sampler=EpochBatches(table), collate_fn=as_is
    )


def val_loader(table: Table) -> torch.utils.data.DataLoader:
    """Return a loader of the validation rows."""
    return torch.utils.data.DataLoader(
        BatchedRows(table.val_x, table.val_y), batch_size=EVAL_ROWS, collate_fn=as_is
    )
