"""A run that goes on, on any machine: checkpoints and metrics in MLflow, resumed by run ID."""
