"""The occlusion head on the overlapping pairs of one image, for `torch.export`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from refine.export.network import Output
from refine.modeling.occlusion import OcclusionHead


def evaluate(head: OcclusionHead, output: Output, index: Tensor, labels: Tensor, pairs: Tensor) -> Tensor:
    """Return O(i, j) of the pairs, Tensor[K, K] float32, and 1/2 elsewhere; see `OcclusionHead.predict`.

    Args:
        head: occlusion head.
        output: output of the network.
        index: index of the K instances among the detections, Tensor[K] int64.
        labels: class of each instance, Tensor[K] int64.
        pairs: Tensor[K, K] bool.
    """
    count = index.shape[0]
    # The last instance has no pixels; paired with itself it keeps the batch from being empty.
    front, back = torch.nonzero(pairs | (torch.eye(count) * (torch.arange(count) == count - 1) > 0), as_tuple=True)
    parts = []
    if "feature" in head.config.cues:
        parts.append(output.appearance)
    if "mask" in head.config.cues:
        parts.append(F.max_pool2d(output.masks[:, None], output.masks.shape[2] // head.pool_size))
    maps = torch.cat(parts, 1)[index]
    x = F.relu(head.of_front(maps)[front] + head.of_back(maps)[back])
    for conv in head.convs:
        x = F.relu(conv(x))
    x = x.flatten(1)
    if "label" in head.config.cues:
        one_hots = (labels[:, None] == torch.arange(head.num_things)).to(x.dtype)
        x = torch.cat([x, one_hots[front], one_hots[back]], 1)
    values = torch.sigmoid(head.predictor(F.relu(head.fc2(F.relu(head.fc1(x)))))[:, 0])
    return torch.full((count * count,), 0.5).scatter(0, front * count + back, values).view(count, count)
