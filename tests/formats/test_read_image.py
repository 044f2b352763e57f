"""Tests of reading images of every kind as upright 8-bit RGB, and of files that cannot be read."""

import contextlib
import io
import os
import struct
import sys
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, ExifTags, Image, ImageFile

from refine.errors import RefineError
from refine.files import MAX_PIXELS
from refine.formats.id_png import read_gray, read_runs
from refine.formats.image_list import list_images
from refine.formats.images import from_pil, read_image, stored_size
from refine.formats.png import png_size
from refine.formats.raw import ImageOptions
from tests.formats.test_png_runs import chunk, png


def _pixels(image: torch.Tensor) -> list:
    return image.permute(1, 2, 0).tolist()


def _png(width: int, height: int, data: bytes = b"") -> bytes:
    """Return a PNG with the given size in its header and the given pixel data."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


def test_rgb_grey_palette_and_bilevel(tmp_path: Path) -> None:
    rgb = np.array([[[1, 2, 3], [250, 0, 9]]], np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(rgb).save(path)
    image = read_image(path)
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    assert _pixels(image) == rgb.tolist()
    Image.fromarray(np.array([[0, 77, 255]], np.uint8)).save(path)
    assert _pixels(read_image(path)) == [[[0] * 3, [77] * 3, [255] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    for suffix in ("png", "gif"):
        palette.save(tmp_path / f"p.{suffix}")
        assert _pixels(read_image(tmp_path / f"p.{suffix}")) == [[[9, 8, 7], [200, 100, 50]]]
    Image.fromarray(np.array([[True, False]])).save(path)
    assert _pixels(read_image(path)) == [[[255] * 3, [0] * 3]]


def test_cmyk_jpeg_is_converted(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path, quality=100)  # red
    image = read_image(path).float().mean((1, 2))
    assert image.tolist() == pytest.approx([255, 0, 0], abs=4)


def test_transparent_pixels_are_composited_over_white(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[[200, 0, 100, 255], [200, 0, 100, 0], [0, 0, 0, 51]]], np.uint8)).save(path)
    assert _pixels(read_image(path)) == [[[200, 0, 100], [255] * 3, [204] * 3]]
    Image.fromarray(np.array([[[9, 255], [9, 0]]], np.uint8), "LA").save(path)
    assert _pixels(read_image(path)) == [[[9] * 3, [255] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    palette.save(path, transparency=0)
    assert _pixels(read_image(path)) == [[[255] * 3, [200, 100, 50]]]


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_transparent_grey_value_of_a_png(tmp_path: Path, depth: int) -> None:
    """The standard compares stored values, of whatever depth, with that of tRNS."""
    values, most = [0, 1, *([2, 3] if depth > 1 else [])], 2**depth - 1
    row = int("".join(f"{value:0{depth}b}" for value in values).ljust(8, "0"), 2)
    data = b"\0" + row.to_bytes(max(len(values) * depth // 8, 1))
    key = chunk(b"tRNS", struct.pack(">H", 1))
    (tmp_path / "x.png").write_bytes(png(len(values), 1, data, color=0, depth=depth, before=key))
    shown = [round(255 * value / most) for value in values]
    options = ImageOptions(range="full")
    assert read_image(tmp_path / "x.png", options=options)[:, 0].tolist() == [[shown[0], 255, *shown[2:]]] * 3
    # A channel has no transparency, as that of an image with alpha.
    options = replace(options, channel=1)
    assert read_image(tmp_path / "x.png", options=options)[:, 0].tolist() == [shown] * 3


@pytest.mark.parametrize("kind", ["a.png", "grey.tif", "rgb.tif", "lzw.tif", "16.tif", "16-lzw.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, kind: str) -> None:
    """A viewer shows the letter F; the file stores it rotated according to the tag."""
    upright = np.zeros((5, 4, 3), np.uint8)
    upright[:, 0] = upright[0, :] = upright[2, :3] = 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),  # viewers rotate it clockwise
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path / kind
    saved = np.ascontiguousarray(stored if kind in ("a.png", "rgb.tif") else stored[..., 0])
    saved = saved * np.uint16(257) if "16" in kind else saved
    Image.fromarray(saved).save(path, exif=exif, **({"compression": "tiff_lzw"} if "lzw" in kind else {}))
    assert _pixels(read_image(path)) == upright.tolist()
    if 2 <= orientation <= 4:  # the size fits with and without rotation
        with pytest.raises(RefineError, match="set exif of the data set"):
            read_image(path, (5, 4))
    else:
        assert _pixels(read_image(path, (5, 4))) == upright.tolist()
    if orientation >= 5:  # annotated as stored
        assert _pixels(read_image(path, (4, 5))) == stored.tolist()
    assert _pixels(read_image(path, (9, 9))) == upright.tolist()
    for size in (None, (4, 5), (5, 4)):
        assert _pixels(read_image(path, size, ImageOptions(exif="shown"))) == upright.tolist()
        assert _pixels(read_image(path, size, ImageOptions(exif="stored"))) == stored.tolist()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unreadable_files_raise(tmp_path: Path) -> None:
    def fails(name: str, content: bytes, message: str) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(RefineError) as error:
            read_image(path)
        assert str(error.value).startswith(f"{path}: {message}"), str(error.value)

    jpeg, png = io.BytesIO(), io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(jpeg, "JPEG")
    Image.fromarray(noise).save(png, "PNG")
    fails("a.jpg", b"", "the file is empty; copy it again")
    fails("b.jpg", b"not an image", "is not a supported image; convert it to PNG, JPEG or TIFF")
    fails("c.jpg", jpeg.getvalue()[:2000], "is damaged or truncated (")
    fails("d.png", png.getvalue()[:2000], "is damaged or truncated (")
    fails("d.png", _png(50, 50), "is damaged or truncated (")
    fails("e.png", _png(0, 5), "is not a supported image")
    fails("f.png", _png(100_000, 100_000), f"has more than {MAX_PIXELS} pixels; tile it")
    fails("g.png", _png(12_000, 12_000), f"has more than {MAX_PIXELS} pixels; tile it")
    values = io.BytesIO()
    Image.fromarray(np.full((5, 5), np.nan, np.float32)).save(values, "TIFF")
    fails("n.tif", values.getvalue(), "is damaged or truncated (it has values that are not finite)")
    with pytest.raises(RefineError, match=r"h\.png: no such file; check the path"):
        read_image(tmp_path / "h.png")
    with pytest.raises(RefineError, match=r"cannot be read \(Is a directory\); check the path"):
        read_image(tmp_path)


def test_only_supported_formats_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript would run Ghostscript whatever the suffix of the file; other plugins are old and rarely used."""
    monkeypatch.setattr(EpsImagePlugin.EpsImageFile, "load", lambda self: pytest.fail("PostScript was run"))
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with Image.open(path) as image:
        assert image.format == "EPS"  # Pillow itself opens it
    with pytest.raises(RefineError, match=r"a\.png: is not a supported image"):
        read_image(path)
    for kind in ("TGA", "ICNS", "PCX", "SGI", "IM", "JPEG2000"):
        Image.new("RGB", (16, 16)).save(path, kind)
        with pytest.raises(RefineError, match=r"a\.png: is not a supported image"):
            read_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP", "PPM"])
def test_every_supported_format_is_opened(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (16, 9), (200, 0, 0)).save(tmp_path / "a", kind)
    image = read_image(tmp_path / "a")
    assert image.shape == (3, 9, 16)
    assert image.float().mean((1, 2)).tolist() == pytest.approx([200, 0, 0], abs=3)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(RefineError, match="is not a regular file"):
            read_image(path)


def test_size_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
        Image.new("RGB", (40, 30)).save(tmp_path / kind, kind)
    assert read_image(tmp_path / "PNG", max_pixels=1200).shape == (3, 30, 40)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels are decoded"))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(RefineError, match=rf"{path.name}: has more than 1199 pixels; tile it"):
            read_image(path, max_pixels=1199)


def test_a_small_file_with_a_large_canvas_needs_little_memory(tmp_path: Path) -> None:
    """A GIF of 43 bytes can put one transparent pixel on a canvas of any size."""
    content = io.BytesIO()
    Image.new("P", (1, 1)).save(content, "GIF", transparency=0)
    gif = bytearray(content.getvalue())
    gif[6:10] = struct.pack("<HH", 3000, 3000)
    (tmp_path / "a.gif").write_bytes(gif)
    tracemalloc.start()
    image = read_image(tmp_path / "a.gif")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.shape == (3, 3000, 3000)
    assert (image == 255).all()
    assert peak < 4 * 3000 * 3000  # NumPy memory: the result and one band


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"]),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    length=st.integers(0, 2000),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_raise_only_refine_errors(
    tmp_path_factory: pytest.TempPathFactory, kind: str, changes: list[tuple[int, int]], length: int
) -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x112] = 6
    image = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    Image.fromarray(image).save(buffer, kind, **({} if kind in ("GIF", "BMP") else {"exif": exif}))
    content = bytearray(buffer.getvalue()[:length])
    for position, value in changes:
        if position < len(content):
            content[position] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    for read in (read_image, read_runs, read_gray, png_size):
        with contextlib.suppress(RefineError):
            read(path)


def test_from_pil_converts_an_image_in_memory() -> None:
    assert _pixels(from_pil(Image.new("RGB", (2, 1), (1, 2, 3)))) == [[[1, 2, 3], [1, 2, 3]]]


@pytest.mark.parametrize("suffix", ["avif", "heic"])
def test_avif_and_heic_are_read(suffix, tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30] = (250, 20, 20)
    options = {"quality": 95} if suffix == "heic" else {"quality": 95, "subsampling": "4:4:4"}
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # a quarter turn clockwise
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif.tobytes(), **options)
    image = read_image(path)
    assert image.shape == (3, 60, 40)
    assert set(stored_size(path)) == {40, 60}
    assert image[:, 5, -5].tolist() == pytest.approx([250, 20, 20], abs=12)
    assert image[:, 5, 5].max() < 12
    assert [file.name for file in list_images([str(tmp_path)])] == [path.name]
    with pytest.raises(RefineError, match="more than 100 pixels"):
        read_image(path, max_pixels=100)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RefineError, match=rf"x\.{suffix}: is "):
        read_image(path)


def test_heic_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "x.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(20))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(RefineError, match=r"x.heic: HEIC needs pillow-heif; install .*\[heif\]"):
        read_image(tmp_path / "x.heic")
