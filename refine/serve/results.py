"""What the page shows and what visitors save: views, overlays and archives."""

from __future__ import annotations

import base64
import io
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from refine import __version__
from refine.drawing.overlay import encode_image, overlay, segment_colors
from refine.formats.writer import PredictionWriter
from refine.serve.models import Upload
from refine.structures import PanopticResult
from refine.structures.panoptic import id_to_rgb

VIEW_SIDE = 1600
"""Longest side of a shown image in pixels; saved files have the image's own size."""


def view(upload: Upload, result: PanopticResult) -> dict[str, Any]:
    """What the browser needs to show a result.

    Args:
        upload: the visitor's image.
        result: its panoptic result.

    Returns:
        `serial` of the upload; `picture`, `overlay` (JPEG) and `ids` (PNG in COCO's colours, void 0), data URLs of
        one size, at most `VIEW_SIDE` long; `name`, `model`, `width`, `height` of the image, `seconds` of the
        network; and `segments`, a mapping each: `id`, `name`, `thing`, `score` (0-1 or None), `area` in pixels
        of the image, `share` of the image (0-1), `color` as "#rrggbb".
    """
    _, height, width = upload.image.shape
    scale = min(1, VIEW_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = _to_pil(upload.image).resize(size)
    ids = result.segment_ids.cpu().numpy()
    small = ids[np.arange(size[1]) * height // size[1]][:, np.arange(size[0]) * width // size[0]]
    shown = replace(result, segment_ids=torch.from_numpy(small))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return {
        "serial": upload.serial,
        "name": upload.name,
        "model": upload.model,
        "width": width,
        "height": height,
        "seconds": upload.seconds,
        "picture": _data_url(picture, "JPEG"),
        # The page writes the names itself, in letters of a readable size on every screen.
        "overlay": _data_url(_to_pil(overlay(pixels, shown, labels=False)), "JPEG"),
        "ids": _data_url(Image.fromarray(id_to_rgb(small)), "PNG"),
        "segments": [
            {
                "id": segment.id,
                "name": result.name(segment),
                "thing": segment.isthing,
                "score": segment.score,
                "area": segment.area,
                "share": segment.area / (height * width),
                "color": f"#{bytes(color).hex()}",
            }
            for segment, color in zip(result.segments, segment_colors(result), strict=True)
        ],
    }


def overlay_file(upload: Upload, result: PanopticResult) -> dict[str, str]:
    """The overlay at the image's own size, JPEG: `name` of the file and its `data` URL."""
    return {
        "name": f"{Path(upload.name).stem}_overlay.jpg",
        "data": _data_url(_to_pil(overlay(upload.image, result)), "JPEG"),
    }


def archive_file(upload: Upload, result: PanopticResult) -> dict[str, str]:
    """What `refine predict` writes, zipped (panoptic.json, panoptic/NAME.png, overlays/NAME.jpg): `name` of
    the file and its `data` URL."""
    stem, content = Path(upload.name).stem, io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        out = Path(folder)
        info = {"description": f"Panoptic result of refine, model {upload.model}", "model": upload.model}
        with PredictionWriter(out, result.categories, info) as writer:
            comment = f"refine {__version__}, model {upload.model}"
            writer.add(1, upload.name, result, encode_image(overlay(upload.image, result), "JPEG", comment))
        for path in sorted(out.rglob("*.*")):
            archive.write(path, path.relative_to(out))
    return {"name": f"{stem}_panoptic.zip", "data": _url(content.getvalue(), "application/zip")}


def _to_pil(picture: Tensor) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).cpu().numpy())


def _data_url(image: Image.Image, kind: str) -> str:
    content = io.BytesIO()
    image.save(content, kind, quality=92)
    return _url(content.getvalue(), f"image/{kind.lower()}")


def _url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
