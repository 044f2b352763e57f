"""refine fuse"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from refine.cli.options import add_fusion, fusion_changes, refuse_overwriting, require_paths
from refine.errors import RefineError
from refine.fusion.config import HEADS, FusionConfig, Method

if TYPE_CHECKING:
    from refine.formats.panoptic_json import ImageEntry
    from refine.structures import Categories


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = argparse.ArgumentParser(
        prog,
        description=description,
        epilog="Semantic PNGs have one channel of 8 or 16 bits with the category id of each pixel, 0 for none. "
        "Semantic and confidence PNGs have the path of their image with the suffix .png.",
    )
    parser.add_argument("--instances", required=True, help="COCO results JSON: image_id, category_id, score, mask")
    parser.add_argument("--semantic", required=True, help="folder of semantic PNGs")
    parser.add_argument("--confidence", help="folder of semantic confidence PNGs, 0-255 for 0-1")
    parser.add_argument("--categories", required=True, help="JSON with `images` and panoptic `categories`")
    parser.add_argument(
        "--method", choices=get_args(Method), default="heuristic", help="fusion rule (default: heuristic)"
    )
    parser.add_argument(
        "--checkpoint",
        help="model with the ranking or occlusion head of a learned rule (an occlusion head without features)",
    )
    add_fusion(parser, FusionConfig())
    parser.add_argument("-o", "--out", required=True, help="folder for panoptic.json and panoptic/")
    options = parser.parse_args(arguments)

    if options.unknown_erasing and not options.confidence:
        raise RefineError("--unknown-erasing: needs --confidence; give the folder, or omit --unknown-erasing")
    config = FusionConfig(**fusion_changes(options))
    out = Path(options.out)
    given = [options.instances, options.categories, options.semantic, options.confidence]
    require_paths(given)
    refuse_overwriting("--out: its", [out / "panoptic.json", out / "panoptic"], given)

    from refine.formats.fusion_inputs import read_confidence, read_results, read_semantic
    from refine.formats.panoptic_json import PanopticJson

    content = PanopticJson(options.categories, needs=("images", "categories"))
    categories = content.categories
    by_image = read_results(options.instances, content.images)

    from refine.formats.adapters import from_coco
    from refine.formats.writer import PredictionWriter
    from refine.fusion import fuse

    learned = _learned(options.method, options.checkpoint, categories)
    with PredictionWriter(options.out, categories) as writer:
        for image_id, (name, height, width) in map(_named, content.images.items()):
            source = f"{options.instances}: image {image_id}"
            result = fuse(
                from_coco(by_image[image_id], (height, width), categories, source, config.score_threshold),
                read_semantic(options.semantic, name, (height, width), categories),
                categories=categories,
                method=options.method,
                sem_confidence=read_confidence(options.confidence, name, (height, width))
                if options.confidence
                else None,
                config=config,
                **learned,
            )
            writer.add(image_id, name, result)
    print(f"{len(content.images)} images fused by {options.method!r}: {options.out}/panoptic.json")


def _named(item: tuple[int | str, ImageEntry]) -> tuple[int | str, tuple[str, int, int]]:
    """Return the image id and (file name, height, width); the reader has checked that they are present."""
    image_id, image = item
    assert image.file_name is not None
    assert image.size is not None
    return image_id, (image.file_name, *image.size)


def _learned(method: str, checkpoint: str | None, categories: Categories) -> dict[str, Any]:
    """Return the keyword argument of `fuse` that a learned rule needs, from a checkpoint; {} for other rules."""
    name = HEADS.get(method)
    if name is None:
        if checkpoint:
            raise RefineError(f"--checkpoint: method {method!r} is not learned; omit the option")
        return {}
    if not checkpoint:
        cues = "" if name == "ranking" else " on the cues mask and label (--model.occlusion.cues '[mask, label]')"
        raise RefineError(f"--method {method}: needs --checkpoint, a model whose {name} head is trained{cues}")

    from refine.checkpoint.folder import load_model
    from refine.formats.adapters import add_roi_masks
    from refine.networks.native import NativeNetwork

    saved = load_model(checkpoint)
    head = getattr(saved.model, name)
    if head is None:
        raise RefineError(f"--checkpoint {checkpoint}: has no {name} head; train one (`optim.train_only`)")
    if name == "occlusion" and "feature" in head.config.cues:
        raise RefineError(
            f"--checkpoint {checkpoint}: its occlusion head needs {', '.join(head.config.cues)}, and files hold no "
            "features; train one with --model.occlusion.cues '[mask, label]'"
        )
    if [c for c in saved.categories if c.isthing] != [c for c in categories if c.isthing]:
        raise RefineError(f"--checkpoint {checkpoint}: its things differ from those of --categories; use its own")
    predict = NativeNetwork(saved).fusion_heads()[name]
    if name == "ranking":
        return {name: predict}
    return {name: lambda instances, pairs: predict(add_roi_masks(instances), pairs)}
