"""Options of fusion, which several commands share."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from refine.fusion.config import FusionConfig

FUSION = ("score_threshold", "overlap_threshold", "stuff_area", "sigma", "unknown_erasing", "ue_threshold")


def add_fusion(parser: Any, default: FusionConfig | None = None) -> None:
    """Give a parser, or a group of its arguments, one option for each of `FUSION`.

    Args:
        parser: to add them to.
        default: values to name in the help; None for those of a checkpoint.
    """

    def told(name: str) -> str:
        return "the checkpoint's" if default is None else f"{getattr(default, name)}"

    def add(name: str, what: str, **how: Any) -> None:
        parser.add_argument(f"--{name.replace('_', '-')}", help=f"{what} (default: {told(name)})", **how)

    add("score_threshold", "drop instances below, 0-1", type=float)
    add("overlap_threshold", "drop instances of which more is covered, 0-1", type=float)
    add("stuff_area", "pixels below which a class of stuff is dropped", type=int)
    add("sigma", "of soe", type=float)
    add("unknown_erasing", "uncertain regions become unknown", action=argparse.BooleanOptionalAction)
    add("ue_threshold", "mean confidence below which they do, 0-1", type=float)


def fusion_config(options: argparse.Namespace, default: FusionConfig) -> FusionConfig:
    """The default with what was given; raises RefineError where that is out of range."""
    given = {name: getattr(options, name) for name in FUSION if getattr(options, name) is not None}
    return replace(default, **given)
