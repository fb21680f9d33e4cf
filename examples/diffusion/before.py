"""A diffusion model of handwritten digits, after denoising-diffusion-pytorch."""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

NUM_TIMES = 100


class Denoiser(nn.Module):
    """Tells the noise in images at a time, [B, 64] and [B]."""

    def __init__(self, width):
        super().__init__()
        self.times = nn.Embedding(NUM_TIMES, width)
        self.first = nn.Linear(64, width)
        self.rest = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Dropout(0.05), nn.Linear(width, 64)
        )

    def forward(self, x, t):
        return self.rest(self.first(x) + self.times(t))


def cycle(loader):
    while True:
        yield from loader


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=1500)
parser.add_argument("--milestone", type=int, default=250, help="steps from one score to the next")
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--accumulation", type=int, default=2)
parser.add_argument("--width", type=int, default=256)
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--ema-decay", type=float, default=0.995)
parser.add_argument("--seed", type=int, default=5)
parser.add_argument("--save", default="diffusion.pt", help="file for the weights")
args = parser.parse_args()

torch.manual_seed(args.seed)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
images = torch.from_numpy(load_digits().data).float() / 8 - 1
train_images, val_images = images[:1500], images[1500:].to(device)
loader = DataLoader(TensorDataset(train_images), args.batch_size, shuffle=True, drop_last=True)
kept = torch.cumprod(1 - torch.linspace(1e-3, 0.1, NUM_TIMES), 0).to(device)  # of the image

model = Denoiser(args.width).to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.9, 0.99))
ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay))
scaler = torch.amp.GradScaler(device.type)


def noise_loss(denoiser, x):
    t = torch.randint(NUM_TIMES, (len(x),), device=device)
    noise = torch.randn_like(x)
    noisy = kept[t].sqrt()[:, None] * x + (1 - kept[t]).sqrt()[:, None] * noise
    return F.mse_loss(denoiser(noisy, t), noise)


@torch.no_grad()
def score(denoiser):
    denoiser.eval()
    loss = sum(noise_loss(denoiser, val_images).item() for _ in range(10)) / 10
    denoiser.train()
    return loss


dl = cycle(loader)
for step in range(args.steps):
    for _ in range(args.accumulation):
        (x,) = next(dl)
        loss = noise_loss(model, x.to(device)) / args.accumulation
        scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    ema.update_parameters(model)
    if (step + 1) % args.milestone == 0:
        val_loss = score(ema)
        print(f"step {step + 1}  val_loss {val_loss:.4f}")

torch.save(ema.state_dict(), args.save)
