"""Tests of `image_size` against the decoder, and of files that are no images."""

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from refine.errors import RefineError
from refine.formats.image_size import image_size
from refine.formats.images import read_image

PIXELS = np.random.default_rng(0).integers(0, 255, (12, 20, 3), dtype=np.uint8)


@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "avif", "heic"])
def test_both_sizes(tmp_path: Path, suffix: str, orientation: int | None) -> None:
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    if suffix == "heic":
        pytest.importorskip("pillow_heif").from_pillow(Image.fromarray(PIXELS)).save(path)
    else:
        Image.fromarray(PIXELS).save(path, exif=exif)
    size = image_size(path, "a")
    assert size.shown == tuple(read_image(path).shape[1:])
    assert size.stored in (size.shown, size.shown[::-1])
    assert size == image_size(path.read_bytes(), "a")
    if orientation == 6 and suffix in ("jpg", "png", "webp"):
        assert size == ((12, 20), (20, 12))


def test_tiff_that_pillow_cannot_open(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", PIXELS.astype(np.float64), photometric="rgb")
    assert image_size(tmp_path / "a.tif", "a").stored == (12, 20)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    Image.new("1", (20_000, 7_000)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "short.tif").write_bytes(b"II*\0\xff\xff")
    os.mkfifo(tmp_path / "pipe.png")
    for name, message in (
        ("bomb.png", "has more than 134,217,728 pixels"),
        ("large.png", "has more than 134,217,728 pixels"),
        ("text.png", "is not a supported image"),
        ("empty.png", "the file is empty"),
        ("short.tif", "is damaged"),
        ("pipe.png", "is not a regular file"),
        ("none.png", "No such file"),
    ):
        with pytest.raises(RefineError, match=message):
            image_size(tmp_path / name, str(tmp_path / name))
