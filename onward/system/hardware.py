"""The machine that this process runs on: processor, memory, GPUs."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path


@cache
def cpu_name() -> str:
    """Return what the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def free_memory_bytes() -> int:
    """Return how much memory could be taken now without pushing anything out."""
    import psutil

    return int(psutil.virtual_memory().available)


def in_words(num_cpus: int) -> str:
    """Return cores, of which `num_cpus` can be used, memory and GPUs, in half a line."""
    import psutil
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory_gb = psutil.virtual_memory().total / 1e9
    return ", ".join([f"{num_cpus} cores", f"{memory_gb:.0f} GB", *gpus])
