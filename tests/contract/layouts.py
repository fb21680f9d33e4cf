"""One of several ranks that train, save and load in some layout.

    layouts.py RANK WORLD FOLDER TASKS

A task is [name, layout, where from, where to]: a model is trained for some steps, or loaded, and
saved; what it is then is written beside, to be compared.
"""

import hashlib
import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from onward.checkpoint.content import Content
from onward.checkpoint.format import load_content, write_checkpoint
from onward.checkpoint.index import Origin, index_file
from onward.checkpoint.manifest import MANIFEST_FILE, parse_manifest
from onward.checkpoint.pieces import add_shard
from onward.checkpoint.shards import Shards, with_ranks
from onward.checkpoint.staging import Stager, changed_by_step
from onward.run import rng
from onward.run.sharded import own_of, put_own, split_parts
from onward.run.state import TrainState

NUM = 24  # samples of a batch, which 2, 3 and 4 ranks share evenly
SAVED_AT, END = 5, 8


class Net(nn.Module):
    """Uneven shapes, a weight of one row, of which some ranks have nothing, a tie, buffers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.first = nn.Linear(15, 193)
        self.norm = nn.BatchNorm1d(193)
        self.block = nn.Sequential(nn.Linear(193, 31), nn.GELU(), nn.Dropout(0.1))
        self.head = nn.Linear(31, 1)
        self.back = nn.Linear(5, 7, bias=False)
        self.back.weight = self.embedding.weight

    def forward(self, x, kinds):
        embedded = self.embedding(kinds)
        hidden = self.norm(self.first(torch.cat([x, embedded], 1)))
        return self.head(self.block(hidden)) + self.back(embedded).mean(1, keepdim=True)


class Ranks:
    """This rank among the others."""

    def __init__(self, rank, world):
        self.rank, self.world = rank, world
        self.mesh = init_device_mesh("cpu", (world,)) if world > 1 else None

    def make(self, layout, seed):
        """Return a fresh state in that layout, and the model to call."""
        rng.seed_all(seed)
        inner = model = Net()
        if layout == "fsdp":
            fully_shard(inner.block, mesh=self.mesh)
            fully_shard(inner, mesh=self.mesh)
        elif layout == "ddp":
            model = nn.parallel.DistributedDataParallel(inner, broadcast_buffers=False)
        optimizer = torch.optim.AdamW(inner.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=20)
        rng.seed_all(1000 * seed + self.rank)
        return TrainState({"model": model, "optimizer": optimizer, "scheduler": schedule})

    def train(self, state, until):
        """Train up to that step."""
        model, optimizer = state.parts["model"], state.parts["optimizer"]
        while state.step < until:
            numbers = torch.Generator().manual_seed(state.step)
            x = torch.randn(NUM, 10, generator=numbers)
            kinds = torch.randint(0, 7, (NUM,), generator=numbers)
            y = torch.randn(NUM, 1, generator=numbers)
            mine = torch.arange(NUM).tensor_split(self.world)[self.rank]
            optimizer.zero_grad(set_to_none=True)
            nn.functional.mse_loss(model(x[mine], kinds[mine]), y[mine]).backward()
            optimizer.step()
            state.parts["scheduler"].step()
            state.step += 1

    def save(self, state, layout, folder):
        """Save as a run does: set aside in the background, then each rank its own."""
        content = state.capture()
        may_wait = changed_by_step(state.parts["optimizer"])
        parts, pieces = split_parts(content.parts)
        own = {"rng": content.rng, "buffers": own_of(state.parts["model"])}
        stager = Stager()
        staged = stager.stage({"parts": parts, "pieces": pieces, "own": own}, may_wait)
        staged.wait()
        origin = Origin(self.rank, self.world, 1, state.step)
        found, is_spread = staged.state, layout == "fsdp"

        def shard(to):
            return add_shard(to, origin, found["pieces"], found["own"], max_bytes=20_000)

        if self.rank == 0:
            held = Content(
                epoch=0, step=state.step, epoch_step=1, parts=found["parts"], rng=content.rng,
                history=content.history, data={"fingerprint": "f"},
                world=self.world if is_spread else 1, layout=layout if is_spread else "",
            )  # fmt: skip
            manifest = write_checkpoint(
                folder, held.to_dict(), attempt=1, kept=True, metrics={},
                shard=shard if is_spread else None,
            )  # fmt: skip
        self.wait()
        if self.rank > 0 and is_spread:
            shard(folder)
        self.wait()
        if self.rank == 0 and is_spread:  # the commit
            texts = [(folder / index_file(rank)).read_bytes() for rank in range(self.world)]
            manifest = with_ranks(manifest, texts)
            Shards(folder, manifest, "x").require(held.parts)
            (folder / MANIFEST_FILE).write_bytes(manifest.to_json())
        self.wait()

    def load(self, state, layout, folder):
        """Load what was saved in whatever layout; tell which files were opened."""
        manifest = parse_manifest((folder / MANIFEST_FILE).read_bytes(), folder.name)
        content = load_content(folder, manifest, "x", is_whole=False)
        shards = Shards(folder, manifest, "x") if manifest.shard_files else None
        state.restore(content, shards)
        if shards and (manifest.world, manifest.layout) == (self.world, layout):
            own = shards.own(self.rank)
            put_own(state.parts["model"], own["buffers"], "model")
            rng.restore(own["rng"])
        return shards.opened if shards else []

    def wait(self):
        if self.world > 1:
            dist.barrier()

    def digests(self, state):
        """Return the hash of the whole state, and of what only this rank has."""
        content = state.capture()
        whole, own = hashlib.sha256(), hashlib.sha256()
        for path, tensor in leaves({k: content.parts[k] for k in ("model", "optimizer")}):
            is_buffer = "running" in path
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            for digest in (own,) if is_buffer else (own, whole):
                digest.update(f"{path} {full.dtype} {list(full.shape)}".encode())
                digest.update(
                    full.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                )
        own.update(repr([t.tolist() for _p, t in leaves(content.rng)]).encode())
        return [whole.hexdigest()[:16], own.hexdigest()[:16]]


def leaves(tree, path=""):
    """Yield where each tensor of a state is, and the tensor."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from leaves(value, f"{path}/{number}")
    elif isinstance(tree, torch.Tensor):
        yield path, tree


def perform(ranks, layout, source, target):
    """Do one task; return what is to be compared."""
    found = {}
    if source is None:
        state = ranks.make(layout, seed=1)
        if target == "nowhere":
            pass
        elif target.name == "global_step_0":
            ranks.save(state, layout, target)
        else:
            ranks.train(state, SAVED_AT)
            ranks.save(state, layout, target)
    else:
        state = ranks.make(layout, seed=2)
        found["opened"] = ranks.load(state, layout, source)
    found["then"] = ranks.digests(state)
    ranks.train(state, END)
    found["end"] = ranks.digests(state)
    return found


def main():
    rank, world, folder, tasks = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world,
            timeout=timedelta(seconds=60),
        )  # fmt: skip
    ranks = Ranks(rank, world)
    for name, layout, source, target in json.loads(tasks):
        found = perform(
            ranks, layout,
            folder / source if source else None,
            folder / target if target else "nowhere",
        )  # fmt: skip
        (folder / f"{name}-{rank}.json").write_text(json.dumps(found))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
        os._exit(0)  # torch's threads may abort the end of the interpreter


if __name__ == "__main__":
    main()
