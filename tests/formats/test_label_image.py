"""Label images give the values that their files store."""

import struct

import numpy as np
import pytest
import tifffile

from refine.formats.label_image import read_labels
from tests.formats.test_png_runs import png


def packed(values: np.ndarray, bits: int) -> list[bytes]:
    """Return each row with so many bits per value, filled up to whole bytes."""
    rows = ["".join(f"{value:0{bits}b}" for value in row) for row in values.tolist()]
    return [int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8)) for row in rows]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_png_of_few_bits(tmp_path, bits):
    values = np.arange(15).reshape(3, 5) % 2**bits
    rows = b"".join(b"\0" + row for row in packed(values, bits))
    (tmp_path / "labels.png").write_bytes(png(5, 3, rows, color=0, depth=bits))
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.png"), values)


@pytest.mark.parametrize("most", [7, 20, 255, 1000, 65535])
@pytest.mark.parametrize("kind", ["P2", "P5"])
def test_pgm_with_any_maximum(tmp_path, kind, most):
    values = np.arange(most + 1)
    pixels = " ".join(map(str, values)).encode()
    if kind == "P5":
        pixels = values.astype(np.uint8 if most < 256 else ">u2").tobytes()
    (tmp_path / "labels.pgm").write_bytes(f"{kind}\n{most + 1} 1\n{most}\n".encode() + pixels)
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.pgm"), values[None])


@pytest.mark.parametrize("kind", [bool, np.uint8, np.uint16])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_tiff_in_which_0_is_white(tmp_path, kind, photometric):
    """ImageJ stores masks with an inverted lookup table in this way."""
    values = np.arange(6).reshape(2, 3).astype(kind)
    tifffile.imwrite(tmp_path / "labels.tif", values, photometric=photometric)
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.tif"), values)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.uint16])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_tiff_with_an_orientation_is_read_as_stored(tmp_path, kind, orientation):
    values = np.arange(6).reshape(2, 3).astype(kind)
    tags = [(274, 3, 1, orientation, True)]
    tifffile.imwrite(tmp_path / "labels.tif", values, photometric="minisblack", extratags=tags)
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.tif"), values)


def test_tiff_of_4_bits(tmp_path):
    values = np.arange(6).reshape(2, 3)
    pixels = b"".join(packed(values, 4))
    tags = [(256, 3), (257, 2), (258, 4), (259, 1), (262, 1), (273, 8), (277, 1), (278, 2), (279, len(pixels))]
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags))
    (tmp_path / "labels.tif").write_bytes(head + entries + bytes(4))
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.tif"), values)
