"""Prediction of image files as a job of the pipeline: reading, network, fusion, drawing and writing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from torch import Tensor

from refine.data.resize import network_size
from refine.errors import RefineError
from refine.files import MAX_PIXELS, name_problem
from refine.formats.image_list import SLIDES, ImageFile
from refine.formats.images import is_tiff, read_image, stored_size
from refine.formats.result_files import ResultFiles, Written
from refine.formats.results.saver import ImageResult
from refine.formats.windows import ImageWindows, TensorWindows, open_windows
from refine.formats.writer import PredictionWriter
from refine.fusion.bands import MOST_SEGMENTS, FusedBands
from refine.inference.job_settings import JobSettings
from refine.inference.limits import Limits
from refine.inference.pipeline import Job
from refine.inference.predictor import Predictor
from refine.inference.tiling.plan import NO_LIMIT, check_scale
from refine.inference.tiling.predict import check_tiles, is_large, predict_tiles
from refine.savers import SAVERS, encode
from refine.storage import Stamp, local_copy, stamp
from refine.structures import PanopticResult, Prediction
from refine.structures.images import padded_size

TIFFS = (".tif", ".tiff")
"""Suffixes of files of which parts can be read."""

EVERY = 30.0
"""Seconds between two lines about an image that is predicted in tiles."""

DIVISOR = 32
"""Most networks pad images to a multiple of it; those of equal size are predicted in one batch."""


@dataclass(frozen=True)
class ReadImage:
    """Image that is read, with the predictor for its size, and notes on how its values were read.

    Attributes:
        name: name of the image.
        image: Tensor[3, H, W] uint8 RGB, or windows of an image that is predicted in tiles.
        source: stamp of the file before it was read; see `refine.storage.stamp`.
    """

    name: str
    image: Tensor | ImageWindows
    predictor: Predictor
    notes: list[str]
    source: Stamp | None

    @property
    def size(self) -> tuple[int, int]:
        image = self.image
        return (image.shape[1], image.shape[2]) if isinstance(image, Tensor) else image.size


@dataclass(frozen=True)
class TiledPrediction:
    """Result of an image that is predicted in tiles, and whether objects may be missing."""

    bands: FusedBands
    limits: Limits


@dataclass(frozen=True)
class Finished:
    """Result of one image: its files, a summary in a few words, notes, and whether objects may be missing."""

    written: Written
    summary: str
    notes: list[str]
    limits: Limits


class ImageJob(Job[ReadImage, Prediction | TiledPrediction, Finished]):
    """Prediction of image files; the files of a result are written, and have to be recorded.

    Args:
        settings: what to do.
        predictor: the loaded model of these settings.
        writer: writes the files of the results; `ResultFiles` in a process that does not list them.
        tell: called with one line about an image while it is predicted in tiles.
    """

    def __init__(
        self,
        settings: JobSettings,
        predictor: Predictor,
        writer: PredictionWriter | ResultFiles,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.settings, self.predictor, self.writer, self.tell = settings, predictor, writer, tell

    def read(self, file: ImageFile) -> ReadImage:
        if problem := name_problem(file.name):
            raise RefineError(problem)
        notes: list[str] = []
        source = stamp(file.path)  # before its content
        image = self._open(file, notes)
        size = (image.shape[1], image.shape[2]) if isinstance(image, Tensor) else image.size
        if file.size is not None and file.size != size:
            raise RefineError(
                f"{file.path}: {size[1]} × {size[0]} pixels, but {self.settings.listed_in} says {file.size[1]} × "
                f"{file.size[0]}; correct one of them"
            )
        if isinstance(image, Tensor) and self._in_tiles(size):
            image = TensorWindows(image)
        if isinstance(image, Tensor):
            return ReadImage(file.name, image, self._scaled(file.name, size), notes, source)
        return ReadImage(file.name, image, self.predictor, notes, source)

    def _open(self, file: ImageFile, notes: list[str]) -> Tensor | ImageWindows:
        """Read an image, or open a slide or a TIFF file that is predicted in tiles."""
        reading, path = file.reading(self.settings.reading), file.path
        if path.suffix.lower() in SLIDES:
            if self.settings.tiling is None or not isinstance(path, Path):
                raise RefineError(f"{path}: slides are read in parts; give a local file, without --tile off")
            return open_windows(path, reading)
        is_local_tiff = isinstance(path, Path) and path.suffix.lower() in TIFFS and is_tiff(path)
        if isinstance(path, Path) and is_local_tiff and self._in_tiles(stored_size(path, reading)):
            return open_windows(path, reading, notify=notes.append)
        with local_copy(path) as local:
            return read_image(local, file.size, reading, notify=notes.append)

    def _in_tiles(self, size: tuple[int, int]) -> bool:
        tiling = self.settings.tiling
        return tiling is not None and (self.settings.always_tile or is_large(size, self.predictor, tiling))

    def _scaled(self, name: str, size: tuple[int, int]) -> Predictor:
        """Return the predictor for images of this (height, width): `--scale` gives each its own test size."""
        if self.settings.scale is None:
            return self.predictor
        check_scale(self.settings.scale, size, name)
        predictor = copy.copy(self.predictor)
        predictor.network = copy.copy(predictor.network)  # shares the weights
        predictor.test_size = (max(2, round(min(size) * self.settings.scale)), NO_LIMIT)
        return predictor

    def group(self, image: ReadImage) -> Hashable:
        if not isinstance(image.image, Tensor):
            return image.name
        size = image.predictor.test_size
        return size, padded_size(network_size(image.size, *size) if size else image.size, DIVISOR)

    def pixels(self, image: ReadImage) -> int:
        return image.image[0].numel() if isinstance(image.image, Tensor) else 0

    def predict(self, images: list[ReadImage]) -> list[Prediction | TiledPrediction]:
        predictor = images[0].predictor
        whole = [image.image for image in images if isinstance(image.image, Tensor)]
        large = [(image.name, image.image) for image in images if not isinstance(image.image, Tensor)]
        if large:  # one image: see `group`
            return [self._predict_tiles(name, windows) for name, windows in large]
        return [*predictor.predict_raw(whole, predictor.fusion.score_threshold)]

    def _predict_tiles(self, name: str, image: ImageWindows) -> TiledPrediction:
        tiling, limits = self.settings.tiling, self.predictor.limits()
        assert tiling is not None
        check_tiles(self.predictor.network, name)
        height, width = image.size
        scale = tiling.scale_for(image.mpp, name)
        self.tell(f"{name}: {width} × {height} pixels are predicted in tiles of {tiling.tile}, at scale {scale:g}")
        told = monotonic()

        def advance(done: int, count: int) -> None:
            nonlocal told
            if monotonic() - told > EVERY and done < count:
                told = monotonic()
                self.tell(f"{name}: {done} of {count} tiles")

        folder = self.writer.out if isinstance(self.writer.out, Path) else None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        bands = predict_tiles(
            self.predictor, image, tiling, name=name, limits=limits, folder=folder, advance=advance
        )
        return TiledPrediction(bands, limits)

    def _finish_tiles(self, file: ImageFile, image: ReadImage, prediction: TiledPrediction) -> Finished:
        """Write the result of an image that was predicted in tiles; above `MAX_PIXELS` band by band."""
        bands, (height, width) = prediction.bands, image.size
        assert not isinstance(image.image, Tensor)
        things = sum(segment.isthing for segment in bands.segments)
        summary = f"things: {things}, classes of stuff: {len(bands.segments) - things}"
        if height * width > MAX_PIXELS or len(bands.segments) >= MOST_SEGMENTS:
            mpp = image.image.mpp
            written = self.writer.write_bands(
                file.id, file.name, bands.size, bands.segments, bands.bands(), mpp, image.source
            )
            note = f"{file.name}: is too large for a PNG; its ids are in {written.paths[0]}, without other formats"
            return Finished(written, summary, [*image.notes, note], prediction.limits)
        pixels = image.image.read(0, 0, height, width)
        written = self._write(file, bands.result(), pixels, image.source, image.image.mpp)
        return Finished(written, summary, image.notes, prediction.limits)

    def _write(
        self,
        file: ImageFile,
        result: PanopticResult,
        pixels: Tensor,
        stamped: Stamp | None,
        mpp: float | None = None,
    ) -> Written:
        reading, model = file.reading(self.settings.reading), str(self.settings.checkpoint)
        with self._source(file) as source:
            item = ImageResult(result, file.name, pixels, mpp, model, source, reading)
            return self.writer.write(file.id, file.name, result, encode(self.writer.savers, item), stamped)

    def finish(self, file: ImageFile, image: ReadImage, prediction: Prediction | TiledPrediction) -> Finished:
        if isinstance(prediction, TiledPrediction):
            return self._finish_tiles(file, image, prediction)
        assert isinstance(image.image, Tensor)
        predictor, limits = image.predictor, image.predictor.limits()
        limits.add(file.name, prediction, predictor.fusion.score_threshold)
        result = predictor.fuse(prediction)
        written = self._write(file, result, image.image, image.source)
        return Finished(written, result.summary(), image.notes, limits)

    def _source(self, file: ImageFile) -> AbstractContextManager[Path | None]:
        """Provide the file for formats that read values or scale from it; overlays do not, and spare a download."""
        if isinstance(file.path, Path) or any(saver is not SAVERS["overlay"] for saver in self.writer.savers):
            return local_copy(file.path)
        return nullcontext()

    def discard(self, finished: Finished) -> None:
        self.writer.discard(finished.written)
