"""The loop that all others are compared with: in memory, nothing is logged, nothing saved."""

import marks
from table import Table


def main(folder, after_epoch=lambda epoch, model, optimizer, metrics: None):
    """Train; after each epoch do what is given."""
    table = Table(folder)
    model, optimizer = table.build()
    for epoch in range(1, table.workload.epochs + 1):
        table.set_lr(optimizer, epoch)
        total = 0.0
        for rows in table.batches(epoch):
            total += table.step(model, optimizer, rows) * len(rows)
        metrics = {"train_loss": total / len(table.y), **table.evaluate(model)}
        after_epoch(epoch, model, optimizer, metrics)
    marks.tell(**metrics)
