"""Objects drawn for the label images of published data sets."""

from pathlib import Path

import numpy as np
from helpers.converted import draw_mask
from PIL import Image

ONE, TWO = draw_mask("ellipse", 5, 5, 25, 30), draw_mask("rectangle", 26, 5, 50, 20)
THREE, FIELD = draw_mask("ellipse", 40, 30, 70, 55), draw_mask("rectangle", 0, 50, 30, 59)
VOID = draw_mask("rectangle", 72, 0, 79, 59)


def save(path: Path, values: np.ndarray, palette: bool = False) -> Path:
    """Write an image, with colours of a random palette if asked, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image = Image.fromarray(values, "P")
        image.putpalette(np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(path)
    return path
