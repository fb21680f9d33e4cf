"""The same model as a LightningModule, and a Trainer for it."""

import lightning
import marks
import torch
from table import Table, train_loader, val_loader


class Net(lightning.LightningModule):
    def __init__(self, table: Table) -> None:
        super().__init__()
        self.table = table
        self.model, self.optimizer = table.build()
        self.predicted: list[torch.Tensor] = []

    def training_step(self, batch):
        loss = self.model.loss(*batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[1]))
        return loss

    def validation_step(self, batch):
        self.predicted.append(self.model(batch[0]))

    def on_validation_epoch_end(self):
        metrics = self.table.metrics(torch.cat(self.predicted))
        self.predicted.clear()
        self.log_dict(metrics)

    def configure_optimizers(self):
        schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.table.factor)
        return [self.optimizer], [schedule]


def fit(folder, **trainer_options):
    """Train it."""
    table = Table(folder)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=table.workload.epochs,
        gradient_clip_val=table.workload.max_grad_norm,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer_options,
    )
    trainer.fit(Net(table), train_loader(table), val_loader(table))
    marks.tell(**{name: value.item() for name, value in trainer.callback_metrics.items()})
