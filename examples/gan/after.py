"""Two networks that draw handwritten digits, after PyTorch's DCGAN example."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

import onward

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--nz", type=int, default=32, help="size of the noise")
parser.add_argument("--width", type=int, default=32)
parser.add_argument("--lr", type=float, default=2e-4)
parser.add_argument("--beta1", type=float, default=0.5)
parser.add_argument("--seed", type=int, default=3)
parser.add_argument("--save", default="gan.pt", help="file for the weights")
opt = parser.parse_args()

torch.manual_seed(opt.seed)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
images = torch.from_numpy(load_digits().images).float().unsqueeze(1) / 8 - 1
dataloader = DataLoader(TensorDataset(images), opt.batch_size, shuffle=True, drop_last=True)

netG = nn.Sequential(
    nn.ConvTranspose2d(opt.nz, 2 * opt.width, 2, bias=False),
    nn.BatchNorm2d(2 * opt.width),
    nn.ReLU(True),
    nn.ConvTranspose2d(2 * opt.width, opt.width, 4, 2, 1, bias=False),
    nn.BatchNorm2d(opt.width),
    nn.ReLU(True),
    nn.ConvTranspose2d(opt.width, 1, 4, 2, 1, bias=False),
    nn.Tanh(),
).to(device)
netD = nn.Sequential(
    nn.Conv2d(1, opt.width, 4, 2, 1, bias=False),
    nn.LeakyReLU(0.2, inplace=True),
    nn.Conv2d(opt.width, 2 * opt.width, 4, 2, 1, bias=False),
    nn.BatchNorm2d(2 * opt.width),
    nn.LeakyReLU(0.2, inplace=True),
    nn.Conv2d(2 * opt.width, 1, 2, bias=False),
).to(device)


def weights_init(module):
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


netG.apply(weights_init)
netD.apply(weights_init)
criterion = nn.BCEWithLogitsLoss()
fixed_noise = torch.randn(16, opt.nz, 1, 1, device=device)
optimizerD = optim.Adam(netD.parameters(), lr=opt.lr, betas=(opt.beta1, 0.999))
optimizerG = optim.Adam(netG.parameters(), lr=opt.lr, betas=(opt.beta1, 0.999))

state = {"netG": netG, "netD": netD, "optimizerG": optimizerG, "optimizerD": optimizerD}
with onward.open_run(state | {"fixed_noise": fixed_noise}, config=vars(opt)) as run:
    for epoch in run.epochs(range(opt.epochs)):
        for (real,) in run.batches(dataloader):
            # D learns to tell real images from those of G.
            netD.zero_grad()
            real = real.to(device)
            label = torch.ones(len(real), device=device)
            errD_real = criterion(netD(real).flatten(), label)
            errD_real.backward()
            fake = netG(torch.randn(len(real), opt.nz, 1, 1, device=device))
            errD_fake = criterion(netD(fake.detach()).flatten(), torch.zeros_like(label))
            errD_fake.backward()
            errD = errD_real + errD_fake
            optimizerD.step()
            # G learns to be taken for real.
            netG.zero_grad()
            errG = criterion(netD(fake).flatten(), label)
            errG.backward()
            optimizerG.step()
        with torch.no_grad():
            contrast = netG(fixed_noise).std().item()
        run.log(loss_D=errD, loss_G=errG, contrast=contrast)

torch.save({"netG": netG.state_dict(), "netD": netD.state_dict()}, opt.save)
