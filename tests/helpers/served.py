"""Data URLs in the answers of `refine serve`."""

import base64
import io

import numpy as np
from PIL import Image


def decoded(url: str) -> bytes:
    """Decode a data URL."""
    return base64.b64decode(url.split(",", 1)[1])


def pixels(url: str) -> np.ndarray:
    """Decode the image of a data URL: [H, W, 3] uint8."""
    return np.asarray(Image.open(io.BytesIO(decoded(url))))
