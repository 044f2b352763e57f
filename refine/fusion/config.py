"""Thresholds of fusion. Nothing here imports torch, so that the command line starts at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from refine.errors import RefineError

Method = Literal["heuristic", "shr", "srm", "ocfusion", "strong", "soe"]
"""Rules that decide which of two overlapping instances lies in front (see `refine.fusion.fuse`)."""

Resolve = Literal["steal", "wins"]
"""How pairwise decisions become one picture (see `refine.fusion.merge`)."""


@dataclass
class FusionConfig:
    """Thresholds of the panoptic merge.

    Marks say where a default comes from: [P] the REFINE paper, [K] Panoptic-FPN's heuristic, [BCC] the
    predecessor's code, [O] OCFusion, [C] our own choice.

    Attributes:
        score_threshold: instances below are not used [BCC; detectron2].
        overlap_threshold: an instance is dropped if a larger share of its mask is covered by others [K].
        stuff_area: stuff classes with fewer free pixels in the image become void [K].
        pair_overlap: ρ; a rule decides pairs that share this part of either mask, score order the rest [O].
        resolve: how a set of pairwise decisions is resolved: "steal" [O, BCC] or "wins".
        recheck: drop, and merge again, where later instances took too much of an earlier one [C]; without,
            fragments of instances stay, as in OCFusion and BCC.
        sigma: σ of equation 7 [P].
        unknown_erasing: erase uncertain regions of the semantic map; needs its confidence [P].
        ue_threshold: mean confidence below which a region is erased [BCC].
        ue_radius: dilation that joins the parts of a region, in pixels, for an image with a short side of
            800 [BCC]; scaled with the short side [C].

    Raises:
        RefineError: a value out of its range.
    """

    score_threshold: float = 0.5
    overlap_threshold: float = 0.5
    stuff_area: int = 4096
    pair_overlap: float = 0.2
    resolve: Resolve = "steal"
    recheck: bool = True
    sigma: float = 2.5
    unknown_erasing: bool = False
    ue_threshold: float = 0.5
    ue_radius: int = 50

    def __post_init__(self) -> None:
        for name in ("score_threshold", "overlap_threshold", "pair_overlap", "ue_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise RefineError(f"fusion.{name} is {getattr(self, name)}; give a number from 0 to 1")
        for name in ("stuff_area", "ue_radius"):
            if getattr(self, name) < 0:
                raise RefineError(f"fusion.{name} is {getattr(self, name)}; give 0 or more pixels")
        if not 0 < self.sigma < float("inf"):
            raise RefineError(f"fusion.sigma is {self.sigma}; give a number above 0 (the paper's is 2.5)")

    def radius_at(self, size: tuple[int, int]) -> int:
        """`ue_radius` for an image of (height, width)."""
        return round(self.ue_radius * min(size) / 800)
