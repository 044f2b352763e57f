"""torchvision's compiled operators, without importing torchvision where its Python code is not needed.

`import torchvision` takes longer than `import torch`, because it imports torch._dynamo. A prediction needs only the
compiled operators, which are in one library. Gradients are registered by torchvision's Python code.
"""

from __future__ import annotations

import functools
import sys
from contextlib import suppress
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder
from importlib.util import find_spec

import torch
from torch import Tensor

_LIBRARIES = ("_C_stable", "_C")
"""Names of the library, in torchvision 0.29 and before."""


def nms(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Compute `torchvision.ops.nms`: Tensor[N, 4], Tensor[N] -> Tensor[K] int64, by decreasing score."""
    _load(boxes, scores)
    return torch.ops.torchvision.nms(boxes, scores.to(boxes.dtype), iou)  # which autocast may have rounded


def roi_align(feature: Tensor, rois: Tensor, bins: int, scale: float, sampling: int, aligned: bool) -> Tensor:
    """Compute `torchvision.ops.roi_align`.

    Args:
        feature: Tensor[B, C, h, w] float32 or float64.
        rois: Tensor[N, 5] of the same dtype, image index and box.
        bins: number of bins per side.
        scale: map pixels per unit of the boxes.
        sampling: samples per bin and axis; 0 adapts to the box size.
        aligned: whether boxes are shifted by half a pixel to the pixel centres.

    Returns:
        Tensor[N, C, bins, bins].
    """
    _load(feature, rois)
    if torch.are_deterministic_algorithms_enabled() and feature.requires_grad:
        # On a GPU the operator's gradient then raises; torchvision's function has another one, in Python.
        from torchvision.ops import roi_align as differentiable

        return differentiable(feature, rois, bins, scale, sampling, aligned)
    return torch.ops.torchvision.roi_align(feature, rois, scale, bins, bins, sampling, aligned)


def _load(*inputs: Tensor) -> None:
    """Make the operators available, with their gradients, or their shapes for torch.compile, if needed."""
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    if torch.compiler.is_compiling() or needs_gradient:
        import torchvision  # noqa: F401
    else:
        _load_library()


@functools.cache
def _load_library() -> None:
    """Load the library alone, or import torchvision if it is not found or lacks an operator."""
    spec = None if "torchvision" in sys.modules else find_spec("torchvision")
    for folder in (spec and spec.submodule_search_locations) or ():
        finder = FileFinder(folder, (ExtensionFileLoader, EXTENSION_SUFFIXES))
        found = next((file for name in _LIBRARIES if (file := finder.find_spec(name))), None)
        if found is not None and found.origin is not None:
            with suppress(OSError):  # torchvision then reports it
                torch.ops.load_library(found.origin)
    if not all(hasattr(torch.ops.torchvision, name) for name in ("nms", "roi_align")):
        import torchvision  # noqa: F401
