"""Comparison of the settings of two runs, by the options that choose them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from refine.errors import RefineError
from refine.storage import Location

CLASSES = "classes"
"""Setting that holds the categories of the results, as a list of JSON."""

OPTIONS = {
    CLASSES: "the classes of --checkpoint, --categories or --class-map",
    "model": "--checkpoint",
    "weights": "the weights, config or labels of --checkpoint",
    "tiling.tile": "--tile",
    "tiling.overlap": "--overlap",
    "tiling.mpp": "--mpp",
    **{name: f"--{name.replace('_', '-')}" for name in ("method", "scale", "max_detections")},
    **{name: f"--{name}" for name in ("page", "channel", "range", "precision")},
    **{
        f"fusion.{name}": f"--{name.replace('_', '-')}"
        for name in (
            *("score_threshold", "overlap_threshold", "stuff_area", "sigma"),
            *("unknown_erasing", "ue_threshold", "ue_region"),
        )
    },
    **{
        "source": "SOURCE",
        "overlap": "--overlap",
        "ignored": "--ignore",
        "background": "--background",
    },  # of import
    **{"categories": "--categories, --stuff", "copy": "--copy"},
}
"""Option that chooses a setting, by its path in `info` of panoptic.json; others are named by that path."""

FOLLOWING = {"description": ("model", "version"), "test_size": ("scale",), "tiling.scale": ("scale",)}
"""Settings that follow from others, and are named only if none of these differ."""

LONGEST = 60
"""Most characters of a value in a message."""


def other_settings(path: Location, then: Any, now: dict[str, Any]) -> RefineError:
    """Return the error for results that were written with other settings; it names those that differ.

    Args:
        path: file that lists the results.
        then: settings of the results as read from the file.
        now: settings of this run.
    """
    if not isinstance(then, dict) or not then:
        return RefineError(f"{path}: does not state its settings; run without --resume to start again")
    earlier, later = dict(_leaves(then)), dict(_leaves(now))
    names = [name for name in later | earlier if earlier.get(name) != later.get(name)]
    named = [name for name in names if not set(FOLLOWING.get(name, ())) & set(names)]
    parts = [f"{OPTIONS.get(name, name)}{_values(earlier.get(name), later.get(name))}" for name in named]
    return RefineError(
        f"{path}: was written with other settings: {'; '.join(parts)}. Give the same options, or run without "
        "--resume to start again"
    )


def _leaves(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings by their paths, such as fusion.sigma; how images are cut as the value of `--tile`."""
    for name, value in settings.items():
        if name == "tiling":
            tiling = value or {"tile": "off", "always": True}
            yield from _leaves({"tile": tiling["tile"] if tiling["always"] else "auto"}, "tiling.")
            yield from _leaves({key: v for key, v in tiling.items() if key not in ("tile", "always")}, "tiling.")
        elif isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _values(then: Any, now: Any) -> str:
    texts = [_text(then), _text(now)]
    return "" if max(map(len, texts)) > LONGEST else f" {texts[0]}, now {texts[1]}"


def _text(value: Any) -> str:
    if isinstance(value, list) and not any(isinstance(part, dict) for part in value):
        return ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in value) or "none"
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)
