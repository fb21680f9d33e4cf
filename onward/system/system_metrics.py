"""What the machine does while it trains, under the names that MLflow gives these figures."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Any

import psutil

Found = dict[str, float]

FIRST_SECONDS = 0.1


class SystemMetrics:
    """Samples processor, memory, disk, network, and NVIDIA's GPUs where there are any."""

    def __init__(self) -> None:
        self._network_before: Any = None
        with contextlib.suppress(Exception):  # as in `sample`
            self._network_before = psutil.net_io_counters()
        # psutil tells of the time since the thread's last call, so the first has to take some.
        self._cpu_interval: float | None = FIRST_SECONDS
        self._nvml, self._gpus = _find_gpus()

    def sample(self) -> Found:
        """Return name to value; takes FIRST_SECONDS the first time, and none later.

        The processor's is since the last sample, the network's since the sampler was made.
        """
        readers = [self._processor, _memory, _disk, self._network]
        for index, gpu in enumerate(self._gpus):
            for reader in (_gpu_memory, _gpu_utilization, _gpu_power):
                readers.append(functools.partial(reader, self._nvml, gpu, f"gpu_{index}"))
        found: Found = {}
        for read in readers:
            # Some machines and some cards do not tell everything, each in its own way.
            with contextlib.suppress(Exception):
                found |= read()
        return {f"system/{name}": round(value, 1) for name, value in found.items()}

    def _processor(self) -> Found:
        interval, self._cpu_interval = self._cpu_interval, None
        return {"cpu_utilization_percentage": psutil.cpu_percent(interval)}

    def _network(self) -> Found:
        now, before = psutil.net_io_counters(), self._network_before
        if now is None or before is None:  # a machine without a network
            return {}
        return {
            "network_receive_megabytes": (now.bytes_recv - before.bytes_recv) / 1e6,
            "network_transmit_megabytes": (now.bytes_sent - before.bytes_sent) / 1e6,
        }


def _memory() -> Found:
    memory = psutil.virtual_memory()
    return {
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.used / memory.total * 100,
    }


def _disk() -> Found:
    disk = psutil.disk_usage(os.sep)
    return {
        "disk_usage_percentage": disk.percent,
        "disk_usage_megabytes": disk.used / 1e6,
        "disk_available_megabytes": disk.free / 1e6,
    }


def _gpu_memory(nvml: Any, gpu: Any, name: str) -> Found:
    memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
    return {
        f"{name}_memory_usage_percentage": memory.used / memory.total * 100,
        f"{name}_memory_usage_megabytes": memory.used / 1e6,
    }


def _gpu_utilization(nvml: Any, gpu: Any, name: str) -> Found:
    return {f"{name}_utilization_percentage": nvml.nvmlDeviceGetUtilizationRates(gpu).gpu}


def _gpu_power(nvml: Any, gpu: Any, name: str) -> Found:
    milliwatts = nvml.nvmlDeviceGetPowerUsage(gpu)
    limit = nvml.nvmlDeviceGetEnforcedPowerLimit(gpu)
    return {
        f"{name}_power_usage_watts": milliwatts / 1000,
        f"{name}_power_usage_percentage": milliwatts / limit * 100,
    }


def _find_gpus() -> tuple[Any, list[Any]]:
    import pynvml

    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        return pynvml, [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    except pynvml.NVMLError:  # no driver: no GPU
        return pynvml, []
