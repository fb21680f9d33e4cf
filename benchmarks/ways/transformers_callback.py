"""Transformers' Trainer with MLflowCallback, which uploads the checkpoint of each epoch."""

import os
import tempfile

import marks
import torch
from table import EVAL_ROWS, BatchedRows, Table, train_loader


class Net(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, y):
        outputs = {} if self.training else {"logits": self.model(x)}
        return {"loss": self.model.loss(x, y), **outputs}


def as_dict(batch):
    return dict(zip("xy", batch, strict=True))


def main(folder):
    os.environ["HF_MLFLOW_LOG_ARTIFACTS"] = "1"
    from transformers import Trainer, TrainingArguments

    table = Table(folder)
    workload = table.workload
    model, optimizer = table.build()
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: table.factor(step // table.num_steps)
    )

    class Ordered(Trainer):
        def get_train_dataloader(self):
            loader = train_loader(table)
            loader.collate_fn = as_dict
            return loader

    with tempfile.TemporaryDirectory() as saved:
        arguments = TrainingArguments(
            saved,
            num_train_epochs=workload.epochs,
            max_grad_norm=workload.max_grad_norm,
            per_device_eval_batch_size=EVAL_ROWS,
            eval_strategy="epoch",
            save_strategy="epoch",
            logging_strategy="epoch",
            label_names=["y"],
            report_to="mlflow",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Ordered(
            Net(model),
            arguments,
            data_collator=as_dict,
            train_dataset=BatchedRows(table.x, table.y),
            eval_dataset=BatchedRows(table.val_x, table.val_y),
            compute_metrics=lambda found: table.metrics(torch.from_numpy(found.predictions)),
            optimizers=(optimizer, schedule),
        )
        trainer.train()
    logged = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    marks.tell(train_loss=logged["loss"], val_loss=logged["eval_val_loss"])
