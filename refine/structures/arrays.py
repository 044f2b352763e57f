"""Conversion of array-like values to tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refine.errors import RefineError

ArrayLike = Tensor | NDArray[Any]


def as_tensor(name: str, value: Any) -> Tensor:
    """Convert a NumPy array, or nested lists of numbers, to a tensor.

    Memory is shared where possible. Unsigned integers wider than 8 bits become int64, because torch supports
    few operations on them.

    Args:
        name: name of the field or argument, for error messages.
        value: array, tensor, number or nested lists of numbers.

    Raises:
        TypeError: the value is none of these.
    """
    if isinstance(value, Tensor):
        return value.long() if value.dtype in (torch.uint16, torch.uint32, torch.uint64) else value
    refused = TypeError(f"{name}: expected an array or a tensor, got {type(value).__name__}")
    if not isinstance(value, np.ndarray | np.generic | list | tuple | int | float):
        raise refused
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise refused from error
    if array.dtype.kind not in "biuf":
        raise refused
    wide = array.dtype.kind == "u" and array.dtype.itemsize > 1
    dtype = np.dtype(np.int64) if wide else array.dtype.newbyteorder("=")
    if dtype != array.dtype or not array.flags.writeable or min(array.strides, default=0) < 0:
        array = np.array(array, dtype, order="C")  # torch accepts none of these
    return torch.from_numpy(array)


def as_masks(name: str, value: Any) -> Tensor:
    """Convert masks of 0 and 1 (or 0 and 255 in uint8) of any dtype to Tensor[...] bool.

    Raises:
        TypeError: the value is not an array.
        RefineError: the masks contain other values, such as probabilities.
    """
    masks = as_tensor(name, value)
    if masks.dtype == torch.bool:
        return masks
    inside = masks != 0
    top = 255 if masks.dtype == torch.uint8 and bool((masks == 255).any()) else 1
    wrong = inside & (masks != top)
    if bool(wrong.any()):
        raise RefineError(
            f"{name}: expected 0 and 1, got {masks.dtype} with other values, first {masks[wrong][0].item():.4g}; "
            "threshold the masks first, for example `probabilities >= 0.5`"
        )
    return inside
