"""Values as they are stored, rotated as Pillow rotates by the EXIF tag."""

import csv
import io

import numpy as np
import pytest
import tifffile
import torch
from PIL import ExifTags, Image, ImageOps

from refine.formats.images import read_image
from refine.formats.raw import ImageOptions
from refine.formats.stored_values import stored_values
from refine.structures import Categories, Category, PanopticResult, Segment

VALUES = np.arange(24, dtype=np.uint16).reshape(4, 6) * 1000


@pytest.mark.parametrize("orientation", range(1, 9))
def test_files_of_16_bits(orientation, tmp_path):
    image = Image.fromarray((VALUES // 1000).astype(np.uint8))
    image.getexif()[ExifTags.Base.Orientation] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image)).astype(int) * 1000
    tag = (274, "H", 1, orientation, True)
    tifffile.imwrite(tmp_path / "x.tif", VALUES, extratags=[tag])
    found = stored_values(tmp_path / "x.tif", None, expected.shape)
    assert np.array_equal(found[..., 0], expected)
    as_stored = stored_values(tmp_path / "x.tif", None, VALUES.shape)
    assert np.array_equal(as_stored[..., 0], expected if expected.shape == VALUES.shape else VALUES)
    as_stored = stored_values(tmp_path / "x.tif", ImageOptions(exif="stored"), VALUES.shape)
    assert np.array_equal(as_stored[..., 0], VALUES)


BYTES = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
COLORS = np.dstack([BYTES, BYTES[::-1], 255 - BYTES])
OPACITY = np.where(BYTES < 100, 128, 255).astype(np.uint8)


def encoded(values):
    content = io.BytesIO()
    Image.fromarray(values).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(np.dstack([COLORS, OPACITY])), COLORS),
        (np.dstack([COLORS, OPACITY]), COLORS),
        (torch.from_numpy(np.dstack([COLORS, OPACITY])).movedim(-1, 0), COLORS),
        (Image.fromarray(np.dstack([BYTES, OPACITY]), "LA"), BYTES),
        (Image.fromarray(BYTES), BYTES),
        (Image.fromarray(COLORS), COLORS),
        (VALUES, VALUES),
        (Image.fromarray(VALUES), VALUES),
        (torch.from_numpy(VALUES)[None], VALUES),
        (torch.from_numpy(VALUES), VALUES),
        (torch.from_numpy(BYTES).div(256).bfloat16(), BYTES / 256),
        (encoded(VALUES), VALUES),
        (encoded(np.dstack([COLORS, OPACITY])), COLORS),
    ],
)
def test_images_of_any_type(image, expected, tmp_path):
    expected = np.atleast_3d(expected)
    assert np.array_equal(stored_values(image, None, BYTES.shape), expected)
    if isinstance(image, Image.Image):
        image.save(tmp_path / "x.png")
        assert np.array_equal(stored_values(tmp_path / "x.png", None, BYTES.shape), expected)
        if expected.shape[2] == 3:
            second = stored_values(tmp_path / "x.png", ImageOptions(channel=2), BYTES.shape)
            assert np.array_equal(second[..., 0], expected[..., 1])


@pytest.mark.filterwarnings("error")
def test_palettes_with_several_opacities(tmp_path):
    image = Image.fromarray(COLORS).quantize(8)
    image.save(tmp_path / "x.png", transparency=bytes([0, 128]))
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(stored_values(tmp_path / "x.png", None, BYTES.shape), expected)
    second = read_image(tmp_path / "x.png", options=ImageOptions(channel=2))
    assert np.array_equal(second[0], expected[..., 1])


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("values", [BYTES, VALUES])
def test_files_in_which_0_is_white(values, orientation, tmp_path):
    tag = (274, "H", 1, orientation, True)
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="miniswhite", extratags=[tag])
    expected = np.rot90(values, -1) if orientation == 6 else values
    assert np.array_equal(stored_values(tmp_path / "x.tif", None, expected.shape)[..., 0], expected)


def test_the_table_of_objects_has_means_of_stored_values(tmp_path):
    result = PanopticResult(
        torch.ones(4, 6, dtype=torch.int32),
        [Segment(1, 3, True, 0.9, 24, (0, 0, 6, 4))],
        Categories([Category(3, "cell", True)]),
    )
    for image, expected in (
        (np.dstack([COLORS, OPACITY]), COLORS),
        (np.dstack([BYTES, BYTES, BYTES]), BYTES),
        (Image.fromarray(VALUES), VALUES),
    ):
        result.save(tmp_path, formats="csv", image=image, file_name="x.png")
        (row,) = csv.DictReader((tmp_path / "objects.csv").read_text().splitlines())
        means = [float(row[name]) for name in ("mean_1", "mean_2", "mean_3") if row[name]]
        assert means == pytest.approx(np.atleast_3d(expected).mean((0, 1)).tolist())
