"""Regression on a table: a residual MLP with embeddings for categories, beside a ridge.

Shapes: N rows, B rows of a batch, D numeric features, C categorical features, H hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from onward.options.run_options import Config
from onward.words.language import _
from train.tabular.data.dataset import Dataset, Rows
from train.tabular.data.prepare import Preprocessing

_EVAL_ROWS: Final = 8192  # rows a forward pass at a time in `predict`
_NUM_LAYERS: Final = 3
_MAX_DROPOUT: Final = 0.5
_WORK_PER_THREAD: Final = 2**27  # weights times rows of a step: some 10 ms


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
        num_numeric, num_codes = _inputs_of(preprocessing)
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
        embedded = [embed(categorical[:, i]) for i, embed in enumerate(self.embeddings)]
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


class TabularTask:
    """Predict a number from the other columns of a table; see `train.tasks.Task`.

    Args:
        dataset: The prepared table.
        config: The options; those of the group Model, and `precision`, count.
        device: Where the data is held and the model computes.

    Attributes:
        config: The options, with those chosen that were left to the table; see `resolve`.
    """

    name = "tabular"

    def __init__(self, dataset: Dataset, config: Config, device: torch.device | str) -> None:
        self.dataset, self.config = dataset, resolve(config, dataset)
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
        # The prior that all inputs together explain as much of the target as is noise, each of W
        # standardised inputs alike: alpha = W in a sum over the rows, W / N in a mean.
        ridge = input_width(*_inputs_of(preprocessing)) / self.num_samples
        model = TabularMLP.of(preprocessing, self.config, ridge)
        return model.to(self.device)

    def in_words(self) -> str:
        """Return what is trained, and where, in a line."""
        config = self.config
        with torch.device("meta"):  # neither memory nor random numbers
            model = TabularMLP.of(self.dataset.preprocessing, config)
        num_weights = sum(parameter.numel() for parameter in model.parameters())
        return _(
            "Model: {layers} hidden layers of {size}, {weights:,} weights, {precision}. "
            "Device: {device}, {threads} CPU threads"
        ).format(
            layers=config.num_layers,
            size=config.hidden_size,
            weights=num_weights,
            precision=config.precision,
            device=self.device,
            threads=config.threads,
        )

    def loss(self, model: nn.Module, indices: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error of training rows, on the scale trained on.

        The ridge penalty is in its gradient alone, so that the loss of training can be compared
        with that of validation.
        """
        rows = indices.to(self.device)
        numeric, categorical, target = (t.index_select(0, rows) for t in self._train)
        loss = nn.functional.mse_loss(
            _forward(model, numeric, categorical, self.config.precision), target
        )
        return loss + model.penalty() if isinstance(model, TabularMLP) else loss

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the metrics over the validation rows.

        Returns:
            `val_loss`: mean squared error on the scale trained on; and on the target's own scale
            `val_pearson`, `val_spearman` (both NaN where they are undefined: a constant
            prediction or target), `val_rmse`, `val_mae`.
        """
        numeric, categorical, target = self._val
        was_training = model.training
        model.eval()
        try:
            predicted = predict(model, numeric, categorical, self.config.precision)
        finally:
            model.train(was_training)
        val_loss = (predicted - target).square().mean().item()
        decoded = self.dataset.preprocessing.scale.decode(predicted.cpu().numpy())
        return {"val_loss": val_loss, **_metrics(decoded, self.dataset.val.target)}

    def _tensors(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        target = self.dataset.preprocessing.scale.encode(rows.target).astype(np.float32)
        arrays = (rows.features.numeric, rows.features.categorical, target)
        numeric, categorical, encoded = (torch.from_numpy(a).to(self.device) for a in arrays)
        return numeric, categorical, encoded


def predict(
    model: nn.Module, numeric: torch.Tensor, categorical: torch.Tensor, precision: str
) -> torch.Tensor:
    """Return predictions on the scale trained on, some thousand rows at a time.

    Args:
        model: In the mode (train or eval) the caller set.
        numeric: float32 [N, D]
        categorical: int64 [N, C]
        precision: "fp32" or "bf16".

    Shape:
        float64 [N]
    """
    parts = zip(numeric.split(_EVAL_ROWS), categorical.split(_EVAL_ROWS), strict=True)
    return torch.cat([_forward(model, n, c, precision) for n, c in parts]).double()


def _forward(
    model: nn.Module, numeric: torch.Tensor, categorical: torch.Tensor, precision: str
) -> torch.Tensor:
    is_bf16 = precision == "bf16"
    with torch.autocast(numeric.device.type, dtype=torch.bfloat16, enabled=is_bf16):
        predicted: torch.Tensor = model(numeric, categorical)
    return predicted


def resolve(config: Config, dataset: Dataset) -> Config:
    """Choose the options that were left to the table's shape, N rows to train on.

    `num_layers`: 3; but 0 where there are at least as many inputs as rows: there a linear model
    already fits every row, and only the ridge's penalty makes it more than a memory.
    `dropout`: H / (H + N), at most 0.5. Dropping a part p of the hidden units acts on the output
    weights like a ridge with alpha = N p / (1 - p), which is H for this p: the same prior as for
    the inputs. It is next to nothing on a long table.

    Source:
        Dropout as a ridge: Srivastava et al., "Dropout", JMLR 2014, section 9.1.
    """
    num_samples = len(dataset.train)
    is_wide = input_width(*_inputs_of(dataset.preprocessing)) >= num_samples
    num_layers = config.num_layers
    if num_layers is None:
        num_layers = 0 if is_wide else _NUM_LAYERS
    dropout = config.dropout
    if dropout is None:
        share = config.hidden_size / (config.hidden_size + num_samples)
        dropout = round(min(share, _MAX_DROPOUT), 2)
    return config.replace(num_layers=num_layers, dropout=dropout)


def choose_threads(model: nn.Module, batch_size: int, available: int) -> int:
    """Return the number of CPU threads worth using: 1 for small models, all for large ones.

    On an idle machine a second thread is up to 1.9 times as fast, on a busy one a fifth as fast
    or worse: the threads wait for each other several hundred times a step. So it has to pay.

    Args:
        model: The model.
        batch_size: Rows per step.
        available: Number of cores this process may use, at least 1.
    """
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    return max(1, min(available, num_weights * batch_size // _WORK_PER_THREAD))


def input_width(num_numeric: int, num_codes: Sequence[int]) -> int:
    """Return the number of inputs of the model: numeric features and embeddings' widths."""
    return num_numeric + sum(map(_embedding_width, num_codes))


def _inputs_of(preprocessing: Preprocessing) -> tuple[int, list[int]]:
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


def _metrics(predicted: NDArray[np.float64], target: NDArray[np.float64]) -> dict[str, float]:
    from scipy.stats import rankdata  # late: it costs half a second

    with np.errstate(over="ignore", invalid="ignore"):  # a diverged model gives inf or NaN
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
    a, b = a / np.abs(a).max(), b / np.abs(b).max()  # squares neither overflow nor vanish
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
