"""Thresholds of fusion. Nothing here imports torch, so that the command line starts at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Method = Literal["heuristic", "shr", "srm", "ocfusion", "strong", "soe"]
"""Rules that decide which of two overlapping instances lies in front (SPEC §7, §8)."""


@dataclass
class FusionConfig:
    """Thresholds of the panoptic merge; defaults are SPEC §7's [BCC].

    Attributes:
        score_threshold: instances below are not used.
        overlap_threshold: an instance that keeps this share of its mask or less is dropped.
        stuff_area: stuff regions of fewer pixels (per class) become void.
        pair_overlap: pairs are decided that overlap by this share of either mask (ρ).
        sigma: of equation 7.
        unknown_erasing: erase uncertain regions of the semantic map (SPEC §9).
        ue_threshold: mean confidence below which a region is erased.
        ue_radius: dilation in pixels, for a short side of 800; scaled with the image.
    """

    score_threshold: float = 0.5
    overlap_threshold: float = 0.5
    stuff_area: int = 4096
    pair_overlap: float = 0.2
    sigma: float = 2.5
    unknown_erasing: bool = False
    ue_threshold: float = 0.5
    ue_radius: int = 50
