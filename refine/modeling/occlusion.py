"""The pairwise occlusion head: which of two overlapping instances lies in front (docs/method.md; Table 6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine.errors import RefineError
from refine.modeling.config import OcclusionConfig
from refine.modeling.spans import span
from refine.ops.distributed import mean_over_processes
from refine.ops.masks import paste_masks
from refine.ops.order import match_masks, ordered_pairs
from refine.structures import VOID, Instances, Targets

# Shape letters: N instances, P ordered pairs, C feature channels, S = 14, K thing classes.

AT_ONCE = 128
"""Pairs that go through the convolutions together at test; bounds the memory."""


class OcclusionHead(nn.Module):
    """O(i, j): the probability that i lies in front of j, from the masks, features and classes of both.

    Both instances' maps are concatenated, go through four 3×3 convolutions (the last with stride 2), are
    joined by both classes' one-hots, and go through three fully connected layers. The first convolution is
    written as the sum of one over i and one over j, which is the same function, so that it is computed
    once per instance and not per pair.

    Args:
        config: cues and widths.
        in_channels: C.
        num_things: K.
        pool_size: S.

    Raises:
        RefineError: neither masks nor features among the cues.
    """

    def __init__(self, config: OcclusionConfig, in_channels: int, num_things: int, pool_size: int = 14) -> None:
        super().__init__()
        if not {"mask", "feature"} & set(config.cues):
            raise RefineError(f"occlusion.cues is {config.cues}; name 'mask', 'feature' or both")
        self.config, self.num_things, self.pool_size = config, num_things, pool_size
        channels = in_channels * ("feature" in config.cues) + ("mask" in config.cues)
        width = config.conv_channels
        self.of_front = nn.Conv2d(channels, width, 3, padding=1)
        self.of_back = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, stride, padding=1) for stride in (1, 1, 2))
        for conv in (self.of_front, self.of_back, *self.convs):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        pooled = -(-pool_size // 2)
        one_hots = 2 * num_things * ("label" in config.cues)
        self.fc1 = nn.Linear(width * pooled**2 + one_hots, config.fc_channels)
        self.fc2 = nn.Linear(config.fc_channels, config.fc_channels)
        self.predictor = nn.Linear(config.fc_channels, 1)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)

    def forward(self, instances: Instances, pairs: Tensor) -> Tensor:
        """Logits of O(i, j).

        Args:
            instances: N of them, with what the cues need.
            pairs: Tensor[P, 2] int64, (i, j) each.

        Returns:
            Tensor[P].

        Raises:
            RefineError: `roi_masks` or `features` are missing.
        """
        maps = self._maps(instances)
        front, back = pairs.unbind(1)
        x = F.relu(self.of_front(maps)[front] + self.of_back(maps)[back])  # P×width×S×S
        for conv in self.convs:
            x = F.relu(conv(x))
        x = x.flatten(1)
        if "label" in self.config.cues:
            one_hots = F.one_hot(instances.labels, self.num_things).to(x.dtype)
            x = torch.cat([x, one_hots[front], one_hots[back]], 1)
        return self.predictor(F.relu(self.fc2(F.relu(self.fc1(x)))))[:, 0]

    def _maps(self, instances: Instances) -> Tensor:
        """The spatial cues of each instance: Tensor[N, C + 1, S, S]; masks 28 → 14 by their maximum."""
        parts = []
        for cue, name in (("feature", "features"), ("mask", "roi_masks")):
            value = getattr(instances, name)
            if cue in self.config.cues and value is None:
                raise RefineError(
                    f"instances.{name} is missing: this occlusion head looks at {', '.join(self.config.cues)}; "
                    f"give {name}, or use a head with other cues"
                )
            if cue in self.config.cues:
                parts.append(value if cue == "feature" else F.adaptive_max_pool2d(value, self.pool_size)[:, None])
        weight = self.of_front.weight
        return torch.cat([part.to(weight.dtype) for part in parts], 1)

    @torch.no_grad()
    def predict(self, instances: Instances, pairs: Tensor) -> Tensor:
        """O of the pairs given, in both orders: what `refine.fuse(occlusion=…)` calls.

        Args:
            instances: N of them.
            pairs: Tensor[P, 2] int64, each pair once.

        Returns:
            Tensor[N, N] float32, 0-1; 1/2 where no pair asks.
        """
        occlusion = instances.scores.new_full((len(instances), len(instances)), 0.5, dtype=torch.float32)
        if not len(pairs):
            return occlusion
        asked, index = torch.unique(pairs, return_inverse=True)  # the others need no convolution
        some, both = instances[asked], torch.cat([index, index.flip(1)])
        with span("occlusion"):
            for part in both.split(AT_ONCE):
                front, back = asked[part].unbind(1)
                occlusion[front, back] = torch.sigmoid(self(some, part).float())
        return occlusion


def contested_pairs(instances: Instances, targets: Targets, pair_overlap: float, limit: int = 128) -> Tensor:
    """Training pairs: overlapping detections whose order the panoptic ground truth decides.

    OCFusion learns from predictions, too; BCC-Net from overlapping instance annotations.

    Args:
        instances: detections with `roi_masks`, in the pixels of the targets.
        targets: ground truth of the image.
        pair_overlap: ρ, share of either mask (see `refine.ops.order.ordered_pairs`).
        limit: most pairs; a random choice if there are more [OCFusion: 128].

    Returns:
        Tensor[P, 2] int64, (front, back).
    """
    assert instances.roi_masks is not None
    masks = paste_masks(instances.roi_masks.float(), instances.boxes, targets.size).flatten(1)
    matched = match_detections(masks, instances.labels, targets)
    pairs = ordered_pairs(masks, matched, targets.owner.flatten(), targets.sem_seg.flatten() != VOID, pair_overlap)
    if len(pairs) > limit:
        pairs = pairs[torch.randperm(len(pairs), device=pairs.device)[:limit]]
    return pairs


def match_detections(masks: Tensor, labels: Tensor, targets: Targets) -> Tensor:
    """Object that each detection stands for, or -1: Tensor[N, H·W] bool, Tensor[N] int64 -> Tensor[N] int64."""
    return match_masks(masks, labels, targets.masks.flatten(1), targets.labels, targets.iscrowd)


def occlusion_loss(head: OcclusionHead, instances: Sequence[Instances], pairs: Sequence[Tensor]) -> Tensor:
    """Binary cross-entropy, mean over the pairs of all images, each in both orders.

    Args:
        head: what is trained.
        instances: of each image.
        pairs: Tensor[P, 2] int64, (front, back), of each image.

    Returns:
        Scalar; 0, with a graph, where there is no pair.
    """
    total = torch.stack([parameter.sum() * 0 for parameter in head.parameters()]).sum()
    for image, some in zip(instances, pairs, strict=True):
        if len(some):
            logits = head(image, torch.cat([some, some.flip(1)])).float()
            truth = torch.ones_like(logits)
            truth[len(some) :] = 0
            total = total + F.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
    count = torch.tensor(2.0 * sum(len(some) for some in pairs), device=total.device)
    return total / mean_over_processes(count)
