"""Tests of images with more than 8 bits: the range of values that is mapped to black and white."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from refine.errors import RefineError
from refine.formats.images import from_pil, read_image
from refine.formats.raw import PERCENTILES, ImageOptions, to_bytes
from refine.formats.stored_values import stored_values
from refine.formats.windows import open_windows


@pytest.fixture
def scene() -> np.ndarray:
    """Return blobs on noise, [60, 80] float, 0-1, without distinguished values."""
    generator = np.random.default_rng(0)
    noise = generator.random((60, 80))
    return 0.1 + 0.05 * noise + 0.6 * (cv2.GaussianBlur(noise, (0, 0), 4) > 0.5)


def _grey(path: Path, **options) -> np.ndarray:
    image = read_image(path, options=ImageOptions(**options)).numpy()
    assert (image == image[:1]).all()
    return image[0]


def _expected(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, PERCENTILES)
    return ((values - low) / (high - low)).clip(0, 1) * 255


@pytest.mark.parametrize("bits", [8.01, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_result_does_not_depend_on_the_bit_depth(
    tmp_path: Path, scene: np.ndarray, bits: float, suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray((scene * (2**bits - 1)).astype(np.uint16)).save(path)
    np.testing.assert_allclose(_grey(path).astype(float), _expected(scene), atol=3)


def test_result_does_not_depend_on_offset_sign_or_dtype(tmp_path: Path, scene: np.ndarray) -> None:
    path = tmp_path / "a.tif"
    for values in (
        (32768 + scene * 4095).astype(np.uint16),
        (scene * 4095 - 2000).astype(np.int16),
        (scene * 1e6).astype(np.int32),
        (scene * 1e6 + 3e9).astype(np.uint32),
        scene.astype(np.float32),
        scene * 1e-3 - 1,
        (scene * 100 - 50).astype(np.float16),
        (scene * 200 - 100).astype(np.int8),
    ):
        tifffile.imwrite(path, values)
        np.testing.assert_allclose(_grey(path).astype(float), _expected(scene), atol=3)
    for values in (scene.astype(np.float32), (scene * 4095).astype(np.uint16), (scene * 1e6).astype(np.int32)):
        image = from_pil(Image.fromarray(values))[0].numpy()
        np.testing.assert_allclose(image.astype(float), _expected(scene), atol=3)


def test_colour_keeps_its_hue_and_low_bits(tmp_path: Path, scene: np.ndarray) -> None:
    rgb = np.stack([scene, scene * 0.5, scene * 0.25], 2)
    twelve = (rgb * 4095).astype(np.uint16)
    expected = _expected(rgb).transpose(2, 0, 1)
    cv2.imwrite(str(tmp_path / "a.png"), twelve[..., ::-1])
    tifffile.imwrite(tmp_path / "b.tif", twelve, photometric="rgb")
    tifffile.imwrite(tmp_path / "planar.tif", twelve.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "deflate.tif", twelve, photometric="rgb", compression="zlib", predictor=True)
    tifffile.imwrite(tmp_path / "big_endian.tif", twelve, photometric="rgb", byteorder=">")
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_allclose(read_image(path).numpy().astype(float), expected, atol=2, err_msg=path.name)


def test_planar_tiffs_of_eight_bits(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (3, 20, 30), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", rgb)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").numpy(), rgb)


def test_alpha_and_inversion(tmp_path: Path) -> None:
    values = np.full((4, 5, 4), 65535, np.uint16)
    values[0] = 0  # black and transparent
    values[1, :, :3] = 0
    cv2.imwrite(str(tmp_path / "a.png"), values)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    for name in ("a.png", "a.tif"):
        image = read_image(tmp_path / name, options=ImageOptions(range="full"))
        assert image[0, :, 0].tolist() == [255, 0, 255, 255]
    tifffile.imwrite(tmp_path / "w.tif", np.array([[0, 65535]], np.uint16), photometric="miniswhite")
    assert _grey(tmp_path / "w.tif").tolist() == [[255, 0]]


def test_a_range_of_a_pgm_with_another_maximum(tmp_path: Path) -> None:
    values, path = np.array([[0, 500, 1000, 2000, 4095]], ">u2"), tmp_path / "a.pgm"
    path.write_bytes(b"P5\n5 1\n4095\n" + values.tobytes())
    assert _grey(path, range=(0, 1000)).tolist() == [[0, 128, 255, 255, 255]]
    assert _grey(path).tolist() == [[0, 31, 62, 125, 255]]  # of the maximum
    stored = stored_values(path, None, (1, 5))
    assert stored is not None
    assert stored[..., 0].tolist() == values.tolist()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("window", [False, True])
def test_colours_multiplied_by_the_opacity(tmp_path: Path, bits: int, window: bool, monkeypatch) -> None:
    monkeypatch.setattr("refine.formats.windows.WHOLE", 0 if window else 1 << 24)
    values = np.random.default_rng(0).integers(0, 256, (70, 90, 4))
    values[..., :3] = np.rint(values[..., :3] * (values[..., 3:] / 255))
    stored = (values * (257 if bits == 16 else 1)).astype(f"u{bits // 8}")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, photometric="rgb", extrasamples=["assocalpha"], tile=(32, 32))
    image = open_windows(path, ImageOptions(range="full")).read(0, 0, 70, 90)
    over_white = values[..., :3] + 255 - values[..., 3:]
    np.testing.assert_allclose(image.permute(1, 2, 0), over_white, atol=2)
    estimated = open_windows(path, ImageOptions()).read(
        0, 0, 70, 90
    )  # the range of all windows is that of the image
    monkeypatch.setattr("refine.formats.windows.WHOLE", 1 << 24)
    whole = open_windows(path, ImageOptions()).read(0, 0, 70, 90)
    np.testing.assert_allclose(estimated, whole, atol=2)


def test_a_requested_range(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    values = np.array([[0, 1000, 2000, 3000, 65535]], np.uint16)
    Image.fromarray(values).save(path)
    assert _grey(path, range=(1000, 3000)).tolist() == [[0, 0, 128, 255, 255]]
    assert _grey(path, range="full").tolist() == [[0, 4, 8, 12, 255]]
    tifffile.imwrite(path, values.astype(np.float32) / 65535)
    assert _grey(path, range="full").tolist() == [[0, 4, 8, 12, 255]]
    Image.fromarray(np.array([[0, 100, 255]], np.uint8)).save(path)  # 8 bits are never scaled
    assert _grey(path, range=(1000, 3000)).tolist() == [[0, 100, 255]]


def _with_sbit(png: bytes, bits: int) -> bytes:
    chunk = b"sBIT" + bytes([bits])
    return png[:33] + struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]


def test_bits_stated_by_a_file(tmp_path: Path) -> None:
    values, expected = np.array([[0, 1024, 2048]], np.uint16), [[0, 64, 128]]  # of 4095
    notes: list[str] = []

    def read(name: str) -> list:
        return read_image(tmp_path / name, notify=notes.append)[0].tolist()

    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata={"axes": "YX", "SignificantBits": 12})
    tifffile.imwrite(tmp_path / "b.tif", values, extratags=[("MaxSampleValue", "H", 1, 4000, True)])
    Image.fromarray(values).save(tmp_path / "c.png")
    png = (tmp_path / "c.png").read_bytes()
    (tmp_path / "c.png").write_bytes(_with_sbit(png, 12))
    Image.fromarray(values * 16).save(tmp_path / "d.png")  # at the top of 16 bits, as in the standard
    (tmp_path / "d.png").write_bytes(_with_sbit((tmp_path / "d.png").read_bytes(), 12))
    (tmp_path / "e.pgm").write_bytes(b"P5 3 1 4095\n" + values.astype(">u2").tobytes())
    for name in ("a.ome.tif", "b.tif", "c.png", "d.png", "e.pgm"):
        assert read(name) == expected, name
    assert not notes
    (tmp_path / "c.png").write_bytes(_with_sbit(png, 9))  # too few, so all 16 are used
    assert read("c.png") == [[0, 4, 8]]
    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata={"axes": "YX", "SignificantBits": 10})
    assert read("a.ome.tif") == [[0, 128, 255]]
    assert len(notes) == 1


def test_estimated_ranges_are_noted(tmp_path: Path, scene: np.ndarray) -> None:
    path = tmp_path / "a.png"
    values = (scene * 4095).astype(np.uint16)
    Image.fromarray(values).save(path)
    notes: list[str] = []
    read_image(path, notify=notes.append)
    low, high = np.percentile(values, PERCENTILES, method="inverted_cdf")
    assert notes[0].startswith(
        f"{path}: values {low} to {high}, the percentiles 0.1 and 99.9, are mapped to 0 to 255;"
    )
    read_image(path, options=ImageOptions(range="full"), notify=notes.append)
    Image.fromarray(values.astype(np.uint8)).save(path)
    read_image(path, notify=notes.append)
    assert len(notes) == 1


def test_constant_and_non_finite_values() -> None:
    assert to_bytes(np.full((2, 3), 700, np.uint16)).tolist() == [[0] * 3] * 2
    assert to_bytes(np.array([-3e38, 3e38], np.float32)).tolist() == [0, 255]
    for values in ([1.0, np.nan], [np.inf, 0.0], [1j, 2j]):
        with pytest.raises(ValueError, match=r"its values are complex|it has values that are not finite"):
            to_bytes(np.array(values))


def test_damaged_files_raise(tmp_path: Path, scene: np.ndarray) -> None:
    values = (scene * 4095).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", values)
    tifffile.imwrite(tmp_path / "z.tif", values, compression="zlib")
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for length in np.linspace(10, len(whole) - 40, 12).astype(int).tolist():
            path.write_bytes(whole[:length])
            with pytest.raises(RefineError, match=rf"{path.name}: is damaged or truncated|not a supported image"):
                read_image(path)
