"""What people write: MLflow's fluent API, torch.save and log_artifact after each epoch."""

import dataclasses
import tempfile
from pathlib import Path

from ways import bare
from workload import Workload


def main(folder):
    import mlflow
    import torch

    with tempfile.TemporaryDirectory() as saved, mlflow.start_run():
        mlflow.log_params(dataclasses.asdict(Workload.load(folder)))

        def log_and_save(epoch, model, optimizer, metrics):
            mlflow.log_metrics(metrics, step=epoch)
            path = Path(saved) / f"checkpoint_{epoch}.pth"
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({"epoch": epoch, **state}, path)
            mlflow.log_artifact(str(path), f"checkpoints/epoch_{epoch}")

        bare.main(folder, log_and_save)
