"""What the page shows and hands out, without the page: pictures to results, views and archives."""

from __future__ import annotations

import base64
import io
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from refine.checkpoint.find import shipped_models
from refine.checkpoint.folder import SavedModel, load_model
from refine.drawing.overlay import overlay, segment_colors, write_picture
from refine.errors import RefineError
from refine.formats.images import read_image
from refine.formats.writer import PredictionWriter
from refine.fusion.config import FusionConfig, Method
from refine.inference.predictor import Predictor
from refine.runtime import find_device
from refine.structures import PanopticResult, Prediction
from refine.structures.panoptic import id_to_rgb

MAX_PIXELS = 40_000_000
"""A larger picture is refused: the page would stand still for minutes, for everybody."""

VIEW_SIDE = 1600
"""Pictures are shown at most this long, in pixels; archives hold them whole."""


@dataclass(frozen=True)
class Upload:
    """What a network said of one picture; every fusion starts from it.

    Attributes:
        model: name of the model.
        name: of the picture's file, without folders.
        image: Tensor[3, H, W] uint8 RGB.
        raw: before fusion.
        seconds: that the network took.
    """

    model: str
    name: str
    image: Tensor
    raw: Prediction
    seconds: float


class Models:
    """The models that can be chosen, each loaded when first used; one request at a time uses them.

    Args:
        checkpoint: chosen at first: the name of a shipped model, or a folder.
        device: "cpu", "cuda", …; the GPU if there is one.

    Attributes:
        names: the checkpoint, then the other shipped models.

    Raises:
        RefineError: no such checkpoint, or a broken one.
    """

    def __init__(self, checkpoint: str = "nuclei", device: str | None = None) -> None:
        self.names = list(dict.fromkeys([checkpoint, *shipped_models()]))
        self.device = device
        self._loaded: dict[str, SavedModel] = {}
        self._lock = Lock()
        self.load(checkpoint)

    def load(self, name: str) -> SavedModel:
        """A model, with its own rule of fusion and thresholds."""
        with self._lock:
            if name not in self._loaded:
                saved = self._loaded[name] = load_model(name)
                saved.model.to(find_device(self.device))
            return self._loaded[name]

    def look(self, path: str | Path, name: str) -> Upload:
        """Run a network on a picture.

        Raises:
            RefineError: the file cannot be read, or has more than `MAX_PIXELS` or the GPU's memory takes.
        """
        path, saved = Path(path), self.load(name)
        try:
            image = read_image(path)
        except RefineError as error:  # where an upload lies is nobody's business
            raise RefineError(str(error).replace(str(path), path.name)) from error
        _, height, width = image.shape
        if height * width > MAX_PIXELS:
            raise RefineError(
                f"{path.name}: has {height * width / 1e6:.0f} million pixels, the page takes "
                f"{MAX_PIXELS / 1e6:.0f}; cut it into tiles, or use `refine predict`"
            )
        with self._lock:
            start = time.perf_counter()
            try:
                raw = Predictor(saved).predict_raw([image])[0]
            except torch.OutOfMemoryError as error:
                raise RefineError(f"{path.name}: is too large for the GPU; start with --device cpu") from error
            return Upload(name, path.name, image, raw, time.perf_counter() - start)

    def fuse(self, look: Upload, method: Method, fusion: FusionConfig) -> PanopticResult:
        """Apply a rule of fusion; the network does not run again.

        Raises:
            RefineError: the model lacks the head that the method asks.
        """
        saved = self.load(look.model)
        with self._lock:
            return Predictor(saved, method=method, fusion=fusion).fuse(look.raw)


def view(look: Upload, result: PanopticResult) -> dict[str, Any]:
    """What the browser needs to show a result.

    Returns:
        `picture`, `overlay` (JPEG) and `ids` (PNG in COCO's colours, void 0), data URLs of one size, at most
        `VIEW_SIDE` long; `name`, `width`, `height` of the picture and `seconds` of the network; and
        `segments`, a mapping each: `id`, `name`, `thing`, `score` (0-1 or None), `area` in pixels of the
        picture, `share` of it (0-1), `color` as "#rrggbb".
    """
    _, height, width = look.image.shape
    scale = min(1, VIEW_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    ids = Image.fromarray(id_to_rgb(result.segment_ids.cpu().numpy()))
    colors = segment_colors(result)
    return {
        "name": look.name,
        "width": width,
        "height": height,
        "seconds": look.seconds,
        "picture": _data_url(_to_pil(look.image).resize(size), "JPEG"),
        "overlay": _data_url(_to_pil(overlay(look.image, result)).resize(size), "JPEG"),
        "ids": _data_url(ids.resize(size, Image.Resampling.NEAREST), "PNG"),
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
            for segment, color in zip(result.segments, colors, strict=True)
        ],
    }


def overlay_file(look: Upload, result: PanopticResult) -> dict[str, str]:
    """The overlay at the picture's own size, JPEG: `name` of the file and its `data` URL."""
    return {
        "name": f"{Path(look.name).stem}_overlay.jpg",
        "data": _data_url(_to_pil(overlay(look.image, result)), "JPEG"),
    }


def archive_file(look: Upload, result: PanopticResult) -> dict[str, str]:
    """What `refine predict` writes, zipped (panoptic.json, panoptic/NAME.png, overlays/NAME.jpg): `name` of
    the file and its `data` URL."""
    stem, content = Path(look.name).stem, io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        out = Path(folder)
        with PredictionWriter(out, result.categories) as writer:
            writer.add(1, look.name, result)
        write_picture(out / "overlays" / f"{stem}.jpg", overlay(look.image, result))
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
