"""Procedural scenes in COCO panoptic format with known depth order.

Textured shapes overlap in front of textured grounds. Thin shapes usually lie in front of flat ones (four times
in five), nearer things are less hazy and cast shadows, and a complete outline belongs to the thing in front.
Class, appearance and shape are therefore all cues of the order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from hotcoco import mask as rle

from refine.data.synthetic import shapes as shapes
from refine.errors import RefineError
from refine.files import write_bytes, write_json
from refine.folders import atomic_folder, check_empty
from refine.structures import id_to_rgb

MIN_VISIBLE = 24
"""Minimum number of visible pixels of a thing; others are dropped."""
_IN_FRONT = 0.37
"""Added to the random depth, 0-1, of thin shapes: they lie in front with probability 1 - (1 - 0.37)² / 2 = 0.80."""


@dataclass(frozen=True)
class _Thing:
    outline: Any
    scale: tuple[float, float]  # fraction of the short side of the image
    hue: float
    bias: float
    texture: shapes.Texture


_THINGS = {
    "disc": _Thing(shapes.disc, (0.16, 0.42), 0.0, 0.0, shapes.plain),
    "rectangle": _Thing(shapes.rectangle, (0.18, 0.48), 0.58, 0.0, shapes.stripes),
    "polygon": _Thing(shapes.polygon, (0.18, 0.48), 0.3, 0.0, shapes.clouds),
    "star": _Thing(shapes.star, (0.16, 0.4), 0.14, 0.5 * _IN_FRONT, shapes.gradient),
    "ring": _Thing(shapes.ring, (0.2, 0.48), 0.8, _IN_FRONT, shapes.plain),
    "bar": _Thing(shapes.bar, (0.35, 0.9), 0.08, _IN_FRONT, shapes.grain),
    "cross": _Thing(shapes.cross, (0.22, 0.5), 0.5, _IN_FRONT, shapes.plain),
}
_STUFF: dict[str, tuple[float, shapes.Texture]] = {
    "haze": (0.57, shapes.gradient),
    "furrows": (0.1, shapes.stripes),
    "gravel": (0.75, shapes.grain),
    "tiles": (0.03, shapes.checks),
    "moss": (0.3, shapes.clouds),
}
CATEGORIES = [
    {"id": n + 1, "name": name, "isthing": int(name in _THINGS), "supercategory": kind}
    for n, (name, kind) in enumerate([*((t, "shape") for t in _THINGS), *((s, "ground") for s in _STUFF)])
]
_ID = {category["name"]: category["id"] for category in CATEGORIES}


@dataclass(frozen=True)
class Scene:
    """One scene; things are sorted from near to far, so the index of a thing is its depth.

    Attributes:
        image: [H, W, 3] uint8 RGB.
        ids: [H, W] int32, segment ids, without void.
        segments: `segments_info` of COCO panoptic JSON, things with `depth` (0 = nearest), then stuff.
        masks: [N, H, W] bool, complete mask of each thing, including hidden parts.
    """

    image: np.ndarray
    ids: np.ndarray
    segments: list[dict[str, Any]]
    masks: np.ndarray


def make_scene(
    seed: int, index: int, size: tuple[int, int] = (256, 256), things: tuple[int, int] = (4, 12)
) -> Scene:
    """Draw the scene that is determined by the arguments.

    Args:
        seed, index: seed of the data set and index of the scene, at least 0.
        size: (height, width) in pixels, each at least 64.
        things: minimum and maximum number of things, before hidden ones are dropped.
    """
    generator = np.random.default_rng([seed, index])
    ground, image = _grounds(generator, size)
    names, coverage = _place(generator, size, things)
    masks = coverage > 127
    top = _nearest(masks)
    seen = np.bincount(top.ravel() + 1, minlength=len(names) + 1)[1:] >= MIN_VISIBLE
    names, coverage, masks = [n for n, s in zip(names, seen, strict=True) if s], coverage[seen], masks[seen]
    top = _nearest(masks)
    for depth in reversed(range(len(names))):
        _draw(generator, image, coverage[depth], masks[depth], names[depth], depth / max(len(names), 6))
    image = _photograph(generator, image)

    classes = np.concatenate([[_ID[n] for n in names], [_ID[s] for s in _STUFF]]).astype(int)
    segment = np.where(top >= 0, top, len(names) + ground)  # things, then stuff
    numbers = generator.choice(2**24 - 1, len(classes), replace=False) + 1
    segments = []
    for k in np.flatnonzero(np.bincount(segment.ravel(), minlength=len(classes))).tolist():
        box, area = _box(segment == k)
        info = {"id": int(numbers[k]), "category_id": int(classes[k]), "area": area, "bbox": box, "iscrowd": 0}
        segments.append(info | ({"depth": k} if k < len(names) else {}))
    return Scene(image, numbers[segment].astype(np.int32), segments, masks)


def generate(
    out: str | Path,
    images: int,
    size: tuple[int, int] = (256, 256),
    seed: int = 0,
    things: tuple[int, int] = (4, 12),
) -> None:
    """Write a data set: images/*.jpg, segments/*.png, panoptic.json and instances.json; all of it or nothing.

    Thing segments of panoptic.json have a `depth` (0 = nearest). instances.json (COCO instances) contains the
    *complete* mask of each thing as run lengths, with `depth` and the `segment_id` of its visible part.

    Args:
        out: output folder, empty or missing.
        images: number of images; image n depends only on n, `seed`, `size` and `things`.
        size: (height, width) in pixels, each at least 64.
        seed: seed of the data set, at least 0.
        things: minimum and maximum number of things per image.

    Raises:
        RefineError: an argument is out of range, or the folder is not empty or cannot be written.
    """
    if images < 1 or min(size) < 64 or seed < 0 or not 0 <= things[0] <= things[1]:
        raise RefineError(
            f"synthetic data: images {images}, size {size}, seed {seed}, things {things}: give at least one "
            f"image, sides of at least 64, a seed of at least 0 and an increasing range of things"
        )
    check_empty(out, "choose another one")
    with atomic_folder(out) as folder:
        _write_scenes(folder, images, size, seed, things)


def _write_scenes(out: Path, images: int, size: tuple[int, int], seed: int, things: tuple[int, int]) -> None:
    """Write the files of `generate`."""
    entries: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    for n in range(images):
        scene = make_scene(seed, n, size, things)
        name = f"{n:06d}"
        _write(out / "images" / f"{name}.jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, 92])
        _write(out / "segments" / f"{name}.png", id_to_rgb(scene.ids), [cv2.IMWRITE_PNG_COMPRESSION, 4])
        entries.append({"id": n, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]})
        panoptic.append({"image_id": n, "file_name": f"{name}.png", "segments_info": scene.segments})
        for whole, segment in zip(scene.masks, scene.segments, strict=False):
            instances.append({"id": len(instances) + 1, "image_id": n} | _instance(whole, segment))
    common = {"info": {"description": f"procedural scenes, seed {seed}"}, "images": entries}
    things_only = [category for category in CATEGORIES if category["isthing"]]
    write_json(out / "instances.json", common | {"annotations": instances, "categories": things_only})
    write_json(out / "panoptic.json", common | {"annotations": panoptic, "categories": CATEGORIES})


def _instance(whole: np.ndarray, segment: dict[str, Any]) -> dict[str, Any]:
    code = rle.encode(whole)
    box, area = _box(whole)
    return {
        "category_id": segment["category_id"],
        "segmentation": {"size": code["size"], "counts": code["counts"].decode("ascii")},
        "area": area,
        "bbox": box,
        "iscrowd": 0,
        "depth": segment["depth"],
        "segment_id": segment["id"],
    }


def _grounds(generator: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw two to four grounds side by side; return index in `_STUFF`, [H, W], and colours, [H, W, 3] float32."""
    names = list(_STUFF)
    kinds = generator.permutation(len(names))[: generator.integers(2, 5)]
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    short = min(size)
    distance = np.empty((len(kinds), *size), np.float32)
    for part in distance:
        y, x = generator.uniform((0, 0), size)
        np.hypot(np.float32(0.6) * (columns - np.float32(x)), rows - np.float32(y), out=part)
        part += np.float32(0.35 * short) * shapes.noise(generator, size, short / 4)
    soft = np.float32(0.006 * short + generator.uniform(0.2, 2.5))
    weights = np.exp((distance.min(0) - distance) / soft)
    weights /= weights.sum(0)
    bases, relief = [], np.zeros(size, np.float32)
    for kind, weight in zip(kinds, weights, strict=True):
        hue, texture = _STUFF[names[kind]]
        bases.append(0.5 * shapes.color(generator, hue, 0.06) + 0.5 * generator.uniform(60, 190))
        relief += np.float32(generator.uniform(30, 90)) * weight * (texture(generator, size) - np.float32(0.5))
    image = np.moveaxis(weights, 0, -1) @ np.array(bases, np.float32)  # H×W×K @ K×3
    return kinds[distance.argmin(0)], image + relief[..., None]


def _place(
    generator: np.random.Generator, size: tuple[int, int], things: tuple[int, int]
) -> tuple[list[str], np.ndarray]:
    """Place things, most of them near another; return names and coverage, [N, H, W] uint8, nearest first."""
    count = int(generator.integers(things[0], things[1] + 1))
    short, frame = min(size), np.array(size[::-1], float)
    placed: list[tuple[float, str, np.ndarray]] = []
    centres: list[np.ndarray] = []
    for _ in range(count):
        name = list(_THINGS)[generator.integers(len(_THINGS))]
        kind = _THINGS[name]
        if centres and generator.random() < 0.65:
            centre = centres[generator.integers(len(centres))] + generator.normal(0, 0.13 * short, 2)
        else:
            centre = generator.uniform(0.08, 0.92, 2) * frame
        centre = centre.clip(0.04 * frame, 0.96 * frame)
        centres.append(centre)
        scale, angle = generator.uniform(*kind.scale) * short, generator.uniform(0, 2 * np.pi)
        coverage = shapes.rasterise(kind.outline(generator), centre, scale, angle, size)
        placed.append((generator.random() + kind.bias, name, coverage))
    placed.sort(key=lambda item: -item[0])
    coverages = np.array([item[2] for item in placed], np.uint8).reshape(-1, *size)
    return [item[1] for item in placed], coverages


def _nearest(masks: np.ndarray) -> np.ndarray:
    """Return the nearest thing of each pixel, [H, W] int64 or -1, of masks, [N, H, W] bool, nearest first."""
    top = np.full(masks.shape[1:], -1)
    for depth in reversed(range(len(masks))):
        top[masks[depth]] = depth
    return top


def _draw(
    generator: np.random.Generator,
    image: np.ndarray,
    coverage: np.ndarray,
    mask: np.ndarray,
    name: str,
    haze: float,
) -> None:
    """Paint one thing and its shadow over the image, in place."""
    kind, short = _THINGS[name], min(mask.shape)
    (x, y, width, height), _ = _box(mask)
    reach = max(6, short // 20)
    rows = slice(max(y - reach, 0), y + height + reach)
    columns = slice(max(x - reach, 0), x + width + reach)
    part, alpha = image[rows, columns], coverage[rows, columns].astype(np.float32) / 255
    shift = np.array([[1, 0, 0.012 * short], [0, 1, 0.016 * short]], np.float32)
    shadow = cv2.GaussianBlur(alpha, (0, 0), 0.012 * short)
    shadow = cv2.warpAffine(shadow, shift, alpha.shape[::-1])
    part *= 1 - np.float32(generator.uniform(0, 0.55)) * shadow[..., None]

    texture = kind.texture if generator.random() < 0.6 else _any_texture(generator)
    spread = 0.06 if generator.random() < 0.6 else 0.5
    base, contrast = shapes.color(generator, kind.hue, spread), generator.uniform(5, 40)
    surface = shapes.paint(texture(generator, alpha.shape), base, contrast)
    edge = alpha - cv2.GaussianBlur(alpha, (0, 0), 0.01 * short)  # highlight along the rim
    surface += np.float32(generator.uniform(-40, 40)) * edge[..., None]
    surface += np.float32(0.35 * haze) * (150 - surface)
    part += alpha[..., None] * (surface - part)


def _any_texture(generator: np.random.Generator) -> shapes.Texture:
    options = [shapes.plain, shapes.gradient, shapes.stripes, shapes.clouds, shapes.grain, shapes.checks]
    return options[generator.integers(len(options))]


def _photograph(generator: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Add uneven light, blur and noise: [H, W, 3] float32 -> uint8."""
    size = image.shape[:2]
    image = image * (0.8 + 0.4 * shapes.noise(generator, size, max(size)))[..., None]
    image = cv2.GaussianBlur(image, (0, 0), generator.uniform(0.3, 1.1))
    grain = np.float32(generator.uniform(1, 7)) * generator.standard_normal(image.shape, dtype=np.float32)
    return (image + grain).clip(0, 255).astype(np.uint8)


def _box(mask: np.ndarray) -> tuple[list[int], int]:
    """Return the box (x, y, width, height) and the area of a non-empty mask, in pixels."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return [x, y, width, height], int(np.count_nonzero(mask))


def _write(path: Path, rgb: np.ndarray, options: list[int]) -> None:
    _, data = cv2.imencode(path.suffix, np.ascontiguousarray(rgb[..., ::-1]), options)
    write_bytes(path, data.data)
