"""An image classifier on scikit-learn's digits: a task of your own, in one file.

    train run --task examples/digits.py --epochs 10 --width 128

Its options are options of the run: in `train run --task examples/digits.py --help`, in MLflow's
params, and looked at on a resume. The model that a finished run leaves takes images of 8 x 8:

    mlflow models serve -m runs:/<run ID>/model --env-manager local
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from onward import Monitor, OnResume, ServedModel, option

NAME = "digits"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is the task's own; batch_size, lr and the others are there anyway."""

    width: int = option(
        64, "Channels of the convolutions.", "Model", minimum=1, on_resume=OnResume.NEVER
    )
    shift: int = option(
        1,
        "Pixels by which an image may be moved in training.",
        "Model",
        minimum=0,
        maximum=3,
        on_resume=OnResume.FORK,
    )


def open_task(options, stored):
    """Return the task; `stored` is what a run that is gone on from has kept, None for a new one."""
    return Digits(options)


def build(width: int) -> nn.Module:
    """Return a small convolutional network: [B, 1, 8, 8] to [B, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(width, width, 3, padding=1, stride=2),
        nn.GELU(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(16 * width, 10),
    )


class Digits:
    """1,797 images of handwritten digits, every fifth of which validates."""

    monitor = Monitor("val_accuracy", "max")

    def __init__(self, options) -> None:
        self._width, self._shift = options.width, options.shift
        images, labels = load_digits(return_X_y=True)
        validates = np.arange(len(labels)) % 5 == 0
        x = torch.from_numpy((images / 16).astype(np.float32)).reshape(-1, 1, 8, 8)
        y = torch.from_numpy(labels.astype(np.int64))
        self._x, self._y = x[~validates], y[~validates]
        self._val = x[validates], y[validates]
        self.fingerprint = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()

    @property
    def num_samples(self) -> int:
        return len(self._y)

    def build_model(self) -> nn.Module:
        return build(self._width)

    def loss(self, model: nn.Module, indices: torch.Tensor) -> torch.Tensor:
        images = self._x[indices]
        if model.training and self._shift:
            by = torch.randint(-self._shift, self._shift + 1, (2,)).tolist()
            images = torch.roll(images, by, dims=(2, 3))
        return nn.functional.cross_entropy(model(images), self._y[indices])

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        images, labels = self._val
        was_training = model.training
        model.eval()
        scores = model(images)
        model.train(was_training)
        return {
            "val_loss": nn.functional.cross_entropy(scores, labels).item(),
            "val_accuracy": (scores.argmax(1) == labels).double().mean().item(),
        }

    def in_words(self) -> list[str]:
        return [f"{self.num_samples:,} images of digits to train on, {len(self._val[1])} others"]

    def model(self, content, folder: Path):
        """Write what `load_model` reads: the model that MLflow serves."""
        torch.save(dict(content.parts["model"]), folder / "weights.pth")
        (folder / "digits.json").write_text(json.dumps({"width": self._width}))
        example = self._val[0][:2].reshape(-1, 64).numpy()
        return ServedModel(
            "takes images of 8 x 8 with values in [0, 1], tells the digit.",
            example=example,
            model_type="classifier",
            packages=("scikit-learn",),
        )


def load_model(folder: Path):
    """Return the served model: it is asked by `predict`."""
    model = build(json.loads((folder / "digits.json").read_text())["width"])
    model.load_state_dict(torch.load(folder / "weights.pth", weights_only=True))
    return Served(model.eval())


class Served:
    """Tells the digit of each image, [N, 64] or [N, 8, 8]."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @torch.no_grad()
    def predict(self, images, params=None) -> np.ndarray:
        pixels = torch.from_numpy(np.asarray(images, np.float32)).reshape(-1, 1, 8, 8)
        return self._model(pixels).argmax(1).numpy()
