"""Box heads, which classify proposals and refine their boxes, in one stage or a cascade."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine.errors import RefineError
from refine.modeling.config import BoxHeadConfig
from refine.modeling.norms import conv_norm
from refine.modeling.per_class import PerClassLinear
from refine.modeling.sampling import match, sample
from refine.ops.boxes import Weights, clip_boxes, decode_boxes, encode_boxes, is_nonempty, nms
from refine.ops.distributed import mean_over_processes
from refine.ops.roi import Sampling, roi_align_levels, to_rois
from refine.structures import Instances, Targets

# Shape letters: N boxes of all images, K thing classes (index K is background), C channels.


@dataclass
class SampledBoxes:
    """Sampled boxes of one image with their targets.

    Attributes:
        boxes: Tensor[n, 4] in pixels, detached.
        labels: Tensor[n] int64, 0..K-1, or K for background.
        matched: Tensor[n] int64, index of the instance that a positive box is matched to.
        num_things: number K of thing classes.
    """

    boxes: Tensor
    labels: Tensor
    matched: Tensor
    num_things: int

    @property
    def is_positive(self) -> Tensor:
        return self.labels < self.num_things

    def positives(self) -> SampledBoxes:
        """Return the boxes that are matched to an instance."""
        return self[torch.nonzero(self.is_positive).squeeze(1)]

    def __getitem__(self, index: Tensor) -> SampledBoxes:
        return SampledBoxes(self.boxes[index], self.labels[index], self.matched[index], self.num_things)


class BoxHead(nn.Module):
    """Box head: convolutions and fully connected layers that predict a class and a box per proposal.

    Args:
        config: widths and norm.
        channels: number C of FPN channels.
        num_things: number K of thing classes.
    """

    def __init__(self, config: BoxHeadConfig, channels: int, num_things: int) -> None:
        super().__init__()
        convs: list[nn.Module] = []
        for _ in range(config.num_convs):
            convs.append(conv_norm(channels, config.conv_channels, norm=config.norm, of_boxes=True))
            channels = config.conv_channels
        self.convs = nn.Sequential(*convs)
        width = channels * config.pool_size**2
        layers: list[nn.Module] = []
        for _ in range(config.num_fcs):
            layer = nn.Linear(width, config.fc_channels)
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.ReLU(inplace=True)]
            width = config.fc_channels
        self.fcs = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, num_things + 1)
        self.regressor = PerClassLinear(width, 4 if config.class_agnostic else 4 * num_things)
        for layer, std in ((self.classifier, 0.01), (self.regressor, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Compute class logits, Tensor[N, K+1], and deltas, Tensor[N, 4] or [N, 4K], of Tensor[N, C, 7, 7]."""
        x = self.fcs(self.convs(pooled).flatten(1))
        return self.classifier(x), self.regressor(x)


class BoxHeads(nn.Module):
    """One box head, or a cascade with one head per IoU, each of which refines the boxes of the previous one.

    Args:
        config: stages, widths, sampling and test thresholds.
        channels: number C of FPN channels.
        num_things: number K of thing classes.
        sampling: RoIAlign settings.
        share_gradient: whether the FPN receives the mean of the stages' gradients instead of their sum [d2].
    """

    def __init__(
        self,
        config: BoxHeadConfig,
        channels: int,
        num_things: int,
        sampling: Sampling,
        share_gradient: bool = False,
    ) -> None:
        super().__init__()
        if len(config.ious) > 1 and not config.class_agnostic:
            raise RefineError("box_head.class_agnostic is false; set it to true for a cascade")
        self.config = config
        self.num_things = num_things
        self.sampling = sampling
        self.share_gradient = share_gradient
        self.stages = nn.ModuleList(BoxHead(config, channels, num_things) for _ in config.ious)

    def weights(self, stage: int) -> Weights:
        """Return the delta weights of a stage: (10, 10, 5, 5), times 2 and 3 in later stages of a cascade."""
        factor = float(stage + 1)
        return (10 * factor, 10 * factor, 5 * factor, 5 * factor)

    @torch.no_grad()
    def sample(self, proposals: Sequence[Tensor], targets: Sequence[Targets]) -> list[SampledBoxes]:
        """Add the true boxes to the proposals, label them at the first IoU, and sample.

        Args:
            proposals: proposed boxes in pixels, Tensor[n, 4] per image.
            targets: ground truth of the images; crowd instances are never positive, and proposals that lie mostly
                inside a crowd region are not negative either.
        """
        sampled = []
        for boxes, target in zip(proposals, targets, strict=True):
            boxes = torch.cat([boxes, target.boxes[~target.iscrowd]])
            kind, labelled = self._label(boxes, target, self.config.ious[0])
            positive, negative = sample(kind, self.config.samples, self.config.positive_fraction)
            sampled.append(labelled[torch.cat([positive, negative])])
        return sampled

    def _label(self, boxes: Tensor, target: Targets, iou: float) -> tuple[Tensor, SampledBoxes]:
        """Match boxes, Tensor[n, 4], at `iou`; return 1, 0 or -1 for each (see `match`), and their targets."""
        kind, matched = match(boxes, target, iou, iou)
        labels = torch.full_like(kind, self.num_things)
        if len(target):
            labels = torch.where(kind == 1, target.labels[matched], labels)
        return kind, SampledBoxes(boxes, labels, matched, self.num_things)

    def stage_loss(
        self,
        stage: int,
        pyramid: Sequence[Tensor],
        samples: Sequence[SampledBoxes],
        targets: Sequence[Targets],
    ) -> tuple[dict[str, Tensor], list[Tensor], list[SampledBoxes]]:
        """Compute the losses of one stage on its samples, and the samples of the next stage.

        Args:
            stage: index of the stage, 0..len(ious)-1.
            pyramid: P2..P5.
            samples: samples of each image.
            targets: ground truth of the images.

        Returns:
            losses: `loss_cls_t` (cross-entropy) and `loss_box_t` (L1 of positives), t = stage + 1, both divided by
                the number of samples.
            probabilities: class probabilities of the samples, Tensor[n, K+1] per image, detached.
            next samples: in a cascade the refined boxes, clipped and labelled at the next IoU, without empty boxes
                and background in a crowd region; after the last stage, `samples`.
        """
        boxes = torch.cat([s.boxes for s in samples])
        labels = torch.cat([s.labels for s in samples])
        logits, deltas = self._run(stage, pyramid, [s.boxes for s in samples])
        logits, deltas = logits.float(), deltas.float()
        positive = torch.nonzero(labels < self.num_things).squeeze(1)
        truth = torch.cat(
            [t.boxes[s.matched] if len(t) else s.boxes for s, t in zip(samples, targets, strict=True)]
        )
        box_targets = encode_boxes(boxes[positive], truth[positive], self.weights(stage))
        moved = deltas[positive].unflatten(1, (-1, 4))
        own = torch.zeros_like(positive) if self.config.class_agnostic else labels[positive]
        moved = moved[torch.arange(len(positive), device=moved.device), own]  # the box of the true class
        count = mean_over_processes(torch.full((), float(len(labels)), device=labels.device))
        losses = {
            f"loss_cls_{stage + 1}": F.cross_entropy(logits, labels, reduction="sum") / count,
            f"loss_box_{stage + 1}": F.l1_loss(moved, box_targets, reduction="sum") / count,
        }
        sizes = [len(s.boxes) for s in samples]
        probabilities = list(logits.detach().softmax(1).split(sizes))
        if stage + 1 == len(self.stages):
            return losses, probabilities, list(samples)
        refined = decode_boxes(deltas.detach(), boxes, self.weights(stage)).split(sizes)
        following = []
        for image_boxes, target in zip(refined, targets, strict=True):
            image_boxes = clip_boxes(image_boxes, target.size)
            image_boxes = image_boxes[is_nonempty(image_boxes)]
            kind, labelled = self._label(image_boxes, target, self.config.ious[stage + 1])
            following.append(labelled[torch.nonzero(kind >= 0).squeeze(1)])
        return losses, probabilities, following

    def _run(self, stage: int, pyramid: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Pool features and run one head; return logits, Tensor[N, K+1], and deltas."""
        pooled = roi_align_levels(pyramid, to_rois(boxes), self.config.pool_size, self.sampling)
        if self.share_gradient and pooled.requires_grad:
            pooled.register_hook(lambda gradient: gradient / len(self.stages))
        return self.stages[stage](pooled)

    @torch.no_grad()
    def predict(
        self,
        pyramid: Sequence[Tensor],
        proposals: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        min_score: float = 0.0,
    ) -> tuple[list[Instances], Tensor]:
        """Detect objects.

        All stages of a cascade run; class probabilities are averaged over them. Boxes are clipped to the image,
        thresholded and suppressed per class. Empty boxes do not count among `max_detections`, as in torchvision;
        in detectron2 they do. Boxes that are not finite are removed first, so that training under fp16 can
        continue.

        Args:
            pyramid: P2..P5.
            proposals: proposed boxes in pixels, Tensor[n, 4] per image.
            image_sizes: (height, width) of the unpadded images in pixels.
            min_score: minimum score, 0-1, of the detections to return. Others take no part in NMS, in which they
                could not suppress any of these.

        Returns:
            Detections of each image by decreasing score, and Tensor[B] bool, whether all outputs were finite.
        """
        boxes, counts = list(proposals), [len(p) for p in proposals]
        scores, finite = [], []
        for stage in range(len(self.stages)):
            if stage > 0:
                boxes = [clip_boxes(b, size) for b, size in zip(boxes, image_sizes, strict=True)]
            logits, deltas = self._run(stage, pyramid, boxes)
            scores.append(logits.float().softmax(1))
            decoded = decode_boxes(deltas, torch.cat(boxes), self.weights(stage))
            finite += [logits.isfinite().all(1), deltas.isfinite().all(1), decoded.isfinite().all(1)]
            boxes = list(decoded.split(counts))
        probabilities = torch.stack(scores).mean(0).split(counts)
        found = [
            self._detect(b, p[:, :-1], size, min_score)
            for b, p, size in zip(boxes, probabilities, image_sizes, strict=True)
        ]
        return found, torch.stack([f.all() for f in torch.stack(finite).all(0).split(counts)])

    def _detect(self, boxes: Tensor, scores: Tensor, size: tuple[int, int], min_score: float = 0.0) -> Instances:
        """Apply score thresholds, NMS per class and `max_detections` to boxes [n, 4 or 4K] and scores [n, K]."""
        finite = boxes.isfinite().all(1) & scores.isfinite().all(1)
        boxes = clip_boxes(boxes, size).unflatten(1, (-1, 4)).expand(-1, self.num_things, -1)  # n×K×4
        enough = (scores > self.config.score_threshold) & (scores >= min_score)
        row, label = torch.nonzero(enough & finite[:, None], as_tuple=True)
        boxes, scores = boxes[row, label], scores[row, label]
        keep = nms(boxes, scores, label, self.config.nms)
        keep = keep[is_nonempty(boxes[keep])][: self.config.max_detections]
        return Instances(size, boxes[keep], scores[keep], label[keep])
