"""The network from a uint8 image to detections with masks and semantic logits, for `torch.export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refine.errors import RefineError
from refine.export.boxes import Detections, classify, detect, pool, pool_levels, propose, to_rois
from refine.export.layers import Frame, exportable
from refine.export.resize import apply_weights, resize_weights
from refine.modeling.detector import Detector
from refine.modeling.ibpp import STRIDE, Boxes
from refine.modeling.mask_head import add_semantics
from refine.modeling.model import PanopticModel
from refine.modeling.nanodet import NanoDetOutput
from refine.ops.roi import roi_flatten


@dataclass
class Output:
    """Network output for one image.

    Attributes:
        found: N detections.
        masks: Tensor[N, M, M], mask probabilities inside the boxes.
        appearance: Tensor[N, C, S, S], features of the occlusion head.
        sem_logits: Tensor[L, h, w] at stride 4 of the padded input.
        size: (height, width) of the unpadded network input in pixels, Tensor[2] int64.
    """

    found: Detections
    masks: Tensor
    appearance: Tensor
    sem_logits: Tensor
    size: Tensor


class ExportNetwork(nn.Module):
    """Network of one image of any size, which is resized to the test size first.

    Args:
        model: network; it is copied.
        test_size: (short, long) side in pixels that images are resized to.

    Raises:
        RefineError: a part of the network cannot be exported.
    """

    def __init__(self, model: PanopticModel, test_size: tuple[int, int]) -> None:
        super().__init__()
        if model.config.detector is not None and model.config.detector.scale != 1.0:
            raise RefineError(
                f"detector.scale is {model.config.detector.scale}: only 1 can be exported; set it to 1"
            )
        self.frame = Frame()
        self.model = exportable(model, self.frame)
        self.test_size = test_size

    def forward(self, image: Tensor, min_score: Tensor) -> Output:
        """Run the network.

        Args:
            image: Tensor[3, H, W] uint8 RGB.
            min_score: minimum score of detections that are used, Tensor[] float64; see `PanopticModel.predict`.
        """
        model = self.model
        size = self._network_size(image)
        self.frame.set(size)
        x = self._input(image, size)
        seen = None if model.detector is None else self._run_detector(model.detector, x)
        maps = model.backbone(x)
        if seen is not None and model.detector is not None and model.detector.config.features:
            maps = [torch.cat(pair, 1) for pair in zip(maps, seen.maps, strict=True)]
        pyramid = model.fpn(maps)
        features = self._semantic_features(pyramid[:4])
        if seen is None or model.detector is None:
            found = classify(model.box_heads, pyramid[:4], propose(model.rpn, pyramid, size), size)
        else:
            found = detect(model.detector, seen, size)
        if model.config.ibpp.iterations:
            min_score = min_score.clamp(max=model.config.ibpp.score_threshold)
        least = torch.minimum(min_score, found.scores.amax(0))  # at least one detection remains
        kept = torch.nonzero(found.scores >= least).squeeze(1)
        torch._check(kept.shape[0] >= 1)
        found = found[kept]
        return self._segment(pyramid[:4], features, found, size)

    def _network_size(self, image: Tensor) -> Tensor:
        """Return `network_size` of an image, Tensor[2] int64."""
        short, long = self.test_size
        size = torch.stack([torch.full((), n, dtype=torch.int64) for n in image.shape[1:]]).double()
        scale = torch.minimum(short / size.amin(0), long / size.amax(0))
        return (size * scale).round().long().clamp(min=1)

    def _input(self, image: Tensor, size: Tensor) -> Tensor:
        """Resize, normalise and pad an image: Tensor[3, H, W] uint8 -> Tensor[1, 3, 32 a, 32 b]."""
        model = self.model
        weights, valid = [], []
        for axis, length in enumerate(self.frame.size(1)):
            positions = torch.arange(length, dtype=torch.float64)
            pixels = torch.arange(image.shape[axis + 1], dtype=torch.float64)
            old = torch.full((), image.shape[axis + 1], dtype=torch.int64)
            weights.append(resize_weights(old, size[axis], positions, pixels))
            valid.append(positions < size[axis])
        x = apply_weights(image.float(), weights[0], weights[1])
        if model.config.channels == "BGR":
            x = x.flip(0)
        x = (x - model.pixel_mean[:, None, None]) / model.pixel_std[:, None, None]
        return torch.where(valid[0][:, None] & valid[1], x, 0.0)[None]

    def _run_detector(self, detector: Detector, x: Tensor) -> NanoDetOutput:
        """Run the detector on the input of the network, whose size suits it, in its own normalisation."""
        colours = x.flip(1) if detector.reverse else x
        output: NanoDetOutput = detector.network(colours * detector.gain + detector.offset)
        return output

    def _semantic_features(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Compute F_sem as `SemanticHead.features`."""
        total: Tensor | None = None
        for n, (level, x) in enumerate(zip(self.model.semantic_head.levels, pyramid, strict=True)):
            for block in level:  # type: ignore[attr-defined]
                x = block(x)
                if n > 0:
                    x = self.frame.within(x, _twice, 2)
            total = x if total is None else total + x
        assert total is not None
        return total

    def _segment(self, pyramid: Sequence[Tensor], features: Tensor, found: Detections, size: Tensor) -> Output:
        """Compute masks and semantics by T iterations, as `IBPP.boxes` and `IBPP.predict`."""
        model, ibpp = self.model, self.model.ibpp
        rois = to_rois(found.boxes)
        f_ins = pool_levels(pyramid, found.boxes, ibpp.pool_size, ibpp.sampling)
        boxes = Boxes(rois, found.labels, found.scores, f_ins)
        if ibpp.config.iterations and "f_sem" in ibpp.config.routes:
            f_sem = pool(features, rois, ibpp.pool_size, ibpp.sampling, STRIDE)
            boxes = Boxes(
                rois, found.labels, found.scores, *((f_ins, f_sem) if ibpp.balanced else (f_ins + f_sem,))
            )
        painted = torch.where(found.scores >= ibpp.config.score_threshold, found.scores, 0.0)
        source, iterations = model.semantic_head(features), ibpp.config.iterations
        masks = []
        for t in range(min(1, iterations), iterations + 1):
            masks.append(torch.sigmoid(self._instance_step(t, boxes, source)))
            if t > 0:
                hidden = self._semantic_step(t, rois, found.labels, painted, masks[-1], features)
                source = ibpp.next_logits(t, hidden, source)
        mean = sum(masks[1:], masks[0]) / len(masks)
        if ibpp.semantic_weight:
            probabilities = pool(source.softmax(1), rois, mean.shape[-1], ibpp.sampling, STRIDE)
            mean = add_semantics(mean, probabilities, found.labels, ibpp.semantic_weight)
        return Output(found, mean, boxes.appearance, source[0], size)

    def _instance_step(self, t: int, boxes: Boxes, source: Tensor) -> Tensor:
        """Compute `IBPP.instance_step` from P_sem^(t-1)."""
        ibpp = self.model.ibpp
        head = ibpp.mask_head(t)
        p_sem = None
        if head.from_semantic is not None:
            p_sem = pool(source, boxes.rois, ibpp.pool_size, ibpp.sampling, STRIDE)
            if ibpp.balanced:
                p_sem = ibpp.gain * p_sem.softmax(1)
        logits, features = head(head.project(boxes.features, boxes.f_sem), boxes.labels, p_sem, boxes.before)
        if ibpp.config.mask_flow:
            boxes.before = features
        return logits

    def _semantic_step(
        self, t: int, rois: Tensor, labels: Tensor, scores: Tensor, masks: Tensor, features: Tensor
    ) -> Tensor:
        """Compute `IBPP.semantic_step`."""
        ibpp = self.model.ibpp
        head = ibpp.semantic_head(t)
        projected = head.from_features(features)
        if head.from_canvas is None:
            return head(None, projected)
        canvas_size = (1, ibpp.num_things, *self.frame.size(STRIDE))
        canvas = roi_flatten(masks, rois, labels, scores, canvas_size, STRIDE, ibpp.config.flatten)
        return head(ibpp.gain * canvas, projected)


def _twice(x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    return F.interpolate(x, (2 * height, 2 * width), mode="bilinear", align_corners=False)
