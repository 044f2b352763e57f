"""Views of results for the browser, and files to download."""

from __future__ import annotations

import base64
import io
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from refine.drawing.overlay import encode_image, fits_jpeg, overlay, segment_colors
from refine.formats.results.saver import ImageResult
from refine.formats.writer import PredictionWriter
from refine.savers import encode, find_savers
from refine.serve.models import Upload
from refine.structures import PanopticResult
from refine.structures.panoptic import id_to_rgb

VIEW_SIDE = 1600
"""Maximum side of a displayed image in pixels; downloaded files have the size of the original image."""


def view(upload: Upload, result: PanopticResult, remarks: Sequence[str] = ()) -> dict[str, Any]:
    """Return the data with which the browser displays a result.

    Args:
        upload: uploaded image.
        result: panoptic result of the image.
        remarks: lines to display below the summary.

    Returns:
        `serial` of the upload; data URLs `image` and `overlay` (JPEG) and `ids` (PNG with COCO's encoding, void
        0), all of one size, at most `VIEW_SIDE` on a side; `name`, `model`, `width` and `height` of the image;
        `seconds` of the network; `remarks`; and `segments`, each a mapping of `id`, `name`, `thing`, `score` (0-1
        or None), `area` in pixels of the image, `share` of the image (0-1), and `color` as "#rrggbb".
    """
    _, height, width = upload.image.shape
    scale = min(1, VIEW_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = _to_pil(upload.image).resize(size)
    ids = result.segment_ids.cpu().numpy()
    small = ids[np.arange(size[1]) * height // size[1]][:, np.arange(size[0]) * width // size[0]]
    shown = replace(result, segment_ids=torch.from_numpy(small))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return {
        "serial": upload.serial,
        "name": upload.name,
        "model": upload.model,
        "width": width,
        "height": height,
        "seconds": upload.seconds,
        "remarks": list(remarks),
        "image": _data_url(image, "JPEG"),
        # The browser writes the names, at a readable size on every screen.
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
    """Return the overlay at the size of the original image as `name` of the file and its `data` URL.

    It is a JPEG, or a PNG if the image is too long for that.
    """
    kind: Literal["JPEG", "PNG"] = "JPEG" if fits_jpeg(upload.image) else "PNG"
    return {
        "name": f"{Path(upload.name).stem}_overlay.{'jpg' if kind == 'JPEG' else 'png'}",
        "data": _url(encode_image(overlay(upload.image, result), kind), f"image/{kind.lower()}"),
    }


def archive_file(upload: Upload, result: PanopticResult) -> dict[str, str]:
    """Return the files that `refine predict` writes as a zip archive: `name` of the file and its `data` URL.

    The archive holds panoptic.json, panoptic/NAME.png and, unless the image is too long for a JPEG,
    overlays/NAME.jpg.
    """
    stem, content = Path(upload.name).stem, io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        out = Path(folder)
        savers = find_savers("overlay") if fits_jpeg(upload.image) else []
        with PredictionWriter(out, result.categories, {"model": upload.model}, savers=savers) as writer:
            item = ImageResult(result, upload.name, upload.image, model=upload.model)
            writer.add(1, upload.name, result, encode(savers, item))
        for path in sorted(out.rglob("*.*")):
            archive.write(path, path.relative_to(out))
    return {"name": f"{stem}_panoptic.zip", "data": _url(content.getvalue(), "application/zip")}


def _to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())


def _data_url(image: Image.Image, kind: str) -> str:
    content = io.BytesIO()
    image.save(content, kind, quality=92)
    return _url(content.getvalue(), f"image/{kind.lower()}")


def _url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
