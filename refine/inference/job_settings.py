"""Settings of the prediction of image files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from refine import __version__
from refine.formats.raw import ImageOptions
from refine.inference.predictor import Predictor
from refine.inference.tiling.plan import Tiling
from refine.inference.tiling.predict import check_resizable, check_tiles
from refine.networks.choice import ModelChoice
from refine.networks.native import Precision


@dataclass(frozen=True)
class JobSettings:
    """Settings of `refine predict`, which another process can receive.

    Attributes:
        checkpoint: name of a model, or model folder, or several by name.
        device: "cpu", "cuda", …; None stands for the GPU if there is one.
        precision: precision of the network; see `Predictor`.
        method: fusion rule; None stands for the checkpoint's.
        fusion: fusion thresholds that differ from the checkpoint's.
        scale: factor by which images are resized; None resizes to the model's test size.
        tiling: how images are cut into tiles; None predicts all images whole.
        always_tile: whether all images are, or only large ones.
        max_detections: maximum number of objects per image; None stands for the model's.
        reading: page, channel and range of values.
        listed_in: JSON that states the sizes of the images, for messages.
    """

    checkpoint: str | ModelChoice
    device: str | None = None
    precision: Precision = "32"
    method: Any = None
    fusion: dict[str, Any] = field(default_factory=dict)
    scale: float | None = None
    tiling: Tiling | None = None
    always_tile: bool = False
    max_detections: int | None = None
    reading: ImageOptions = field(default_factory=ImageOptions)
    listed_in: str | None = None

    def predictor(self) -> Predictor:
        """Load the model."""
        predictor = Predictor(
            self.checkpoint, device=self.device, method=self.method, fusion=self.fusion, precision=self.precision
        )
        if self.always_tile:
            check_tiles(predictor.network, "--tile, --mpp")
        elif self.scale is not None:
            check_resizable(predictor.network, "--scale")
        if self.max_detections:
            predictor.limit_detections(self.max_detections)
        return predictor

    def info(self, predictor: Predictor) -> dict[str, Any]:
        """Return everything but the images that determines the results: `info` of panoptic.json."""
        size, reading = predictor.test_size, asdict(self.reading)
        if isinstance(self.reading.range, tuple):
            reading["range"] = list(self.reading.range)  # as JSON gives it back
        return {
            "version": __version__,
            "model": str(self.checkpoint),
            "weights": predictor.network.digest(),
            "method": predictor.method,
            "fusion": asdict(predictor.fusion),
            "test_size": list(size) if self.scale is None and size else None,
            "scale": self.scale,
            "max_detections": predictor.network.max_detections,
            "precision": self.precision,
            "tiling": self._tiling_info(),
            **({"occlusion": predictor.occlusion.digest()} if predictor.occlusion else {}),
        } | {name: value for name, value in reading.items() if value is not None}

    def _tiling_info(self) -> dict[str, Any] | None:
        """Return how images are cut into tiles, and whether all are; None if none is."""
        if self.tiling is None:
            return None
        return asdict(self.tiling) | {"overlap": self.tiling.least_overlap, "always": self.always_tile}
