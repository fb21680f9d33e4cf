"""The model for a table: a residual MLP with embeddings for categories, beside a ridge.

Shapes: N rows, B rows of a batch, D numeric features, C categorical features, H hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import nn

from train.tabular.data.prepare import Preprocessing
from train.tabular.options import Config

_EVAL_ROWS: Final = 8192  # rows a forward pass at a time in `predict`


class TabularMLP(nn.Module):
    """Embed the categories, then add up a ridge regression and a residual MLP over all inputs.

    Both start at zero: the model begins with the mean of the target and leaves it as far as the
    data asks, which on a small table is worth more than any other regularisation.

    Args:
        num_numeric: Number of numeric features, D.
        num_codes: Number of codes of each categorical feature, C numbers.
        hidden_size: Width of the hidden layers, H.
        num_layers: Number of hidden layers; 0 leaves the ridge regression alone.
        dropout: Part of the hidden units dropped in training, in [0, 1).
        ridge: Weight of the ridge penalty against the mean loss of a batch.

    Shape:
        numeric: float32 [B, D]
        categorical: integers [B, C]
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
        ridge: float,
    ) -> None:
        super().__init__()
        width = input_width(num_numeric, num_codes)
        self.ridge = ridge
        self.embeddings = nn.ModuleList(_embedding(n) for n in num_codes)
        self.linear = _zero(nn.Linear(width, 1))
        self.hidden = _hidden(width, hidden_size, num_layers, dropout) if num_layers else None
        self.head = _zero(nn.Linear(hidden_size, 1)) if num_layers else None

    @classmethod
    def of(cls, preprocessing: Preprocessing, config: Config, ridge: float = 0.0) -> TabularMLP:
        """Return a new model for what `preprocessing` makes of rows, shaped by the options."""
        num_numeric, num_codes = inputs_of(preprocessing)
        assert config.num_layers is not None  # chosen by `resolve`
        assert config.dropout is not None
        return cls(
            num_numeric,
            num_codes,
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            dropout=config.dropout,
            ridge=ridge,
        )

    def forward(self, numeric: torch.Tensor, categorical: torch.Tensor) -> torch.Tensor:
        """Predict on the scale the target is trained on."""
        inputs = numeric
        if len(self.embeddings):
            codes = categorical.long()  # they may be kept in smaller numbers
            embedded = [embed(codes[:, i]) for i, embed in enumerate(self.embeddings)]
            inputs = torch.cat([numeric, *embedded], dim=1)
        hidden = self.hidden(inputs) if self.hidden is not None else None
        # The sums over all inputs and all hidden units stay in float32 under bf16: with the 8 bits
        # of bf16 a prediction would be off by up to 0.4 %.
        with torch.autocast(inputs.device.type, enabled=False):
            outputs: torch.Tensor = self.linear(inputs.float())
            if self.head is not None and hidden is not None:
                outputs = outputs + self.head(hidden.float())
        return outputs.squeeze(1)

    def penalty(self) -> torch.Tensor:
        """Return 0, with the gradient of the ridge penalty."""
        penalty = self.ridge * self.linear.weight.square().sum()
        return penalty - penalty.detach()


def predict(
    model: nn.Module, numeric: torch.Tensor, categorical: torch.Tensor, precision: str
) -> torch.Tensor:
    """Return predictions on the scale trained on, some thousand rows at a time.

    Args:
        model: In the mode (train or eval) the caller set.
        numeric: float32 [N, D]
        categorical: integers [N, C]
        precision: "fp32" or "bf16".

    Shape:
        float64 [N]
    """
    parts = zip(numeric.split(_EVAL_ROWS), categorical.split(_EVAL_ROWS), strict=True)
    return torch.cat([forward(model, n, c, precision) for n, c in parts]).double()


def forward(
    model: nn.Module, numeric: torch.Tensor, categorical: torch.Tensor, precision: str
) -> torch.Tensor:
    """Return what the model says of all the rows at once; see `predict`."""
    is_bf16 = precision == "bf16"
    with torch.autocast(numeric.device.type, dtype=torch.bfloat16, enabled=is_bf16):
        predicted: torch.Tensor = model(numeric, categorical)
    return predicted


def input_width(num_numeric: int, num_codes: Sequence[int]) -> int:
    """Return the number of inputs of the model: numeric features and embeddings' widths."""
    return num_numeric + sum(map(_embedding_width, num_codes))


def inputs_of(preprocessing: Preprocessing) -> tuple[int, list[int]]:
    """Return D, and the number of codes of each of the C categorical features."""
    return len(preprocessing.numeric), [f.num_codes for f in preprocessing.categorical]


class _Residual(nn.Module):
    """x + dropout(gelu(linear(norm(x))))."""

    def __init__(self, size: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(size), nn.Linear(size, size), nn.GELU(), nn.Dropout(dropout)
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = inputs + self.layers(inputs)
        return outputs


def _hidden(width: int, size: int, num_layers: int, dropout: float) -> nn.Sequential:
    first = nn.Sequential(nn.Linear(width, size), nn.GELU(), nn.Dropout(dropout))
    others = (_Residual(size, dropout) for _ in range(num_layers - 1))
    return nn.Sequential(first, *others, nn.LayerNorm(size))


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _embedding(num_codes: int) -> nn.Embedding:
    layer = nn.Embedding(num_codes, _embedding_width(num_codes))
    layer.weight.data[0].zero_()  # code 0, an unknown value, says nothing until it is trained
    return layer


def _embedding_width(num_codes: int) -> int:
    """Return a width that grows slowly: 4 for 6 codes, 12 for 1,001."""
    return min(num_codes, math.ceil(2 * num_codes**0.25))
