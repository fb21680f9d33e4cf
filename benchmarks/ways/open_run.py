"""The bare loop through `onward.open_run`: what a loop of one's own becomes."""

import dataclasses

import marks
from table import Table


def main(folder):
    import onward

    table = Table(folder)
    model, optimizer = table.build()
    state = {"model": model, "optimizer": optimizer}
    config = dataclasses.asdict(table.workload)
    options = {"minimize": "val_loss", "checkpoint_freq": 1}
    with onward.open_run(state, config=config, **options) as run:
        for epoch in run.epochs(range(1, table.workload.epochs + 1)):
            table.set_lr(optimizer, epoch)
            total = 0.0
            for rows in run.batches(table.batches(epoch)):
                total += table.step(model, optimizer, rows) * len(rows)
            metrics = {"train_loss": total / len(table.y), **table.evaluate(model)}
            run.log(**metrics)
    marks.tell(**metrics)
