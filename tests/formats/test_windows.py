"""Windows of image files equal the parts of the whole image."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from refine.errors import RefineError
from refine.formats import windows
from refine.formats.image_list import SLIDES
from refine.formats.images import read_image
from refine.formats.raw import ImageOptions
from refine.formats.tiff_windows import TiffWindows
from refine.formats.windows import TensorWindows, open_windows

RGB = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
GREY16 = np.random.default_rng(1).integers(100, 4000, (70, 90), dtype=np.uint16)


@pytest.fixture(autouse=True)
def _small_images_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WHOLE", 100)


def check(path: Path, options: ImageOptions | None = None, kind: type = TiffWindows):
    whole, opened = read_image(path, options=options), open_windows(path, options)
    assert isinstance(opened, kind)
    assert opened.size == tuple(whole.shape[1:])
    for top, left, bottom, right in ((0, 0, 70, 90), (3, 17, 40, 18), (63, 64, 70, 90)):
        assert torch.equal(opened.read(top, left, bottom, right), whole[:, top:bottom, left:right])
    return opened


@pytest.mark.parametrize(
    "layout",
    [
        {"tile": (32, 16), "compression": "zlib", "photometric": "rgb"},
        {"rowsperstrip": 5, "compression": "zlib", "photometric": "rgb"},
        {"photometric": "rgb"},
        {"tile": (32, 32), "photometric": "rgb", "planarconfig": "separate"},
    ],
)
def test_layouts(tmp_path, layout):
    path = tmp_path / "a.tif"
    pixels = RGB.transpose(2, 0, 1) if "planarconfig" in layout else RGB
    tifffile.imwrite(path, pixels, **layout)
    check(path)


def test_grey_images_of_16_bits_have_one_range(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY16, tile=(32, 32))
    check(path, ImageOptions(range=(200.0, 3000.0)))
    notes: list[str] = []
    opened = open_windows(path, notify=notes.append)
    whole = opened.read(0, 0, 70, 90)
    assert torch.equal(opened.read(5, 5, 9, 9), whole[:, 5:9, 5:9])
    assert "are mapped to 0 to 255" in notes[0]
    assert whole.min() == 0
    assert whole.max() == 255


@pytest.mark.parametrize(
    ("channels", "options", "extra"),
    [
        (1, {}, ["unassalpha"]),
        (3, {}, ["unassalpha"]),
        (3, {"channel": 1}, []),
        (5, {"channel": 2}, [0, 0, 0, 0]),
    ],
)
def test_the_range_is_that_of_the_channels_that_are_read(tmp_path, channels, options, extra):
    count = channels + (extra == ["unassalpha"])
    pixels = np.random.default_rng(1).integers(0, 800, (70, 90, count)).astype(np.uint16)
    pixels[..., -1] += 60000
    kind = "rgb" if channels == 3 else "minisblack"
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric=kind, extrasamples=extra, planarconfig="contig", tile=(32, 32)
    )
    check(tmp_path / "a.tif", ImageOptions(**options))


def test_values_that_are_not_finite_are_reported_where_they_are_read(tmp_path):
    pixels = GREY16.astype(np.float32)
    pixels[69, 89] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    opened = open_windows(tmp_path / "a.tif")
    assert opened.read(0, 0, 69, 89).max() == 255
    with pytest.raises(RefineError, match=r"a\.tif: is damaged or truncated \(it has values that are not finite"):
        opened.read(0, 0, 70, 90)


def test_pyramids_pages_and_channels(tmp_path):
    path = tmp_path / "a.ome.tif"
    planes = np.random.default_rng(2).integers(0, 255, (2, 3, 70, 90), dtype=np.uint8)
    metadata = {"axes": "ZCYX", "PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm"}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(planes, tile=(32, 32), metadata=metadata, subifds=1, photometric="minisblack")
        file.write(planes[..., ::2, ::2], tile=(32, 32), subfiletype=1, photometric="minisblack")
    assert check(path, ImageOptions(page=2, channel=3)).mpp == pytest.approx(0.25)
    with pytest.raises(RefineError, match="choose one with --page 1 to 2"):
        open_windows(path)


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"), [(20000, "CENTIMETER", 0.5), (101600, "INCH", 0.25), (72, "INCH", None)]
)
def test_resolution_of_tiff_files(tmp_path, monkeypatch, resolution, unit, mpp):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", resolution=(resolution, resolution), resolutionunit=unit)
    for large in (100, 1 << 24):
        monkeypatch.setattr(windows, "WHOLE", large)
        assert open_windows(path).mpp == (mpp and pytest.approx(mpp))


def test_other_formats_are_decoded(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    check(tmp_path / "a.png", kind=TensorWindows)


def test_slides(tmp_path):
    """OpenSlide reads tiled TIFF files of any name that it does not know as those of a scanner."""
    path = tmp_path / "a.svs"
    tifffile.imwrite(path, RGB, tile=(32, 32), photometric="rgb", resolution=(40000, 40000), resolutionunit=3)
    opened = open_windows(path)
    assert opened.size == (70, 90)
    assert opened.mpp == pytest.approx(0.25)
    assert torch.equal(opened.read(3, 17, 40, 60), torch.from_numpy(RGB[3:40, 17:60]).permute(2, 0, 1))
    with pytest.raises(RefineError, match="leave out --page and --channel"):
        open_windows(path, ImageOptions(channel=1))
    path.write_bytes(b"nothing")
    with pytest.raises(RefineError, match=r"a\.svs: cannot be read by OpenSlide"):
        open_windows(path)


def test_missing_readers(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", RGB, tile=(32, 32), photometric="rgb")
    monkeypatch.setitem(sys.modules, "openslide", None)
    monkeypatch.setitem(sys.modules, "zarr", None)
    for name, package in (("a.svs", "openslide-python"), ("a.tif", "zarr")):
        with pytest.raises(RefineError, match=rf"{name}.*{package}.*slides"):
            open_windows(tmp_path / name)
    assert ".svs" in SLIDES


def test_what_cannot_be_read_in_parts(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    with pytest.raises(RefineError, match="is stored rotated"):
        open_windows(path)
    Image.fromarray(RGB).convert("CMYK").save(path)
    with pytest.raises(RefineError, match="is a TIFF of kind SEPARATED"):
        open_windows(path)
    tifffile.imwrite(path, RGB, tile=(32, 32), photometric="rgb", compression="zlib")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)
    with pytest.raises(RefineError, match=r"a\.tif: "):
        open_windows(path).read(0, 0, 70, 90)
