"""Models behind the page, and what they predict of the visitors' images."""

from __future__ import annotations

import filecmp
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from refine.checkpoint.find import shipped_models
from refine.checkpoint.folder import SavedModel, load_model
from refine.errors import RefineError
from refine.formats.images import read_image
from refine.fusion.config import FusionConfig, Method
from refine.inference.predictor import Predictor, check_method
from refine.runtime import find_device
from refine.structures import PanopticResult, Prediction

MAX_PIXELS = 40_000_000
"""A larger image is refused, from its header alone."""

PATIENCE = 60.0
"""Seconds that a request waits for the network while others use it."""

KEPT_BYTES = 1 << 30
"""Memory for the visitors' last images and predictions, all together."""


@dataclass(frozen=True)
class Upload:
    """One visitor's image and what a network predicted; every fusion starts from it.

    Attributes:
        model: name of the model.
        path: the uploaded file.
        image: Tensor[3, H, W] uint8 RGB.
        prediction: prediction before fusion; `sem_seg` as int16, which takes a quarter of the memory.
        seconds: time that the network took.
        serial: number of the upload, rising with time.
    """

    model: str
    path: Path
    image: Tensor
    prediction: Prediction
    seconds: float
    serial: int = 0

    @property
    def name(self) -> str:
        """Name of the file, without folders."""
        return self.path.name

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        prediction = self.prediction
        tensors = [self.image, prediction.sem_seg, prediction.sem_confidence, *vars(prediction.instances).values()]
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))


class Models:
    """The models that a visitor can choose, each loaded when first used.

    The network runs for one image at a time; fusion and drawing of several visitors run side by side.

    Args:
        checkpoint: chosen at first: the name of a shipped model, or a folder; None lets the visitor choose.
        device: "cpu", "cuda", …; None takes the GPU if there is one.

    Attributes:
        first: the checkpoint, or None.
        names: the checkpoint, then the shipped models.

    Raises:
        RefineError: no such checkpoint or device, or a broken checkpoint.
    """

    def __init__(self, checkpoint: str | None = None, device: str | None = None) -> None:
        self.first = checkpoint
        self.names = list(dict.fromkeys([*([checkpoint] if checkpoint else []), *shipped_models()]))
        self.device = device
        self._predictors: dict[str, Predictor] = {}
        self._loading, self._network = Lock(), Lock()
        find_device(device)
        if checkpoint:
            self.predictor(checkpoint)

    def predictor(self, name: str) -> Predictor:
        """The predictor of a model, with the model's own rule of fusion and thresholds."""
        if name not in self.names:
            raise RefineError(f"model {name!r}: expected one of {', '.join(self.names)}")
        with self._loading:
            if name not in self._predictors:
                saved: SavedModel = load_model(name)
                self._predictors[name] = Predictor(saved, device=self.device)
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
        except RefineError as error:  # the folder of uploads is none of the visitor's business
            raise RefineError(str(error).replace(str(path), path.name)) from error
        with self._turn():
            start = time.perf_counter()
            try:
                prediction = predictor.predict_raw([image])[0]
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise RefineError(f"{path.name}: does not fit into memory; use a smaller image") from error
            seconds = time.perf_counter() - start
        prediction = replace(prediction, sem_seg=prediction.sem_seg.to(torch.int16))
        return Upload(name, path, image, prediction, seconds)

    def fuse(self, upload: Upload, method: Method, fusion: FusionConfig) -> PanopticResult:
        """Apply a rule of fusion; the network does not run again.

        Raises:
            RefineError: the model lacks the head that the method evaluates.
        """
        predictor = self.predictor(upload.model)
        check_method(method, predictor.model)
        prediction = replace(upload.prediction, sem_seg=upload.prediction.sem_seg.long())
        return predictor.fuse(prediction, method, fusion)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for the network, but not for ever."""
        if not self._network.acquire(timeout=PATIENCE):
            raise RefineError(f"the network has been busy with other images for {PATIENCE:.0f} s; try again")
        try:
            yield
        finally:
            self._network.release()


class Uploads:
    """The last upload of each visitor. Above a number of bytes those unused for longest are dropped.

    Args:
        folder: folder of uploaded files. The file of a dropped upload is deleted unless another visitor's upload
            is the same file.
        examples: the page's own images; their copies in the folder are not deleted.
        capacity: bytes for all uploads; the newest one is kept even if it alone is larger.
    """

    def __init__(self, folder: str | Path, examples: Collection[Path] = (), capacity: int = KEPT_BYTES) -> None:
        self.folder, self.examples, self.capacity = Path(folder).resolve(), examples, capacity
        self._kept: OrderedDict[str, Upload] = OrderedDict()
        self._lock = Lock()

    def put(self, visitor: str, upload: Upload) -> None:
        """Keep a visitor's upload in place of the one before."""
        with self._lock:
            before = self._kept.pop(visitor, None)
            self._kept[visitor] = upload
            if before is not None:
                self._delete(before.path)
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self.capacity:
                _, oldest = self._kept.popitem(last=False)
                self._delete(oldest.path)

    def get(self, visitor: str) -> Upload | None:
        """A visitor's upload, or None if there is none or it was dropped."""
        with self._lock:
            if visitor in self._kept:
                self._kept.move_to_end(visitor)
            return self._kept.get(visitor)

    def drop(self, visitor: str) -> None:
        """Forget a visitor and delete the uploaded file."""
        with self._lock:
            upload = self._kept.pop(visitor, None)
            if upload is not None:
                self._delete(upload.path)

    def _delete(self, path: Path) -> None:
        """Delete an uploaded file that nobody has open; equal uploads share one file."""
        if self.folder not in path.resolve().parents or not path.is_file():
            return
        if any(kept.path == path for kept in self._kept.values()):
            return
        if not any(filecmp.cmp(path, example, shallow=False) for example in self.examples):
            path.unlink()
