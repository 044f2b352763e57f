"""Network settings that weights do not determine, read from a configuration of detectron2 or refine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refine.config import from_mapping, read_yaml
from refine.errors import RefineError
from refine.fusion.config import FusionConfig
from refine.modeling.config import ModelConfig

_EXPECTED: list[tuple[str, list[Any]]] = [
    ("MODEL.RESNETS.RES5_DILATION", [1]),
    ("MODEL.RESNETS.DEFORM_NUM_GROUPS", [1]),
    ("MODEL.FPN.FUSE_TYPE", ["sum"]),
    ("MODEL.FPN.IN_FEATURES", [["res2", "res3", "res4", "res5"]]),
    ("MODEL.ANCHOR_GENERATOR.NAME", ["DefaultAnchorGenerator"]),
    ("MODEL.ANCHOR_GENERATOR.OFFSET", [0, 0.0]),
    ("MODEL.RPN.BBOX_REG_WEIGHTS", [[1, 1, 1, 1]]),
    ("MODEL.ROI_HEADS.NAME", ["StandardROIHeads", "CascadeROIHeads"]),
    ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", [[10, 10, 5, 5]]),
    ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", [False]),
    ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", ["ROIAlignV2", "ROIAlign"]),
    ("MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", [[[n * w for w in (10, 10, 5, 5)] for n in (1, 2, 3)]]),
    ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", [False]),
    ("MODEL.ROI_KEYPOINT_ON", [False]),
    ("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", [4]),
]
"""Options of detectron2 and the values that are supported here."""


@dataclass
class Settings:
    """Content of a configuration file.

    Attributes:
        path: path of the file.
        model: config of the whole network, from refine's files; None for detectron2's, which only complete the
            config inferred from weights.
        content: nested mappings of a detectron2 configuration.
        fusion: thresholds of fusion.
        test_size: (short, long) side in pixels that images are resized to.
    """

    path: str
    model: ModelConfig | None = None
    content: dict[str, Any] = field(default_factory=dict)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    test_size: tuple[int, int] = (800, 1333)

    def complete(self, config: ModelConfig) -> None:
        """Set the fields of a config inferred from weights to the values of a detectron2 configuration."""
        simple: list[tuple[str, Any, str, Callable]] = [
            ("INPUT.FORMAT", config, "channels", str),
            ("MODEL.PIXEL_MEAN", config, "pixel_mean", tuple),
            ("MODEL.PIXEL_STD", config, "pixel_std", tuple),
            ("MODEL.RESNETS.STRIDE_IN_1X1", config.backbone, "stride_in_1x1", bool),
            ("MODEL.RPN.NMS_THRESH", config.rpn, "nms", float),
            ("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", config, "roi_sampling", int),
            ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", config, "roi_aligned", lambda kind: kind == "ROIAlignV2"),
            ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", config.box_head, "score_threshold", float),
            ("MODEL.ROI_HEADS.NMS_THRESH_TEST", config.box_head, "nms", float),
            ("TEST.DETECTIONS_PER_IMAGE", config.box_head, "max_detections", int),
        ]
        for key, owner, name, kind in simple:
            if (value := _get(self.content, key)) is not None:
                setattr(owner, name, kind(value))
        for name in ("pre_nms_top_n", "post_nms_top_n"):
            key = f"MODEL.RPN.{name.upper().replace('_TOP_N', '_TOPK')}"
            given = [_get(self.content, f"{key}_{mode}") for mode in ("TRAIN", "TEST")]
            own = getattr(config.rpn, name)
            setattr(config.rpn, name, tuple(o if g is None else g for g, o in zip(given, own, strict=True)))
        if sizes := _get(self.content, "MODEL.ANCHOR_GENERATOR.SIZES"):
            if len(sizes) != 5 or any(len(s) != 1 for s in sizes):
                raise self._unsupported("MODEL.ANCHOR_GENERATOR.SIZES", sizes, "one size for each of five levels")
            config.rpn.anchor_sizes = [float(size) for (size,) in sizes]
        if ratios := _get(self.content, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"):
            if len(ratios) != 1:
                raise self._unsupported("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", ratios, "one list for all levels")
            config.rpn.aspect_ratios = [float(ratio) for ratio in ratios[0]]
        ious = _get(self.content, "MODEL.ROI_BOX_CASCADE_HEAD.IOUS")
        if ious and len(config.box_head.ious) > 1:
            config.box_head.ious = [float(iou) for iou in ious]

    def _unsupported(self, key: str, value: Any, expected: str) -> RefineError:
        return RefineError(f"{self.path}: {key} is {value}, which is not supported; expected {expected}")


def read_settings(path: str | Path) -> Settings:
    """Read a configuration that completes a file of weights.

    Args:
        path: YAML of detectron2 (with MODEL; files in `_BASE_` are read too), YAML of refine (with `model` and
            optionally `eval`), or config.json of a model folder.

    Raises:
        RefineError: the file is missing or of neither kind, or the network is not supported.
    """
    content = _read(Path(path))
    if "MODEL" in content:
        settings = Settings(str(path), content=content)
        for key, known in _EXPECTED:
            if (value := _get(content, key)) is not None and value not in known:
                raise settings._unsupported(key, value, " or ".join(map(str, known)))
        combine = _get(content, "MODEL.PANOPTIC_FPN.COMBINE") or {}
        names = {
            "INSTANCES_CONFIDENCE_THRESH": "score_threshold",
            "OVERLAP_THRESH": "overlap_threshold",
            "STUFF_AREA_LIMIT": "stuff_area",
        }
        values = {field: combine[key] for key, field in names.items() if key in combine}
        settings.fusion = from_mapping(FusionConfig, values, str(path))
        short, long = (_get(content, f"INPUT.{name}_SIZE_TEST") for name in ("MIN", "MAX"))
        settings.test_size = (short or 800, long or 1333)
        return settings
    if isinstance(content.get("model"), dict):
        evaluation = content.get("eval", {})
        return Settings(
            str(path),
            from_mapping(ModelConfig, content["model"], f"{path}: model"),
            fusion=from_mapping(FusionConfig, content.get("fusion", evaluation.get("fusion", {})), str(path)),
            test_size=tuple(content.get("test_size", (evaluation.get("short", 800), evaluation.get("long", 1333)))),
        )
    raise RefineError(f"{path}: expected `model` (refine) or `MODEL` (detectron2), got neither; give another file")


def _read(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise RefineError(f"{path}: contains no fields; give another file")
    base = content.pop("_BASE_", None)
    return _merged(_read(path.parent / base), content) if isinstance(base, str) else content


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _get(content: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted path, or None."""
    value: Any = content
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
