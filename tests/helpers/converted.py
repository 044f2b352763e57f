"""Running `refine import` in this process and reading its result without the package's readers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from refine.cli.main import main

SIZE = (60, 80)
"""(height, width) of the drawn images."""


@dataclass(frozen=True)
class Converted:
    """Content of a converted data set.

    Attributes:
        content: the panoptic JSON.
        maps: image name -> segment ids, [H, W].
        output: what the command printed, stderr after stdout.
    """

    content: dict[str, Any]
    maps: dict[str, np.ndarray]
    output: str

    @property
    def counts(self) -> dict[str, int]:
        return self.content["info"]["counts"]

    @property
    def categories(self) -> dict[str, tuple[int, int]]:
        """Name -> (id, isthing)."""
        return {c["name"]: (c["id"], c["isthing"]) for c in self.content["categories"]}

    def segments(self, name: str) -> list[dict[str, Any]]:
        image_id = next(image["id"] for image in self.content["images"] if image["file_name"] == name)
        return next(a["segments_info"] for a in self.content["annotations"] if a["image_id"] == image_id)

    def masks(self, name: str, category: str) -> list[np.ndarray]:
        """Masks of the segments of a category in an image, by area."""
        number = self.categories[category][0]
        ids = [s["id"] for s in self.segments(name) if s["category_id"] == number]
        return sorted((self.maps[name] == i for i in ids), key=np.count_nonzero)


def convert(capsys: pytest.CaptureFixture[str], out: Path, *arguments: object, check: bool = True) -> Converted:
    """Run `refine import ARGUMENTS -o OUT` and `refine check-data`, which must both succeed."""
    capsys.readouterr()
    code = main(["import", *map(str, arguments), "-o", str(out)])
    text = "".join(capsys.readouterr())
    assert code == 0, text
    content = json.loads((out / "panoptic.json").read_text())
    assert not (out / "unfinished.jsonl").exists()
    if check:
        paths = ["--images", out / "images", "--json", out / "panoptic.json", "--segments", out / "segments"]
        assert main(["check-data", *map(str, paths)]) == 0, "".join(capsys.readouterr())
    maps = {}
    files = {annotation["image_id"]: annotation["file_name"] for annotation in content["annotations"]}
    for image in content["images"]:
        rgb = np.asarray(Image.open(out / "segments" / files[image["id"]])).astype(np.int64)
        maps[image["file_name"]] = rgb @ [1, 256, 65536]
        assert Image.open(out / "images" / image["file_name"]).size == (image["width"], image["height"])
    return Converted(content, maps, text)


def refused(capsys: pytest.CaptureFixture[str], out: Path, *arguments: object) -> str:
    """Run `refine import`, which must fail with one line, and return that; no panoptic JSON may be left."""
    capsys.readouterr()
    assert main(["import", *map(str, arguments), "-o", str(out)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert not (out / "panoptic.json").exists()
    assert lines[-1].startswith("refine: error: ")
    return lines[-1].removeprefix("refine: error: ")


def draw_image(path: Path, size: tuple[int, int] = SIZE) -> Path:
    """Write an image with some content and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def draw_mask(shape: str, *coordinates: float, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Mask of an "ellipse" or "rectangle" with the box x1, y1, x2, y2, drawn by Pillow: [H, W] bool."""
    image = Image.new("1", (size[1], size[0]))
    getattr(ImageDraw.Draw(image), shape)(coordinates, fill=1)
    return np.asarray(image.convert("L")) > 0


def same_objects(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    """Whether two lists hold the same masks in any order."""
    return sorted(mask.tobytes() for mask in one) == sorted(mask.tobytes() for mask in other)
