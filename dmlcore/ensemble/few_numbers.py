"""Arithmetic on a few numbers, such as one for each loss: by NumPy on the CPU, where an operation of PyTorch takes many times
as long as what it computes, and by PyTorch elsewhere. Both give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Arithmetic(NamedTuple):
    """What NumPy and PyTorch name differently. Operators serve both.

    Attributes:
        number: a constant or one number, in the precision of the numbers. PyTorch's is as it was given: it takes the precision
            of what it meets, and nothing asks the device for its value.
        at_least, at_most: the larger or the smaller of each number and a bound. NaN stays.
        where: as `torch.where`.
        isfinite: as `torch.isfinite`.
        total: the sum of all, in the order in which PyTorch adds.
    """

    number: Callable[[Any], Any]
    at_least: Callable[[Any, Any], Any]
    at_most: Callable[[Any, Any], Any]
    where: Callable[[Any, Any, Any], Any]
    isfinite: Callable[[Any], Any]
    total: Callable[[Any], Any]


def _total(numbers: np.ndarray) -> Any:
    # of more than four numbers both have an order of their own
    return numbers.sum() if numbers.size <= 4 else torch.from_numpy(numbers).sum().numpy()


_BY_NUMPY = Arithmetic(np.float32, np.maximum, np.minimum, np.where, np.isfinite, _total)
_BY_TORCH = Arithmetic(lambda number: number, torch.clamp_min, torch.clamp_max, torch.where, torch.isfinite, torch.sum)


def arithmetic(*tensors: Tensor) -> tuple[Arithmetic, list[Any]]:
    """How to compute with tensors without history, and what to do it with: the tensors, or arrays that are their memory. What
    is written into `array[...]` is in the tensor."""
    if torch.compiler.is_compiling():
        return _BY_TORCH, list(tensors)
    for tensor in tensors:
        if not (type(tensor) is Tensor and tensor.is_cpu and tensor.dtype in (torch.float32, torch.int64)):
            return _BY_TORCH, list(tensors)
    return _BY_NUMPY, [tensor.numpy() for tensor in tensors]
