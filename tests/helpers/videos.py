"""Small videos for tests."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

COLORS = [(20, 20, 20), (220, 30, 30), (30, 220, 30), (30, 30, 220), (230, 230, 230)]
"""Mean colour of each frame of `make_video`."""


def make_video(path: Path, size: tuple[int, int] = (48, 64), rate: int = 10) -> None:
    """Write five frames of `COLORS`, of (height, width) `size`, with a white corner at the top left."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate), options={"crf": "1", "bf": "2"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for color in COLORS:
            frame = np.full((*size, 3), color, np.uint8)
            frame[: size[0] // 4, : size[1] // 4] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def rotate_video(path: Path, height: int) -> None:
    """Set the display matrix of an MP4 to a quarter turn clockwise, as phones do, for frames of this height."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 16  # version and flags; times, id and duration; layer and volume
    data[at : at + 36] = np.array([0, 1 << 16, 0, -1 << 16, 0, 0, height << 16, 0, 1 << 30], ">i4").tobytes()
    path.write_bytes(data)
