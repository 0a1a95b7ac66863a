"""Checks of the fields of an intervention, as Python or JSON has them, and tensors as JSON.

A field is checked before torch sees it: a file of interventions may come from anywhere.
"""

from __future__ import annotations

import base64
import operator
import reprlib
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import InterventionError

_LONGEST_NAME = 200  # characters of a target
_MOST_AXES = 8
# What a stored tensor may be. Others are of no use here, and torch ends the process on some of them.
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32, torch.float16, torch.bfloat16, torch.float64,
        torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8,
    )
}  # fmt: skip


def target_name(value: Any) -> str:
    """A target. Raises: InterventionError for what is not text, or is too long for a name."""
    if not isinstance(value, str) or not value or len(value) > _LONGEST_NAME:
        raise InterventionError(f"a target is text such as L5H3, L5.mlp or a hook name; found {reprlib.repr(value)}.")
    return value


def whole_numbers(value: Any, name: str) -> tuple[int, ...]:
    """Heads or positions: whole numbers from 0, at least one.

    Raises: InterventionError for anything else.
    """
    if isinstance(value, str | bytes | dict) or not isinstance(value, Iterable):
        raise InterventionError(f"{name} must be a list of whole numbers, found {reprlib.repr(value)}.")
    try:
        numbers = tuple(_whole(n) for n in (sorted(value) if isinstance(value, set | frozenset) else value))
    except TypeError as error:
        raise InterventionError(f"{name} must be a list of whole numbers, found {reprlib.repr(value)}.") from error
    if not numbers:
        raise InterventionError(f"{name} is empty, so nothing would change; leave it out for all {name}.")
    if min(numbers) < 0:
        last = ". Negative ones would be another position at each step; pass len(tokens) - 1 for the last"
        raise InterventionError(
            f"{name} are counted from 0, found {min(numbers)}{last if name == 'positions' else ''}."
        )
    if max(numbers) >= 1 << 62:
        raise InterventionError(f"{name} are too large: found {reprlib.repr(max(numbers))}.")
    return numbers


def _whole(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def number(value: Any, name: str) -> float:
    """A number, NaN and infinity included: a run under them says itself that its values are not finite.

    Raises: InterventionError for anything else, or an integer that no float holds.
    """
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.dim() == 0):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InterventionError(f"{name} must be a number, found {reprlib.repr(value)}.")
    try:
        float(value)
    except OverflowError as error:
        raise InterventionError(f"{name} is too large for a float: {reprlib.repr(value)}.") from error
    return value


def tensor_of(value: Any) -> Tensor:
    """Numbers, nested lists or an array as a tensor of float32; a dense tensor of real numbers as it is.

    Raises: InterventionError for anything else.
    """
    if not isinstance(value, Tensor):
        try:
            value = torch.tensor(value, dtype=None if hasattr(value, "dtype") else torch.float32)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InterventionError(
                f"a value is a number, a list of numbers, a tensor or a capture; found {reprlib.repr(value)}."
            ) from error
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in _DTYPES or value.layout != torch.strided or value.is_meta:
        raise InterventionError(
            f"a value must be a dense tensor of real numbers; found {dtype}, {value.layout}, on {value.device}."
        )
    if not value.numel():
        raise InterventionError(f"the value has no elements: its shape is {tuple(value.shape)}.")
    return torch.as_tensor(value).detach()


def to_stored(value: Tensor) -> dict[str, Any]:
    """A tensor as JSON, bit-exact."""
    value = value.cpu().contiguous()
    data = base64.b64encode(value.reshape(-1).view(torch.uint8).numpy().tobytes()).decode()
    return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape), "base64": data}


def from_stored(stored: Any) -> Tensor:
    """The tensor that `to_stored` wrote. Raises: InterventionError if the fields are damaged or contradict another."""
    if not isinstance(stored, dict) or set(stored) != {"dtype", "shape", "base64"}:
        raise InterventionError(f"a value has dtype, shape and base64; found {reprlib.repr(stored)}.")
    dtype = _DTYPES.get(stored["dtype"]) if isinstance(stored["dtype"], str) else None
    if dtype is None:
        raise InterventionError(f"a value's dtype is {', '.join(_DTYPES)}; found {reprlib.repr(stored['dtype'])}.")
    shape = stored["shape"]
    if not isinstance(shape, list) or len(shape) > _MOST_AXES or not all(type(n) is int and n > 0 for n in shape):
        raise InterventionError(f"a value's shape is a list of positive numbers, found {reprlib.repr(shape)}.")
    try:
        data = bytearray(base64.b64decode(stored["base64"], validate=True))
    except (TypeError, ValueError) as error:
        raise InterventionError(f"a value's numbers are not base64: {reprlib.repr(stored['base64'])}.") from error
    if len(data) != prod(shape) * dtype.itemsize:
        raise InterventionError(
            f"a value of shape {reprlib.repr(shape)} and {stored['dtype']} has {reprlib.repr(prod(shape))} numbers "
            f"of {dtype.itemsize} bytes; found {len(data)} bytes."
        )
    return torch.frombuffer(data, dtype=dtype).reshape(shape)


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as text, three or more consecutive ones as a range: "3, 5-8"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(parts)
