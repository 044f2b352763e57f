"""refine fuse"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from refine.cli.options import add_fusion, fusion_changes, refuse_overwriting
from refine.errors import RefineError
from refine.fusion.config import HEADS, FusionConfig, Method

if TYPE_CHECKING:
    from torch import Tensor

    from refine.formats.panoptic_json import ImageEntry
    from refine.structures import Categories


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = argparse.ArgumentParser(
        prog,
        description=description,
        epilog="Semantic PNGs have one channel of 8 or 16 bits: the category id of each pixel, 0 for none. "
        "They and the confidences are named like the picture, with .png.",
    )
    parser.add_argument("--instances", required=True, help="COCO results JSON: image_id, category_id, score, mask")
    parser.add_argument("--semantic", required=True, help="folder of semantic PNGs")
    parser.add_argument("--confidence", help="folder of PNGs of the semantic confidence, 0-255 for 0-1")
    parser.add_argument("--categories", required=True, help="JSON with `images` and panoptic `categories`")
    parser.add_argument("--method", choices=get_args(Method), default="heuristic", help="rule (heuristic)")
    parser.add_argument(
        "--checkpoint",
        help="of learned rules: a model with the head that they ask; an occlusion head must see no features",
    )
    add_fusion(parser, FusionConfig())
    parser.add_argument("-o", "--out", required=True, help="folder for panoptic.json and panoptic/")
    options = parser.parse_args(arguments)

    import torch

    from refine.formats.adapters import from_coco
    from refine.formats.panoptic_json import PanopticJson
    from refine.formats.writer import PredictionWriter
    from refine.fusion import fuse

    if options.unknown_erasing and not options.confidence:
        raise RefineError("--unknown-erasing: needs --confidence; give the folder, or leave erasing out")
    config = FusionConfig(**fusion_changes(options))
    out = Path(options.out)
    given = [options.instances, options.categories, options.semantic, options.confidence]
    refuse_overwriting("--out: its", [out / "panoptic.json", out / "panoptic"], given)
    content = PanopticJson(options.categories, needs=("images", "categories"))
    categories = content.categories
    images = {image_id: _named(image) for image_id, image in content.images.items()}
    by_image = _by_image(options.instances, images)
    learned = _learned(options.method, options.checkpoint, categories)
    with PredictionWriter(options.out, categories) as writer:
        for image_id, (name, height, width) in images.items():
            instances = from_coco(
                by_image[image_id], (height, width), categories, f"{options.instances}: image {image_id}"
            )
            sem_seg = _semantic(Path(options.semantic), name, (height, width), categories)
            confidence = None
            if options.confidence:
                path = _png(Path(options.confidence), name)
                confidence = torch.from_numpy(_gray(path, (height, width), 255)).float() / 255
            result = fuse(
                instances,
                sem_seg,
                categories=categories,
                method=options.method,
                sem_confidence=confidence,
                config=config,
                **learned,
            )
            writer.add(image_id, name, result)
    print(f"{len(images)} pictures fused by {options.method!r}: {options.out}/panoptic.json")


def _named(image: ImageEntry) -> tuple[str, int, int]:
    """(file name, height, width), which the reader has made sure of."""
    assert image.file_name is not None
    assert image.size is not None
    return (image.file_name, *image.size)


def _by_image(path: str, images: Mapping[int | str, Any]) -> dict[int | str, list[dict[str, Any]]]:
    """Results by image id."""
    from refine.files import read_json
    from refine.formats.panoptic_json import is_id

    results = read_json(path)
    if not isinstance(results, list) or not all(isinstance(entry, dict) for entry in results):
        raise RefineError(f"{path}: is no list of mappings; give COCO's results format")
    by_image: dict[int | str, list[dict[str, Any]]] = defaultdict(list)
    for n, entry in enumerate(results):
        image_id = entry.get("image_id")
        if not is_id(image_id) or image_id not in images:
            raise RefineError(f"{path}: entry {n}: image_id {image_id!r:.40} is not in `images`; add it")
        by_image[image_id].append(entry)
    return by_image


def _semantic(folder: Path, name: str, size: tuple[int, int], categories: Categories) -> Tensor:
    """Semantic PNG of category ids -> Tensor[H, W] int64 of contiguous classes."""
    import numpy as np
    import torch

    from refine.structures import VOID

    path = _png(folder, name)
    ids = _gray(path, size, 65535)
    lookup = np.full(65536, VOID - 1)
    lookup[0] = VOID
    for category in categories:
        if category.id < len(lookup):
            lookup[category.id] = categories.index(category.id)
    labels = lookup[ids]
    if (labels < VOID).any():
        unknown = ids[labels < VOID][0]
        raise RefineError(f"{path}: has category id {unknown}, which is not among the categories; 0 is for none")
    return torch.from_numpy(labels)


def _png(folder: Path, name: str) -> Path:
    return folder / Path(name).with_suffix(".png").name


def _gray(path: Path, size: tuple[int, int], most: int) -> Any:
    from refine.formats.id_png import read_gray

    values = read_gray(path)
    if values.shape != size:
        raise RefineError(
            f"{path}: {values.shape[1]} × {values.shape[0]} pixels, expected {size[1]} × {size[0]}; resize it"
        )
    if values.max() > most:
        raise RefineError(f"{path}: has the value {values.max()}; values go to {most}")
    return values


def _learned(method: str, checkpoint: str | None, categories: Categories) -> dict[str, Any]:
    """What a learned rule asks, from a checkpoint's head that looks at masks and classes alone."""
    name = HEADS.get(method)
    if name is None:
        if checkpoint:
            raise RefineError(f"--checkpoint: method {method!r} learns nothing; leave it out")
        return {}
    if not checkpoint:
        cues = "" if name == "ranking" else ", on the cues mask and label (--model.occlusion.cues '[mask, label]')"
        raise RefineError(f"--method {method}: needs --checkpoint, a model whose {name} head is trained{cues}")

    from refine.checkpoint.folder import load_model
    from refine.formats.adapters import add_roi_masks
    from refine.inference.predictor import fusion_heads

    saved = load_model(checkpoint)
    head = getattr(saved.model, name)
    if head is None:
        raise RefineError(f"--checkpoint {checkpoint}: has no {name} head; train one (`optim.train_only`)")
    if name == "occlusion" and "feature" in head.config.cues:
        raise RefineError(
            f"--checkpoint {checkpoint}: its occlusion head sees {', '.join(head.config.cues)}, and files have no "
            "features; train one with --model.occlusion.cues '[mask, label]'"
        )
    if [c for c in saved.categories if c.isthing] != [c for c in categories if c.isthing]:
        raise RefineError(f"--checkpoint {checkpoint}: its things differ from those of --categories; use its own")
    predict = fusion_heads(saved.model, saved.test_size)[name]
    if name == "ranking":
        return {name: predict}
    return {name: lambda instances, pairs: predict(add_roi_masks(instances), pairs)}
