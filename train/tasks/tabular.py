"""Regression on a table: an MLP with embeddings for categories.

Shapes: N rows, B rows of a batch, D numeric features, C categorical features, H hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from train.config import Config
from train.data.dataset import Dataset, Rows

_EVAL_ROWS = 8192  # rows a forward pass at a time in `evaluate`


class TabularMLP(nn.Module):
    """Categories are embedded, then everything goes through an MLP with a linear path beside it.

    Args:
        num_numeric: Number of numeric features, D.
        num_codes: Number of codes of each categorical feature, C numbers.
        hidden_size: Width of the hidden layers, H.
        num_layers: Number of hidden layers; 0 leaves the linear path alone.
        dropout: Part of the hidden units dropped in training, in [0, 1).

    Shape:
        numeric: float32 [B, D]
        categorical: int64 [B, C]
        returns: float32 [B]
    """

    def __init__(
        self,
        num_numeric: int,
        num_codes: Sequence[int],
        *,
        hidden_size: int,
        num_layers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(n, _embedding_size(n)) for n in num_codes)
        width = num_numeric + sum(_embedding_size(n) for n in num_codes)
        self.linear = nn.Linear(width, 1)
        layers: list[nn.Module] = []
        for i in range(num_layers):
            layers += [
                nn.Linear(width if i == 0 else hidden_size, hidden_size),
                nn.SiLU(),
                nn.Dropout(dropout),
            ]
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(hidden_size, 1) if num_layers else None
        for embedding in self.embeddings:
            with torch.no_grad():  # code 0, an unknown value, says nothing until it is trained
                embedding.weight[0] = 0.0  # type: ignore[index]

    def forward(self, numeric: torch.Tensor, categorical: torch.Tensor) -> torch.Tensor:
        """Predict on the scale the target is trained on."""
        embedded = [layer(codes) for layer, codes in zip(self.embeddings, categorical.T)]
        inputs = torch.cat([numeric, *embedded], dim=1)
        outputs = self.linear(inputs)
        if self.head is not None:
            outputs = outputs + self.head(self.hidden(inputs))
        return outputs.squeeze(1).float()


class TabularTask:
    """Predict a number from the other columns of a table; see `train.tasks.Task`.

    Args:
        dataset: The prepared table.
        config: The options; those of the group Model, and `precision`, count.
        device: Where the data is held and the model computes.
    """

    name = "tabular"

    def __init__(self, dataset: Dataset, config: Config, device: torch.device | str) -> None:
        self.dataset, self.config = dataset, config
        self.device = torch.device(device)
        self._train = self._tensors(dataset.train)
        self._val = self._tensors(dataset.val)

    @property
    def num_samples(self) -> int:
        """Number of training rows."""
        return len(self.dataset.train)

    def build_model(self) -> TabularMLP:
        """Return a new model on the device, drawn from torch's global random state."""
        preprocessing = self.dataset.preprocessing
        model = TabularMLP(
            len(preprocessing.numeric),
            [feature.num_codes for feature in preprocessing.categorical],
            hidden_size=self.config.hidden_size,
            num_layers=self.config.num_layers,
            dropout=self.config.dropout,
        )
        return model.to(self.device)

    def loss(self, model: nn.Module, indices: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error of training rows, on the scale trained on."""
        rows = indices.to(self.device)
        numeric, categorical, target = (t.index_select(0, rows) for t in self._train)
        return nn.functional.mse_loss(self._predict(model, numeric, categorical), target)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the metrics over the validation rows.

        Returns:
            `val_loss`: mean squared error on the scale trained on; and on the target's own scale
            `val_pearson`, `val_spearman` (both NaN where they are undefined: a constant
            prediction or target), `val_rmse`, `val_mae`.
        """
        was_training = model.training
        model.eval()
        try:
            numeric, categorical, target = (t.split(_EVAL_ROWS) for t in self._val)
            chunks = [self._predict(model, n, c) for n, c in zip(numeric, categorical, strict=True)]
        finally:
            model.train(was_training)
        predicted = torch.cat(chunks).double()
        val_loss = (predicted - torch.cat(target)).square().mean().item()
        decoded = self.dataset.preprocessing.scale.decode(predicted.cpu().numpy())
        return {"val_loss": val_loss, **_metrics(decoded, self.dataset.val.target)}

    def _predict(
        self, model: nn.Module, numeric: torch.Tensor, categorical: torch.Tensor
    ) -> torch.Tensor:
        bf16 = self.config.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            predicted: torch.Tensor = model(numeric, categorical)
        return predicted

    def _tensors(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        target = self.dataset.preprocessing.scale.encode(rows.target).astype(np.float32)
        arrays = (rows.features.numeric, rows.features.categorical, target)
        numeric, categorical, encoded = (torch.from_numpy(a).to(self.device) for a in arrays)
        return numeric, categorical, encoded


def choose_threads(model: nn.Module, batch_size: int, available: int) -> int:
    """Return the number of CPU threads worth using.

    Args:
        model: The model.
        batch_size: Rows per step.
        available: Number of cores this process may use.
    """
    num_weights = sum(p.numel() for p in model.parameters())
    return available if num_weights * batch_size > 2**30 else 1


def _embedding_size(num_codes: int) -> int:
    """Return a width that grows with the fourth root of the vocabulary."""
    return min(num_codes, math.ceil(2 * num_codes**0.25))


def _metrics(predicted: NDArray[np.float64], target: NDArray[np.float64]) -> dict[str, float]:
    from scipy.stats import rankdata  # late: it costs half a second

    error = predicted - target
    return {
        "val_pearson": _correlation(predicted, target),
        "val_spearman": _correlation(rankdata(predicted), rankdata(target)),
        "val_rmse": float(np.sqrt(np.mean(error**2))),
        "val_mae": float(np.mean(np.abs(error))),
    }


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return Pearson's r, NaN where it is undefined."""
    if not np.isfinite(a).all() or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
