"""Lightning with MLFlowLogger, which uploads the checkpoint of each epoch."""

import os


def main(folder):
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import MLFlowLogger
    from ways.lightning_net import fit

    logger = MLFlowLogger(
        os.environ["MLFLOW_EXPERIMENT_NAME"],
        tracking_uri=os.environ["MLFLOW_TRACKING_URI"],
        log_model="all",
    )
    fit(folder, logger=logger, callbacks=[ModelCheckpoint(save_top_k=-1, every_n_epochs=1)])
