"""Where two states differ, to the bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from onward.system.boxes import box_of, is_spread, local_of, region, whole
from onward.words.language import _


def first_difference(saved: Any, now: Any, path: str) -> str | None:
    """Return where two states differ first, to the bit, and how; None if they are equal.

    What is a mapping or a sequence counts by what it holds, whatever it is a class of.
    """
    if isinstance(saved, np.ndarray):
        saved = torch.from_numpy(saved)
    if isinstance(now, np.ndarray):
        now = torch.from_numpy(now)
    if isinstance(saved, torch.Tensor) and isinstance(now, torch.Tensor):
        return _tensor_difference(saved, now, path)
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        for key in [*saved, *(key for key in now if key not in saved)]:
            where = f"{path}[{key!r}]"
            if key not in now or key not in saved:
                told = _("{where} is gone") if key in saved else _("{where} is new")
                return told.format(where=where)
            found = first_difference(saved[key], now[key], where)
            if found is not None:
                return found
        return None
    if isinstance(saved, list | tuple) and isinstance(now, list | tuple):
        if len(saved) != len(now):
            return _("{where} has {now} items, not {saved}").format(
                where=path, now=len(now), saved=len(saved)
            )
        pairs = enumerate(zip(saved, now, strict=True))
        differences = (first_difference(a, b, f"{path}[{index}]") for index, (a, b) in pairs)
        return next(filter(None, differences), None)
    if isinstance(now, np.generic):
        now = now.item()
    is_nan = isinstance(saved, float) and isinstance(now, float) and math.isnan(saved)
    if saved == now or (is_nan and math.isnan(now)):
        return None
    told = _("{where} is {now}, not {saved}")
    return told.format(where=path, now=_in_short(now), saved=_in_short(saved))


def _tensor_difference(saved: torch.Tensor, now: torch.Tensor, path: str) -> str | None:
    if saved.dtype == now.dtype and saved.shape == now.shape:
        saved, now = _held(saved, now), _held(now, saved)
    if saved.dtype != now.dtype or saved.shape != now.shape:
        kinds = [f"{t.dtype}{list(t.shape)}".removeprefix("torch.") for t in (saved, now)]
        then, is_now = kinds
        return _("{where} is {now}, not {saved}").format(where=path, now=is_now, saved=then)
    bits = [t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (saved, now)]
    if torch.equal(*bits):
        return None
    return _("{where} has other values").format(where=path)


def _held(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return what this rank holds of a tensor; of a whole one, what it holds of the other."""
    if is_spread(other) and not is_spread(tensor):
        box, _is_first = box_of(other)
        return region(tensor, whole(tensor.shape), box)
    return local_of(tensor)


def _in_short(value: Any) -> str:
    text = f"a {type(value).__name__}" if isinstance(value, torch.Tensor) else repr(value)
    return text[:60]
