"""A small training by Lightning for the tests: it draws random numbers wherever one can."""

import random
import signal

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanSquaredError

from onward.errors import Interrupted
from onward.lightning import Resumable

NUM, BATCH = 20, 4
PER_EPOCH = NUM // BATCH
EPOCHS = 3


class Points(Dataset):
    """Points of which each draws noise, by all three generators, when it is read."""

    def __init__(self, num=NUM, is_noisy=True):
        draw = torch.Generator().manual_seed(3)
        self.x = torch.randn(num, 4, generator=draw)
        self.y = self.x.sum(1, keepdim=True) + torch.randn(num, 1, generator=draw)
        self.is_noisy = is_noisy

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        noise = random.random() + np.random.rand() + torch.rand(()).item() if self.is_noisy else 0
        return self.x[index] + 0.01 * noise, self.y[index]


class Net(L.LightningModule):
    """A net with dropout and batch norm; `schedule` is the kind of its schedule."""

    def __init__(self, schedule="step"):
        super().__init__()
        self.schedule = schedule
        self.net = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 1)
        )
        self.error = MeanSquaredError()
        self.seen = []  # the first value of each batch

    def loss(self, batch):
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def training_step(self, batch, index):
        self.seen.append(float(batch[0][0, 0]))
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("largest", loss, on_step=False, on_epoch=True, reduce_fx="max")
        self.error(self.net(batch[0]), batch[1])
        self.log("train_error", self.error, on_step=False, on_epoch=True)
        if index == 0:
            self.log("first_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        rates = torch.optim.lr_scheduler
        if self.schedule == "onecycle":
            steps = self.trainer.estimated_stepping_batches
            made = rates.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
            schedule = {"scheduler": made, "interval": "step"}
        elif self.schedule == "loose":
            made = rates.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5, factor=0.3)
            schedule = {"scheduler": made, "monitor": "val_loss", "strict": False}
        elif self.schedule == "plateau":
            made = rates.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5, factor=0.3)
            schedule = {"scheduler": made, "monitor": "val_loss"}
        else:
            schedule = rates.StepLR(optimizer, 1, gamma=0.5)
        return [optimizer], [schedule]


class TwoOptimizers(Net):
    """Steps two optimizers by hand, the second in every other batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(4, 1)

    def training_step(self, batch, index):
        self.seen.append(float(batch[0][0, 0]))
        first, second = self.optimizers()
        loss = self.loss(batch)
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        if index % 2:
            other = nn.functional.mse_loss(self.other(batch[0]), batch[1])
            second.zero_grad()
            self.manual_backward(other)
            second.step()
            self.log("other_loss", other, on_epoch=True, on_step=False)
        self.log("train_loss", loss, on_epoch=True, on_step=False)

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.net.parameters(), lr=0.05),
            torch.optim.SGD(self.other.parameters(), lr=0.02, momentum=0.9),
        ]


class Killed(Exception):
    """In place of a crash."""


class KillAt(L.Callback):
    """Fails where a batch begins, after so many others."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.fit_loop.total_batch_idx == self.batch:
            raise Killed


class StopAfter(L.Callback):
    """Lets a signal come while a batch is trained on, after which so many are done."""

    def __init__(self, batch, signal=signal.SIGTERM):
        self.batch, self.signal = batch, signal

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            signal.raise_signal(self.signal)


def scramble():
    """Leave the random numbers in a state that no training has seen."""
    random.seed(91)
    np.random.seed(92)
    torch.manual_seed(93)


def loaders(kind=DataLoader, **options):
    """Return a shuffled loader to train on, and one to validate."""
    train = kind(Points(), batch_size=BATCH, shuffle=True, **options)
    return train, DataLoader(Points(8, is_noisy=False), batch_size=4)


class DrawingHooks(Net):
    """Draws in every hook, and changes weights in some, as an average of them would."""

    def on_train_start(self):
        torch.rand(3)

    def on_train_epoch_start(self):
        torch.rand(2)

    def on_train_batch_end(self, *_):
        with torch.no_grad():
            self.net[0].weight.add_(0.001 * torch.randn(6, 4))
        self.log("drawn", torch.rand(()), on_step=False, on_epoch=True)

    def on_train_epoch_end(self):
        with torch.no_grad():
            self.net[4].bias.add_(0.1 * torch.randn(1))


class Counting(L.Callback):
    """Has a state that its hooks change, and draws."""

    number = 0

    def on_train_epoch_start(self, trainer, module):
        self.number += 1
        torch.rand(self.number)

    def on_train_epoch_end(self, trainer, module):
        self.number += 10

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state_dict):
        self.number = state_dict["number"]


def fit(make=Net, data=loaders, epochs=EPOCHS, callbacks=(), trainer=None, **options):
    """Train as a script would, from a start of its own; return the module and the Resumable."""
    scramble()
    L.seed_everything(7, verbose=False)
    module = make()
    resumable = Resumable(minimize="val_loss", log_model=False, **options)
    made = trainer_of(epochs, [*callbacks, resumable], logger=resumable.logger, **(trainer or {}))
    run_id = resumable.run.run_id
    try:
        made.fit(module, *data(), ckpt_path=resumable.ckpt_path, weights_only=True)
    except (Killed, Interrupted) as error:
        module.error_raised = error.with_traceback(None)
    return module, run_id


def trainer_of(epochs, callbacks, **options):
    """Return a quiet Trainer on the CPU."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    return L.Trainer(
        max_epochs=epochs, callbacks=callbacks, accelerator="cpu", devices=1, **(quiet | options)
    )
