"""Loops as people write them, small: each takes the options of `open_run`, and a function to call.

The function is called after each optimizer step, with how many this process has made: a test dies
there. What is returned is everything that a resume must bring back.
"""

import math
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import onward

_G = torch.Generator().manual_seed(0)
X = torch.randn(160, 1, 8, 8, generator=_G)
Y = (X.mean((1, 2, 3)) > 0).long() + 2 * (X[:, 0, 0, 0] > 0).long()
TOKENS = torch.randint(0, 30, (1000,), generator=_G)


def seed_all(seed):
    """Seed what is drawn from, as whoever wants the same run twice does."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Steps:
    """Counts the steps of this process, and calls `act` after each."""

    def __init__(self, act=None):
        self.number, self._act = 0, act

    def done(self):
        self.number += 1
        if self._act is not None:
            self._act(self.number)


def classifier(act=None, loader=None, logs_steps=False, **options):
    """Epochs, a schedule, dropout, a shuffled loader, a running mean."""
    seed_all(1)
    steps = Steps(act)
    if loader is None:
        loader = DataLoader(TensorDataset(X[:96], Y[:96]), batch_size=16, shuffle=True)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.25), nn.Linear(144, 4)
    )
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    with onward.open_run(state, maximize="accuracy", **options) as run:
        for _epoch in run.epochs(range(1, 5)):
            model.train()
            for images, labels in run.batches(loader):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
                run.mean("loss").add(loss.detach(), len(labels))
                if logs_steps:
                    run.log(step_loss=loss, step=100 + run.step)
                steps.done()
            model.eval()
            with torch.no_grad():
                accuracy = (model(X[96:]).argmax(1) == Y[96:]).float().mean()
            scheduler.step()
            run.log(accuracy=accuracy, loss=run.mean("loss").value)
    return state


class Augmented(Dataset):
    """Draws noise for each sample."""

    def __len__(self):
        return 96

    def __getitem__(self, index):
        return X[index] + torch.rand(1, 8, 8), Y[index]


class Stream(IterableDataset):
    """Has neither length nor indices."""

    def __iter__(self):
        order = torch.randperm(96)
        return ((X[i], Y[i]) for i in order)


class Gpt(nn.Module):
    """Tied weights, as in nanoGPT."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.middle = nn.Sequential(
            nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 16)
        )
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x, y):
        hidden = self.embedding(x)
        logits = self.head(hidden + self.middle(hidden))
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def language_model(act=None, wrap=lambda model: model, **options):
    """Steps without epochs, a batch that is fetched ahead, a computed rate, tied weights."""
    seed_all(1337)
    steps = Steps(act)

    def get_batch():
        starts = torch.randint(len(TOKENS) - 9, (8,))
        rows = torch.stack([TOKENS[i : i + 9] for i in starts])
        return rows[:, :-1], rows[:, 1:]

    raw = Gpt()
    optimizer = torch.optim.AdamW(raw.parameters(), lr=1e-3, betas=(0.9, 0.95))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    model, loop = wrap(raw), dict(zip("xy", get_batch(), strict=True))
    state = {"model": model, "optimizer": optimizer, "scaler": scaler, "loop": loop}
    with onward.open_run(state, minimize="val/loss", **options) as run:
        for number in run.steps(range(24)):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * min(1, (number + 1) / 10)
            if number % 8 == 0:
                raw.eval()
                with torch.no_grad():
                    run.log(**{"val/loss": sum(raw(*get_batch()).item() for _ in range(2)) / 2})
                raw.train()
            loss = model(loop["x"], loop["y"])
            loop["x"], loop["y"] = get_batch()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            steps.done()
    return {"model": raw, "optimizer": optimizer, "loop": loop}


def gan(act=None, **options):
    """Two networks, two optimizers, a fixed tensor, BatchNorm; no metric decides."""
    seed_all(3)
    steps = Steps(act)
    loader = DataLoader(TensorDataset(X[:64]), batch_size=16, shuffle=True)
    g = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 64))
    d = nn.Sequential(nn.Linear(64, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1), nn.Sigmoid())
    fixed = torch.randn(4, 8)
    d_optimizer = torch.optim.Adam(d.parameters(), lr=2e-4, betas=(0.5, 0.999))
    g_optimizer = torch.optim.Adam(g.parameters(), lr=2e-4, betas=(0.5, 0.999))
    state = {"g": g, "d": d, "optimizers": {"g": g_optimizer, "d": d_optimizer}, "fixed": fixed}
    with onward.open_run(state, **options) as run:
        for _epoch in run.epochs(range(4)):
            for (real,) in run.batches(loader):
                one = torch.ones(len(real), 1)
                d.zero_grad()
                fake = g(torch.randn(len(real), 8))
                d_loss = F.binary_cross_entropy(d(real.flatten(1)), one)
                d_loss = d_loss + F.binary_cross_entropy(d(fake.detach()), 0 * one)
                d_loss.backward()
                d_optimizer.step()
                with torch.no_grad():  # as WGAN clips: past the optimizer
                    for p in d.parameters():
                        p.data.clamp_(-0.1, 0.1)
                g.zero_grad()
                g_loss = F.binary_cross_entropy(d(fake), one)
                g_loss.backward()
                g_optimizer.step()
                steps.done()
            run.log(d_loss=d_loss.item(), g_loss=g_loss.item())
    return state


def diffusion(act=None, **options):
    """Steps, an endless loader, accumulation, a scaler, a moving average of the weights."""
    seed_all(5)
    steps = Steps(act)
    loader = DataLoader(TensorDataset(X[:64].flatten(1)), batch_size=16, shuffle=True)
    model = nn.Sequential(nn.Linear(65, 64), nn.SiLU(), nn.Linear(64, 64))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average)
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    state = {"model": model, "optimizer": optimizer, "ema": ema, "scaler": scaler}
    with onward.open_run(state, minimize="sample", **options) as run:
        batches = run.batches(loader, repeat=True)
        for step in run.steps(range(20)):
            for _ in range(3):
                (x,) = next(batches)
                t = torch.rand(len(x), 1)
                noise = torch.randn_like(x)
                loss = F.mse_loss(model(torch.cat([x * (1 - t) + noise * t, t], 1)), noise) / 3
                scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if step % 3 == 0:
                ema.update_parameters(model)
            if (step + 1) % 5 == 0:
                with torch.no_grad():
                    run.log(sample=ema(torch.randn(4, 65)).square().mean())
            steps.done()
    return state


class Cart:
    """An environment without a state_dict, with a generator of its own."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.s, self.t = None, 0

    def reset(self):
        self.s, self.t = self.rng.uniform(-0.05, 0.05, 4), 0
        return self.s.astype(np.float32)

    def step(self, action):
        x, v, th, w = self.s
        force = 10.0 if action else -10.0
        tmp = (force + 0.05 * w**2 * math.sin(th)) / 1.1
        turn = 9.8 * math.sin(th) - math.cos(th) * tmp
        acc = turn / (0.5 * (4 / 3 - 0.1 * math.cos(th) ** 2 / 1.1))
        moved = tmp - 0.05 * acc * math.cos(th) / 1.1
        self.s = np.array([x + 0.02 * v, v + 0.02 * moved, th + 0.02 * w, w + 0.02 * acc])
        self.t += 1
        done = abs(self.s[0]) > 2.4 or abs(self.s[2]) > 0.21 or self.t >= 200
        return (self.reset() if done else self.s.astype(np.float32)), 1.0, done

    def part(self):
        def get():
            return {"s": self.s, "t": self.t, "draws": repr(self.rng.bit_generator.state)}

        def put(saved):
            self.s, self.t = np.asarray(saved["s"]), saved["t"]
            self.rng.bit_generator.state = eval(saved["draws"])

        return onward.Part(get, put)


def ppo(act=None, **options):
    """Rollouts and updates; environments, NumPy's shuffle, an axis of the environment's steps."""
    seed_all(1)
    steps = Steps(act)
    carts = [Cart(number) for number in range(2)]
    actor, critic = nn.Linear(4, 2), nn.Linear(4, 1)
    parameters = [*actor.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=2.5e-3, eps=1e-5)
    loop = {"seen": torch.tensor(np.stack([cart.reset() for cart in carts])), "global_step": 0}
    state = {
        "actor": actor, "critic": critic, "optimizer": optimizer, "loop": loop,
        "carts": [cart.part() for cart in carts],
    }  # fmt: skip
    with onward.open_run(state, maximize="length", **options) as run:
        for number in run.steps(range(1, 13)):
            optimizer.param_groups[0]["lr"] = (1 - (number - 1) / 12) * 2.5e-3
            seen, actions, logps, rewards, values, num_done = [], [], [], [], [], 0
            for _ in range(8):
                loop["global_step"] += 2
                with torch.no_grad():
                    policy = torch.distributions.Categorical(logits=actor(loop["seen"]))
                    action = policy.sample()
                    seen.append(loop["seen"])
                    actions.append(action)
                    logps.append(policy.log_prob(action))
                    values.append(critic(loop["seen"])[:, 0])
                out = [cart.step(int(a)) for cart, a in zip(carts, action, strict=True)]
                loop["seen"] = torch.tensor(np.stack([o for o, _, _ in out]))
                rewards.append(torch.tensor([r for _, r, _ in out]))
                num_done += sum(done for _, _, done in out)
            o, a, lp, r, v = map(torch.cat, (seen, actions, logps, rewards, values))
            indices = np.arange(len(o))
            np.random.shuffle(indices)
            for start in range(0, len(o), 8):
                b = torch.from_numpy(indices[start : start + 8].copy())
                policy = torch.distributions.Categorical(logits=actor(o[b]))
                ratio = (policy.log_prob(a[b]) - lp[b]).exp()
                advantage = r[b] - v[b]
                loss = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
                loss = loss + 0.5 * (critic(o[b])[:, 0] - r[b]).pow(2).mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 0.5)
                optimizer.step()
                steps.done()
            run.log(value_loss=loss.item(), step=loop["global_step"])
            run.log(length=16 / max(num_done, 1))
    return state
