"""What saving and tracking cost a loop on a GPU: stall a checkpoint, overhead of the bare loop.

    python benchmarks/gpu.py                                  1.2 GB of state
    python benchmarks/gpu.py --device cpu --width 256 --steps 20      tries the script itself

Bare and through `onward.open_run`, an epoch of each in turns, each waited for at its end. The store
is a database in a folder of its own; each epoch is kept.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time

from processes import ROOT

sys.path.insert(0, str(ROOT))

import torch

import onward

LAYERS = 6
STALL, BYTES = "system/checkpoint_stall_seconds", "system/checkpoint_bytes"


class Training:
    """A model whose state is large for what a step of it computes, and its steps."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.args = args
        layers = [torch.nn.Linear(args.width, args.width, bias=False) for _ in range(LAYERS)]
        self.model = torch.nn.Sequential(*layers).to(args.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.batch = torch.randn(args.batch_size, args.width, device=args.device)

    def step(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.batch.device.type, torch.bfloat16, enabled=self.args.bf16):
            loss = self.model(self.batch).square().mean()
        loss.backward()
        self.optimizer.step()

    def epoch(self, numbers) -> float:
        """Return the seconds of an epoch, from a device at rest to a device at rest."""
        wait(self.args.device)
        began = time.monotonic()
        for _ in numbers:
            self.step()
        wait(self.args.device)
        return time.monotonic() - began


def wait(device: str) -> None:
    """Wait until the device has done all."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure(args: argparse.Namespace) -> tuple[list[float], str]:
    """Return for each epoch but the first two the tracked seconds in the bare ones, and the run."""
    bare, own, ratios = Training(args), Training(args), []
    bare.epoch(range(args.steps))
    state = {"model": own.model, "optimizer": own.optimizer}
    options = {"checkpoint_freq": 1, "background_copy": True, "log_model": False}
    with onward.open_run(state, minimize="loss", **options) as run:
        for _epoch in run.epochs(range(args.epochs)):
            tracked = own.epoch(run.batches(range(args.steps)))
            ratios.append(tracked / bare.epoch(range(args.steps)))
            run.log(loss=1.0)
    return ratios[2:], run.run_id


def main() -> None:
    """Print what was found, with the device's name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--batch_size", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=200, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "TRAIN_HOME": f"{folder}/home",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        }
        os.chdir(folder)
        ratios, run_id = measure(args)
        from mlflow import MlflowClient

        client = MlflowClient()
        stalls = [point.value for point in client.get_metric_history(run_id, STALL)]
        size = client.get_metric_history(run_id, BYTES)[-1].value
        os.chdir(here)
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"{name}, torch {torch.__version__}, {'bf16' if args.bf16 else 'fp32'}")
    print(f"a checkpoint of {size / 1e6:,.0f} MB stalls {1e3 * statistics.median(stalls):.1f} ms")
    print(f"tracked and saved: {middle:.3f} of the bare loop's time ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
