"""Resolutions that TIFF files state, as tifffile, ImageJ's metadata and OME write them."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from refine.formats import windows
from refine.formats.raw import ImageOptions
from refine.formats.resolution import stated_mpp
from refine.formats.windows import open_windows

PIXELS = np.zeros((8, 8), np.uint8)
OME = {"PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm", "axes": "YX"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}, 0.5),
        ({"resolution": (50800, 50800), "resolutionunit": "INCH"}, 0.5),
        ({"resolution": (2000, 2000), "resolutionunit": "MILLIMETER"}, 0.5),
        ({"resolution": (2, 2), "resolutionunit": "MICROMETER"}, 0.5),
        ({"imagej": True, "resolution": (2000, 2000), "metadata": {"unit": "mm"}}, 0.5),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),  # a print
        ({"resolution": (2, 2)}, None),  # no unit
        ({}, None),
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "um"}}, 0.25),
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "pixel"}}, None),
        ({"ome": True, "metadata": OME}, 0.25),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.5, "axes": "YX"}}, 0.5),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.0, "axes": "YX"}}, None),
        # Pixels that are not square, in each of the places
        ({"resolution": (20000, 10000), "resolutionunit": "CENTIMETER"}, None),
        ({"resolution": (20000, 20100), "resolutionunit": "CENTIMETER"}, 0.5),  # rounded
        ({"imagej": True, "resolution": (4, 5), "metadata": {"unit": "um"}}, None),
        ({"ome": True, "metadata": OME | {"PhysicalSizeY": 500.0, "PhysicalSizeYUnit": "nm"}}, None),
        ({"ome": True, "metadata": OME | {"PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"}}, 0.25),
    ],
)
def test_tiff(options, expected, tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", PIXELS, **options)
    assert stated_mpp(tmp_path / "x.tif") == (None if expected is None else pytest.approx(expected))


def test_a_unit_with_a_character_reference(tmp_path):
    path = tmp_path / "x.ome.tif"
    tifffile.imwrite(path, PIXELS, metadata=OME)
    tifffile.tiffcomment(path, tifffile.tiffcomment(path).replace('"nm"', '"&#181;m"'))
    assert stated_mpp(path) == 250.0


def test_other_files_state_none(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "x.png", dpi=(50800, 50800))
    assert stated_mpp(tmp_path / "x.png") is None


@pytest.mark.parametrize("ome", [False, True])
def test_a_page_has_the_resolution_of_its_own_series(ome, tmp_path, monkeypatch):
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path, ome=ome) as file:
        for size, mpp in ((8, 0.25), (6, 0.5)):
            metadata = {"axes": "YX", "PhysicalSizeX": mpp, "PhysicalSizeY": mpp} if ome else None
            tags = {} if ome else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
            file.write(PIXELS[:size], photometric="minisblack", metadata=metadata, **tags)
    assert stated_mpp(path) == 0.25
    for large in (0, 1 << 24):
        monkeypatch.setattr(windows, "WHOLE", large)
        assert [open_windows(path, ImageOptions(page=page)).mpp for page in (1, 2)] == [0.25, 0.5]
