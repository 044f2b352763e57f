"""Prediction of image files as a job of the pipeline: reading, network, fusion, drawing and writing."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from refine import __version__
from refine.data.transforms import network_size
from refine.errors import RefineError
from refine.formats.image_list import ImageFile
from refine.formats.images import read_image
from refine.formats.raw import ImageOptions
from refine.formats.result_files import ResultFiles, Written
from refine.formats.results.saver import ImageResult
from refine.formats.writer import PredictionWriter
from refine.inference.limits import Limits
from refine.inference.pipeline import Job
from refine.inference.predictor import Predictor
from refine.networks.choice import ModelChoice
from refine.savers import SAVERS, encode
from refine.storage import local_copy
from refine.structures import Prediction
from refine.structures.images import padded_size

NO_LIMIT = 2**31
"""Long side in pixels that no image reaches."""

DIVISOR = 32
"""Most networks pad images to a multiple of it; those of equal size are predicted in one batch."""


@dataclass(frozen=True)
class JobSettings:
    """Settings of `refine predict`, which another process can receive.

    Attributes:
        checkpoint: name of a model, or model folder, or several by name.
        device: "cpu", "cuda", …; None stands for the GPU if there is one.
        method: fusion rule; None stands for the checkpoint's.
        fusion: fusion thresholds that differ from the checkpoint's.
        scale: factor by which images are resized; None resizes to the model's test size.
        max_detections: maximum number of objects per image; None stands for the model's.
        reading: page, channel and range of values.
        listed_in: JSON that states the sizes of the images, for messages.
    """

    checkpoint: str | ModelChoice
    device: str | None = None
    method: Any = None
    fusion: dict[str, Any] = field(default_factory=dict)
    scale: float | None = None
    max_detections: int | None = None
    reading: ImageOptions = field(default_factory=ImageOptions)
    listed_in: str | None = None

    def predictor(self) -> Predictor:
        """Load the model."""
        predictor = Predictor(self.checkpoint, device=self.device, method=self.method, fusion=self.fusion)
        if self.max_detections:
            predictor.limit_detections(self.max_detections)
        return predictor

    def info(self, predictor: Predictor) -> dict[str, Any]:
        """Return everything but the images that determines the results: `info` of panoptic.json."""
        size, reading = predictor.test_size, asdict(self.reading)
        if isinstance(self.reading.range, tuple):
            reading["range"] = list(self.reading.range)  # as JSON gives it back
        return {
            "description": f"Panoptic results of refine {__version__}, model {self.checkpoint}",
            "version": __version__,
            "model": str(self.checkpoint),
            "weights": predictor.network.digest(),
            "method": predictor.method,
            "fusion": asdict(predictor.fusion),
            "test_size": list(size) if self.scale is None and size else None,
            "scale": self.scale,
            "max_detections": predictor.network.max_detections,
        } | {name: value for name, value in reading.items() if value is not None}


@dataclass(frozen=True)
class ReadImage:
    """Image, Tensor[3, H, W] uint8 RGB, the predictor for its size, and notes on how its values were read."""

    image: Tensor
    predictor: Predictor
    notes: list[str]

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[1], self.image.shape[2]


@dataclass(frozen=True)
class Finished:
    """Result of one image: its files, a summary in a few words, notes, and whether objects may be missing."""

    written: Written
    summary: str
    notes: list[str]
    limits: Limits


class ImageJob(Job[ReadImage, Prediction, Finished]):
    """Prediction of image files; the files of a result are written, and have to be recorded.

    Args:
        settings: what to do.
        predictor: the loaded model of these settings.
        writer: writes the files of the results; `ResultFiles` in a process that does not list them.
    """

    def __init__(self, settings: JobSettings, predictor: Predictor, writer: PredictionWriter | ResultFiles) -> None:
        self.settings, self.predictor, self.writer = settings, predictor, writer

    def read(self, file: ImageFile) -> ReadImage:
        notes: list[str] = []
        with local_copy(file.path) as path:
            image = read_image(path, file.size, file.reading(self.settings.reading), notify=notes.append)
        size = (image.shape[1], image.shape[2])
        if file.size is not None and file.size != size:
            raise RefineError(
                f"{file.path}: {size[1]} × {size[0]} pixels, but {self.settings.listed_in} says {file.size[1]} × "
                f"{file.size[0]}; correct one of them"
            )
        return ReadImage(image, self._scaled(min(size)), notes)

    def _scaled(self, short: int) -> Predictor:
        """Return the predictor for images with this short side: `--scale` gives each its own test size."""
        if self.settings.scale is None:
            return self.predictor
        predictor = copy.copy(self.predictor)
        predictor.network = copy.copy(predictor.network)  # shares the weights
        predictor.test_size = (max(1, round(short * self.settings.scale)), NO_LIMIT)
        return predictor

    def group(self, image: ReadImage) -> Hashable:
        size = image.predictor.test_size
        return size, padded_size(network_size(image.size, *size) if size else image.size, DIVISOR)

    def pixels(self, image: ReadImage) -> int:
        return image.image[0].numel()

    def predict(self, images: list[ReadImage]) -> list[Prediction]:
        predictor = images[0].predictor
        return predictor.predict_raw([image.image for image in images], predictor.fusion.score_threshold)

    def finish(self, file: ImageFile, image: ReadImage, prediction: Prediction) -> Finished:
        predictor, limits = image.predictor, image.predictor.limits()
        limits.add(file.name, prediction, predictor.fusion.score_threshold)
        result = predictor.fuse(prediction)
        reading, model = file.reading(self.settings.reading), str(self.settings.checkpoint)
        with self._source(file) as source:
            item = ImageResult(result, file.name, image.image, None, model, source, reading)
            written = self.writer.write(file.id, file.name, result, encode(self.writer.savers, item))
        return Finished(written, result.summary(), image.notes, limits)

    def _source(self, file: ImageFile) -> AbstractContextManager[Path | None]:
        """Provide the file for formats that read values or scale from it; overlays do not, and spare a download."""
        if isinstance(file.path, Path) or any(saver is not SAVERS["overlay"] for saver in self.writer.savers):
            return local_copy(file.path)
        return nullcontext()

    def discard(self, finished: Finished) -> None:
        self.writer.discard(finished.written)
