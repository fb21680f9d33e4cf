"""Training that goes on, on any machine, where it was stopped: checkpoints in MLflow."""
