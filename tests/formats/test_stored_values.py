"""Values as they are stored, rotated as Pillow rotates by the EXIF tag."""

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageOps

from refine.formats.raw import ImageOptions
from refine.formats.stored_values import stored_values

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


def test_images_of_8_bits_have_no_other_values(tmp_path):
    Image.fromarray(VALUES.astype(np.uint8)).save(tmp_path / "x.png")
    for image in (tmp_path / "x.png", VALUES.astype(np.uint8), Image.open(tmp_path / "x.png"), b"x"):
        assert stored_values(image, None, VALUES.shape) is None
    assert np.array_equal(stored_values(VALUES, None, VALUES.shape)[..., 0], VALUES)
