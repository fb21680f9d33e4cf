"""Lightning with MLflow's own checkpoint callback, and MLflow's autologging of metrics."""


def main(folder):
    import mlflow
    from mlflow.pytorch import MlflowModelCheckpointCallback
    from ways.lightning_net import fit

    mlflow.pytorch.autolog(log_models=False, checkpoint=False)
    saver = MlflowModelCheckpointCallback(monitor="val_loss", mode="min", save_best_only=False)
    with mlflow.start_run():
        fit(folder, logger=False, enable_checkpointing=False, callbacks=[saver])
