"""Explanation of a fused image: which instance lies in front under each rule, and what was erased."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from refine.fusion import FusionConfig, Method, OcclusionFn, fuse
from refine.fusion.api import RankingFn, arrange, prepare
from refine.fusion.rules import evaluate_occlusion
from refine.fusion.unknown import KEPT, unknown_dilated_regions, unknown_regions
from refine.ops.cells import cells_of
from refine.ops.masks import MaskRuns, overlapping
from refine.ops.penalty import soft_occlusion
from refine.ops.runs import run_lengths, spread
from refine.structures import Categories, Instances, PanopticResult, Prediction


@dataclass(frozen=True)
class Explanation:
    """Decisions of every rule for the N instances of one image; all tensors are on the CPU.

    Attributes:
        instances: instances that fusion keeps, by decreasing score.
        indices: Tensor[N] int64, index of each instance in the prediction.
        runs: masks of the instances.
        covers: Tensor[H, W] int64, number of masks that cover each pixel; contested from 2 on.
        shared: Tensor[N, N] int64, pixels that each pair of masks shares; areas on the diagonal.
        overlapping: Tensor[N, N] bool, symmetric: pairs that overlap enough for a pairwise rule to decide.
        occlusion: O, Tensor[N, N] float, 0-1, valid for overlapping pairs; None without an occlusion head.
        soft: Õ of equation 7, Tensor[N, N] float, 0-1, likewise.
        ranking: Tensor[N] float, SRM's score of each instance; None without a ranking head.
        front: by method, Tensor[N, N] bool, [i, j] = "i lies in front of j"; either [i, j] or [j, i] is true.
        shown: by method, Tensor[H, W] int64: n for instance n, N + c for stuff class c, -1 for void.
        sem_seg: Tensor[H, W] int64, contiguous semantic class.
        sem_confidence: Tensor[H, W] float, 0-1, confidence of the semantic class.
        erased: Tensor[H, W] int64, number of the region that Unknown Erasing erases, or `KEPT`; computed even
            if `config` disables it.
        categories: categories of the labels.
        config: thresholds of the fusion.
    """

    instances: Instances
    indices: Tensor
    runs: MaskRuns
    covers: Tensor
    shared: Tensor
    overlapping: Tensor
    occlusion: Tensor | None
    soft: Tensor | None
    ranking: Tensor | None
    front: dict[Method, Tensor]
    shown: dict[Method, Tensor]
    sem_seg: Tensor
    sem_confidence: Tensor
    erased: Tensor
    categories: Categories
    config: FusionConfig

    def claims(self, method: Method) -> Tensor | None:
        """Return the values that a rule compares, Tensor[N, N]: i lies in front of j if [i, j] > [j, i].

        They are the score, SRM's rank, O or Õ; None for "shr", which compares no values.
        """
        values = self.ranking if method == "srm" else self.instances.scores
        by_one = None if values is None else values[:, None].expand(-1, len(self.instances))
        return {"heuristic": by_one, "srm": by_one, "shr": None, "soe": self.soft}.get(method, self.occlusion)

    def differs(self, method: Method) -> Tensor:
        """Return the pixels whose result differs from that of "heuristic": Tensor[H, W] bool."""
        return self.shown[method] != self.shown["heuristic"]

    def pairs(self) -> Tensor:
        """Return pairs with a common pixel by decreasing overlap: Tensor[P, 2] int64, i < j."""
        pairs = torch.nonzero(self.shared.triu(1))
        return pairs[torch.argsort(self.shared[pairs[:, 0], pairs[:, 1]], descending=True, stable=True)]

    def to_json(self) -> dict[str, Any]:
        """Return everything but the maps.

        Returns:
            `size` ([height, width] in pixels), `fusion` (the thresholds), `methods` explained and those
            `left_out` because a head is missing; `contested` pixels; and three lists:
            `instances`: `number` (from 1, by decreasing score; pairs refer to it), `index` (index in the
            prediction), `class`, `score`, `pixels` of the mask, `ranking` (or None), `shown` (pixels, by method);
            `pairs` with a common pixel: `i`, `j` (numbers), `class`, `score` and shared fraction (`share`) of
            both masks, `pixels` shared, `decided` (True if pairwise rules decide, else the score decides),
            `O` and `soft_O` ([(i, j), (j, i)]; None unless `decided`), `front` (number, by method);
            `erased`: `class`, `pixels` and mean `confidence` of the regions that Unknown Erasing erases.
        """
        height, width = self.covers.shape
        return {
            "size": [height, width],
            "fusion": asdict(self.config),
            "methods": list(self.front),
            "left_out": [method for method in get_args(Method) if method not in self.front],
            "contested": int((self.covers > 1).sum()),
            "instances": self._instances(),
            "pairs": [self._pair(i, j) for i, j in self.pairs().tolist()],
            "erased": self._erased(),
        }

    def _instances(self) -> list[dict[str, Any]]:
        count = len(self.instances)
        shown = {
            method: torch.bincount(map_.flatten() + 1, minlength=count + 1)[1 : count + 1].tolist()
            for method, map_ in self.shown.items()
        }
        return [
            {
                "number": n + 1,
                "index": int(self.indices[n]),
                "class": self._class(n),
                "score": _number(self.instances.scores[n]),
                "pixels": int(self.shared[n, n]),
                "ranking": None if self.ranking is None else _number(self.ranking[n]),
                "shown": {method: pixels[n] for method, pixels in shown.items()},
            }
            for n in range(count)
        ]

    def _pair(self, i: int, j: int) -> dict[str, Any]:
        def both(values: Tensor | None) -> list[float] | None:
            if values is None or not self.overlapping[i, j]:
                return None
            return [_number(values[i, j]), _number(values[j, i])]

        pixels = int(self.shared[i, j])
        return {
            "i": i + 1,
            "j": j + 1,
            "class": [self._class(i), self._class(j)],
            "score": [_number(self.instances.scores[n]) for n in (i, j)],
            "pixels": pixels,
            "share": [_number(pixels / self.shared[n, n]) for n in (i, j)],
            "decided": bool(self.overlapping[i, j]),
            "O": both(self.occlusion),
            "soft_O": both(self.soft),
            "front": {method: (i if front[i, j] else j) + 1 for method, front in self.front.items()},
        }

    def _erased(self) -> list[dict[str, Any]]:
        """Describe the erased regions by decreasing size."""
        inside = self.erased != KEPT
        _, region, pixels = torch.unique(self.erased[inside], return_inverse=True, return_counts=True)
        confidence = torch.bincount(region, self.sem_confidence[inside].double(), len(pixels)) / pixels
        labels = torch.zeros_like(pixels).scatter_(0, region, self.sem_seg[inside])  # one class each
        regions = zip(labels.tolist(), pixels.tolist(), confidence.tolist(), strict=True)
        return [
            {"class": self.categories[label].name, "pixels": area, "confidence": _number(mean)}
            for label, area, mean in sorted(regions, key=lambda region: -region[1])
        ]

    def _class(self, n: int) -> str:
        return self.categories[int(self.instances.labels[n])].name


@torch.inference_mode()
def explain(
    raw: Prediction,
    *,
    categories: Categories,
    methods: Sequence[Method],
    config: FusionConfig,
    occlusion: OcclusionFn | None = None,
    ranking: RankingFn | None = None,
) -> Explanation:
    """Fuse one prediction with each rule and record the decisions.

        explanation = explain(predictor.predict_raw([image])[0], methods=predictor.methods,
                              categories=predictor.categories, config=predictor.fusion, **predictor.fusion_heads())
        write_image("why.png", explanation_sheet(image, explanation))

    Args:
        raw: prediction of the network for one image.
        categories: categories of its labels.
        methods: fusion rules; must include "heuristic", to which the others are compared.
        config: thresholds.
        occlusion, ranking: heads of the learned rules, as in `refine.fuse`.

    Raises:
        RefineError: a head that a rule needs is missing, or an occlusion is outside 0-1.
        ValueError: shapes do not agree.
    """
    kept, runs, indices, _ = prepare(raw.instances, config.score_threshold)
    cells = cells_of(runs)
    shared = cells.intersections()
    pairs = overlapping(shared, config.pair_overlap)
    # Each head is evaluated once; all rules and `fuse` share the result.
    given: dict[str, Any] = {
        "occlusion": None if occlusion is None else evaluate_occlusion(occlusion, kept, pairs),
        "ranking": None if ranking is None else ranking(kept),
    }
    common: dict[str, Any] = {"categories": categories, "sem_confidence": raw.sem_confidence, "config": config}
    common["sem_probabilities"] = raw.sem_probabilities
    results = {method: fuse(kept, raw.sem_seg, method=method, **common, **given) for method in methods}
    covers = spread(cells.covers().sum(1)[cells.cell], run_lengths(cells.starts, raw.sem_seg.numel()), runs.size)
    on_cpu: dict[str, Any] = {name: None if value is None else value.cpu() for name, value in given.items()}
    return Explanation(
        instances=kept.to("cpu"),
        indices=indices.cpu(),
        runs=MaskRuns(runs.size, runs.count, runs.mask.cpu(), runs.start.cpu(), runs.end.cpu()),
        covers=covers.cpu(),
        shared=shared.cpu(),
        overlapping=pairs.cpu(),
        occlusion=on_cpu["occlusion"],
        soft=None if occlusion is None else soft_occlusion(kept.scores.cpu(), on_cpu["occlusion"], config.sigma),
        ranking=on_cpu["ranking"],
        front={m: _complete(*arrange(m, kept, cells, config=config, **given)).cpu() for m in methods},
        shown={method: _shown(result, len(kept)) for method, result in results.items()},
        sem_seg=raw.sem_seg.cpu(),
        sem_confidence=raw.sem_confidence.cpu(),
        erased=_unknown(raw, categories, config).cpu(),
        categories=categories,
        config=config,
    )


def _unknown(raw: Prediction, categories: Categories, config: FusionConfig) -> Tensor:
    """Number the regions that Unknown Erasing erases, Tensor[H, W] int64; see `Explanation.erased`."""
    size = (raw.sem_seg.shape[0], raw.sem_seg.shape[1])
    thresholds = config.radius_at(size), config.ue_threshold, categories.num_things
    if config.ue_region == "dilated" and raw.sem_probabilities is not None:
        return unknown_dilated_regions(raw.sem_seg, raw.sem_probabilities(), *thresholds)
    return unknown_regions(raw.sem_seg, raw.sem_confidence, *thresholds)


def _complete(order: Sequence[int], front: Tensor | None) -> Tensor:
    """Complete the decisions, Tensor[N, N] bool: pairs that the rule leaves open follow the order."""
    rank = torch.empty(len(order), dtype=torch.int64)
    rank[list(order)] = torch.arange(len(order))
    first = rank[:, None] < rank
    return first if front is None else front | (first & ~front.T)


def _shown(result: PanopticResult, count: int) -> Tensor:
    """Return `Explanation.shown` of one result with `count` instances: Tensor[H, W] int64."""
    table = torch.full((len(result) + 1,), -1)
    for segment in result.segments:
        index = result.categories.index(segment.category_id)
        table[segment.id] = count + index if segment.instance is None else segment.instance
    return table[result.segment_ids.cpu().long()]


def _number(value: Tensor | float) -> float:
    return round(float(value), 6)
