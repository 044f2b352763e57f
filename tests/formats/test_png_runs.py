"""Tests of decoding id-PNGs to runs, against other decoders and for every filter, and of invalid files."""

import itertools
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from refine.errors import RefineError
from refine.formats.id_png import read_gray, read_png, read_runs, write_png
from refine.formats.png import png_size
from refine.formats.runs import Runs


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, rows, *, color=2, depth=8, interlaced=0, before=b""):
    """Return the bytes of a PNG with the given filtered rows."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def to_bytes(ids):
    """Convert ids, [H, W] integer, to colours, [H, W, 3] uint8."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)


def filtered(ids, methods):
    """Filter rows byte by byte, literally as in the PNG specification."""
    height, width = ids.shape
    pixels = to_bytes(ids).reshape(height, 3 * width).astype(int)
    rows = []
    for y, method in enumerate(methods):
        row = [method]
        for x in range(3 * width):
            a = pixels[y, x - 3] if x >= 3 else 0
            b = pixels[y - 1, x] if y else 0
            c = pixels[y - 1, x - 3] if y and x >= 3 else 0
            paeth = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            row.append((pixels[y, x] - (0, a, b, (a + b) // 2, paeth)[method]) % 256)
        rows.append(bytes(row))
    return b"".join(rows)


@st.composite
def filtered_maps(draw):
    """Draw a map of rectangles and single pixels, and a filter for each row."""
    g = np.random.default_rng(draw(st.integers(0, 2**31)))
    height, width = draw(st.integers(1, 14)), draw(st.integers(1, 40))
    ids = np.full((height, width), draw(st.sampled_from([0, 5, 2**24 - 1])))
    for _ in range(draw(st.integers(0, 6))):
        y, x = g.integers(0, height), g.integers(0, width)
        ids[y : y + g.integers(1, 9), x : x + g.integers(1, 25)] = g.integers(0, 2**24) >> g.choice([0, 8, 16])
    speckled = g.random(ids.shape) < draw(st.sampled_from([0, 0.05, 1]))
    ids[speckled] = g.integers(0, 2**24, int(speckled.sum()))
    methods = draw(st.lists(st.integers(0, 4), min_size=height, max_size=height))
    return ids, methods


@settings(max_examples=150, deadline=None)
@given(filtered_maps())
def test_every_filter_is_inverted(tmp_path_factory, filtered_map):
    ids, methods = filtered_map
    path = tmp_path_factory.mktemp("png") / "x.png"
    path.write_bytes(png(*ids.shape[::-1], filtered(ids, methods)))
    with Image.open(path) as image:  # the PNG itself is correct
        np.testing.assert_array_equal(np.asarray(image), to_bytes(ids))
    runs = read_runs(path)
    np.testing.assert_array_equal(runs.spread(runs.ids), ids)
    np.testing.assert_array_equal(read_png(path), ids)
    assert runs.starts[0] == 0
    assert (np.diff(runs.starts) > 0).all()
    assert len(runs.starts) <= len(Runs.from_map(ids).starts) + ids.shape[0]  # split only at the ends of rows


def test_real_maps_decode_like_pillow(shared_dir):
    folders = [
        shared_dir / "data/coco_panoptic/panoptic_val",
        shared_dir / "data/nuclei/panoptic_val",
        shared_dir / "fixtures/pq/coco_panoptic_val/panoptic_pred",
        shared_dir / "fixtures/pq/nuclei_val/panoptic_pred",
    ]
    for path in itertools.chain(*(sorted(folder.glob("*.png"))[:25] for folder in folders)):
        with Image.open(path) as image:
            pixels = np.asarray(image).astype(np.int64)
        runs = read_runs(path)
        np.testing.assert_array_equal(runs.spread(runs.ids), pixels @ [1, 256, 65536], err_msg=str(path))


@pytest.mark.parametrize("read", [read_runs, read_png])
def test_palette_colours_are_ids(tmp_path, read):
    ids = np.array([[7, 7, 70000], [300, 7, 7]])
    colors, indices = np.unique(ids, return_inverse=True)
    image = Image.fromarray(indices.reshape(ids.shape).astype(np.uint8), "P")
    image.putpalette(to_bytes(colors).tobytes())
    image.save(tmp_path / "x.png")
    found = read(tmp_path / "x.png")
    np.testing.assert_array_equal(found.spread(found.ids) if isinstance(found, Runs) else found, ids)


@pytest.mark.parametrize("read", [read_runs, read_png])
def test_alpha_and_bytes_after_the_end_are_ignored(tmp_path, read):
    ids = np.array([[7, 7, 70000], [300, 0, 2**24 - 1]])
    alpha = np.array([[255, 0, 1], [128, 0, 0]], np.uint8)
    Image.fromarray(np.dstack([to_bytes(ids), alpha])).save(tmp_path / "x.png")
    with (tmp_path / "x.png").open("ab") as file:
        file.write(b"more")
    found = read(tmp_path / "x.png")
    np.testing.assert_array_equal(found.spread(found.ids) if isinstance(found, Runs) else found, ids)


@pytest.mark.parametrize("read", [read_runs, read_png])
def test_another_size_raises_before_decoding(tmp_path, read):
    (tmp_path / "x.png").write_bytes(png(4, 2, b"not pixels"))
    with pytest.raises(RefineError, match=r"x.png: expected 2 × 4 pixels, got 4 × 2"):
        read(tmp_path / "x.png", (4, 2))


@pytest.mark.parametrize("read", [read_runs, read_png])
def test_interlaced_maps_are_read(tmp_path, read):
    # Adam7 passes of a 2 × 2 image: pixel (0, 0), then pixel (0, 1), then the second row.
    ids = np.array([[1, 2], [300, 70000]])
    pixels = to_bytes(ids)
    rows = b"".join(b"\0" + part.tobytes() for part in (pixels[0, 0], pixels[0, 1], pixels[1]))
    (tmp_path / "x.png").write_bytes(png(2, 2, rows, interlaced=1))
    found = read(tmp_path / "x.png")
    np.testing.assert_array_equal(found.spread(found.ids) if isinstance(found, Runs) else found, ids)


MAP = np.array([[1, 1, 2, 2], [1, 3, 3, 2]])
ROWS = filtered(MAP, [0, 2])
LONG = struct.pack(">IIBBBBB", 4, 2, 8, 2, 0, 0, 0)


@pytest.mark.parametrize("read", [read_runs, read_png])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not a PNG"),
        (b"\xff\xd8\xff JPEG", "is not a PNG"),
        (png(4, 2, b"\0\1\2\3\4\0\1\2\3\4", color=0), "expected an 8-bit RGB PNG, got 8-bit grey"),
        (png(4, 2, b"\0" * 18, color=0, depth=16), "expected an 8-bit RGB PNG, got 16-bit grey"),
        (png(4, 2, b"\0" * 50, depth=16), "expected an 8-bit RGB PNG, got 16-bit RGB"),
        (png(4, 2, b"\0" * 18, color=4), "expected an 8-bit RGB PNG, got 8-bit grey with alpha"),
        (png(4, 2, b"\0" * 66, color=6, depth=16), "expected an 8-bit RGB PNG, got 16-bit RGB with alpha"),
        (png(0, 2, b"\0\0"), "got 0 × 2"),
        (png(2**16, 2**16, b"\0"), "got 65536 × 65536"),
        (png(4, 2, ROWS[:-1]), "is damaged"),
        (png(4, 2, ROWS[:13]), "is damaged"),
        (png(4, 2, b"\7" + ROWS[1:]), "is damaged"),
        (png(4, 2, ROWS[:13] + b"\5" + ROWS[14:]), "is damaged"),
        (png(2, 2, b"\0\1", interlaced=1), "is damaged"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", LONG) + chunk(b"IEND", b""), "is damaged"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", b"x") + chunk(b"IEND", b""), "is damaged"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", LONG) + chunk(b"IDAT", b"xxxx") + chunk(b"IEND", b""), "is damaged"),
    ],
    ids=range(17),
)
def test_files_without_ids_raise(tmp_path, read, data, words):
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(RefineError, match=r"x\.png: ") as error:
        read(tmp_path / "x.png")
    assert words in str(error.value)


@pytest.mark.parametrize("read", [read_runs, read_png])
def test_every_truncation_and_flipped_bit_raises(tmp_path, read):
    path = tmp_path / "x.png"
    write_png(path, np.arange(12).reshape(3, 4) // 5)
    whole = path.read_bytes()
    for n in range(len(whole)):
        for data in (whole[:n], whole[:n] + bytes([whole[n] ^ 16]) + whole[n + 1 :]):
            path.write_bytes(data)
            with pytest.raises(RefineError):
                read(path)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(0, (1 << 24) - 1), min_size=3, max_size=3), min_size=1, max_size=5))
def test_runs_find_and_spread_values(rows):
    ids = np.array(rows)
    runs = Runs.from_map(ids)
    np.testing.assert_array_equal(runs.spread(runs.ids), ids)
    assert set(range(0, ids.size, 3)) <= set(runs.starts.tolist())  # a run begins at every row
    known = np.unique(ids)[::-1][::2]  # a subset, not sorted
    index = runs.find(known)
    expected = np.where(np.isin(runs.ids, known), runs.ids, -1)
    np.testing.assert_array_equal(np.where(index < 0, -1, known[index]), expected)


def test_grey_labels_of_8_and_16_bits(tmp_path):
    path = tmp_path / "x.png"
    for values in (np.array([[1, 255]], np.uint8), np.array([[1, 65535]], np.uint16)):
        Image.fromarray(values).save(path)
        np.testing.assert_array_equal(read_gray(path), values)
        assert png_size(path) == (1, 2)
    write_png(path, np.array([[1]]))
    with pytest.raises(RefineError, match="expected a grey PNG of 8 or 16 bits, got 8-bit RGB"):
        read_gray(path)
    for content in (b"", b"hello" * 20):
        path.write_bytes(content)
        with pytest.raises(RefineError, match="is not a PNG"):
            png_size(path)
    with pytest.raises(RefineError, match="No such file"):
        png_size(tmp_path / "none.png")


@pytest.mark.parametrize("read", [read_runs, read_png])
def test_missing_files_and_folders_raise(tmp_path, read):
    with pytest.raises(RefineError, match=r"x.png: cannot be read \(No such file"):
        read(tmp_path / "x.png")
    with pytest.raises(RefineError, match=r"cannot be read \(Is a directory"):
        read(tmp_path)
    with pytest.raises(RefineError, match="/dev/zero: is not a regular file"):
        read("/dev/zero")
