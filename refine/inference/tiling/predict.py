"""Prediction of an image tile by tile, with the memory of a tile."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refine.errors import RefineError
from refine.files import MAX_PIXELS
from refine.formats.windows import ImageWindows
from refine.fusion.bands import FusedBands, PairScores, fuse_bands
from refine.fusion.config import HEADS, OWN_MERGE, Head
from refine.inference.limits import Limits
from refine.inference.predictor import GPU_BATCH, Predictor
from refine.inference.tiling.plan import Tiling, Window, check_scale, plan, resized_size, size_at
from refine.inference.tiling.resample import read_part
from refine.inference.tiling.scratch import SemanticFile
from refine.inference.tiling.stitch import Found, stitch
from refine.modeling.norms import SharedStatistics
from refine.networks.compose import Compose
from refine.networks.hub.network import HubNetwork
from refine.networks.native import NativeNetwork, Part
from refine.networks.network import Network
from refine.networks.onnx import OnnxNetwork
from refine.ops.masks import shared_areas
from refine.structures import Instances, Prediction

MEASURED, ROUNDS = 16, 2
"""Most windows on which statistics of normalisation are measured, and how often; see `SharedStatistics`."""
LARGE = 8
"""Multiple of the model's test size above which images are predicted in tiles."""
PROBE = 64
"""Side in pixels of the image that shows whether a network normalises over images."""
BAND = 256
"""Rows of a band of the fused map."""

ReadPart = Callable[[Window], Part]
"""Reads a window of the image."""


def predict_tiles(
    predictor: Predictor,
    image: ImageWindows,
    tiling: Tiling,
    *,
    name: str = "the image",
    limits: Limits | None = None,
    folder: str | Path | None = None,
    advance: Callable[[int, int], None] = lambda done, count: None,
) -> FusedBands:
    """Predict an image window by window, and fuse the windows into one panoptic map.

    Layers that normalise over the whole image use one set of statistics for all windows, measured on the image or,
    if it is large, on windows spread over it, so that only what lies beyond its border is missing to a window.

    Args:
        predictor: model, fusion rule and thresholds.
        image: reads windows of the image.
        tiling: size and overlap of the tiles, and scale.
        name: name of the image for messages.
        limits: records windows in which objects may be missing.
        folder: folder of temporary files of 6 bytes per pixel; None stands for the system's.
        advance: called after each batch of windows with the numbers of predicted windows and of all.

    Raises:
        RefineError: the image cannot be read, the scale is unknown or impossible; see also `check_tiles`.
        WriteError: the temporary files cannot be written.
    """
    network = copy.copy(predictor.network)  # the same modules, but another test size
    scale = _scale(network, image, tiling, name)
    if predictor.method == OWN_MERGE:
        raise RefineError(f"{name}: method {OWN_MERGE!r} merges whole images only; give another method with tiles")
    windows, threshold = plan(image.size, tiling, scale), predictor.fusion.score_threshold
    statistics, semantic, found = SharedStatistics(), SemanticFile(image.size, folder), list[Found]()
    # Networks that are not ours resize windows themselves.
    resized = resized_size(image.size, scale) if isinstance(network, NativeNetwork) else image.size
    read = partial(read_part, image, resized=resized)
    at_once = GPU_BATCH if predictor.device.type == "cuda" else 1
    if len(windows) > 1:
        _measure(statistics, network, read, windows, scale, at_once)
    with statistics.applied():
        for numbers, parts in _read_ahead(read, windows, at_once):
            for n, prediction in zip(numbers, _predict(network, parts, scale, threshold), strict=True):
                if limits is not None and name not in limits.full:
                    limits.add(name, replace(prediction, scale=1.0), threshold)  # the scale is what was asked for
                heads = predictor.fusion_heads(network)
                found.append(_found(prediction, n, windows[n], image.size, heads, predictor))
                _write_core(semantic, prediction, windows[n])
            advance(len(found), len(windows))
    stitched = stitch(found, windows, image.size)
    return fuse_bands(
        stitched.instances,
        semantic.read,
        BAND,
        categories=predictor.categories,
        method=predictor.method,
        occlusion=stitched.occlusion,
        ranking=stitched.ranking,
        config=predictor.fusion,
    )


def _scale(network: Network, image: ImageWindows, tiling: Tiling, name: str) -> float:
    """Return the scale of the windows; for the errors see `predict_tiles`."""
    check_tiles(network, name)
    scale = tiling.scale_for(image.mpp, name)
    check_scale(scale, image.size, name)
    if network.test_size is None and scale != 1:
        raise RefineError(f"{name}: a scale of {scale:g} is not possible; the model resizes images in its own way")
    return scale


def check_tiles(network: Network, name: str) -> None:
    """Raise RefineError if a network resizes every tile to a size of its own, so that objects change their scale.

    Args:
        network: network that is to predict tiles.
        name: name of the image, or the option, for the message.
    """
    if isinstance(network, OnnxNetwork):
        raise RefineError(f"{name}: an ONNX file resizes each tile itself; use the checkpoint it was exported from")
    if _resizes_itself(network):
        raise RefineError(f"{name}: this model resizes each tile itself; use one model of refine, or no tiles")


def check_resizable(network: Network, option: str) -> None:
    """Raise RefineError if a network resizes images to a size of its own, so that no option can choose it."""
    if isinstance(network, OnnxNetwork):
        raise RefineError(
            f"{option}: an ONNX file resizes images to the test size of its export; leave out {option}, or use the "
            f"checkpoint that it was exported from"
        )
    if network.test_size is None:
        raise RefineError(
            f"{option}: this model resizes images itself, as do several together; leave out {option}, or use one "
            f"model of refine"
        )


def _resizes_itself(network: Network) -> bool:
    """Return whether a network resizes images, and not by `test_size`."""
    if isinstance(network, Compose):  # its networks keep their test sizes
        return any(part.test_size is not None or _resizes_itself(part) for part in network.networks)
    return isinstance(network, OnnxNetwork | HubNetwork) and network.test_size is None


def is_large(size: tuple[int, int], predictor: Predictor, tiling: Tiling) -> bool:
    """Return whether an image of `size` (height, width) should be predicted in tiles.

    Resized to the model's test size it would be less than an eighth as large, and lose what is smaller than tens of
    pixels; or it has too many pixels to be decoded. No image is large for a network that refuses tiles.
    """
    if _resizes_itself(predictor.network):
        return False
    if size[0] * size[1] > MAX_PIXELS:
        return True
    test_size, scale = predictor.test_size, tiling.scale or 1.0
    return test_size is not None and (
        min(size) * scale > LARGE * test_size[0] or max(size) * scale > LARGE * test_size[1]
    )


@torch.inference_mode()
def _predict(network: Network, parts: Sequence[Part], scale: float, min_score: float) -> list[Prediction]:
    """Predict parts of one size at `scale`."""
    if network.test_size is not None:  # of a `NativeNetwork` only the ranking head needs it
        network.test_size = size_at(parts[0].size, scale)
    if isinstance(network, NativeNetwork):
        return network.predict_parts(parts, min_score)
    return network.predict([part.pixels for part in parts], min_score)


def _measure(
    statistics: SharedStatistics,
    network: Network,
    read: ReadPart,
    windows: Sequence[Window],
    scale: float,
    at_once: int,
) -> None:
    """Measure the statistics of layers that normalise over the whole image, if the network has some.

    What counts of a window is its core, so if all windows are measured, each pixel of the image counts once.
    """
    with statistics.measured():
        blank = torch.zeros(3, PROBE, PROBE, dtype=torch.uint8)
        _predict(network, [Part(blank, (PROBE, PROBE))], 1.0, 1.0)
    if not statistics:
        return
    chosen = [windows[n] for n in sorted(np.random.default_rng(0).permutation(len(windows))[:MEASURED])]
    statistics.reset()
    for n in range(ROUNDS):
        most = at_once if n else 1  # layers without statistics use those of the batch, which is to be one window
        with statistics.measured():
            for numbers, parts in _read_ahead(read, chosen, most):
                statistics.counted = [_core_share(chosen[n]) for n in numbers]
                _predict(network, parts, scale, 1.0)


def _core_share(window: Window) -> tuple[float, float, float, float]:
    """Return (top, left, bottom, right) of a window's core as fractions of the window's sides."""
    top, left, bottom, right = (np.array(window.core) - window.place[:2] * 2) / (window.size * 2)
    return top, left, bottom, right


def _read_ahead(read: ReadPart, windows: Sequence[Window], most: int) -> Iterator[tuple[list[int], list[Part]]]:
    """Yield the indices and the parts of batches of windows of one size, while a thread reads the next batch."""
    batches = []
    for _, group in groupby(range(len(windows)), key=lambda n: windows[n].resized_size):
        numbers = list(group)
        batches += [numbers[n : n + most] for n in range(0, len(numbers), most)]

    def read_batch(numbers: list[int]) -> list[Part]:
        return [read(windows[n]) for n in numbers]

    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(read_batch, batches[0])
        for numbers, after in zip(batches, [*batches[1:], None], strict=True):
            parts = following.result()
            if after is not None:
                following = reader.submit(read_batch, after)
            yield numbers, parts


def _found(
    prediction: Prediction,
    number: int,
    window: Window,
    size: tuple[int, int],
    heads: Mapping[Head, Any],
    predictor: Predictor,
) -> Found:
    """Move the detections of a window to the image, with what the fusion rule needs of the network's heads."""
    instances = prediction.instances[prediction.instances.scores >= predictor.fusion.score_threshold]
    runs = instances.mask_runs()
    shown = torch.nonzero(runs.areas() > 0)[:, 0]
    instances, runs = instances[shown], runs[shown]
    occlusion = ranking = None
    if HEADS.get(predictor.method) == "occlusion":
        pairs, _ = shared_areas(runs)
        one, other = pairs.unbind(1)
        matrix = heads["occlusion"](instances, pairs)
        occlusion = PairScores(pairs.cpu(), torch.stack([matrix[one, other], matrix[other, one]], 1).cpu())
    elif HEADS.get(predictor.method) == "ranking":
        ranking = heads["ranking"](instances).cpu()
    top, left, _, _ = window.place
    moved = Instances(
        size,
        boxes=instances.boxes.cpu() + torch.tensor([left, top] * 2),
        scores=instances.scores.cpu(),
        labels=instances.labels.cpu(),
        runs=runs.to("cpu").placed(top, left, size),
    )
    return Found(number, moved, occlusion, ranking)


def _write_core(semantic: SemanticFile, prediction: Prediction, window: Window) -> None:
    top, left, bottom, right = window.core
    first_row, first_column, _, _ = window.place
    rows, columns = slice(top - first_row, bottom - first_row), slice(left - first_column, right - first_column)
    semantic.write(top, left, prediction.sem_seg[rows, columns], prediction.sem_confidence[rows, columns])
