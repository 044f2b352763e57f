"""Pairwise occlusion head, which predicts the front one of two overlapping instances (docs/method.md; Table 6)."""

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
from refine.ops.order import common_pixels, match_masks, ordered_pairs, true_false_pairs
from refine.structures import VOID, Instances, Targets

# Shape letters: N instances, P ordered pairs, C feature channels, S = 14, K thing classes.

CPU_AT_ONCE, GPU_AT_ONCE = 128, 512
"""Number of pairs per batch at test, which limits the memory."""


class OcclusionHead(nn.Module):
    """Head that predicts O(i, j), the probability that i lies in front of j, from masks, features and classes.

    The maps of both instances are concatenated and pass four 3×3 convolutions (the last with stride 2); the one-hot
    classes of both are appended before three fully connected layers. The first convolution is written as the sum of
    one over i and one over j, which is the same function, so that it is computed once per instance instead of once
    per pair.

    Args:
        config: cues and widths.
        in_channels: number C of feature channels.
        num_things: number K of thing classes.
        pool_size: side S of the maps.

    Raises:
        RefineError: the cues include neither masks nor features.
    """

    def __init__(self, config: OcclusionConfig, in_channels: int, num_things: int, pool_size: int = 14) -> None:
        super().__init__()
        if not {"mask", "feature"} & set(config.cues):
            raise RefineError(f"occlusion.cues is {config.cues}; add 'mask', 'feature' or both")
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
        """Compute the logits of O(i, j).

        Args:
            instances: N instances with the fields that the cues need.
            pairs: ordered pairs (i, j), Tensor[P, 2] int64.

        Returns:
            Tensor[P].

        Raises:
            RefineError: `roi_masks` or `features` are missing.
        """
        maps = self._maps(instances)
        return self._of_pairs(self.of_front(maps), self.of_back(maps), instances.labels, pairs)

    def _of_pairs(self, front: Tensor, back: Tensor, labels: Tensor, pairs: Tensor) -> Tensor:
        """Compute `forward` from the results of the first convolution, Tensor[N, width, S, S] each."""
        one, other = pairs.unbind(1)
        x = F.relu(front[one] + back[other])  # P×width×S×S
        for conv in self.convs:
            x = F.relu(conv(x))
        x = x.flatten(1)
        if "label" in self.config.cues:
            x = torch.cat([x, F.one_hot(labels[pairs], self.num_things).flatten(1).to(x.dtype)], 1)
        return self.predictor(F.relu(self.fc2(F.relu(self.fc1(x)))))[:, 0]

    def _maps(self, instances: Instances) -> Tensor:
        """Stack the spatial cues of each instance, Tensor[N, C + 1, S, S]; masks are max-pooled from 28 to 14."""
        parts = []
        for cue, name in (("feature", "features"), ("mask", "roi_masks")):
            value = getattr(instances, name)
            if cue in self.config.cues and value is None:
                raise RefineError(
                    f"instances.{name} is missing: this occlusion head needs {', '.join(self.config.cues)}; "
                    f"give {name}, or use a head with other cues"
                )
            if cue in self.config.cues:
                parts.append(value if cue == "feature" else F.adaptive_max_pool2d(value, self.pool_size)[:, None])
        weight = self.of_front.weight
        return torch.cat([part.to(weight.dtype) for part in parts], 1)

    @torch.no_grad()
    def predict(self, instances: Instances, pairs: Tensor) -> Tensor:
        """Compute O of the given pairs in both orders; `refine.fuse(occlusion=…)` calls this method.

        Args:
            instances: N instances with the fields that the cues need.
            pairs: pairs of indices, Tensor[P, 2] int64, each pair once.

        Returns:
            Tensor[N, N] float32, 0-1; 1/2 for all other pairs.
        """
        occlusion = instances.scores.new_full((len(instances), len(instances)), 0.5, dtype=torch.float32)
        if not len(pairs):
            return occlusion
        involved, index = torch.unique(pairs, return_inverse=True)  # the others need no convolution
        some, both = instances[involved], torch.cat([index, index.flip(1)])
        at_once = CPU_AT_ONCE if pairs.device.type == "cpu" else GPU_AT_ONCE
        with span("occlusion"):
            maps = self._maps(some)
            front, back = self.of_front(maps), self.of_back(maps)
            for part in both.split(at_once):
                one, other = involved[part].unbind(1)
                logits = self._of_pairs(front, back, some.labels, part)
                occlusion[one, other] = torch.sigmoid(logits.float())
        return occlusion


def contested_pairs(
    instances: Instances, targets: Targets, pair_overlap: float, false_pairs: bool = False, limit: int = 128
) -> Tensor:
    """Return the training pairs: overlapping detections whose order the panoptic ground truth determines.

    OCFusion is trained on predictions too, BCC-Net on overlapping instance annotations.

    Args:
        instances: detections with `roi_masks`, in pixels of the targets.
        targets: ground truth of the image.
        pair_overlap: minimum overlap ρ as a fraction of either mask.
        false_pairs: whether to add the pairs of a true and a false detection (see `detection_pairs`).
        limit: maximum number of pairs, which are sampled at random if there are more [OCFusion: 128].

    Returns:
        Tensor[P, 2] int64, (front, back).
    """
    assert instances.roi_masks is not None
    masks = paste_masks(instances.roi_masks.float(), instances.boxes, targets.size).flatten(1)
    pairs, false = detection_pairs(masks, instances.labels, targets, pair_overlap)
    if false_pairs:
        pairs = torch.cat([pairs, false])
    if len(pairs) > limit:
        pairs = pairs[torch.randperm(len(pairs), device=pairs.device)[:limit]]
    return pairs


def detection_pairs(masks: Tensor, labels: Tensor, targets: Targets, pair_overlap: float) -> tuple[Tensor, Tensor]:
    """Return the overlapping pairs of detections whose order the ground truth determines.

    As in PQ, a detection without an object counts as false unless more than half of it lies on void or on crowds of
    its class.

    Args:
        masks: Tensor[N, H·W] bool, masks of the detections at the size of the targets.
        labels: Tensor[N] int64, class of each detection.
        targets: ground truth of the image, with M objects.
        pair_overlap: minimum overlap ρ as a fraction of either mask.

    Returns:
        Pairs of two true detections, and pairs of a true and a false one, each Tensor[n, 2] int64, (front, back);
        see `refine.ops.order.ordered_pairs` and `true_false_pairs`.
    """
    objects, labelled = targets.masks.flatten(1), targets.sem_seg.flatten() != VOID
    matched, iou = match_masks(masks, labels, objects, targets.labels, targets.iscrowd)
    crowds = objects & targets.iscrowd[:, None] & labelled
    of_class = labels[:, None] == targets.labels
    unlabelled = masks.sum(1) - common_pixels(masks, labelled[None])[:, 0]
    unlabelled = unlabelled + (common_pixels(masks, crowds) * of_class).sum(1)
    unknown = 2 * unlabelled > masks.sum(1)
    true = ordered_pairs(masks, matched, targets.owner.flatten(), labelled, pair_overlap)
    return true, true_false_pairs(masks, matched, iou, unknown, pair_overlap)


def occlusion_loss(head: OcclusionHead, instances: Sequence[Instances], pairs: Sequence[Tensor]) -> Tensor:
    """Return the mean binary cross-entropy over the pairs of all images, each in both orders.

    Args:
        head: occlusion head to train.
        instances: instances of each image.
        pairs: (front, back) pairs of each image, Tensor[P, 2] int64.

    Returns:
        Scalar; 0 with a graph if there are no pairs.
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
