"""Tests of selecting a page or channel of stacks and animations, and of errors that describe the file."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from refine.errors import RefineError
from refine.formats.images import read_image
from refine.formats.raw import ImageOptions

STACK = np.random.default_rng(0).integers(0, 256, (6, 20, 30), np.uint8)


def _read(path: Path, page: int | None = None, channel: int | None = None, **options) -> np.ndarray:
    image = read_image(path, options=ImageOptions(page, channel, **options)).numpy()
    assert (image == image[:1]).all()
    return image[0]


def _raises(path: Path, message: str, page: int | None = None, channel: int | None = None) -> None:
    with pytest.raises(RefineError) as error:
        _read(path, page, channel)
    assert str(error.value) == f"{path}: {message}"


@pytest.mark.parametrize("kind", ["pillow.tif", "lzw.tif", "tifffile.tif", "16.tif", "a.gif", "a.webp", "a.png"])
def test_pages_and_frames(tmp_path: Path, kind: str) -> None:
    path, images = tmp_path / kind, [Image.fromarray(page) for page in STACK]
    if kind == "tifffile.tif":
        tifffile.imwrite(path, STACK)
    elif kind == "16.tif":
        tifffile.imwrite(path, STACK.astype(np.uint16), bigtiff=True)
    else:
        more = {"lossless": True} if kind == "a.webp" else {"compression": "tiff_lzw"} if kind == "lzw.tif" else {}
        images[0].save(path, save_all=True, append_images=images[1:], **more)
    what = "pages" if path.suffix == ".tif" else "frames"
    _raises(path, f"has 6 {what}; choose one with --page 1 to 6, or --page all in predict; or save it as a file")
    _raises(path, "has no page 7; choose one with --page 1 to 6", page=7)
    for number in (3, 1, 6):
        read = _read(path, number, **({"range": (0, 255)} if kind == "16.tif" else {}))
        np.testing.assert_array_equal(read, STACK[number - 1])


def test_a_black_first_page_is_not_selected_silently(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.stack([STACK[0] * 0, STACK[0]]))
    _raises(
        tmp_path / "a.tif",
        "has 2 pages; choose one with --page 1 to 2, or --page all in predict; or save it as a file",
    )


@pytest.mark.parametrize("kind", ["imagej", "one_header", "ome"])
@pytest.mark.parametrize("bits", [8, 16])
def test_slices_and_channels(tmp_path: Path, kind: str, bits: int) -> None:
    path, values = tmp_path / "a.tif", STACK.reshape(2, 3, 20, 30).astype(f"u{bits // 8}")
    more = {"one_header": {"imagej": True, "truncate": True}, "imagej": {"imagej": True}, "ome": {"ome": True}}
    tifffile.imwrite(path, values, metadata={"axes": "ZCYX"}, photometric="minisblack", **more[kind])
    _raises(
        path,
        "has 2 slices of 3 channels; choose one with --page 1 to 2, or --page all in predict; or save it as a file",
    )
    _raises(path, "has 3 channels; choose one with --channel 1 to 3, or save it as a file", page=1)
    _raises(path, "has no channel 4; choose one with --channel 1 to 3", page=1, channel=4)
    for page, channel in ((1, 1), (2, 3)):
        np.testing.assert_array_equal(_read(path, page, channel, range=(0, 255)), values[page - 1, channel - 1])


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("bits", [8, 16])
def test_channels_within_a_page(tmp_path: Path, planar: str, bits: int) -> None:
    path, values = tmp_path / "a.tif", STACK[:5].astype(f"u{bits // 8}")
    samples = values.transpose(1, 2, 0) if planar == "contig" else values
    tifffile.imwrite(path, samples, photometric="minisblack", planarconfig=planar)
    _raises(path, "has 5 channels; choose one with --channel 1 to 5, or save it as a file")
    for channel in (1, 5):
        np.testing.assert_array_equal(_read(path, None, channel, range=(0, 255)), values[channel - 1])


@pytest.mark.parametrize("channels", [2, 3, 5])
@pytest.mark.parametrize("more", [{}, {"metadata": {"axes": "YXC"}}, {"compression": "zlib"}], ids=str)
def test_channels_on_an_unlabelled_last_axis(tmp_path: Path, channels: int, more: dict) -> None:
    """Such an array is stored as one page per row."""
    path, values = tmp_path / "a.tif", STACK[:channels].transpose(1, 2, 0).astype(np.uint16)
    tifffile.imwrite(path, values, photometric="minisblack", **more)
    what = f"choose one with --channel 1 to {channels}"
    _raises(path, f"has {channels} channels; {what}, or save it as a file")
    _raises(path, f"has no channel {channels + 1}; {what}", channel=channels + 1)
    for channel in (1, channels):
        np.testing.assert_array_equal(_read(path, None, channel, range=(0, 255)), STACK[channel - 1])


def test_pages_of_channels_on_the_last_axis(tmp_path: Path) -> None:
    path, values = tmp_path / "a.tif", STACK.reshape(2, 3, 20, 30).transpose(0, 2, 3, 1)
    for more in ({}, {"metadata": {"axes": "ZYXC"}}):
        tifffile.imwrite(path, values, photometric="minisblack", **more)
        np.testing.assert_array_equal(_read(path, 2, 3), STACK[5])
        np.testing.assert_array_equal(_read(path, 1, 2), STACK[1])


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_three_channels_are_rgb_only_if_the_header_says_so(tmp_path: Path, planar: str, bits: int) -> None:
    path, values = tmp_path / "a.tif", STACK[:3].astype(f"u{bits // 8}")
    values[0] = 0
    samples = values.transpose(1, 2, 0) if planar == "contig" else values
    tifffile.imwrite(path, samples, photometric="rgb", planarconfig=planar)
    read = read_image(path, options=ImageOptions(range=(0, 255))).numpy()
    np.testing.assert_array_equal(read, values)
    tifffile.imwrite(path, samples, photometric="minisblack", planarconfig=planar)
    _raises(path, "has 3 channels; choose one with --channel 1 to 3, or save it as a file")
    tifffile.imwrite(path, values, photometric="minisblack")
    _raises(path, "has 3 pages; choose one with --page 1 to 3, or --page all in predict; or save it as a file")


def test_channels_of_grey_and_rgb_images(tmp_path: Path) -> None:
    rgb = STACK[:3].transpose(1, 2, 0)
    for name in ("a.png", "a.bmp", "a.tif"):
        Image.fromarray(rgb).save(tmp_path / name)
        np.testing.assert_array_equal(_read(tmp_path / name, None, 3), STACK[2])
        np.testing.assert_array_equal(_read(tmp_path / name, 1, 1), STACK[0])
        _raises(tmp_path / name, "has no channel 4; choose one with --channel 1 to 3", channel=4)
        _raises(tmp_path / name, "has no page 2; choose one with --page 1 to 1", page=2)
    Image.fromarray(STACK[0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(_read(tmp_path / "grey.png", 1, 1), STACK[0])
    _raises(tmp_path / "grey.png", "has no channel 2; choose one with --channel 1 to 1", channel=2)


def test_thumbnails_and_pyramids_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(STACK[0], subifds=1)
        file.write(STACK[0, ::2, ::2], subfiletype=1)
        file.write(STACK[1, ::4, ::4], subfiletype=1)
    np.testing.assert_array_equal(_read(path), STACK[0])


def test_previews_of_a_photograph_do_not_count(tmp_path: Path) -> None:
    path, images = tmp_path / "a.jpg", [Image.fromarray(page) for page in STACK[:2]]
    images[0].save(tmp_path / "alone.jpg")
    images[0].save(path, "MPO", save_all=True, append_images=images[1:])
    np.testing.assert_array_equal(_read(path), _read(tmp_path / "alone.jpg"))


def test_pages_of_different_sizes(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in (STACK[0], STACK[1, :7], STACK[2]):
            file.write(page, contiguous=False)
    _raises(
        tmp_path / "a.tif",
        "has 3 pages; choose one with --page 1 to 3, or --page all in predict; or save it as a file",
    )
    shapes = {_read(tmp_path / "a.tif", page).shape for page in (1, 2, 3)}
    assert shapes == {(20, 30), (7, 30)}


def test_compression(tmp_path: Path) -> None:
    """Pillow decodes LZW of 16-bit grey images and JPEG of 8-bit ones."""
    path, values = tmp_path / "a.tif", STACK[0].astype(np.uint16)
    Image.fromarray(values).save(path, compression="tiff_lzw")
    np.testing.assert_array_equal(_read(path, range=(0, 255)), values)
    lossy = read_image(path, options=ImageOptions(range=(0, 255))).float()
    Image.fromarray(STACK[0]).save(path, compression="jpeg", quality=95)
    assert (read_image(path).float() - lossy).abs().mean() < 8


def test_other_parts_of_an_ome_file_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, STACK[:2], metadata={"axes": "ZYX"})
    data = path.read_bytes().replace(b'<TiffData IFD="0" PlaneCount="2"/>', b'<TiffData IFD="0" PlaneCount="1"/>')
    path.write_bytes(data)
    np.testing.assert_array_equal(_read(path, 1), STACK[0])


def _bomb(tile: int, data: bytes) -> bytes:
    """A BigTIFF of 100 × 100 pixels of 16 bits in one Deflate tile of `tile` × `tile`."""
    tags = [(256, 100), (257, 100), (258, 16), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile)]
    tags += [(324, 16 + 8 + 20 * 10 + 8), (325, len(data))]
    entries = b"".join(struct.pack("<HHQQ", tag, 16, 1, value) for tag, value in tags)
    return b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, len(tags)) + entries + bytes(8) + data


def test_strips_decompress_to_no_more_than_their_size(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tif"
    path.write_bytes(_bomb(112, zlib.compress(bytes(2 * 112 * 112))))
    assert read_image(path).shape == (3, 100, 100)
    path.write_bytes(_bomb(112, zlib.compress(bytes(10**7))))
    with pytest.raises(RefineError, match=r"bomb\.tif.*expected a strip or tile of .* bytes, got more than"):
        read_image(path)
    path.write_bytes(_bomb(2**17, zlib.compress(bytes(100))))
    with pytest.raises(RefineError, match=r"bomb\.tif.* strips or tiles have .* pixels"):
        read_image(path)
