"""What a step of a training frees is kept for the next one, where glibc is asked for memory."""

import ctypes
import subprocess
import sys

import pytest
from support import environment

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"),
    reason="glibc",
)

TRAINING = """
import resource
import torch
import onward

torch.set_num_threads(1)
model = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(4)])
optimizer = torch.optim.SGD(model.parameters(), 0.1)
x = torch.ones(512, 256)


def step():
    loss = model(x).square().mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def num_faults():
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(100):
        step()
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


with onward.open_run({"model": model, "optimizer": optimizer}, minimize="loss") as run:
    for _epoch in run.epochs(range(2)):
        num_faults()
        print("faults:", num_faults())
        run.log(loss=1.0)
"""


def faults(tracking, tmp_path, **variables):
    """Return how many pages 100 steps of a training were given, in its second epoch."""
    done = subprocess.run(
        [sys.executable, "-c", TRAINING],
        env=environment(tmp_path, tracking.uri, **variables),
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split("faults: ")[-1].split()[0])


def test_a_step_asks_the_system_for_no_memory(tracking, tmp_path):
    """What its activations are in is not given back, to be filled with zeros again."""
    assert faults(tracking, tmp_path) < 500


def test_what_a_user_has_set_of_malloc_stays(tracking, tmp_path):
    """The same steps have their blocks mapped anew each time, as it says."""
    assert faults(tracking, tmp_path, MALLOC_MMAP_THRESHOLD_="131072") > 10_000
