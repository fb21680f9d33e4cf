"""System metrics have MLflow's names, and a machine that does not tell everything ends nothing."""

import sys
from types import ModuleType, SimpleNamespace

import psutil
import pytest

from onward.metrics import is_wall_clock
from onward.system.system_metrics import SystemMetrics


class Nvml(ModuleType):
    """NVIDIA's library on a machine with two cards, the second of which tells little.

    Args:
        refuses: Names of functions that fail on the second card.
    """

    class NVMLError(Exception):
        """What each of its functions raises."""

    def __init__(self, refuses=()):
        super().__init__("pynvml")
        self.refuses, self.limit_milliwatts = refuses, 400_000

    def _answer(self, name, card, answer):
        if card == 1 and name in self.refuses:
            raise self.NVMLError("Not Supported")
        return answer

    def nvmlInit(self):
        if "nvmlInit" in self.refuses:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetMemoryInfo(self, card):
        answer = SimpleNamespace(used=20e9, total=80e9)
        return self._answer("nvmlDeviceGetMemoryInfo", card, answer)

    def nvmlDeviceGetUtilizationRates(self, card):
        return self._answer("nvmlDeviceGetUtilizationRates", card, SimpleNamespace(gpu=90 + card))

    def nvmlDeviceGetPowerUsage(self, card):
        return self._answer("nvmlDeviceGetPowerUsage", card, 100_000)

    def nvmlDeviceGetEnforcedPowerLimit(self, card):
        return self._answer("nvmlDeviceGetEnforcedPowerLimit", card, self.limit_milliwatts)


@pytest.fixture
def cards(monkeypatch):
    """Return a function that puts two cards into this machine."""

    def insert(*refuses):
        nvml = Nvml(refuses)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        return nvml

    return insert


GPU = ("memory_usage_percentage", "memory_usage_megabytes", "utilization_percentage",
       "power_usage_watts", "power_usage_percentage")  # fmt: skip


def names_of(*monitors):
    """Return the names under which MLflow's own monitors log."""
    found = set()
    for monitor in monitors:
        monitor.collect_metrics()
        found |= {f"system/{name}" for name in monitor.aggregate_metrics()}
    return found


def test_the_names_are_those_of_mlflow(cards, monkeypatch):
    """The UI knows them: its page of system metrics shows what has these names, and only that."""
    from mlflow.system_metrics.metrics import (
        cpu_monitor,
        disk_monitor,
        gpu_monitor,
        network_monitor,
    )

    monkeypatch.setattr(gpu_monitor, "pynvml", cards(), raising=False)
    monitors = (
        cpu_monitor.CPUMonitor(), disk_monitor.DiskMonitor(), network_monitor.NetworkMonitor(),
        gpu_monitor.GPUMonitor(),
    )  # fmt: skip
    assert set(SystemMetrics().sample()) == names_of(*monitors)


def test_the_prefix_is_that_of_mlflow():
    """It makes the page, and tells them from metrics of the training, which must be exact."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor("r", resume_logging=False)
    assert monitor._metrics_prefix == "system/"
    assert all(is_wall_clock(name) for name in SystemMetrics().sample())


def test_cards_are_told_one_by_one(cards):
    """Memory, use and power of each, in MLflow's units."""
    cards()
    found = SystemMetrics().sample()
    told = {name: found[f"system/gpu_1_{name}"] for name in GPU}
    assert told == dict(zip(GPU, (25, 20_000, 91, 100, 25), strict=True))
    assert found["system/gpu_0_utilization_percentage"] == 90


@pytest.mark.parametrize(
    ("refuses", "missing"),
    [
        ("nvmlDeviceGetMemoryInfo", GPU[:2]),
        ("nvmlDeviceGetUtilizationRates", GPU[2:3]),
        ("nvmlDeviceGetPowerUsage", GPU[3:]),
        ("nvmlDeviceGetEnforcedPowerLimit", GPU[3:]),
    ],
)
def test_what_a_card_does_not_tell_is_left_out(cards, refuses, missing):
    """All else is told, of this card and of the others, as by MLflow."""
    cards()
    everything = set(SystemMetrics().sample())
    cards(refuses)
    gone = everything - set(SystemMetrics().sample())
    assert gone == {f"system/gpu_1_{name}" for name in missing}


def test_a_card_without_a_power_limit(cards):
    """Such a card has none of it, and not the whole sample lost by a division by zero."""
    cards().limit_milliwatts = 0
    found = SystemMetrics().sample()
    assert "system/gpu_0_power_usage_percentage" not in found
    assert "system/gpu_0_utilization_percentage" in found


def test_without_a_driver_there_are_no_cards(cards):
    """Most machines have none, and that is no error."""
    cards("nvmlInit")
    assert not [name for name in SystemMetrics().sample() if "gpu" in name]


@pytest.mark.parametrize(
    ("function", "missing"),
    [
        ("cpu_percent", {"cpu_utilization_percentage"}),
        ("virtual_memory", {"system_memory_usage_megabytes", "system_memory_usage_percentage"}),
        ("disk_usage",
         {"disk_usage_percentage", "disk_usage_megabytes", "disk_available_megabytes"}),
        ("net_io_counters", {"network_receive_megabytes", "network_transmit_megabytes"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("error", [PermissionError(13, "no"), RuntimeError("no line 'cpu '")])
def test_a_machine_that_hides_something_is_sampled_all_the_same(
    monkeypatch, function, missing, error
):
    """A sandbox may refuse any of it: nothing of the training depends on these figures."""
    everything = set(SystemMetrics().sample())

    def refuse(*_):
        raise error

    monkeypatch.setattr(psutil, function, refuse)
    gone = everything - set(SystemMetrics().sample())
    assert gone == {f"system/{name}" for name in missing}


def test_the_processor_is_sampled_over_some_time(monkeypatch):
    """psutil counts from the last call of the same thread: at the first there would be none, and
    a busy machine would be told to be idle."""
    asked = []
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval=None: asked.append(interval) or 50)
    metrics = SystemMetrics()
    assert asked == []
    for _ in range(3):
        assert metrics.sample()["system/cpu_utilization_percentage"] == 50
    assert asked[0] > 0
    assert asked[1:] == [None, None]


def test_a_machine_without_a_network(monkeypatch):
    """psutil then has no counters."""
    monkeypatch.setattr(psutil, "net_io_counters", lambda: None)
    found = SystemMetrics().sample()
    assert not [name for name in found if "network" in name]
    assert "system/disk_usage_percentage" in found


def test_the_network_counts_from_the_start(monkeypatch):
    """What went over it before the training is none of its business."""
    sent, received = iter([5e6, 7e6]), iter([50e6, 80.25e6])
    monkeypatch.setattr(
        psutil,
        "net_io_counters",
        lambda: SimpleNamespace(bytes_sent=next(sent), bytes_recv=next(received)),
    )
    found = SystemMetrics().sample()
    assert found["system/network_transmit_megabytes"] == 2
    assert found["system/network_receive_megabytes"] == 30.2
