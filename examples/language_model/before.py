"""A language model of characters, after nanoGPT, on the help texts that Python ships."""

import argparse
import math
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width, num_heads, dropout):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x):
        B, T, C = x.shape
        heads = self.attention(self.norm1(x)).view(B, T, 3 * self.num_heads, -1).transpose(1, 2)
        q, k, v = heads.chunk(3, dim=1)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        x = x + self.projection(y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self, vocab_size, block_size, width, num_layers, num_heads, dropout):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.places = nn.Embedding(block_size, width)
        blocks = [Block(width, num_heads, dropout) for _ in range(num_layers)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.tokens.weight = self.head.weight  # tied
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, X, Y):
        x = self.tokens(X) + self.places(torch.arange(X.shape[1], device=X.device))
        logits = self.head(self.norm(self.blocks(x)))
        return logits, F.cross_entropy(logits.flatten(0, 1), Y.flatten())


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--max-iters", type=int, default=200)
parser.add_argument("--eval-interval", type=int, default=50)
parser.add_argument("--eval-iters", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=12)
parser.add_argument("--block-size", type=int, default=64)
parser.add_argument("--accumulation", type=int, default=2)
parser.add_argument("--dropout", type=float, default=0.1)
parser.add_argument("--lr", type=float, default=3e-3)
parser.add_argument("--warmup-iters", type=int, default=20)
parser.add_argument("--seed", type=int, default=1337)
parser.add_argument("--save", default="language_model.pt", help="file for the weights")
args = parser.parse_args()

torch.manual_seed(args.seed)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
text = "\n".join(topics[name] for name in sorted(topics))
letters = sorted(set(text))
number_of = {letter: number for number, letter in enumerate(letters)}
data = torch.tensor([number_of[letter] for letter in text])
split = len(data) * 9 // 10
parts = {"train": data[:split], "val": data[split:]}

model = GPT(len(letters), args.block_size, 64, 2, 4, args.dropout).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95))
scaler = torch.amp.GradScaler(device.type, enabled=False)  # float32: passes through


def get_batch(part):
    starts = torch.randint(len(parts[part]) - args.block_size, (args.batch_size,))
    rows = torch.stack([parts[part][i : i + args.block_size + 1] for i in starts]).to(device)
    return rows[:, :-1], rows[:, 1:]


@torch.no_grad()
def estimate_loss():
    model.eval()
    losses = {}
    for part in ("train", "val"):
        found = [model(*get_batch(part))[1].item() for _ in range(args.eval_iters)]
        losses[part] = sum(found) / len(found)
    model.train()
    return losses


def get_lr(iter_num):
    if iter_num < args.warmup_iters:
        return args.lr * (iter_num + 1) / args.warmup_iters
    done = (iter_num - args.warmup_iters) / max(1, args.max_iters - args.warmup_iters)
    return args.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done))))


X, Y = get_batch("train")
iter_num = 0
while True:
    lr = get_lr(iter_num)
    for group in optimizer.param_groups:
        group["lr"] = lr
    if iter_num % args.eval_interval == 0:
        losses = estimate_loss()
        print(f"step {iter_num}  train {losses['train']:.4f}  val {losses['val']:.4f}")
    for _ in range(args.accumulation):
        logits, loss = model(X, Y)
        X, Y = get_batch("train")  # while a GPU computes
        scaler.scale(loss / args.accumulation).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    iter_num += 1
    if iter_num > args.max_iters:
        break

torch.save(model.state_dict(), args.save)
