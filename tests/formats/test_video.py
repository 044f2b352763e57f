"""Frames of videos, compared with those that were encoded."""

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import numpy as np
import pytest
import tifffile
from helpers.videos import COLORS, make_video, rotate_video
from PIL import Image

from refine.errors import RefineError
from refine.formats import video
from refine.formats.image_list import list_images, list_pages
from refine.formats.images import read_image, stored_size
from refine.formats.raw import ImageOptions


@pytest.fixture
def clip(tmp_path):
    make_video(tmp_path / "clip.mp4")
    return tmp_path / "clip.mp4"


def color(path, number):
    return read_image(path, options=ImageOptions(page=number))[:, -12:, -16:].float().mean((1, 2)).numpy()


def test_frames_are_those_that_were_encoded(clip):
    for number in (1, 2, 5, 3, 4, 1, 2, 2):  # in any order
        assert np.allclose(color(clip, number), COLORS[number - 1], atol=8), number
    with pytest.raises(RefineError, match=r"clip.mp4: has 5 frames; choose one with --page 1 to 5"):
        read_image(clip)
    with pytest.raises(RefineError, match=r"clip.mp4: has no frame 6"):
        color(clip, 6)
    grey = read_image(clip, options=ImageOptions(page=2, channel=1))
    assert grey[:, -1, -1].tolist() == pytest.approx([COLORS[1][0]] * 3, abs=8)


def test_frames_in_order_are_decoded_once(clip, monkeypatch):
    opened = []
    before = video._open
    monkeypatch.setattr(video, "_open", lambda path: opened.append(path) or before(path))
    for number in range(1, 6):
        color(clip, number)
    assert stored_size(clip, ImageOptions(page=5)) == (48, 64)
    assert len(opened) == 1


def test_threads_get_their_own_frames(clip):
    with ThreadPoolExecutor(4) as pool:
        numbers = [n % 5 for n in range(40)]
        for number, found in zip(numbers, pool.map(lambda n: color(clip, n + 1), numbers), strict=True):
            assert np.allclose(found, COLORS[number], atol=8)


def test_rotated_videos_are_upright(tmp_path):
    make_video(tmp_path / "clip.mp4")
    rotate_video(tmp_path / "clip.mp4", 48)
    image = read_image(tmp_path / "clip.mp4", options=ImageOptions(page=1))
    assert image.shape == (3, 64, 48)
    assert image[:, 5, -5].min() > 240
    assert image[:, 5, 5].max() < 40


def test_files_that_are_no_videos_are_refused(tmp_path):
    make_video(tmp_path / "clip.mp4")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/clip.mp4\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.mp4").write_text(playlist)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes()[:300])
    for name in ("list.mp4", "cut.mp4"):
        with pytest.raises(RefineError, match=rf"{name}: cannot be decoded \(.*\); convert the video again"):
            video.count_frames(tmp_path / name)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(RefineError, match=r"sound.mp4: has no video"):
        video.count_frames(tmp_path / "sound.mp4")
    with pytest.raises(RefineError, match="more than 100 pixels"):
        read_image(tmp_path / "clip.mp4", options=ImageOptions(page=1), max_pixels=100)


def test_written_videos_can_be_read(tmp_path):
    frames = [np.full((49, 65, 3), color, np.uint8) for color in COLORS]
    video.write_video(tmp_path / "new" / "x.mp4", iter(frames), Fraction(7))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x.mp4"]
    with av.open(str(tmp_path / "new" / "x.mp4")) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 7
    assert [frame.shape for frame in decoded] == [(50, 66, 3)] * 5
    assert all(np.allclose(frame, color, atol=8) for frame, color in zip(decoded, COLORS, strict=True))


def test_files_of_several_images_are_listed_on_request(clip, tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), 40 * n, np.uint8)) for n in range(3)]
    frames[0].save(tmp_path / "anim.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "one.png")
    tifffile.imwrite(tmp_path / "z.tif", np.zeros((2, 2, 8, 8), np.uint8), metadata={"axes": "ZCYX"}, imagej=True)
    folder = list_images([str(tmp_path)])
    assert [file.name for file in folder] == ["anim.gif", "one.png", "z.tif"]  # no video
    assert list_pages(folder, None) == folder
    files = list_pages(list_images([str(tmp_path / "clip.mp4"), str(tmp_path)]), "all")
    assert [(file.name, file.page) for file in files] == [
        *((f"clip/00000{n}.png", n) for n in range(1, 6)),
        *((f"anim/00000{n}.gif", n) for n in range(1, 4)),
        ("one.png", None),
        *((f"z/00000{n}.tif", n) for n in range(1, 3)),
    ]
    assert [file.id for file in files] == [*range(1, 12)]
    assert [file.page for file in list_pages(list_images([str(clip)]), None)] == [1, 2, 3, 4, 5]
    (only,) = list_pages(list_images([str(tmp_path / "*.mp4")]), 4)
    assert (only.name, only.reading(ImageOptions(4)).page) == ("clip.mp4", 4)
    assert read_image(files[6].path, options=files[6].reading(ImageOptions()))[0, 0, 0] == pytest.approx(40, abs=2)
