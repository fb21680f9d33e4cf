"""Regression on a table, as a task: see `train.task`."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from onward.checkpoint.content import Content
from onward.metrics import History
from onward.monitor import UNDECLARED, Best, Monitor
from onward.run.subject import DatasetInfo, RunFiles, Stored
from onward.system import environment, hardware
from onward.system.files import size_in_words
from onward.tracking.models import ServedModel
from onward.words.language import _
from onward.words.redact import redact
from train.tabular.data.dataset import Dataset, Rows
from train.tabular.data.dataset import is_source_of as is_source_of
from train.tabular.data.prepare import listed
from train.tabular.data.provide import cache_folder, prepare_cached, recover, recover_preprocessing
from train.tabular.data.sentences import told
from train.tabular.data.stored import upload
from train.tabular.model import TabularMLP, forward, input_width, inputs_of, predict
from train.tabular.options import Config, TabularOptions
from train.tabular.results import TableModel, predictions

NAME = "tabular"
Options = TabularOptions

_NUM_LAYERS: Final = 3
_MAX_DROPOUT: Final = 0.5
_ENCODED_ROWS: Final = 1 << 16
_A_WINDOW: Final = 1_000_000  # of rows: a hundred megabytes or two


def open_task(options: Config, stored: Stored | None) -> TabularTask:
    """Return the task: its data prepared now, cached here, or from the run's artifacts.

    Raises:
        DataError: The table is missing, cannot be read, or cannot be trained on.
    """
    home = environment.home()
    if stored is None:
        dataset = prepare_cached(options, home, None)
    else:
        made_with = stored.options
        assert isinstance(made_with, Config)
        dataset = recover(
            made_with if stored.is_other_data else options,
            home, stored.data_fingerprint, stored.files.download, stored.run_id,
        )  # fmt: skip
        if stored.is_other_data:  # other rows, but the model's inputs stay what they were
            dataset = prepare_cached(options, home, dataset.preprocessing)
    return TabularTask(dataset, options, environment.choose_device(options.device))


def open_model(options: Config, stored: Stored) -> TableModel:
    """Return what makes the model of a checkpoint, without the data that it was trained on.

    Raises:
        DataError: How rows are prepared is neither cached here nor among the run's artifacts.
    """
    return TableModel(
        *recover_preprocessing(environment.home(), stored.data_fingerprint, stored.files.download)
    )


class TabularTask:
    """Predict a number from the other columns of a table; see `train.task.Task`.

    Args:
        dataset: The prepared table.
        options: Those of the run; the ones of the table and the model, and `precision`, count.
        device: Where the data is held and the model computes.

    Attributes:
        options: The same, with those chosen that were left to the table; see `resolve`.
    """

    monitor: Monitor = UNDECLARED
    plateau = Monitor("val_loss", "min")  # as it was before there was a choice

    def __init__(self, dataset: Dataset, options: Config, device: torch.device | str) -> None:
        self.dataset, self.options = dataset, resolve(options, dataset)
        self.device = torch.device(device)
        self._train = self._tensors(dataset.train)
        self._val = self._tensors(dataset.val)
        # The checkpoint whose pictures were drawn last, and those.
        self._drawn: tuple[weakref.ref[Content] | None, Mapping[str, bytes]] = None, {}

    @property
    def num_samples(self) -> int:
        """Number of training rows."""
        return len(self.dataset.train)

    def build_model(self) -> TabularMLP:
        """Return a new model on the device, drawn from torch's global random state."""
        preprocessing = self.dataset.preprocessing
        # The prior that all inputs together explain as much of the target as is noise, each of W
        # standardised inputs alike: alpha = W in a sum over the rows, W / N in a mean.
        ridge = input_width(*inputs_of(preprocessing)) / self.num_samples
        model = TabularMLP.of(preprocessing, self.options, ridge)
        return model.to(self.device)

    def in_words(self) -> Iterable[str]:
        """Return what was made of the table, and which model learns from it."""
        for sentence in self.dataset.report:
            yield told(sentence)
        num_bytes = sum(rows.num_bytes for rows in (self.dataset.train, self.dataset.val))
        free = hardware.free_memory_bytes()
        if num_bytes > free and not self.options.shuffle_window:
            yield _(
                "The prepared data has {needed}, and there are {free} of memory: nearly each row "
                "of a batch is read from the disk. Pass shuffle_window, such as {example}"
            ).format(needed=size_in_words(num_bytes), free=size_in_words(free), example=_A_WINDOW)
        yield _("It learns from {columns}").format(
            columns=listed(self.dataset.preprocessing.column_names)
        )
        config = self.options
        with torch.device("meta"):  # neither memory nor random numbers
            model = TabularMLP.of(self.dataset.preprocessing, config)
        num_weights = sum(parameter.numel() for parameter in model.parameters())
        yield _("Model: {layers} hidden layers of {size}, {weights:,} weights, {precision}").format(
            layers=config.num_layers,
            size=config.hidden_size,
            weights=num_weights,
            precision=config.precision,
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the arrays."""
        return self.dataset.fingerprint

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint says of the data."""
        return {"name": self.dataset.name, **self._num_rows()}

    def _num_rows(self) -> dict[str, int]:
        return {"train_rows": len(self.dataset.train), "val_rows": len(self.dataset.val)}

    def dataset_info(self) -> DatasetInfo:
        """Return what MLflow's pages show of the table."""
        preprocessing = self.dataset.preprocessing
        columns = {f.column: "double" for f in preprocessing.numeric}
        columns |= {f.column: "string" for f in preprocessing.categorical}
        columns[preprocessing.target] = "double"
        source = redact(self.dataset.source)
        return DatasetInfo(self.dataset.name, source, columns, self._num_rows())

    def keep(self, files: RunFiles) -> None:
        """Store the prepared data with the run, as the option `upload_data` says."""
        folder = self.dataset.folder or cache_folder(environment.home(), self.fingerprint)
        upload(folder, self.options.upload_data, files)

    def extras(self, history: History, best: Best | None) -> dict[str, Any]:
        """Return what the script version's files held; `aucs` is a historical name.

        Of each list the newest: a checkpoint does not grow with all the epochs before it.
        """
        is_own = best is not None and self.options.monitor in (None, str(self.monitor))
        return {
            "train_losses": history.newest("train_loss"),
            "val_losses": history.newest("val_loss"),
            "aucs": history.newest(self.monitor.name),
            "best_corr": best.value if best is not None and is_own else None,
        }

    def figures(self, content: Content, is_best: bool) -> Mapping[str, bytes]:
        """Return how a checkpoint's predictions of the validation rows compare with the truth.

        Where the last epoch is the best they are drawn once.
        """
        of, drawn = self._drawn
        if of is None or of() is not content:
            drawn = predictions(content, self.dataset)
            self._drawn = weakref.ref(content), drawn  # a checkpoint may be large: not held here
        which = "best" if is_best else "last"
        return {f"{which}_{name}": picture for name, picture in drawn.items()}

    def model(self, content: Content, folder: Path) -> ServedModel:
        """Write the model that takes raw rows."""
        return TableModel(self.dataset.preprocessing, self.dataset.sample).model(content, folder)

    def loss(self, model: nn.Module, indices: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error of training rows, on the scale trained on.

        The ridge penalty is in its gradient alone, so that the loss of training can be compared
        with that of validation.
        """
        rows = indices.to(self.device)
        numeric, categorical, target = (t.index_select(0, rows) for t in self._train)
        loss = nn.functional.mse_loss(
            forward(model, numeric, categorical, self.options.precision), target
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
            predicted = predict(model, numeric, categorical, self.options.precision)
        finally:
            model.train(was_training)
        val_loss = (predicted - target).square().mean().item()
        decoded = self.dataset.preprocessing.scale.decode(predicted.cpu().numpy())
        return {"val_loss": val_loss, **_metrics(decoded, self.dataset.val.target)}

    def _tensors(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scale, target = self.dataset.preprocessing.scale, np.empty(len(rows), np.float32)
        for start in range(0, len(rows), _ENCODED_ROWS):  # no second copy of all of them
            part = slice(start, start + _ENCODED_ROWS)
            target[part] = scale.encode(rows.target[part])
        arrays = (rows.features.numeric, rows.features.categorical, target)
        numeric, categorical, encoded = (torch.from_numpy(a).to(self.device) for a in arrays)
        return numeric, categorical, encoded


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
    is_wide = input_width(*inputs_of(dataset.preprocessing)) >= num_samples
    num_layers = config.num_layers
    if num_layers is None:
        num_layers = 0 if is_wide else _NUM_LAYERS
    dropout = config.dropout
    if dropout is None:
        share = config.hidden_size / (config.hidden_size + num_samples)
        dropout = round(min(share, _MAX_DROPOUT), 2)
    target = dataset.preprocessing.target
    return config.replace(target=target, num_layers=num_layers, dropout=dropout)


def _metrics(predicted: NDArray[np.float64], target: NDArray[np.float64]) -> dict[str, float]:
    with np.errstate(over="ignore", invalid="ignore"):  # a diverged model gives inf or NaN
        error = predicted - target
        return {
            "val_pearson": _correlation(predicted, target),
            "val_spearman": _correlation(_ranks(predicted), _ranks(target)),
            "val_rmse": float(np.sqrt(np.mean(error**2))),
            "val_mae": float(np.mean(np.abs(error))),
        }


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank of each value from 1, equal ones sharing the mean of theirs; NaN stay NaN.

    As `scipy.stats.rankdata`, whose import takes half a second.
    """
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.where(np.isnan(values), math.nan, (last - (counts - 1) / 2)[which])


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return Pearson's r, NaN where it is undefined."""
    if not np.isfinite(a).all() or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    a, b = a / np.abs(a).max(), b / np.abs(b).max()  # squares neither overflow nor vanish
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
