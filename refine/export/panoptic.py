"""The whole of a model, from a uint8 image to its panoptic map, for `torch.export`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from refine.errors import RefineError
from refine.export.cells import Cells, Edges, cells_of, mask_edges, random_keys, sums
from refine.export.merge import merge, paste_order
from refine.export.network import ExportNetwork, Output
from refine.export.occlusion import evaluate
from refine.export.semantics import semantic_map
from refine.export.unknown import FAR, Runs, is_unknown
from refine.fusion.config import HEADS, FusionConfig, Method
from refine.fusion.rules import by_containment
from refine.modeling.model import PanopticModel
from refine.structures import VOID, Categories

THRESHOLDS = (
    "score_threshold",
    "overlap_threshold",
    "stuff_area",
    "pair_overlap",
    "sigma",
    "ue_threshold",
    "ue_radius",
)
"""Fields of `FusionConfig` that are inputs of the graph, each Tensor[] float64."""

OUTPUTS = {
    "segment_ids": "[H, W] int32: segment of each pixel, 0 for void",
    "segments_id": "[S] int32: 1..S, value in segment_ids; instances by decreasing score, then stuff by class",
    "segments_category_id": "[S] int64: category id, see the metadata `categories`",
    "segments_isthing": "[S] bool: true for an instance, false for stuff",
    "segments_score": "[S] float32, 0-1: score of an instance, mean confidence of stuff",
    "segments_area": "[S] int64: pixels",
    "segments_bbox": "[S, 4] int64: x, y, width, height in pixels",
    "segments_instance": "[S] int64: index into instance_*, -1 for stuff",
    "instance_boxes": "[N, 4] float32: x1, y1, x2, y2 in pixels, before fusion, by decreasing score",
    "instance_scores": "[N] float32, 0-1",
    "instance_labels": "[N] int64: index into the metadata `categories`",
    "instance_masks": "[N, M, M] float32, 0-1: mask inside the box",
    "occlusion": "[N, N] float32, 0-1: probability that one lies in front of the other, 0.5 for pairs not computed",
    "semantic_labels": "[H, W] int64: index into the metadata `categories`, -1 for none",
    "semantic_confidence": "[H, W] float32, 0-1",
}
"""Outputs of the graph; `occlusion` only with an occlusion head that the fusion rule uses."""

Named = dict[str, Tensor]


class ExportPanoptic(nn.Module):
    """Network and fusion.

    Args:
        model: network; it is copied.
        categories: categories that it predicts.
        test_size: (short, long) side in pixels that images are resized to.
        method: fusion rule.
        fusion: fusion settings; those in `THRESHOLDS` are inputs.

    Raises:
        RefineError: the model or a setting cannot be exported.
    """

    keys: Tensor
    category_ids: Tensor

    def __init__(
        self,
        model: PanopticModel,
        categories: Categories,
        test_size: tuple[int, int],
        method: Method,
        fusion: FusionConfig,
    ) -> None:
        super().__init__()
        if not model.num_things:
            raise RefineError("a model without things cannot be exported; give one that has thing classes")
        if method == "srm":
            raise RefineError("method 'srm': cannot be exported; give another --method")
        if fusion.unknown_erasing and fusion.ue_region != "core":
            raise RefineError(f"fusion.ue_region {fusion.ue_region!r}: cannot be exported; set it to 'core'")
        self.network = ExportNetwork(model, test_size)
        self.method, self.fusion = method, fusion
        self.num_things, self.num_classes = model.num_things, model.num_classes
        config = model.config
        most = (config.box_head if config.detector is None else config.detector).max_detections
        self.register_buffer("keys", random_keys(most + 2))
        self.register_buffer("category_ids", torch.tensor([category.id for category in categories]))

    def forward(self, image: Tensor, *values: Tensor) -> Named:
        """Return the `OUTPUTS`.

        Args:
            image: Tensor[3, H, W] uint8 RGB.
            values: the `THRESHOLDS` in their order, each Tensor[] float64.
        """
        thresholds = dict(zip(THRESHOLDS, values, strict=True))
        size = (image.shape[1], image.shape[2])
        output = self.network(image, thresholds["score_threshold"])
        found = output.found
        scale = torch.tensor([size[1], size[0]] * 2, dtype=torch.float32) / output.size.flip(0).repeat(2).float()
        boxes = found.boxes * scale
        channels, confidence = semantic_map(output.sem_logits, output.size, size)
        labels = self.network.model.semantic_classes[channels]

        fused = self.fuse(output, boxes, labels, confidence, thresholds)
        real = torch.nonzero(found.scores >= 0).squeeze(1)
        raw = {
            "instance_boxes": boxes[real],
            "instance_scores": found.scores[real],
            "instance_labels": found.labels[real],
            "instance_masks": output.masks[real],
            "semantic_labels": labels,
            "semantic_confidence": confidence,
        }
        outputs = fused | raw
        if self.method in HEADS:
            outputs["occlusion"] = outputs["occlusion"][real][:, real]
        return {name: outputs[name] for name in OUTPUTS if name in outputs}

    def fuse(
        self, output: Output, boxes: Tensor, labels: Tensor, confidence: Tensor, thresholds: Mapping[str, Tensor]
    ) -> Named:
        """Fuse instances and semantics, as `refine.fuse`.

        Args:
            output: output of the network.
            boxes: boxes of its detections in pixels of the image, Tensor[N, 4].
            labels, confidence: class and confidence of each pixel, Tensor[H, W].
            thresholds: as in `forward`.
        """
        size = (labels.shape[0], labels.shape[1])
        found, edges = output.found, mask_edges(output.masks, boxes, size)
        areas = edges.areas(boxes.shape[0])
        used = (found.scores >= thresholds["score_threshold"].clamp(min=0)) & (areas > 0)
        order = paste_order(found.scores, areas, found.labels)
        order = order[used[order]]
        count = order.shape[0] + 1  # an instance without pixels is the last
        rank = torch.full_like(areas, -1).scatter(0, order, torch.arange(order.shape[0]))
        kept = torch.nonzero(rank[edges.mask] >= 0).squeeze(1)
        edges = Edges(rank[edges.mask[kept]], edges.position[kept], edges.step[kept])
        cells = cells_of(edges, count, self.keys, size[0] * size[1])
        index = torch.cat([order, torch.zeros(1, dtype=torch.int64)])
        last = torch.arange(count) == count - 1
        ranked = _Ranked(
            index,
            torch.where(last, 0, areas[index]),
            torch.where(last, 0.0, found.scores[index]),
            found.labels[index],
            boxes[index],
        )
        alive, front, occlusion = ~last, None, None
        if self.method != "heuristic":
            front, occlusion, soft = self._front(output, ranked, cells, thresholds)
            alive = alive & soft
        paste = torch.arange(count)
        if front is not None and self.fusion.resolve == "wins":
            paste, front = torch.argsort(front.sum(1) * count - paste, descending=True), None  # no ties
        threshold = thresholds["overlap_threshold"]
        owner = merge(cells, ranked.areas, paste, alive, front, threshold, self.fusion.recheck)
        fused = self._assemble(ranked, owner[cells.cell].view(size), labels, confidence, thresholds)
        if occlusion is None:
            return fused
        detections = boxes.shape[0]
        place = (order[:, None] * detections + order).flatten()
        whole = torch.full((detections * detections,), 0.5).scatter(0, place, occlusion[:-1, :-1].flatten())
        return fused | {"occlusion": whole.view(detections, detections)}

    def _front(
        self, output: Output, ranked: _Ranked, cells: Cells, thresholds: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return which instances lie in front of which, Tensor[K, K] bool, O, and which keep a sufficient score."""
        covers = cells.covers.double()
        shared = covers.T @ (covers * cells.areas[:, None])
        enough = (shared >= thresholds["pair_overlap"] * ranked.areas[:, None].double()) & (shared > 0)
        apart = ranked.index[:, None] != ranked.index
        pairs = (enough | enough.T) & apart
        everything = torch.ones_like(pairs[0])
        if self.method == "shr":
            return by_containment(ranked.boxes) & pairs, None, everything
        head = self.network.model.occlusion
        assert head is not None
        occlusion = evaluate(head, output, ranked.index, ranked.labels, pairs)
        sigma = thresholds["sigma"]
        if self.method == "soe":
            claims = sigma * ranked.scores.double().log()[:, None] - (occlusion.double() - 1) ** 2
            front = claims > claims.T
        else:
            front = occlusion > occlusion.T
        if self.method == "soe" and self.fusion.soft_scores:
            claims = ranked.scores[:, None] * torch.exp(-((occlusion - 1) ** 2) / sigma)
            lowest = torch.where(pairs, claims, torch.inf).amin(1)
            return front & pairs, occlusion, lowest >= thresholds["score_threshold"]
        return front & pairs, occlusion, everything

    def _assemble(
        self,
        ranked: _Ranked,
        owner: Tensor,
        labels: Tensor,
        confidence: Tensor,
        thresholds: Mapping[str, Tensor],
    ) -> Named:
        """Erase unknown regions, fill stuff around the instances, and describe the segments."""
        (height, width), count = owner.shape, ranked.index.shape[0]
        reach = torch.full((), width, dtype=torch.int64)
        if self.fusion.unknown_erasing:
            short = torch.full((), min(height, width), dtype=torch.float64)
            radius = (thresholds["ue_radius"] * short / 800).round().long()
            reach = 2 * radius + 1
        ends = torch.ones_like(owner[:, :1], dtype=torch.bool)
        begins = torch.cat([ends, (owner[:, 1:] != owner[:, :-1]) | (labels[:, 1:] != labels[:, :-1])], 1)
        begins = (begins | (torch.arange(width) % reach == 0)).flatten()
        starts = torch.nonzero(begins).squeeze(1)
        until = torch.cat([starts[1:], torch.full((1,), height * width, dtype=torch.int64)])
        up_to = torch.cat([torch.zeros(1, dtype=torch.float64), confidence.flatten().double().cumsum(0)])
        row = torch.div(starts, width, rounding_mode="floor")
        runs = Runs(
            row, starts - row * width, until - starts, labels.flatten()[starts], up_to[until] - up_to[starts]
        )
        of_run, classes = owner.flatten()[starts], runs.labels
        if self.fusion.unknown_erasing:
            threshold = thresholds["ue_threshold"]
            unknown = is_unknown(runs, (height, width), reach, threshold, self.num_things, self.num_classes)
            classes = torch.where(unknown, VOID, classes)

        # Value of each run: i for instance i, K + c for stuff class c, K + C for void.
        void = count + self.num_classes
        stuff = (of_run == count) & (classes >= self.num_things)
        value = torch.where(stuff, count + classes, torch.where(of_run == count, void, of_run))
        areas = sums(value, runs.length, void + 1)
        least = torch.where(torch.arange(void + 1) < count, 1, thresholds["stuff_area"].long().clamp(min=1))
        shown = (areas >= least) & (torch.arange(void + 1) < void)
        ids = torch.where(shown, shown.int().cumsum(0, dtype=torch.int32), 0)
        run_of = begins.long().cumsum(0) - 1
        segment_ids = ids[value][run_of].view(height, width).int()

        described = self._describe(ranked, runs, value, ids, shown)
        return {"segment_ids": segment_ids} | described

    def _describe(self, ranked: _Ranked, runs: Runs, value: Tensor, ids: Tensor, shown: Tensor) -> Named:
        """Describe the segments.

        Args:
            ranked: K instances.
            runs: R runs of the image.
            value: what each run shows, Tensor[R] int64: i for instance i, K + c for stuff class c, K + C for void.
            ids: segment id of each value, Tensor[K + C + 1] int32.
            shown: values that are segments, Tensor[K + C + 1] bool.
        """
        count, values = ranked.index.shape[0], shown.shape[0]
        segments = torch.nonzero(shown).squeeze(1)
        far = torch.full((values,), FAR, dtype=torch.int64)
        left, top = (far.scatter_reduce(0, value, x, "amin")[segments] for x in (runs.left, runs.row))
        right, bottom = (
            torch.zeros_like(far).scatter_reduce(0, value, x, "amax")[segments]
            for x in (runs.left + runs.length, runs.row + 1)
        )
        isthing, area = segments < count, sums(value, runs.length, values)[segments]
        instance = segments.clamp(max=count - 1)
        mean = (sums(value, runs.confidence, values)[segments] / area).float()
        return {
            "segments_id": ids[segments].int(),
            "segments_category_id": self.category_ids[
                torch.where(isthing, ranked.labels[instance], segments - count)
            ],
            "segments_isthing": isthing,
            "segments_score": torch.where(isthing, ranked.scores[instance], mean),
            "segments_area": area,
            "segments_bbox": torch.stack([left, top, right - left, bottom - top], 1),
            "segments_instance": torch.where(isthing, ranked.index[instance], -1),
        }


@dataclass
class _Ranked:
    """K instances by decreasing score; the last one has no pixels.

    Attributes:
        index: Tensor[K] int64, index among the detections.
        areas: Tensor[K] int64, pixels of their masks.
        scores, labels, boxes: their values, Tensor[K] and Tensor[K, 4].
    """

    index: Tensor
    areas: Tensor
    scores: Tensor
    labels: Tensor
    boxes: Tensor
