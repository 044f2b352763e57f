"""Why a fused picture looks as it does: who lies in front of whom under every rule, and what was erased."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from refine.fusion import FusionConfig, Method, OcclusionFn, fuse
from refine.fusion.api import RankingFn, arrange, prepare
from refine.fusion.rules import evaluate_occlusion
from refine.fusion.unknown import KEPT, unknown_regions
from refine.ops.cells import cells_of
from refine.ops.masks import MaskRuns, overlapping
from refine.ops.penalty import soft_occlusion
from refine.ops.runs import run_lengths, spread
from refine.structures import Categories, Instances, PanopticResult, Prediction


@dataclass(frozen=True)
class Explanation:
    """What every rule says of one image's predictions; N instances, all tensors on the CPU.

    Attributes:
        instances: those that fusion keeps, by falling score.
        places: Tensor[N] int64, their places in the prediction.
        runs: their masks.
        covers: Tensor[H, W] int64, how many masks cover each pixel; from 2 on it is contested.
        shared: Tensor[N, N] int64, pixels that two masks share; areas on the diagonal.
        asked: Tensor[N, N] bool, symmetric: pairs that share enough to be put to a pairwise rule.
        occlusion: O, Tensor[N, N] float, 0-1, read at the pairs asked; None without such a head.
        soft: Õ of equation 7, in the same way.
        ranking: Tensor[N] float, SRM's score of each; None without such a head.
        front: by method, Tensor[N, N] bool, [i, j] = "i lies in front of j"; of [i, j] and [j, i] one holds.
        shown: by method, Tensor[H, W] int64: instance n as n, stuff class c as N + c, nothing as -1.
        sem_seg, sem_confidence: Tensor[H, W] int64 and float, the semantic map.
        erased: Tensor[H, W] int64, number of the region that Unknown Erasing erases, or `KEPT`; also where
            `config` does not apply it.
        categories, config: of the fusion.
    """

    instances: Instances
    places: Tensor
    runs: MaskRuns
    covers: Tensor
    shared: Tensor
    asked: Tensor
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
        """What a rule compares: Tensor[N, N], the greater of [i, j] and [j, i] lies in front. That is the
        score, SRM's rank, O or Õ; None for "shr", which compares nothing but asks one question after another.
        """
        values = self.ranking if method == "srm" else self.instances.scores
        by_one = None if values is None else values[:, None].expand(-1, len(self.instances))
        return {"heuristic": by_one, "srm": by_one, "shr": None, "soe": self.soft}.get(method, self.occlusion)

    def differs(self, method: Method) -> Tensor:
        """Tensor[H, W] bool: the pixels that show something else than under "heuristic"."""
        return self.shown[method] != self.shown["heuristic"]

    def pairs(self) -> Tensor:
        """Pairs with a pixel in common, those that share most first: Tensor[P, 2] int64, i < j."""
        pairs = torch.nonzero(self.shared.triu(1))
        return pairs[torch.argsort(self.shared[pairs[:, 0], pairs[:, 1]], descending=True, stable=True)]

    def to_json(self) -> dict[str, Any]:
        """All of it but the maps.

        Returns:
            `size` ([height, width] in pixels), `fusion` (the thresholds), `methods` explained and those
            `left_out` for want of a head; `contested` pixels; and three lists:
            `instances`: `number` (from 1, by falling score; pairs refer to it), `place` in the prediction,
            `class`, `score`, `pixels` of the mask, `ranking` (or None), `shown` (pixels, by method);
            `pairs` with a pixel in common: `i`, `j` (numbers), `class`, `score` and `share` of the mask that
            is shared, of both, `pixels` shared, `asked` (put to the pairwise rules; else the score decides),
            `O` and `soft_O` ([(i, j), (j, i)]; None where not asked), `front` (number, by method);
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
                "place": int(self.places[n]),
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
            if values is None or not self.asked[i, j]:
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
            "asked": bool(self.asked[i, j]),
            "O": both(self.occlusion),
            "soft_O": both(self.soft),
            "front": {method: (i if front[i, j] else j) + 1 for method, front in self.front.items()},
        }

    def _erased(self) -> list[dict[str, Any]]:
        """Regions by falling size."""
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
    """Fuse one prediction by each rule, and keep what the rules decided.

        told = explain(predictor.predict_raw([image])[0], categories=predictor.categories, config=predictor.fusion,
                       methods=possible_methods(predictor.model), **predictor.fusion_heads())
        write_image("why.png", explanation_sheet(image, told))

    Args:
        raw: of the network.
        categories: of its labels.
        methods: the rules, "heuristic" among them, which the others are held against.
        config: thresholds.
        occlusion, ranking: the heads that the learned rules ask, as in `refine.fuse`.

    Raises:
        RefineError: a head that a rule asks is missing, or an occlusion outside 0-1.
        ValueError: shapes that do not agree.
    """
    kept, runs, places, _ = prepare(raw.instances, config.score_threshold)
    cells = cells_of(runs)
    shared = cells.intersections()
    asked = overlapping(shared, config.pair_overlap)
    # Each head answers once; all the rules and `fuse` get its answers.
    given: dict[str, Any] = {
        "occlusion": None if occlusion is None else evaluate_occlusion(occlusion, kept, asked),
        "ranking": None if ranking is None else ranking(kept),
    }
    front, shown = {}, {}
    for method in methods:
        front[method] = _complete(*arrange(method, kept, cells, config=config, **given)).cpu()
        common: dict[str, Any] = {"categories": categories, "sem_confidence": raw.sem_confidence, "config": config}
        shown[method] = _what_it_shows(fuse(kept, raw.sem_seg, method=method, **common, **given), len(kept))
    covers = spread(cells.covers().sum(1)[cells.cell], run_lengths(cells.starts, raw.sem_seg.numel()), runs.size)
    erased = unknown_regions(
        raw.sem_seg, raw.sem_confidence, config.radius_at(runs.size), config.ue_threshold, categories.num_things
    )
    given = {name: None if value is None else value.cpu() for name, value in given.items()}
    return Explanation(
        instances=kept.to("cpu"),
        places=places.cpu(),
        runs=MaskRuns(runs.size, runs.count, runs.mask.cpu(), runs.start.cpu(), runs.end.cpu()),
        covers=covers.cpu(),
        shared=shared.cpu(),
        asked=asked.cpu(),
        occlusion=given["occlusion"],
        soft=None if occlusion is None else soft_occlusion(kept.scores.cpu(), given["occlusion"], config.sigma),
        ranking=given["ranking"],
        front=front,
        shown=shown,
        sem_seg=raw.sem_seg.cpu(),
        sem_confidence=raw.sem_confidence.cpu(),
        erased=erased.cpu(),
        categories=categories,
        config=config,
    )


def _complete(order: Sequence[int], front: Tensor | None) -> Tensor:
    """Decisions of all pairs, Tensor[N, N] bool: where the rule has none, the order decides."""
    rank = torch.empty(len(order), dtype=torch.int64)
    rank[list(order)] = torch.arange(len(order))
    first = rank[:, None] < rank
    return first if front is None else front | (first & ~front.T)


def _what_it_shows(result: PanopticResult, count: int) -> Tensor:
    """`shown` of one result: Tensor[H, W] int64."""
    table = torch.full((len(result) + 1,), -1)
    for segment in result.segments:
        index = result.categories.index(segment.category_id)
        table[segment.id] = count + index if segment.instance is None else segment.instance
    return table[result.segment_ids.cpu().long()]


def _number(value: Tensor | float) -> float:
    return round(float(value), 6)
