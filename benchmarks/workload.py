"""The workload 'table', which each way trains alike: how big it is, and where its files lie.

Nothing here imports torch: how long that takes is a part of what is measured.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

NAME, RAW, PREPARED = "workload.json", "table.npz", "prepared.npz"


@dataclasses.dataclass(frozen=True)
class Workload:
    """Sizes and settings, the same for each way."""

    rows: int = 50_000
    columns: int = 64
    epochs: int = 10
    batch_size: int = 256
    hidden_size: int = 256
    num_layers: int = 2
    lr: float = 2e-3
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    seed: int = 0

    @classmethod
    def load(cls, folder: Path) -> Workload:
        """Read what `write` wrote."""
        return cls(**json.loads((folder / NAME).read_text()))

    def write(self, folder: Path, home: Path) -> None:
        """Write the table, raw and prepared; in `home` too, where `train` looks for it."""
        import numpy as np

        random = np.random.default_rng(0)
        x = random.normal(size=(self.rows, self.columns)).astype(np.float32)
        first = x[:, :8]
        y = first.sum(1) + np.sin(2 * first).sum(1) + first[:, 0] * first[:, 1]
        y += 0.3 * random.normal(size=self.rows)
        np.savez(folder / RAW, x=x, y=y.astype(np.float64))
        (folder / NAME).write_text(json.dumps(dataclasses.asdict(self)))
        _prepare(folder, home)

    def options(self, folder: Path) -> list[str]:
        """Return the options of `train run` for it."""
        values = {
            "data": folder / RAW, "target": "y", "target_scale": "linear", "dropout": 0,
            "threads": 1, "schedule": "cosine", "checkpoint_freq": 1,
        }  # fmt: skip
        for name in ("epochs", "batch_size", "hidden_size", "num_layers", "lr", "weight_decay",
                     "max_grad_norm", "seed"):  # fmt: skip
            values[name] = getattr(self, name)
        return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def _prepare(folder: Path, home: Path) -> None:
    """Prepare the table once for all, so that each way begins with the same arrays."""
    import numpy as np

    from train.tabular.data.provide import prepare_cached
    from train.tabular.options import Config

    config = Config(data=os.fspath(folder / RAW), target="y", target_scale="linear")
    dataset = prepare_cached(config, home, None)
    scale = dataset.preprocessing.scale
    arrays = {"scale": np.array([scale.mean, scale.std])}
    for part, rows in (("train", dataset.train), ("val", dataset.val)):
        arrays[f"{part}_x"] = rows.features.numeric
        arrays[f"{part}_y"] = scale.encode(rows.target).astype(np.float32)
        arrays[f"{part}_target"] = rows.target
    np.savez(folder / PREPARED, **arrays)
