"""Models of the page, and the uploaded images with their predictions."""

from __future__ import annotations

import filecmp
import itertools
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from refine.checkpoint.find import shipped_models
from refine.errors import RefineError, did_you_mean, is_out_of_memory
from refine.formats.images import read_image
from refine.fusion.config import AnyMethod, FusionConfig
from refine.inference.limits import ELSEWHERE
from refine.inference.predictor import Predictor
from refine.networks.choice import ModelChoice
from refine.networks.native import Precision
from refine.runtime import find_device
from refine.structures import PanopticResult, Prediction

MAX_PIXELS = 40_000_000
"""Maximum height × width of an image, checked from its header."""

PATIENCE = 60.0
"""Maximum number of seconds that a request waits for the network."""

KEPT_BYTES = 1 << 30
"""Memory in bytes for the images and predictions of all sessions."""


@dataclass(frozen=True)
class Upload:
    """Uploaded image with the network's prediction, from which it is fused with any settings.

    Attributes:
        model: name of the model.
        path: uploaded file.
        image: Tensor[3, H, W] uint8 RGB.
        prediction: prediction before fusion, with `sem_seg` as int16, and without `sem_probabilities` unless the
            model's fusion uses them, to save memory.
        seconds: running time of the network.
        serial: number of the upload, increasing with time.
    """

    model: str
    path: Path
    image: Tensor
    prediction: Prediction
    seconds: float
    serial: int = 0

    @property
    def name(self) -> str:
        """File name without folders."""
        return self.path.name

    @property
    def nbytes(self) -> int:
        """Total size of all tensors in bytes."""
        return _nbytes(self)


def _nbytes(value: object) -> int:
    """Return the size in bytes of a tensor, or of all tensors in a dataclass and the dataclasses in it."""
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(_nbytes(getattr(value, part.name)) for part in fields(value)) if is_dataclass(value) else 0


class Models:
    """Selectable models, each loaded when first used.

    One image at a time runs through the network; fusion and drawing of several sessions run in parallel.

    Args:
        checkpoint: model selected at start: name of a model, model folder, or several by name; None selects none.
        device: "cpu", "cuda", …; None stands for the GPU if there is one.
        precision: precision of the networks; see `Predictor`.

    Attributes:
        first: model selected at start, or None.
        names: names of `checkpoint` and of the shipped models.

    Raises:
        RefineError: the checkpoint or device does not exist, or the checkpoint is broken.
    """

    def __init__(
        self,
        checkpoint: str | ModelChoice | None = None,
        device: str | None = None,
        precision: Precision = "32",
    ) -> None:
        first = {str(checkpoint): checkpoint} if checkpoint else {}
        self.first = next(iter(first), None)
        self._sources: dict[str, str | ModelChoice] = first | {name: name for name in shipped_models()} | first
        self.names = list(self._sources)
        self.device, self.precision = device, precision
        self._predictors: dict[str, Predictor] = {}
        self._loading, self._network = Lock(), Lock()
        find_device(device)
        if self.first:
            self.predictor(self.first)

    def predictor(self, name: str) -> Predictor:
        """Return the predictor of a model, with the model's fusion rule and thresholds."""
        if name not in self.names:
            similar = did_you_mean(name, self.names)
            raise RefineError(f"model {name!r}: unknown{similar}; expected one of {', '.join(self.names)}")
        with self._loading:
            if name not in self._predictors:
                self._predictors[name] = Predictor(
                    self._sources[name], device=self.device, precision=self.precision
                )
            return self._predictors[name]

    def predict(self, path: str | Path, name: str) -> Upload:
        """Run a network on an image.

        Raises:
            RefineError: the file cannot be read, has more than `MAX_PIXELS`, or does not fit into memory; or the
                network was busy for `PATIENCE` seconds.
        """
        path, predictor = Path(path), self.predictor(name)
        try:
            image = read_image(path, max_pixels=MAX_PIXELS)
        except RefineError as error:  # do not disclose the folder of uploads
            raise RefineError(str(error).replace(str(path), path.name)) from error
        with self._turn():
            start = time.perf_counter()
            try:
                prediction = predictor.predict_raw([image])[0]
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                raise RefineError(f"{path.name}: does not fit into memory; use a smaller image") from error
            seconds = time.perf_counter() - start
        # The page does not change `ue_region`, and no other setting needs the probabilities of all classes.
        probabilities = prediction.sem_probabilities if predictor.fusion.ue_region == "dilated" else None
        prediction = replace(
            prediction, sem_seg=prediction.sem_seg.to(torch.int16), sem_probabilities=probabilities
        )
        return Upload(name, path, image, prediction, seconds)

    def fuse(self, upload: Upload, method: AnyMethod, fusion: FusionConfig) -> PanopticResult:
        """Fuse a prediction without running the network again.

        Raises:
            RefineError: the model does not have the head that the method needs.
        """
        predictor = self.predictor(upload.model)
        predictor.check_method(method)
        prediction = replace(upload.prediction, sem_seg=upload.prediction.sem_seg.long())
        return predictor.fuse(prediction, method, fusion)

    def remarks(self, upload: Upload, fusion: FusionConfig) -> list[str]:
        """Return remarks on objects that may be missing because of the model's limits."""
        predictor = self.predictor(upload.model)
        limits = predictor.limits()
        limits.add(upload.name, upload.prediction, fusion.score_threshold)
        return list(limits.remarks(ELSEWHERE).values())

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the network exclusively; raise RefineError after waiting for `PATIENCE` seconds."""
        if not self._network.acquire(timeout=PATIENCE):
            raise RefineError(f"the network has been busy with other images for {PATIENCE:.0f} s; try again")
        try:
            yield
        finally:
            self._network.release()


class Uploads:
    """Last upload of each session; if they exceed the capacity, the least recently used ones are removed.

    Args:
        folder: folder of uploaded files. The file of a removed upload is deleted unless another session uses it.
        examples: example images of the page, whose copies in the folder are not deleted.
        capacity: maximum size of all uploads in bytes; the newest one is kept even if it alone is larger.
    """

    def __init__(self, folder: str | Path, examples: Collection[Path] = (), capacity: int = KEPT_BYTES) -> None:
        self.folder, self.examples, self.capacity = Path(folder).resolve(), examples, capacity
        self._kept: OrderedDict[str, Upload] = OrderedDict()
        self._opened: dict[str, tuple[int, Path]] = {}  # serial and file of each session, before it is predicted
        self._serial = itertools.count(1)
        self._lock = Lock()

    def begin(self, visitor: str, path: Path) -> int:
        """Remove the upload of a session, which opens a file in its place; return the serial of the new upload."""
        with self._lock:
            self._kept.pop(visitor, None)
            _, before = self._opened.get(visitor, (0, path))
            self._opened[visitor] = next(self._serial), path
            self._delete(before)
            return self._opened[visitor][0]

    def is_current(self, visitor: str, serial: int) -> bool:
        """Return whether an upload is the last that its session began, and was not removed."""
        return self._opened.get(visitor, (0, None))[0] == serial

    def put(self, visitor: str, upload: Upload) -> bool:
        """Store the upload of a session with the serial from `begin`; return False if it is no longer current."""
        with self._lock:
            if not self.is_current(visitor, upload.serial):
                self._delete(upload.path)
                return False
            self._kept[visitor] = upload
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self.capacity:
                self._remove(next(iter(self._kept)))
            return True

    def get(self, visitor: str) -> Upload | None:
        """Return the upload of a session, or None if there is none or it was removed."""
        with self._lock:
            if visitor in self._kept:
                self._kept.move_to_end(visitor)
            return self._kept.get(visitor)

    def drop(self, visitor: str) -> None:
        """Remove the upload of a session, also one that is still being predicted, and delete its file."""
        with self._lock:
            self._remove(visitor)

    def _remove(self, visitor: str) -> None:
        self._kept.pop(visitor, None)
        _, path = self._opened.pop(visitor, (0, None))
        if path is not None:
            self._delete(path)

    def _delete(self, path: Path) -> None:
        """Delete an uploaded file unless another session uses it; equal uploads share one file."""
        if self.folder not in path.resolve().parents or not path.is_file():
            return
        if any(opened == path for _, opened in self._opened.values()):
            return
        if not any(filecmp.cmp(path, example, shallow=False) for example in self.examples):
            path.unlink()
