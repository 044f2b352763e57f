"""Thresholds of fusion. This module does not import torch, so that the command line starts fast."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from refine.bounds import bounded, check_bounds
from refine.errors import RefineError, did_you_mean

Method = Literal["heuristic", "shr", "srm", "ocfusion", "strong", "soe"]
"""Rules that decide which of two overlapping instances lies in front; `refine.fusion` describes them."""

OWN_MERGE: Literal["model"] = "model"
"""Stands, in place of a fusion rule, for a network's own way to merge its outputs (see `Prediction.merge`)."""

AnyMethod = Method | Literal["model"]

UERegion = Literal["core", "dilated"]
"""How Unknown Erasing computes the score of a region (see `FusionConfig`)."""

Resolve = Literal["steal", "wins"]
"""How pairwise decisions become one panoptic map (see `refine.fusion.merge`)."""

Head = Literal["occlusion", "ranking"]
"""Learned heads; an argument of `refine.fuse` and a submodule of the model have the same name."""

HEADS: dict[str, Head] = {
    "srm": "ranking",
    "ocfusion": "occlusion",
    "strong": "occlusion",
    "soe": "occlusion",
}
"""Head required by each learned rule; the other rules require none."""


def check_known(method: str) -> None:
    """Raise RefineError if `method` is not a fusion rule."""
    if method not in get_args(Method):
        similar = did_you_mean(method, get_args(Method))
        raise RefineError(f"method {method!r}: unknown{similar}; give one of {', '.join(get_args(Method))}")


def methods_with(heads: Collection[str]) -> list[Method]:
    """Return the rules that can be applied with these learned heads, in the order of `Method`."""
    return [method for method in get_args(Method) if method not in HEADS or HEADS[method] in heads]


def check_method(method: str, heads: Collection[str]) -> None:
    """Raise RefineError if a fusion rule is unknown, or the model does not have the head that it needs."""
    check_known(method)
    if method not in methods_with(heads):
        other = " or `refine train-occlusion`" if HEADS[method] == "occlusion" else ""
        raise RefineError(
            f"method {method!r}: the model has no {HEADS[method]} head; train one "
            f"(`optim.train_only`{other}), or use heuristic or shr"
        )


@dataclass
class FusionConfig:
    """Thresholds of panoptic fusion.

    Marks give the source of each default: [P] the REFINE paper, [K] Panoptic-FPN's heuristic, [BCC] the code of
    REFINE's predecessor, [O] OCFusion, [C] our choice.

    Attributes:
        score_threshold: score, 0-1, below which instances are ignored [BCC; detectron2].
        overlap_threshold: fraction of a mask, 0-1, covered by others above which an instance is dropped [K].
        stuff_area: number of free pixels below which a stuff class becomes void [K].
        pair_overlap: ρ, fraction of either mask, 0-1, shared by pairs that a pairwise rule decides; other pairs
            are ordered by score [O].
        resolve: how pairwise decisions are combined: "steal" [O, BCC] or "wins".
        recheck: whether to drop an instance that later ones covered too much, and merge again [C]; otherwise
            fragments of instances remain, as in OCFusion and BCC.
        sigma: σ of equation 7, above 0 [P].
        soft_scores: whether "soe" drops instances whose smallest Õ over the pairs that it decides is below
            `score_threshold`: one reading of "modulate their class scores" [P].
        unknown_erasing: whether to erase uncertain regions of the semantic map; needs its confidence [P].
        ue_threshold: mean confidence, 0-1, below which a region is erased [BCC].
        ue_radius: dilation in pixels that joins the parts of a region, for images with a short side of
            800 [BCC]; scaled with the short side [C].
        ue_region: score of a region: the mean confidence of its original pixels ("core") [BCC], or the mean
            probability of its class over the dilated region ("dilated") [P, read literally], which needs
            `sem_probabilities`.

    Raises:
        RefineError: a value is out of range.

    Examples:
        >>> FusionConfig(score_threshold=0.3).changed({"stuff_area": 100}).stuff_area
        100
        >>> FusionConfig(sigma=-1)
        Traceback (most recent call last):
        refine.errors.RefineError: fusion.sigma is -1; give a number above 0
    """

    score_threshold: float = bounded(0.5, least=0, most=1)
    overlap_threshold: float = bounded(0.5, least=0, most=1)
    stuff_area: int = bounded(4096, least=0)
    pair_overlap: float = bounded(0.2, least=0, most=1)
    resolve: Resolve = "steal"
    recheck: bool = True
    sigma: float = bounded(2.5, above=0)
    soft_scores: bool = False
    unknown_erasing: bool = False
    ue_threshold: float = bounded(0.5, least=0, most=1)
    ue_radius: int = bounded(50, least=0)
    ue_region: UERegion = "core"

    def __post_init__(self) -> None:
        check_bounds(self, "fusion")
        for name in ("recheck", "soft_scores", "unknown_erasing"):
            if not isinstance(getattr(self, name), bool):
                raise RefineError(f"fusion.{name} is {getattr(self, name)!r}; give true or false")
        if self.resolve not in get_args(Resolve):
            raise RefineError(f"fusion.resolve is {self.resolve!r}; give one of {', '.join(get_args(Resolve))}")
        if self.ue_region not in get_args(UERegion):
            known = ", ".join(get_args(UERegion))
            raise RefineError(f"fusion.ue_region is {self.ue_region!r}; give one of {known}")

    def changed(self, changes: Mapping[str, Any]) -> FusionConfig:
        """Return a copy with some fields changed; raise RefineError for an unknown field or invalid value."""
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                similar = did_you_mean(name, known)
                raise RefineError(f"fusion.{name}: unknown field{similar}; give some of {', '.join(known)}")
        return replace(self, **changes)

    def radius_at(self, size: tuple[int, int]) -> int:
        """Return `ue_radius` in pixels, scaled to an image of (height, width) pixels."""
        return round(self.ue_radius * min(size) / 800)
