"""What a measured process writes down of itself: when its first and last optimizer steps were.

Every way is watched by the same hooks of torch's optimizers. They are set as torch is imported,
wherever the program does that: nothing is imported for the measurement. Times are those of the
machine's monotonic clock, which the measuring process reads too. Each step is written at once,
which takes 2 µs: however the process ends, nothing is lost.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import struct
import sys
import time
from pathlib import Path
from typing import NamedTuple

FOLDER_VARIABLE = "BENCH_FOLDER"
_STEPS, _TOLD = "steps.bin", "told.json"
_OPTIMIZERS = "torch.optim.optimizer"
_RECORD = struct.Struct("ddqd")


class Steps(NamedTuple):
    """When the first step began, when the last was done, how many there were, and their CPU."""

    first: float
    last: float
    number: int
    cpu_seconds: float  # of all threads of the process, from the first to the last


def read(folder: Path) -> tuple[Steps, dict[str, float]]:
    """Return the steps of a process that has ended, and what it told."""
    told = folder / _TOLD
    found = json.loads(told.read_text()) if told.exists() else {}
    return Steps(*_RECORD.unpack((folder / _STEPS).read_bytes())), found


def tell(**found: object) -> None:
    """Note what the process has found, such as its final losses."""
    Path(os.environ[FOLDER_VARIABLE], _TOLD).write_text(json.dumps(found))


def install() -> None:
    """Watch the optimizers of this process."""
    sys.meta_path.insert(0, _Watch())


class _Clock:
    """Writes the record anew after each step."""

    def __init__(self) -> None:
        self.file = os.open(Path(os.environ[FOLDER_VARIABLE], _STEPS), os.O_WRONLY | os.O_CREAT)
        self.first = self.number = self.cpu = 0

    def before_step(self, *_) -> None:
        if not self.first:
            self.first, self.cpu = time.monotonic(), time.process_time()

    def after_step(self, *_) -> None:
        self.number += 1
        cpu = time.process_time() - self.cpu
        os.pwrite(self.file, _RECORD.pack(self.first, time.monotonic(), self.number, cpu), 0)


class _Watch(importlib.abc.MetaPathFinder):
    """Sets the hooks as soon as the module that has them is there."""

    def find_spec(self, name, path, target=None):
        if name != _OPTIMIZERS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_and_watch(module) -> None:
            execute(module)
            clock = _Clock()
            module.register_optimizer_step_pre_hook(clock.before_step)
            module.register_optimizer_step_post_hook(clock.after_step)

        spec.loader.exec_module = exec_and_watch
        return spec
