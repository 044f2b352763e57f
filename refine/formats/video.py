"""Video files: their frames, read in order by PyAV, and the writing of videos."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from refine.errors import RefineError, missing_extra
from refine.files import write_error

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

OPENING = {"format_whitelist": "mov,matroska,webm,avi,mpegts,mpeg,asf,flv,ogg", "protocol_whitelist": "file"}
"""Containers that FFmpeg may open; its others include playlists, which name further files and addresses."""
AHEAD = 16
"""Frames that are kept for when one is asked for again, or after a later one, as by several threads."""
RATE = Fraction(25)
"""Frames per second of a video that states none."""


def count_frames(path: Path) -> int:
    """Return the number of frames of a video, from its packets, without decoding them.

    Raises:
        RefineError: PyAV is not installed, or the file cannot be read or has no video.
    """
    with _explained(path), _opened(path) as container:
        packets = container.demux(container.streams.video[0])
        return sum(packet.size > 0 and not packet.is_discard for packet in packets)


def frame_rate(path: Path) -> Fraction:
    """Return the average number of frames per second of a video, or `RATE`; errors as in `count_frames`."""
    with _explained(path), _opened(path) as container:
        return container.streams.video[0].average_rate or RATE


def read_frame(path: Path, number: int, max_pixels: int) -> Image.Image:
    """Read a frame, upright. Frames read in order are decoded once: the file stays open until another is read.

    Args:
        path: path of a video.
        number: number of the frame, from 1.
        max_pixels: limit on height × width.

    Raises:
        RefineError: as in `count_frames`; or the frames are too large, or there is no such frame.
    """
    global _decoder
    status = path.stat()
    key = (path, status.st_mtime_ns, status.st_size)
    with _lock, _explained(path):
        if _decoder is None or _decoder.key != key or not _decoder.has(number):
            if _decoder is not None:
                _decoder.close()
            _decoder = None
            _decoder = _Decoder(path, key, max_pixels)
        frame = _decoder.read(number)
        if frame is None:
            raise RefineError(f"{path}: has no frame {number}, or it cannot be decoded; convert the video again")
        image: Image.Image = frame.to_image()  # a frame keeps its converter, which only one thread can use
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


class _Decoder:
    """Decoder of the frames of one video, forwards."""

    def __init__(self, path: Path, key: tuple[Path, int, int], max_pixels: int) -> None:
        self.key, self._next = key, 1
        self._kept: OrderedDict[int, VideoFrame] = OrderedDict()
        self._container = _open(path)
        stream = self._container.streams.video[0]
        if stream.width * stream.height > max_pixels:
            raise RefineError(f"{path}: has more than {max_pixels} pixels; scale the video down")
        self._frames = self._container.decode(stream)

    def has(self, number: int) -> bool:
        """Return whether a frame is kept or still ahead."""
        return number in self._kept or number >= self._next

    def read(self, number: int) -> VideoFrame | None:
        """Return a frame; None if the video ends before."""
        while number >= self._next:
            frame = next(self._frames, None)
            if frame is None:
                return None
            self._kept[self._next] = frame
            self._next += 1
            if len(self._kept) > AHEAD:
                self._kept.popitem(last=False)
        return self._kept[number]

    def close(self) -> None:
        self._container.close()


_lock = Lock()
_decoder: _Decoder | None = None
"""Decoder of the video read last."""


def write_video(path: Path, frames: Iterable[np.ndarray], rate: Fraction) -> None:
    """Write a video (H.264 in MP4) atomically, holding one frame in memory.

    Args:
        path: file to write or replace.
        frames: images of one size, each [H, W, 3] uint8 RGB; odd sides are extended by a pixel, which H.264 needs.
        rate: frames per second.

    Raises:
        WriteError: the file cannot be written.
    """
    av = _import(path)
    temporary = path.with_name(f".{path.stem}.tmp.mp4")
    frames = iter(frames)
    first = next(frames)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(temporary), "w") as container:
            stream = container.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=rate)
            stream.height, stream.width = (side + side % 2 for side in first.shape[:2])
            stream.pix_fmt = "yuv420p"
            for frame in itertools.chain([first], frames):
                height, width = frame.shape[:2]
                even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
            container.mux(stream.encode(None))
        temporary.replace(path)
    except OSError as error:  # FFmpeg's errors of writing are also of this kind
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _import(path: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise missing_extra(f"{path}: videos need PyAV", "video") from error
    return av


def _open(path: Path) -> InputContainer:
    if not path.is_file():
        raise RefineError(f"{path}: is not a regular file; copy the video into one")
    container: InputContainer = _import(path).open(str(path), options=OPENING)
    if not container.streams.video:
        container.close()
        raise RefineError(f"{path}: has no video; give another file")
    return container


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    container = _open(path)
    try:
        yield container
    finally:
        container.close()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Raise RefineError for FFmpeg's errors."""
    av = _import(path)
    try:
        yield
    except av.error.FFmpegError as error:
        reason = error.strerror or error
        raise RefineError(f"{path}: cannot be decoded ({reason}); convert the video again") from error
